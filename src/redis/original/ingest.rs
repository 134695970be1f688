//! Stores messages that the original's servers and Dispatchers publish for users of ours, once for each user.
//!
//! All servers of ours receive the same messages on the original's channel, in one order. None knows whether another one is
//! still alive. So each message gets an identity on which they agree: every server publishes a marker once a second, and a
//! message is the n-th one after the last marker. Under that identity a server stores it at once for its own users, also
//! recently disconnected ones. A second later it stores it for users of ours that have no copy yet. Each copy is made once
//! ([`Append::per_recipient_id`]).
//!
//! A server that has just subscribed knows no identities until it receives a marker. Until then it stores messages for its
//! own users without one: a duplicate is better than a loss.
//!
//! A user who comes from another server first gets what that one may not have stored. So the user's order is that of
//! publication.
//!
//! [`Append::per_recipient_id`]: crate::store::Append::per_recipient_id

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
const QUEUE_MAX: usize = 8192;
const QUEUE_BYTES_MAX: usize = 64 << 20;

/// Messages stored in one batch.
const BATCH_MAX: usize = 64;

/// How long another server has to store a message for its users before the others check.
const CHECK_DELAY: Duration = Duration::from_secs(1);

/// Messages that wait for that check, their copies, and their bytes. With one more the first is checked now.
const LATE_MAX: usize = 8192;
const LATE_COPIES_MAX: usize = 500_000;
const LATE_BYTES_MAX: usize = 64 << 20;

/// Copies checked in one step.
const CHECKED_MAX: usize = 500;

/// How often each server publishes a marker.
const MARKER_INTERVAL: Duration = Duration::from_secs(1);

/// A message and its recipients.
#[derive(Debug)]
struct QueuedMessage {
    payload: Payload,
    users: Vec<UserId>,
    id: Option<DispatchId>,
    /// Bytes that it counts in the queue.
    bytes: usize,
}

/// Receives what the original publishes.
pub(in crate::redis) struct OriginalIngest {
    on_broadcast: BroadcastHandler,
    queue: mpsc::Sender<QueuedMessage>,
    waiting_bytes: Arc<AtomicUsize>,
    /// The last marker, and the number of messages since. `None` before the first one.
    position: Mutex<Option<(String, u64)>>,
    /// Notified after a resubscription: a marker is published at once.
    pub(in crate::redis) resubscribed: Arc<Notify>,
}

impl OriginalIngest {
    /// Starts the tasks that store messages and publish markers.
    pub(in crate::redis) fn begin(
        link: &Arc<ServerLink>,
        presence: Arc<Presence>,
        on_broadcast: BroadcastHandler,
        sink: OriginalMessageSink,
    ) -> Self {
        let (queue, batch) = mpsc::channel(QUEUE_MAX);
        let resubscribed = Arc::new(Notify::new());
        let again = resubscribed.clone();
        let waiting_bytes: Arc<AtomicUsize> = Arc::default();
        let bytes = waiting_bytes.clone();
        link.spawn("cluster_original_messages", (batch, Late::default()), move |link, (batch, late)| {
            Box::pin(store_queued(link, presence.clone(), (batch, bytes.clone()), late, sink.clone()))
        });
        link.spawn("cluster_original_marks", (), move |link, ()| Box::pin(publish_markers(link, again.clone())));
        Self { on_broadcast, queue, waiting_bytes, position: Mutex::new(None), resubscribed }
    }

    /// Handles a notification. Never waits.
    pub(in crate::redis) fn handle(&self, notification: &Notification) {
        let payload = match notification {
            Notification::ChannelMessage { payload, .. } => payload,
            Notification::Resync => {
                *self.position.lock() = None;
                return self.resubscribed.notify_one();
            }
            _ => return,
        };
        let (publish, size) = (channel::decode(payload), payload.len());
        if let Some(channel::OriginalPublish::Mark(mark)) = publish {
            *self.position.lock() = Some((mark, 0));
            return;
        }
        // Every server counts every publish.
        let id = self.next();
        match publish {
            Some(channel::OriginalPublish::Message { payload, recipients: Recipients::Users(users), sync: true }) => {
                self.put(QueuedMessage { payload, users, id, bytes: size });
            }
            Some(channel::OriginalPublish::Message { payload, recipients, .. }) => {
                (self.on_broadcast)(Broadcast::Message { payload, recipients, excluding: Vec::new() });
            }
            Some(channel::OriginalPublish::Disconnect(recipients)) => {
                (self.on_broadcast)(Broadcast::Disconnect { recipients, excluding: Vec::new() });
            }
            Some(channel::OriginalPublish::Mark(_)) | None => {}
        }
    }

