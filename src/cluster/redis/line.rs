//! The line to a Redis: one connection that many requests share, made again when it is lost.
//!
//! Replies are matched to requests by the client library, which keeps them in order of sending and drops a reply nobody
//! waits for any more. A connection on which anything but a plain answer has happened (an error of the socket, a reply that
//! did not come in time) is not used again.

use std::{
    sync::{Arc, LazyLock},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ErrorKind, FromRedisValue, RedisError, ServerErrorKind,
    TlsMode, Value,
    aio::{ConnectionLike, MultiplexedConnection},
    cluster::ClusterClient,
    cluster_async::ClusterConnection,
    sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType},
};

use crate::config;

/// A reply that has not come by then does not come: the line is made anew.
const REPLY_PATIENCE: Duration = Duration::from_secs(3);

/// How long making a connection may take.
const CONNECT_PATIENCE: Duration = Duration::from_secs(2);

/// After an attempt that failed nobody tries again for this long: all who ask are told the same.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// What is said of a script that the Redis does not know.
const NO_SCRIPT: &str = "NOSCRIPT";

/// Why a request was not answered.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    /// The Redis cannot be reached, or was lost before it answered: what was asked may have been done.
    #[error("Redis cannot be reached: {0}")]
    Lost(Arc<str>),
    /// It has no room for more.
    #[error("Redis has no room: {0}")]
    Full(Arc<str>),
    /// It does not want to.
    #[error("Redis refuses: {0}")]
    Refused(String),
}

/// Lua that the Redis runs as one step.
#[derive(Debug)]
pub struct Script {
    code: &'static str,
    hash: LazyLock<String, Box<dyn FnOnce() -> String + Send>>,
}

impl Script {
    /// Takes the code; nothing is sent before it is run.
    #[must_use]
    pub fn new(code: &'static str) -> Self {
        Self { code, hash: LazyLock::new(Box::new(|| redis::Script::new(code).get_hash().to_owned())) }
    }
}

#[derive(Clone)]
enum Line {
    One(MultiplexedConnection),
    Spread(ClusterConnection),
}

enum Target {
    One(Client),
    Cluster(Box<ClusterClient>, Client),
    Sentinel(Box<tokio::sync::Mutex<SentinelClient>>),
}

#[derive(Default)]
struct State {
    line: Option<(u64, Line)>,
    /// Counts the lines there were.
    made: u64,
    failed: Option<(Instant, LinkError)>,
    down_since: Option<Instant>,
}

/// The lines to one Redis. Cloning shares them.
#[derive(Clone)]
pub struct Lines {
    target: Arc<Target>,
    state: Arc<Mutex<State>>,
    /// One at a time connects.
    connecting: Arc<tokio::sync::Mutex<()>>,
}

