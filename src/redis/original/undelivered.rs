//! What a stock process has left for a user (`undelivered_messages`): taken in one step, and put into his log.
//!
//! Taken means moved to keys of our own, under a name that is new each time; a message is gone from there only when it is in
//! the log. So whoever dies in between leaves it to the next, and nothing comes twice. What has no room in the log stays taken,
//! with all that is behind it, and is tried again as the user makes room; what cannot be sent to a client, or is larger than all
//! the room there is for one, is put aside under a key of its own, for people to look at. See `taken`.
//!
//! A stock process sees that a user is away, and leaves it for him a moment later. Meanwhile he may have come, and nobody would
//! look until he comes again: so it is looked once more when he is connected in stock's eyes too, and once more after that.

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

/// Lists taken in one go: a process that leaves more all the time is not waited for.
const LISTS_MAX: usize = 16;

/// For so long lists of one user are taken in one go. A client that comes waits for that, and `authentication.timeout` is five
/// times as long by default. The rest follows while the session runs.
const TAKE_TIMEOUT: Duration = Duration::from_secs(2);

/// Users of whom not all was taken that was left for them, and for whom it is tried again. For one more it is tried when that
/// user comes the next time.
const OWED_MAX: usize = 10_000;

/// Of those, tried in one go.
const OWED_AT_ONCE: usize = 32;

/// Batches of users who have come that may wait. For those of one more it is looked when they come the next time.
pub(in crate::redis) const CAME_MAX: usize = 1024;

/// So long after they have come it is looked what stock has left for them meanwhile: most of it is there then, and then the
/// rest, where a stock process is slow.
const LOOK_AFTER: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(2)];

/// KEYS: 1 what the original has left; ARGV: fields. Gives those that are there.
static LEFT: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local left = {}
        for _, user in ipairs(ARGV) do
          if redis.call('HEXISTS', KEYS[1], user) == 1 then left[#left + 1] = user end
        end
        return left",
    )
});

/// Takes what was left for users while they came.
pub(in crate::redis) async fn keep_taking(shared: Weak<Shared>, came: &mut mpsc::Receiver<(Instant, Vec<UserId>)>) {
    // Those of whom each look comes next, in the order in which they came.
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
            Some(Some(_)) => tracing::debug!("what stock has left for who has come waits until he comes again"),
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
                    // When Redis is there again nobody else would look.
                    Err(error) => {
                        tracing::debug!(%error, "what stock has left is taken later");
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
    /// Puts what stock has left for a user into his log, as far as it has room.
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

    /// The same for those of these users for whom something is left.
    async fn take_left(&self, users: &[UserId]) -> Result<(), RedisError> {
        let link = self.caller.link()?;
        let keys = [link.keys().original(Name::Undelivered)];
        let users: Vec<&str> = users.iter().map(UserId::as_str).collect();
        let left: Vec<String> = link.client().run_script(&LEFT, &keys, &users).await?;
        for user in left.iter().filter_map(|user| UserId::new(user).ok()) {
            match self.take_undelivered(&user).await {
                // Somebody has to look at what there is of this user; the others are not to wait for that.
                Err(RedisError::Damaged(why)) => {
                    tracing::error!(user = %excerpt(user), %why, "what stock has left cannot be taken");
                }
                taken => taken?,
            }
        }
        Ok(())
    }

    /// The same for some of those of whom not all was taken: they may have room now.
    pub(in crate::redis) async fn take_what_is_owed(&self) -> Result<(), RedisError> {
        let some: Vec<UserId> = {
            let mut owed = self.owed.lock();
            let count = owed.len().min(OWED_AT_ONCE);
            owed.drain(..count).collect()
        };
        let mut some = some.into_iter();
        while let Some(user) = some.next() {
            if let Err(error) = self.take_undelivered(&user).await {
                // Behind the others: what is wrong may be this user's alone.
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
        // Asked for by themselves: a step with keys that are not there waits for as long as their slot of a Cluster moves.
        let left: Vec<String> = link.client().run_script(&LEFT, &keys, &fields).await?;
        if left.is_empty() && !taken::is_any(link, user).await? {
            return Ok(Taken::Nothing);
        }
        let Some(mut list) = List::take(link, user, self.caller.limits().bytes).await? else {
            return Ok(Taken::Nothing);
        };
        loop {
            let part = list.next().await?;
            // The first that has no room: what is behind it waits too, or it would come before it.
            let mut stops = None;
            let mut rest = &part.left[..];
            while stops.is_none() && !rest.is_empty() {
                let (now, later) = rest.split_at(run(rest));
                rest = later;
                let made = self.append_all(now.iter().map(|left| left.append.clone()).collect()).await;
                for (left, made) in now.iter().zip(made) {
                    match made {
                        Ok(made) if made.seqs.iter().all(Result::is_ok) => {}
                        // Nor is there any in the Redis: who comes now is to have what he has, which makes some.
                        Ok(_) | Err(RedisError::Full(_)) => stops = stops.or(Some(left)),
                        Err(error) => return Err(error),
                    }
                }
            }
            if let Some(stops) = stops {
                let bytes = list.bytes_from(stops);
                tracing::warn!(user = %excerpt(user), bytes, "this user has no room for all that the original has left; it stays until there is some");
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
    /// There is nothing.
    Nothing,
    /// A list, all of it.
    All,
    /// Not all of one: there is no room, or it takes too long.
    Some,
}
