//! Leases of servers, and the failover epoch.
//!
//! Each server renews its lease every 2 s; a lease is valid for 10 s. Each renewal checks whether Redis may have lost
//! data.
//!
//! # The failover epoch
//!
//! A Redis may lose acknowledged writes: it was emptied, came back with less data, or took over from another. The epoch
//! is stored in Redis, and changes whenever that may have happened. The invariant:
//!
//! - Every step on a log compares the epoch that its server has adopted with the stored one, in the script that reads and
//!   writes (`lua/check_epoch.lua`). The step does nothing if it finds no epoch, another epoch, another replication id, or
//!   fewer appends than its server has seen. The server then adopts the stored epoch or begins one, and repeats the step. So
//!   no session reads and no client acknowledges in an epoch that its server has not adopted.
//! - An epoch has a *base sequence*. It is above the time of day in ms, the previous base sequence, and every sequence that
//!   the beginning server has seen. A log enters the epoch with the first step that writes to it. It continues behind the base
//!   sequence, with a gap `lost`. The base sequence is 0 only if no server knows of an earlier epoch.
//! - When a server adopts an epoch, each of its sessions reads its log again. So the logs of connected users enter the epoch,
//!   and their clients get the gap at once.
//! - An epoch lists the earlier epochs of its data (`past_epochs`). A server begins a new epoch if its own is not in that
//!   list, or if it has seen more appends in the same one. Its sessions may have read what Redis lost, while a server that
//!   knew less went on appending. So the epoch that it found becomes a *suspect* one: pending entries of a log from it get new
//!   sequences above the base sequence (`renumber` in `lua/epoch.lua`).
//!
//! A script in a Redis Cluster reads one slot. There the epoch of a log is the replication id of its shard.
//!
//! # The name of a log
//!
//! In each epoch a log has a name: the epoch, and when the log began or entered it (`lua/check_epoch.lua`). The log
//! stores its name and its earlier ones, and every session knows the name. So no session reads or acknowledges in
//! another log than the one it knows:
//!
//! - If sessions know a log that no longer exists, pending entries are renumbered, unless the log began above all that they
//!   have seen (`reconcile` in `lua/epoch.lua`). The same happens where an older copy was restored. Its head is below what a
//!   session has seen, or it has fewer reports than the server has made.
//! - A log without a state is not new if its stream has entries, or on a single Redis if its user is in the user index. It
//!   continues above the time of day in ms.
//! - A stream whose number of entries differs from its state is counted again (`lua/mend.lua`).

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

/// Validity of a lease after its renewal. Then the server counts as dead.
pub(super) const LEASE_TTL: Duration = Duration::from_secs(10);

/// Interval of lease renewals.
const RENEW_INTERVAL: Duration = Duration::from_secs(2);

/// Published on the append channel when an epoch begins, so that other servers adopt it before their next renewal. No
/// user id has this form.
pub(super) const EPOCH_BEGINS: &str = "\0\u{2}";

impl Membership {
    /// Returns the epoch in the form that the steps compare.
    pub fn epoch_id(&self) -> String {
        format!("{}/{}", self.dataset, self.epoch)
    }
}

pub(super) struct Joined {
    pub server_name: String,
    pub membership: Membership,
    pub base_ms: u64,
}

