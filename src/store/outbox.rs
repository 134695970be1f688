//! Defines the outbox: webhook events, stored until a backend has accepted them.

use bincode::{Decode, Encode};
use tokio::sync::watch;

use super::StoreError;
use crate::message::{Seq, UserId};

/// Configures an outbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutboxOptions {
    /// Maximum number of events. Further events are dropped and counted as lost.
    pub events: u64,
    /// Maximum bytes of events. Further events are dropped and counted as lost. On disk, the tables may take several
    /// times that.
    pub bytes: u64,
    /// Kinds of events that are stored.
    pub kinds: Vec<EventKind>,
}

/// Describes an event for later delivery. Texts of clients are stored unparsed.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[non_exhaustive]
pub enum OutboxEvent {
    /// A client has connected.
    Connection {
        /// Id of the connection.
        connection: String,
    },
    /// A client has authenticated.
    Authentication {
        /// Id of the connection.
        connection: String,
        /// User id.
        user: String,
    },
    /// A client has sent a message.
    Message {
        /// Id of the connection.
        connection: String,
        /// User id, if the client has authenticated.
        user: Option<String>,
        /// Opcode.
        op: u64,
        /// Data as JSON.
        data: Option<String>,
        /// Type.
        kind: Option<String>,
    },
    /// A client has disconnected.
    Disconnection {
        /// Id of the connection.
        connection: String,
        /// User id, if the client had authenticated.
        user: Option<String>,
    },
    /// A message was not acknowledged in time.
    Undelivered {
        /// Recipient.
        user: String,
        /// Sequence in the recipient's log.
        seq: Seq,
        /// Cursors that have not acknowledged it: devices, and `None` for clients without one.
        devices: Vec<Option<String>>,
        /// Message as JSON.
        payload: String,
    },
    /// A client has acknowledged messages.
    Delivered {
        /// User id.
        user: String,
        /// Device, if the client named one.
        device: Option<String>,
        /// First sequence.
        from: Seq,
        /// Last sequence.
        to: Seq,
    },
    /// Pending messages have expired.
    Expired {
        /// User id.
        user: String,
        /// First sequence.
        from: Seq,
        /// Last sequence.
        to: Seq,
    },
    /// Pending messages were evicted for newer ones.
    Dropped {
        /// User id.
        user: String,
        /// First sequence of the range.
        from: Seq,
        /// Last sequence of the range.
        to: Seq,
        /// Number of pending messages in the range.
        count: u64,
    },
    /// Events were dropped at this point, because the outbox was full.
    Overflow {
        /// Time of the first drop, in milliseconds of the Unix epoch.
        since_ms: u64,
        /// Number of dropped events for each [`EventKind`], by its number.
        lost: Vec<(u8, u64)>,
        /// The counts are minimums, because a crash may have lost later counts.
        at_least: bool,
    },
    /// A client has sent a message whose type has an lone surrogate.
    RawTypeMessage {
        /// Id of the connection.
        connection: String,
        /// User id, if the client has authenticated.
        user: Option<String>,
        /// Opcode.
        op: u64,
        /// Data as JSON.
        data: Option<String>,
        /// Type as JSON.
        kind_json: String,
    },
    /// The previous start ended without closing this user's connections: it was killed, or the power failed.
    RestartDisconnection {
        /// User id.
        user: String,
    },
}

/// Enumerates the kinds of events. Numbers are part of the on-disk format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EventKind {
    /// [`OutboxEvent::Connection`]
    Connection = 0,
    /// [`OutboxEvent::Authentication`]
    Authentication = 1,
    /// [`OutboxEvent::Message`]
    Message = 2,
    /// [`OutboxEvent::Disconnection`] and [`OutboxEvent::RestartDisconnection`]
    Disconnection = 3,
    /// [`OutboxEvent::Undelivered`]
    Undelivered = 4,
    /// [`OutboxEvent::Delivered`]
    Delivered = 5,
    /// [`OutboxEvent::Expired`]
    Expired = 6,
    /// [`OutboxEvent::Dropped`]
    Dropped = 7,
    /// [`OutboxEvent::Overflow`]: always stored.
    Overflow = 8,
}

impl EventKind {
    /// Kinds that can be configured.
    pub const CONFIGURABLE: [Self; 8] = [
        Self::Connection,
        Self::Authentication,
        Self::Message,
        Self::Disconnection,
        Self::Undelivered,
        Self::Delivered,
        Self::Expired,
        Self::Dropped,
    ];

    /// Returns the name of the kind, for programs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connection => "connection",
            Self::Authentication => "authentication",
            Self::Message => "message",
            Self::Disconnection => "disconnection",
            Self::Undelivered => "undelivered",
            Self::Delivered => "delivered",
            Self::Expired => "expired",
            Self::Dropped => "dropped",
            Self::Overflow => "overflow",
        }
    }

    /// Returns the kind of a number.
    #[must_use]
    pub fn from_stored(number: u8) -> Option<Self> {
        Self::CONFIGURABLE.into_iter().chain([Self::Overflow]).find(|kind| *kind as u8 == number)
    }
}

