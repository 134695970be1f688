//! Reports messages that were not acknowledged within `undeliveredAfter`: the moment to send a push notification.
//!
//! One timer per user finds pending messages that are old enough and not reported yet. Messages of a short time share a
//! timer, so a report may be late, never early. The last reported sequence of each user is stored with the outbox, so a
//! restart repeats no report. After a restart the age of messages is unknown, so older ones are reported
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

/// Scheduled checks at most. Above it, all users are scanned later instead.
const CHECKS_MAX: usize = 100_000;

/// Divisor of `undeliveredAfter` that gives the time in which messages share a check.
const SHARED_DIVISOR: u32 = 8;

/// Maximum time in which messages share a check.
const SHARED_DELAY_MAX: Duration = Duration::from_secs(5);

/// Interval of running due checks.
const ROUND_INTERVAL: Duration = Duration::from_millis(100);

/// Delay before a check is retried when the outbox is full.
const FULL_DELAY: Duration = Duration::from_secs(1);

/// Interval of removing the reported sequences of users without pending reported messages.
const CLEANUP_INTERVAL: Duration = Duration::from_secs(60);

/// Users read in one step.
const PAGE: usize = 256;

/// Messages read in one step.
const READ: ReadLimit = ReadLimit { entries: 64, bytes: 256 << 10 };

/// Reports undelivered messages. See the module.
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
    /// Check of each user that still accepts new messages.
    open: HashMap<UserId, Due>,
    next: u64,
    /// Some users with pending messages have no check, so all users must be scanned.
    missed: bool,
}

type Due = (Instant, u64);

struct Check {
    user: UserId,
    /// Last sequence that is old enough when the check is due.
    through: Seq,
    /// Time from which messages get another check.
    closes: Instant,
}

impl UndeliveredMonitor {
    pub fn new(store: Arc<dyn Store>, outbox: Arc<dyn Outbox>, after: Duration) -> Self {
        // Messages from before the start are unknown.
        let state = State { missed: true, ..State::default() };
        Self { store, outbox, after, state: state.into() }
    }

    /// Schedules checks for users with new entries. Called on the commit thread.
    pub fn appended(&self, users: &[UserId]) {
        let now = Instant::now();
        for user in users {
            // Damage is reported to readers of the log.
            if let Ok(state) = self.store.state(user) {
                self.schedule(user, state.head, now);
            }
        }
    }

    /// Schedules a check of `user` up to `through`.
    fn schedule(&self, user: &UserId, through: Seq, now: Instant) {
        let shared = (self.after / SHARED_DIVISOR).min(SHARED_DELAY_MAX);
        let mut state = self.state.lock();
        if let Some(due) = state.open.get(user).copied()
            && let Some(check) = state.checks.get_mut(&due).filter(|check| now < check.closes)
        {
            check.through = check.through.max(through);
            return;
        }
        if state.checks.len() >= CHECKS_MAX {
            state.missed = true;
            return;
        }
        let due = state.put(Check { user: user.clone(), through, closes: now + shared }, now + shared + self.after);
        state.open.insert(user.clone(), due);
    }

    /// Runs due checks until it is dropped.
    pub async fn run(self: &Arc<Self>) {
        // An earlier run may have panicked within a round, and lost checks.
        self.state.lock().missed = true;
        let mut rounds = Rounds::default();
        loop {
            let monitor = self.clone();
            let round = spawn_blocking(move || {
                monitor.round(&mut rounds);
                rounds
            });
            // The round panicked, or the runtime stops.
            let Ok(next) = round.await else { return };
            rounds = next;
            tokio::time::sleep(ROUND_INTERVAL).await;
        }
    }

