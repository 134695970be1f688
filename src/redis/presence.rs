//! Presence: which users are connected to which server.
//!
//! Each server keeps a table of its users. A user in any table is online. A dead server leaves its table behind, and another
//! server removes it when the lease has ended (`reaper`).
//!
//! The original's keys for the same (`connected_clients`, `connected_clients_count`) are written in the same step, so that
//! they always agree. An entry in `connected_clients` may be the original's or ours. Ours stays for a while after the user
//! has gone: until its server has written that, or until another server has noticed that its server died. So the users that
//! we added are recorded too, with the time when they went offline. A listed user without such a record is connected to the
//! original only.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{
        Arc, LazyLock, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{
    Notification, ServerLink,
    broadcast::users,
    connection::Script,
    reaper::{self, tables},
    refusal::RedisError,
};
use crate::{
    compat::keyspace::Name,
    message::UserId,
    redis::original::channel::{original_name, original_supported},
};

/// Users written in one step.
const BATCH_MAX: usize = 200;

/// Changes within this delay are written together.
const WRITE_DELAY: Duration = Duration::from_millis(5);

/// Grace period during which a disconnected user still counts as connected: other servers may have messages in flight.
const GRACE_PERIOD_TTL: Duration = Duration::from_secs(15);

/// Users in the grace period. With one more the earliest leaves it. Servers check for undelivered copies later anyway.
const GRACE_USERS_MAX: usize = 50_000;

/// Users read in one step.
const PAGE_MAX: usize = 1000;

/// Delay after a failed attempt.
const RETRY_DELAY: Duration = Duration::from_millis(250);

/// How often dead servers and servers of the original are looked for.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// KEYS: 1 online users, 2 servers, 3 this server's table, 4 dead servers, then tables of other servers; ARGV: 1 this server,
/// 2 prefix and 3 suffix of a table's name, 4 `connected_clients` ('' without the original), 5 users that we added there,
/// then each user and its number of connections. Returns the users that are new in `connected_clients`.
///
/// `PERSIST` changes nothing; see [`RedisClient::query_when_full`](super::connection::RedisClient::query_when_full).
///
/// The other tables are among the keys, here and below, because a slot may be moving in a Redis Cluster. Then a table that
/// has moved reads as empty, unless the key was named.
///
/// A server that was taken for dead and does not know it yet adds itself to the dead servers. What it writes is then removed
/// unless it comes back.
static SET_CONNECTIONS: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "redis.call('PERSIST', KEYS[1])
        local t, came = redis.call('TIME'), {}
        local now = string.format('%.0f', t[1] * 1000 + math.floor(t[2] / 1000))
        if not redis.call('ZSCORE', KEYS[2], ARGV[1]) then redis.call('ZADD', KEYS[4], 'NX', 0, ARGV[1]) end
        for at = 6, #ARGV, 2 do
          local user, count = ARGV[at], tonumber(ARGV[at + 1])
          if count > 0 then
            redis.call('HSET', KEYS[3], user, count)
            redis.call('ZADD', KEYS[1], 0, user)
            if ARGV[4] ~= '' then
              redis.call('ZADD', ARGV[5], 0, user)
              if redis.call('SADD', ARGV[4], user) == 1 then came[#came + 1] = user end
            end
          else
            redis.call('HDEL', KEYS[3], user)
            local elsewhere = false
            for _, node in ipairs(redis.call('ZRANGE', KEYS[2], 0, -1)) do
              elsewhere = elsewhere or redis.call('HEXISTS', ARGV[2] .. node .. ARGV[3], user) == 1
            end
            if not elsewhere and redis.call('ZREM', KEYS[1], user) == 1 and ARGV[4] ~= '' then
              redis.call('SREM', ARGV[4], user)
              redis.call('ZADD', ARGV[5], now, user)
            end
          end
        end
        return came",
    )
});