impl OutboxEvent {
    /// Returns the kind of the event.
    #[must_use]
    pub fn kind(&self) -> EventKind {
        match self {
            Self::Connection { .. } => EventKind::Connection,
            Self::Authentication { .. } => EventKind::Authentication,
            Self::Message { .. } | Self::RawTypeMessage { .. } => EventKind::Message,
            Self::Disconnection { .. } | Self::RestartDisconnection { .. } => EventKind::Disconnection,
            Self::Undelivered { .. } => EventKind::Undelivered,
            Self::Delivered { .. } => EventKind::Delivered,
            Self::Expired { .. } => EventKind::Expired,
            Self::Dropped { .. } => EventKind::Dropped,
            Self::Overflow { .. } => EventKind::Overflow,
        }
    }

    /// Returns the user whom the event is about, if there is one.
    #[must_use]
    pub fn user(&self) -> Option<&str> {
        match self {
            Self::Message { user, .. } | Self::Disconnection { user, .. } | Self::RawTypeMessage { user, .. } => {
                user.as_deref()
            }
            Self::Authentication { user, .. }
            | Self::Undelivered { user, .. }
            | Self::Delivered { user, .. }
            | Self::Expired { user, .. }
            | Self::Dropped { user, .. }
            | Self::RestartDisconnection { user } => Some(user),
            Self::Connection { .. } | Self::Overflow { .. } => None,
        }
    }

    /// Estimates the size of the event on disk, in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let optional = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        let texts = match self {
            Self::Connection { connection } => connection.len(),
            Self::Authentication { connection, user } => connection.len() + user.len(),
            Self::Message { connection, user, data, kind, .. } => {
                connection.len() + optional(user) + optional(data) + optional(kind)
            }
            Self::RawTypeMessage { connection, user, data, kind_json, .. } => {
                connection.len() + optional(user) + optional(data) + kind_json.len()
            }
            Self::Disconnection { connection, user } => connection.len() + optional(user),
            Self::Undelivered { user, devices, payload, .. } => {
                user.len() + payload.len() + devices.iter().map(|device| 2 + optional(device)).sum::<usize>()
            }
            Self::Delivered { user, device, .. } => user.len() + optional(device),
            Self::Expired { user, .. } | Self::Dropped { user, .. } | Self::RestartDisconnection { user } => user.len(),
            Self::Overflow { lost, .. } => 10 * lost.len(),
        };
        32 + texts as u64
    }
}

/// Holds a stored event.
#[derive(Clone, Debug)]
pub struct QueuedEvent {
    /// Number of the event; rises by one from event to event.
    pub number: u64,
    /// Id of the event, unique over all starts. A repeated delivery has the same id.
    pub id: String,
    /// Time of the event, in milliseconds of the Unix epoch.
    pub at_ms: u64,
    /// The event.
    pub event: OutboxEvent,
}

/// Describes the state of an outbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutboxStatus {
    /// Number of written events. Excludes events that wait for the commit thread.
    pub events: u64,
    /// Bytes of the written events.
    pub bytes: u64,
    /// Number of events dropped since the store was opened.
    pub lost: u64,
    /// Events have been dropped that no [`OutboxEvent::Overflow`] reports yet.
    pub losing: bool,
    /// Number up to which events have been removed durably.
    pub removed: u64,
}

/// Stores events until their delivery.
pub trait Outbox: std::fmt::Debug + Send + Sync {
    /// Returns the id of this start of the store: 16 hexadecimal digits, unique for each start.
    #[must_use]
    fn start_id(&self) -> String;

    /// Returns whether events of this kind are stored.
    #[must_use]
    fn is_enabled(&self, kind: EventKind) -> bool;

    /// Queues an event, if its kind is enabled. Never waits. A full outbox drops the event and counts it.
    fn put(&self, event: OutboxEvent);

    /// Queues an [`OutboxEvent::Undelivered`], and records its sequence as reported.
    ///
    /// Returns false if the outbox or the disk is full, or the message is not pending: it was acknowledged meanwhile, or
    /// its user is being erased. Then nothing has changed, and the caller reads the log again later.
    #[must_use]
    fn put_undelivered(&self, user: &UserId, seq: Seq, event: OutboxEvent) -> bool;

    /// Returns the sequence up to which a user's messages were reported as undelivered; 0 for none.
    ///
    /// # Errors
    /// Fails if it is unreadable.
    fn reported(&self, user: &UserId) -> Result<Seq, StoreError>;

    /// Lists users above `after` with messages reported as undelivered, each with the last reported sequence.
    ///
    /// # Errors
    /// Fails if they are unreadable.
    fn all_reported(&self, after: Option<&UserId>, limit: usize) -> Result<Vec<(UserId, Seq)>, StoreError>;

    /// Removes the reported sequence of a user. Call this when no reported message is pending.
    fn remove_reported(&self, user: &UserId);

    /// Reads the oldest events above number `after`: at most `events` and `bytes`.
    ///
    /// Returns at least one event if there is one.
    ///
    /// # Errors
    /// Fails if they are unreadable.
    fn read(&self, after: u64, events: usize, bytes: u64) -> Result<Vec<QueuedEvent>, StoreError>;

    /// Removes all events up to number `through` with a following commit. A crash before that restores them.
    fn remove(&self, through: u64);

    /// Returns the current state.
    #[must_use]
    fn status(&self) -> OutboxStatus;

    /// Subscribes to changes: new readable events, and freed capacity.
    #[must_use]
    fn changes(&self) -> watch::Receiver<u64>;
}
