//! Where logs live: the contract every engine keeps, and the engines.
//!
//! `store` is the only place that names sled and bincode, and it knows no session and no socket. The store on Redis reads the
//! JSON lists of the original; no other store looks into a message.
//!
//! One store, on one of two engines. Files in reading order:
//!
//! - `received`: what a user has received, as a set of sequences; `user`: what can be asked of one; `error`: why nothing was done
//! - `engine`: what a store stands on, ordered tables; [`memory`] and [`disk`] are the two there are
//! - `record`: what stands in the tables, byte by byte
//! - `cursors`, `gone`: who has received what, and what is gone although nobody has
//! - `lapses`: restarts that may have lost sequences, and what a log passes over for them
//! - `log`, `index`: one user's log as it is known in memory, and all of them
//! - `queue`, `commit`, `answer`: the one thread that writes, what waits for it, and what it is answered
//! - `append`, `ids`: what goes into a commit, and what was done once · `rejected`: recipients for whom nothing was
//! - `settle`: what becomes of the journal: inboxes, rows, and room for more
//! - `cost`, `suspend`: what appends take on the disk, and what is done where it is full
//! - `room`, `sweep`: limits, and what has to be looked at although nothing happens
//! - `clock`: the time by which entries expire
//! - `outbox`: what is to be told to the outside world and was not yet
//! - `recent`, `inbox`, `read`: reading, from memory or from the tables
//! - `journal`: all of that as a [`Store`]
//! - `recovery`: opening · `other_format`: what to do with a store of another version
//! - `redis`: the other store there is: logs in a Redis that several servers share (only with `--features redis`)
//! - [`inspect`]: looking at what nobody has open, whatever has become of it
//! - [`portable`], `backup`, [`salvage`]: a store in one file, how that is written, and a store made of what was found
//!
//! # How it is written
//!
//! Every commit is one or more records in the *journal*: each message once, with whose it is, and between the messages
//! receipts and presence. A record is at most some 64 KiB, so a commit of ten thousand messages is a handful of
//! writes and one sync. What is still unread after a while is *settled* into the recipients' *inboxes*, many messages
//! to a chunk, and the record removed. Rows in *users* say where each log stands.
//!
//! On disk the journal and the chunks are in plain files, which are appended to and removed; the tables are sled's. So
//! what a crash leaves of these three is a prefix each, and the order between them is made by hand: chunks, a *barrier*,
//! the rows that count on them, a *checkpoint*, the removal of the records that they replace. There is no batch and no
//! transaction anywhere. The contract of an engine says it exactly, and a test cuts the power after every single write.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use futures_util::future::BoxFuture;

use crate::{
    health::Health,
    message::{CollapseKey, DeviceId, DispatchId, Payload, Seq, UserId},
};

mod answer;
mod append;
mod backup;
mod clock;
mod commit;
mod cost;
#[cfg(test)]
mod count_tests;
mod cursors;
#[cfg(test)]
mod cut_tests;
pub mod disk;
mod engine;
mod error;
mod gone;
mod ids;
mod inbox;
mod index;
pub mod inspect;
#[cfg(test)]
mod intercept_tests;
pub mod journal;
mod lapses;
mod log;
pub mod memory;
mod other_format;
mod outbox;
pub mod portable;
mod queue;
mod read;
mod received;
mod recent;
mod record;
mod recovery;
#[cfg(feature = "redis")]
pub mod redis;
mod rejected;
mod room;
pub mod salvage;
mod settle;
#[cfg(test)]
mod space_tests;
mod suspend;
mod sweep;
mod unreadable;
mod user;

pub use error::StoreError;
pub use gone::{Loss, Missed};
pub use outbox::{EventKind, Kept, Outbox, OutboxEvent, OutboxOptions, OutboxStatus};
pub use received::Received;
pub use rejected::{REJECTED_BYTES_MAX, Reason, Rejected};
pub use user::{Attached, DeviceState, KnownUser, UserState};

/// Gaps in one log of which it is known why they are there.
pub const REASONS_MAX: usize = 64;

/// One message in one user's log, with the stamp it was stored under.
///
/// The stamp is what stood on disk, not what was asked for: whoever writes an entry to a socket compares it with the
/// session first, so that a mix-up anywhere below ends there.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Fingerprint of the namespace it was stored under; compare with [`Store::namespace`].
    pub namespace: u32,
    /// The user id it was stored for, as UTF-8.
    pub owner: Bytes,
    /// Its place in that user's log.
    pub seq: Seq,
    /// What it says.
    pub payload: Payload,
}

