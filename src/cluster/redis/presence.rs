//! Who is connected to which server.
//!
//! Each server keeps a table of its users; who is in any of them is online. A server that dies leaves its table behind, and
//! whichever other finds that its lease has ended takes it away. Stock's own names for the same (`connected_clients`, and
//! how many there are) are kept right beside it.

use std::{
    collections::HashMap,
    sync::{
        Arc, LazyLock, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{
    Link,
    line::{LinkError, Script},
};
use crate::message::UserId;

/// Users written down in one step.
const BATCH_MAX: usize = 200;

/// What changes within this time is written down together.
const PAUSE: Duration = Duration::from_millis(5);

/// After an attempt that failed.
const RETRY_PAUSE: Duration = Duration::from_millis(250);

/// How often it is looked whether a server has died.
const LOOK: Duration = Duration::from_secs(1);

/// KEYS: 1 online, 2 nodes, 3 this node's table, then those of others; ARGV: 1 this node, 2 what a table's name begins with, 3 how
/// it ends, 4 what stock calls `connected_clients` ('' where that is elsewhere), then each user and how many connections. Gives
/// who is here or at another, and who went, of all servers.
///
/// `PERSIST` changes nothing; see [`Lines::ask_though_full`](super::Lines::ask_though_full).
///
/// The others' tables are named among the keys, here and below, because a slot of a Cluster may be moving: then a table that is
/// not there any more looks as if nobody were at that server, unless the Cluster was told that it is needed.
static HERE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "redis.call('PERSIST', KEYS[1])
        local came, went = {}, {}
        for at = 5, #ARGV, 2 do
          local user, count = ARGV[at], tonumber(ARGV[at + 1])
          if count > 0 then
            redis.call('HSET', KEYS[3], user, count)
            redis.call('ZADD', KEYS[1], 0, user)
            came[#came + 1] = user
          else
            redis.call('HDEL', KEYS[3], user)
            local elsewhere = false
            for _, node in ipairs(redis.call('ZRANGE', KEYS[2], 0, -1)) do
              elsewhere = elsewhere or redis.call('HEXISTS', ARGV[2] .. node .. ARGV[3], user) == 1
            end
            if elsewhere then
              came[#came + 1] = user
            else
              redis.call('ZREM', KEYS[1], user)
              went[#went + 1] = user
            end
          end
        end
        if ARGV[4] ~= '' then
          for _, user in ipairs(came) do redis.call('SADD', ARGV[4], user) end
          for _, user in ipairs(went) do redis.call('SREM', ARGV[4], user) end
        end
        return {came, went}",
    )
});

/// KEYS: 1 online, 2 nodes, 3 the dead node's table, then others'; ARGV: 1 the dead node, 2 and 3 as above. Gives who is nowhere else. May be
/// done again.
static BURY: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local t = redis.call('TIME')
        local lease = redis.call('ZSCORE', KEYS[2], ARGV[1])
        if lease and tonumber(lease) > t[1] * 1000 then return {} end
        local went = {}
        for _, user in ipairs(redis.call('HKEYS', KEYS[3])) do
          local elsewhere = false
          for _, node in ipairs(redis.call('ZRANGE', KEYS[2], 0, -1)) do
            elsewhere = elsewhere or node ~= ARGV[1] and redis.call('HEXISTS', ARGV[2] .. node .. ARGV[3], user) == 1
          end
          if not elsewhere then
            redis.call('ZREM', KEYS[1], user)
            went[#went + 1] = user
          end
        end
        return went",
    )
});

/// KEYS: 1 nodes, 2 the dead node's table, 3 counts; ARGV: 1 the dead node. Gives how many connections it had; once.
static FORGET: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "redis.call('DEL', KEYS[2])
        redis.call('ZREM', KEYS[1], ARGV[1])
        local count = redis.call('HGET', KEYS[3], ARGV[1]) or 0
        redis.call('HDEL', KEYS[3], ARGV[1])
        return tonumber(count)",
    )
});

/// KEYS: 1 counts; ARGV: 1 this node, 2 how many it has. Gives by how much that is more.
static COUNT: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "redis.call('PERSIST', KEYS[1])
        local before = tonumber(redis.call('HGET', KEYS[1], ARGV[1]) or 0)
        redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
        return ARGV[2] - before",
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
    /// Not written down yet.
    dirty: HashMap<UserId, usize>,
}

impl Presence {
    /// Begins to write it down.
    pub(super) fn begin(link: &Arc<Link>) -> Arc<Self> {
        let presence = Arc::new(Self::default());
        let (writing, looking) = (presence.clone(), presence.clone());
        link.keep(|link| keep_writing(link, writing));
        link.keep(|link| keep_looking(link, looking));
        presence
    }

