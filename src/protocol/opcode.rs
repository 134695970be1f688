//! Defines the opcodes of frames. The protocol reserves 1 to 22.
//!
//! Clients of the original pass unknown opcodes to the application. So the server sends opcodes that the original does
//! not have only to clients that request them.

/// Both directions: an application's message.
pub const DISPATCH: u64 = 0;
/// Server to client, answered by [`HEARTBEAT_ACK`]. A client may send it too; the server then answers.
pub const HEARTBEAT: u64 = 1;
/// Client to server: authentication.
pub const AUTHENTICATION: u64 = 2;
/// Client to server, from clients that resume: acknowledges all entries up to a sequence.
pub const ACK: u64 = 3;
/// Server to client: the first frame of every connection.
pub const HELLO: u64 = 10;
/// Client to server: the answer to [`HEARTBEAT`], in order.
pub const HEARTBEAT_ACK: u64 = 11;
/// Server to client, to clients that resume: the range of the log, and gaps.
pub const RESUMED: u64 = 13;
/// Server to client: the authentication succeeded.
pub const AUTHENTICATED: u64 = 22;
