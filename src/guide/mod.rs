//! The guide: a chapter for each page of stock's documentation, each with a program that is run as a test.
//!
//! | chapter | |
//! |---|---|
//! | [`server`] | handlers, sending, being part of a program |
//! | [`client`] | a client that comes back |
//! | [`authentication`] | who clients are |
//! | [`sync`] | messages for who is away |
//! | [`dispatcher`] | backends that send |
//! | [`portal`] | backends that are told |
//! | [`middleware`] | looking on, and refusing |
//! | [`namespaces`] | applications side by side |
//! | [`pubsub`] | many who send, many who hear |
//! | [`configuration`] | files, environment, programs |
//! | [`names`] | what stock calls it, and what it is called here |

#[doc = include_str!("server.md")]
pub mod server {}

#[doc = include_str!("client.md")]
pub mod client {}

#[doc = include_str!("authentication.md")]
pub mod authentication {}

#[doc = include_str!("sync.md")]
pub mod sync {}

#[doc = include_str!("dispatcher.md")]
pub mod dispatcher {}

#[doc = include_str!("portal.md")]
pub mod portal {}

#[doc = include_str!("middleware.md")]
pub mod middleware {}

#[doc = include_str!("namespaces.md")]
pub mod namespaces {}

#[doc = include_str!("pubsub.md")]
pub mod pubsub {}

#[doc = include_str!("configuration.md")]
pub mod configuration {}

#[doc = include_str!("names.md")]
pub mod names {}
