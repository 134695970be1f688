//! Where logs live: the contract every engine keeps, and the engines.
//!
//! `store` is the only place that names sled and bincode, and it knows no session, no socket and no JSON.
//!
//! One store, on one of two engines. Files in reading order:
//!
//! - `received`: what a user has received, as a set of sequences
//! - `engine`: what a store stands on, ordered tables; [`memory`] and [`disk`] are the two there are
//! - `record`: what stands in the tables, byte by byte
//! - `log`, `index`: one user's log as it is known in memory, and all of them
//! - `queue`, `commit`: the one thread that writes, and what waits for it
//! - `settle`: what becomes of the journal: inboxes, rows, and room for more
//! - `recent`, `read`: reading, from memory or from the tables
//! - `journal`: all of that as a [`Store`]
//! - `recovery`: opening
//!
//! # How it is written
//!
//! Every commit is one or more records in the *journal*: each message once, with whose it is, and between the messages
//! receipts and presence. A record is at most some 64 KiB, so a commit of ten thousand messages is a handful of
//! writes and one sync. What is still unread after a while is *settled* into the recipients' *inboxes*, many messages
//! to a chunk, and the record removed. Rows in *users* say where each log stands.
//!
//! Writes are ordered so that any prefix of them is a valid state: chunks before the rows that count on them, rows
//! before the removal of the records they replace. There is no batch and no transaction anywhere.

use std::{
    fmt,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use futures_util::future::BoxFuture;

use crate::message::{Payload, Seq, UserId};

mod commit;
#[cfg(test)]
mod cut_tests;
pub mod disk;
mod engine;
mod index;
pub mod journal;
mod log;
pub mod memory;
mod queue;
mod read;
mod received;
mod recent;
mod record;
mod recovery;
mod settle;

pub use received::Received;

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
}

/// Sequences given to an [`Append`], in the order of its recipients.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Appended {
    /// One per recipient.
    pub seqs: Vec<Seq>,
}

/// What a user's sessions report. Taken in at once, written with a following commit.
#[derive(Clone, Debug, Default)]
pub struct Note {
    /// Both ends included: the client has received these.
    pub received: Option<(Seq, Seq)>,
    /// Nothing beyond this may be trimmed yet, received or not: another session of the user still reads there.
    /// `None`: no session holds anything back.
    pub hold: Option<Seq>,
    /// The user was seen at this time (connected, disconnected).
    pub seen: Option<SystemTime>,
}

/// What the store knows of a user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserState {
    /// Whether anything was ever written down about this user.
    pub known: bool,
    /// Last sequence handed out; the next message gets `head + 1`.
    pub head: Seq,
    /// What the user has received.
    pub received: Received,
    /// Entries not received yet.
    pub pending: u64,
    /// When the user last connected or disconnected, as far as that was written down.
    pub seen: Option<SystemTime>,
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

/// Why the store did not do what was asked.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Another process has the directory.
    #[error("{path} is in use by another server{holder}. Stop that one, or give this one its own store.path")]
    InUse {
        /// The directory.
        path: PathBuf,
        /// " (process 123)" where that is known.
        holder: String,
    },
    /// The directory is of another kind, version or namespace.
    #[error("{0}")]
    Incompatible(String),
    /// The directory cannot be opened.
    #[error("cannot open the store at {path}: {reason}")]
    Open {
        /// The directory.
        path: PathBuf,
        /// What failed, and what to do about it.
        reason: String,
    },
    /// A write or a sync failed. From here on nothing is promised: every later call gets this too, and the server
    /// must stop (after a failed `fsync` the kernel may have dropped what it could not write).
    #[error("the store has failed and takes nothing more: {0}. Check the disk, then start the server again")]
    Failed(Arc<str>),
    /// What was read is not what was written.
    #[error("the store is damaged: {0}")]
    Damaged(Arc<str>),
    /// [`Store::close`] was called.
    #[error("the store is closed: the server is shutting down")]
    Closed,
}

/// Called with the users who have new entries, from the thread that committed them: must not block.
pub type CommitListener = Arc<dyn Fn(&[UserId]) + Send + Sync>;

/// A user's log, kept as [`Durability`] says.
///
/// # Contract
/// - *Order.* An append that was answered comes before every append made after that; of those made at once, one comes
///   first for all their recipients. Each user's sequences are contiguous and rise by one. None is ever handed out twice, not even after a crash.
/// - *Atomicity.* What a crash leaves of the appends is a prefix of them, except that an append to very many
///   recipients may be kept for the first of them only (it was not answered then).
/// - *Visibility.* No read shows an entry before it is as durable as configured.
/// - *Cancellation.* Dropping the future of an append that was polled does not take the append back.
/// - *Trimming.* An entry goes when it was received and nothing holds it; until then every read shows it.
/// - *Threads.* All methods may be called from anywhere. [`Store::read`], [`Store::state`] and [`Store::users`] may
///   touch the disk: not for the event loop when much is asked. [`Store::recent`] never does.
pub trait Store: Send + Sync + 'static {
    /// Fingerprint of the namespace this store was opened for.
    fn namespace(&self) -> u32;

    /// Appends a message to the log of each recipient, and resolves when all of it is as durable as configured.
    /// Waits while the queue of the commit thread is full.
    fn append(&self, append: Append) -> BoxFuture<'_, Result<Appended, StoreError>>;

    /// Counts everything a user has up to this moment as received; resolves with how many entries that were, once
    /// that is durable. What the last [`Note`] holds stays held.
    fn clear(&self, user: &UserId) -> BoxFuture<'_, Result<u64, StoreError>>;

    /// Takes note of a receipt or a presence: in force for every later call at once, on disk with a following commit.
    /// A crash in between takes it back, which repeats messages and loses none.
    fn note(&self, user: &UserId, note: Note);

    /// Entries of `user` above `after`, in order: those not received, and beyond what is held also those that were.
    ///
    /// # Errors
    /// Stops at the first entry that cannot be read, telling which.
    fn read(&self, user: &UserId, after: Seq, limit: ReadLimit) -> Result<Vec<Entry>, StoreError>;

    /// As [`Store::read`], where all of it is at hand in memory; `None` where the disk would have to be asked.
    fn recent(&self, user: &UserId, after: Seq, limit: ReadLimit) -> Option<Vec<Entry>>;

    /// What is known of a user.
    ///
    /// # Errors
    /// When it cannot be read.
    fn state(&self, user: &UserId) -> Result<UserState, StoreError>;

    /// Bytes of payload that a user has not received yet. Reads all of them.
    ///
    /// # Errors
    /// When they cannot be read.
    fn pending_bytes(&self, user: &UserId) -> Result<u64, StoreError>;

    /// Known users in the order of their ids, those above `after`.
    ///
    /// # Errors
    /// When they cannot be read.
    fn users(&self, after: Option<&UserId>, limit: usize) -> Result<Vec<(UserId, UserState)>, StoreError>;

    /// Sets who is told of commits. Called once, before the first append.
    fn on_commit(&self, listener: CommitListener);

    /// Resolves when the store has failed ([`StoreError::Failed`]); otherwise never.
    fn failure(&self) -> BoxFuture<'_, StoreError>;

    /// For how long the running commit has been running, if one is: a disk that hangs shows here.
    fn stalled(&self) -> Option<Duration>;

    /// Takes nothing more, commits what was taken, writes all notes, and leaves the store cleanly closed.
    fn close(&self) -> BoxFuture<'_, Result<(), StoreError>>;
}

impl fmt::Debug for dyn Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Store")
    }
}
