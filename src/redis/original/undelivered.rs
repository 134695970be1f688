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

use super::taken::{self, List, run};
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
const OWED_MAX: usize = 10_000;

/// Of those, retried in one go.
const OWED_AT_ONCE: usize = 32;

/// Batches of newly connected users that may wait. Those of one more are looked at when they connect again.
pub(in crate::redis) const CAME_MAX: usize = 1024;

/// Delays after a user has connected until the original's hash is read again. Most messages are there by the first; the
/// second is for a slow process.
const LOOK_AFTER: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(2)];

/// KEYS: 1 the original's pending messages; ARGV: fields. Returns those that exist.
static LEFT: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local left = {}
        for _, user in ipairs(ARGV) do
          if redis.call('HEXISTS', KEYS[1], user) == 1 then left[#left + 1] = user end
        end
        return left",
    )
});

/// Imports what was stored for users while they connected.
pub(in crate::redis) async fn keep_taking(shared: Weak<Shared>, came: &mut mpsc::Receiver<(Instant, Vec<UserId>)>) {
    // Users for each of the looks, in the order in which they connected.
    let mut waiting: [VecDeque<(Instant, Vec<UserId>)>; LOOK_AFTER.len()] = Default::default();
    loop {
        let due = |(look, waiting): (usize, &VecDeque<(Instant, _)>)| Some(waiting.front()?.0 + LOOK_AFTER[look]);
        let next = waiting.iter().enumerate().filter_map(due).min();
        let more = if let Some(next) = next {
            tokio::time::timeout_at(next.into(), came.recv()).await.ok()
        } else {
            Some(came.recv().await)
        };
        match more {
            Some(Some(come)) if waiting[0].len() < CAME_MAX => waiting[0].push_back(come),
            Some(Some(_)) => tracing::debug!("pending messages of the original wait until the user connects again"),
            Some(None) => return,
            None => {}
        }
        for look in 0..LOOK_AFTER.len() {
            while waiting[look].front().is_some_and(|(when, _)| when.elapsed() >= LOOK_AFTER[look])
                && let Some((when, users)) = waiting[look].pop_front()
            {
                let Some(shared) = shared.upgrade() else { return };
                let (next, when) = match shared.take_left(&users).await {
                    Ok(()) => (look + 1, when),
                    // No other server would look once Redis is back.
                    Err(error) => {
                        tracing::debug!(%error, "pending messages of the original are imported later");
                        (LOOK_AFTER.len() - 1, Instant::now())
                    }
                };
                if let Some(next) = waiting.get_mut(next).filter(|next| next.len() < CAME_MAX) {
                    next.push_back((when, users));
                }
            }
        }
    }
}

impl Shared {
    /// Imports the original's pending messages of a user, as far as the log has room.
    pub(in crate::redis) async fn take_undelivered(&self, user: &UserId) -> Result<(), RedisError> {
        let (link, end) = (self.caller.link()?, Instant::now() + TAKE_TIMEOUT);
        for _ in 0..LISTS_MAX {
            match self.take_list(&link, user, end).await? {
                Taken::Nothing => return Ok(()),
                Taken::All => {}
                Taken::Some => {
                    let mut owed = self.owed.lock();
                    if owed.len() < OWED_MAX && !owed.contains(user) {
                        owed.push_back(user.clone());
                    }
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Imports the pending messages of those of these users that have any.
    async fn take_left(&self, users: &[UserId]) -> Result<(), RedisError> {
        let link = self.caller.link()?;
        let keys = [link.keys().original(Name::Undelivered)];
        let users: Vec<&str> = users.iter().map(UserId::as_str).collect();
        let left: Vec<String> = link.client().run_script(&LEFT, &keys, &users).await?;
        for user in left.iter().filter_map(|user| UserId::new(user).ok()) {
            match self.take_undelivered(&user).await {
                // An operator must repair this user's list. Other users do not wait for that.
                Err(RedisError::Damaged(why)) => {
                    tracing::error!(user = %excerpt(user), %why, "pending messages of the original cannot be imported: repair the user's keys");
                }
                taken => taken?,
            }
        }
        Ok(())
    }

    /// Retries incomplete imports, whose users may have room now.
    pub(in crate::redis) async fn take_what_is_owed(&self) -> Result<(), RedisError> {
        let some: Vec<UserId> = {
            let mut owed = self.owed.lock();
            let count = owed.len().min(OWED_AT_ONCE);
            owed.drain(..count).collect()
        };
        let mut some = some.into_iter();
        while let Some(user) = some.next() {
            if let Err(error) = self.take_undelivered(&user).await {
                // At the end of the queue: the cause may concern this user alone.
                let mut owed = self.owed.lock();
                owed.extend(some);
                owed.push_back(user);
                return Err(error);
            }
        }
        Ok(())
    }

    async fn take_list(&self, link: &ServerLink, user: &UserId, end: Instant) -> Result<Taken, RedisError> {
        let keys = [link.keys().original(Name::Undelivered)];
        let fields = [user.as_str(), &format!("{TAKEN}{user}")];
        // A query of its own: in a Redis Cluster a step waits for missing keys while their slot moves.
        let left: Vec<String> = link.client().run_script(&LEFT, &keys, &fields).await?;
        if left.is_empty() && !taken::is_any(link, user).await? {
            return Ok(Taken::Nothing);
        }
        let Some(mut list) = List::take(link, user, self.caller.limits().bytes).await? else {
            return Ok(Taken::Nothing);
        };
        loop {
            let part = list.next().await?;
            // The first message without room. Later ones wait too, or they would overtake it.
            let mut stops = None;
            let mut rest = &part.left[..];
            while stops.is_none() && !rest.is_empty() {
                let (now, later) = rest.split_at(run(rest));
                rest = later;
                let made = self.append_all(now.iter().map(|left| left.append.clone()).collect()).await;
                for (left, made) in now.iter().zip(made) {
                    match made {
                        Ok(made) if made.seqs.iter().all(Result::is_ok) => {}
                        // Redis itself may be full. The user must still be able to connect, since acknowledgements free
                        // memory.
                        Ok(_) | Err(RedisError::Full(_)) => stops = stops.or(Some(left)),
                        Err(error) => return Err(error),
                    }
                }
            }
            if let Some(stops) = stops {
                let bytes = list.bytes_from(stops);
                tracing::warn!(user = %excerpt(user), bytes, "the user's quota has no room for all pending messages of the original; the rest stays in Redis until there is room");
                list.done(&part, Some(stops)).await?;
                return Ok(Taken::Some);
            }
            if !list.done(&part, None).await? {
                return Ok(Taken::All);
            }
            if Instant::now() >= end {
                return Ok(Taken::Some);
            }
        }
    }
}

enum Taken {
    /// There is no list.
    Nothing,
    /// A complete list was imported.
    All,
    /// A list was imported in part: the log has no room, or it took too long.
    Some,
}
