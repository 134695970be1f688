//! The numbers a connection ends with: one table, which says for each whether the client should come back.

/// Why we close a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CloseCode {
    /// A backend asked for it.
    Normal,
    /// The server is stopping, or the client seemed to be gone.
    GoingAway,
    /// The client's version differs, or it broke the WebSocket protocol.
    Version,
    /// A binary frame: there are none in this protocol.
    Binary,
    /// Not JSON, or not even text.
    NotJson,
    /// Authentication failed or timed out, or a rule was broken.
    Policy,
    /// A frame was too large.
    TooLarge,
    /// Our fault.
    Internal,
    /// The server is being started anew.
    Restart,
    /// The server has more to do than it can.
    TooBusy,
}

/// Code, reason in the close frame (at most 123 bytes), whether the client should come back.
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

impl CloseCode {
    /// All of them, in the order of their numbers.
    #[cfg(test)]
    pub fn all() -> impl Iterator<Item = Self> {
        TABLE.iter().map(|row| row.0)
    }

    /// The code with this number.
    #[must_use]
    pub fn from_code(code: u16) -> Option<Self> {
        TABLE.iter().find(|row| row.1 == code).map(|row| row.0)
    }

    fn row(self) -> &'static (Self, u16, &'static str, bool) {
        // The table is in the order of the variants, which a test holds.
        &TABLE[self as usize]
    }

    /// The number.
    #[must_use]
    pub fn code(self) -> u16 {
        self.row().1
    }

    /// What the close frame says.
    #[must_use]
    pub fn reason(self) -> &'static str {
        self.row().2
    }

    /// Whether a client closed with this does well to connect again by itself.
    #[must_use]
    pub fn should_return(self) -> bool {
        self.row().3
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_the_order_of_the_variants_and_fits_a_close_frame() {
        for (at, (code, number, reason, _)) in TABLE.iter().enumerate() {
            assert_eq!(*code as usize, at);
            assert_eq!(CloseCode::from_code(*number), Some(*code));
            assert!(!reason.is_empty() && reason.len() <= 123);
        }
        assert_eq!(CloseCode::from_code(1006), None, "1006 is never sent");
    }

    #[test]
    fn a_client_comes_back_when_the_fault_is_not_its_own() {
        let back: Vec<u16> = CloseCode::all().filter(|code| code.should_return()).map(CloseCode::code).collect();
        assert_eq!(back, [1001, 1011, 1012, 1013]);
    }
}
