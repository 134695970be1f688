//! Removes the state of servers that left or died.
//!
//! A server whose lease has ended moves from the servers to the dead servers, in one step. One server claims a dead
//! server for 5 s at a time, and deletes its table in batches of 200 users; if it dies, another resumes. A server that
//! was taken for dead and renews its lease finds that the lease had ended, and writes its state again. The removal then
//! stops.
//!
//! `PERSIST` changes nothing; see [`RedisClient::query_when_full`](super::connection::RedisClient::query_when_full).

use std::sync::LazyLock;

use super::{ServerLink, connection::Script, original::channel::original_name, refusal::RedisError};
use crate::{compat::keyspace::Name, logging::excerpt};

/// Users removed in one step.
const BATCH_MAX: usize = 200;

/// Validity of a claim after a step, in ms. Then another server resumes.
const CLAIM_TTL_MS: u64 = 5000;

/// Moves servers whose lease has ended to the dead servers, and claims one of these.
///
/// KEYS: 1 servers, 2 dead servers; ARGV: 1 this server, 2 length of the claim in ms. Returns the claimed server, if
/// any.
///
/// An entry without a name is never removed, so that the key always exists: scripts wait for a missing key while its
/// slot moves.
static CLAIM: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "redis.call('PERSIST', KEYS[1])
        local t = redis.call('TIME')
        local now = t[1] * 1000 + math.floor(t[2] / 1000)
        redis.call('ZADD', KEYS[2], '+inf', '')
        for _, server in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', t[1] * 1000))) do
          if server ~= ARGV[1] then
            redis.call('ZREM', KEYS[1], server)
            redis.call('ZADD', KEYS[2], 0, server)
          end
        end
        local dead = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', string.format('%.0f', now), 'LIMIT', 0, 1)[1]
        if not dead then return false end
        redis.call('ZADD', KEYS[2], string.format('%.0f', now + ARGV[2]), dead)
        return dead",
    )
});

/// Moves this server to the dead servers, and claims it. KEYS and ARGV as above.
static DEREGISTER: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "redis.call('PERSIST', KEYS[1])
        local t = redis.call('TIME')
        redis.call('ZREM', KEYS[1], ARGV[1])
        redis.call('ZADD', KEYS[2], string.format('%.0f', t[1] * 1000 + ARGV[2]), ARGV[1])",
    )
});

/// Removes a batch of a dead server's users, and at last its number of connections.
///
/// KEYS: 1 servers, 2 dead servers, 3 online users, 4 the dead server's table, 5 connection counts, then tables of
/// other servers; ARGV: 1 the dead server, 2 as above, 3 prefix and 4 suffix of a table's name, 5 scan cursor in the
/// table, 6 batch size, 7 `connected_clients` ('' without the original), 8 users that we added there, 9
/// `connected_clients_count`.
///
/// Returns the next scan cursor. Returns nothing when all state is removed, or the server has renewed its lease.
static REMOVE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "redis.call('PERSIST', KEYS[1])
        local t, server = redis.call('TIME'), ARGV[1]
        local now = t[1] * 1000 + math.floor(t[2] / 1000)
        if redis.call('ZSCORE', KEYS[1], server) then
          redis.call('ZREM', KEYS[2], server)
          return false
        end
        if not redis.call('ZSCORE', KEYS[2], server) then return false end
        redis.call('ZADD', KEYS[2], string.format('%.0f', now + ARGV[2]), server)
        local others = redis.call('ZRANGE', KEYS[1], 0, -1)
        local scanned = redis.call('HSCAN', KEYS[4], ARGV[5], 'COUNT', ARGV[6])
        for at = 1, #scanned[2], 2 do
          local user, is_remote = scanned[2][at], false
          for _, other in ipairs(others) do
            is_remote = is_remote or redis.call('HEXISTS', ARGV[3] .. other .. ARGV[4], user) == 1
          end
          if not is_remote and redis.call('ZREM', KEYS[3], user) == 1 and ARGV[7] ~= '' then
            redis.call('SREM', ARGV[7], user)
            redis.call('ZADD', ARGV[8], string.format('%.0f', now), user)
          end
          redis.call('HDEL', KEYS[4], user)
        end
        if redis.call('HLEN', KEYS[4]) > 0 then return scanned[1] end
        local count = redis.call('HGET', KEYS[5], server)
        redis.call('HDEL', KEYS[5], server)
        if count and ARGV[9] ~= '' then redis.call('DECRBY', ARGV[9], count) end
        redis.call('ZREM', KEYS[2], server)
        return false",
    )
});

/// Removes the state of all servers whose lease has ended.
pub(super) async fn reap_dead_servers(link: &ServerLink) -> Result<(), RedisError> {
    let keys = [link.keys().servers(), link.keys().dead_servers()];
    let claim = CLAIM_TTL_MS.to_string();
    while let Some(server) =
        link.client().run_script::<Option<String>>(&CLAIM, &keys, &[link.server_name(), &claim]).await?
    {
        tracing::info!(server = %excerpt(&server), "another server left or died: its users and connections are removed");
        remove_state(link, &server).await?;
    }
    Ok(())
}

/// Removes the state of this server.
pub(super) async fn deregister(link: &ServerLink) -> Result<(), RedisError> {
    let keys = [link.keys().servers(), link.keys().dead_servers()];
    link.client().run_script::<()>(&DEREGISTER, &keys, &[link.server_name(), &CLAIM_TTL_MS.to_string()]).await?;
    remove_state(link, link.server_name()).await
}

/// Removes the portals, users and connections of a dead server.
async fn remove_state(link: &ServerLink, server: &str) -> Result<(), RedisError> {
    super::portals::portal_pool::remove_server(link, server).await?;
    let schema = link.keys();
    let mut keys = vec![
        schema.servers(),
        schema.dead_servers(),
        schema.online(),
        schema.server_users(server),
        schema.connection_counts(),
    ];
    keys.extend(tables(link));
    let (prefix, suffix) = schema.server_users_affixes();
    let (connected, added) = (original_name(link, Name::Clients), schema.original_users_added());
    let connections = original_name(link, Name::Count);
    let (claim, batch, mut cursor) = (CLAIM_TTL_MS.to_string(), BATCH_MAX.to_string(), "0".to_owned());
    loop {
        let arguments = [server, &claim, &prefix, &suffix, &cursor, &batch, &connected, &added, &connections];
        match link.client().run_script::<Option<String>>(&REMOVE, &keys, &arguments).await? {
            Some(next) => cursor = next,
            None => return Ok(()),
        }
    }
}

/// Returns the tables of the live servers.
pub(super) fn tables(link: &ServerLink) -> Vec<String> {
    let servers = link.membership().servers;
    servers.split(',').filter(|server| !server.is_empty()).map(|server| link.keys().server_users(server)).collect()
}
