//! A client with one multiplexed connection to Redis that reconnects.
//!
//! The client library matches replies to requests by their order, and drops a reply that no caller waits for. A connection
//! with a socket error or a missed reply deadline is not used again.

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
    refusal::{Meaning, RedisError, Refusals, Retry, meaning},
};
use crate::{config, health::LogLimit, logging::network_error};

/// How long callers get the error of the last failed attempt before another attempt is made.
const RETRY_DELAY: Duration = Duration::from_millis(100);

/// The same where Redis has refused the connection, which needs a change by an operator.
const REFUSED_RETRY_DELAY: Duration = Duration::from_secs(1);

/// Limits reconnects, recoveries and ends of refusals to one log line each per interval.
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
    /// Creates a script from its source. Nothing is sent before its first run.
    #[must_use]
    pub fn new(code: &'static str) -> Self {
        Self { code, hash: LazyLock::new(Box::new(|| redis::Script::new(code).get_hash().to_owned())) }
    }
}

/// KEYS: 1 the command's key; ARGV: 1 the command, then its arguments after the key.
///
/// A script whose first write needs no memory may write although `maxmemory` is reached.
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
    /// The last connection has answered, and no attempt to reconnect has failed since. The next attempt then does not wait,
    /// and reports the current cause.
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

    /// Tells whether keys are spread over slots, so that a step can touch the keys of one user only.
    pub fn is_redis_cluster(&self) -> bool {
        matches!(&*self.target, Target::Cluster(..))
    }

    /// Tells whether the address always leads to the same Redis, which no Sentinel or Cluster chooses.
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

    pub(super) fn unavailable_since(&self) -> Option<(Arc<str>, Duration)> {
        let state = self.state.lock();
        let Some(since) = state.unavailable_since else { return state.refusals.current(Instant::now()) };
        // A new connection has not answered yet. What Redis refused over the one before still counts.
        let refused = || Some(state.refusals.current(Instant::now())?.0);
        let why = match &state.failed {
            Some((_, error)) => error.to_string().into(),
            None => refused().unwrap_or_else(|| "the connection was lost".into()),
        };
        Some((why, since.elapsed()))
    }

    /// Opens a connection for subscriptions. It does not reconnect by itself: the caller must know that messages were missed.
    pub(super) async fn pubsub(&self) -> Result<redis::aio::PubSub, RedisError> {
        let connecting = async {
            match &*self.target {
                Target::Single(client) => client.get_async_pubsub().await,
                Target::Cluster(nodes) => nodes.pubsub().await,
                Target::Sentinel(client) => client.lock().await.async_get_client().await?.get_async_pubsub().await,
            }
        };
        match tokio::time::timeout(CONNECT_TIMEOUT + self.reply_timeout, connecting).await {
            Ok(listener) => listener.map_err(|error| meaning(&error).error),
            Err(_) => Err(RedisError::Unavailable("connecting took too long".into())),
        }
    }

    /// Sends a command and returns the reply.
    ///
    /// # Errors
    /// When there was no reply; see [`RedisError`].
    pub async fn query<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, RedisError> {
        let (number, line) = self.connection().await?;
        let value = self.send(number, line, command).await?;
        FromRedisValue::from_redis_value(value).map_err(unexpected_reply)
    }

    /// Sends a command to every node, about the node itself. Returns the replies of those that answer.
    ///
    /// # Errors
    /// When no node answers.
    pub(super) async fn query_each_node<T: FromRedisValue>(&self, command: &Cmd) -> Result<Vec<T>, RedisError> {
        let answers = match (self.connection().await?, &*self.target) {
            ((_, Connection::Cluster(mut line)), Target::Cluster(nodes)) => {
                super::cluster_connection::query_each_node(&mut line, nodes, command).await
            }
            ((number, line), _) => vec![self.send(number, line, command).await?],
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
        let (number, line) = self.connection().await?;
        let value = match self.send(number, line.clone(), &command("EVALSHA", script.hash.as_str())).await {
            // A Redis that restarted or took over has no scripts; nothing was done. The full source goes to the node that the
            // keys lead to, which then has it.
            Err(RedisError::Refused(why)) if &*why == NO_SCRIPT => {
                self.send(number, line, &command("EVAL", script.code)).await?
            }
            sent => sent?,
        };
        FromRedisValue::from_redis_value(value).map_err(unexpected_reply)
    }

    /// Sends a command on one key that is done even if `maxmemory` is reached.
    ///
    /// Only for writes that need next to no memory and that must go on, so that acknowledgements can free memory. Scripts of
    /// that kind begin with the same `PERSIST`.
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

    async fn send(&self, number: u64, line: Connection, command: &Cmd) -> Result<Value, RedisError> {
        let began = Instant::now();
        let sent = match (line, &*self.target) {
            (Connection::Cluster(mut line), Target::Cluster(nodes)) => {
                super::cluster_connection::send(&mut line, nodes, command).await
            }
            (Connection::Cluster(mut line), _) => line.req_packed_command(command).await.and_then(Value::extract_error),
            (Connection::Single(mut line), _) => line.req_packed_command(command).await.and_then(Value::extract_error),
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
        let meaning = meaning(&error);
        if let (true, RedisError::Unavailable(why) | RedisError::Refused(why)) = (meaning.answered, &meaning.error) {
            // One node of a Redis Cluster may refuse everything while others answer.
            let is_of_all = meaning.is_of_all && !self.is_redis_cluster();
            self.state.lock().refusals.refused(request_name(command), why.clone(), is_of_all, began, Instant::now());
        }
        // The connection to a Redis Cluster finds lost nodes again by itself, and knows the present ones better than a new
        // connection would. It never gives up a node that does not answer, so a timeout reconnects. A single Redis that takes
        // no writes may stay so for long, so it is reconnected only if a Sentinel may know a better one.
        let anew = match (&*self.target, meaning.retry) {
            (Target::Cluster(..), _) => error.is_timeout(),
            (Target::Single(..), retry) => retry == Retry::Anew,
            (Target::Sentinel(..), retry) => retry != Retry::Same,
        };
        if anew || (!meaning.answered && matches!(meaning.error, RedisError::Unavailable(_))) {
            self.mark_lost(number, &meaning, anew);
        }
        if anew && !meaning.answered && !error.is_timeout() {
            return Err(self.why_closed().await.unwrap_or(meaning.error));
        }
        Err(meaning.error)
    }

    /// Finds out why Redis has closed a connection. Only a new connection shows it, for example after a change of the
    /// password.
    async fn why_closed(&self) -> Option<RedisError> {
        self.connection().await.err().filter(|why| matches!(why, RedisError::Refused(_)))
    }

    /// Records a reply. A refusal ends when the same request is answered; a refusal of everything or a lost connection with
    /// any reply.
    ///
    /// Other requests may succeed all the time: a Redis without its replicas refuses writes and answers reads.
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

    fn mark_lost(&self, number: u64, meaning: &Meaning, anew: bool) {
        let why = &meaning.error;
        let mut state = self.state.lock();
        if state.connection.as_ref().is_none_or(|(made, _)| *made != number) {
            return;
        }
        // A Redis that refuses can be reached. The refusal counts until the same request is answered over any connection.
        if !meaning.answered {
            state.unavailable_since.get_or_insert_with(Instant::now);
        }
        state.failed = Some((Instant::now(), why.clone()));
        if anew {
            state.connection = None;
            drop(state);
            if !meaning.answered {
                self.lost.notify_one();
            }
            if let Some(suppressed) = LOG_LIMIT.due("line") {
                tracing::warn!(error = %why, suppressed, "the connection to Redis failed; reconnecting");
            }
        }
    }

    async fn connection(&self) -> Result<(u64, Connection), RedisError> {
        if let Some((number, line)) = &self.state.lock().connection {
            return Ok((*number, line.clone()));
        }
        let _turn = self.connect_lock.lock().await;
        {
            let state = self.state.lock();
            match (&state.connection, &state.failed) {
                (Some((number, line)), _) => return Ok((*number, line.clone())),
                (None, Some((at, error))) if at.elapsed() < retry_delay(error) && !state.has_answered => {
                    return Err(error.clone());
                }
                _ => {}
            }
        }
        let connected = match tokio::time::timeout(CONNECT_TIMEOUT + self.reply_timeout, self.connect()).await {
            Ok(connected) => connected.map_err(|error| meaning(&error).error),
            Err(_) => Err(RedisError::Unavailable("connecting took too long".into())),
        };
        let mut state = self.state.lock();
        match connected {
            Ok(line) => {
                state.connections_made += 1;
                state.has_answered = false;
                let number = state.connections_made;
                (state.connection, state.failed) = (Some((number, line.clone())), None);
                drop(state);
                self.current.send_replace(number);
                Ok((number, line))
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

/// Returns the connection if it can be used. A Redis that requires a password reports that to the first request only, and may
/// close the connection without its code.
async fn check_usable(mut line: MultiplexedConnection) -> Result<Connection, redis::RedisError> {
    match line.req_packed_command(&redis::cmd("PING")).await.and_then(Value::extract_error) {
        Err(error) if meaning(&error).ends_connection() => Err(error),
        _ => Ok(Connection::Single(line)),
    }
}

/// Returns how long callers get the error of the last attempt.
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