    fn put(&self, message: QueuedMessage) {
        let bytes = message.bytes;
        let fits = self.waiting_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes <= QUEUE_BYTES_MAX;
        if !fits || self.queue.try_send(message).is_err() {
            self.waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
            tracing::warn!("the queue of messages from the original is full: a message is lost");
        }
    }

    fn next(&self) -> Option<DispatchId> {
        let mut position = self.position.lock();
        let (mark, count) = position.as_mut()?;
        *count += 1;
        DispatchId::new(&format!("stock-{mark}-{count}")).ok()
    }
}

/// Publishes markers until the link is dropped.
async fn publish_markers(link: Weak<ServerLink>, resubscribed: Arc<Notify>) {
    static MARKS: AtomicU64 = AtomicU64::new(0);
    loop {
        {
            let Some(link) = link.upgrade() else { return };
            let mark = format!("{}-{}", link.server_name(), MARKS.fetch_add(1, Ordering::Relaxed));
            if let Err(error) = channel::publish_mark(&link, &mark).await {
                tracing::debug!(%error, "no marker was published on the original's channel");
            }
        }
        _ = tokio::time::timeout(MARKER_INTERVAL, resubscribed.notified()).await;
    }
}

/// Messages whose recipients other servers may have served.
#[derive(Default)]
struct Late {
    messages: VecDeque<(Instant, QueuedMessage)>,
    /// Number of messages for each user.
    users: HashMap<UserId, usize>,
    /// Recipients of all messages together.
    copies: usize,
    /// Bytes of all messages together.
    bytes: usize,
}

impl Late {
    fn put(&mut self, due: Instant, message: QueuedMessage) {
        self.remember(&message);
        self.messages.push_back((due, message));
    }

    /// Puts a message in front.
    fn put_back(&mut self, due: Instant, message: QueuedMessage) {
        self.remember(&message);
        self.messages.push_front((due, message));
    }

    /// Removes the first message.
    fn pop(&mut self) -> Option<QueuedMessage> {
        let (_, message) = self.messages.pop_front()?;
        self.bytes = self.bytes.saturating_sub(message.bytes);
        self.forget(&message.users);
        Some(message)
    }

    fn are_too_many(&self) -> bool {
        self.messages.len() > LATE_MAX || self.copies > LATE_COPIES_MAX || self.bytes > LATE_BYTES_MAX
    }

