//! Leases of servers, and the failover epoch.
//!
//! Each server renews its lease well before it ends. With each renewal it checks whether Redis may have lost data.
//!
//! # The failover epoch
//!
//! A Redis that was emptied, came back with less data, or took over from another may have lost acknowledged writes. The epoch
//! is stored in Redis and changes whenever that may have happened. The invariant:
//!
//! - Every step on a log compares the epoch that its server has adopted, in the script that reads and writes
//!   (`lua/check_epoch.lua`). It does nothing if it finds no epoch, another one, another replication id, or fewer appends
//!   than its server has seen. The server then adopts the stored epoch or begins one, and repeats the step. So no session
//!   reads and no client acknowledges across an epoch that its server has not adopted.
//! - An epoch has a *base*: above the time of day in ms, the previous base, and every sequence that the beginning server has
//!   seen. A log enters the epoch with the first step that writes to it. It continues behind the base, with a gap `lost`. The
//!   base is 0 only if no server knows of an earlier epoch.
//! - When a server adopts an epoch, each of its sessions reads its log again. The logs of connected users enter the epoch, so
//!   that their clients learn of the gap at once.
//! - An epoch lists those that its data went through (`past`). A server begins a new one if its own is not in that list, or
//!   if it has seen more of the same one. Its sessions may have read what Redis lost, while a server that knew less went on
//!   appending. So the epoch that it found counts as `suspect`: pending entries of a log from it get new sequences above the
//!   base (`renumber` in `lua/epoch.lua`).
//!
//! A script in a Redis Cluster reads one slot. There the epoch of a log is the replication id of its shard.
//!
//! # The name of a log
//!
//! In each epoch a log has a name: the epoch, and when the log began or entered it (`lua/check_epoch.lua`). The log stores
//! its name and its earlier ones, and every session knows it. So no session reads or acknowledges in another log than the one
//! it knows:
//!
//! - If sessions know a log that no longer exists, pending entries are renumbered, unless the log began above all that they
//!   have seen (`rejoin` in `lua/epoch.lua`). The same happens where an older copy was restored: its head is below what a
//!   session has seen, or it knows of fewer reports than the server has made.
//! - A log without a state is not new if its stream has entries, or on a single Redis if its user is in the user index. It
//!   continues above the time of day.
//! - A stream with another number of entries than its state says is counted again (`lua/mend.lua`).

use std::{
    sync::{LazyLock, Weak},
    time::{Duration, Instant},
};

use super::{
    ServerLink,
    connection::{RedisClient, Script},
    keys::Keys,
    link::Membership,
    refusal::RedisError,
};

/// How long a lease is valid after its renewal. Then the server counts as dead.
pub(super) const LEASE_TTL: Duration = Duration::from_secs(10);

/// How often a lease is renewed.
const RENEW_INTERVAL: Duration = Duration::from_secs(2);

/// Published on the append channel when an epoch begins, so that other servers adopt it before their next renewal. No user id
/// has this form.
pub(super) const EPOCH_BEGINS: &str = "\0\u{2}";

impl Membership {
    /// Returns the epoch in the form that the steps compare.
    pub fn epoch_id(&self) -> String {
        format!("{}/{}", self.birth, self.epoch)
    }
}

pub(super) struct Joined {
    pub server_name: String,
    pub membership: Membership,
    pub base_ms: u64,
}

