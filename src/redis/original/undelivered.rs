//! Imports messages that a process of the original has stored for a user in `undelivered_messages`.
//!
//! One step moves the list to our own keys, under a new name each time. A message is removed from there only when it is
//! in the log. So if a server dies in between, another resumes, and no message is delivered twice. A message above the
//! user's quota stays taken, with all that follow it, and is retried as the user frees quota. A message that cannot be
//! sent to clients, or exceeds `sync.maxBytes`, is set aside under another key, for an operator. See `taken`.
//!
//! A process of the original checks that a user is offline, and stores the message a moment later. The user may connect
//! in between, and would get the message at the next login only. So the hash is read twice more after the original
//! lists the user as online.

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

/// Lists of one import. A process of the original may store another list during it.
const LISTS_MAX: usize = 16;

/// Time limit of one import. A connecting client waits for it; the default of `authentication.timeout` is five times as
/// long. Later messages are imported during the session.
const TAKE_TIMEOUT: Duration = Duration::from_secs(2);

/// Users whose incomplete import is retried. For further users it is retried at the next login.
const INCOMPLETE_MAX: usize = 10_000;

/// Imports retried in one pass.
const RETRIES_MAX: usize = 32;

/// Queued batches of newly connected users. For users of one more batch the hash is read when they connect again.
pub(in crate::redis) const CONNECTED_MAX: usize = 1024;

/// Delays after a user has connected until the original's hash is read again. Most messages are there by the first; the
/// second is for a slow process.
const READ_DELAYS: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(2)];

/// Finds existing fields. KEYS: 1 the original's pending messages; ARGV: fields. Returns those that exist.
static EXISTING_FIELDS: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local existing = {}
        for _, field in ipairs(ARGV) do
          if redis.call('HEXISTS', KEYS[1], field) == 1 then existing[#existing + 1] = field end
        end
        return existing",
    )
});

/// Imports messages that were stored for users while they connected.
pub(in crate::redis) async fn import_on_connect(
    shared: Weak<Shared>,
    connected: &mut mpsc::Receiver<(Instant, Vec<UserId>)>,
) {
    // Users for each of the delays, in the order in which they connected.
    let mut waiting: [VecDeque<(Instant, Vec<UserId>)>; READ_DELAYS.len()] = Default::default();
    loop {
        let due = |(at, waiting): (usize, &VecDeque<(Instant, _)>)| Some(waiting.front()?.0 + READ_DELAYS[at]);
        let next = waiting.iter().enumerate().filter_map(due).min();
        let more = if let Some(next) = next {
            tokio::time::timeout_at(next.into(), connected.recv()).await.ok()
        } else {
            Some(connected.recv().await)
        };
        match more {
            Some(Some(users)) if waiting[0].len() < CONNECTED_MAX => waiting[0].push_back(users),
            Some(Some(_)) => tracing::debug!("pending messages of the original wait until the user connects again"),
            Some(None) => return,
            None => {}
        }
        for at in 0..READ_DELAYS.len() {
            while waiting[at].front().is_some_and(|(since, _)| since.elapsed() >= READ_DELAYS[at])
                && let Some((since, users)) = waiting[at].pop_front()
            {
                let Some(shared) = shared.upgrade() else { return };
                let (next, since) = match shared.import_pending(&users).await {
                    Ok(()) => (at + 1, since),
                    // Otherwise no server would read the hash once Redis is available again.
                    Err(error) => {
                        tracing::debug!(%error, "pending messages of the original are imported later");
                        (READ_DELAYS.len() - 1, Instant::now())
                    }
                };
                if let Some(next) = waiting.get_mut(next).filter(|next| next.len() < CONNECTED_MAX) {
                    next.push_back((since, users));
                }
            }
        }
    }
}

impl Shared {
    /// Imports the original's pending messages of a user, up to the user's quota.
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

    /// Imports the pending messages of these users, if they have any.
    async fn import_pending(&self, users: &[UserId]) -> Result<(), RedisError> {
        let link = self.script_client.link()?;
        let keys = [link.keys().original(Name::Undelivered)];
        let users: Vec<&str> = users.iter().map(UserId::as_str).collect();
        let fields: Vec<String> = link.client().run_script(&EXISTING_FIELDS, &keys, &users).await?;
        for user in fields.iter().filter_map(|user| UserId::new(user).ok()) {
            match self.import_undelivered(&user).await {
                // An operator must repair this user's list. The import goes on for other users.
                Err(RedisError::Damaged(why)) => {
                    tracing::error!(user = %excerpt(user), %why, "pending messages of the original cannot be imported: repair the user's keys");
                }
                imported => imported?,
            }
        }
        Ok(())
    }

    /// Retries incomplete imports: their users may have freed quota.
    pub(in crate::redis) async fn retry_incomplete_imports(&self) -> Result<(), RedisError> {
        let users: Vec<UserId> = {
            let mut incomplete = self.incomplete.lock();
            let count = incomplete.len().min(RETRIES_MAX);
            incomplete.drain(..count).collect()
        };
        let mut users = users.into_iter();
        while let Some(user) = users.next() {
            if let Err(error) = self.import_undelivered(&user).await {
                // At the end of the queue: the cause may concern only this user.
                let mut incomplete = self.incomplete.lock();
                incomplete.extend(users);
                incomplete.push_back(user);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Imports one list.
    async fn import_list(&self, link: &ServerLink, user: &UserId, end: Instant) -> Result<ImportResult, RedisError> {
        let keys = [link.keys().original(Name::Undelivered)];
        let fields = [user.as_str(), &format!("{TAKEN}{user}")];
        // A separate query: in a Redis Cluster a step waits for missing keys while their slot moves.
        let fields: Vec<String> = link.client().run_script(&EXISTING_FIELDS, &keys, &fields).await?;
        if fields.is_empty() && !taken::exists(link, user).await? {
            return Ok(ImportResult::NoList);
        }
        let Some(mut list) = List::take(link, user, self.script_client.limits().bytes).await? else {
            return Ok(ImportResult::NoList);
        };
        loop {
            let part = list.next().await?;
            // The first message above the quota. Later messages wait too, or they would overtake it.
            let mut first_above_quota = None;
            let mut remaining = &part.messages[..];
            while first_above_quota.is_none() && !remaining.is_empty() {
                let (now, later) = remaining.split_at(appendable_together(remaining));
                remaining = later;
                let appended = self.append_all(now.iter().map(|message| message.append.clone()).collect()).await;
                for (message, appended) in now.iter().zip(appended) {
                    match appended {
                        Ok(appended) if appended.seqs.iter().all(Result::is_ok) => {}
                        // Redis itself may be full. The user must still be able to connect, since acknowledgements free
                        // memory.
                        Ok(_) | Err(RedisError::Full(_)) => first_above_quota = first_above_quota.or(Some(message)),
                        Err(error) => return Err(error),
                    }
                }
            }
            if let Some(first_above_quota) = first_above_quota {
                let bytes = list.bytes_from(first_above_quota);
                tracing::warn!(user = %excerpt(user), bytes, "the pending messages of the original exceed the user's quota; the remaining ones stay in Redis until quota is free");
                list.advance(&part, Some(first_above_quota)).await?;
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
    /// A list was imported in part: the quota or the time limit was reached.
    Partial,
}
