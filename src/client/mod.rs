//! Connects to a server as a client.
//!
//! - [`Client`]: reconnects by itself, resumes, and queues messages while it is offline
//! - [`Connection`]: one connection without reconnecting. [`close_code::should_reconnect`] decides whether to connect again,
//!   [`Hello::reconnect_interval`] when.
//! - [`Transport`]: certificates (`wss://`) and proxy
//! - [`PositionStore`]: where a client that resumes keeps its position

mod address;
#[expect(clippy::module_inception, reason = "the file is named after the type that it defines")]
mod client;
pub mod close_code;
mod codec;
mod connect;
mod connection;
mod credentials;
mod driver;
mod error;
mod event;
mod exchange;
mod pace;
mod position;
mod proxy;
mod serve_end;
mod silence;
#[cfg(test)]
mod tests;
mod tls;
mod transport;

pub(crate) use address::without_userinfo;
pub use client::{Client, ClientBuilder, Sender};
pub use codec::Hello;
pub use connection::Connection;
pub use error::ClientError;
pub use event::{ConnectionEvent, Delivery, Event, Gap, Options, token};
pub use position::{FilePositions, MemoryPositions, PositionStore};
pub use transport::Transport;