impl Lines {
    pub(super) fn new(redis: &config::Redis) -> Result<Self, LinkError> {
        let wrong = |error: RedisError| LinkError::Refused(format!("its address cannot be used: {error}"));
        let target = match redis {
            config::Redis::One(url) => Target::One(Client::open(url.as_str()).map_err(wrong)?),
            config::Redis::Cluster(urls) => {
                let first = urls.first().map(String::as_str).unwrap_or_default();
                let client = ClusterClient::builder(urls.iter().map(String::as_str))
                    .connection_timeout(CONNECT_PATIENCE)
                    .response_timeout(REPLY_PATIENCE)
                    .build()
                    .map_err(wrong)?;
                Target::Cluster(Box::new(client), Client::open(first).map_err(wrong)?)
            }
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
        Ok(Self { target: Arc::new(target), state: Arc::default(), connecting: Arc::default() })
    }

    /// Whether keys are spread over slots, so that a step can touch one user's only.
    pub fn is_spread(&self) -> bool {
        matches!(&*self.target, Target::Cluster(..))
    }

    pub(super) fn down(&self) -> Option<(Arc<str>, Duration)> {
        let state = self.state.lock();
        let since = state.down_since?;
        let why = state
            .failed
            .as_ref()
            .map_or_else(|| "the connection was lost".into(), |(_, error)| error.to_string().into());
        Some((why, since.elapsed()))
    }

    /// A connection that only listens. Not made again by itself: whoever listens has to know that he missed something.
    pub(super) async fn listener(&self) -> Result<redis::aio::PubSub, LinkError> {
        let connecting = async {
            match &*self.target {
                Target::One(client) | Target::Cluster(_, client) => client.get_async_pubsub().await,
                Target::Sentinel(client) => client.lock().await.async_get_client().await?.get_async_pubsub().await,
            }
        };
        match tokio::time::timeout(CONNECT_PATIENCE, connecting).await {
            Ok(listener) => listener.map_err(|error| told(&error)),
            Err(_) => Err(LinkError::Lost("connecting took too long".into())),
        }
    }

    /// Asks, and resolves with the reply.
    ///
    /// # Errors
    /// When none came; see [`LinkError`].
    pub async fn ask<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, LinkError> {
        let (number, line) = self.line().await?;
        let value = self.send(number, line, command).await?;
        FromRedisValue::from_redis_value(value).map_err(|error| LinkError::Refused(error.to_string()))
    }

    /// Runs a script with these keys and arguments, and resolves with what it gives.
    ///
    /// # Errors
    /// As [`Lines::ask`].
    pub async fn run<T: FromRedisValue>(
        &self,
        script: &Script,
        keys: &[impl AsRef<[u8]>],
        arguments: &[impl AsRef<[u8]>],
    ) -> Result<T, LinkError> {
        let mut command = redis::cmd("EVALSHA");
        command.arg(script.hash.as_bytes()).arg(keys.len());
        keys.iter().for_each(|key| _ = command.arg(key.as_ref()));
        arguments.iter().for_each(|argument| _ = command.arg(argument.as_ref()));
        let (number, line) = self.line().await?;
        let value = match self.send(number, line.clone(), &command).await {
            // A Redis that was started anew knows none; nothing was done.
            Err(LinkError::Refused(why)) if why == NO_SCRIPT => {
                let mut load = redis::cmd("SCRIPT");
                load.arg("LOAD").arg(script.code);
                self.send(number, line.clone(), &load).await?;
                self.send(number, line, &command).await?
            }
            sent => sent?,
        };
        FromRedisValue::from_redis_value(value).map_err(|error| LinkError::Refused(error.to_string()))
    }

    async fn send(&self, number: u64, line: Line, command: &Cmd) -> Result<Value, LinkError> {
        let sent = match line {
            Line::One(mut line) => line.req_packed_command(command).await,
            Line::Spread(mut line) => line.req_packed_command(command).await,
        };
        let error = match sent.and_then(Value::extract_error) {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        let why = told(&error);
        if matches!(why, LinkError::Lost(_)) {
            self.lost(number, &why);
        }
        Err(why)
    }

    fn lost(&self, number: u64, why: &LinkError) {
        let mut state = self.state.lock();
        if state.line.as_ref().is_some_and(|(made, _)| *made == number) {
            state.line = None;
            state.down_since = Some(Instant::now());
            tracing::warn!(error = %why, "the line to Redis is made anew");
        }
    }

    async fn line(&self) -> Result<(u64, Line), LinkError> {
        if let Some((number, line)) = &self.state.lock().line {
            return Ok((*number, line.clone()));
        }
        let _turn = self.connecting.lock().await;
        {
            let state = self.state.lock();
            match (&state.line, &state.failed) {
                (Some((number, line)), _) => return Ok((*number, line.clone())),
                (None, Some((at, error))) if at.elapsed() < RETRY_PAUSE => return Err(error.clone()),
                _ => {}
            }
        }
        let connected = match tokio::time::timeout(CONNECT_PATIENCE + REPLY_PATIENCE, self.connect()).await {
            Ok(connected) => connected.map_err(|error| told(&error)),
            Err(_) => Err(LinkError::Lost("connecting took too long".into())),
        };
        let mut state = self.state.lock();
        match connected {
            Ok(line) => {
                if state.down_since.take().is_some() {
                    tracing::info!("Redis is there again");
                }
                state.made += 1;
                let number = state.made;
                (state.line, state.failed) = (Some((number, line.clone())), None);
                Ok((number, line))
            }
            Err(error) => {
                state.down_since.get_or_insert_with(Instant::now);
                state.failed = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }

    async fn connect(&self) -> Result<Line, RedisError> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_PATIENCE))
            .set_response_timeout(Some(REPLY_PATIENCE));
        match &*self.target {
            Target::One(client) => client.get_multiplexed_async_connection_with_config(&config).await.map(Line::One),
            Target::Cluster(client, _) => client.get_async_connection().await.map(Line::Spread),
            Target::Sentinel(client) => {
                client.lock().await.get_async_connection_with_config(&config).await.map(Line::One)
            }
        }
    }
}

fn told(error: &RedisError) -> LinkError {
    let text = error.to_string();
    match error.kind() {
        ErrorKind::Io
        | ErrorKind::Parse
        | ErrorKind::ClusterConnectionNotFound
        | ErrorKind::MasterNameNotFoundBySentinel
        | ErrorKind::Server(
            ServerErrorKind::BusyLoading
            | ServerErrorKind::MasterDown
            | ServerErrorKind::ReadOnly
            | ServerErrorKind::ClusterDown,
        ) => LinkError::Lost(text.into()),
        ErrorKind::Server(ServerErrorKind::NoScript) => LinkError::Refused(NO_SCRIPT.to_owned()),
        _ if error.is_unrecoverable_error() || error.is_timeout() => LinkError::Lost(text.into()),
        _ if error.code() == Some("OOM") || text.contains("OOM command not allowed") => LinkError::Full(text.into()),
        _ => LinkError::Refused(text),
    }
}
