//! What the tests of the built binary share: a server in a process of its own, and the least HTTP and WebSocket that
//! it takes to talk to it.

pub mod http;
pub mod http_receiver;
pub mod ndjson;
pub mod seeded_rng;
pub mod server;
pub mod socket;
