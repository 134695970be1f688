//! What crosses the wire, as text: frames, opcodes and close codes. Knows no socket.
//!
//! - [`opcode`]: the numbers a frame begins with
//! - [`close`]: the numbers a connection ends with
//! - [`frame`]: text from a client to [`ClientFrame`](frame::ClientFrame), which refuses and never panics
//! - [`encode`]: text for a client

pub mod close;
pub mod encode;
pub mod frame;
pub mod opcode;
