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
    Arg, AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ErrorKind, FromRedisValue, RedisError, ServerErrorKind,
    TlsMode, Value,
    aio::{ConnectionLike, MultiplexedConnection},
    cluster_async::ClusterConnection,
    sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType},
};

use tokio::sync::{Notify, watch};

use super::{
    refusal::{Meaning, Refusals, Retry, meaning},
    spread::Nodes,
};
use crate::{config, health::LogLimit, logging::network_error};

/// Time limit for a reply of Redis; then the connection is replaced. Default of [`LinkOptions`](super::LinkOptions).
pub(super) const REPLY_TIMEOUT: Duration = Duration::from_secs(3);

/// How long making a connection may take.
pub(super) const CONNECT_PATIENCE: Duration = Duration::from_secs(2);

/// After an attempt that failed nobody tries again for this long: all who ask are told the same.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// The same where Redis has refused the connection, which takes a person to change.
const REFUSED_RETRY_PAUSE: Duration = Duration::from_secs(1);

/// A line that is made anew again and again is logged once per interval, and so is the end of that and of a refusal.
static MADE_ANEW: LogLimit = LogLimit::new();

/// What is said of a script that the Redis does not know.
const NO_SCRIPT: &str = "NOSCRIPT";

/// Why a request was not answered.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    /// The Redis cannot be reached, was lost before it answered, or takes nothing for now (it is busy, a replica, a primary
    /// without replicas, a Cluster that is being put in order): what was asked may have been done.
    #[error("Redis cannot be reached, or takes nothing for now: {0}")]
    Lost(Arc<str>),
    /// It has no memory for more.
    #[error("Redis has no room: {0}")]
    Full(Arc<str>),
    /// It refuses until a person changes something: a password, permissions, an address. Says nothing about the data.
    #[error("Redis refuses: {0}")]
    Refused(Arc<str>),
    /// What is stored is not what was written.
    #[error("what is stored in Redis is damaged: {0}")]
    Damaged(Arc<str>),
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

/// KEYS: 1 that of the command; ARGV: 1 the command, what comes behind its key.
///
/// A script whose first write takes no room may then do others although there is none.
static THOUGH_FULL: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "redis.call('PERSIST', KEYS[1])
        return redis.call(ARGV[1], KEYS[1], unpack(ARGV, 2))",
    )
});

#[derive(Clone)]
enum Line {
    One(MultiplexedConnection),
    Spread(ClusterConnection),
}

enum Target {
    One(Box<Client>),
    Cluster(Box<Nodes>),
    Sentinel(Box<tokio::sync::Mutex<SentinelClient>>),
}

#[derive(Default)]
struct State {
    line: Option<(u64, Line)>,
    /// Counts the lines there were.
    made: u64,
    /// The last line has answered, and no attempt to make another has failed since. The next attempt need not wait then, and
    /// says what is wrong now.
    has_worked: bool,
    failed: Option<(Instant, LinkError)>,
    down_since: Option<Instant>,
    refusals: Refusals,
}

/// The lines to one Redis. Cloning shares them.
#[derive(Clone)]
pub struct Lines {
    target: Arc<Target>,
    reply_timeout: Duration,
    state: Arc<Mutex<State>>,
    /// One at a time connects.
    connecting: Arc<tokio::sync::Mutex<()>>,
    /// Which line it is by now.
    made: Arc<watch::Sender<u64>>,
    /// Notified when a line breaks.
    broke: Arc<Notify>,
}