    fn round(&self, rounds: &mut Rounds) {
        self.run_due_checks(Instant::now());
        if let Err(error) = self.scan(rounds) {
            tracing::warn!(%error, "cannot list users with pending messages; retrying");
            rounds.scan = None;
            self.state.lock().missed = true;
        }
        if rounds.cleaned_up.is_none_or(|cleaned_up| cleaned_up.elapsed() >= CLEANUP_INTERVAL) {
            rounds.cleaned_up = Some(Instant::now());
            rounds.cleanup = Some(None);
        }
        if let Some(after) = rounds.cleanup.take() {
            match self.cleanup(after.as_ref()) {
                Ok(next) => rounds.cleanup = next.map(Some),
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
                if state.open.get(&check.user) == Some(&due) {
                    state.open.remove(&check.user);
                }
                check
            };
            match self.report(&check.user, check.through) {
                Ok(true) => {}
                Ok(false) => {
                    // The check is retried later, and nothing is lost.
                    let later = Check { closes: now, ..check };
                    self.state.lock().put(later, now + FULL_DELAY);
                    return;
                }
                Err(error) => {
                    tracing::warn!(user = %excerpt(&check.user), %error, "cannot read pending messages of this user");
                }
            }
        }
    }

    /// Reports pending messages of `user` up to `through` that were not reported. False if the outbox is full.
    fn report(&self, user: &UserId, through: Seq) -> Result<bool, StoreError> {
        let state = self.store.state(user)?;
        if state.pending == 0 || state.acknowledged.through() >= through {
            return Ok(true);
        }
        let mut after = self.outbox.reported(user)?.max(state.acknowledged.through());
        while after < through {
            let found = self.store.read(user, after, READ)?;
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

    fn report_entry(&self, user: &UserId, entry: &Entry) -> Result<bool, StoreError> {
        // Guarantee G3: every consumer checks the owner of an entry before it leaves the server.
        if entry.owner != user.as_str().as_bytes() || entry.namespace != self.store.namespace() {
            return Err(StoreError::Damaged("an entry of a log belongs to another user".into()));
        }
        let devices = self.store.unreceived_by(user, entry.seq)?;
        if devices.is_empty() {
            // Acknowledged, and kept only for a session that reads behind it.
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

    /// Scans all users if that is due. One page a round, because each user is cached for a while, and only while there is
    /// space for checks.
    fn scan(&self, rounds: &mut Rounds) -> Result<(), StoreError> {
        if rounds.scan.is_none() && std::mem::take(&mut self.state.lock().missed) {
            rounds.scan = Some(None);
        }
        if let Some(after) = rounds.scan.take() {
            if self.state.lock().checks.len() + PAGE > CHECKS_MAX {
                rounds.scan = Some(after);
                return Ok(());
            }
            let users = self.store.users(after.as_ref(), PAGE)?;
            let now = Instant::now();
            for (user, state) in &users {
                // An unreadable user must not affect others.
                let Ok(state) = state else { continue };
                if state.pending > 0 && self.outbox.reported(user)? < state.head {
                    self.schedule(user, state.head, now);
                }
            }
            if users.len() == PAGE {
                rounds.scan = Some(users.last().map(|(user, _)| user.clone()));
            }
        }
        Ok(())
    }

    /// Removes reported sequences of users without pending reported messages, for one page of users above `after`.
    ///
    /// Returns the cursor of the next page. Pages are small, because the commit thread writes each removal.
    fn cleanup(&self, after: Option<&UserId>) -> Result<Option<UserId>, StoreError> {
        let users = self.outbox.all_reported(after, PAGE)?;
        for (user, reported) in &users {
            let state = match self.store.state(user) {
                Err(StoreError::Damaged(_)) => continue,
                state => state?,
            };
            if state.pending == 0 || state.acknowledged.through() >= *reported {
                self.outbox.remove_reported(user);
            }
        }
        Ok(users.last().filter(|_| users.len() == PAGE).map(|(user, _)| user.clone()))
    }
}

impl State {
    fn put(&mut self, check: Check, due: Instant) -> Due {
        self.next += 1;
        let due = (due, self.next);
        self.checks.insert(due, check);
        due
    }
}

/// Holds progress from round to round.
#[derive(Default)]
struct Rounds {
    /// Cursor of the scan in progress.
    scan: Option<Option<UserId>>,
    /// Cursor of the cleanup in progress.
    cleanup: Option<Option<UserId>>,
    cleaned_up: Option<Instant>,
}
