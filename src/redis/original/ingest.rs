//! Stores messages that the original's servers and Dispatchers publish for users of ours, once for each user.
//!
//! All our servers receive the same messages on the original's channel, in one order. No server knows whether another
//! is still live. So each message gets an id on which all servers agree: every server publishes a marker once a second,
//! and the id is the last marker and the number of messages since.
//!
//! A server stores a message at once for its local users, and for those in the grace period. After 1 s it stores the
//! message for remote users who have no copy yet. A user gets one copy for each id ([`Append::per_recipient_id`]).
//!
//! A server that has just subscribed knows no ids until it receives a marker. Until then it stores messages for its
//! local users without an id: a duplicate is better than a loss.
//!
//! When a remote user becomes local, messages that the other server may not have stored are stored first. So the user
//! receives messages in the order of publication.
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

/// Queued messages, and their bytes as published. One more is lost, as with the original, and logged.
const QUEUE_MAX: usize = 8192;
const QUEUE_BYTES_MAX: usize = 64 << 20;

/// Messages stored in one batch.
const BATCH_MAX: usize = 64;

/// Time in which a server must store a message for its users. Then other servers check.
const CHECK_DELAY: Duration = Duration::from_secs(1);

/// Messages to check, their recipients, and their bytes. Above a limit the first message is checked at once.
const UNCHECKED_MAX: usize = 8192;
const UNCHECKED_COPIES_MAX: usize = 500_000;
const UNCHECKED_BYTES_MAX: usize = 64 << 20;

/// Copies checked in one step.
const CHECKED_MAX: usize = 500;

/// Interval at which each server publishes a marker.
const MARKER_INTERVAL: Duration = Duration::from_secs(1);

/// A message and its recipients.
#[derive(Debug)]
struct QueuedMessage {
    payload: Payload,
    users: Vec<UserId>,
    id: Option<DispatchId>,
    /// Bytes as published, which count in the queue.
    bytes: usize,
}

