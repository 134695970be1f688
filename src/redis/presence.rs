//! Presence: which users are connected to which server.
//!
//! Each server has a table of its users in Redis. A user in any table is online. When a server dies and its lease has
//! ended, another server removes its table (`reaper`).
//!
//! The original's keys for the same (`connected_clients`, `connected_clients_count`) are written in the same step, so
//! they always agree. An entry in `connected_clients` may be the original's or ours. Our entry may outlive the
//! connection, until its server has removed it, or another server after its death. So the users that we added are
//! recorded, with the time when they went offline. A user in `connected_clients` without such a record is connected to
//! the original only.

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

/// Users in the grace period. One more ends it for the earliest. Servers check for missing copies after 1 s in any
/// case.
const GRACE_USERS_MAX: usize = 50_000;

/// Users read in one step.
const PAGE_MAX: usize = 1000;

/// Delay after a failed attempt.
const RETRY_DELAY: Duration = Duration::from_millis(250);

/// Interval of checks for dead servers and for servers of the original.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Writes the numbers of connections of some users of this server.
///
/// KEYS: 1 online users, 2 servers, 3 this server's table, 4 dead servers, then tables of other servers; ARGV: 1 this
/// server, 2 prefix and 3 suffix of a table's name, 4 `connected_clients` ('' without the original), 5 users that we
/// added there, then each user and its number of connections. Returns the users that are new in `connected_clients`.
///
/// `PERSIST` changes nothing; see [`RedisClient::query_when_full`](super::connection::RedisClient::query_when_full).
///
/// The other tables are keys of the script, here and below, because a slot may be moving in a Redis Cluster. Otherwise
/// a moved table would read as empty.
///
/// A server that others took for dead, and that does not know it yet, adds itself to the dead servers. So its state is
/// removed unless it renews its lease.
static SET_CONNECTIONS: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "redis.call('PERSIST', KEYS[1])
        local t, added = redis.call('TIME'), {}
        local now = string.format('%.0f', t[1] * 1000 + math.floor(t[2] / 1000))
        if not redis.call('ZSCORE', KEYS[2], ARGV[1]) then redis.call('ZADD', KEYS[4], 'NX', 0, ARGV[1]) end
        for at = 6, #ARGV, 2 do
          local user, count = ARGV[at], tonumber(ARGV[at + 1])
          if count > 0 then
            redis.call('HSET', KEYS[3], user, count)
            redis.call('ZADD', KEYS[1], 0, user)
            if ARGV[4] ~= '' then
              redis.call('ZADD', ARGV[5], 0, user)
              if redis.call('SADD', ARGV[4], user) == 1 then added[#added + 1] = user end
            end
          else
            redis.call('HDEL', KEYS[3], user)
            local is_remote = false
            for _, server in ipairs(redis.call('ZRANGE', KEYS[2], 0, -1)) do
              is_remote = is_remote or redis.call('HEXISTS', ARGV[2] .. server .. ARGV[3], user) == 1
            end
            if not is_remote and redis.call('ZREM', KEYS[1], user) == 1 and ARGV[4] ~= '' then
              redis.call('SREM', ARGV[4], user)
              redis.call('ZADD', ARGV[5], now, user)
            end
          end
        end
        return added",
    )
});

/// Writes the number of connections of this server.
///
/// KEYS: 1 connection counts, 2 servers, 3 dead servers; ARGV: 1 this server, 2 its number of connections, 3
/// `connected_clients_count` ('' without the original).
static SET_COUNT: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "redis.call('PERSIST', KEYS[1])
        local difference = ARGV[2] - tonumber(redis.call('HGET', KEYS[1], ARGV[1]) or 0)
        redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
        if not redis.call('ZSCORE', KEYS[2], ARGV[1]) then redis.call('ZADD', KEYS[3], 'NX', 0, ARGV[1]) end
        if ARGV[3] ~= '' and difference ~= 0 then redis.call('INCRBY', ARGV[3], string.format('%.0f', difference)) end",
    )
});

/// Users and connections of this server, and the changes that are not written to Redis yet.
#[derive(Debug, Default)]
pub struct Presence {
    state: Mutex<State>,
    changed: Notify,
    connections: AtomicUsize,
    /// A server of the original is subscribed to its channel.
    original_present: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    users: HashMap<UserId, usize>,
    /// Users in the grace period, with the time when they went offline, and the same in order of that time.
    in_grace: HashMap<UserId, Instant>,
    grace_order: VecDeque<(Instant, UserId)>,
    /// Changes that are not written yet.
    dirty: HashMap<UserId, usize>,
    /// Changes that a step may have written whose reply was lost, and with it the list of users it added.
    uncertain: HashSet<UserId>,
}

/// An unwritten change.
struct Change {
    user: UserId,
    connections: usize,
    is_uncertain: bool,
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
                state.in_grace.remove(user);
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

