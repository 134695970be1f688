//! Words for errors of connections, for people who do not know the numbers of the system.

use std::{error::Error, io};

use super::system_error::without_number;

/// Returns what went wrong with a connection: the cause at the bottom, which the layers above repeat, in plain words.
pub fn network_error(error: &(dyn Error + 'static)) -> String {
    let mut cause = error;
    while let Some(below) = cause.source() {
        cause = below;
    }
    match cause.downcast_ref::<io::Error>().map(io::Error::kind) {
        Some(io::ErrorKind::ConnectionRefused) => "connection refused".into(),
        Some(io::ErrorKind::ConnectionReset) => "connection reset by the other side".into(),
        Some(io::ErrorKind::BrokenPipe | io::ErrorKind::UnexpectedEof) => "connection closed by the other side".into(),
        Some(io::ErrorKind::TimedOut) => "no answer in time".into(),
        _ => of_text(&cause.to_string()),
    }
}

/// What libraries make of the same errors where they keep only a text.
fn of_text(text: &str) -> String {
    // A record of TLS begins with its type, and an answer in plain text does not.
    if text.contains("InvalidContentType") {
        return "the other side does not speak TLS on this port".into();
    }
    match without_number(text) {
        "Connection refused" => "connection refused".into(),
        "Connection reset by peer" => "connection reset by the other side".into(),
        "Broken pipe" | "broken pipe" | "early eof" | "unexpected end of file" => {
            "connection closed by the other side".into()
        }
        other => other.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_of_a_connection_is_told_without_numbers_of_the_system() {
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
}
