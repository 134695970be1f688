//! A session: one connection's attachment to its user's log. It is a cursor on that log.
//!
//! There are two ranges. The *backlog* is what was pending at attach. Its entries are numbered from one, and may be
//! paced (`sync.redeliveryInterval`). Later entries are *live*. Without pacing the backlog is sent first, so the
//! session sends in the order of the log. With pacing live entries may overtake the backlog, and
//! [`AckSet`](crate::store::AckSet) tracks the gap.
//!
//! A slow, an offline and a half-open client need no cases of their own: the cursor moves late or not at all.

mod cursor;

use std::{
    collections::VecDeque,
    fmt,
    ops::RangeInclusive,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use futures_util::future::BoxFuture;

pub use self::cursor::SentPosition;
use self::cursor::{Cursor, Range};
use super::{Hub, events::ConnectionId, mailbox::Mailbox, registry::SessionEntry};
use crate::{
    failpoints::{self, Failpoint},
    logging::excerpt,
    message::{DeviceId, Seq, UserId},
    store::{AckSet, Entry, Gap, ReadLimit, ReadResult, StoreError},
};

/// Entries per read from the log. The caller bounds the bytes.
const READ_ENTRIES_MAX: usize = 256;

/// Delay before the next read of a log that could not be reached.
const READ_RETRY_DELAY: Duration = Duration::from_millis(250);

/// Options with which a connection attaches to its user.
#[derive(Clone, Debug)]
pub struct Attach {
    /// False: all pending entries count as acknowledged (`shouldSync`).
    pub should_sync: bool,
    /// The client resumes after this sequence: it receives every sequence and every gap, and acknowledges explicitly.
    pub after: Option<Seq>,
    /// The device whose cursor is used; `None`: the cursor that all clients without a device share.
    pub device: Option<DeviceId>,
}

impl Default for Attach {
    /// The way a client of the original attaches.
    fn default() -> Self {
        Self { should_sync: true, after: None, device: None }
    }
}

type Reading = BoxFuture<'static, Result<ReadResult, StoreError>>;

/// The range of the log for a resuming client, and the gaps in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resumed {
    /// First available sequence after the one that the client named; `last + 1` if there is none.
    pub first: Seq,
    /// Last sequence of the log at attach.
    pub last: Seq,
    /// Gaps that have not been reported to the client yet, in order.
    pub missed: Vec<Gap>,
}

/// The next action of a session for its socket.
#[derive(Debug)]
pub enum Batch {
    /// Writes entries, each after [`Session::accept`].
    Entries(Vec<Entry>),
    /// Writes an op 13 to a resuming client: once at the beginning, and at each gap.
    Resumed(Resumed),
    /// Writes nothing before this time.
    WaitUntil(Instant),
    /// Writes nothing until the mailbox signals that the log has more entries.
    Idle,
}

/// Error for an entry of another user. It is never expected, and the connection must be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the log returned an entry of another user")]
pub struct ForeignEntry;

/// A connection's attachment to its user. Dropping it detaches the connection.
pub struct Session {
    hub: Arc<Hub>,
    user: UserId,
    device: Option<DeviceId>,
    entry: Arc<SessionEntry>,
    log: Option<LogCursor>,
}

/// The part of a session that exists while sync is on.
struct LogCursor {
    cursor: Cursor,
    /// What the device had acknowledged at attach. The backlog skips it.
    acknowledged_before: AckSet,
    pace: Duration,
    /// When the next backlog entry may be sent; only with pacing.
    due: Instant,
    /// Whether the log may have more entries in the live range.
    more: bool,
    reading: Option<(Range, Reading)>,
    /// A running query for gap reasons.
    explaining: Option<BoxFuture<'static, Result<Vec<Gap>, StoreError>>>,
    /// `None`: the client does not resume.
    resuming: Option<Box<Resuming>>,
}

/// State of a resuming client.
struct Resuming {
    /// Whether the first [`Resumed`] was sent.
    announced: bool,
    first: Seq,
    last: Seq,
    /// Entries that were read and not sent.
    unsent: VecDeque<Entry>,
    /// Last sequence that a read has covered.
    through: Seq,
}

