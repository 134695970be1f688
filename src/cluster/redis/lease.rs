//! Which servers live: each has a lease, and renews it well before it ends.
//!
//! With that it looks whether the Redis is still what it was. One that was emptied, that came back with less than it had, or
//! that has taken over from another may have forgotten what it has acknowledged; what it gives out from there on must not be
//! taken for what was forgotten. So there is an *era*, which stands in the Redis and rises whenever that may have happened:
//! in a new one each log goes on beyond everything that may have been given out before (`log/era.lua`).

use std::{
    sync::{Arc, LazyLock, Weak},
    time::{Duration, Instant},
};

use super::{
    Link,
    line::{Lines, LinkError, Script},
    names::Names,
};

/// How long a lease holds: a server that says nothing for that long is not there any more.
pub(super) const LEASE: Duration = Duration::from_secs(10);

/// How often it is renewed.
const BEAT: Duration = Duration::from_secs(2);

/// Which servers live, when that was asked, and what the Redis was then.
#[derive(Clone, Debug, Default)]
pub struct Live {
    /// Their names, with commas between.
    pub nodes: Arc<str>,
    /// Milliseconds of the Redis's clock.
    pub asked_ms: u64,
    /// What tells this Redis from one that was emptied since.
    pub birth: Arc<str>,
    /// Rises whenever it may have forgotten something.
    pub era: u64,
    /// Where logs begin that it does not have: 0, or beyond all that may have been given out before it was emptied.
    pub base: u64,
    /// In a Cluster, the histories of those that were its shards at its birth: what others do not have, they may have forgotten.
    pub shards: Arc<str>,
    /// How often leases were renewed there.
    renewed: u64,
}

pub(super) struct Joined {
    pub node: String,
    pub live: Live,
    pub base_ms: u64,
}

/// KEYS: 1 nodes, 2 the era, 3 this node's table once it has a name; ARGV: 1 a name that begins with the time when it is given out, or one that was; 2 the lease in
/// ms; 3 the channel where its own name is said; 4 the birth that is known ('' = none), 5 how often leases had been renewed
/// then; 6 whether this Redis forgets nothing when it is started anew ('1'), 7 for how many ms after its end a lease still
/// counts; 8 the shards there are, if this is its birth. Gives the time, the name, whether it is new or its lease had ended, who
/// lives, and the era.
///
/// Nothing is known to have been forgotten by one that was started anew if it syncs every write and was not a replica before.
static BEATS: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "redis.call('PERSIST', KEYS[1])
        local t = redis.call('TIME')
        local now = string.format('%.0f', t[1] * 1000 + math.floor(t[2] / 1000))
        local node = ARGV[1]
        if not string.find(node, '^%d') then node = now .. node end
        local lease = redis.call('ZSCORE', KEYS[1], node)
        local new = lease and tonumber(lease) >= tonumber(now) and 0 or 1
        redis.call('ZADD', KEYS[1], string.format('%.0f', now + ARGV[2]), node)
        local info = redis.call('INFO', 'replication')
        local history = string.match(info, 'master_replid:(%x+)')
        local was_replica = not string.find(info, 'master_replid2:0+%s')
        local here = redis.call('HMGET', KEYS[2], 'birth', 'history', 'era', 'base', 'kept', 'renewed', 'shards')
        local birth, era, base = here[1], tonumber(here[3] or 0), here[4] or '0'
        local renewed = tonumber(here[6] or 0)
        local forgot = here[2] ~= history and (here[5] ~= '1' or was_replica) or renewed < tonumber(ARGV[5])
        if not birth or forgot then era = math.max(era + 1, now) end
        -- Logs may be forgotten whole: those that are not there begin beyond what they gave out.
        if birth and forgot then base = string.format('%.0f', math.max(now, base + 2000000)) end
        local shards = birth and here[7] or ARGV[4] == '' and ARGV[8] or ''
        birth = birth or node
        if ARGV[4] ~= '' and ARGV[4] ~= birth then base = now end
        redis.call('HSET', KEYS[2], 'birth', birth, 'history', history, 'era', string.format('%.0f', era), 'base', base, 'kept', ARGV[6],
          'renewed', renewed + 1, 'shards', shards)
        -- With nobody in it: a table that is not there has scripts wait while its slot moves.
        if KEYS[3] then redis.call('HSET', KEYS[3], '', 0) end
        redis.call('PUBLISH', ARGV[3], node)
        local lives = redis.call('ZRANGEBYSCORE', KEYS[1], string.format('%.0f', now - ARGV[7]), '+inf')
        return {tonumber(now), node, new, lives, birth, era, tonumber(base), renewed + 1, shards}",
    )
});

