//! Clients: programs that connect to a server.
//!
//! - [`Connection`]: one connection; it does not come back by itself. [`close::comes_back`] and [`Hello::reconnect_interval`]
//!   say whether and when to connect again.

pub mod close;
mod connection;
mod dial;
mod error;
mod event;
mod frame;
#[cfg(test)]
mod tests;

pub use connection::Connection;
pub use error::ClientError;
pub use event::{Event, Missed, Options, token};
pub use frame::Hello;
