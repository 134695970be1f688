//! A Redis client with one multiplexed connection that reconnects.
//!
//! The client library matches replies to requests by their order. So a connection with a socket error or a missed reply
//! deadline is not used again. A reply that no caller waits for is dropped.

use std::{
    sync::{Arc, LazyLock},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use redis::{
    Arg, AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ErrorKind, FromRedisValue, ServerErrorKind, TlsMode,
    Value,
    aio::{ConnectionLike, MultiplexedConnection},
    cluster_async::ClusterConnection,
    sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType},
};

use tokio::sync::{Notify, watch};

use super::{
    cluster_connection::{CONNECT_TIMEOUT, Nodes},
    refusal::{Classified, RedisError, Refusals, Retry, classify},
};
use crate::{config, health::LogLimit, logging::network_error};

/// Delay after a failed attempt to connect. Until then callers get its error.
const RETRY_DELAY: Duration = Duration::from_millis(100);

/// Delay after Redis has refused the connection, which an operator must mend.
const REFUSED_RETRY_DELAY: Duration = Duration::from_secs(1);

/// Limits reconnects, recoveries and ends of refusals to one log connection each per interval.
static LOG_LIMIT: LogLimit = LogLimit::new();

/// Error code of Redis for a script that it does not have.
const NO_SCRIPT: &str = "NOSCRIPT";

/// A Lua script that Redis runs as one step.
#[derive(Debug)]
pub struct Script {
    code: &'static str,
    hash: LazyLock<String, Box<dyn FnOnce() -> String + Send>>,
}

impl Script {
    /// Creates a script from its source. Redis gets it with its first run.
    #[must_use]
    pub fn new(code: &'static str) -> Self {
        Self { code, hash: LazyLock::new(Box::new(|| redis::Script::new(code).get_hash().to_owned())) }
    }
}

/// Runs a command although `maxmemory` is reached, as a script may whose first write needs no memory.
///
/// KEYS: 1 the command's key; ARGV: 1 the command, then its arguments after the key.
static WHEN_FULL: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "redis.call('PERSIST', KEYS[1])
        return redis.call(ARGV[1], KEYS[1], unpack(ARGV, 2))",
    )
});

#[derive(Clone)]
enum Connection {
    Single(MultiplexedConnection),
    Cluster(ClusterConnection),
}

enum Target {
    Single(Box<Client>),
    Cluster(Box<Nodes>),
    Sentinel(Box<tokio::sync::Mutex<SentinelClient>>),
}

#[derive(Default)]
struct State {
    connection: Option<(u64, Connection)>,
    /// Counts the connections that were made.
    connections_made: u64,
    /// The last connection has replied, and no attempt to reconnect has failed since. Then the next attempt is made
    /// without a delay, and reports the current cause.
    has_answered: bool,
    failed: Option<(Instant, RedisError)>,
    unavailable_since: Option<Instant>,
    refusals: Refusals,
}

/// A client of one Redis. Clones share its connection.
#[derive(Clone)]
pub struct RedisClient {
    target: Arc<Target>,
    reply_timeout: Duration,
    state: Arc<Mutex<State>>,
    /// Serializes attempts to connect.
    connect_lock: Arc<tokio::sync::Mutex<()>>,
    /// Number of the current connection.
    current: Arc<watch::Sender<u64>>,
    /// Notified when a connection breaks.
    lost: Arc<Notify>,
}

impl RedisClient {
    pub(super) fn new(redis: &config::Redis, reply_timeout: Duration) -> Result<Self, RedisError> {
        let wrong = |error: redis::RedisError| {
            RedisError::Refused(format!("invalid address: {}", network_error(&error)).into())
        };
        let target = match redis {
            config::Redis::One(url) => Target::Single(Box::new(Client::open(url.as_str()).map_err(wrong)?)),
            config::Redis::Cluster(urls) => Target::Cluster(Box::new(Nodes::new(urls, reply_timeout).map_err(wrong)?)),
            config::Redis::Sentinel {
                sentinels,
                name,
                username,
                password,
                sentinel_password,
                database,
                tls,
                sentinel_tls,
            } => {
                let addresses = sentinels.iter().map(|(host, port)| ConnectionAddr::Tcp(host.clone(), *port));
                let kind = SentinelServerType::Master;
                let mut builder =
                    SentinelClientBuilder::new(addresses, name, kind).map_err(wrong)?.set_client_to_redis_db(*database);
                if *tls {
                    builder = builder.set_client_to_redis_tls_mode(TlsMode::Secure);
                }
                if *sentinel_tls {
                    builder = builder.set_client_to_sentinel_tls_mode(TlsMode::Secure);
                }
                if let Some(username) = username {
                    builder = builder.set_client_to_redis_username(username);
                }
                if let Some(password) = password {
                    builder = builder.set_client_to_redis_password(password);
                }
                if let Some(password) = sentinel_password {
                    builder = builder.set_client_to_sentinel_password(password);
                }
                Target::Sentinel(Box::new(tokio::sync::Mutex::new(builder.build().map_err(wrong)?)))
            }
        };
        let current = Arc::new(watch::Sender::new(0));
        let (state, connect_lock, lost) = Default::default();
        Ok(Self { target: Arc::new(target), reply_timeout, state, connect_lock, current, lost })
    }