impl Hub {
    /// Registers a session, and opens its cursor on the user's log. May wait for a disk or a network.
    pub(super) fn attach(
        self: &Arc<Self>,
        connection: ConnectionId,
        mailbox: Arc<Mailbox>,
        user: UserId,
        how: Attach,
        now: Instant,
    ) -> Result<Session, StoreError> {
        // Registered before the state is read, so that a commit in between wakes the session.
        let entry = self
            .registry
            .register_session(&user, connection, mailbox, |sessions| self.set_session_count(&user, sessions));
        let session = match Session::begin(self.clone(), user.clone(), entry.clone(), how, now) {
            Ok(session) => session,
            Err(error) => {
                self.registry
                    .unregister_session(&user, connection, |sessions, _| self.set_session_count(&user, sessions));
                return Err(error);
            }
        };
        self.metrics.sessions.inc();
        self.record_seen(&user);
        Ok(session)
    }
}

impl Session {
    /// Registers the session with the store and determines its backlog.
    pub(super) fn begin(
        hub: Arc<Hub>,
        user: UserId,
        entry: Arc<SessionEntry>,
        how: Attach,
        now: Instant,
    ) -> Result<Self, StoreError> {
        let Attach { should_sync, after, device } = how;
        let log = match &hub.settings.sync {
            None => None,
            Some(sync) => {
                let state = hub.store.attach(&user, device.as_ref())?;
                // A sequence above the head was assigned by another store, so it is ignored.
                let after = after.map(|after| if after > state.head { state.acknowledged.through() } else { after });
                let base = match after {
                    _ if !should_sync => state.head,
                    Some(after) => after,
                    None => state.acknowledged.through(),
                };
                entry.position.store(base, Ordering::Release);
                if !should_sync || after.is_some() {
                    hub.record_acknowledged(&user, device.as_ref(), (1, base));
                }
                let resuming = after.map(|_| {
                    let (first, last) = (base + 1, state.head);
                    Box::new(Resuming { announced: false, first, last, unsent: VecDeque::new(), through: base })
                });
                // A resuming client receives all entries in order, without pacing.
                let paced = resuming.is_none() && !sync.redelivery_interval.is_zero();
                let backlog_end = if resuming.is_some() { base } else { state.head };
                Some(LogCursor {
                    cursor: Cursor::new(base, backlog_end, paced),
                    acknowledged_before: state.acknowledged,
                    pace: sync.redelivery_interval,
                    due: now,
                    more: true,
                    reading: None,
                    explaining: None,
                    resuming,
                })
            }
        };
        Ok(Self { hub, user, device, entry, log })
    }

    /// Returns the user of this session.
    #[must_use]
    pub fn user(&self) -> &UserId {
        &self.user
    }

    /// Returns the backlog as sequences of the user's log; `None` if it is empty.
    pub(super) fn backlog(&self) -> Option<RangeInclusive<Seq>> {
        let log = self.log.as_ref()?;
        let (after, last) = match &log.resuming {
            Some(resuming) => (resuming.through, resuming.last),
            None => (log.cursor.sent.backlog, log.cursor.backlog_end),
        };
        (after < last).then(|| after + 1..=last)
    }

    /// Records the mailbox's signal that the log has more entries.
    pub fn on_log_signal(&mut self) {
        if let Some(log) = &mut self.log {
            log.more = true;
        }
    }

