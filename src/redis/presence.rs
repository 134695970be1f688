//! Who is connected to which server.
//!
//! Each server keeps a table of its users; who is in any of them is online. A server that dies leaves its table behind, and
//! whichever other finds that its lease has ended takes it away (`burial`).
//!
//! Stock's own names for the same (`connected_clients`, and how many there are) are written in the same step, so that they
//! never say anything else. Those in `connected_clients` may be stock's or ours, and a user stays among them for a while
//! when he has gone: until his server has written it down, or, where it has died, until another has found that. So it is
//! noted too whom we have put there, and when he went. Who is connected and is not among those is stock's alone.

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

/// Users written down in one step.
const BATCH_MAX: usize = 200;

/// What changes within this time is written down together.
const PAUSE: Duration = Duration::from_millis(5);

/// Who has gone counts as being here for this long: whoever has seen him here may have something on its way.
const STILL_HERE: Duration = Duration::from_secs(15);

/// Of those, so many; beyond that the first who went is forgotten. Another look, after a while, is had at him anyway.
const GONE_MAX: usize = 50_000;

/// Users read of a list in one step.
const PAGE: usize = 1000;

/// After an attempt that failed.
const RETRY_DELAY: Duration = Duration::from_millis(250);

/// How often it is looked whether a server has died.
const LOOK: Duration = Duration::from_secs(1);

/// KEYS: 1 online, 2 nodes, 3 this node's table, 4 the dead, then tables of others; ARGV: 1 this node, 2 what a table's name begins
/// with, 3 how it ends, 4 `connected_clients` ('' where there is no stock), 5 ours, then each user and how many connections. Gives
/// who is connected in stock's eyes since this.
///
/// `PERSIST` changes nothing; see [`RedisClient::query_when_full`](super::RedisClient::query_when_full).
///
/// The others' tables are named among the keys, here and below, because a slot of a Cluster may be moving: then a table that is
/// not there any more looks as if nobody were at that server, unless the Cluster was told that it is needed.
///
/// A server that was taken for dead, and does not know it yet, writes what will have to be taken away unless it comes back.
static HERE: LazyLock<Script> = LazyLock::new(|| {
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

/// KEYS: 1 counts, 2 nodes, 3 the dead; ARGV: 1 this node, 2 how many it has, 3 `connected_clients_count` ('' where there is no
/// stock).
static COUNT: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "redis.call('PERSIST', KEYS[1])
        local more = ARGV[2] - tonumber(redis.call('HGET', KEYS[1], ARGV[1]) or 0)
        redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
        if not redis.call('ZSCORE', KEYS[2], ARGV[1]) then redis.call('ZADD', KEYS[3], 'NX', 0, ARGV[1]) end
        if ARGV[3] ~= '' and more ~= 0 then redis.call('INCRBY', ARGV[3], string.format('%.0f', more)) end",
    )
});

/// What this server has to say of who is here.
#[derive(Debug, Default)]
pub struct Presence {
    here: Mutex<Here>,
    changed: Notify,
    connections: AtomicUsize,
    /// A stock server listens.
    stock: AtomicBool,
}

#[derive(Debug, Default)]
struct Here {
    users: HashMap<UserId, usize>,
    /// Who was here until a moment ago, and since when he is not; and the same in the order in which they went.
    gone: HashMap<UserId, Instant>,
    went: VecDeque<(Instant, UserId)>,
    /// Not written down yet.
    dirty: HashMap<UserId, usize>,
    /// Those of them who may be, by a step whose answer was lost: with it what it said of who has come.
    unsure: HashSet<UserId>,
}

/// What is to be written down of a user.
struct Change {
    user: UserId,
    connections: usize,
    is_unsure: bool,
}

impl Presence {
    /// Begins to write it down.
    pub(super) fn begin(link: &Arc<ServerLink>) -> Arc<Self> {
        let presence = Arc::new(Self::default());
        link.spawn("cluster_presence_writer", presence.clone(), |link, presence| {
            Box::pin(keep_writing(link, presence.clone()))
        });
        link.spawn("cluster_presence_reader", presence.clone(), |link, presence| {
            Box::pin(keep_looking(link, presence.clone()))
        });
        presence
    }

