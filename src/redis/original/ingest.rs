//! Stores messages that the original's servers and Dispatchers publish for users of ours, once for each user.
//!
//! All servers of ours receive the same messages on the original's channel, in one order. None knows whether another one is
//! still alive. So each message gets an identity on which they agree: every server publishes a marker once a second, and a
//! message is the n-th one after the last marker. Under that identity a server stores it at once for its own users, also
//! recently disconnected ones. A second later it stores it for users of ours that have no copy yet. Each copy is made once
//! ([`Append::each_once`]).
//!
//! A server that has just subscribed knows no identities until it receives a marker. Until then it stores messages for its
//! own users without one: a duplicate is better than a loss.
//!
//! A user who comes from another server first gets what that one may not have stored. So the user's order is that of
//! publication.
//!
//! [`Append::each_once`]: crate::store::Append::each_once

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{
        Arc, LazyLock, Weak,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    sync::{Notify, mpsc},
    time::Instant,
};

use super::channel;
use crate::{
    cluster::{Broadcast, BroadcastHandler, OriginalMessage, OriginalMessageSink},
    message::{DispatchId, Payload, Recipients, UserId},
    redis::{Notification, RedisError, ServerLink, connection::Script, presence::Presence},
};

/// Messages that may wait to be stored, and their bytes as published. One more is lost, as with the original, and logged.
const WAITING_MAX: usize = 8192;
const WAITING_BYTES_MAX: usize = 64 << 20;

/// Messages stored in one batch.
const KEPT_MAX: usize = 64;

/// How long another server has to store a message for its users before the others check.
const OTHERS_HAVE: Duration = Duration::from_secs(1);

/// Messages that wait for that check, their copies, and their bytes. With one more the first is checked now.
const LATE_MAX: usize = 8192;
const LATE_COPIES_MAX: usize = 500_000;
const LATE_BYTES_MAX: usize = 64 << 20;

/// Copies checked in one step.
const LOOKED_MAX: usize = 500;

/// How often each server publishes a marker.
const MARK: Duration = Duration::from_secs(1);

/// A message and its recipients.
#[derive(Debug)]
struct Heard {
    payload: Payload,
    users: Vec<UserId>,
    id: Option<DispatchId>,
    /// Bytes that it counts in the queue.
    bytes: usize,
}

/// Receives what the original publishes.
pub(in crate::redis) struct OriginalIngest {
    hears: BroadcastHandler,
    waiting: mpsc::Sender<Heard>,
    waiting_bytes: Arc<AtomicUsize>,
    /// The last marker, and the number of messages since. `None` before the first one.
    place: Mutex<Option<(String, u64)>>,
    /// Notified after a resubscription: a marker is published at once.
    pub(in crate::redis) anew: Arc<Notify>,
}

impl OriginalIngest {
    /// Starts the tasks that store messages and publish markers.
    pub(in crate::redis) fn begin(
        link: &Arc<ServerLink>,
        presence: Arc<Presence>,
        hears: BroadcastHandler,
        keeps: OriginalMessageSink,
    ) -> Self {
        let (waiting, some) = mpsc::channel(WAITING_MAX);
        let anew = Arc::new(Notify::new());
        let again = anew.clone();
        let waiting_bytes: Arc<AtomicUsize> = Arc::default();
        let bytes = waiting_bytes.clone();
        link.spawn("cluster_original_messages", (some, Late::default()), move |link, (some, late)| {
            Box::pin(keep(link, presence.clone(), (some, bytes.clone()), late, keeps.clone()))
        });
        link.spawn("cluster_original_marks", (), move |link, ()| Box::pin(keep_marking(link, again.clone())));
        Self { hears, waiting, waiting_bytes, place: Mutex::new(None), anew }
    }

    /// Handles a notification. Never waits.
    pub(in crate::redis) fn hear(&self, told: &Notification) {
        let payload = match told {
            Notification::ChannelMessage { payload, .. } => payload,
            Notification::Resync => {
                *self.place.lock() = None;
                return self.anew.notify_one();
            }
            _ => return,
        };
        let (said, told_bytes) = (channel::read(payload), payload.len());
        if let Some(channel::OriginalPublish::Mark(mark)) = said {
            *self.place.lock() = Some((mark, 0));
            return;
        }
        // Every server counts every publish.
        let id = self.next();
        match said {
            Some(channel::OriginalPublish::Message { payload, recipients: Recipients::Users(users), sync: true }) => {
                self.put(Heard { payload, users, id, bytes: told_bytes });
            }
            Some(channel::OriginalPublish::Message { payload, recipients, .. }) => {
                (self.hears)(Broadcast::Message { payload, recipients, excluding: Vec::new() });
            }
            Some(channel::OriginalPublish::Leave(recipients)) => {
                (self.hears)(Broadcast::Disconnect { recipients, excluding: Vec::new() })
            }
            Some(channel::OriginalPublish::Mark(_)) | None => {}
        }
    }

