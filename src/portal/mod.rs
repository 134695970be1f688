//! Receives client events as a portal, over `GET /v1/events`.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use mesa::portal::{Event, Portal};
//!
//! let mut portal = Portal::builder("http://127.0.0.1:4000", "the API key").connect().await?;
//! while let Some(event) = portal.next().await {
//!     if let Event::Message { user: Some(user), message, .. } = event? {
//!         println!("{user} sent {}", message.kind());
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! The server must have portals enabled (`portal.enabled`). Each event goes to one portal, in turn
//! (`portal.distributeLoad`) or at random, and to each portal that requests all events ([`PortalBuilder::all`]):
//! `reportAllEvents` of the original.
//!
//! - `event`: event types
//! - `observer`: copies of all events, for tools
//! - `reader`: the background task that reads, reconnects and resumes
//! - `sse`: parses server-sent events

mod event;
mod observer;
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

use self::event::PortalItem;
pub use self::{
    event::{Event, Message},
    observer::{ObservedEvent, Observer, StreamEnd},
};
use crate::dispatcher::{DispatchError, Dispatcher};
use reader::Reader;

/// Events that are queued for the program. When the queue is full, the portal reads nothing more, and further events
/// wait in the server's bounded queue.
const EVENTS_MAX: usize = 256;

/// Default maximum delay between two attempts to connect.
const RECONNECT_DELAY_MAX: Duration = Duration::from_secs(30);

/// Configures a portal.
#[must_use = "a builder does nothing until it connects"]
#[derive(Clone)]
pub struct PortalBuilder {
    url: String,
    key: String,
    all: bool,
    after: Option<String>,
    reconnect_delay_max: Duration,
}

impl PortalBuilder {
    /// Requests all events, rather than a share of them.
    pub fn all(mut self) -> Self {
        self.all = true;
        self
    }

    /// Resumes after an event of an earlier portal ([`Portal::last_event_id`]).
    ///
    /// For 1 min after that portal disconnected, the server retains its unread events and up to 1,024 read ones. After
    /// that, the first event is an [`Event::Missed`] without a count.
    pub fn after(mut self, event_id: &str) -> Self {
        self.after = Some(event_id.to_owned());
        self
    }

    /// Sets the maximum delay between two attempts to reconnect. Default 30 s.
    ///
    /// The first delay is 1 s, or the server's `retry`. It doubles with each attempt. Jitter subtracts up to half.
    pub fn reconnect_delay_max(mut self, delay: Duration) -> Self {
        self.reconnect_delay_max = delay;
        self
    }

    /// Connects for the first time.
    ///
    /// # Errors
    /// Fails if the server cannot be reached, or rejects the request: wrong key, or portals are off.
    pub async fn connect(self) -> Result<Portal, DispatchError> {
        let dispatcher = Dispatcher::new(&self.url, &self.key)?;
        let reader = Reader::new(dispatcher, self.all, self.after, self.reconnect_delay_max);
        let response = reader.open().await?;
        let (events_in, events) = mpsc::channel(EVENTS_MAX);
        tokio::spawn(reader.run(response, events_in));
        Ok(Portal { events, last: None })
    }
}

/// Omits the key.
impl fmt::Debug for PortalBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PortalBuilder").field("url", &self.url).field("all", &self.all).finish_non_exhaustive()
    }
}

/// A portal that reconnects, and resumes after the last event that it has read.
///
/// No event is lost or repeated when a connection breaks. When the server restarts, events are lost, and an
/// [`Event::Missed`] reports it.
///
/// It is a [`Stream`] of events (the trait of the `futures` crates). An error is its last item: the server rejects this
/// portal, and a retry would not help. Up to 256 events are read ahead. They are lost with the process, unless the next
/// process resumes after [`Portal::last_event_id`] within 1 min. Dropping a portal closes the connection; its unread
/// events go to other portals.
pub struct Portal {
    events: mpsc::Receiver<PortalItem>,
    last: Option<String>,
}

impl Portal {
    /// Configures a portal of the server at `url` (`http://HOST[:PORT]`, also `https://`), with a key of its
    /// `api.keys`.
    pub fn builder(url: &str, api_key: &str) -> PortalBuilder {
        let (url, key) = (url.to_owned(), api_key.to_owned());
        PortalBuilder { url, key, all: false, after: None, reconnect_delay_max: RECONNECT_DELAY_MAX }
    }

    /// Returns the next event; `None` after an error. Cancel-safe, as in `select!`.
    pub async fn next(&mut self) -> Option<Result<Event, DispatchError>> {
        StreamExt::next(self).await
    }

    /// Returns the id of the last returned event, for [`PortalBuilder::after`].
    #[must_use]
    pub fn last_event_id(&self) -> Option<&str> {
        self.last.as_deref()
    }
}

impl Stream for Portal {
    type Item = Result<Event, DispatchError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.events.poll_recv(cx).map(|item| {
            Some(item?.map(|(event, id)| {
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
