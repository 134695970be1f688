use super::*;

#[test]
fn variable_of_a_service_is_recognized() {
    for (name, value) in [
        ("MESA_SERVICE_HOST", "10.96.0.1"),
        ("MESA_SERVICE_PORT", "4000"),
        ("MESA_SERVICE_PORT_HTTP", "4000"),
        ("MESA_PORT", "tcp://10.96.0.1:4000"),
        ("MESA_PORT", "udp://[fd00::1]:4000"),
        ("MESA_REDIS_PROTOCOL_PORT", "tcp://10.96.0.2:6379"),
        ("MESA_PORT_4000_TCP", "tcp://10.96.0.1:4000"),
        ("MESA_PORT_4000_TCP_PROTO", "tcp"),
        ("MESA_PORT_4000_TCP_PORT", "4000"),
        ("MESA_PORT_4000_UDP_ADDR", "10.96.0.1"),
    ] {
        assert!(is_service_link(name, value), "{name}={value}");
    }
    for (name, value) in [
        ("MESA_PORT", "4000"),
        ("MESA_PORT", "http://10.96.0.1:4000"),
        ("MESA_HOST", "tcp://10.96.0.1:4000"),
        ("MESA_PORT_X_TCP", "4000"),
        ("MESA_PORT_4000_TCP_OTHER", "1"),
        ("MESA_PORT_", ""),
    ] {
        assert!(!is_service_link(name, value), "{name}={value}");
    }
}
