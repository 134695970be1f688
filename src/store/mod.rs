//! Defines the contract of a store of user logs.
//!
//! - [`Store`]: the trait. This file also defines its arguments and results.
//! - `error`: errors of operations · `rejected`: rejected recipients, with a reason
//! - `ack_set`: acknowledged sequences · `gaps`: sequences missing from a log
//! - `user_state`: the queryable state of a user
//! - `outbox`: webhook events until their delivery · `backup`: contents of a backup
//! - `clock`: the time by which entries expire
//! - `intercept`: a store whose calls a test can intercept
//!
//! The embedded store is in [`embedded`](crate::embedded), the one on Redis in `redis`.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use futures_util::future::BoxFuture;

pub use self::gaps::GAPS_MAX;
use crate::{
    health::Health,
    message::{CollapseKey, DeviceId, DispatchId, Payload, Seq, UserId},
    metrics::StoreFigures,
};

mod ack_set;
mod backup;
pub(crate) mod clock;
mod error;
pub(crate) mod gaps;
#[cfg(test)]
pub(crate) mod intercept;
mod outbox;
mod rejected;
mod user_state;

pub use ack_set::AckSet;
pub(crate) use ack_set::common_ranges;
pub use backup::{BackupError, Contents};
pub use error::StoreError;
pub use gaps::{Gap, GapReason};
pub use outbox::{EventKind, Outbox, OutboxEvent, OutboxOptions, OutboxStatus, QueuedEvent};
pub use rejected::{REJECTED_BYTES_MAX, Rejected, RejectionReason};
pub use user_state::{Attached, DeviceState, KnownUser, UserState};

/// Computes a stable fingerprint of a namespace (FNV-1a, 32 bits).
pub fn fingerprint(namespace: &str) -> u32 {
    namespace.bytes().fold(0x811C_9DC5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// Represents an entry: a message in one user's log, with its namespace and owner.
///
/// Namespace and owner are read from disk, not copied from the request. A session compares them with its own before it
/// writes the entry to a socket. So an error in a lower layer cannot deliver the entry to another user (guarantee G3).
#[derive(Clone, Debug)]
pub struct Entry {
    /// Fingerprint of its namespace; compare with [`Store::namespace`].
    pub namespace: u32,
    /// User id of its owner, as UTF-8.
    pub owner: Bytes,
    /// Sequence in that user's log.
    pub seq: Seq,
    /// The message.
    pub payload: Payload,
}

impl Entry {
    /// Returns whether the entry was stored for `user` in `namespace`.
    pub fn is_owned_by(&self, namespace: u32, user: &UserId) -> bool {
        self.namespace == namespace && self.owner == user.as_str().as_bytes()
    }
}

/// Requests that a message be appended to the logs of its recipients.
#[derive(Clone, Debug)]
pub struct Append {
    /// Message; stored once for all recipients.
    pub payload: Payload,
    /// Distinct users. Without any, the append only stores the result of its id, or completes at once.
    pub recipients: Vec<UserId>,
    /// Time after which the entry is hidden and may be removed. [`Limits::age`] applies if it is shorter, or without a
    /// TTL.
    pub ttl: Option<Duration>,
    /// Collapse key: in each recipient's log, the new entry replaces a pending one with the same key.
    pub collapse: Option<CollapseKey>,
    /// Makes the append idempotent.
    pub idempotency: Option<Idempotency>,
    /// Makes each recipient's entry idempotent, for messages that several servers receive independently.
    ///
    /// Remembered for 10 min after the append; not for a rejected entry. The result does not show it. Only a store that
    /// several servers share uses it.
    pub per_recipient_id: Option<DispatchId>,
}

impl Append {
    /// Creates an append without expiry, collapse key or id.
    #[must_use]
    pub fn new(payload: Payload, recipients: Vec<UserId>) -> Self {
        Self { payload, recipients, ttl: None, collapse: None, idempotency: None, per_recipient_id: None }
    }
}

/// Makes an append idempotent: its id, and the parts of the stored result that the caller determines.
#[derive(Clone, Debug)]
pub struct Idempotency {
    /// Remembered for [`Limits::ids_window`] from the commit.
    pub id: DispatchId,
    /// For each recipient, whether the user is online. Recipients of an unsynced message are only here, not in the
    /// append.
    pub online: Vec<bool>,
    /// Recipients that the caller has rejected.
    pub rejected: Vec<Rejected>,
}

/// Holds the result of an idempotent append, which every retry returns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DispatchSummary {
    /// Number of recipients, including rejected ones.
    pub recipients: u32,
    /// Number of online recipients.
    pub online: u32,
    /// Number of offline recipients.
    pub offline: u32,
    /// Number of logs that the message was appended to; 0 for an unsynced message.
    pub stored: u32,
    /// Rejected recipients.
    pub rejected: Vec<Rejected>,
}

/// Holds the result of an [`Append`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AppendResult {
    /// For each recipient, in order: the sequence, or the reason of the rejection. Empty for a duplicate.
    pub seqs: Vec<Result<Seq, RejectionReason>>,
    /// Stored result of an idempotent append ([`Idempotency`]).
    pub summary: Option<DispatchSummary>,
    /// The result is that of an earlier append with the same id. Nothing was appended.
    pub duplicate: bool,
    /// Number of entries that were evicted for the message ([`Overflow::DropOldest`]).
    pub dropped: u64,
}

