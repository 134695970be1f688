use super::*;

#[test]
fn network_error_has_no_number_of_the_system() {
    for (number, expected) in [
        (111, "connection refused"),
        (104, "connection reset by the other side"),
        (32, "connection closed by the other side"),
        (110, "no answer in time"),
        (113, "No route to host"),
    ] {
        let error = io::Error::from_raw_os_error(number);
        assert_eq!(network_error(&error), expected);
        assert!(!network_error(&io::Error::other(error.to_string())).contains("os error"));
    }
    let tls = io::Error::other("received corrupt message of type InvalidContentType");
    assert!(network_error(&tls).contains("does not speak TLS"));
}
