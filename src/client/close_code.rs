//! Close codes: what each means, and whether to come back after it.

use crate::protocol::close_code::CloseCode;

/// Not sent by anyone: the connection ended without a word, as when a network or a server goes away.
pub const LOST: u16 = 1006;

/// Not sent by anyone: the connection was closed without a code.
pub const NO_CODE: u16 = 1005;

/// What a code means, as a sentence without its full stop.
#[must_use]
pub fn meaning(code: u16) -> &'static str {
    match code {
        1000 => "the server asked this client to go",
        1001 => "the server is shutting down",
        1002 => "this client speaks another version than the server asks for",
        1003 => "the server takes text frames only",
        NO_CODE => "the server closed the connection without saying why",
        LOST => "the connection was lost",
        1007 => "the server could not read what was sent",
        1008 => "the server refused: the authentication failed or took too long, or a limit was passed",
        1009 => "what was sent is larger than the server takes",
        1011 => "the server had a fault of its own",
        1012 => "the server is restarting",
        1013 => "the server is too busy just now",
        _ => "the server closed the connection",
    }
}

/// Whether connecting again, after the usual pause, may help: as the server's own table has it. A connection that was
/// lost, or closed with a code of somebody in between, is worth another try.
#[must_use]
pub fn comes_back(code: u16) -> bool {
    CloseCode::from_code(code).is_none_or(CloseCode::should_return)
}