    /// Returns what to write next, at most `bytes` of payload (one entry at least).
    ///
    /// Pending while the entries have to be read from a disk or a network.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn poll_batch(&mut self, cx: &mut Context<'_>, now: Instant, bytes: usize) -> Poll<Result<Batch, StoreError>> {
        let Some(log) = &mut self.log else { return Poll::Ready(Ok(Batch::Idle)) };
        loop {
            let (hub, user, device) = (&self.hub, &self.user, self.device.as_ref());
            let mut explaining = log.explaining.take();
            let explain = |from, to| {
                if !hub.store.is_remote() {
                    return Poll::Ready(hub.store.explain_gaps(user, device, from, to));
                }
                explaining
                    .get_or_insert_with(|| hub.explain_gaps(user.clone(), device.cloned(), from, to))
                    .as_mut()
                    .poll(cx)
            };
            let resumed = match log.next_for_resuming(explain) {
                Poll::Ready(Err(StoreError::Unreachable(_))) => return Poll::Ready(Ok(log.retry_later(now))),
                Poll::Ready(resumed) => resumed?,
                Poll::Pending => {
                    log.explaining = explaining;
                    return Poll::Pending;
                }
            };
            if let Some(batch) = resumed {
                self.entry.position.store(log.cursor.needed_after(), Ordering::Release);
                return Poll::Ready(Ok(batch));
            }
            if let Some((range, reading)) = &mut log.reading {
                let (range, result) = (*range, ready!(reading.as_mut().poll(cx)));
                log.reading = None;
                if let Err(StoreError::Unreachable(_)) = &result {
                    return Poll::Ready(Ok(log.retry_later(now)));
                }
                if let Some(entries) = log.apply_read(range, result?) {
                    return Poll::Ready(Ok(Batch::Entries(entries)));
                }
                self.entry.position.store(log.cursor.needed_after(), Ordering::Release);
                continue;
            }
            let has_backlog = log.cursor.has_backlog();
            let paced = has_backlog && log.cursor.paced;
            let range = match (has_backlog, log.more) {
                (true, true) if paced => Range::Live,
                (true, _) if !paced || log.due <= now => Range::Backlog,
                (true, _) => return Poll::Ready(Ok(Batch::WaitUntil(log.due))),
                (false, true) => Range::Live,
                (false, false) => return Poll::Ready(Ok(Batch::Idle)),
            };
            let limit = match range {
                Range::Backlog if paced => ReadLimit { entries: 1, bytes },
                _ => ReadLimit { entries: READ_ENTRIES_MAX, bytes },
            };
            // Cleared before the read, so that later commits signal again.
            if range == Range::Live || !paced {
                log.more = false;
            }
            let after = log.cursor.after(range);
            match self.hub.store.read_cached(&self.user, after, limit) {
                Some(result) => {
                    if let Some(entries) = log.apply_read(range, result) {
                        return Poll::Ready(Ok(Batch::Entries(entries)));
                    }
                    self.entry.position.store(log.cursor.needed_after(), Ordering::Release);
                }
                None => {
                    log.reading = Some((range, self.hub.read(self.user.clone(), after, limit)));
                }
            }
        }
    }

    /// Checks an entry's owner and moves the cursor past it; returns its `s`, if it has one.
    ///
    /// # Errors
    /// When the entry is of another user. Then no part of it may reach the socket.
    pub fn accept(&mut self, entry: &Entry, now: Instant) -> Result<Option<u64>, ForeignEntry> {
        let is_owner = entry.is_owned_by(self.hub.store.namespace(), &self.user);
        if !is_owner && !failpoints::enabled(Failpoint::ForeignEntry) {
            self.hub.metrics.foreign_entries.inc();
            tracing::error!(user = %excerpt(&self.user), seq = entry.seq, "an entry of another user was not sent; the connection is closed");
            return Err(ForeignEntry);
        }
        let Some(log) = &mut self.log else { return Err(ForeignEntry) };
        let position = log.cursor.advance(entry.seq);
        let is_backlog = match &log.resuming {
            Some(resuming) => entry.seq <= resuming.last,
            None => position.is_some(),
        };
        if is_backlog {
            log.due = now + log.pace;
            self.hub.metrics.redeliveries.inc();
        }
        self.entry.position.store(log.cursor.needed_after(), Ordering::Release);
        // A resuming client receives the sequence of every entry, backlog or live.
        Ok(if log.resuming.is_some() { Some(entry.seq) } else { position })
    }

    /// Starts the pacing of the backlog: its first entry is due one `sync.redeliveryInterval` from now.
    pub fn start_pacing(&mut self, now: Instant) {
        if let Some(log) = &mut self.log {
            log.due = now + log.pace;
        }
    }

    /// Returns the position up to which entries are sent; `None` if all of them are acknowledged.
    ///
    /// Always `None` for a resuming client: it acknowledges with [`Session::acknowledge_through`].
    #[must_use]
    pub fn unacknowledged(&self) -> Option<SentPosition> {
        self.log.as_ref().filter(|log| log.resuming.is_none())?.cursor.unacknowledged()
    }

    /// Records a resuming client's acknowledgement of all sent entries up to `seq`.
    ///
    /// False if the client does not resume, and so cannot acknowledge this way.
    pub fn acknowledge_through(&mut self, seq: Seq) -> bool {
        let resumes = self.log.as_ref().is_some_and(|log| log.resuming.is_some());
        if resumes {
            self.acknowledge(SentPosition { backlog: seq, live: seq });
        }
        resumes
    }

    /// Records that the client has received all entries up to `position`.
    pub fn acknowledge(&mut self, position: SentPosition) {
        let Some(log) = &mut self.log else { return };
        let acknowledged = log.cursor.acknowledge(position);
        for range in acknowledged.into_iter().flatten() {
            self.hub.metrics.acknowledgements.inc();
            if failpoints::one_in(Failpoint::LostAck, 4) {
                continue;
            }
            let range = if failpoints::enabled(Failpoint::AckTooFar) { (range.0, range.1 + 1) } else { range };
            self.hub.record_acknowledged(&self.user, self.device.as_ref(), range);
        }
    }
}

