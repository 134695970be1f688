//! Outbox: webhook events, stored until a backend has taken them.

use bincode::{Decode, Encode};
use tokio::sync::watch;

use super::StoreError;
use crate::message::{Seq, UserId};

/// What an outbox is to keep.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutboxOptions {
    /// Events at most; one more is lost, and counted.
    pub events: u64,
    /// Bytes of them; likewise. On the disk the tables may take several times that.
    pub bytes: u64,
    /// Which kinds are put in at all.
    pub kinds: Vec<EventKind>,
}

/// Something that has happened, for whoever is told of it later. Texts are as they were said; nothing of it is looked at.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[non_exhaustive]
pub enum OutboxEvent {
    /// A client has connected.
    Connection {
        /// Names the connection.
        connection: String,
    },
    /// A client has shown who it is.
    Authentication {
        /// Names the connection.
        connection: String,
        /// Who it is.
        user: String,
    },
    /// A client has said something.
    Message {
        /// Names the connection.
        connection: String,
        /// Who it is, if that is known.
        user: Option<String>,
        /// The opcode.
        op: u64,
        /// The data: JSON text.
        data: Option<String>,
        /// The type.
        kind: Option<String>,
    },
    /// A client is gone.
    Disconnection {
        /// Names the connection.
        connection: String,
        /// Who it was, if that was known.
        user: Option<String>,
    },
    /// A message has not been received for a while.
    Undelivered {
        /// For whom it is.
        user: String,
        /// Its place in that user's log.
        seq: Seq,
        /// What has not received it: devices, and `None` for clients without one.
        devices: Vec<Option<String>>,
        /// What it says: JSON text.
        payload: String,
    },
    /// A client has received messages.
    Delivered {
        /// Whose.
        user: String,
        /// On which device, if it named one.
        device: Option<String>,
        /// The first.
        from: Seq,
        /// The last.
        to: Seq,
    },
    /// Messages were let go of because they were too old, before everybody had received them.
    Expired {
        /// Whose.
        user: String,
        /// The first.
        from: Seq,
        /// The last.
        to: Seq,
    },
    /// Messages went for newer ones, before everybody had received them.
    Dropped {
        /// Whose.
        user: String,
        /// The first of the range.
        from: Seq,
        /// Its last.
        to: Seq,
        /// How many of it had not been received.
        count: u64,
    },
    /// Here events are missing: there was no room for them.
    Overflow {
        /// When the first was lost, in milliseconds of the Unix epoch.
        since_ms: u64,
        /// How many of each [`EventKind`], by its number.
        lost: Vec<(u8, u64)>,
        /// A crash has cut the count short: there may have been more.
        at_least: bool,
    },
    /// A client has sent a message whose type has half of a surrogate pair.
    CutMessage {
        /// Names the connection.
        connection: String,
        /// The user, if it is known.
        user: Option<String>,
        /// The opcode.
        op: u64,
        /// The data: JSON text.
        data: Option<String>,
        /// The type: JSON text.
        kind_json: String,
    },
}

/// The kinds of events. Numbers are part of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EventKind {
    /// [`OutboxEvent::Connection`]
    Connection = 0,
    /// [`OutboxEvent::Authentication`]
    Authentication = 1,
    /// [`OutboxEvent::Message`]
    Message = 2,
    /// [`OutboxEvent::Disconnection`]
    Disconnection = 3,
    /// [`OutboxEvent::Undelivered`]
    Undelivered = 4,
    /// [`OutboxEvent::Delivered`]
    Delivered = 5,
    /// [`OutboxEvent::Expired`]
    Expired = 6,
    /// [`OutboxEvent::Dropped`]
    Dropped = 7,
    /// [`OutboxEvent::Overflow`]: always told.
    Overflow = 8,
}

impl EventKind {
    /// Those one can choose from.
    pub const CHOICE: [Self; 8] = [
        Self::Connection,
        Self::Authentication,
        Self::Message,
        Self::Disconnection,
        Self::Undelivered,
        Self::Delivered,
        Self::Expired,
        Self::Dropped,
    ];

    /// One word for programs.
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

    /// The kind of that number, if there is one.
    #[must_use]
    pub fn from_stored(number: u8) -> Option<Self> {
        Self::CHOICE.into_iter().chain([Self::Overflow]).find(|kind| *kind as u8 == number)
    }
}

