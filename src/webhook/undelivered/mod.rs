//! Reports messages that were not acknowledged within `undeliveredAfter`: the moment to send a push notification.
//!
//! Scheduled checks report pending messages of a user that are old enough and not reported yet. Messages within a short
//! time share a check, so a report may be late, never early. The last reported sequence of each user is stored with the
//! outbox, so a restart repeats no report. After a restart the age of messages is unknown, so earlier ones are reported
//! `undeliveredAfter` after it.
//!
//! A read that fails loses no report: the check is retried, or a scan of all users finds the message. The exception is
//! damage: a damaged log has nothing to report.

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::task::spawn_blocking;

use crate::{
    health::LogLimit,
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

/// Delay before a check or a scan is retried when the store could not be read.
const READ_RETRY_DELAY: Duration = Duration::from_secs(1);

/// Interval between removals of reported sequences that are no longer needed.
const CLEANUP_INTERVAL: Duration = Duration::from_secs(60);

/// Users read per round.
const PAGE_USERS: usize = 256;

/// Limit of one read of a user's log.
const READ_LIMIT: ReadLimit = ReadLimit { entries: 64, bytes: 256 << 10 };

/// Limits the log lines about failed reads: a lasting cause fails every read.
static FAILED: LogLimit = LogLimit::new();

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
    /// Each user's check that failed and is retried. Its messages are old enough, so later failed checks join it.
    retries: HashMap<UserId, Due>,
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
            match self.store.state(user) {
                Ok(state) => self.schedule(user, state.head, now),
                // Readers of the log get this error.
                Err(StoreError::Damaged(_)) => {}
                // A scan finds the message.
                Err(_) => self.state.lock().scan_needed = true,
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
                monitor.run_round(&mut progress, Instant::now());
                progress
            });
            // The round panicked, or the runtime stops.
            let Ok(next) = round.await else { return };
            progress = next;
            tokio::time::sleep(ROUND_INTERVAL).await;
        }
    }

    /// Runs due checks, and one step of the scan and of the cleanup.
    fn run_round(&self, progress: &mut Progress, now: Instant) {
        self.run_due_checks(now);
        if progress.scan_resumes.is_none_or(|resumes| now >= resumes) {
            progress.scan_resumes = None;
            if let Err(error) = self.scan(progress, now) {
                progress.scan_resumes = Some(now + READ_RETRY_DELAY);
                if let Some(suppressed) = FAILED.due("scan") {
                    tracing::warn!(%error, suppressed, "cannot list users with pending messages; retrying every second");
                }
            }
        }
        if progress.cleaned_up.is_none_or(|cleaned_up| now - cleaned_up >= CLEANUP_INTERVAL) {
            progress.cleaned_up = Some(now);
            progress.cleanup = Some(None);
        }
        if let Some(after) = progress.cleanup.take() {
            match self.cleanup(after.as_ref()) {
                Ok(next) => progress.cleanup = next.map(Some),
                Err(error) => tracing::warn!(%error, "cannot read reported sequences"),
            }
        }
    }

    /// Runs the checks that are due, in order, until one fails.
    ///
    /// A failed check is retried later, and the others follow in the next round. So a store that cannot be read costs
    /// one read per round, and users whose checks fail do not hold up the others.
    fn run_due_checks(&self, now: Instant) {
        loop {
            let Some(check) = self.state.lock().take_due(now) else { return };
            let delay = match self.report(&check.user, check.through) {
                Ok(true) => continue,
                Ok(false) => FULL_RETRY_DELAY,
                Err(error) => {
                    let is_damaged = matches!(error, StoreError::Damaged(_));
                    let consequence = if is_damaged { "they are not reported" } else { "retrying every second" };
                    if let Some(suppressed) = FAILED.due("check") {
                        tracing::warn!(
                            user = %excerpt(&check.user), %error, suppressed,
                            "cannot read pending messages of this user; {consequence}"
                        );
                    }
                    if is_damaged {
                        continue;
                    }
                    READ_RETRY_DELAY
                }
            };
            self.state.lock().retry(check, now + delay);
            return;
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
    ///
    /// # Errors
    /// Fails if the store cannot be read. The next call repeats the page.
    fn scan(&self, progress: &mut Progress, now: Instant) -> Result<(), StoreError> {
        if progress.scan.is_none() && std::mem::take(&mut self.state.lock().scan_needed) {
            progress.scan = Some(None);
        }
        let Some(after) = &progress.scan else { return Ok(()) };
        if self.state.lock().checks.len() + PAGE_USERS > CHECKS_MAX {
            return Ok(());
        }
        let users = self.store.users(after.as_ref(), PAGE_USERS)?;
        let mut unreported = Vec::new();
        for (user, state) in &users {
            // An unreadable user must not affect others.
            let Ok(state) = state else { continue };
            let reported = match self.outbox.reported(user) {
                Err(StoreError::Damaged(_)) => continue,
                reported => reported?,
            };
            if state.pending > 0 && reported < state.head {
                unreported.push((user, state.head));
            }
        }
        for (user, head) in unreported {
            self.schedule(user, head, now);
        }
        progress.scan = (users.len() == PAGE_USERS).then(|| users.last().map(|(user, _)| user.clone()));
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

    /// Takes the first check, if it is due.
    fn take_due(&mut self, now: Instant) -> Option<Check> {
        let first = self.checks.first_entry().filter(|first| first.key().0 <= now)?;
        let (due, check) = first.remove_entry();
        for index in [&mut self.open_checks, &mut self.retries] {
            if index.get(&check.user) == Some(&due) {
                index.remove(&check.user);
            }
        }
        Some(check)
    }

    /// Schedules a failed check again: one per user, so that a lasting failure does not fill the checks.
    fn retry(&mut self, check: Check, due: Instant) {
        if let Some(waiting) = self.retries.get(&check.user).and_then(|due| self.checks.get_mut(due)) {
            waiting.through = waiting.through.max(check.through);
        } else if self.checks.len() >= CHECKS_MAX {
            self.scan_needed = true;
        } else {
            let user = check.user.clone();
            let due = self.put(check, due);
            self.retries.insert(user, due);
        }
    }
}

/// Holds the progress of scan and cleanup between rounds.
#[derive(Default)]
struct Progress {
    /// Cursor of the scan in progress.
    scan: Option<Option<UserId>>,
    /// Time until which the scan pauses after a failed read.
    scan_resumes: Option<Instant>,
    /// Cursor of the cleanup in progress.
    cleanup: Option<Option<UserId>>,
    cleaned_up: Option<Instant>,
}