    fn put(&self, heard: Heard) {
        let bytes = heard.bytes;
        let fits = self.waiting_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes <= WAITING_BYTES_MAX;
        if !fits || self.waiting.try_send(heard).is_err() {
            self.waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
            tracing::warn!("the queue of messages from the original is full: a message is lost");
        }
    }

    fn next(&self) -> Option<DispatchId> {
        let mut place = self.place.lock();
        let (mark, count) = place.as_mut()?;
        *count += 1;
        DispatchId::new(&format!("stock-{mark}-{count}")).ok()
    }
}

/// Publishes markers until the link is dropped.
async fn keep_marking(link: Weak<ServerLink>, anew: Arc<Notify>) {
    static MARKS: AtomicU64 = AtomicU64::new(0);
    loop {
        {
            let Some(link) = link.upgrade() else { return };
            let mark = format!("{}-{}", link.node(), MARKS.fetch_add(1, Ordering::Relaxed));
            if let Err(error) = channel::publish_mark(&link, &mark).await {
                tracing::debug!(%error, "no marker was published on the original's channel");
            }
        }
        _ = tokio::time::timeout(MARK, anew.notified()).await;
    }
}

/// Messages whose recipients other servers may have served.
#[derive(Default)]
struct Late {
    messages: VecDeque<(Instant, Heard)>,
    /// Number of messages for each user.
    users: HashMap<UserId, usize>,
    /// Recipients of all messages together.
    copies: usize,
    /// Bytes of all messages together.
    bytes: usize,
}

impl Late {
    fn put(&mut self, due: Instant, heard: Heard) {
        self.remember(&heard);
        self.messages.push_back((due, heard));
    }

    /// Puts a message in front.
    fn put_back(&mut self, due: Instant, heard: Heard) {
        self.remember(&heard);
        self.messages.push_front((due, heard));
    }

    /// Removes the first message.
    fn pop(&mut self) -> Option<Heard> {
        let (_, heard) = self.messages.pop_front()?;
        self.bytes = self.bytes.saturating_sub(heard.bytes);
        self.forget(&heard.users);
        Some(heard)
    }

    fn are_too_many(&self) -> bool {
        self.messages.len() > LATE_MAX || self.copies > LATE_COPIES_MAX || self.bytes > LATE_BYTES_MAX
    }

    fn remember(&mut self, Heard { users, bytes, .. }: &Heard) {
        self.bytes += bytes;
        self.copies += users.len();
        for user in users {
            *self.users.entry(user.clone()).or_default() += 1;
        }
    }

    fn forget(&mut self, users: &[UserId]) {
        self.copies = self.copies.saturating_sub(users.len());
        for user in users {
            if let Some(count) = self.users.get_mut(user) {
                *count -= 1;
                if *count == 0 {
                    self.users.remove(user);
                }
            }
        }
    }

    /// Removes messages whose delay is over, and those above the limits.
    fn due(&mut self) -> Vec<Heard> {
        let (mut due, now) = (Vec::new(), Instant::now());
        while due.len() < KEPT_MAX
            && (self.are_too_many() || self.messages.front().is_some_and(|(when, _)| *when <= now))
            && let Some(heard) = self.pop()
        {
            due.push(heard);
        }
        due
    }

    /// Removes these users from all messages. Returns their messages for them alone, in order.
    fn of(&mut self, users: &[UserId]) -> Vec<OriginalMessage> {
        let asked: HashSet<UserId> = users.iter().filter(|user| self.users.contains_key(*user)).cloned().collect();
        let mut found = Vec::new();
        if asked.is_empty() {
            return found;
        }
        let mut messages = std::mem::take(&mut self.messages);
        for (_, heard) in &mut messages {
            let (theirs, others) = std::mem::take(&mut heard.users).into_iter().partition(|user| asked.contains(user));
            heard.users = others;
            self.forget(&theirs);
            if !theirs.is_empty() {
                found.push(late(heard, theirs));
            }
        }
        messages.retain(|(_, heard)| {
            let stays = !heard.users.is_empty();
            self.bytes = self.bytes.saturating_sub(if stays { 0 } else { heard.bytes });
            stays
        });
        self.messages = messages;
        found
    }
}

fn late(heard: &Heard, users: Vec<UserId>) -> OriginalMessage {
    OriginalMessage { payload: heard.payload.clone(), users, id: heard.id.clone(), late: true }
}

