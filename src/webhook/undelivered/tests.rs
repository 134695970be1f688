//! Tests the reports of undelivered messages over a store that cannot be read for a while.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::{
    embedded::{
        Options,
        tables::memory::{self, Memory},
    },
    hub::{EventKind, OutboxOptions},
    message::Payload,
    store::{Append, KnownUser, UserState, intercept::InterceptStore},
};

/// A store whose reads fail while `error` is set.
struct Unreadable {
    store: Arc<dyn Store>,
    error: Mutex<Option<StoreError>>,
    /// Number of pages of users that were requested.
    pages: AtomicUsize,
}

impl Unreadable {
    fn check(&self) -> Result<(), StoreError> {
        self.error.lock().clone().map_or(Ok(()), Err)
    }
}

impl InterceptStore for Unreadable {
    fn store(&self) -> &dyn Store {
        &*self.store
    }

    fn on_state(&self, user: &UserId) -> Result<UserState, StoreError> {
        self.check()?;
        self.store.state(user)
    }

    fn on_users(&self, after: Option<&UserId>, limit: usize) -> Result<Vec<KnownUser>, StoreError> {
        self.pages.fetch_add(1, Ordering::Relaxed);
        self.check()?;
        self.store.users(after, limit)
    }
}

struct Fixture {
    store: Arc<Unreadable>,
    outbox: Arc<dyn Outbox>,
    monitor: UndeliveredMonitor,
}

/// Creates a monitor that reports messages at once.
fn fixture() -> Fixture {
    let kinds = vec![EventKind::Undelivered];
    let outbox = Some(OutboxOptions { events: 1000, bytes: 1 << 20, kinds });
    let store = memory::open(&Memory::default(), Options { outbox, ..Options::default() }).unwrap();
    let outbox = store.outbox().unwrap();
    let store = Arc::new(Unreadable { store, error: Mutex::default(), pages: AtomicUsize::new(0) });
    let monitor = UndeliveredMonitor::new(store.clone(), outbox.clone(), Duration::ZERO);
    monitor.state.lock().scan_needed = false;
    Fixture { store, outbox, monitor }
}

fn alice() -> UserId {
    UserId::new("alice").unwrap()
}

impl Fixture {
    /// Stores a message for Alice.
    async fn append(&self) {
        let payload = Payload::encode(0, None, Some("T")).unwrap();
        self.store.append(Append::new(payload, vec![alice()])).await.unwrap();
    }

    fn reported(&self) -> Seq {
        self.outbox.reported(&alice()).unwrap()
    }
}

fn temporary_errors() -> [StoreError; 3] {
    [StoreError::Unreachable("x".into()), StoreError::Failed("x".into()), StoreError::Full("x".into())]
}

// covers: G4
#[tokio::test]
async fn check_whose_read_fails_is_retried_after_a_delay_until_it_reports() {
    for error in temporary_errors() {
        let fixture = fixture();
        let mut now = Instant::now() + Duration::from_secs(1);
        for seq in 1..=100 {
            fixture.append().await;
            fixture.monitor.on_appended(&[alice()]);
            *fixture.store.error.lock() = Some(error.clone());
            fixture.monitor.run_due_checks(now);
            assert_eq!(fixture.reported(), 0, "{error}");
            assert_eq!(fixture.monitor.state.lock().checks.len(), 1, "one check is retried after {seq} failed ones");
            *fixture.store.error.lock() = None;
        }
        fixture.monitor.run_due_checks(now);
        assert_eq!(fixture.reported(), 0, "{error}: no retry before the delay is over");
        now += READ_RETRY_DELAY;
        fixture.monitor.run_due_checks(now);
        assert_eq!(fixture.reported(), 100, "{error}");
        let state = fixture.monitor.state.lock();
        assert!(state.checks.is_empty() && state.open_checks.is_empty() && state.retries.is_empty());
    }
}

#[tokio::test]
async fn check_of_damaged_user_is_not_retried_and_the_next_one_runs() {
    let fixture = fixture();
    let damaged = UserId::new("zoe").unwrap();
    fixture.monitor.schedule(&damaged, 1, Instant::now());
    *fixture.store.error.lock() = Some(StoreError::Damaged("x".into()));
    fixture.monitor.run_due_checks(Instant::now());
    assert!(fixture.monitor.state.lock().checks.is_empty());
    fixture.monitor.on_appended(&[damaged]);
    assert!(!fixture.monitor.state.lock().scan_needed, "a scan would find nothing to report");
}

// covers: G4
#[tokio::test]
async fn message_whose_check_was_not_scheduled_is_found_by_a_scan() {
    for error in temporary_errors() {
        let (fixture, mut progress) = (fixture(), Progress::default());
        fixture.append().await;
        *fixture.store.error.lock() = Some(error.clone());
        fixture.monitor.on_appended(&[alice()]);
        let mut now = Instant::now();
        (0..10).for_each(|_| fixture.monitor.run_round(&mut progress, now));
        assert_eq!(fixture.store.pages.load(Ordering::Relaxed), 1, "{error}: a failed scan is not retried at once");
        *fixture.store.error.lock() = None;
        now += READ_RETRY_DELAY;
        // The first round schedules the check, and the second one runs it.
        (0..2).for_each(|_| fixture.monitor.run_round(&mut progress, now));
        assert_eq!(fixture.reported(), 1, "{error}");
    }
}
