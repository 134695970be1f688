//! The crate as a library: what a program does that has a server in it, or is a client or a backend of one.

mod flaky_proxy;
mod server;
#[path = "../support/mod.rs"]
#[allow(dead_code, reason = "each suite uses a part of it")]
mod support;

mod attach;
mod client;
mod dispatcher;
mod events;
mod middleware;
#[cfg(feature = "failpoints")]
mod panics;
mod portal;