/// Renews a lease, and begins an epoch if Redis may have lost data.
///
/// KEYS: 1 servers, 2 the epoch, 3 this server's table once it has a name.
///
/// ARGV: 1 this server's name, or the part that follows the time in a new name; 2 lease in ms; 3 append channel; of the
/// known epoch: 4 dataset ('' = none), 5 renewals; 6 '1' if this Redis loses nothing in a restart; 7 ms for which an
/// ended lease still counts; 8 shards, used if the dataset begins; of the known epoch: 9 its number ('' = none), 10
/// base sequence, 11 append steps, 12 past epochs; 13 highest known sequence; 14 known servers; 15 suffix of the
/// server's name in the message that announces a new epoch.
///
/// Returns the time, the name, 1 if it is new or its lease had ended, the live servers, and the epoch.
///
/// The base sequence of a new epoch is at least 2 000 000 above all known base sequences and sequences, and above those
/// that logs without a state were given (`lost_gaps_end`, see `lua/epoch.lua`). 32 past epochs are stored. A server
/// that has adopted none of them begins a new epoch.
///
/// A restarted Redis counts as having lost nothing if it syncs every write and was not a replica before.
static RENEW: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "redis.call('PERSIST', KEYS[1])
        local t = redis.call('TIME')
        local now = t[1] * 1000 + math.floor(t[2] / 1000)
        local function int(n) return string.format('%.0f', n) end
        local server = ARGV[1]
        if not string.find(server, '^%d') then server = int(now) .. server end
        local lease = redis.call('ZSCORE', KEYS[1], server)
        local new = lease and tonumber(lease) >= now and 0 or 1
        local ends = int(now + ARGV[2])
        redis.call('ZADD', KEYS[1], ends, server)
        local info = redis.call('INFO', 'replication')
        local replid = string.match(info, 'master_replid:(%x+)')
        local was_replica = not string.find(info, 'master_replid2:0+%s')
        local stored = redis.call('HMGET', KEYS[2], 'dataset', 'replid', 'epoch', 'base_seq', 'durable', 'renewals', 'shards',
          'appends', 'past_epochs', 'suspect_epochs', 'lost_gaps_end')
        local dataset, epoch, base_seq = stored[1], tonumber(stored[3] or 0), tonumber(stored[4] or 0)
        local renewals, appends = tonumber(stored[6] or 0), tonumber(stored[8] or 0)
        local past, suspect = stored[9] or '', stored[10] or ''
        local known = ARGV[9]
        local is_known = dataset == ARGV[4] and stored[3] == known
        local has_gone_back = is_known and (renewals < tonumber(ARGV[5]) or appends < tonumber(ARGV[11]))
        local may_have_lost = dataset and stored[2] ~= replid and (stored[5] ~= '1' or was_replica)
        local function has(list, one) return string.find(',' .. list .. ',', ',' .. one .. ',', 1, true) end
        local is_other = dataset and known ~= '' and not is_known and not has(past, known)
        if not dataset or may_have_lost or has_gone_back or is_other then
          local function add(list, more)
            for one in string.gmatch(more, '%d+') do
              if not has(list, one) then list = list == '' and one or list .. ',' .. one end
            end
            local _, count = string.gsub(list, '%d+', '')
            for _ = 32, count - 1 do list = string.gsub(list, '^%d+,', '') end
            return list
          end
          -- A server that knew less may have appended meanwhile. With another replication id no server did: it would have begun
          -- an epoch.
          if is_other or has_gone_back and not may_have_lost then suspect = add(suspect, stored[3]) end
          past = add(add(past, stored[3] or ''), ARGV[12] .. ',' .. known)
          if dataset or known ~= '' then base_seq = math.max(now, math.max(base_seq, ARGV[10], ARGV[13], stored[11] or 0) + 2000000) end
          epoch = math.max(epoch + 1, (tonumber(known) or 0) + 1, now)
          dataset = dataset or server .. '/' .. int(now)
          appends = 0
          -- Servers that were live in the known epoch have had no time to renew their leases.
          for one in string.gmatch(ARGV[14], '[^,]+') do redis.call('ZADD', KEYS[1], 'GT', ends, one) end
          redis.call('PUBLISH', ARGV[3], server .. ARGV[15])
        end
        local shards = stored[1] and stored[7] or ARGV[4] == '' and ARGV[8] or ''
        redis.call('HSET', KEYS[2], 'dataset', dataset, 'replid', replid, 'epoch', int(epoch), 'base_seq', int(base_seq),
          'durable', ARGV[6], 'renewals', renewals + 1, 'shards', shards, 'appends', int(appends), 'past_epochs', past,
          'suspect_epochs', suspect)
        -- A field without a user, so that the table exists: scripts wait for a missing key while its slot moves.
        if KEYS[3] then redis.call('HSET', KEYS[3], '', 0) end
        redis.call('PUBLISH', ARGV[3], server)
        local live_servers = redis.call('ZRANGEBYSCORE', KEYS[1], int(now - ARGV[7]), '+inf')
        return {now, server, new, live_servers, dataset, epoch, base_seq, renewals + 1, shards, appends, past}",
    )
});