/// Stores what was received.
async fn keep(
    link: Weak<ServerLink>,
    presence: Arc<Presence>,
    (waiting, waiting_bytes): (&mut mpsc::Receiver<Heard>, Arc<AtomicUsize>),
    late: &mut Late,
    keeps: OriginalMessageSink,
) {
    let mut some = Vec::with_capacity(KEPT_MAX);
    loop {
        let due = late.messages.front().map_or_else(|| Instant::now() + OTHERS_HAVE, |(due, _)| *due);
        if let Ok(0) = tokio::time::timeout_at(due, waiting.recv_many(&mut some, KEPT_MAX)).await {
            return;
        }
        let Some(link) = link.upgrade() else { return };
        let mut kept = seen_to(&link, late).await;
        drop(link);
        // Counted down in one step, so that a panic in between leaves nothing counted.
        waiting_bytes.fetch_sub(some.iter().map(|heard| heard.bytes).sum(), Ordering::Relaxed);
        for Heard { payload, users, id, bytes } in some.drain(..) {
            let (here, elsewhere) = presence.of_here(users);
            kept.extend(late.of(&here));
            if let (false, Some(_)) = (elsewhere.is_empty(), &id) {
                let heard = Heard { payload: payload.clone(), users: elsewhere, id: id.clone(), bytes };
                late.put(Instant::now() + OTHERS_HAVE, heard);
            }
            if !here.is_empty() {
                kept.push(OriginalMessage { payload, users: here, id, late: false });
            }
        }
        if !kept.is_empty() {
            keeps(kept).await;
        }
    }
}

/// Returns messages without a copy for users of ours, after other servers had time to store them.
async fn seen_to(link: &ServerLink, late: &mut Late) -> Vec<OriginalMessage> {
    let due = late.due();
    if due.is_empty() {
        return Vec::new();
    }
    match unmade(link, &due).await {
        Ok(unmade) => unmade,
        Err(error) => {
            tracing::debug!(%error, "copies of messages from the original are checked later");
            // In their order, and in front of later ones.
            for heard in due.into_iter().rev() {
                late.put_back(Instant::now() + OTHERS_HAVE, heard);
            }
            // Above the limits messages cannot be kept while Redis is unreachable.
            while late.are_too_many() && late.pop().is_some() {
                tracing::warn!("too many messages from the original wait for a check: a message may be lost");
            }
            Vec::new()
        }
    }
}

/// KEYS: 1 users that we added, then the record of each copy; ARGV: users, likewise. Returns 1 for each user of ours without
/// a copy.
static UNMADE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local unmade = {}
        for at, user in ipairs(ARGV) do
          local is = redis.call('ZSCORE', KEYS[1], user) and redis.call('EXISTS', KEYS[at + 1]) == 0
          unmade[at] = is and 1 or 0
        end
        return unmade",
    )
});

async fn unmade(link: &ServerLink, heard: &[Heard]) -> Result<Vec<OriginalMessage>, RedisError> {
    let names = link.keys();
    let look = async |heard: &Heard| -> Result<Option<OriginalMessage>, RedisError> {
        let Some(id) = &heard.id else { return Ok(None) };
        let mut unmade = Vec::new();
        for users in heard.users.chunks(LOOKED_MAX) {
            let mut keys = vec![names.original_users_added()];
            keys.extend(users.iter().map(|user| names.delivered_copy(user.as_str(), id.as_str())));
            let asked: Vec<&str> = users.iter().map(UserId::as_str).collect();
            let answer: Vec<bool> = link.client().run_script(&UNMADE, &keys, &asked).await?;
            unmade.extend(users.iter().zip(answer).filter(|(_, is)| *is).map(|(user, _)| user.clone()));
        }
        Ok((!unmade.is_empty()).then(|| late(heard, unmade)))
    };
    // They share a connection, and so are sent together.
    let found = futures_util::future::try_join_all(heard.iter().map(look)).await?;
    Ok(found.into_iter().flatten().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(n: usize, users: &[&str], bytes: usize) -> Heard {
        let users = users.iter().map(|user| UserId::new(user).unwrap()).collect();
        Heard { payload: Payload::encode(0, Some(&n.to_string()), None).unwrap(), users, id: None, bytes }
    }

    #[tokio::test(start_paused = true)]
    async fn late_messages_are_bounded_in_bytes_and_removed_ones_do_not_count() {
        let (mut late, due) = (Late::default(), Instant::now() + OTHERS_HAVE);
        for n in 0..64 {
            late.put(due, heard(n, &["alice", "bob"], 1 << 20));
        }
        assert!(late.due().is_empty());
        late.put(due, heard(64, &["bob"], 1 << 20));
        assert_eq!(late.due().len(), 1, "the first is looked at now");
        let user = |id| UserId::new(id).unwrap();
        assert_eq!((late.of(&[user("alice")]).len(), late.bytes), (63, 64 << 20), "bob's are there still");
        assert_eq!((late.of(&[user("bob")]).len(), late.bytes, late.copies), (64, 0, 0));
    }
}
