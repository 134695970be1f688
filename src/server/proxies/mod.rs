//! Proxies in front of the server, and the addresses of the clients behind them.
//!
//! - [`trusted`]: the proxies that are believed
//! - [`forwarded`]: the headers `Forwarded` and `X-Forwarded-For` · [`proxy_header`]: the PROXY protocol

mod forwarded;
mod proxy_header;
mod trusted;

pub(super) use self::{
    forwarded::Client,
    proxy_header::{HeaderError, is_proxy_header, read_header},
    trusted::TrustedProxies,
};