impl OutboxEvent {
    /// What kind it is of.
    #[must_use]
    pub fn kind(&self) -> EventKind {
        match self {
            Self::Connection { .. } => EventKind::Connection,
            Self::Authentication { .. } => EventKind::Authentication,
            Self::Message { .. } | Self::CutMessage { .. } => EventKind::Message,
            Self::Disconnection { .. } => EventKind::Disconnection,
            Self::Undelivered { .. } => EventKind::Undelivered,
            Self::Delivered { .. } => EventKind::Delivered,
            Self::Expired { .. } => EventKind::Expired,
            Self::Dropped { .. } => EventKind::Dropped,
            Self::Overflow { .. } => EventKind::Overflow,
        }
    }

    /// About how many bytes it takes on the disk.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let optional = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        let texts = match self {
            Self::Connection { connection } => connection.len(),
            Self::Authentication { connection, user } => connection.len() + user.len(),
            Self::Message { connection, user, data, kind, .. } => {
                connection.len() + optional(user) + optional(data) + optional(kind)
            }
            Self::CutMessage { connection, user, data, kind_json, .. } => {
                connection.len() + optional(user) + optional(data) + kind_json.len()
            }
            Self::Disconnection { connection, user } => connection.len() + optional(user),
            Self::Undelivered { user, devices, payload, .. } => {
                user.len() + payload.len() + devices.iter().map(|device| 2 + optional(device)).sum::<usize>()
            }
            Self::Delivered { user, device, .. } => user.len() + optional(device),
            Self::Expired { user, .. } | Self::Dropped { user, .. } => user.len(),
            Self::Overflow { lost, .. } => 10 * lost.len(),
        };
        32 + texts as u64
    }
}

/// An event that can be read.
#[derive(Clone, Debug)]
pub struct Kept {
    /// Its number: it rises by one from event to event.
    pub number: u64,
    /// Names it, among all events there ever are: a repeat has the same.
    pub id: String,
    /// When it happened, in milliseconds of the Unix epoch.
    pub at_ms: u64,
    /// What happened.
    pub event: OutboxEvent,
}

/// How an outbox is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutboxStatus {
    /// Events in it, as durable as configured: without what was put in just now.
    pub events: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Events that were lost since the store was opened.
    pub lost: u64,
    /// Events are being lost now.
    pub losing: bool,
    /// Everything up to this number has been removed for good.
    pub removed: u64,
}

/// Events on their way out.
pub trait Outbox: std::fmt::Debug + Send + Sync {
    /// Names this start of the store: 16 hexadecimal digits. No two starts have the same.
    #[must_use]
    fn start(&self) -> String;

    /// Whether events of this kind are to be put in.
    #[must_use]
    fn wants(&self, kind: EventKind) -> bool;

    /// Puts an event in, if its kind is wanted. Never waits; where there is no room, it is counted instead.
    fn put(&self, event: OutboxEvent);

    /// Puts in that a message is undelivered, and remembers that all up to it were told of. False, and nothing is done,
    /// where there is no room, or no space on the disk: it can be reported later.
    #[must_use]
    fn put_undelivered(&self, user: &UserId, seq: Seq, event: OutboxEvent) -> bool;

    /// Up to where a user's messages were told of as undelivered; 0 for none.
    ///
    /// # Errors
    /// When it cannot be read.
    fn reported(&self, user: &UserId) -> Result<Seq, StoreError>;

    /// Users of whom messages were told of as undelivered, above `after`, and up to where.
    ///
    /// # Errors
    /// When they cannot be read.
    fn all_reported(&self, after: Option<&UserId>, limit: usize) -> Result<Vec<(UserId, Seq)>, StoreError>;

    /// Of this user nothing is pending any more that was told of.
    fn forget_reported(&self, user: &UserId);

    /// The oldest events above number `after`: at most `events` of them, and, if there is more than one, `bytes`.
    ///
    /// # Errors
    /// When they cannot be read.
    fn read(&self, after: u64, events: usize, bytes: u64) -> Result<Vec<Kept>, StoreError>;

    /// Removes all events up to number `through`, with a following commit. A crash in between brings them back.
    fn remove(&self, through: u64);

    /// How it is now.
    #[must_use]
    fn status(&self) -> OutboxStatus;

    /// Tells of every change from here on: of what can be read, and of the room there is.
    #[must_use]
    fn changes(&self) -> watch::Receiver<u64>;
}