/// KEYS: 1 connection counts, 2 servers, 3 dead servers; ARGV: 1 this server, 2 its number of connections, 3
/// `connected_clients_count` ('' without the original).
static SET_COUNT: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "redis.call('PERSIST', KEYS[1])
        local more = ARGV[2] - tonumber(redis.call('HGET', KEYS[1], ARGV[1]) or 0)
        redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
        if not redis.call('ZSCORE', KEYS[2], ARGV[1]) then redis.call('ZADD', KEYS[3], 'NX', 0, ARGV[1]) end
        if ARGV[3] ~= '' and more ~= 0 then redis.call('INCRBY', ARGV[3], string.format('%.0f', more)) end",
    )
});

/// Users and connections of this server, and what of them is not written to Redis yet.
#[derive(Debug, Default)]
pub struct Presence {
    state: Mutex<State>,
    changed: Notify,
    connections: AtomicUsize,
    /// A server of the original is subscribed.
    original_present: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    users: HashMap<UserId, usize>,
    /// Users in the grace period, with when they went offline, and the same in that order.
    gone: HashMap<UserId, Instant>,
    gone_in_order: VecDeque<(Instant, UserId)>,
    /// Changes that are not written yet.
    dirty: HashMap<UserId, usize>,
    /// Those of them that may be written, by a step whose reply was lost. With it the list of new users was lost.
    unsure: HashSet<UserId>,
}

/// A change that is to be written.
struct Change {
    user: UserId,
    connections: usize,
    is_unsure: bool,
}

impl Presence {
    /// Starts the tasks that write and read presence.
    pub(super) fn begin(link: &Arc<ServerLink>) -> Arc<Self> {
        let presence = Arc::new(Self::default());
        link.spawn("cluster_presence_writer", presence.clone(), |link, presence| {
            Box::pin(write_changes(link, presence.clone()))
        });
        link.spawn("cluster_presence_reader", presence.clone(), |link, presence| {
            Box::pin(poll_redis(link, presence.clone()))
        });
        presence
    }

    pub(super) fn set_connections(&self, user: &UserId, connections: usize) {
        {
            let mut state = self.state.lock();
            if connections == 0 {
                state.start_grace(user);
            } else {
                state.gone.remove(user);
                state.users.insert(user.clone(), connections);
            }
            state.dirty.insert(user.clone(), connections);
        }
        self.changed.notify_one();
    }

    pub(super) fn set_connection_count(&self, connections: usize) {
        self.connections.store(connections, Ordering::Relaxed);
        self.changed.notify_one();
    }

    pub(super) fn original_is_present(&self) -> bool {
        self.original_present.load(Ordering::Relaxed)
    }

    /// Splits users into those that are or were recently connected to this server, and the others.
    pub(super) fn split_local(&self, users: Vec<UserId>) -> (Vec<UserId>, Vec<UserId>) {
        let state = self.state.lock();
        let is_here = |user: &UserId| {
            state.users.contains_key(user)
                || state.gone.get(user).is_some_and(|since| since.elapsed() < GRACE_PERIOD_TTL)
        };
        users.into_iter().partition(is_here)
    }

    /// Marks all users to be written again. `written` are the users in this server's table now.
    fn mark_all_dirty(&self, written: Vec<UserId>) {
        let mut state = self.state.lock();
        let State { users, dirty, .. } = &mut *state;
        for (user, count) in users.iter() {
            dirty.entry(user.clone()).or_insert(*count);
        }
        for user in written {
            if !users.contains_key(&user) {
                dirty.entry(user).or_insert(0);
            }
        }
        drop(state);
        self.changed.notify_one();
    }

    fn take(&self) -> Vec<Change> {
        let State { dirty, unsure, .. } = &mut *self.state.lock();
        let batch: Vec<_> = dirty.keys().take(BATCH_MAX).cloned().collect();
        let batch = batch.into_iter().filter_map(|user| dirty.remove_entry(&user));
        batch.map(|(user, connections)| Change { is_unsure: unsure.remove(&user), user, connections }).collect()
    }