impl Lines {
    pub(super) fn new(redis: &config::Redis, reply_timeout: Duration) -> Result<Self, LinkError> {
        let wrong = |error: RedisError| {
            LinkError::Refused(format!("its address cannot be used: {}", network_error(&error)).into())
        };
        let target = match redis {
            config::Redis::One(url) => Target::One(Box::new(Client::open(url.as_str()).map_err(wrong)?)),
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
        let made = Arc::new(watch::Sender::new(0));
        let (state, connecting, broke) = Default::default();
        Ok(Self { target: Arc::new(target), reply_timeout, state, connecting, made, broke })
    }

    /// Whether keys are spread over slots, so that a step can touch one user's only.
    pub fn is_spread(&self) -> bool {
        matches!(&*self.target, Target::Cluster(..))
    }

    /// Whether it is always the same Redis that is asked, and not one that others have chosen.
    pub(super) fn is_one(&self) -> bool {
        matches!(&*self.target, Target::One(..))
    }

    /// Which line it is by now: changes whenever the line is made anew, perhaps to another Redis.
    pub(super) fn made(&self) -> watch::Receiver<u64> {
        self.made.subscribe()
    }

    /// Waits until a line breaks, and until another may be made.
    ///
    /// Only a new connection finds out why: a server whose password has changed closes those that it has.
    pub(super) async fn broke(&self) {
        self.broke.notified().await;
        tokio::time::sleep(RETRY_PAUSE).await;
    }

    pub(super) fn down(&self) -> Option<(Arc<str>, Duration)> {
        let state = self.state.lock();
        let Some(since) = state.down_since else { return state.refusals.current(Instant::now()) };
        // A connection that was made anew has not been answered yet: what Redis refused over the one before still counts.
        let refused = || Some(state.refusals.current(Instant::now())?.0);
        let why = match &state.failed {
            Some((_, error)) => error.to_string().into(),
            None => refused().unwrap_or_else(|| "the connection was lost".into()),
        };
        Some((why, since.elapsed()))
    }

    /// A connection that only listens. Not made again by itself: whoever listens has to know that he missed something.
    pub(super) async fn listener(&self) -> Result<redis::aio::PubSub, LinkError> {
        let connecting = async {
            match &*self.target {
                Target::One(client) => client.get_async_pubsub().await,
                Target::Cluster(nodes) => nodes.listener().await,
                Target::Sentinel(client) => client.lock().await.async_get_client().await?.get_async_pubsub().await,
            }
        };
        match tokio::time::timeout(CONNECT_PATIENCE + self.reply_timeout, connecting).await {
            Ok(listener) => listener.map_err(|error| meaning(&error).error),
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
        FromRedisValue::from_redis_value(value).map_err(misread)
    }

    /// Asks every Redis that there is behind this line, for what each knows of itself alone; those that answer.
    ///
    /// # Errors
    /// When none does.
    pub(super) async fn ask_each<T: FromRedisValue>(&self, command: &Cmd) -> Result<Vec<T>, LinkError> {
        let answers = match (self.line().await?, &*self.target) {
            ((_, Line::Spread(mut line)), Target::Cluster(nodes)) => {
                super::spread::ask_each(&mut line, nodes, command).await
            }
            ((number, line), _) => vec![self.send(number, line, command).await?],
        };
        if answers.is_empty() {
            return Err(LinkError::Lost("no node answers".into()));
        }
        let read = |value| FromRedisValue::from_redis_value(value);
        let read: Result<Vec<T>, redis::ParsingError> = answers.into_iter().map(read).collect();
        read.map_err(misread)
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
        let command = |how: &str, which: &str| {
            let mut command = redis::cmd(how);
            command.arg(which).arg(keys.len());
            keys.iter().for_each(|key| _ = command.arg(key.as_ref()));
            arguments.iter().for_each(|argument| _ = command.arg(argument.as_ref()));
            command
        };
        let (number, line) = self.line().await?;
        let value = match self.send(number, line.clone(), &command("EVALSHA", script.hash.as_str())).await {
            // A Redis that was started anew, or has taken over, knows none; nothing was done. With its whole text it goes to
            // the one that the keys lead to, and is known there from then on.
            Err(LinkError::Refused(why)) if &*why == NO_SCRIPT => {
                self.send(number, line, &command("EVAL", script.code)).await?
            }
            sent => sent?,
        };
        FromRedisValue::from_redis_value(value).map_err(misread)
    }

    /// The same with one command on one key, which is done even where there is no room (`maxmemory`). Only for what takes as good as
    /// none and has to go on, so that those who wait can come and make room. Scripts of that kind begin with the same `PERSIST`.
    ///
    /// # Errors
    /// As [`Lines::ask`].
    pub async fn ask_though_full<T: FromRedisValue>(
        &self,
        command: &str,
        key: &str,
        arguments: &[&str],
    ) -> Result<T, LinkError> {
        let arguments: Vec<&str> = std::iter::once(command).chain(arguments.iter().copied()).collect();
        self.run(&THOUGH_FULL, &[key], &arguments).await
    }

    async fn send(&self, number: u64, line: Line, command: &Cmd) -> Result<Value, LinkError> {
        let began = Instant::now();
        let sent = match (line, &*self.target) {
            (Line::Spread(mut line), Target::Cluster(nodes)) => super::spread::send(&mut line, nodes, command).await,
            (Line::Spread(mut line), _) => line.req_packed_command(command).await.and_then(Value::extract_error),
            (Line::One(mut line), _) => line.req_packed_command(command).await.and_then(Value::extract_error),
        };
        let error = match sent {
            Ok(value) => {
                self.answered(number, command, began);
                return Ok(value);
            }
            Err(error) => error,
        };
        if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) {
            return Err(LinkError::Refused(NO_SCRIPT.into()));
        }
        let meaning = meaning(&error);
        if let (true, LinkError::Lost(why) | LinkError::Refused(why)) = (meaning.answered, &meaning.error) {
            // Of a Cluster one node may refuse everything while others answer.
            let is_of_all = meaning.is_of_all && !self.is_spread();
            self.state.lock().refusals.refused(request(command), why.clone(), is_of_all, began, Instant::now());
        }
        // The line to a Cluster finds lost nodes again by itself, and knows those that are there better than whoever
        // begins anew; only one that does not answer is never given up by it. One that is there and takes no writes may
        // be so for long, and is not to be asked anew each time, unless there is somebody who knows a better one.
        let anew = match (&*self.target, meaning.retry) {
            (Target::Cluster(..), _) => error.is_timeout(),
            (Target::One(..), retry) => retry == Retry::Anew,
            (Target::Sentinel(..), retry) => retry != Retry::Same,
        };
        if anew || (!meaning.answered && matches!(meaning.error, LinkError::Lost(_))) {
            self.lost(number, &meaning, anew);
        }
        if anew && !meaning.answered && !error.is_timeout() {
            return Err(self.why_closed().await.unwrap_or(meaning.error));
        }
        Err(meaning.error)
    }

    /// Finds out why Redis has closed a connection. Only a new one is told: after a change of the password, for example.
    async fn why_closed(&self) -> Option<LinkError> {
        self.line().await.err().filter(|why| matches!(why, LinkError::Refused(_)))
    }

    /// A refusal ends when the same request is answered, one of all requests and a lost line when any is.
    ///
    /// Other requests may succeed all the time: a Redis without its replicas refuses writes, and answers reads.
    fn answered(&self, number: u64, command: &Cmd, sent: Instant) {
        let mut state = self.state.lock();
        let accepts = state.refusals.answered(|| request(command), sent);
        let is_current = state.line.as_ref().is_some_and(|(made, _)| *made == number);
        state.has_worked |= is_current;
        let is_back = state.down_since.is_some() && is_current;
        if is_back {
            state.down_since = None;
        }
        drop(state);
        if is_back && let Some(suppressed) = MADE_ANEW.due("back") {
            tracing::info!(suppressed, "Redis is there again");
        }
        if accepts && let Some(suppressed) = MADE_ANEW.due("accepts") {
            tracing::info!(suppressed, "Redis accepts again what it has refused");
        }
    }

    fn lost(&self, number: u64, meaning: &Meaning, anew: bool) {
        let why = &meaning.error;
        let mut state = self.state.lock();
        if state.line.as_ref().is_none_or(|(made, _)| *made != number) {
            return;
        }
        // A Redis that refuses is there: that counts until the same request is answered, over whatever connection.
        if !meaning.answered {
            state.down_since.get_or_insert_with(Instant::now);
        }
        state.failed = Some((Instant::now(), why.clone()));
        if anew {
            state.line = None;
            drop(state);
            if !meaning.answered {
                self.broke.notify_one();
            }
            if let Some(suppressed) = MADE_ANEW.due("line") {
                tracing::warn!(error = %why, suppressed, "the line to Redis is made anew");
            }
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
                (None, Some((at, error))) if at.elapsed() < pause(error) && !state.has_worked => {
                    return Err(error.clone());
                }
                _ => {}
            }
        }
        let connected = match tokio::time::timeout(CONNECT_PATIENCE + self.reply_timeout, self.connect()).await {
            Ok(connected) => connected.map_err(|error| meaning(&error).error),
            Err(_) => Err(LinkError::Lost("connecting took too long".into())),
        };
        let mut state = self.state.lock();
        match connected {
            Ok(line) => {
                state.made += 1;
                state.has_worked = false;
                let number = state.made;
                (state.line, state.failed) = (Some((number, line.clone())), None);
                drop(state);
                self.made.send_replace(number);
                Ok((number, line))
            }
            Err(error) => {
                state.down_since.get_or_insert_with(Instant::now);
                state.has_worked = false;
                state.failed = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }

    async fn connect(&self) -> Result<Line, RedisError> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_PATIENCE))
            .set_response_timeout(Some(self.reply_timeout));
        match &*self.target {
            Target::One(client) => usable(client.get_multiplexed_async_connection_with_config(&config).await?).await,
            Target::Cluster(nodes) => nodes.connect().await.map(Line::Spread),
            Target::Sentinel(client) => {
                usable(client.lock().await.get_async_connection_with_config(&config).await?).await
            }
        }
    }
}