    pub(super) fn here(&self, user: &UserId, connections: usize) {
        {
            let mut here = self.here.lock();
            if connections == 0 {
                here.users.remove(user);
            } else {
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

    pub(super) fn is_beside_stock(&self) -> bool {
        self.stock.load(Ordering::Relaxed)
    }

    /// Those of these users who are here.
    pub(super) fn of_here(&self, users: Vec<UserId>) -> Vec<UserId> {
        let here = self.here.lock();
        users.into_iter().filter(|user| here.users.contains_key(user)).collect()
    }

    /// All of it is to be written down again; `there` is who is written down now.
    fn say_all_again(&self, there: Vec<UserId>) {
        let mut here = self.here.lock();
        let Here { users, dirty } = &mut *here;
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

    fn take(&self) -> Vec<(UserId, usize)> {
        let mut here = self.here.lock();
        let batch: Vec<_> = here.dirty.keys().take(BATCH_MAX).cloned().collect();
        batch.into_iter().filter_map(|user| here.dirty.remove_entry(&user)).collect()
    }

    fn give_back(&self, batch: Vec<(UserId, usize)>) {
        let mut here = self.here.lock();
        for (user, count) in batch {
            // What has been said since holds.
            here.dirty.entry(user).or_insert(count);
        }
    }

    async fn write(&self, link: &Link) -> Result<(), LinkError> {
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
        let more: i64 =
            link.lines().run(&COUNT, &[link.names().counts()], &[link.node(), connections.as_str()]).await?;
        add_to_count(link, more).await
    }

    /// Finds out whether stock is there, and takes away what servers have left that have died.
    async fn look(&self, link: &Link) -> Result<(), LinkError> {
        let names = link.names();
        if !link.forgives() {
            let (seconds, _): (u64, u64) = link.lines().ask(&redis::cmd("TIME")).await?;
            let mut command = redis::cmd("ZRANGEBYSCORE");
            command.arg(names.nodes()).arg("-inf").arg(seconds * 1000);
            let dead: Vec<String> = link.lines().ask(&command).await?;
            for node in dead.iter().filter(|node| *node != link.node()) {
                tracing::info!(%node, "another server is gone; whoever was there is not there any more");
                bury(link, node).await?;
            }
        }
        self.stock.store(super::stock::is_there(link).await?, Ordering::Relaxed);
        if link.was_buried() {
            let asked = link.lines().ask(redis::cmd("HKEYS").arg(names.at(link.node()))).await;
            let there: Vec<String> = asked.inspect_err(|_| link.bury())?;
            self.say_all_again(there.iter().filter_map(|user| UserId::new(user).ok()).collect());
        }
        Ok(())
    }

    /// This server leaves: nobody is here any more.
    pub(super) async fn leave(link: &Link) -> Result<(), LinkError> {
        bury_now(link, link.node()).await
    }
}

/// The tables of the servers that live.
fn tables(link: &Link) -> Vec<String> {
    let nodes = link.live().nodes;
    nodes.split(',').filter(|node| !node.is_empty()).map(|node| link.names().at(node)).collect()
}

async fn write_batch(link: &Link, batch: &[(UserId, usize)]) -> Result<(), LinkError> {
    let names = link.names();
    let (begin, end) = names.at_parts();
    let stock = if link.lines().is_spread() { String::new() } else { names.stock("connected_clients") };
    let mut arguments = vec![link.node().to_owned(), begin, end, stock];
    if link.lines().is_spread() {
        // First, so that whoever is still among stock's connected clients and at none of ours is at one of stock's.
        let going: Vec<String> =
            batch.iter().filter(|(_, count)| *count == 0).map(|(user, _)| user.to_string()).collect();
        connected(link, "SREM", &going).await?;
    }
    for (user, count) in batch {
        arguments.extend([user.to_string(), count.to_string()]);
    }
    let mut keys = vec![names.online(), names.nodes(), names.at(link.node())];
    keys.extend(tables(link));
    let (came, _): (Vec<String>, Vec<String>) = link.lines().run(&HERE, &keys, &arguments).await?;
    if link.lines().is_spread() { connected(link, "SADD", &came).await } else { Ok(()) }
}

/// What stock calls `connected_clients`.
async fn connected(link: &Link, command: &str, users: &[String]) -> Result<(), LinkError> {
    for some in users.chunks(BATCH_MAX) {
        let name = link.names().stock("connected_clients");
        let users: Vec<&str> = some.iter().map(String::as_str).collect();
        link.lines().ask_though_full::<()>(command, &name, &users).await?;
    }
    Ok(())
}

async fn add_to_count(link: &Link, more: i64) -> Result<(), LinkError> {
    if more == 0 {
        return Ok(());
    }
    let name = link.names().stock("connected_clients_count");
    link.lines().ask_though_full("INCRBY", &name, &[&more.to_string()]).await
}

async fn bury(link: &Link, node: &str) -> Result<(), LinkError> {
    let names = link.names();
    let (begin, end) = names.at_parts();
    let mut keys = vec![names.online(), names.nodes(), names.at(node)];
    keys.extend(tables(link));
    let went: Vec<String> = link.lines().run(&BURY, &keys, &[node, begin.as_str(), end.as_str()]).await?;
    // Before the table goes: whoever dies in the middle leaves it to the next.
    super::portals::bury(link, node).await?;
    connected(link, "SREM", &went).await?;
    let count: i64 = link.lines().run(&FORGET, &[names.nodes(), names.at(node), names.counts()], &[node]).await?;
    add_to_count(link, -count).await
}

/// The same for a server whose lease has not ended: it gives it back first.
async fn bury_now(link: &Link, node: &str) -> Result<(), LinkError> {
    link.lines().ask_though_full::<()>("ZADD", &link.names().nodes(), &["0", node]).await?;
    bury(link, node).await
}

async fn keep_writing(link: Weak<Link>, presence: Arc<Presence>) {
    loop {
        presence.changed.notified().await;
        tokio::time::sleep(PAUSE).await;
        let Some(link) = link.upgrade() else { return };
        if let Err(error) = presence.write(&link).await {
            tracing::debug!(%error, "who is here is written down later");
            tokio::time::sleep(RETRY_PAUSE).await;
            presence.changed.notify_one();
        }
    }
}

async fn keep_looking(link: Weak<Link>, presence: Arc<Presence>) {
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

/// KEYS: 1 nodes, then tables; ARGV: 1 this node, 2 and 3 as above, then users. Gives for each how many connections he has elsewhere, and
/// whether any of those is at a server that comes before this one.
static WHERE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local t, counts, before = redis.call('TIME'), {}, {}
        local now = string.format('%.0f', t[1] * 1000)
        for at = 4, #ARGV do counts[at - 3], before[at - 3] = 0, 0 end
        for _, node in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], now, '+inf')) do
          if node ~= ARGV[1] then
            for at = 4, #ARGV do
              local count = redis.call('HGET', ARGV[2] .. node .. ARGV[3], ARGV[at])
              if count then
                counts[at - 3] = counts[at - 3] + tonumber(count)
                if node < ARGV[1] then before[at - 3] = 1 end
              end
            end
          end
        end
        return {counts, before}",
    )
});

