//! Imports what a process of the original has stored for a user in `undelivered_messages`.
//!
//! One step moves the list to keys of our own, under a new name each time. A message is removed from there only when it is in
//! the log. So if a server dies in between, another one resumes, and nothing is delivered twice. A message without room in
//! the log stays taken, with all that follow it, and is retried as the user frees quota. A message that cannot be sent to a
//! client, or exceeds `sync.maxBytes`, is set aside under a key of its own, for an operator. See `taken`.
//!
//! A process of the original sees that a user is offline, and stores the message a moment later. If the user connects in
//! between, no server would look until the next login. So two more looks follow after the original lists the user as online.

use std::{
    collections::VecDeque,
    sync::{LazyLock, Weak},
    time::{Duration, Instant},
};

use tokio::sync::mpsc;

use super::taken::{self, List, appendable_together};
use crate::{
    compat::keyspace::Name,
    logging::excerpt,
    message::UserId,
    redis::{RedisError, Script, ServerLink, original::taken::TAKEN, store::background::Shared},
};

/// Lists imported in one go, in case a process keeps storing more.
const LISTS_MAX: usize = 16;

/// How long lists of one user are imported in one go. A connecting client waits for that; the default of
/// `authentication.timeout` is five times as long. The rest follows during the session.
const TAKE_TIMEOUT: Duration = Duration::from_secs(2);

/// Users whose import is incomplete and retried. For one more it is retried at the next login.
const INCOMPLETE_MAX: usize = 10_000;

/// Of those, retried in one go.
const RETRIES_MAX: usize = 32;

/// Batches of newly connected users that may wait. Those of one more are looked at when they connect again.
pub(in crate::redis) const CONNECTED_MAX: usize = 1024;

/// Delays after a user has connected until the original's hash is read again. Most messages are there by the first; the
/// second is for a slow process.
const LOOK_DELAYS: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(2)];

/// KEYS: 1 the original's pending messages; ARGV: fields. Returns those that exist.
static EXISTING_FIELDS: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local left = {}
        for _, user in ipairs(ARGV) do
          if redis.call('HEXISTS', KEYS[1], user) == 1 then left[#left + 1] = user end
        end
        return left",
    )
});

/// Imports what was stored for users while they connected.
pub(in crate::redis) async fn import_on_connect(
    shared: Weak<Shared>,
    connected: &mut mpsc::Receiver<(Instant, Vec<UserId>)>,
) {
    // Users for each of the looks, in the order in which they connected.
    let mut waiting: [VecDeque<(Instant, Vec<UserId>)>; LOOK_DELAYS.len()] = Default::default();
    loop {
        let due = |(look, waiting): (usize, &VecDeque<(Instant, _)>)| Some(waiting.front()?.0 + LOOK_DELAYS[look]);
        let next = waiting.iter().enumerate().filter_map(due).min();
        let more = if let Some(next) = next {
            tokio::time::timeout_at(next.into(), connected.recv()).await.ok()
        } else {
            Some(connected.recv().await)
        };
        match more {
            Some(Some(come)) if waiting[0].len() < CONNECTED_MAX => waiting[0].push_back(come),
            Some(Some(_)) => tracing::debug!("pending messages of the original wait until the user connects again"),
            Some(None) => return,
            None => {}
        }
        for look in 0..LOOK_DELAYS.len() {
            while waiting[look].front().is_some_and(|(when, _)| when.elapsed() >= LOOK_DELAYS[look])
                && let Some((when, users)) = waiting[look].pop_front()
            {
                let Some(shared) = shared.upgrade() else { return };
                let (next, when) = match shared.import_pending(&users).await {
                    Ok(()) => (look + 1, when),
                    // No other server would look once Redis is back.
                    Err(error) => {
                        tracing::debug!(%error, "pending messages of the original are imported later");
                        (LOOK_DELAYS.len() - 1, Instant::now())
                    }
                };
                if let Some(next) = waiting.get_mut(next).filter(|next| next.len() < CONNECTED_MAX) {
                    next.push_back((when, users));
                }
            }
        }
    }
}