    /// Tells whether this is a Redis Cluster, where a script can touch the keys of one slot only.
    pub fn is_redis_cluster(&self) -> bool {
        matches!(&*self.target, Target::Cluster(..))
    }

    /// Tells whether the address always leads to the same Redis: neither Sentinels nor a Redis Cluster select it.
    pub(super) fn is_single_server(&self) -> bool {
        matches!(&*self.target, Target::Single(..))
    }

    /// Returns the number of the current connection. It changes with every reconnect, perhaps to another Redis.
    pub(super) fn connection_number(&self) -> watch::Receiver<u64> {
        self.current.subscribe()
    }

    /// Waits until a connection breaks and another attempt is allowed.
    ///
    /// Only a new connection shows the cause: a Redis whose password has changed closes existing ones.
    pub(super) async fn connection_lost(&self) {
        self.lost.notified().await;
        tokio::time::sleep(RETRY_DELAY).await;
    }

    /// Returns why Redis is unavailable, and for how long. `None` while it is available.
    pub(super) fn unavailable_since(&self) -> Option<(Arc<str>, Duration)> {
        let state = self.state.lock();
        let Some(since) = state.unavailable_since else { return state.refusals.current(Instant::now()) };
        // No request was answered over the new connection. A refusal over the connection before still counts.
        let refused = || Some(state.refusals.current(Instant::now())?.0);
        let why = match &state.failed {
            Some((_, error)) => error.to_string().into(),
            None => refused().unwrap_or_else(|| "the connection was lost".into()),
        };
        Some((why, since.elapsed()))
    }

    /// Opens a connection for subscriptions. It does not reconnect, so that the caller knows that messages may be
    /// missing.
    pub(super) async fn pubsub(&self) -> Result<redis::aio::PubSub, RedisError> {
        let connecting = async {
            match &*self.target {
                Target::Single(client) => client.get_async_pubsub().await,
                Target::Cluster(nodes) => nodes.pubsub().await,
                Target::Sentinel(client) => client.lock().await.async_get_client().await?.get_async_pubsub().await,
            }
        };
        match tokio::time::timeout(CONNECT_TIMEOUT + self.reply_timeout, connecting).await {
            Ok(listener) => listener.map_err(|error| classify(&error).error),
            Err(_) => Err(RedisError::Unavailable("connecting took too long".into())),
        }
    }

    /// Sends a command and returns the reply.
    ///
    /// # Errors
    /// When there was no reply; see [`RedisError`].
    pub async fn query<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, RedisError> {
        let (number, connection) = self.connection().await?;
        let value = self.send(number, connection, command).await?;
        FromRedisValue::from_redis_value(value).map_err(unexpected_reply)
    }

    /// Sends a command to every node, and returns the replies of reachable nodes.
    ///
    /// # Errors
    /// When no node answers.
    pub(super) async fn query_each_node<T: FromRedisValue>(&self, command: &Cmd) -> Result<Vec<T>, RedisError> {
        let answers = match (self.connection().await?, &*self.target) {
            ((_, Connection::Cluster(mut connection)), Target::Cluster(nodes)) => {
                super::cluster_connection::query_each_node(&mut connection, nodes, command).await
            }
            ((number, connection), _) => vec![self.send(number, connection, command).await?],
        };
        if answers.is_empty() {
            return Err(RedisError::Unavailable("no node answers".into()));
        }
        let read = |value| FromRedisValue::from_redis_value(value);
        let read: Result<Vec<T>, redis::ParsingError> = answers.into_iter().map(read).collect();
        read.map_err(unexpected_reply)
    }