    fn give_back(&self, batch: Vec<Change>) {
        let State { dirty, unsure, .. } = &mut *self.state.lock();
        for Change { user, connections, .. } in batch {
            unsure.insert(user.clone());
            // A later change counts.
            dirty.entry(user).or_insert(connections);
        }
    }

    async fn write(&self, link: &ServerLink) -> Result<(), RedisError> {
        loop {
            let batch = self.take();
            if batch.is_empty() {
                break;
            }
            if let Err(error) = write_batch(link, &batch).await {
                self.give_back(batch);
                return Err(error);
            }
        }
        let connections = self.connections.load(Ordering::Relaxed).to_string();
        let keys = [link.keys().connection_counts(), link.keys().servers(), link.keys().dead_servers()];
        let original = original_name(link, Name::Count);
        link.client().run_script(&SET_COUNT, &keys, &[link.server_name(), &connections, &original]).await
    }

    /// Looks for servers of the original, and removes the state of dead servers.
    async fn poll(&self, link: &ServerLink) -> Result<(), RedisError> {
        if !link.in_grace_period() {
            reaper::reap_dead_servers(link).await?;
        }
        if original_supported(link) {
            self.original_present.store(super::original::channel::has_subscriber(link).await?, Ordering::Relaxed);
            super::original::channel::forget_offline(link).await?;
        }
        if link.take_reaped() {
            let table =
                link.client().query(redis::cmd("HKEYS").arg(link.keys().server_users(link.server_name()))).await;
            let written: Vec<String> = table.inspect_err(|_| link.mark_reaped())?;
            self.mark_all_dirty(users(&written));
        }
        Ok(())
    }
}

impl State {
    fn start_grace(&mut self, user: &UserId) {
        self.users.remove(user);
        let now = Instant::now();
        while let Some((since, _)) = self.gone_in_order.front()
            && (self.gone_in_order.len() >= GRACE_USERS_MAX || since.elapsed() >= GRACE_PERIOD_TTL)
        {
            let Some((since, user)) = self.gone_in_order.pop_front() else { return };
            // The user may have connected and disconnected once more.
            if self.gone.get(&user) == Some(&since) {
                self.gone.remove(&user);
            }
        }
        self.gone.insert(user.clone(), now);
        self.gone_in_order.push_back((now, user.clone()));
    }
}

async fn write_batch(link: &ServerLink, batch: &[Change]) -> Result<(), RedisError> {
    let schema = link.keys();
    let (begin, end) = schema.server_users_affixes();
    let original = original_name(link, Name::Clients);
    let mut arguments = vec![link.server_name().to_owned(), begin, end, original, schema.original_users_added()];
    for Change { user, connections, .. } in batch {
        arguments.extend([user.to_string(), connections.to_string()]);
    }
    let mut keys =
        vec![schema.online(), schema.servers(), schema.server_users(link.server_name()), schema.dead_servers()];
    keys.extend(tables(link));
    let added: Vec<String> = link.client().run_script(&SET_CONNECTIONS, &keys, &arguments).await?;
    let mut added = users(&added);
    if original_supported(link) {
        // Importing twice does no harm.
        let may_be_added = batch.iter().filter(|change| change.is_unsure && change.connections > 0);
        added.extend(may_be_added.map(|change| change.user.clone()));
    }
    if !added.is_empty() {
        link.notify(&Notification::OriginalPresent(added));
    }
    Ok(())
}

async fn write_changes(link: Weak<ServerLink>, presence: Arc<Presence>) {
    loop {
        presence.changed.notified().await;
        tokio::time::sleep(WRITE_DELAY).await;
        let Some(link) = link.upgrade() else { return };
        if let Err(error) = presence.write(&link).await {
            tracing::debug!(%error, "presence is written later");
            tokio::time::sleep(RETRY_DELAY).await;
            presence.changed.notify_one();
        }
    }
}

