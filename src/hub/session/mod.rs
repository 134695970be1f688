//! A session: one connection's attachment to its user's log, which is nothing but a cursor on it.
//!
//! There are two ranges. What was *owed* when the session began is numbered from one and may be paced
//! (`sync.redeliveryInterval`); what comes after is *live*. Without pacing the live range waits for the owed one, and
//! the two are one in strict order; with pacing live entries pass, and [`Received`](crate::store::Received) remembers
//! the hole they leave.
//!
//! Being slow, being away and being half-open are not cases here: they are a cursor that moves late or not at all.

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

pub use self::cursor::Mark;
use self::cursor::{Cursor, Range};
use super::{Hub, events::ConnectionId, mailbox::Mailbox, registry::Seat};
use crate::{
    failpoints::{self, Failpoint},
    logging::excerpt,
    message::{DeviceId, Seq, UserId},
    store::{Entry, Found, Missed, ReadLimit, Received, StoreError},
};

/// Entries read from the log in one go; the bytes are bounded by the caller.
const READ_ENTRIES_MAX: usize = 256;

/// After a log could not be reached it is left alone for this long.
const READ_AGAIN: Duration = Duration::from_millis(250);

/// How a session begins.
#[derive(Clone, Debug)]
pub struct Attach {
    /// False: all that is pending counts as received (`shouldSync`).
    pub should_sync: bool,
    /// The client resumes behind this sequence, is told every sequence and every gap, and confirms by itself.
    pub after: Option<Seq>,
    /// Whose cursor it goes by; `None`: the one that all clients without a device share.
    pub device: Option<DeviceId>,
}

impl Default for Attach {
    /// As a stock client comes.
    fn default() -> Self {
        Self { should_sync: true, after: None, device: None }
    }
}

type Reading = BoxFuture<'static, Result<Found, StoreError>>;

/// What a client that resumes is told about the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resumed {
    /// The first sequence above the one it named that is still there; one more than `last` if none is.
    pub first: Seq,
    /// The last sequence of the log when it came.
    pub last: Seq,
    /// What is not there any more of what it has not been told of yet, in order.
    pub missed: Vec<Missed>,
}

/// What the log has for the socket now.
#[derive(Debug)]
pub enum Batch {
    /// Write these, each through [`Session::accept`].
    Entries(Vec<Entry>),
    /// Write this. Once at the beginning, and again wherever something is missing; only to a client that resumes.
    Resumed(Resumed),
    /// Nothing until then.
    At(Instant),
    /// Nothing until the mailbox says that the log has more.
    Idle,
}

/// An entry turned up that belongs to somebody else. Never expected; the connection must be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the log returned an entry that does not belong to this session's user")]
pub struct Foreign;

/// One connection's attachment to its user. Dropping it detaches.
pub struct Session {
    hub: Arc<Hub>,
    user: UserId,
    device: Option<DeviceId>,
    seat: Arc<Seat>,
    log: Option<LogCursor>,
}

/// The part of a session that exists when sync is on.
struct LogCursor {
    cursor: Cursor,
    /// What the user had received when the session began: of what was owed, this is passed over.
    had: Received,
    pace: Duration,
    /// When the next owed entry may go; only with pacing.
    due: Instant,
    /// The log may have something in the live range.
    more: bool,
    reading: Option<(Range, Reading)>,
    /// It is being found out why something is not there.
    explaining: Option<BoxFuture<'static, Result<Vec<Missed>, StoreError>>>,
    /// Of a client that resumes.
    resuming: Option<Resuming>,
}

/// What a client that resumes has still to be told of the last read.
struct Resuming {
    /// It was told where the log begins.
    told: bool,
    first: Seq,
    last: Seq,
    /// Not written yet.
    found: VecDeque<Entry>,
    /// Up to here the last read has looked.
    through: Seq,
}