    /// Runs a script with these keys and arguments, and returns its result.
    ///
    /// # Errors
    /// As [`RedisClient::query`].
    pub async fn run_script<T: FromRedisValue>(
        &self,
        script: &Script,
        keys: &[impl AsRef<[u8]>],
        arguments: &[impl AsRef<[u8]>],
    ) -> Result<T, RedisError> {
        let command = |how: &str, which: &str| {
            let mut command = redis::cmd(how);
            command.arg(which).arg(keys.len());
            keys.iter().for_each(|key| _ = command.arg(key.as_ref()));
            arguments.iter().for_each(|argument| _ = command.arg(argument.as_ref()));
            command
        };
        let (number, connection) = self.connection().await?;
        let value = match self.send(number, connection.clone(), &command("EVALSHA", script.hash.as_str())).await {
            // A Redis that restarted or took over has no scripts, and did nothing. EVAL sends the source to the node of
            // the keys, which then has it.
            Err(RedisError::Refused(why)) if &*why == NO_SCRIPT => {
                self.send(number, connection, &command("EVAL", script.code)).await?
            }
            sent => sent?,
        };
        FromRedisValue::from_redis_value(value).map_err(unexpected_reply)
    }

    /// Sends a command on one key that runs even if `maxmemory` is reached.
    ///
    /// Only for small writes that must not stop, so that acknowledgements can free memory. Scripts for such writes
    /// begin with the same `PERSIST`.
    ///
    /// # Errors
    /// As [`RedisClient::query`].
    pub async fn query_when_full<T: FromRedisValue>(
        &self,
        command: &str,
        key: &str,
        arguments: &[&str],
    ) -> Result<T, RedisError> {
        let arguments: Vec<&str> = std::iter::once(command).chain(arguments.iter().copied()).collect();
        self.run_script(&WHEN_FULL, &[key], &arguments).await
    }