    pub(super) fn here(&self, user: &UserId, connections: usize) {
        {
            let mut here = self.here.lock();
            if connections == 0 {
                here.goes(user);
            } else {
                here.gone.remove(user);
                here.users.insert(user.clone(), connections);
            }
            here.dirty.insert(user.clone(), connections);
        }
        self.changed.notify_one();
    }

    pub(super) fn count(&self, connections: usize) {
        self.connections.store(connections, Ordering::Relaxed);
        self.changed.notify_one();
    }

    pub(super) fn original_is_present(&self) -> bool {
        self.stock.load(Ordering::Relaxed)
    }

    /// Those of these users who are here, or were until a moment ago; and the others.
    pub(super) fn of_here(&self, users: Vec<UserId>) -> (Vec<UserId>, Vec<UserId>) {
        let here = self.here.lock();
        let is_here = |user: &UserId| {
            here.users.contains_key(user) || here.gone.get(user).is_some_and(|since| since.elapsed() < STILL_HERE)
        };
        users.into_iter().partition(is_here)
    }

    /// All of it is to be written down again; `there` is who is written down now.
    fn say_all_again(&self, there: Vec<UserId>) {
        let mut here = self.here.lock();
        let Here { users, dirty, .. } = &mut *here;
        for (user, count) in users.iter() {
            dirty.entry(user.clone()).or_insert(*count);
        }
        for user in there {
            if !users.contains_key(&user) {
                dirty.entry(user).or_insert(0);
            }
        }
        drop(here);
        self.changed.notify_one();
    }

    fn take(&self) -> Vec<Change> {
        let Here { dirty, unsure, .. } = &mut *self.here.lock();
        let batch: Vec<_> = dirty.keys().take(BATCH_MAX).cloned().collect();
        let batch = batch.into_iter().filter_map(|user| dirty.remove_entry(&user));
        batch.map(|(user, connections)| Change { is_unsure: unsure.remove(&user), user, connections }).collect()
    }

