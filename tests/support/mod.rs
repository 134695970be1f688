//! What the tests of the built binary share: a server in a process of its own, and the least HTTP and WebSocket that
//! it takes to talk to it.

pub mod http;
pub mod lines;
pub mod random;
pub mod receiver;
pub mod server;
pub mod socket;