/// KEYS: 1 servers, 2 the epoch, 3 this server's table once it has a name.
///
/// ARGV: 1 this server's name, or the part that follows the time in a new name; 2 lease in ms; 3 append channel; of the known
/// epoch: 4 birth ('' = none), 5 renewals; 6 '1' if this Redis loses nothing in a restart; 7 ms for which an ended lease
/// still counts; 8 shards, if this is the birth; of the known epoch: 9 its number ('' = none), 10 base, 11 append steps, 12
/// earlier epochs; 13 highest known sequence; 14 known servers; 15 what is published behind the server's name when an epoch
/// begins.
///
/// Returns the time, the name, whether it is new or its lease had ended, the live servers, and the epoch.
///
/// An epoch begins at least 2 000 000 above all known bases and sequences, and above those that logs without a state were
/// given (`lost`, see `lua/epoch.lua`). 32 past epochs are remembered. A server that has adopted none of them begins a new
/// one.
///
/// A restarted Redis counts as having lost nothing if it syncs every write and was not a replica before.
static RENEW: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "redis.call('PERSIST', KEYS[1])
        local t = redis.call('TIME')
        local now = t[1] * 1000 + math.floor(t[2] / 1000)
        local function int(n) return string.format('%.0f', n) end
        local node = ARGV[1]
        if not string.find(node, '^%d') then node = int(now) .. node end
        local lease = redis.call('ZSCORE', KEYS[1], node)
        local new = lease and tonumber(lease) >= now and 0 or 1
        local ends = int(now + ARGV[2])
        redis.call('ZADD', KEYS[1], ends, node)
        local info = redis.call('INFO', 'replication')
        local history = string.match(info, 'master_replid:(%x+)')
        local was_replica = not string.find(info, 'master_replid2:0+%s')
        local here = redis.call('HMGET', KEYS[2], 'birth', 'history', 'era', 'base', 'kept', 'renewed', 'shards', 'steps', 'past', 'suspect', 'lost')
        local birth, era, base = here[1], tonumber(here[3] or 0), tonumber(here[4] or 0)
        local renewed, steps, past, suspect = tonumber(here[6] or 0), tonumber(here[8] or 0), here[9] or '', here[10] or ''
        local known = ARGV[9]
        local is_known = birth == ARGV[4] and here[3] == known
        local has_gone_back = is_known and (renewed < tonumber(ARGV[5]) or steps < tonumber(ARGV[11]))
        local forgot = birth and here[2] ~= history and (here[5] ~= '1' or was_replica)
        local function has(list, one) return string.find(',' .. list .. ',', ',' .. one .. ',', 1, true) end
        local is_other = birth and known ~= '' and not is_known and not has(past, known)
        if not birth or forgot or has_gone_back or is_other then
          local function add(list, more)
            for one in string.gmatch(more, '%d+') do
              if not has(list, one) then list = list == '' and one or list .. ',' .. one end
            end
            local _, count = string.gsub(list, '%d+', '')
            for _ = 32, count - 1 do list = string.gsub(list, '^%d+,', '') end
            return list
          end
          -- A server that knew less may have appended meanwhile. With another replication id none did: it would have begun an
          -- epoch.
          if is_other or has_gone_back and not forgot then suspect = add(suspect, here[3]) end
          past = add(add(past, here[3] or ''), ARGV[12] .. ',' .. known)
          if birth or known ~= '' then base = math.max(now, math.max(base, ARGV[10], ARGV[13], here[11] or 0) + 2000000) end
          era = math.max(era + 1, (tonumber(known) or 0) + 1, now)
          birth = birth or node .. '/' .. int(now)
          steps = 0
          -- Servers that lived a moment ago have not had the time to renew their leases.
          for one in string.gmatch(ARGV[14], '[^,]+') do redis.call('ZADD', KEYS[1], 'GT', ends, one) end
          redis.call('PUBLISH', ARGV[3], node .. ARGV[15])
        end
        local shards = here[1] and here[7] or ARGV[4] == '' and ARGV[8] or ''
        redis.call('HSET', KEYS[2], 'birth', birth, 'history', history, 'era', int(era), 'base', int(base), 'kept', ARGV[6],
          'renewed', renewed + 1, 'shards', shards, 'steps', int(steps), 'past', past, 'suspect', suspect)
        -- A field without a user: scripts wait for a missing table while its slot moves.
        if KEYS[3] then redis.call('HSET', KEYS[3], '', 0) end
        redis.call('PUBLISH', ARGV[3], node)
        local lives = redis.call('ZRANGEBYSCORE', KEYS[1], int(now - ARGV[7]), '+inf')
        return {now, node, new, lives, birth, era, base, renewed + 1, shards, steps, past}",
    )
});

