//! Which servers live: each has a lease, and renews it well before it ends.

use std::{
    sync::{Arc, LazyLock, Weak},
    time::Duration,
};

use super::{
    Link,
    line::{Lines, LinkError, Script},
    names::Names,
};

/// How long a lease holds: a server that says nothing for that long is not there any more.
const LEASE: Duration = Duration::from_secs(10);

/// How often it is renewed.
const BEAT: Duration = Duration::from_secs(2);

/// Which servers live, and when that was asked.
#[derive(Clone, Debug, Default)]
pub struct Live {
    /// Their names, with commas between.
    pub nodes: Arc<str>,
    /// Milliseconds of the Redis's clock.
    pub asked_ms: u64,
}

pub(super) struct Joined {
    pub node: String,
    pub live: Live,
    pub base_ms: u64,
}

/// ARGV: 1 a name that begins with the time when it is given out, or one that was; 2 the lease in ms. Gives the time, the
/// name, and who lives.
static BEATS: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local t = redis.call('TIME')
        local now = string.format('%.0f', t[1] * 1000 + math.floor(t[2] / 1000))
        local node = ARGV[1]
        if not string.find(node, '^%d') then node = now .. node end
        local new = redis.call('ZADD', KEYS[1], string.format('%.0f', now + ARGV[2]), node)
        return {tonumber(now), node, new, redis.call('ZRANGEBYSCORE', KEYS[1], now, '+inf')}",
    )
});

async fn beat(lines: &Lines, names: &Names, node: &str) -> Result<(String, Live, bool), LinkError> {
    let lease = LEASE.as_millis().to_string();
    let (now, node, new, nodes): (u64, String, bool, Vec<String>) =
        lines.run(&BEATS, &[names.nodes()], &[node, lease.as_str()]).await?;
    Ok((node, Live { nodes: nodes.join(",").into(), asked_ms: now }, !new))
}

/// Joins under a new name.
pub(super) async fn join(lines: &Lines, names: &Names) -> Result<Joined, LinkError> {
    let mut random = [0_u8; 8];
    getrandom::fill(&mut random).map_err(|error| LinkError::Refused(format!("no random number: {error}")))?;
    let (node, live, _) = beat(lines, names, &format!("-{:016x}", u64::from_be_bytes(random))).await?;
    let last: Option<u64> = lines.ask(redis::cmd("GET").arg(names.clock())).await?;
    let base_ms = last.map_or(0, |last| last.saturating_sub(live.asked_ms));
    Ok(Joined { node, live, base_ms })
}

/// Renews the lease for as long as the link is there.
pub(super) async fn keep(link: Weak<Link>) {
    loop {
        tokio::time::sleep(BEAT).await;
        let Some(link) = link.upgrade() else { return };
        match beat(&link.lines, &link.names, &link.node).await {
            Ok((_, live, known)) => link.set_live(live, known),
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
    lines.ask(redis::cmd("SET").arg(names.clock()).arg(s * 1000 + us / 1000 + ahead_ms)).await
}