    fn remember(&mut self, QueuedMessage { users, bytes, .. }: &QueuedMessage) {
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
    fn due(&mut self) -> Vec<QueuedMessage> {
        let (mut due, now) = (Vec::new(), Instant::now());
        while due.len() < BATCH_MAX
            && (self.are_too_many() || self.messages.front().is_some_and(|(when, _)| *when <= now))
            && let Some(message) = self.pop()
        {
            due.push(message);
        }
        due
    }

    /// Removes these users from all messages. Returns their messages for them alone, in order.
    fn of(&mut self, users: &[UserId]) -> Vec<OriginalMessage> {
        let wanted: HashSet<UserId> = users.iter().filter(|user| self.users.contains_key(*user)).cloned().collect();
        let mut found = Vec::new();
        if wanted.is_empty() {
            return found;
        }
        let mut messages = std::mem::take(&mut self.messages);
        for (_, message) in &mut messages {
            let (theirs, others) =
                std::mem::take(&mut message.users).into_iter().partition(|user| wanted.contains(user));
            message.users = others;
            self.forget(&theirs);
            if !theirs.is_empty() {
                found.push(late(message, theirs));
            }
        }
        messages.retain(|(_, message)| {
            let stays = !message.users.is_empty();
            self.bytes = self.bytes.saturating_sub(if stays { 0 } else { message.bytes });
            stays
        });
        self.messages = messages;
        found
    }
}

fn late(message: &QueuedMessage, users: Vec<UserId>) -> OriginalMessage {
    OriginalMessage { payload: message.payload.clone(), users, id: message.id.clone(), late: true }
}

/// Stores what was received.
async fn store_queued(
    link: Weak<ServerLink>,
    presence: Arc<Presence>,
    (queue, waiting_bytes): (&mut mpsc::Receiver<QueuedMessage>, Arc<AtomicUsize>),
    late: &mut Late,
    sink: OriginalMessageSink,
) {
    let mut batch = Vec::with_capacity(BATCH_MAX);
    loop {
        let due = late.messages.front().map_or_else(|| Instant::now() + CHECK_DELAY, |(due, _)| *due);
        if let Ok(0) = tokio::time::timeout_at(due, queue.recv_many(&mut batch, BATCH_MAX)).await {
            return;
        }
        let Some(link) = link.upgrade() else { return };
        let mut to_store = due_without_copy(&link, late).await;
        drop(link);
        // Counted down in one step, so that a panic in between leaves nothing counted.
        waiting_bytes.fetch_sub(batch.iter().map(|message| message.bytes).sum(), Ordering::Relaxed);
        for QueuedMessage { payload, users, id, bytes } in batch.drain(..) {
            let (local, remote) = presence.split_local(users);
            to_store.extend(late.of(&local));
            if let (false, Some(_)) = (remote.is_empty(), &id) {
                let message = QueuedMessage { payload: payload.clone(), users: remote, id: id.clone(), bytes };
                late.put(Instant::now() + CHECK_DELAY, message);
            }
            if !local.is_empty() {
                to_store.push(OriginalMessage { payload, users: local, id, late: false });
            }
        }
        if !to_store.is_empty() {
            sink(to_store).await;
        }
    }
}

/// Returns messages without a copy for users of ours, after other servers had time to store them.
async fn due_without_copy(link: &ServerLink, late: &mut Late) -> Vec<OriginalMessage> {
    let due = late.due();
    if due.is_empty() {
        return Vec::new();
    }
    match without_copy(link, &due).await {
        Ok(without_copy) => without_copy,
        Err(error) => {
            tracing::debug!(%error, "copies of messages from the original are checked later");
            // In their order, and in front of later ones.
            for message in due.into_iter().rev() {
                late.put_back(Instant::now() + CHECK_DELAY, message);
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
static WITHOUT_COPY: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local without_copy = {}
        for at, user in ipairs(ARGV) do
          local is = redis.call('ZSCORE', KEYS[1], user) and redis.call('EXISTS', KEYS[at + 1]) == 0
          without_copy[at] = is and 1 or 0
        end
        return without_copy",
    )
});

async fn without_copy(link: &ServerLink, message: &[QueuedMessage]) -> Result<Vec<OriginalMessage>, RedisError> {
    let names = link.keys();
    let check = async |message: &QueuedMessage| -> Result<Option<OriginalMessage>, RedisError> {
        let Some(id) = &message.id else { return Ok(None) };
        let mut without_copy = Vec::new();
        for users in message.users.chunks(CHECKED_MAX) {
            let mut keys = vec![names.original_users_added()];
            keys.extend(users.iter().map(|user| names.delivered_copy(user.as_str(), id.as_str())));
            let ids: Vec<&str> = users.iter().map(UserId::as_str).collect();
            let answer: Vec<bool> = link.client().run_script(&WITHOUT_COPY, &keys, &ids).await?;
            without_copy.extend(users.iter().zip(answer).filter(|(_, is)| *is).map(|(user, _)| user.clone()));
        }
        Ok((!without_copy.is_empty()).then(|| late(message, without_copy)))
    };
    // They share a connection, and so are sent together.
    let found = futures_util::future::try_join_all(message.iter().map(check)).await?;
    Ok(found.into_iter().flatten().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(n: usize, users: &[&str], bytes: usize) -> QueuedMessage {
        let users = users.iter().map(|user| UserId::new(user).unwrap()).collect();
        QueuedMessage { payload: Payload::encode(0, Some(&n.to_string()), None).unwrap(), users, id: None, bytes }
    }

    #[tokio::test(start_paused = true)]
    async fn late_messages_are_bounded_in_bytes_and_removed_ones_do_not_count() {
        let (mut late, due) = (Late::default(), Instant::now() + CHECK_DELAY);
        for n in 0..64 {
            late.put(due, message(n, &["alice", "bob"], 1 << 20));
        }
        assert!(late.due().is_empty());
        late.put(due, message(64, &["bob"], 1 << 20));
        assert_eq!(late.due().len(), 1, "the first is looked at now");
        let user = |id| UserId::new(id).unwrap();
        assert_eq!((late.of(&[user("alice")]).len(), late.bytes), (63, 64 << 20), "bob's are there still");
        assert_eq!((late.of(&[user("bob")]).len(), late.bytes, late.copies), (64, 0, 0));
    }
}
