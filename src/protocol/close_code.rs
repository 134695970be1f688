//! Defines the close codes, their reasons, and whether a client should reconnect.

/// Identifies why the server closes a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CloseCode {
    /// A backend disconnected the user.
    Normal,
    /// The server is shutting down, or the client did not respond.
    GoingAway,
    /// The client's protocol version differs, or it violated the WebSocket protocol.
    Version,
    /// The client sent a binary frame; the protocol has none.
    Binary,
    /// A frame is not JSON, or not UTF-8.
    NotJson,
    /// Authentication failed or timed out, or a rule was violated.
    Policy,
    /// A frame was too large.
    TooLarge,
    /// The server had an internal error.
    Internal,
    /// The server is restarting.
    Restart,
    /// The server is overloaded, or cannot check credentials for now.
    TooBusy,
}

/// Lists for each variant its code, its reason (at most 123 bytes), and whether the client should reconnect.
const TABLE: [(CloseCode, u16, &str, bool); 10] = [
    (CloseCode::Normal, 1000, "disconnected by the backend", false),
    (CloseCode::GoingAway, 1001, "the server is going away", true),
    (CloseCode::Version, 1002, "another version is needed", false),
    (CloseCode::Binary, 1003, "binary frames are not understood", false),
    (CloseCode::NotJson, 1007, "not a JSON text", false),
    (CloseCode::Policy, 1008, "not allowed", false),
    (CloseCode::TooLarge, 1009, "the frame is too large", false),
    (CloseCode::Internal, 1011, "the server has failed", true),
    (CloseCode::Restart, 1012, "the server is restarting", true),
    (CloseCode::TooBusy, 1013, "the server is too busy; try again later", true),
];

/// Reasons that tell a client whether to reconnect.
pub mod reason {
    /// The token of the connection has expired.
    pub const TOKEN_EXPIRED: &str = "the token has expired";
    /// The client has not authenticated in time.
    pub const AUTHENTICATION_TIMED_OUT: &str = "authentication timed out";
    /// The client has exceeded `limits.framesPerSecond`.
    pub const TOO_MANY_FRAMES: &str = "too many frames";
    /// With [`CloseCode::TooBusy`](super::CloseCode::TooBusy): the credentials could not be checked.
    pub const AUTHENTICATION_UNAVAILABLE: &str = "authentication is unavailable; try again later";
}

impl CloseCode {
    /// Iterates over all codes in the order of their numbers.
    #[cfg(test)]
    pub fn all() -> impl Iterator<Item = Self> {
        TABLE.iter().map(|row| row.0)
    }

    /// Returns the variant of a number.
    #[must_use]
    pub fn from_code(code: u16) -> Option<Self> {
        TABLE.iter().find(|row| row.1 == code).map(|row| row.0)
    }

    fn row(self) -> &'static (Self, u16, &'static str, bool) {
        // A test checks that the table has the order of the variants.
        &TABLE[self as usize]
    }

    /// Returns the number.
    #[must_use]
    pub fn code(self) -> u16 {
        self.row().1
    }

    /// Returns the default reason of the close frame.
    #[must_use]
    pub fn reason(self) -> &'static str {
        self.row().2
    }

    /// Returns whether a client should reconnect after this code.
    #[must_use]
    pub fn should_reconnect(self) -> bool {
        self.row().3
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_has_order_of_variants_and_reasons_fit_close_frame() {
        for (at, (code, number, reason, _)) in TABLE.iter().enumerate() {
            assert_eq!(*code as usize, at);
            assert_eq!(CloseCode::from_code(*number), Some(*code));
            assert!(!reason.is_empty() && reason.len() <= 123);
        }
        assert_eq!(CloseCode::from_code(1006), None, "1006 is never sent");
    }

    #[test]
    fn clients_reconnect_after_server_side_closes() {
        let reconnecting: Vec<u16> =
            CloseCode::all().filter(|code| code.should_reconnect()).map(CloseCode::code).collect();
        assert_eq!(reconnecting, [1001, 1011, 1012, 1013]);
    }
}
