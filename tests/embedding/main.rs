//! Tests the crate as a library: embedded server, client, dispatcher and portal.

mod flaky_proxy;
mod server;
#[path = "../support/mod.rs"]
#[allow(dead_code, reason = "each suite uses a part of it")]
mod support;
mod tls_front;

mod attach;
mod client;
mod dispatcher;
mod events;
mod examples;
mod middleware;
#[cfg(feature = "failpoints")]
mod panics;
mod portal;
mod positions;
mod recovery;
mod restart;
mod transport;