impl Hub {
    pub(super) fn attach(
        self: &Arc<Self>,
        connection: ConnectionId,
        mailbox: Arc<Mailbox>,
        user: UserId,
        how: Attach,
        now: Instant,
    ) -> Result<Session, StoreError> {
        // Seated first, asked for the state second: a commit in between wakes the session rather than be missed.
        let seat = self.registry.sit(&user, connection, mailbox, |sessions| self.counts(&user, sessions));
        let session = match Session::begin(self.clone(), user.clone(), seat.clone(), how, now) {
            Ok(session) => session,
            Err(error) => {
                self.registry.rise(&user, connection, |sessions| self.counts(&user, sessions));
                return Err(error);
            }
        };
        self.metrics.sessions.inc();
        self.seen(&user);
        Ok(session)
    }
}

impl Session {
    /// Seats the user and finds out what is owed.
    pub(super) fn begin(
        hub: Arc<Hub>,
        user: UserId,
        seat: Arc<Seat>,
        how: Attach,
        now: Instant,
    ) -> Result<Self, StoreError> {
        let Attach { should_sync, after, device } = how;
        let log = match &hub.settings.sync {
            None => None,
            Some(sync) => {
                let state = hub.store.attach(&user, device.as_ref())?;
                // A sequence the log has not reached was given out by another store: it says nothing about this one.
                let after = after.map(|after| if after > state.head { state.received.through() } else { after });
                let base = match after {
                    _ if !should_sync => state.head,
                    Some(after) => after,
                    None => state.received.through(),
                };
                seat.position.store(base, Ordering::Release);
                if !should_sync || after.is_some() {
                    hub.received(&user, device.as_ref(), (1, base));
                }
                let resuming = after.map(|_| Resuming {
                    told: false,
                    first: base + 1,
                    last: state.head,
                    found: VecDeque::new(),
                    through: base,
                });
                // Who resumes gets everything in one order, and sets his own pace by what he confirms.
                let paced = resuming.is_none() && !sync.redelivery_interval.is_zero();
                let owed_end = if resuming.is_some() { base } else { state.head };
                Some(LogCursor {
                    cursor: Cursor::new(base, owed_end, paced),
                    had: state.received,
                    pace: sync.redelivery_interval,
                    due: now,
                    more: true,
                    reading: None,
                    explaining: None,
                    resuming,
                })
            }
        };
        Ok(Self { hub, user, device, seat, log })
    }

    /// Whose session this is.
    #[must_use]
    pub fn user(&self) -> &UserId {
        &self.user
    }

    /// What is owed to who has just come: sequences of the user's log. `None`: nothing.
    pub(super) fn owed(&self) -> Option<RangeInclusive<Seq>> {
        let log = self.log.as_ref()?;
        let (after, last) = match &log.resuming {
            Some(resuming) => (resuming.through, resuming.last),
            None => (log.cursor.read.owed, log.cursor.owed_end),
        };
        (after < last).then(|| after + 1..=last)
    }

    /// The mailbox said that the log has more.
    pub fn log_has_more(&mut self) {
        if let Some(log) = &mut self.log {
            log.more = true;
        }
    }

