//! Encodes and decodes the text of WebSocket frames. Knows no socket.
//!
//! - [`opcode`]: opcodes of frames
//! - [`close_code`]: close codes of connections
//! - [`decode`]: text from a client to [`ClientFrame`](decode::ClientFrame); rejects invalid text and never panics
//! - [`encode`]: text for a client

pub mod close_code;
pub mod decode;
pub mod encode;
pub mod opcode;
