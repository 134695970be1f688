//! Helpers of the tests: servers as processes and in the test process, and small HTTP, WebSocket and RESP clients.

pub mod command;
pub mod connected;
pub mod http;
pub mod http_receiver;
pub mod in_process;
pub mod ndjson;
pub mod resp;
pub mod seeded_rng;
pub mod server;
pub mod socket;
pub mod terminal;
pub mod wait;

/// Creates a runtime that runs on the calling thread.
pub fn current_thread_runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}