/// One message on its way into the logs of its recipients.
#[derive(Clone, Debug)]
pub struct Append {
    /// Stored once, however many recipients there are.
    pub payload: Payload,
    /// Each user once. Empty is allowed and answered at once.
    pub recipients: Vec<UserId>,
    /// From then on it is not shown to anybody any more, and may be removed. `None`: see [`Limits::age`].
    pub ttl: Option<Duration>,
    /// A pending entry with the same key is removed from the log of each recipient who gets this one.
    pub collapse: Option<CollapseKey>,
    /// The append is to be done once, however often it is asked for.
    pub once: Option<Once>,
    /// Each recipient gets his copy once, whoever asks for it and with whichever others: for messages that several servers
    /// come to know of. Remembered for ten minutes; a copy that was refused is not. Nothing is said of it in the answer.
    /// Only a store that servers share looks at this.
    pub each_once: Option<DispatchId>,
}

impl Append {
    /// A message that is kept until it is received.
    #[must_use]
    pub fn new(payload: Payload, recipients: Vec<UserId>) -> Self {
        Self { payload, recipients, ttl: None, collapse: None, once: None, each_once: None }
    }
}

/// What makes an append one that is done once: its name, and what its answer will say beside what the store decides.
#[derive(Clone, Debug)]
pub struct Once {
    /// Remembered for [`Limits::ids_window`] from the commit on.
    pub id: DispatchId,
    /// For each recipient, whether he is here now. Users who are sent it past the log are only counted here.
    pub online: Vec<bool>,
    /// Users for whom it was refused before the store was asked.
    pub refused: Vec<Rejected>,
}

/// What was answered to an append that was to be done once: the same for every time it is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answered {
    /// Recipients in all, with those for whom it was not taken.
    pub recipients: u32,
    /// Those of them who were here.
    pub online: u32,
    /// Those of them who were not.
    pub offline: u32,
    /// Logs it was appended to; 0 for an append without recipients, which only remembers an answer.
    pub stored: u32,
    /// Those for whom it was not taken.
    pub rejected: Vec<Rejected>,
}

/// What became of an [`Append`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Appended {
    /// For each recipient in order: the sequence given, or why none was. Empty for a repeat.
    pub seqs: Vec<Result<Seq, Reason>>,
    /// Of one that was to be done [`Once`]: its answer.
    pub answered: Option<Answered>,
    /// The answer is that of an earlier append with the same id, and nothing was appended now.
    pub duplicate: bool,
    /// Entries that went for it ([`Overflow::DropOldest`]).
    pub dropped: u64,
}

/// What a store keeps at most. What is over a bound is refused, or makes room, as said; nothing is dropped in silence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Pending entries of one user.
    pub messages: u64,
    /// Bytes of payload pending for one user.
    pub bytes: u64,
    /// Entries older than this are not shown any more. `None`: entries do not age.
    pub age: Option<Duration>,
    /// What happens to a message beyond `messages` or `bytes`.
    pub overflow: Overflow,
    /// A device that was not here for this long is forgotten, unless it is all that a user has. `None`: never.
    pub device_age: Option<Duration>,
    /// Devices remembered for one user; one more, and the one that was away longest is forgotten.
    pub devices: usize,
    /// For how long the id of an append is remembered.
    pub ids_window: Duration,
    /// How many ids are remembered; beyond that the oldest is forgotten early.
    pub ids: usize,
    /// Bytes of payload pending in all. `None`: as much as the disk has room for.
    pub store_bytes: Option<u64>,
    /// Bytes that are to stay free on the disk: with less nothing is taken, until there is a sixteenth more than that.
    pub free_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            messages: 100_000,
            bytes: 64 << 20,
            age: None,
            overflow: Overflow::Reject,
            device_age: Some(Duration::from_secs(30 * 24 * 3600)),
            devices: 16,
            ids_window: Duration::from_secs(600),
            ids: 1_000_000,
            store_bytes: None,
            free_bytes: 256 << 20,
        }
    }
}

/// What happens to a message for a user who has as much pending as is allowed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Overflow {
    /// It is not taken, and the answer says so.
    #[default]
    Reject,
    /// The oldest pending entries go for it: counted, and told to a client that resumes.
    DropOldest,
}

