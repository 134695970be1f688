//! A portal: a backend that is told what happens to clients and what they say, over `GET /v1/events`.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use mesa::portal::{Event, Portal};
//!
//! let mut portal = Portal::builder("http://127.0.0.1:4000", "the API key").connect().await?;
//! while let Some(event) = portal.next().await {
//!     if let Event::Message { user: Some(user), message, .. } = event? {
//!         println!("{user} says {}", message.kind());
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! The server has to be told to serve portals (`portal.enabled`). Each event goes to one portal in turn
//! (`portal.distributeLoad`), or at random, and to each that asked for all of them ([`PortalBuilder::all`]): stock's
//! `reportAllEvents`.
//!
//! - `event`: events
//! - `reader`: the task that reads, comes back, and names where it was
//! - `sse`: server-sent events, byte by byte

mod event;
mod reader;
mod sse;

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{Stream, StreamExt};
use tokio::sync::mpsc;

use self::event::Handed;
pub use self::event::{Event, Message};
use crate::dispatcher::{DispatchError, Dispatcher};
use reader::Reading;

/// Events that wait for the program. With so many nothing more is read; then they wait in the server, in an inbox with a
/// bound of its own.
const EVENTS_MAX: usize = 256;

/// Longest pause between two attempts.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// How a portal is connected.
#[must_use = "a builder does nothing until it connects"]
#[derive(Clone)]
pub struct PortalBuilder {
    url: String,
    key: String,
    all: bool,
    after: Option<String>,
    pause_max: Duration,
}

impl PortalBuilder {
    /// Asks for every event, rather than for a share of them.
    pub fn all(mut self) -> Self {
        self.all = true;
        self
    }

    /// Goes on behind an event that an earlier portal has had ([`Portal::last_event_id`]): of one that was here less than a
    /// minute ago what it had not taken is still there, and up to 1 024 of what it took. If it is not, an
    /// [`Event::Missed`] without a count comes first.
    pub fn after(mut self, event_id: &str) -> Self {
        self.after = Some(event_id.to_owned());
        self
    }

    /// The longest pause between two attempts to come back. Default 30 s. They begin at about a second, or what the server
    /// says, and double.
    pub fn pause_max(mut self, pause: Duration) -> Self {
        self.pause_max = pause;
        self
    }

    /// Connects for the first time.
    ///
    /// # Errors
    /// When the server cannot be reached, or refuses: no such key, or it serves no portals.
    pub async fn connect(self) -> Result<Portal, DispatchError> {
        let dispatcher = Dispatcher::new(&self.url, &self.key)?;
        let reading = Reading::new(dispatcher, self.all, self.after, self.pause_max);
        let response = reading.open().await?;
        let (events_in, events) = mpsc::channel(EVENTS_MAX);
        tokio::spawn(reading.run(response, events_in));
        Ok(Portal { events, last: None })
    }
}

/// Without the key.
impl fmt::Debug for PortalBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PortalBuilder").field("url", &self.url).field("all", &self.all).finish_non_exhaustive()
    }
}

/// A portal that is connected, and comes back when it is not: it names the last event it has read, and the server goes on
/// behind it. So nothing is lost or repeated over a broken connection; over a server that was restarted, what had happened
/// meanwhile is lost, which an [`Event::Missed`] tells.
///
/// It is a [`Stream`] (the trait of the `futures` crates) of events. An error is the last thing that comes: the server refuses
/// this portal for good. Up to 256 events are read ahead; they are lost with the process unless the next one goes on from
/// [`Portal::last_event_id`] within a minute. Dropping it ends the connection; what it has not taken goes to other portals.
pub struct Portal {
    events: mpsc::Receiver<Handed>,
    last: Option<String>,
}

impl Portal {
    /// For the server at `url` (`http://HOST[:PORT]`, also `https://`), with a key of its `api.keys`.
    pub fn builder(url: &str, api_key: &str) -> PortalBuilder {
        let (url, key) = (url.to_owned(), api_key.to_owned());
        PortalBuilder { url, key, all: false, after: None, pause_max: PAUSE_MAX }
    }

    /// The next event; `None` after an error. Safe to drop half-way, as in `select!`.
    pub async fn next(&mut self) -> Option<Result<Event, DispatchError>> {
        StreamExt::next(self).await
    }

    /// Names the event that was handed out last, for [`PortalBuilder::after`].
    #[must_use]
    pub fn last_event_id(&self) -> Option<&str> {
        self.last.as_deref()
    }
}

impl Stream for Portal {
    type Item = Result<Event, DispatchError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.events.poll_recv(cx).map(|handed| {
            Some(handed?.map(|(event, id)| {
                self.last = id.or_else(|| self.last.take());
                event
            }))
        })
    }
}

impl fmt::Debug for Portal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Portal").field("last", &self.last).finish_non_exhaustive()
    }
}
