//! Rewords errors of connections, without numbers of the operating system.

use std::{error::Error, io};

use super::system_error::without_number;

/// Returns the root cause of a connection error in plain words. The outer errors only repeat it.
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
        _ => reword_text(&cause.to_string()),
    }
}

/// Rewords an error of which a library passes on only the text.
fn reword_text(text: &str) -> String {
    // A TLS record begins with its content type. A plain-text response does not.
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
mod tests;