    async fn send(&self, number: u64, connection: Connection, command: &Cmd) -> Result<Value, RedisError> {
        let began = Instant::now();
        let sent = match (connection, &*self.target) {
            (Connection::Cluster(mut connection), Target::Cluster(nodes)) => {
                super::cluster_connection::send(&mut connection, nodes, command).await
            }
            (Connection::Cluster(mut connection), _) => {
                connection.req_packed_command(command).await.and_then(Value::extract_error)
            }
            (Connection::Single(mut connection), _) => {
                connection.req_packed_command(command).await.and_then(Value::extract_error)
            }
        };
        let error = match sent {
            Ok(value) => {
                self.answered(number, command, began);
                return Ok(value);
            }
            Err(error) => error,
        };
        if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) {
            return Err(RedisError::Refused(NO_SCRIPT.into()));
        }
        let classified = classify(&error);
        if let (true, RedisError::Unavailable(why) | RedisError::Refused(why)) =
            (classified.answered, &classified.error)
        {
            // One node of a Redis Cluster may refuse all requests while others answer.
            let refuses_all = classified.refuses_all && !self.is_redis_cluster();
            self.state.lock().refusals.refused(request_name(command), why.clone(), refuses_all, began, Instant::now());
        }
        // The connection to a Redis Cluster reconnects to lost nodes by itself, and knows the current nodes better than
        // a new connection would. It never drops a node that does not answer, so a timeout reconnects. A single Redis
        // may accept no writes for long, so only a Sentinel, which may name another primary, is a reason to reconnect.
        let reconnects = match (&*self.target, classified.retry) {
            (Target::Cluster(..), _) => error.is_timeout(),
            (Target::Single(..), retry) => retry == Retry::Reconnect,
            (Target::Sentinel(..), retry) => retry != Retry::Same,
        };
        if reconnects || (!classified.answered && matches!(classified.error, RedisError::Unavailable(_))) {
            self.mark_lost(number, &classified, reconnects);
        }
        if reconnects && !classified.answered && !error.is_timeout() {
            return Err(self.why_closed().await.unwrap_or(classified.error));
        }
        Err(classified.error)
    }

    /// Returns the reason for which Redis closed a connection. Only a new connection shows it, for example a changed
    /// password.
    async fn why_closed(&self) -> Option<RedisError> {
        self.connection().await.err().filter(|why| matches!(why, RedisError::Refused(_)))
    }

    /// Records a reply. It ends a refusal of the same request, a refusal of all requests, and an outage.
    ///
    /// A refusal of one request ends only with that request: a Redis without its replicas refuses writes and answers
    /// reads.
    fn answered(&self, number: u64, command: &Cmd, sent: Instant) {
        let mut state = self.state.lock();
        let accepts = state.refusals.answered(|| request_name(command), sent);
        let is_current = state.connection.as_ref().is_some_and(|(made, _)| *made == number);
        state.has_answered |= is_current;
        let is_back = state.unavailable_since.is_some() && is_current;
        if is_back {
            state.unavailable_since = None;
        }
        drop(state);
        if is_back && let Some(suppressed) = LOG_LIMIT.due("back") {
            tracing::info!(suppressed, "Redis is available again");
        }
        if accepts && let Some(suppressed) = LOG_LIMIT.due("accepts") {
            tracing::info!(suppressed, "Redis accepts again the requests that it refused");
        }
    }

    /// Records a failed connection, and drops it if `reconnects`.
    fn mark_lost(&self, number: u64, classified: &Classified, reconnects: bool) {
        let why = &classified.error;
        let mut state = self.state.lock();
        if state.connection.as_ref().is_none_or(|(made, _)| *made != number) {
            return;
        }
        // A Redis that refuses is reachable. Its refusal counts until the same request is answered over any connection.
        if !classified.answered {
            state.unavailable_since.get_or_insert_with(Instant::now);
        }
        state.failed = Some((Instant::now(), why.clone()));
        if reconnects {
            state.connection = None;
            drop(state);
            if !classified.answered {
                self.lost.notify_one();
            }
            if let Some(suppressed) = LOG_LIMIT.due("connection") {
                tracing::warn!(error = %why, suppressed, "the connection to Redis failed; reconnecting");
            }
        }
    }

    /// Returns the current connection and its number, or makes one.
    async fn connection(&self) -> Result<(u64, Connection), RedisError> {
        if let Some((number, connection)) = &self.state.lock().connection {
            return Ok((*number, connection.clone()));
        }
        let _guard = self.connect_lock.lock().await;
        {
            let state = self.state.lock();
            match (&state.connection, &state.failed) {
                (Some((number, connection)), _) => return Ok((*number, connection.clone())),
                (None, Some((at, error))) if at.elapsed() < retry_delay(error) && !state.has_answered => {
                    return Err(error.clone());
                }
                _ => {}
            }
        }
        let connected = match tokio::time::timeout(CONNECT_TIMEOUT + self.reply_timeout, self.connect()).await {
            Ok(connected) => connected.map_err(|error| classify(&error).error),
            Err(_) => Err(RedisError::Unavailable("connecting took too long".into())),
        };
        let mut state = self.state.lock();
        match connected {
            Ok(connection) => {
                state.connections_made += 1;
                state.has_answered = false;
                let number = state.connections_made;
                (state.connection, state.failed) = (Some((number, connection.clone())), None);
                drop(state);
                self.current.send_replace(number);
                Ok((number, connection))
            }
            Err(error) => {
                state.unavailable_since.get_or_insert_with(Instant::now);
                state.has_answered = false;
                state.failed = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }

    async fn connect(&self) -> Result<Connection, redis::RedisError> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(self.reply_timeout));
        match &*self.target {
            Target::Single(client) => {
                check_usable(client.get_multiplexed_async_connection_with_config(&config).await?).await
            }
            Target::Cluster(nodes) => nodes.connect().await.map(Connection::Cluster),
            Target::Sentinel(client) => {
                check_usable(client.lock().await.get_async_connection_with_config(&config).await?).await
            }
        }
    }
}

/// Returns the connection if requests can use it. A Redis that requires a password reports that to the first request
/// only, and may close the connection without an error code.
async fn check_usable(mut connection: MultiplexedConnection) -> Result<Connection, redis::RedisError> {
    match connection.req_packed_command(&redis::cmd("PING")).await.and_then(Value::extract_error) {
        Err(error) if classify(&error).ends_connection() => Err(error),
        _ => Ok(Connection::Single(connection)),
    }
}

/// Returns the delay after a failed attempt to connect.
fn retry_delay(error: &RedisError) -> Duration {
    if matches!(error, RedisError::Refused(_)) { REFUSED_RETRY_DELAY } else { RETRY_DELAY }
}

/// Returns the name of a request: its command, or the hash of its script.
fn request_name(command: &Cmd) -> Vec<u8> {
    let mut words = command.args_iter().filter_map(|word| match word {
        Arg::Simple(word) => Some(word),
        _ => None,
    });
    match words.next() {
        Some(b"EVALSHA" | b"EVAL") => words.next().unwrap_or_default().to_vec(),
        word => word.unwrap_or_default().to_vec(),
    }
}

/// Reports a reply of an unexpected type. That does not mean damaged data.
fn unexpected_reply(error: redis::ParsingError) -> RedisError {
    RedisError::Refused(format!("unexpected reply: {error}").into())
}