    /// Splits users into those that are connected to this server or in the grace period, and the others.
    pub(super) fn split_local(&self, users: Vec<UserId>) -> (Vec<UserId>, Vec<UserId>) {
        let state = self.state.lock();
        let is_local = |user: &UserId| {
            state.users.contains_key(user)
                || state.in_grace.get(user).is_some_and(|since| since.elapsed() < GRACE_PERIOD_TTL)
        };
        users.into_iter().partition(is_local)
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

    /// Takes changes for one step.
    fn take_batch(&self) -> Vec<Change> {
        let State { dirty, uncertain, .. } = &mut *self.state.lock();
        let batch: Vec<_> = dirty.keys().take(BATCH_MAX).cloned().collect();
        let batch = batch.into_iter().filter_map(|user| dirty.remove_entry(&user));
        batch.map(|(user, connections)| Change { is_uncertain: uncertain.remove(&user), user, connections }).collect()
    }

    /// Returns the changes of a failed step. Later changes of the same users win.
    fn return_batch(&self, batch: Vec<Change>) {
        let State { dirty, uncertain, .. } = &mut *self.state.lock();
        for Change { user, connections, .. } in batch {
            uncertain.insert(user.clone());
            dirty.entry(user).or_insert(connections);
        }
    }

    async fn write(&self, link: &ServerLink) -> Result<(), RedisError> {
        loop {
            let batch = self.take_batch();
            if batch.is_empty() {
                break;
            }
            if let Err(error) = write_batch(link, &batch).await {
                self.return_batch(batch);
                return Err(error);
            }
        }
        let connections = self.connections.load(Ordering::Relaxed).to_string();
        let keys = [link.keys().connection_counts(), link.keys().servers(), link.keys().dead_servers()];
        let original = original_name(link, Name::Count);
        link.client().run_script(&SET_COUNT, &keys, &[link.server_name(), &connections, &original]).await
    }

    /// Checks for servers of the original, and removes the state of dead servers. Rewrites this server's state if it
    /// was removed.
    async fn poll(&self, link: &ServerLink) -> Result<(), RedisError> {
        if !link.in_grace_period() {
            reaper::reap_dead_servers(link).await?;
        }
        if original_supported(link) {
            self.original_present.store(super::original::channel::has_subscriber(link).await?, Ordering::Relaxed);
            super::original::channel::remove_offline_records(link).await?;
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
        while let Some((since, _)) = self.grace_order.front()
            && (self.grace_order.len() >= GRACE_USERS_MAX || since.elapsed() >= GRACE_PERIOD_TTL)
        {
            let Some((since, user)) = self.grace_order.pop_front() else { return };
            // The user may have connected and disconnected again since.
            if self.in_grace.get(&user) == Some(&since) {
                self.in_grace.remove(&user);
            }
        }
        self.in_grace.insert(user.clone(), now);
        self.grace_order.push_back((now, user.clone()));
    }
}

/// Writes changes. Reports the users that are new in `connected_clients`.
async fn write_batch(link: &ServerLink, batch: &[Change]) -> Result<(), RedisError> {
    let schema = link.keys();
    let (prefix, suffix) = schema.server_users_affixes();
    let original = original_name(link, Name::Clients);
    let mut arguments = vec![link.server_name().to_owned(), prefix, suffix, original, schema.original_users_added()];
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
        let may_be_added = batch.iter().filter(|change| change.is_uncertain && change.connections > 0);
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
                tracing::debug!(%error, "the check for dead servers and servers of the original failed; it is retried");
            }
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// Counts the connections of users at other servers.
///
/// KEYS: 1 servers, then tables; ARGV: 1 this server, 2 and 3 as above, then users. Returns a number for each user.
static REMOTE_CONNECTIONS: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local t, counts = redis.call('TIME'), {}
        local now = string.format('%.0f', t[1] * 1000)
        for at = 4, #ARGV do counts[at - 3] = 0 end
        for _, server in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], now, '+inf')) do
          if server ~= ARGV[1] then
            for at = 4, #ARGV do
              local count = redis.call('HGET', ARGV[2] .. server .. ARGV[3], ARGV[at])
              if count then counts[at - 3] = counts[at - 3] + tonumber(count) end
            end
          end
        end
        return counts",
    )
});

/// Counts the connections of each user at other servers.
pub(super) async fn remote_connections(link: &ServerLink, users: &[UserId]) -> Result<Vec<usize>, RedisError> {
    let (prefix, suffix) = link.keys().server_users_affixes();
    let mut found = Vec::with_capacity(users.len());
    let mut keys = vec![link.keys().servers()];
    keys.extend(tables(link));
    for batch in users.chunks(BATCH_MAX) {
        let mut arguments = vec![link.server_name(), &prefix, &suffix];
        arguments.extend(batch.iter().map(UserId::as_str));
        let counts: Vec<usize> = link.client().run_script(&REMOTE_CONNECTIONS, &keys, &arguments).await?;
        found.extend(counts);
    }
    Ok(found)
}

/// Counts all connections at other servers.
pub(super) async fn remote_connection_count(link: &ServerLink) -> Result<usize, RedisError> {
    let counts: HashMap<String, usize> =
        link.client().query(redis::cmd("HGETALL").arg(link.keys().connection_counts())).await?;
    Ok(counts.iter().filter(|(server, _)| *server != link.server_name()).map(|(_, count)| count).sum())
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
/// Reads pages, so that Redis serves other clients in between. A user who connects or disconnects meanwhile may be
/// listed or not.
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

/// Counts users who are online at a server of ours.
pub(super) async fn online_user_count(link: &ServerLink) -> Result<usize, RedisError> {
    link.client().query(redis::cmd("ZCARD").arg(link.keys().online())).await
}

/// Tells whether a user is online at a server of ours.
pub(super) async fn is_online(link: &ServerLink, user: &UserId) -> Result<bool, RedisError> {
    let command = redis::cmd("ZSCORE").arg(link.keys().online()).arg(user.as_str()).to_owned();
    Ok(link.client().query::<Option<String>>(&command).await?.is_some())
}

/// Counts the connections at all servers of ours.
pub(super) async fn connection_count(link: &ServerLink) -> Result<usize, RedisError> {
    let counts: Vec<usize> = link.client().query(redis::cmd("HVALS").arg(link.keys().connection_counts())).await?;
    Ok(counts.iter().sum())
}