async fn poll_redis(link: Weak<ServerLink>, presence: Arc<Presence>) {
    loop {
        {
            let Some(link) = link.upgrade() else { return };
            if let Err(error) = presence.poll(&link).await {
                tracing::debug!(%error, "dead servers and servers of the original were not looked for; it is retried");
            }
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// KEYS: 1 servers, then tables; ARGV: 1 this server, 2 and 3 as above, then users. Returns the number of connections of each
/// user at other servers.
static REMOTE_CONNECTIONS: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local t, counts = redis.call('TIME'), {}
        local now = string.format('%.0f', t[1] * 1000)
        for at = 4, #ARGV do counts[at - 3] = 0 end
        for _, node in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], now, '+inf')) do
          if node ~= ARGV[1] then
            for at = 4, #ARGV do
              local count = redis.call('HGET', ARGV[2] .. node .. ARGV[3], ARGV[at])
              if count then counts[at - 3] = counts[at - 3] + tonumber(count) end
            end
          end
        end
        return counts",
    )
});

/// Counts the connections of each user at other servers.
pub(super) async fn remote_connections(link: &ServerLink, users: &[UserId]) -> Result<Vec<usize>, RedisError> {
    let (begin, end) = link.keys().server_users_affixes();
    let mut found = Vec::with_capacity(users.len());
    let mut keys = vec![link.keys().servers()];
    keys.extend(tables(link));
    for some in users.chunks(BATCH_MAX) {
        let mut arguments = vec![link.server_name(), &begin, &end];
        arguments.extend(some.iter().map(UserId::as_str));
        let counts: Vec<usize> = link.client().run_script(&REMOTE_CONNECTIONS, &keys, &arguments).await?;
        found.extend(counts);
    }
    Ok(found)
}

/// Counts all connections at other servers.
pub(super) async fn remote_connection_count(link: &ServerLink) -> Result<usize, RedisError> {
    let counts: HashMap<String, usize> =
        link.client().query(redis::cmd("HGETALL").arg(link.keys().connection_counts())).await?;
    Ok(counts.iter().filter(|(node, _)| *node != link.server_name()).map(|(_, count)| count).sum())
}

/// Lists users who are online at any server, above `after`.
pub(super) async fn online_page(
    link: &ServerLink,
    after: Option<&UserId>,
    limit: usize,
) -> Result<Vec<UserId>, RedisError> {
    let from = after.map_or_else(|| "-".to_owned(), |after| format!("({after}"));
    let mut command = redis::cmd("ZRANGEBYLEX");
    command.arg(link.keys().online()).arg(from).arg("+").arg("LIMIT").arg(0).arg(limit);
    Ok(users(&link.client().query::<Vec<String>>(&command).await?))
}

/// Lists all users who are online at a server of ours.
///
/// Reads pages, so that Redis serves others in between. A user who connects or disconnects meanwhile may be in the list or
/// not.
pub(super) async fn online_users(link: &ServerLink) -> Result<Vec<UserId>, RedisError> {
    let mut all: Vec<UserId> = Vec::new();
    loop {
        let page = online_page(link, all.last(), PAGE_MAX).await?;
        if page.is_empty() {
            return Ok(all);
        }
        all.extend(page);
    }
}

/// Counts the users that are online.
pub(super) async fn online_user_count(link: &ServerLink) -> Result<usize, RedisError> {
    link.client().query(redis::cmd("ZCARD").arg(link.keys().online())).await
}

/// Tells whether a user is online.
pub(super) async fn is_online(link: &ServerLink, user: &UserId) -> Result<bool, RedisError> {
    let command = redis::cmd("ZSCORE").arg(link.keys().online()).arg(user.as_str()).to_owned();
    Ok(link.client().query::<Option<String>>(&command).await?.is_some())
}

/// Counts the connections at all servers of ours.
pub(super) async fn connection_count(link: &ServerLink) -> Result<usize, RedisError> {
    let counts: Vec<usize> = link.client().query(redis::cmd("HVALS").arg(link.keys().connection_counts())).await?;
    Ok(counts.iter().sum())
}
