//! What crosses the wire, as text: frames, opcodes and close codes. Knows no socket.
//!
//! - [`opcode`]: the numbers a frame begins with
//! - [`close_code`]: the numbers a connection ends with
//! - [`decode`]: text from a client to [`ClientFrame`](decode::ClientFrame), which refuses and never panics
//! - [`encode`]: text for a client

pub mod close_code;
pub mod decode;
pub mod encode;
pub mod opcode;
