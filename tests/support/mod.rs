//! Helpers of tests that run the built binary: a server process, and small HTTP and WebSocket clients.

pub mod http;
pub mod http_receiver;
pub mod ndjson;
pub mod seeded_rng;
pub mod server;
pub mod socket;