/// What a user's sessions report. Taken in at once, written with a following commit.
#[derive(Clone, Debug, Default)]
pub struct Note {
    /// Whose cursor the receipt moves; `None`: the one that all clients without a device share.
    pub device: Option<DeviceId>,
    /// Both ends included: the client has received these.
    pub received: Option<(Seq, Seq)>,
    /// Nothing beyond this may be trimmed yet, received or not: another session of the user still reads there.
    /// `None`: no session holds anything back.
    pub hold: Option<Seq>,
    /// The user was seen at this time (connected, disconnected).
    pub seen: Option<SystemTime>,
}

/// What a read has found.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// In order.
    pub entries: Vec<Entry>,
    /// Everything up to this that is not among the entries is not there, or is not to be shown. What lies beyond was
    /// not looked at.
    pub through: Seq,
}

/// How much one read returns at most. At least one entry is returned if there is one.
#[derive(Clone, Copy, Debug)]
pub struct ReadLimit {
    /// Entries.
    pub entries: usize,
    /// Bytes of payload.
    pub bytes: usize,
}

/// When an append is answered, and so what a crash may take back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// After `fdatasync`: what was answered survives a killed process, a crashed system and a power cut.
    #[default]
    Always,
    /// At once, with `fdatasync` at least this often. A killed process loses nothing that was handed to the kernel; a
    /// crashed system or a power cut may take back the messages of that long.
    Interval(Duration),
    /// At once, leaving it to the system when to write. A crashed system may take back the last half minute or so.
    Never,
}

/// Called with the users who have new entries, from the thread that committed them: must not block.
pub type CommitListener = Arc<dyn Fn(&[UserId]) + Send + Sync>;