    /// What is to be written next, at most `bytes` of payload (one entry at least). A disk may have to be asked: that
    /// is why this can be pending.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn poll_batch(&mut self, cx: &mut Context<'_>, now: Instant, bytes: usize) -> Poll<Result<Batch, StoreError>> {
        let Some(log) = &mut self.log else { return Poll::Ready(Ok(Batch::Idle)) };
        loop {
            let (hub, user, device) = (&self.hub, &self.user, self.device.as_ref());
            let mut explaining = log.explaining.take();
            let missed = |from, to| {
                if !hub.store.is_far() {
                    return Poll::Ready(hub.store.missed(user, device, from, to));
                }
                explaining.get_or_insert_with(|| hub.missed(user.clone(), device.cloned(), from, to)).as_mut().poll(cx)
            };
            let told = match log.next_of_resumed(missed) {
                Poll::Ready(Err(StoreError::Unreachable(_))) => return Poll::Ready(Ok(log.again(now))),
                Poll::Ready(told) => told?,
                Poll::Pending => {
                    log.explaining = explaining;
                    return Poll::Pending;
                }
            };
            if let Some(batch) = told {
                self.seat.position.store(log.cursor.needed_after(), Ordering::Release);
                return Poll::Ready(Ok(batch));
            }
            if let Some((range, reading)) = &mut log.reading {
                let (range, found) = (*range, ready!(reading.as_mut().poll(cx)));
                log.reading = None;
                if let Err(StoreError::Unreachable(_)) = &found {
                    return Poll::Ready(Ok(log.again(now)));
                }
                if let Some(entries) = log.settle(range, found?) {
                    return Poll::Ready(Ok(Batch::Entries(entries)));
                }
                self.seat.position.store(log.cursor.needed_after(), Ordering::Release);
                continue;
            }
            let owes = log.cursor.owes();
            let paced = owes && log.cursor.paced;
            let range = match (owes, log.more) {
                (true, true) if paced => Range::Live,
                (true, _) if !paced || log.due <= now => Range::Owed,
                (true, _) => return Poll::Ready(Ok(Batch::At(log.due))),
                (false, true) => Range::Live,
                (false, false) => return Poll::Ready(Ok(Batch::Idle)),
            };
            let limit = match range {
                Range::Owed if paced => ReadLimit { entries: 1, bytes },
                _ => ReadLimit { entries: READ_ENTRIES_MAX, bytes },
            };
            // Cleared before the read: what is committed from here on signals again.
            if range == Range::Live || !paced {
                log.more = false;
            }
            let after = log.cursor.after(range);
            match self.hub.store.recent(&self.user, after, limit) {
                Some(found) => {
                    if let Some(entries) = log.settle(range, found) {
                        return Poll::Ready(Ok(Batch::Entries(entries)));
                    }
                    self.seat.position.store(log.cursor.needed_after(), Ordering::Release);
                }
                None => {
                    log.reading = Some((range, self.hub.read(self.user.clone(), after, limit)));
                }
            }
        }
    }

    /// Checks an entry and moves the cursor over it; returns its position in the redelivery, if it is one.
    ///
    /// # Errors
    /// When the entry is not this user's: nothing of it may reach the socket.
    pub fn accept(&mut self, entry: &Entry, now: Instant) -> Result<Option<u64>, Foreign> {
        let ours = entry.namespace == self.hub.store.namespace() && entry.owner == self.user.as_str().as_bytes();
        if !ours && !failpoints::enabled(Failpoint::ForeignEntry) {
            self.hub.metrics.foreign_entries.inc();
            tracing::error!(user = %excerpt(&self.user), seq = entry.seq, "an entry of another user was stopped before the socket");
            return Err(Foreign);
        }
        let Some(log) = &mut self.log else { return Err(Foreign) };
        let position = log.cursor.advance(entry.seq);
        let owed = match &log.resuming {
            Some(resuming) => entry.seq <= resuming.last,
            None => position.is_some(),
        };
        if owed {
            log.due = now + log.pace;
            self.hub.metrics.redeliveries.inc();
        }
        self.seat.position.store(log.cursor.needed_after(), Ordering::Release);
        // Who resumes is told the place in the log, whether it was owed or not.
        Ok(if log.resuming.is_some() { Some(entry.seq) } else { position })
    }

    /// Starts the pacing of the backlog: its first entry is due one `sync.redeliveryInterval` from now.
    pub fn start_pacing(&mut self, now: Instant) {
        if let Some(log) = &mut self.log {
            log.due = now + log.pace;
        }
    }

    /// How far this session has written and the client has not confirmed; `None` when all is confirmed.
    ///
    /// A client that resumes is never asked: it confirms by [`Session::confirm_through`].
    #[must_use]
    pub fn unconfirmed(&self) -> Option<Mark> {
        self.log.as_ref().filter(|log| log.resuming.is_none())?.cursor.unconfirmed()
    }

    /// The application of a client that resumes has had everything up to `seq`; of that, what was written counts. False
    /// where the client does not resume: then it is not for it to say.
    pub fn confirm_through(&mut self, seq: Seq) -> bool {
        let resumes = self.log.as_ref().is_some_and(|log| log.resuming.is_some());
        if resumes {
            self.confirm(Mark { owed: seq, live: seq });
        }
        resumes
    }

    /// The client has received everything up to `mark`.
    pub fn confirm(&mut self, mark: Mark) {
        let Some(log) = &mut self.log else { return };
        let confirmed = log.cursor.confirm(mark);
        for range in confirmed.into_iter().flatten() {
            self.hub.metrics.receipts.inc();
            if failpoints::one_in(Failpoint::LostAck, 4) {
                continue;
            }
            let range = if failpoints::enabled(Failpoint::AckTooFar) { (range.0, range.1 + 1) } else { range };
            self.hub.received(&self.user, self.device.as_ref(), range);
        }
    }
}