/// Renews the lease of `node`, and adopts the stored epoch or begins one. Returns its name, the membership, and whether the
/// lease was still valid.
pub(super) async fn renew(
    client: &RedisClient,
    keyspace: &Keys,
    node: &str,
    known: &Membership,
    (seen, grace): (u64, Duration),
) -> Result<(String, Membership, bool), RedisError> {
    type Answer = (u64, String, bool, Vec<String>, String, u64, u64, u64, String, u64, String);
    let durable = if client.is_single_server() && syncs_every_write(client).await? { "1" } else { "0" };
    let shards = if client.is_redis_cluster() && known.birth.is_empty() {
        histories(client).await?.join(",")
    } else {
        String::new()
    };
    // A Redis that was emptied counts from the beginning.
    let (lease, grace) = (LEASE_TTL.as_millis().to_string(), grace.as_millis().to_string());
    let (channel, renewed) = (keyspace.append_channel(), known.renewed.to_string());
    let era = if known.birth.is_empty() { String::new() } else { known.epoch.to_string() };
    let [base, steps, seen] = [known.base, known.appends, seen].map(|number| number.to_string());
    let mut keys = vec![keyspace.servers(), keyspace.epoch()];
    keys.extend(node.starts_with(|first: char| first.is_ascii_digit()).then(|| keyspace.server_users(node)));
    let arguments: [&str; 15] = [
        node,
        &lease,
        &channel,
        &known.birth,
        &renewed,
        durable,
        &grace,
        &shards,
        &era,
        &base,
        &steps,
        &known.past,
        &seen,
        &known.servers,
        EPOCH_BEGINS,
    ];
    let (now, node, new, nodes, birth, epoch, base, renewed, shards, steps, past): Answer =
        client.run_script(&RENEW, &keys, &arguments).await?;
    let (nodes, birth, shards, past) = (nodes.join(",").into(), birth.into(), shards.into(), past.into());
    Ok((
        node,
        Membership { servers: nodes, as_of_ms: now, birth, epoch, base, shards, appends: steps, past, renewed },
        !new,
    ))
}

/// Returns the replication id of each primary, as much of it as `lua/check_epoch.lua` compares.
async fn histories(client: &RedisClient) -> Result<Vec<String>, RedisError> {
    let mut command = redis::cmd("INFO");
    command.arg("replication");
    let replies: Vec<String> = client.query_each_node(&command).await?;
    let primaries = replies.iter().filter(|text| text.contains("role:master"));
    let history =
        |text: &String| text.lines().find_map(|line| Some(line.strip_prefix("master_replid:")?.get(..16)?.to_owned()));
    Ok(primaries.filter_map(history).collect())
}

/// Tells whether Redis syncs every write before it replies. False where it does not say.
async fn syncs_every_write(client: &RedisClient) -> Result<bool, RedisError> {
    let mut command = redis::cmd("CONFIG");
    command.arg("GET").arg("append*");
    match client.query::<std::collections::HashMap<String, String>>(&command).await {
        Ok(settings) => {
            let is = |name: &str, value: &str| settings.get(name).is_some_and(|setting| setting == value);
            Ok(is("appendonly", "yes") && is("appendfsync", "always"))
        }
        Err(RedisError::Refused(_)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Joins under a new name.
pub(super) async fn join(client: &RedisClient, keyspace: &Keys) -> Result<Joined, RedisError> {
    let mut random = [0_u8; 8];
    getrandom::fill(&mut random).map_err(|error| RedisError::Refused(format!("no random number: {error}").into()))?;
    let name = format!("-{:016x}", u64::from_be_bytes(random));
    let (node, membership, _) = renew(client, keyspace, &name, &Membership::default(), (0, Duration::ZERO)).await?;
    let last: Option<u64> = client.query(redis::cmd("GET").arg(keyspace.test_clock())).await?;
    let base_ms = last.map_or(0, |last| last.saturating_sub(membership.as_of_ms));
    Ok(Joined { server_name: node, membership, base_ms })
}

/// Renews the lease until the link is dropped.
pub(super) async fn keep_renewing(link: Weak<ServerLink>) {
    let mut renewed = Instant::now();
    let Some((sooner, client)) = link.upgrade().map(|link| (link.renew_now.clone(), link.client.clone())) else {
        return;
    };
    loop {
        tokio::select! {
            () = tokio::time::sleep(RENEW_INTERVAL) => {}
            () = sooner.notified() => {}
            () = client.connection_lost() => {}
        }
        let Some(link) = link.upgrade() else { return };
        if renewed.elapsed() > LEASE_TTL / 2 {
            // No other server could renew its lease either. Each has as long as this one to come back.
            link.start_grace_period();
        }
        match link.renew().await {
            Ok(()) => renewed = Instant::now(),
            Err(error) => tracing::debug!(%error, "the lease was not renewed; it is retried"),
        }
    }
}

/// Stores how far a test clock was ahead, for the next server.
pub(super) async fn leave(client: &RedisClient, keyspace: &Keys, ahead_ms: u64) -> Result<(), RedisError> {
    if ahead_ms == 0 {
        return Ok(());
    }
    let (s, us): (u64, u64) = client.query(&redis::cmd("TIME")).await?;
    client.query_when_full("SET", &keyspace.test_clock(), &[&(s * 1000 + us / 1000 + ahead_ms).to_string()]).await
}
