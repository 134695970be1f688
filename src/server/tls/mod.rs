//! TLS of the listeners: certificates, reloading, and handshakes.
//!
//! - [`source`]: settings with their current certificates, which follow the files · [`listeners`]: those of both ports
//! - [`certificates`]: loads certificates, and selects one for each handshake · `error`: errors
//! - [`handshake`]: does a handshake, or recognizes a peer that does not speak TLS

mod certificates;
mod error;
mod handshake;
mod listeners;
mod source;

pub use self::error::SetupError;
pub(super) use self::{
    handshake::{Handshake, TlsStream, handshake},
    listeners::ListenerTls,
    source::Tls,
};
