//! Explains close codes, and decides whether to reconnect.

use crate::protocol::close_code::CloseCode;

/// Close code of a connection that broke without a close frame, for example after a network failure. Never sent.
pub const LOST: u16 = 1006;

/// Close code of a close frame without a code. Never sent.
pub const NO_CODE: u16 = 1005;

/// Returns what a code means, as a sentence without its full stop.
#[must_use]
pub fn meaning(code: u16) -> &'static str {
    match code {
        1000 => "the server disconnected this client",
        1001 => "the server is shutting down",
        1002 => "this client has another protocol version than the server requires",
        1003 => "the server accepts text frames only",
        NO_CODE => "the server closed the connection without a code",
        LOST => "the connection was lost",
        1007 => "the server could not parse a frame",
        1008 => "the server rejected the client: authentication failed or timed out, or a limit was exceeded",
        1009 => "a frame is larger than the server accepts",
        1011 => "the server had an internal error",
        1012 => "the server is restarting",
        1013 => "the server is too busy, or cannot check credentials for now",
        _ => "the server closed the connection",
    }
}

/// Returns whether reconnecting after the usual delay may succeed.
///
/// True for a lost connection, and for unknown codes, which a proxy may have sent. False for 1008: some of its reasons are
/// no longer valid with a newer token or at a lower rate, and [`Client`](super::Client) reconnects after those.
#[must_use]
pub fn should_reconnect(code: u16) -> bool {
    CloseCode::from_code(code).is_none_or(CloseCode::should_reconnect)
}
