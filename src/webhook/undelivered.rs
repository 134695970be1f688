//! Reports messages that were not acknowledged within `undeliveredAfter`: the moment to send a push notification.
//!
//! Scheduled checks report pending messages of a user that are old enough and not reported yet. Messages within a short
//! time share a check, so a report may be late, never early. The last reported sequence of each user is stored with the
//! outbox, so a restart repeats no report. After a restart the age of messages is unknown, so earlier ones are reported
//! `undeliveredAfter` after it.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::task::spawn_blocking;

use crate::{
    hub::{Entry, Outbox, OutboxEvent, ReadLimit, Store, StoreError},
    logging::excerpt,
    message::{Seq, UserId},
};

/// Maximum scheduled checks. At this limit, users without a check are found by a later scan of all users.
const CHECKS_MAX: usize = 100_000;

/// Divisor of `undeliveredAfter`: messages within the quotient share a check.
const MERGE_DIVISOR: u32 = 8;

/// Maximum time within which messages share a check.
const MERGE_DELAY_MAX: Duration = Duration::from_secs(5);

/// Interval between runs of due checks.
const ROUND_INTERVAL: Duration = Duration::from_millis(100);

/// Delay before a check is retried when the outbox is full.
const FULL_RETRY_DELAY: Duration = Duration::from_secs(1);

/// Interval between removals of reported sequences that are no longer needed.
const CLEANUP_INTERVAL: Duration = Duration::from_secs(60);

/// Users read per round.
const PAGE_USERS: usize = 256;

/// Limit of one read of a user's log.
const READ_LIMIT: ReadLimit = ReadLimit { entries: 64, bytes: 256 << 10 };

/// Reports undelivered messages.
pub(super) struct UndeliveredMonitor {
    store: Arc<dyn Store>,
    outbox: Arc<dyn Outbox>,
    after: Duration,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Checks by due time; the number distinguishes those with the same time.
    checks: BTreeMap<Due, Check>,
    /// Each user's check that accepts further messages.
    open_checks: HashMap<UserId, Due>,
    next_number: u64,
    /// Whether users with pending messages may have no check, so that all users must be scanned.
    scan_needed: bool,
}

type Due = (Instant, u64);

struct Check {
    user: UserId,
    /// Last sequence that the check reports.
    through: Seq,
    /// Time from which new messages get another check.
    closes: Instant,
}

impl UndeliveredMonitor {
    pub fn new(store: Arc<dyn Store>, outbox: Arc<dyn Outbox>, after: Duration) -> Self {
        // Messages from before the start have no check.
        let state = State { scan_needed: true, ..State::default() };
        Self { store, outbox, after, state: state.into() }
    }

    /// Schedules checks for users with new entries. Called on the commit thread.
    pub fn on_appended(&self, users: &[UserId]) {
        let now = Instant::now();
        for user in users {
            // An error is reported to readers of the log.
            if let Ok(state) = self.store.state(user) {
                self.schedule(user, state.head, now);
            }
        }
    }

    /// Schedules a check of `user` up to `through`.
    fn schedule(&self, user: &UserId, through: Seq, now: Instant) {
        let merge_delay = (self.after / MERGE_DIVISOR).min(MERGE_DELAY_MAX);
        let mut state = self.state.lock();
        if let Some(due) = state.open_checks.get(user).copied()
            && let Some(check) = state.checks.get_mut(&due).filter(|check| now < check.closes)
        {
            check.through = check.through.max(through);
            return;
        }
        if state.checks.len() >= CHECKS_MAX {
            state.scan_needed = true;
            return;
        }
        let due =
            state.put(Check { user: user.clone(), through, closes: now + merge_delay }, now + merge_delay + self.after);
        state.open_checks.insert(user.clone(), due);
    }

    /// Runs rounds until it is dropped.
    pub async fn run(self: &Arc<Self>) {
        // An earlier run may have panicked within a round, and lost checks.
        self.state.lock().scan_needed = true;
        let mut progress = Progress::default();
        loop {
            let monitor = self.clone();
            let round = spawn_blocking(move || {
                monitor.run_round(&mut progress);
                progress
            });
            // The round panicked, or the runtime stops.
            let Ok(next) = round.await else { return };
            progress = next;
            tokio::time::sleep(ROUND_INTERVAL).await;
        }
    }

    /// Runs due checks, and one step of the scan and of the cleanup.
    fn run_round(&self, progress: &mut Progress) {
        self.run_due_checks(Instant::now());
        if let Err(error) = self.scan(progress) {
            tracing::warn!(%error, "cannot list users with pending messages; retrying");
            progress.scan = None;
            self.state.lock().scan_needed = true;
        }
        if progress.cleaned_up.is_none_or(|cleaned_up| cleaned_up.elapsed() >= CLEANUP_INTERVAL) {
            progress.cleaned_up = Some(Instant::now());
            progress.cleanup = Some(None);
        }
        if let Some(after) = progress.cleanup.take() {
            match self.cleanup(after.as_ref()) {
                Ok(next) => progress.cleanup = next.map(Some),
                Err(error) => tracing::warn!(%error, "cannot read reported sequences"),
            }
        }
    }