/// Renews the lease of `node`; gives its name, what there is, and whether it was known.
pub(super) async fn beat(
    lines: &Lines,
    names: &Names,
    node: &str,
    known: &Live,
    grace: Duration,
) -> Result<(String, Live, bool), LinkError> {
    type Answer = (u64, String, bool, Vec<String>, String, u64, u64, u64, String);
    let keeps = if lines.is_one() && keeps_everything(lines).await? { "1" } else { "0" };
    let seen =
        if lines.is_spread() && known.birth.is_empty() { histories(lines).await?.join(",") } else { String::new() };
    // One that was emptied counts from the beginning.
    let (lease, grace) = (LEASE.as_millis().to_string(), grace.as_millis().to_string());
    let (channel, renewed) = (names.wake(), known.renewed.to_string());
    let mut keys = vec![names.nodes(), names.era()];
    keys.extend(node.starts_with(|first: char| first.is_ascii_digit()).then(|| names.at(node)));
    let arguments = [node, &lease, &channel, &known.birth, &renewed, keeps, &grace, &seen];
    let (now, node, new, nodes, birth, era, base, renewed, shards): Answer =
        lines.run(&BEATS, &keys, &arguments).await?;
    let nodes = nodes.join(",").into();
    Ok((node, Live { nodes, asked_ms: now, birth: birth.into(), era, base, shards: shards.into(), renewed }, !new))
}

/// What tells the history of each primary from others: as much of it as `log/era.lua` looks at.
async fn histories(lines: &Lines) -> Result<Vec<String>, LinkError> {
    let mut command = redis::cmd("INFO");
    command.arg("replication");
    let said: Vec<String> = lines.ask_each(&command).await?;
    let primaries = said.iter().filter(|text| text.contains("role:master"));
    let history =
        |text: &String| text.lines().find_map(|line| Some(line.strip_prefix("master_replid:")?.get(..16)?.to_owned()));
    Ok(primaries.filter_map(history).collect())
}

/// Whether the Redis syncs every write before it answers. Where it does not say, it does not.
async fn keeps_everything(lines: &Lines) -> Result<bool, LinkError> {
    let mut command = redis::cmd("CONFIG");
    command.arg("GET").arg("append*");
    match lines.ask::<std::collections::HashMap<String, String>>(&command).await {
        Ok(said) => {
            let is = |name: &str, value: &str| said.get(name).is_some_and(|said| said == value);
            Ok(is("appendonly", "yes") && is("appendfsync", "always"))
        }
        Err(LinkError::Refused(_)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Joins under a new name.
pub(super) async fn join(lines: &Lines, names: &Names) -> Result<Joined, LinkError> {
    let mut random = [0_u8; 8];
    getrandom::fill(&mut random).map_err(|error| LinkError::Refused(format!("no random number: {error}")))?;
    let name = format!("-{:016x}", u64::from_be_bytes(random));
    let (node, live, _) = beat(lines, names, &name, &Live::default(), Duration::ZERO).await?;
    let last: Option<u64> = lines.ask(redis::cmd("GET").arg(names.clock())).await?;
    let base_ms = last.map_or(0, |last| last.saturating_sub(live.asked_ms));
    Ok(Joined { node, live, base_ms })
}

/// Renews the lease for as long as the link is there.
pub(super) async fn keep(link: Weak<Link>) {
    let mut renewed = Instant::now();
    loop {
        tokio::time::sleep(BEAT).await;
        let Some(link) = link.upgrade() else { return };
        if renewed.elapsed() > LEASE / 2 {
            // None of the others could renew his either: they have as long as this one to come back.
            link.forgive();
        }
        match link.beat().await {
            Ok(()) => renewed = Instant::now(),
            Err(error) => tracing::debug!(%error, "the lease could not be renewed"),
        }
    }
}

/// Leaves a clock that was ahead to whoever comes next.
pub(super) async fn leave(lines: &Lines, names: &Names, ahead_ms: u64) -> Result<(), LinkError> {
    if ahead_ms == 0 {
        return Ok(());
    }
    let (s, us): (u64, u64) = lines.ask(&redis::cmd("TIME")).await?;
    lines.ask_though_full("SET", &names.clock(), &[&(s * 1000 + us / 1000 + ahead_ms).to_string()]).await
}