impl Shared {
    /// Imports the original's pending messages of a user, as far as the log has room.
    pub(in crate::redis) async fn import_undelivered(&self, user: &UserId) -> Result<(), RedisError> {
        let (link, end) = (self.script_client.link()?, Instant::now() + TAKE_TIMEOUT);
        for _ in 0..LISTS_MAX {
            match self.import_list(&link, user, end).await? {
                ImportResult::NoList => return Ok(()),
                ImportResult::Complete => {}
                ImportResult::Partial => {
                    let mut incomplete = self.incomplete.lock();
                    if incomplete.len() < INCOMPLETE_MAX && !incomplete.contains(user) {
                        incomplete.push_back(user.clone());
                    }
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Imports the pending messages of those of these users that have any.
    async fn import_pending(&self, users: &[UserId]) -> Result<(), RedisError> {
        let link = self.script_client.link()?;
        let keys = [link.keys().original(Name::Undelivered)];
        let users: Vec<&str> = users.iter().map(UserId::as_str).collect();
        let fields: Vec<String> = link.client().run_script(&EXISTING_FIELDS, &keys, &users).await?;
        for user in fields.iter().filter_map(|user| UserId::new(user).ok()) {
            match self.import_undelivered(&user).await {
                // An operator must repair this user's list. Other users do not wait for that.
                Err(RedisError::Damaged(why)) => {
                    tracing::error!(user = %excerpt(user), %why, "pending messages of the original cannot be imported: repair the user's keys");
                }
                imported => imported?,
            }
        }
        Ok(())
    }

    /// Retries incomplete imports, whose users may have room now.
    pub(in crate::redis) async fn retry_incomplete_imports(&self) -> Result<(), RedisError> {
        let users: Vec<UserId> = {
            let mut incomplete = self.incomplete.lock();
            let count = incomplete.len().min(RETRIES_MAX);
            incomplete.drain(..count).collect()
        };
        let mut users = users.into_iter();
        while let Some(user) = users.next() {
            if let Err(error) = self.import_undelivered(&user).await {
                // At the end of the queue: the cause may concern this user alone.
                let mut incomplete = self.incomplete.lock();
                incomplete.extend(users);
                incomplete.push_back(user);
                return Err(error);
            }
        }
        Ok(())
    }

    async fn import_list(&self, link: &ServerLink, user: &UserId, end: Instant) -> Result<ImportResult, RedisError> {
        let keys = [link.keys().original(Name::Undelivered)];
        let fields = [user.as_str(), &format!("{TAKEN}{user}")];
        // A query of its own: in a Redis Cluster a step waits for missing keys while their slot moves.
        let fields: Vec<String> = link.client().run_script(&EXISTING_FIELDS, &keys, &fields).await?;
        if fields.is_empty() && !taken::exists(link, user).await? {
            return Ok(ImportResult::NoList);
        }
        let Some(mut list) = List::take(link, user, self.script_client.limits().bytes).await? else {
            return Ok(ImportResult::NoList);
        };
        loop {
            let part = list.next().await?;
            // The first message without room. Later ones wait too, or they would overtake it.
            let mut first_without_room = None;
            let mut rest = &part.messages[..];
            while first_without_room.is_none() && !rest.is_empty() {
                let (now, later) = rest.split_at(appendable_together(rest));
                rest = later;
                let appended = self.append_all(now.iter().map(|message| message.append.clone()).collect()).await;
                for (message, appended) in now.iter().zip(appended) {
                    match appended {
                        Ok(appended) if appended.seqs.iter().all(Result::is_ok) => {}
                        // Redis itself may be full. The user must still be able to connect, since acknowledgements free
                        // memory.
                        Ok(_) | Err(RedisError::Full(_)) => first_without_room = first_without_room.or(Some(message)),
                        Err(error) => return Err(error),
                    }
                }
            }
            if let Some(first_without_room) = first_without_room {
                let bytes = list.bytes_from(first_without_room);
                tracing::warn!(user = %excerpt(user), bytes, "the user's quota has no room for all pending messages of the original; the rest stays in Redis until there is room");
                list.advance(&part, Some(first_without_room)).await?;
                return Ok(ImportResult::Partial);
            }
            if !list.advance(&part, None).await? {
                return Ok(ImportResult::Complete);
            }
            if Instant::now() >= end {
                return Ok(ImportResult::Partial);
            }
        }
    }
}

enum ImportResult {
    /// There is no list.
    NoList,
    /// A complete list was imported.
    Complete,
    /// A list was imported in part: the log has no room, or it took too long.
    Partial,
}