/// Sets the bounds of a store. Above a bound, messages are rejected or entries evicted, as stated; both are reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Pending entries of one user.
    pub messages: u64,
    /// Bytes of payload pending for one user.
    pub bytes: u64,
    /// Age above which entries are hidden. `None`: entries do not age.
    pub age: Option<Duration>,
    /// Handling of a message that exceeds `messages` or `bytes`.
    pub overflow: Overflow,
    /// Absence after which a device is removed, unless it is the user's only one. `None`: never.
    pub device_age: Option<Duration>,
    /// Devices of one user. One more removes the device that was offline longest.
    pub devices: usize,
    /// Time for which the id of an append is remembered.
    pub ids_window: Duration,
    /// Number of ids that are remembered. One more removes the oldest early.
    pub ids: usize,
    /// Bytes of payload pending in total. `None`: bounded by the disk only.
    pub store_bytes: Option<u64>,
    /// Bytes that must stay free on the disk. With less, nothing is accepted until a sixteenth more than this is free.
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

/// Chooses how a message for a user at the quota is handled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Overflow {
    /// The recipient is rejected, which the result reports.
    #[default]
    Reject,
    /// The oldest pending entries are evicted, counted, and reported as a gap to clients that resume.
    DropOldest,
}

/// Reports acknowledgements and presence of a user's sessions.
#[derive(Clone, Debug, Default)]
pub struct SessionReport {
    /// Device whose cursor moves; `None`: the cursor that all clients without a device share.
    pub device: Option<DeviceId>,
    /// Acknowledged range, both ends included.
    pub acknowledged: Option<(Seq, Seq)>,
    /// Sequence above which entries are not trimmed, even if acknowledged, because a session still reads them. `None`:
    /// no session holds an entry.
    pub hold: Option<Seq>,
    /// Time at which the user connected or disconnected.
    pub seen: Option<SystemTime>,
}

/// States the result of [`Store::erase`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Erasure {
    /// The user is erased.
    Erased,
    /// The store had nothing about this user.
    Unknown,
    /// Nothing has changed, because a session of the user is attached.
    Online,
    /// This store cannot erase users.
    Unsupported,
}

/// Holds the result of a read.
#[derive(Clone, Debug, Default)]
pub struct ReadResult {
    /// Entries in order.
    pub entries: Vec<Entry>,
    /// Last sequence that the read covers. A sequence up to it that has no entry here is missing or hidden.
    pub through: Seq,
}

/// Bounds the result of a read. At least one entry is returned if there is one.
#[derive(Clone, Copy, Debug)]
pub struct ReadLimit {
    /// Entries.
    pub entries: usize,
    /// Bytes of payload.
    pub bytes: usize,
}

/// Chooses when an append completes, and so what a crash may lose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// After `fdatasync`: completed appends survive a killed process, a system crash and a power cut.
    #[default]
    Always,
    /// After the write to the kernel, with `fdatasync` at least once per interval. A killed process loses nothing. A
    /// system crash or a power cut may lose the messages of one interval.
    Interval(Duration),
    /// After the write to the kernel, which decides when to sync. A system crash may lose about the last 30 s.
    Never,
}

/// Receives the users who have new entries. Runs on the commit thread or in the runtime, so it must not block.
pub type CommitListener = Arc<dyn Fn(&[UserId]) + Send + Sync>;

