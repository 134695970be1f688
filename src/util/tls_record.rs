//! Recognizes a TLS client on a port without TLS, and answers it.

/// Content type of the first byte that a TLS client sends.
const HANDSHAKE: u8 = 22;

/// Answer that a TLS client understands: the fatal alert `protocol_version`.
pub const ALERT: [u8; 7] = [21, 3, 1, 0, 2, 2, 70];

/// Reports whether the first bytes of a connection are those of a TLS client.
pub fn is_client_hello(bytes: &[u8]) -> bool {
    // The record continues with its version, 3.0 to 3.4.
    bytes.first() == Some(&HANDSHAKE) && bytes.get(1).is_none_or(|major| *major == 3)
}