impl LogCursor {
    /// The log cannot be reached: the client stays, and it is read again a little later.
    fn again(&mut self, now: Instant) -> Batch {
        self.more = true;
        Batch::At(now + READ_AGAIN)
    }

    /// Takes what was read; `None` if there is nothing to write and the next step has to be chosen anew.
    fn settle(&mut self, range: Range, found: Found) -> Option<Vec<Entry>> {
        if let Some(resuming) = &mut self.resuming {
            // A read that got anywhere may have stopped at its limit.
            self.more |= found.through > resuming.through;
            resuming.through = resuming.through.max(found.through);
            resuming.found.extend(found.entries);
            if !resuming.told {
                resuming.first = resuming.found.front().map_or(resuming.through + 1, |entry| entry.seq);
            }
            return None;
        }
        let mut entries = found.entries;
        let paced_owed = range == Range::Owed && self.cursor.paced;
        if paced_owed {
            // A paced read must not run on into the live range, which has a cursor of its own.
            entries.retain(|entry| entry.seq <= self.cursor.owed_end);
        }
        let Some(last) = entries.last().map(|entry| entry.seq) else {
            if range == Range::Owed {
                self.cursor.nothing_owed();
            }
            return None;
        };
        // A read that returned something may have stopped at its limit.
        self.more |= !paced_owed;
        entries.retain(|entry| entry.seq > self.cursor.owed_end || !self.had.contains(entry.seq));
        if entries.is_empty() {
            self.cursor.pass(last);
            return None;
        }
        Some(entries)
    }

    /// What a client that resumes is to be told next of what has been read: entries without a hole, or a hole.
    fn next_of_resumed(
        &mut self,
        missed: impl FnOnce(Seq, Seq) -> Poll<Result<Vec<Missed>, StoreError>>,
    ) -> Poll<Result<Option<Batch>, StoreError>> {
        let Some(resuming) = &mut self.resuming else { return Poll::Ready(Ok(None)) };
        let next = self.cursor.after(Range::Live) + 1;
        let until = resuming.found.front().map_or(resuming.through, |entry| entry.seq - 1);
        if next <= until {
            let missed =
                if failpoints::enabled(Failpoint::UnreportedGap) { Vec::new() } else { ready!(missed(next, until))? };
            self.cursor.advance(until);
            resuming.told = true;
            let Resuming { first, last, .. } = *resuming;
            return Poll::Ready(Ok(Some(Batch::Resumed(Resumed { first, last, missed }))));
        }
        if !resuming.told && (!resuming.found.is_empty() || resuming.through >= resuming.last) {
            resuming.told = true;
            let Resuming { first, last, .. } = *resuming;
            return Poll::Ready(Ok(Some(Batch::Resumed(Resumed { first, last, missed: Vec::new() }))));
        }
        let run = resuming.found.iter().enumerate().take_while(|(at, entry)| entry.seq == next + *at as Seq).count();
        if run == 0 {
            return Poll::Ready(Ok(None));
        }
        Poll::Ready(Ok(Some(Batch::Entries(resuming.found.drain(..run).collect()))))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if self.log.is_some() {
            self.hub.store.detach(&self.user, self.device.as_ref());
        }
        self.hub.end(&self.user, &self.seat);
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("user", &self.user).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