/// For each of these users how many connections he has at other servers, and whether one of those comes before this one.
pub(super) async fn elsewhere(link: &Link, users: &[UserId]) -> Result<Vec<(usize, bool)>, LinkError> {
    let (begin, end) = link.names().at_parts();
    let mut found = Vec::with_capacity(users.len());
    let mut keys = vec![link.names().nodes()];
    keys.extend(tables(link));
    for some in users.chunks(BATCH_MAX) {
        let mut arguments = vec![link.node(), &begin, &end];
        arguments.extend(some.iter().map(UserId::as_str));
        let (counts, before): (Vec<usize>, Vec<bool>) = link.lines().run(&WHERE, &keys, &arguments).await?;
        found.extend(counts.into_iter().zip(before));
    }
    Ok(found)
}

/// Connections at other servers in all, as they say.
pub(super) async fn all_elsewhere(link: &Link) -> Result<usize, LinkError> {
    let counts: HashMap<String, usize> = link.lines().ask(redis::cmd("HGETALL").arg(link.names().counts())).await?;
    Ok(counts.iter().filter(|(node, _)| *node != link.node()).map(|(_, count)| count).sum())
}

/// Users who are online anywhere, those above `after`.
pub(super) async fn online(link: &Link, after: Option<&UserId>, limit: usize) -> Result<Vec<UserId>, LinkError> {
    let from = after.map_or_else(|| "-".to_owned(), |after| format!("({after}"));
    let mut command = redis::cmd("ZRANGEBYLEX");
    command.arg(link.names().online()).arg(from).arg("+").arg("LIMIT").arg(0).arg(limit);
    let users: Vec<String> = link.lines().ask(&command).await?;
    Ok(users.iter().filter_map(|user| UserId::new(user).ok()).collect())
}