/// A user's log, kept as [`Durability`] says.
///
/// # Contract
/// - *Order.* An append that was answered comes before every append made after that; of those made at once, one comes
///   first for all their recipients. Each user's sequences are contiguous and rise by one. None is ever handed out twice, not even after a crash.
/// - *Atomicity.* What a crash leaves of the appends is a prefix of them, each whole.
/// - *Visibility.* No read shows an entry before it is as durable as configured.
/// - *Cancellation.* Dropping the future of an append that is in the queue does not take the append back.
/// - *Trimming.* An entry goes when everybody has received it and nothing holds it, when its time is over, or when it is
///   replaced, dropped or cleared; until then every read shows it.
/// - *Threads.* All methods may be called from anywhere. [`Store::read`], [`Store::state`] and [`Store::users`] may
///   touch the disk: not for the event loop when much is asked. [`Store::recent`] never does.
pub trait Store: Send + Sync + 'static {
    /// Fingerprint of the namespace this store was opened for.
    fn namespace(&self) -> u32;

    /// Appends a message to the log of each recipient, and resolves when all of it is as durable as configured.
    /// Waits while the queue of the commit thread is full.
    ///
    /// # Errors
    /// When nothing of it was taken. For whom alone it was not taken is in the answer.
    fn append(&self, append: Append) -> BoxFuture<'_, Result<Appended, StoreError>> {
        Box::pin(async move {
            let mut appended = self.append_all(vec![append]).await?;
            Ok(appended.pop().unwrap_or_default())
        })
    }

    /// Appends one after the other, all in one commit; resolves when all of it is as durable as configured, with one
    /// answer for each. Waits while the queue of the commit thread is full.
    ///
    /// # Errors
    /// When nothing of it was taken.
    fn append_all(&self, appends: Vec<Append>) -> BoxFuture<'_, Result<Vec<Appended>, StoreError>>;

    /// Removes everything a user has up to this moment, for all his devices; resolves with how many entries nobody
    /// had received of that, once that is durable. What the last [`Note`] holds stays held.
    fn clear(&self, user: &UserId) -> BoxFuture<'_, Result<u64, StoreError>>;

    /// A session begins: what its cursor has received so far. The first device of a user takes over from clients
    /// without one, if none of those was ever here; any other new cursor begins with all that somebody else has not
    /// received.
    ///
    /// # Errors
    /// When what is stored of the user cannot be read.
    fn attach(&self, user: &UserId, device: Option<&DeviceId>) -> Result<Attached, StoreError>;

    /// A session that had been attached is over: from here on its device may be forgotten when it stays away.
    fn detach(&self, user: &UserId, device: Option<&DeviceId>);

    /// Takes note of a receipt or a presence: in force for every later call at once, on disk with a following commit.
    /// A crash in between takes it back, which repeats messages and loses none.
    fn note(&self, user: &UserId, note: Note);

    /// Entries of `user` above `after`, in order: those not received, and beyond what is held also those that were.
    ///
    /// # Errors
    /// Stops at the first entry that cannot be read, telling which.
    fn read(&self, user: &UserId, after: Seq, limit: ReadLimit) -> Result<Found, StoreError>;

    /// As [`Store::read`], where the log is on the other side of a network, and without a thread that waits for it; `None` where it
    /// is not. What is under way ends with the future.
    fn read_far(
        &self,
        _user: &UserId,
        _after: Seq,
        _limit: ReadLimit,
    ) -> Option<BoxFuture<'static, Result<Found, StoreError>>> {
        None
    }

    /// As [`Store::read`], where all of it is at hand in memory; `None` where the disk would have to be asked.
    fn recent(&self, user: &UserId, after: Seq, limit: ReadLimit) -> Option<Found>;

    /// Why `from..=to`, where a read found nothing, is not there: the same range in parts, each with its reason. The
    /// reasons of the last [`REASONS_MAX`] gaps of a log are known; of those before it is said that they have expired.
    ///
    /// # Errors
    /// When what is stored of the user cannot be read.
    fn missed(&self, user: &UserId, device: Option<&DeviceId>, from: Seq, to: Seq) -> Result<Vec<Missed>, StoreError>;

    /// What is known of a user.
    ///
    /// # Errors
    /// When it cannot be read.
    fn state(&self, user: &UserId) -> Result<UserState, StoreError>;

    /// The same for each of these users, in their order. What cannot be read of one concerns that user alone.
    ///
    /// # Errors
    /// When none can be read.
    fn states(&self, users: Vec<UserId>) -> Result<Vec<KnownUser>, StoreError> {
        Ok(users.into_iter().map(|user| (user.clone(), self.state(&user))).collect())
    }

    /// Counts the bytes of a user's pending entries. They are known without reading, except while entries are received
    /// out of order. Then at most 1 MiB is read; where more is pending the result is the estimate that
    /// [`Store::state`] has.
    ///
    /// # Errors
    /// When they cannot be read.
    fn pending_bytes(&self, user: &UserId) -> Result<u64, StoreError>;

    /// Known users in the order of their ids, those above `after`, each with his state, or why that cannot be read
    /// ([`StoreError::Damaged`]).
    ///
    /// # Errors
    /// When they cannot be read.
    fn users(&self, after: Option<&UserId>, limit: usize) -> Result<Vec<KnownUser>, StoreError>;

    /// Sets who is told of commits. Called once, before the first append.
    fn on_commit(&self, listener: CommitListener);

    /// Resolves when the store has failed ([`StoreError::Failed`]); otherwise never.
    fn failure(&self) -> BoxFuture<'_, StoreError>;

    /// Whether the logs are on the other side of a network: then [`Store::attach`] and [`Store::missed`] wait for it too,
    /// and are not for the event loop; [`Store::note`] and [`Store::detach`] never wait.
    fn is_far(&self) -> bool {
        false
    }

    /// Why nothing can be reached for now ([`StoreError::Unreachable`]), if that is so.
    fn unreachable(&self) -> Option<Arc<str>> {
        None
    }

    /// Sets who is told that commits may have been missed: any log may have more.
    fn on_gap(&self, _listener: Arc<dyn Fn() + Send + Sync>) {}

    /// What is to be told to the outside world, if anything is.
    fn outbox(&self) -> Option<Arc<Outbox>> {
        None
    }

    /// Who has not received `seq` of a user's log: devices, and `None` for clients without one. Empty where nobody is left
    /// who could get it.
    ///
    /// # Errors
    /// When what is stored of the user cannot be read.
    fn lacking(&self, user: &UserId, seq: Seq) -> Result<Vec<Option<DeviceId>>, StoreError>;

    /// Conditions of the server that this store belongs to: the store reports its own there.
    fn health(&self) -> Arc<Health>;

    /// Why nothing is taken for now ([`StoreError::Full`]), if nothing is.
    fn full(&self) -> Option<Arc<str>>;

    /// For how long the running commit has been running, if one is: a disk that hangs shows here.
    fn stalled(&self) -> Option<Duration>;

    /// Writes a backup of everything that was answered so far. Blocks, and may take long: not for the event loop.
    ///
    /// # Errors
    /// When something cannot be read, which the backup says too, or `out` takes no more.
    fn backup(&self, out: &mut dyn std::io::Write) -> Result<portable::Contents, portable::PortableError>;

    /// Takes nothing more, commits what was taken, writes all notes, and leaves the store cleanly closed.
    fn close(&self) -> BoxFuture<'_, Result<(), StoreError>>;
}

impl fmt::Debug for dyn Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Store")
    }
}
