//! Messages that nobody has received for a while, into the outbox: the moment to send a push notification.
//!
//! What is watched is not messages but users: of one who has got a message it is looked, when the time is over, what waits
//! for him that has not been told of. Messages of a short while share a look, which makes some of them a little late and
//! none early. Up to where a user's messages were told of is kept beside the outbox, so a restart tells nothing again; and
//! because it is not known after one how old a message is, what was there before is told of when the time is over once more.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use super::on_disk_thread;
use crate::{
    hub::{Entry, Outbox, OutboxEvent, ReadLimit, Store, StoreError},
    logging::excerpt,
    message::{Seq, UserId},
};

/// Looks that may be due at the same time. Beyond that all users are gone through again instead.
const LOOKS_MAX: usize = 100_000;

/// Messages within this part of the time share a look.
const SHARE: u32 = 8;

/// And within no more than that.
const SHARED_MAX: Duration = Duration::from_secs(5);

/// How often it is seen to.
const PAUSE: Duration = Duration::from_millis(100);

/// How long to wait where the outbox has no room.
const FULL_PAUSE: Duration = Duration::from_secs(1);

/// How often it is looked for users of whom nothing waits any more that was told of.
const TIDY_PAUSE: Duration = Duration::from_secs(60);

/// Users looked at in one go.
const PAGE: usize = 256;

/// Messages read in one go.
const READ: ReadLimit = ReadLimit { entries: 64, bytes: 256 << 10 };

/// Watches. See the module.
pub(super) struct Watch {
    store: Arc<dyn Store>,
    outbox: Arc<dyn Outbox>,
    after: Duration,
    inside: Mutex<Inside>,
}

#[derive(Default)]
struct Inside {
    /// In the order in which they are due; the number tells those apart that are due at once.
    looks: BTreeMap<Due, Look>,
    /// The look that takes in what comes now.
    open: HashMap<UserId, Due>,
    next: u64,
    /// Not all users that have something waiting are in `looks`: they have to be gone through.
    missed: bool,
}

type Due = (Instant, u64);

struct Look {
    user: UserId,
    /// The messages up to this are old enough then.
    through: Seq,
    /// From then on messages get a look of their own.
    closes: Instant,
}

impl Watch {
    pub fn new(store: Arc<dyn Store>, outbox: Arc<dyn Outbox>, after: Duration) -> Self {
        // What was there before is not known yet.
        let inside = Inside { missed: true, ..Inside::default() };
        Self { store, outbox, after, inside: inside.into() }
    }

    /// These users have new messages. Called on the thread that commits.
    pub fn appended(&self, users: &[UserId]) {
        let now = Instant::now();
        for user in users {
            // What is damaged is told to whoever reads it.
            if let Ok(state) = self.store.state(user) {
                self.watch(user, state.head, now);
            }
        }
    }

    /// Has it looked at what `user` has up to `through`, when that is old enough.
    fn watch(&self, user: &UserId, through: Seq, now: Instant) {
        let shared = (self.after / SHARE).min(SHARED_MAX);
        let mut inside = self.inside.lock();
        if let Some(due) = inside.open.get(user).copied()
            && let Some(look) = inside.looks.get_mut(&due).filter(|look| now < look.closes)
        {
            look.through = look.through.max(through);
            return;
        }
        if inside.looks.len() >= LOOKS_MAX {
            inside.missed = true;
            return;
        }
        let due = inside.put(Look { user: user.clone(), through, closes: now + shared }, now + shared + self.after);
        inside.open.insert(user.clone(), due);
    }