/// Stores user logs, as durably as [`Durability`] states.
///
/// # Contract
/// - *Order.* A completed append precedes every append made after it. Concurrent appends have the same order in all logs.
///   The sequences of a user rise by one per entry. None is reused, not even after a crash.
/// - *Atomicity.* A crash leaves a prefix of the appends, each complete.
/// - *Visibility.* No read returns an entry before it is as durable as configured.
/// - *Cancellation.* Dropping the future of a queued append does not cancel the append.
/// - *Trimming.* An entry is removed when every cursor has acknowledged it and no session holds it, or when it has expired
///   or was collapsed, evicted or cleared. Until then every read returns it.
/// - *Threads.* All methods may be called from any thread. [`Store::read`], [`Store::state`] and [`Store::users`] may access
///   the disk, so large requests must not run on the event loop. [`Store::read_cached`] never does.
pub trait Store: Send + Sync + 'static {
    /// Returns the fingerprint of the store's namespace.
    fn namespace(&self) -> u32;

    /// Appends a message to the log of each recipient.
    ///
    /// Resolves when all entries are as durable as configured. Waits while the queue of the commit thread is full.
    ///
    /// # Errors
    /// Fails if nothing was accepted. Rejected recipients are in the result.
    fn append(&self, append: Append) -> BoxFuture<'_, Result<AppendResult, StoreError>> {
        Box::pin(async move {
            let mut appended = self.append_all(vec![append]).await?;
            Ok(appended.pop().unwrap_or_default())
        })
    }

    /// Appends several messages in order, in one commit, and returns a result for each.
    ///
    /// Resolves when all are as durable as configured. Waits while the queue of the commit thread is full.
    ///
    /// # Errors
    /// Fails if nothing was accepted. A remote store may have accepted some; see [`Store::append_each`].
    fn append_all(&self, appends: Vec<Append>) -> BoxFuture<'_, Result<Vec<AppendResult>, StoreError>>;

    /// Appends several messages like [`Store::append_all`], and returns a result or an error for each.
    ///
    /// A local store accepts all or none. A remote one may reject some, and accept others before and after them.
    fn append_each(&self, appends: Vec<Append>) -> BoxFuture<'_, Vec<Result<AppendResult, StoreError>>> {
        Box::pin(async move {
            let count = appends.len();
            result_of_each(self.append_all(appends).await, count)
        })
    }

    /// Clears all pending entries of a user, for all devices. Resolves with their number when that is durable.
    ///
    /// Entries above the hold of the last [`SessionReport`] stay readable.
    fn clear(&self, user: &UserId) -> BoxFuture<'_, Result<u64, StoreError>>;

    /// Erases a user: the log, cursors, webhook events, and the name in results of dispatches. Resolves when that is
    /// durable.
    ///
    /// A log that is created later starts above the head of every erased log, so that no sequence is reused.
    ///
    /// # Errors
    /// Fails if nothing has changed, or if the store has failed.
    fn erase(&self, _user: &UserId) -> BoxFuture<'_, Result<Erasure, StoreError>> {
        Box::pin(async { Ok(Erasure::Unsupported) })
    }

    /// Attaches a session, and returns its cursor.
    ///
    /// The first device of a user takes over the shared cursor, if no client without a device was ever connected. Every
    /// other new cursor begins with the entries that some cursor has not acknowledged.
    ///
    /// # Errors
    /// Fails if the user's stored data is unreadable.
    fn attach(&self, user: &UserId, device: Option<&DeviceId>) -> Result<Attached, StoreError>;

    /// Detaches a session. From now on its device may be removed after [`Limits::device_age`].
    fn detach(&self, user: &UserId, device: Option<&DeviceId>);

    /// Records acknowledgements or presence. Later calls see them at once, and a following commit writes them.
    ///
    /// A crash before that commit loses the report, which repeats messages and loses none.
    fn report(&self, user: &UserId, report: SessionReport);

    /// Reads entries of `user` above `after`, in order: unacknowledged ones, and above the hold also acknowledged ones.
    ///
    /// # Errors
    /// Fails at the first unreadable entry, which the error names.
    fn read(&self, user: &UserId, after: Seq, limit: ReadLimit) -> Result<ReadResult, StoreError>;

    /// Reads asynchronously, like [`Store::read`], if the log is remote; `None` if it is local.
    ///
    /// Dropping the future cancels the read.
    fn read_remote(
        &self,
        _user: &UserId,
        _after: Seq,
        _limit: ReadLimit,
    ) -> Option<BoxFuture<'static, Result<ReadResult, StoreError>>> {
        None
    }

    /// Reads from memory, like [`Store::read`]; `None` if the disk would be needed.
    fn read_cached(&self, user: &UserId, after: Seq, limit: ReadLimit) -> Option<ReadResult>;

    /// Explains why `from..=to` is missing from a log: splits the range into gaps, each with a reason.
    ///
    /// The reasons of at most the last [`GAPS_MAX`] gaps of a log are known. Older gaps are reported as expired.
    ///
    /// # Errors
    /// Fails if the user's stored data is unreadable.
    fn explain_gaps(
        &self,
        user: &UserId,
        device: Option<&DeviceId>,
        from: Seq,
        to: Seq,
    ) -> Result<Vec<Gap>, StoreError>;

    /// Returns the state of a user.
    ///
    /// # Errors
    /// Fails if it is unreadable.
    fn state(&self, user: &UserId) -> Result<UserState, StoreError>;

    /// Returns the states of several users in their order. An unreadable user does not affect others.
    ///
    /// # Errors
    /// Fails if no state can be read.
    fn states(&self, users: Vec<UserId>) -> Result<Vec<KnownUser>, StoreError> {
        Ok(users.into_iter().map(|user| (user.clone(), self.state(&user))).collect())
    }

    /// Counts the bytes of a user's pending entries.
    ///
    /// The number is known without a read, except while entries are acknowledged out of order. Then at most 1 MiB is
    /// read. Above 1 MiB, the result is the estimate of [`Store::state`].
    ///
    /// # Errors
    /// Fails if the entries are unreadable.
    fn pending_bytes(&self, user: &UserId) -> Result<u64, StoreError>;

    /// Lists known users above `after` with their states, in the order of their ids.
    ///
    /// An unreadable state is [`StoreError::Damaged`].
    ///
    /// # Errors
    /// Fails if the list is unreadable.
    fn users(&self, after: Option<&UserId>, limit: usize) -> Result<Vec<KnownUser>, StoreError>;

    /// Sets the listener of commits. Called once, before the first append.
    fn on_commit(&self, listener: CommitListener);

    /// Resolves when the store has failed ([`StoreError::Failed`]); pending otherwise.
    fn failure(&self) -> BoxFuture<'_, StoreError>;

    /// Returns whether the logs are remote.
    ///
    /// Then [`Store::attach`] and [`Store::explain_gaps`] wait for the network, and must not run on the event loop.
    /// [`Store::report`] and [`Store::detach`] never wait.
    fn is_remote(&self) -> bool {
        false
    }

    /// Returns why a remote store cannot be reached now ([`StoreError::Unreachable`]).
    fn unreachable(&self) -> Option<Arc<str>> {
        None
    }

    /// Sets the listener of missed commits. When it is called, any log may have new entries.
    fn on_resync(&self, _listener: Arc<dyn Fn() + Send + Sync>) {}

    /// Records the number of a user's authenticated connections on this server. Never waits.
    ///
    /// After a kill or a power cut, [`Store::take_interrupted`] returns the users that had any, as recorded about a second
    /// before. A store that several servers share has its own record, and ignores this.
    fn set_connections(&self, _user: &UserId, _connections: usize) {}

    /// Returns the users whose connections the previous start ended without a call of [`Store::set_connections`].
    ///
    /// Only the first call returns them. The outbox has an [`OutboxEvent::RestartDisconnection`] for each already.
    fn take_interrupted(&self) -> Vec<UserId> {
        Vec::new()
    }

    /// Returns the outbox of webhook events, if there is one.
    fn outbox(&self) -> Option<Arc<dyn Outbox>> {
        None
    }

    /// Lists the cursors that have not acknowledged `seq`: devices, and `None` for clients without one.
    ///
    /// Empty if every cursor has acknowledged it.
    ///
    /// # Errors
    /// Fails if the user's stored data is unreadable.
    fn unreceived_by(&self, user: &UserId, seq: Seq) -> Result<Vec<Option<DeviceId>>, StoreError>;

    /// Returns the health of the server, to which the store reports its own conditions.
    fn health(&self) -> Arc<Health>;

    /// Returns why nothing is accepted now ([`StoreError::Full`]).
    fn full_reason(&self) -> Option<Arc<str>>;

    /// Returns what the commit thread is doing, and for how long; `None` while it waits. A long time shows a disk that
    /// hangs.
    fn current_step(&self) -> Option<(&'static str, Duration)>;

    /// Returns figures for monitoring, without reading a message or a user; `None` if the store is remote.
    fn figures(&self) -> Option<StoreFigures> {
        None
    }

    /// Returns whether an attach of this user needs no disk. Then the log stays in memory for at least a second.
    ///
    /// Never waits: false also while another thread uses the log.
    fn is_in_memory(&self, user: &UserId) -> bool;

    /// Writes a backup of all commits so far. Blocks, possibly for minutes, so it must not run on the event loop.
    ///
    /// # Errors
    /// Fails if data is unreadable, which the backup also records, or if a write to `out` fails.
    fn backup(&self, out: &mut dyn std::io::Write) -> Result<Contents, BackupError>;

    /// Rejects further appends, commits queued ones, writes all reports, and closes the store cleanly.
    fn close(&self) -> BoxFuture<'_, Result<(), StoreError>>;
}

/// Splits the result of an append that accepts all of `count` messages or none.
fn result_of_each(
    result: Result<Vec<AppendResult>, StoreError>,
    count: usize,
) -> Vec<Result<AppendResult, StoreError>> {
    match result {
        Ok(appended) => appended.into_iter().map(Ok).collect(),
        Err(error) => vec![Err(error); count],
    }
}

impl fmt::Debug for dyn Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Store")
    }
}
