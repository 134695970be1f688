//! Clients: programs that connect to a server.
//!
//! - [`Client`]: comes back by itself, resumes, and keeps what is to be sent meanwhile
//! - [`Connection`]: one connection; it does not come back by itself. [`close::comes_back`] and [`Hello::reconnect_interval`]
//!   say whether and when to connect again.

mod address;
pub mod close;
mod connection;
mod dial;
mod error;
mod event;
mod frame;
mod reconnecting;
mod task;
#[cfg(test)]
mod tests;

pub(crate) use address::without_userinfo;
pub use connection::Connection;
pub use error::ClientError;
pub use event::{ConnectionEvent, Delivery, Event, Missed, Options, token};
pub use frame::Hello;
pub use reconnecting::{Client, ClientBuilder, Sender};