/// Receives what the original publishes.
pub(in crate::redis) struct OriginalIngest {
    on_broadcast: BroadcastHandler,
    queue: mpsc::Sender<QueuedMessage>,
    queued_bytes: Arc<AtomicUsize>,
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
        let (queue, queued) = mpsc::channel(QUEUE_MAX);
        let resubscribed = Arc::new(Notify::new());
        let publish_now = resubscribed.clone();
        let queued_bytes: Arc<AtomicUsize> = Arc::default();
        let bytes = queued_bytes.clone();
        link.spawn(
            "cluster_original_messages",
            (queued, UncheckedMessages::default()),
            move |link, (queued, unchecked)| {
                Box::pin(store_queued(link, presence.clone(), (queued, bytes.clone()), unchecked, sink.clone()))
            },
        );
        link.spawn("cluster_original_marks", (), move |link, ()| Box::pin(publish_markers(link, publish_now.clone())));
        Self { on_broadcast, queue, queued_bytes, position: Mutex::new(None), resubscribed }
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
        // Every server counts every message, so that all agree on the ids.
        let id = self.next_id();
        match publish {
            Some(channel::OriginalPublish::Message { payload, recipients: Recipients::Users(users), sync: true }) => {
                self.enqueue(QueuedMessage { payload, users, id, bytes: size });
            }
            Some(channel::OriginalPublish::Message { payload, recipients, .. }) => {
                (self.on_broadcast)(Broadcast::Message { payload, recipients, excluding: Vec::new() });
            }
            Some(channel::OriginalPublish::Disconnect(recipients)) => {
                (self.on_broadcast)(Broadcast::Disconnect { recipients, excluding: Vec::new(), reason: None });
            }
            Some(channel::OriginalPublish::Mark(_)) | None => {}
        }
    }

    fn enqueue(&self, message: QueuedMessage) {
        let bytes = message.bytes;
        let fits = self.queued_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes <= QUEUE_BYTES_MAX;
        if !fits || self.queue.try_send(message).is_err() {
            self.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
            tracing::warn!("the queue of messages from the original is full: a message is lost");
        }
    }

    /// Returns the id of the next message. `None` before the first marker.
    fn next_id(&self) -> Option<DispatchId> {
        let mut position = self.position.lock();
        let (mark, count) = position.as_mut()?;
        *count += 1;
        DispatchId::new(&format!("original-{mark}-{count}")).ok()
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

/// Messages for remote users, until it is checked that these have a copy.
#[derive(Default)]
struct UncheckedMessages {
    messages: VecDeque<(Instant, QueuedMessage)>,
    /// Number of messages for each user.
    users: HashMap<UserId, usize>,
    /// Recipients of all messages together.
    copies: usize,
    /// Bytes of all messages together.
    bytes: usize,
}

impl UncheckedMessages {
    fn push(&mut self, due: Instant, message: QueuedMessage) {
        self.count(&message);
        self.messages.push_back((due, message));
    }

    /// Adds a message in front.
    fn push_front(&mut self, due: Instant, message: QueuedMessage) {
        self.count(&message);
        self.messages.push_front((due, message));
    }

    /// Removes the first message.
    fn pop(&mut self) -> Option<QueuedMessage> {
        let (_, message) = self.messages.pop_front()?;
        self.bytes = self.bytes.saturating_sub(message.bytes);
        self.uncount_users(&message.users);
        Some(message)
    }

    fn exceed_limits(&self) -> bool {
        self.messages.len() > UNCHECKED_MAX || self.copies > UNCHECKED_COPIES_MAX || self.bytes > UNCHECKED_BYTES_MAX
    }

    /// Counts an added message.
    fn count(&mut self, QueuedMessage { users, bytes, .. }: &QueuedMessage) {
        self.bytes += bytes;
        self.copies += users.len();
        for user in users {
            *self.users.entry(user.clone()).or_default() += 1;
        }
    }

    /// Uncounts recipients of a message.
    fn uncount_users(&mut self, users: &[UserId]) {
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
            && (self.exceed_limits() || self.messages.front().is_some_and(|(when, _)| *when <= now))
            && let Some(message) = self.pop()
        {
            due.push(message);
        }
        due
    }

    /// Removes these users from all messages. Returns their messages for them alone, in order.
    fn remove_users(&mut self, users: &[UserId]) -> Vec<OriginalMessage> {
        let wanted: HashSet<UserId> = users.iter().filter(|user| self.users.contains_key(*user)).cloned().collect();
        let mut found = Vec::new();
        if wanted.is_empty() {
            return found;
        }
        let mut messages = std::mem::take(&mut self.messages);
        for (_, message) in &mut messages {
            let (removed, remaining) =
                std::mem::take(&mut message.users).into_iter().partition(|user| wanted.contains(user));
            message.users = remaining;
            self.uncount_users(&removed);
            if !removed.is_empty() {
                found.push(late_message(message, removed));
            }
        }
        messages.retain(|(_, message)| {
            let has_users = !message.users.is_empty();
            self.bytes = self.bytes.saturating_sub(if has_users { 0 } else { message.bytes });
            has_users
        });
        self.messages = messages;
        found
    }
}

fn late_message(message: &QueuedMessage, users: Vec<UserId>) -> OriginalMessage {
    OriginalMessage { payload: message.payload.clone(), users, id: message.id.clone(), late: true }
}

/// Stores queued messages, and messages without a copy.
async fn store_queued(
    link: Weak<ServerLink>,
    presence: Arc<Presence>,
    (queue, queued_bytes): (&mut mpsc::Receiver<QueuedMessage>, Arc<AtomicUsize>),
    unchecked: &mut UncheckedMessages,
    sink: OriginalMessageSink,
) {
    let mut batch = Vec::with_capacity(BATCH_MAX);
    loop {
        let due = unchecked.messages.front().map_or_else(|| Instant::now() + CHECK_DELAY, |(due, _)| *due);
        if let Ok(0) = tokio::time::timeout_at(due, queue.recv_many(&mut batch, BATCH_MAX)).await {
            return;
        }
        let Some(link) = link.upgrade() else { return };
        let mut to_store = due_without_copy(&link, unchecked).await;
        drop(link);
        // Uncounted in one step, so that no bytes stay counted after a panic.
        queued_bytes.fetch_sub(batch.iter().map(|message| message.bytes).sum(), Ordering::Relaxed);
        for QueuedMessage { payload, users, id, bytes } in batch.drain(..) {
            let (local, remote) = presence.split_local(users);
            to_store.extend(unchecked.remove_users(&local));
            if let (false, Some(_)) = (remote.is_empty(), &id) {
                let message = QueuedMessage { payload: payload.clone(), users: remote, id: id.clone(), bytes };
                unchecked.push(Instant::now() + CHECK_DELAY, message);
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

/// Returns due messages that some users of ours have no copy of.
async fn due_without_copy(link: &ServerLink, unchecked: &mut UncheckedMessages) -> Vec<OriginalMessage> {
    let due = unchecked.due();
    if due.is_empty() {
        return Vec::new();
    }
    match without_copy(link, &due).await {
        Ok(without_copy) => without_copy,
        Err(error) => {
            tracing::debug!(%error, "copies of messages from the original are checked later");
            // In their order, and before later messages.
            for message in due.into_iter().rev() {
                unchecked.push_front(Instant::now() + CHECK_DELAY, message);
            }
            // While Redis is unreachable, messages above the limits are dropped.
            while unchecked.exceed_limits() && unchecked.pop().is_some() {
                tracing::warn!("too many messages from the original wait for a check: a message may be lost");
            }
            Vec::new()
        }
    }
}

/// Finds users of ours without a copy. KEYS: 1 users that we added to `connected_clients`, then the record of each
/// user's copy; ARGV: users. Returns 1 for each user of ours without a copy, else 0.
static WITHOUT_COPY: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local without_copy = {}
        for at, user in ipairs(ARGV) do
          local is_missing = redis.call('ZSCORE', KEYS[1], user) and redis.call('EXISTS', KEYS[at + 1]) == 0
          without_copy[at] = is_missing and 1 or 0
        end
        return without_copy",
    )
});

async fn without_copy(link: &ServerLink, messages: &[QueuedMessage]) -> Result<Vec<OriginalMessage>, RedisError> {
    let schema = link.keys();
    let check = async |message: &QueuedMessage| -> Result<Option<OriginalMessage>, RedisError> {
        let Some(id) = &message.id else { return Ok(None) };
        let mut without_copy = Vec::new();
        for users in message.users.chunks(CHECKED_MAX) {
            let mut keys = vec![schema.original_users_added()];
            keys.extend(users.iter().map(|user| schema.delivered_copy(user.as_str(), id.as_str())));
            let ids: Vec<&str> = users.iter().map(UserId::as_str).collect();
            let answer: Vec<bool> = link.client().run_script(&WITHOUT_COPY, &keys, &ids).await?;
            without_copy
                .extend(users.iter().zip(answer).filter(|(_, is_missing)| *is_missing).map(|(user, _)| user.clone()));
        }
        Ok((!without_copy.is_empty()).then(|| late_message(message, without_copy)))
    };
    // Sent together over one connection.
    let found = futures_util::future::try_join_all(messages.iter().map(check)).await?;
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
    async fn unchecked_messages_above_byte_limit_are_due_and_removed_ones_are_not_counted() {
        let (mut unchecked, due) = (UncheckedMessages::default(), Instant::now() + CHECK_DELAY);
        for n in 0..64 {
            unchecked.push(due, message(n, &["alice", "bob"], 1 << 20));
        }
        assert!(unchecked.due().is_empty());
        unchecked.push(due, message(64, &["bob"], 1 << 20));
        assert_eq!(unchecked.due().len(), 1, "the first is checked at once");
        let user = |id| UserId::new(id).unwrap();
        assert_eq!(
            (unchecked.remove_users(&[user("alice")]).len(), unchecked.bytes),
            (63, 64 << 20),
            "bob's messages remain"
        );
        assert_eq!((unchecked.remove_users(&[user("bob")]).len(), unchecked.bytes, unchecked.copies), (64, 0, 0));
    }
}
