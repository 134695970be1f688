//! What comes from a server over one connection, and what is asked of it.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, value::RawValue};

use crate::message::{DeviceId, Seq};

/// What comes over one [`Connection`](super::Connection).
#[derive(Clone, Debug)]
pub enum ConnectionEvent {
    /// A message.
    Message {
        /// 0, or the application's own.
        op: u64,
        /// The data, to the letter; `null` when there was none.
        data: Box<RawValue>,
        /// The type, by which applications tell messages apart.
        kind: Option<String>,
        /// For a message that was kept: its place among those redelivered after this connection, from 1. For a client
        /// that asked to resume (`after`): its place in the user's log.
        position: Option<u64>,
    },
    /// To a client that resumes, before the messages it is about: what there is, and what is not there any more. Comes
    /// once for every gap.
    Resumed {
        /// The first sequence that is still there.
        first: Seq,
        /// The last there was when this was said; `first - 1` where nothing is there.
        last: Seq,
        /// What it asked for and will not get.
        missed: Option<Missed>,
    },
    /// The connection is over; every further call gives the same.
    Closed {
        /// As the server said it, or [`close_code::LOST`](super::close_code::LOST) if it said nothing. See [`close_code`](super::close_code).
        code: u16,
        /// In the server's words, or what went wrong on the way.
        reason: String,
    },
}

/// What happens to a [`Client`](super::Client).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// It has connected, for the first time or again. Where it knows how to authenticate, it does so next by itself.
    Connected {
        /// This is the client's first connection: stock's `isInitialConnection`.
        is_initial_connection: bool,
        /// It has come back by itself: stock's `isAutomaticReconnection`.
        is_automatic_reconnection: bool,
    },
    /// It was let in. The user object, which is empty where the server keeps that to itself.
    Authenticated {
        /// As the server sent it.
        user: Map<String, Value>,
    },
    /// A message.
    Message(Delivery),
    /// To a client that resumes, before the messages it is about: what there is, and what is not there any more. Once after
    /// every connection, and again for every gap.
    Resumed {
        /// The first sequence that is still there.
        first: Seq,
        /// The last there was when this was said; `first - 1` where nothing is there.
        last: Seq,
        /// What it asked for and will not get.
        missed: Option<Missed>,
    },
    /// The connection is gone.
    Disconnected {
        /// As the server said it, or [`close_code::LOST`](super::close_code::LOST) if it said nothing.
        code: u16,
        /// In the server's words, or what went wrong on the way.
        reason: String,
        /// It is going to connect again by itself: stock's `willAttemptReconnect`. If not, this is the last event.
        will_reconnect: bool,
    },
}

/// A message, as a [`Client`](super::Client) gets it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Delivery {
    /// 0, or the application's own.
    pub op: u64,
    /// The type, by which applications tell messages apart.
    pub kind: Option<String>,
    /// The data: JSON text to the letter; `null` when there was none.
    pub data: Box<RawValue>,
    /// For a message that was kept: its place among those redelivered after this connection, from 1. For a client that
    /// resumes (`after`): its sequence in the user's log.
    pub position: Option<u64>,
}

impl Delivery {
    /// The type, or the empty text: for `match`.
    #[must_use]
    pub fn kind(&self) -> &str {
        self.kind.as_deref().unwrap_or_default()
    }

    /// The data as a type of yours.
    ///
    /// # Errors
    /// When it has another form.
    pub fn read<'a, T: Deserialize<'a>>(&'a self) -> serde_json::Result<T> {
        serde_json::from_str(self.data.get())
    }
}

/// Messages that will not come any more, both ends included.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Missed {
    /// The first sequence.
    pub from: Seq,
    /// The last.
    pub to: Seq,
    /// Why, as one word for programs: `quota`, `expired`, `cleared` and others.
    pub reason: String,
}

/// What a client wants beside being let in.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Options {
    /// Whether it wants what it missed; `false` counts all of it as received. Default true.
    pub should_sync: bool,
    /// To resume: the last sequence that was dealt with, 0 for none. Write it down with what you have done with the message,
    /// and name it when the program starts again: then nothing is lost and nothing comes twice. A [`Client`](super::Client)
    /// keeps count for as long as it lives.
    pub after: Option<Seq>,
    /// The device it is on, for a place in the log of its own.
    pub device: Option<DeviceId>,
}

impl Options {
    /// Whether it wants what it missed: [`Options::should_sync`].
    #[must_use]
    pub fn should_sync(mut self, should_sync: bool) -> Self {
        self.should_sync = should_sync;
        self
    }

    /// Resumes behind a sequence, 0 for the beginning: [`Options::after`].
    #[must_use]
    pub fn after(mut self, after: Seq) -> Self {
        self.after = Some(after);
        self
    }

    /// On a device with a place in the log of its own: [`Options::device`].
    #[must_use]
    pub fn device(mut self, device: DeviceId) -> Self {
        self.device = Some(device);
        self
    }
}

impl Default for Options {
    fn default() -> Self {
        Self { should_sync: true, after: None, device: None }
    }
}

/// What to pass to [`Connection::authenticate`](super::Connection::authenticate) where all that is asked for is a token.
#[must_use]
pub fn token(token: &str) -> Map<String, Value> {
    Map::from_iter([("token".to_owned(), token.into())])
}
