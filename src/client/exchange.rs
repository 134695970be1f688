//! Defines what a client's handle and its background task exchange.

use std::sync::atomic::{AtomicU64, AtomicUsize};

use serde_json::{Map, Value};
use tokio::sync::{Notify, oneshot};

use super::{
    credentials::Credentials,
    error::ClientError,
    event::{Event, Options},
};
use crate::message::Seq;

pub(super) type Answer = oneshot::Sender<Result<Map<String, Value>, ClientError>>;

/// A request of the program to the driver.
pub(super) enum Control {
    Authenticate { credentials: Credentials, options: Options, answer: Answer },
    Disconnect(oneshot::Sender<()>),
}

/// An event for the program. If the client resumes: also its position, once the program has processed the event.
pub(super) type QueuedEvent = (Event, Option<Seq>);

/// Shares counters between the program and the driver.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Number of events that the program has processed.
    pub done: AtomicU64,
    /// Notified when `done` rises.
    pub done_changed: Notify,
    /// Bytes of queued messages.
    pub unsent_bytes: AtomicUsize,
}