/// Renews the lease of `server`, and adopts the stored epoch or begins one. Returns its name, the membership, and
/// whether the lease was still valid.
pub(super) async fn renew(
    client: &RedisClient,
    keys: &Keys,
    server: &str,
    known: &Membership,
    (seen, grace): (u64, Duration),
) -> Result<(String, Membership, bool), RedisError> {
    type Answer = (u64, String, bool, Vec<String>, String, u64, u64, u64, String, u64, String);
    let durable = if client.is_single_server() && syncs_every_write(client).await? { "1" } else { "0" };
    let shards = if client.is_redis_cluster() && known.dataset.is_empty() {
        replication_ids(client).await?.join(",")
    } else {
        String::new()
    };
    let (lease, grace) = (LEASE_TTL.as_millis().to_string(), grace.as_millis().to_string());
    let (channel, renewals) = (keys.append_channel(), known.renewals.to_string());
    let epoch = if known.dataset.is_empty() { String::new() } else { known.epoch.to_string() };
    let [base_seq, appends, seen] = [known.base_seq, known.appends, seen].map(|number| number.to_string());
    let mut script_keys = vec![keys.servers(), keys.epoch()];
    script_keys.extend(server.starts_with(|first: char| first.is_ascii_digit()).then(|| keys.server_users(server)));
    let arguments: [&str; 15] = [
        server,
        &lease,
        &channel,
        &known.dataset,
        &renewals,
        durable,
        &grace,
        &shards,
        &epoch,
        &base_seq,
        &appends,
        &known.past,
        &seen,
        &known.servers,
        EPOCH_BEGINS,
    ];
    let (now, server, new, servers, dataset, epoch, base_seq, renewals, shards, appends, past): Answer =
        client.run_script(&RENEW, &script_keys, &arguments).await?;
    let (servers, dataset, shards, past) = (servers.join(",").into(), dataset.into(), shards.into(), past.into());
    Ok((server, Membership { servers, as_of_ms: now, dataset, epoch, base_seq, shards, appends, past, renewals }, !new))
}

/// Returns the first 16 characters of each primary's replication id, as `lua/check_epoch.lua` compares them.
async fn replication_ids(client: &RedisClient) -> Result<Vec<String>, RedisError> {
    let mut command = redis::cmd("INFO");
    command.arg("replication");
    let replies: Vec<String> = client.query_each_node(&command).await?;
    let primaries = replies.iter().filter(|text| text.contains("role:master"));
    let replid =
        |text: &String| text.lines().find_map(|line| Some(line.strip_prefix("master_replid:")?.get(..16)?.to_owned()));
    Ok(primaries.filter_map(replid).collect())
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
pub(super) async fn join(client: &RedisClient, keys: &Keys) -> Result<Joined, RedisError> {
    let mut random = [0_u8; 8];
    getrandom::fill(&mut random).map_err(|error| RedisError::Refused(format!("no random number: {error}").into()))?;
    let name = format!("-{:016x}", u64::from_be_bytes(random));
    let (server, membership, _) = renew(client, keys, &name, &Membership::default(), (0, Duration::ZERO)).await?;
    let last: Option<u64> = client.query(redis::cmd("GET").arg(keys.test_clock())).await?;
    let base_ms = last.map_or(0, |last| last.saturating_sub(membership.as_of_ms));
    Ok(Joined { server_name: server, membership, base_ms })
}

/// Renews the lease until the link is dropped.
pub(super) async fn keep_renewing(link: Weak<ServerLink>) {
    let mut renewed = Instant::now();
    let Some((renew_now, client)) = link.upgrade().map(|link| (link.renew_now.clone(), link.client.clone())) else {
        return;
    };
    loop {
        tokio::select! {
            () = tokio::time::sleep(RENEW_INTERVAL) => {}
            () = renew_now.notified() => {}
            () = client.connection_lost() => {}
        }
        let Some(link) = link.upgrade() else { return };
        if renewed.elapsed() > LEASE_TTL / 2 {
            // No other server could renew its lease either. Each gets one lease period to come back.
            link.start_grace_period();
        }
        match link.renew().await {
            Ok(()) => renewed = Instant::now(),
            Err(error) => tracing::debug!(%error, "the lease was not renewed; it is retried"),
        }
    }
}

/// Stores the time of a test clock, for the next server.
pub(super) async fn save_test_clock(client: &RedisClient, keys: &Keys, ahead_ms: u64) -> Result<(), RedisError> {
    if ahead_ms == 0 {
        return Ok(());
    }
    let (s, us): (u64, u64) = client.query(&redis::cmd("TIME")).await?;
    client.query_when_full("SET", &keys.test_clock(), &[&(s * 1000 + us / 1000 + ahead_ms).to_string()]).await
}