    /// Watches, for as long as it is let.
    pub async fn run(self: &Arc<Self>) {
        // An earlier run may have ended in the middle of a round: nothing is missed for that.
        self.inside.lock().missed = true;
        let mut rounds = Rounds::default();
        loop {
            let watch = self.clone();
            let round = on_disk_thread(move || {
                watch.round(&mut rounds);
                rounds
            });
            // It panicked, or the runtime stops.
            let Some(next) = round.await else { return };
            rounds = next;
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn round(&self, rounds: &mut Rounds) {
        self.look(Instant::now());
        if let Err(error) = self.go_through(rounds) {
            tracing::warn!(%error, "it cannot be found out for whom messages wait");
            rounds.scan = None;
            self.inside.lock().missed = true;
        }
        if rounds.tidied.is_none_or(|tidied| tidied.elapsed() >= TIDY_PAUSE) {
            rounds.tidied = Some(Instant::now());
            rounds.tidy = Some(None);
        }
        if let Some(after) = rounds.tidy.take() {
            match self.tidy(after.as_ref()) {
                Ok(next) => rounds.tidy = next.map(Some),
                Err(error) => tracing::warn!(%error, "it cannot be found out what was told of as undelivered"),
            }
        }
    }

    /// Looks at all users whose time is over.
    fn look(&self, now: Instant) {
        loop {
            let look = {
                let mut inside = self.inside.lock();
                let Some(first) = inside.looks.first_entry().filter(|first| first.key().0 <= now) else { return };
                let (due, look) = first.remove_entry();
                if inside.open.get(&look.user) == Some(&due) {
                    inside.open.remove(&look.user);
                }
                look
            };
            match self.tell(&look.user, look.through) {
                Ok(true) => {}
                Ok(false) => {
                    // Nothing is lost: it waits here instead of there.
                    let later = Look { closes: now, ..look };
                    self.inside.lock().put(later, now + FULL_PAUSE);
                    return;
                }
                Err(error) => {
                    tracing::warn!(user = %excerpt(&look.user), %error, "it cannot be found out what waits for this user");
                }
            }
        }
    }

    /// Tells what waits for `user` up to `through` and was not told. False where the outbox has no room.
    fn tell(&self, user: &UserId, through: Seq) -> Result<bool, StoreError> {
        let state = self.store.state(user)?;
        if state.pending == 0 || state.received.through() >= through {
            return Ok(true);
        }
        let mut after = self.outbox.reported(user)?.max(state.received.through());
        while after < through {
            let found = self.store.read(user, after, READ)?;
            for entry in found.entries.iter().take_while(|entry| entry.seq <= through) {
                if !self.tell_one(user, entry)? {
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

    fn tell_one(&self, user: &UserId, entry: &Entry) -> Result<bool, StoreError> {
        // As everywhere the last step before it goes out.
        if entry.owner != user.as_str().as_bytes() || entry.namespace != self.store.namespace() {
            return Err(StoreError::Damaged("an entry of a log belongs to somebody else".into()));
        }
        let devices = self.store.lacking(user, entry.seq)?;
        if devices.is_empty() {
            // Received, and still there for a session that reads behind it.
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

    /// Goes through all users, where that is due: a page each time, because each is in memory for a while then, and only while
    /// there is room for looks.
    fn go_through(&self, rounds: &mut Rounds) -> Result<(), StoreError> {
        if rounds.scan.is_none() && std::mem::take(&mut self.inside.lock().missed) {
            rounds.scan = Some(None);
        }
        if let Some(after) = rounds.scan.take() {
            if self.inside.lock().looks.len() + PAGE > LOOKS_MAX {
                rounds.scan = Some(after);
                return Ok(());
            }
            let users = self.store.users(after.as_ref(), PAGE)?;
            let now = Instant::now();
            for (user, state) in &users {
                // One that cannot be read is nobody else's concern.
                let Ok(state) = state else { continue };
                if state.pending > 0 && self.outbox.reported(user)? < state.head {
                    self.watch(user, state.head, now);
                }
            }
            if users.len() == PAGE {
                rounds.scan = Some(users.last().map(|(user, _)| user.clone()));
            }
        }
        Ok(())
    }

    /// Forgets up to where messages were told of, where none of those waits any more: of a page of users above `after`.
    /// Returns where the next one begins. No more at once: the commit thread writes each of them.
    fn tidy(&self, after: Option<&UserId>) -> Result<Option<UserId>, StoreError> {
        let users = self.outbox.all_reported(after, PAGE)?;
        for (user, reported) in &users {
            let state = match self.store.state(user) {
                Err(StoreError::Damaged(_)) => continue,
                state => state?,
            };
            if state.pending == 0 || state.received.through() >= *reported {
                self.outbox.forget_reported(user);
            }
        }
        Ok(users.last().filter(|_| users.len() == PAGE).map(|(user, _)| user.clone()))
    }
}

impl Inside {
    fn put(&mut self, look: Look, due: Instant) -> Due {
        self.next += 1;
        let due = (due, self.next);
        self.looks.insert(due, look);
        due
    }
}

/// What goes on from round to round.
#[derive(Default)]
struct Rounds {
    /// All users above this have still to be gone through.
    scan: Option<Option<UserId>>,
    /// All users of whom something was told, above this, have still to be looked at.
    tidy: Option<Option<UserId>>,
    tidied: Option<Instant>,
}