    /// Runs the checks that are due.
    fn run_due_checks(&self, now: Instant) {
        loop {
            let check = {
                let mut state = self.state.lock();
                let Some(first) = state.checks.first_entry().filter(|first| first.key().0 <= now) else { return };
                let (due, check) = first.remove_entry();
                if state.open_checks.get(&check.user) == Some(&due) {
                    state.open_checks.remove(&check.user);
                }
                check
            };
            match self.report(&check.user, check.through) {
                Ok(true) => {}
                Ok(false) => {
                    // The outbox is full, so the check is retried later.
                    let later = Check { closes: now, ..check };
                    self.state.lock().put(later, now + FULL_RETRY_DELAY);
                    return;
                }
                Err(error) => {
                    tracing::warn!(user = %excerpt(&check.user), %error, "cannot read pending messages of this user");
                }
            }
        }
    }

    /// Reports pending messages of `user` up to `through` that were not reported; false if the outbox is full.
    fn report(&self, user: &UserId, through: Seq) -> Result<bool, StoreError> {
        let state = self.store.state(user)?;
        if state.pending == 0 || state.acknowledged.through() >= through {
            return Ok(true);
        }
        let mut after = self.outbox.reported(user)?.max(state.acknowledged.through());
        while after < through {
            let found = self.store.read(user, after, READ_LIMIT)?;
            for entry in found.entries.iter().take_while(|entry| entry.seq <= through) {
                if !self.report_entry(user, entry)? {
                    return Ok(false);
                }
            }
            if found.through <= after {
                break;
            }
            after = found.through;
        }
        Ok(true)
    }

    /// Reports one message; false if the outbox is full.
    fn report_entry(&self, user: &UserId, entry: &Entry) -> Result<bool, StoreError> {
        // Guarantee G3: every consumer checks the owner of an entry before it leaves the server.
        if !entry.is_owned_by(self.store.namespace(), user) {
            return Err(StoreError::Damaged("a log has an entry of another user".into()));
        }
        let devices = self.store.unreceived_by(user, entry.seq)?;
        if devices.is_empty() {
            // Acknowledged, and retained only for a session with a lower position.
            return Ok(true);
        }
        let undelivered = OutboxEvent::Undelivered {
            user: user.as_str().to_owned(),
            seq: entry.seq,
            devices: devices.iter().map(|device| device.as_ref().map(|device| device.as_str().to_owned())).collect(),
            payload: String::from_utf8_lossy(entry.payload.as_bytes()).into_owned(),
        };
        Ok(self.outbox.put_undelivered(user, entry.seq, undelivered))
    }

    /// Scans one page of users if a scan is needed, while the number of checks allows it.
    ///
    /// One page per round bounds the user logs that the scan adds to the cache.
    fn scan(&self, progress: &mut Progress) -> Result<(), StoreError> {
        if progress.scan.is_none() && std::mem::take(&mut self.state.lock().scan_needed) {
            progress.scan = Some(None);
        }
        if let Some(after) = progress.scan.take() {
            if self.state.lock().checks.len() + PAGE_USERS > CHECKS_MAX {
                progress.scan = Some(after);
                return Ok(());
            }
            let users = self.store.users(after.as_ref(), PAGE_USERS)?;
            let now = Instant::now();
            for (user, state) in &users {
                // An unreadable user must not affect others.
                let Ok(state) = state else { continue };
                if state.pending > 0 && self.outbox.reported(user)? < state.head {
                    self.schedule(user, state.head, now);
                }
            }
            if users.len() == PAGE_USERS {
                progress.scan = Some(users.last().map(|(user, _)| user.clone()));
            }
        }
        Ok(())
    }

    /// Removes reported sequences of users without pending reported messages, for one page of users above `after`.
    ///
    /// Returns the cursor of the next page. Pages are small, because the commit thread writes each removal.
    fn cleanup(&self, after: Option<&UserId>) -> Result<Option<UserId>, StoreError> {
        let users = self.outbox.all_reported(after, PAGE_USERS)?;
        for (user, reported) in &users {
            let state = match self.store.state(user) {
                Err(StoreError::Damaged(_)) => continue,
                state => state?,
            };
            if state.pending == 0 || state.acknowledged.through() >= *reported {
                self.outbox.remove_reported(user);
            }
        }
        Ok(users.last().filter(|_| users.len() == PAGE_USERS).map(|(user, _)| user.clone()))
    }
}

impl State {
    fn put(&mut self, check: Check, due: Instant) -> Due {
        self.next_number += 1;
        let due = (due, self.next_number);
        self.checks.insert(due, check);
        due
    }
}

/// Holds the progress of scan and cleanup between rounds.
#[derive(Default)]
struct Progress {
    /// Cursor of the scan in progress.
    scan: Option<Option<UserId>>,
    /// Cursor of the cleanup in progress.
    cleanup: Option<Option<UserId>>,
    cleaned_up: Option<Instant>,
}
