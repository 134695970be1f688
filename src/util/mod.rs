//! Small helpers that several modules use.
//!
//! - `backoff`: delays between attempts
//! - `client_network`: the network that counts as one client
//! - `millis`: durations as whole milliseconds
//! - `read_bounded`: files of bounded size
//! - `rfc3339`: times as text
//! - `saturate`: counts in 32 bits
//! - `sleep`: sleeping until an optional deadline
//! - `tls_record`: TLS clients on a port without TLS

pub mod backoff;
pub(crate) mod client_network;
pub(crate) mod millis;
pub(crate) mod read_bounded;
pub mod rfc3339;
pub(crate) mod saturate;
pub mod sleep;
pub(crate) mod tls_record;