/// Returns a line that is of use, or why it is of none: a Redis that asks for a password says so to the first request alone, and
/// may close the connection under it without its code.
async fn usable(mut line: MultiplexedConnection) -> Result<Line, RedisError> {
    match line.req_packed_command(&redis::cmd("PING")).await.and_then(Value::extract_error) {
        Err(error) if meaning(&error).ends_connection() => Err(error),
        _ => Ok(Line::One(line)),
    }
}

/// How long all are answered with the error of the last attempt.
fn pause(error: &LinkError) -> Duration {
    if matches!(error, LinkError::Refused(_)) { REFUSED_RETRY_PAUSE } else { RETRY_PAUSE }
}

/// What names a request: its command, or the script that it runs.
fn request(command: &Cmd) -> Vec<u8> {
    let mut words = command.args_iter().filter_map(|word| match word {
        Arg::Simple(word) => Some(word),
        _ => None,
    });
    match words.next() {
        Some(b"EVALSHA" | b"EVAL") => words.next().unwrap_or_default().to_vec(),
        word => word.unwrap_or_default().to_vec(),
    }
}

/// The answer has not the form that was expected: it says nothing about the data.
fn misread(error: redis::ParsingError) -> LinkError {
    LinkError::Refused(format!("what it answered cannot be read: {error}").into())
}