    fn give_back(&self, batch: Vec<Change>) {
        let Here { dirty, unsure, .. } = &mut *self.here.lock();
        for Change { user, connections, .. } in batch {
            unsure.insert(user.clone());
            // What has been said since holds.
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
        let stock = original_name(link, Name::Count);
        link.client().run_script(&COUNT, &keys, &[link.node(), &connections, &stock]).await
    }

    /// Finds out whether stock is there, and takes away what servers have left that have died.
    async fn look(&self, link: &ServerLink) -> Result<(), RedisError> {
        if !link.in_grace_period() {
            reaper::reap_dead_servers(link).await?;
        }
        if original_supported(link) {
            self.stock.store(super::original::channel::is_there(link).await?, Ordering::Relaxed);
            super::original::channel::forget(link).await?;
        }
        if link.take_reaped() {
            let asked = link.client().query(redis::cmd("HKEYS").arg(link.keys().server_users(link.node()))).await;
            let there: Vec<String> = asked.inspect_err(|_| link.mark_reaped())?;
            self.say_all_again(users(&there));
        }
        Ok(())
    }
}

impl Here {
    fn goes(&mut self, user: &UserId) {
        self.users.remove(user);
        let now = Instant::now();
        while let Some((since, _)) = self.went.front()
            && (self.went.len() >= GONE_MAX || since.elapsed() >= STILL_HERE)
        {
            let Some((since, user)) = self.went.pop_front() else { return };
            // He may have come and gone once more.
            if self.gone.get(&user) == Some(&since) {
                self.gone.remove(&user);
            }
        }
        self.gone.insert(user.clone(), now);
        self.went.push_back((now, user.clone()));
    }
}

async fn write_batch(link: &ServerLink, batch: &[Change]) -> Result<(), RedisError> {
    let names = link.keys();
    let (begin, end) = names.server_users_affixes();
    let stock = original_name(link, Name::Clients);
    let mut arguments = vec![link.node().to_owned(), begin, end, stock, names.original_users_added()];
    for Change { user, connections, .. } in batch {
        arguments.extend([user.to_string(), connections.to_string()]);
    }
    let mut keys = vec![names.online(), names.servers(), names.server_users(link.node()), names.dead_servers()];
    keys.extend(tables(link));
    let came: Vec<String> = link.client().run_script(&HERE, &keys, &arguments).await?;
    let mut came = users(&came);
    if original_supported(link) {
        // Rather looked for twice.
        let may_have_come = batch.iter().filter(|change| change.is_unsure && change.connections > 0);
        came.extend(may_have_come.map(|change| change.user.clone()));
    }
    if !came.is_empty() {
        link.notify(&Notification::OriginalPresent(came));
    }
    Ok(())
}

async fn keep_writing(link: Weak<ServerLink>, presence: Arc<Presence>) {
    loop {
        presence.changed.notified().await;
        tokio::time::sleep(PAUSE).await;
        let Some(link) = link.upgrade() else { return };
        if let Err(error) = presence.write(&link).await {
            tracing::debug!(%error, "who is here is written down later");
            tokio::time::sleep(RETRY_DELAY).await;
            presence.changed.notify_one();
        }
    }
}

async fn keep_looking(link: Weak<ServerLink>, presence: Arc<Presence>) {
    loop {
        {
            let Some(link) = link.upgrade() else { return };
            if let Err(error) = presence.look(&link).await {
                tracing::debug!(%error, "it was not looked who is there");
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// KEYS: 1 nodes, then tables; ARGV: 1 this node, 2 and 3 as above, then users. Gives for each how many connections he has
/// elsewhere.
static WHERE: LazyLock<Script> = LazyLock::new(|| {
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

/// For each of these users how many connections he has at other servers.
pub(super) async fn elsewhere(link: &ServerLink, users: &[UserId]) -> Result<Vec<usize>, RedisError> {
    let (begin, end) = link.keys().server_users_affixes();
    let mut found = Vec::with_capacity(users.len());
    let mut keys = vec![link.keys().servers()];
    keys.extend(tables(link));
    for some in users.chunks(BATCH_MAX) {
        let mut arguments = vec![link.node(), &begin, &end];
        arguments.extend(some.iter().map(UserId::as_str));
        let counts: Vec<usize> = link.client().run_script(&WHERE, &keys, &arguments).await?;
        found.extend(counts);
    }
    Ok(found)
}

/// Connections at other servers in all, as they say.
pub(super) async fn all_elsewhere(link: &ServerLink) -> Result<usize, RedisError> {
    let counts: HashMap<String, usize> =
        link.client().query(redis::cmd("HGETALL").arg(link.keys().connection_counts())).await?;
    Ok(counts.iter().filter(|(node, _)| *node != link.node()).map(|(_, count)| count).sum())
}

/// Users who are online anywhere, those above `after`.
pub(super) async fn online(link: &ServerLink, after: Option<&UserId>, limit: usize) -> Result<Vec<UserId>, RedisError> {
    let from = after.map_or_else(|| "-".to_owned(), |after| format!("({after}"));
    let mut command = redis::cmd("ZRANGEBYLEX");
    command.arg(link.keys().online()).arg(from).arg("+").arg("LIMIT").arg(0).arg(limit);
    Ok(users(&link.client().query::<Vec<String>>(&command).await?))
}

/// Everybody who is connected to any of ours.
///
/// Read in pages, so that Redis has time for others in between. A user who comes or goes meanwhile may be among them or not.
pub(super) async fn everybody(link: &ServerLink) -> Result<Vec<UserId>, RedisError> {
    let mut all: Vec<UserId> = Vec::new();
    loop {
        let page = online(link, all.last(), PAGE).await?;
        if page.is_empty() {
            return Ok(all);
        }
        all.extend(page);
    }
}

/// How many those are.
pub(super) async fn everybody_count(link: &ServerLink) -> Result<usize, RedisError> {
    link.client().query(redis::cmd("ZCARD").arg(link.keys().online())).await
}

/// Whether this user is among them.
pub(super) async fn has(link: &ServerLink, user: &UserId) -> Result<bool, RedisError> {
    let asked = redis::cmd("ZSCORE").arg(link.keys().online()).arg(user.as_str()).to_owned();
    Ok(link.client().query::<Option<String>>(&asked).await?.is_some())
}

/// Connections to all of ours together.
pub(super) async fn connections(link: &ServerLink) -> Result<usize, RedisError> {
    let counts: Vec<usize> = link.client().query(redis::cmd("HVALS").arg(link.keys().connection_counts())).await?;
    Ok(counts.iter().sum())
}