impl LogCursor {
    /// Schedules another read of a log that cannot be reached. The client stays connected.
    fn retry_later(&mut self, now: Instant) -> Batch {
        self.more = true;
        Batch::WaitUntil(now + READ_RETRY_DELAY)
    }

    /// Processes the result of a read; returns the entries to send, `None` if there are none.
    fn apply_read(&mut self, range: Range, result: ReadResult) -> Option<Vec<Entry>> {
        if let Some(resuming) = &mut self.resuming {
            // A read that made progress may have stopped at its limit.
            self.more |= result.through > resuming.through;
            resuming.through = resuming.through.max(result.through);
            resuming.unsent.extend(result.entries);
            if !resuming.announced {
                resuming.first = resuming.unsent.front().map_or(resuming.through + 1, |entry| entry.seq);
            }
            return None;
        }
        let mut entries = result.entries;
        let paced_backlog = range == Range::Backlog && self.cursor.paced;
        if paced_backlog {
            // A paced read must not reach into the live range, which has its own position.
            entries.retain(|entry| entry.seq <= self.cursor.backlog_end);
        }
        let Some(last) = entries.last().map(|entry| entry.seq) else {
            if range == Range::Backlog {
                self.cursor.end_backlog();
            }
            return None;
        };
        // A read that returned entries may have stopped at its limit.
        self.more |= !paced_backlog;
        entries.retain(|entry| entry.seq > self.cursor.backlog_end || !self.acknowledged_before.contains(entry.seq));
        if entries.is_empty() {
            self.cursor.skip_acknowledged(last);
            return None;
        }
        Some(entries)
    }

    /// Returns the next batch for a resuming client: consecutive entries, or a gap.
    fn next_for_resuming(
        &mut self,
        explain: impl FnOnce(Seq, Seq) -> Poll<Result<Vec<Gap>, StoreError>>,
    ) -> Poll<Result<Option<Batch>, StoreError>> {
        let Some(resuming) = &mut self.resuming else { return Poll::Ready(Ok(None)) };
        let next = self.cursor.after(Range::Live) + 1;
        let until = resuming.unsent.front().map_or(resuming.through, |entry| entry.seq - 1);
        if next <= until {
            let missed =
                if failpoints::enabled(Failpoint::UnreportedGap) { Vec::new() } else { ready!(explain(next, until))? };
            self.cursor.advance(until);
            resuming.announced = true;
            let Resuming { first, last, .. } = **resuming;
            return Poll::Ready(Ok(Some(Batch::Resumed(Resumed { first, last, missed }))));
        }
        if !resuming.announced && (!resuming.unsent.is_empty() || resuming.through >= resuming.last) {
            resuming.announced = true;
            let Resuming { first, last, .. } = **resuming;
            return Poll::Ready(Ok(Some(Batch::Resumed(Resumed { first, last, missed: Vec::new() }))));
        }
        let run = resuming.unsent.iter().enumerate().take_while(|(at, entry)| entry.seq == next + *at as Seq).count();
        if run == 0 {
            return Poll::Ready(Ok(None));
        }
        Poll::Ready(Ok(Some(Batch::Entries(resuming.unsent.drain(..run).collect()))))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if self.log.is_some() {
            self.hub.store.detach(&self.user, self.device.as_ref());
        }
        self.hub.end_session(&self.user, &self.entry);
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("user", &self.user).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
