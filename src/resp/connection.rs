//! Runs a connection: executes its commands one at a time, and replies in their order.
//!
//! No input is read while commands are executed. So a peer that sends faster fills its socket buffer, and no queue
//! grows.

use std::{
    io,
    net::IpAddr,
    pin::pin,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    sync::watch,
    time::{Instant, sleep, timeout},
};

use super::{
    RespServer,
    command::{self, Command},
    encode,
    parser::{Parser, Violation},
    pipeline::Batch,
    subscriber_queue::Subscriber,
};
use crate::{
    auth::AddressProof,
    health::{LogLimit, info_seldom},
    util::{sleep::sleep_until_optional, tls_record},
};

/// Limits log lines: an unauthenticated peer can violate the protocol on every connection.
static VIOLATED: LogLimit = LogLimit::new();
static TLS_CLIENT: LogLimit = LogLimit::new();

/// Time limit for a command from its first byte to its last. Then the connection closes. Between commands a connection
/// may be idle without limit.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(30);

/// Size limit of a command before authentication, in bytes.
const UNAUTHENTICATED_BYTES_MAX: usize = 4 << 10;

/// Wrong passwords of one connection. One more closes it.
const WRONG_PASSWORDS_MAX: usize = 10;

/// Bytes of one read, approximately.
const READ_BYTES: usize = 16 << 10;

/// Bytes of replies that are written before further buffered commands are executed.
const REPLY_BYTES_LIMIT: usize = 64 << 10;

/// Time limit for shutting down the sending side.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_millis(500);

/// Silence of a rejected peer after which its connection closes.
///
/// Closing a connection with unread input resets it, and the peer loses the last reply. So input is discarded before
/// that, for
/// [`LINGER_TIMEOUT`] at most. While the server stops, the limit is [`SHUTDOWN_TIMEOUT`].
const LINGER_IDLE_TIMEOUT: Duration = Duration::from_secs(2);
const LINGER_TIMEOUT: Duration = Duration::from_secs(30);

/// Bytes that are discarded before the close. A peer that sends more is reset.
const LINGER_BYTES_MAX: usize = 128 << 20;

/// Why a connection ends.
#[derive(Debug)]
pub(super) enum SessionEnd {
    /// The peer has disconnected, or a write made no progress.
    Disconnected,
    /// The peer sent QUIT, or the server stops.
    Quit,
    /// The server closes the connection, after it has sent an error.
    Rejected,
}

pub(super) struct Connection<S> {
    pub(super) server: Arc<RespServer>,
    stream: S,
    pub(super) subscriber: Arc<Subscriber>,
    /// Becomes true when the hub has closed all connections.
    drained: watch::Receiver<bool>,
    parser: Parser,
    buffer: BytesMut,
    pub(super) batch: Batch,
    /// The peer has sent the right password, or none is configured.
    pub(super) authenticated: bool,
    proof: AddressProof,
    pub(super) wrong_passwords: usize,
    /// Name that the peer set with CLIENT SETNAME.
    pub(super) name: Option<Bytes>,
    pub(super) channels: Vec<Bytes>,
    /// Deadline for authentication, or for the rest of a command that has begun.
    deadline: Option<Instant>,
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Connection<S> {
    pub(super) fn new(server: Arc<RespServer>, stream: S, subscriber: Arc<Subscriber>) -> Self {
        let live = server.live.load();
        let authenticated = live.redis_protocol_password.is_none();
        // Time limit for authentication. Then the connection closes.
        let deadline = (!authenticated).then(|| Instant::now() + live.limits.header_timeout);
        drop(live);
        let bytes_max = if authenticated { server.bounds.command_bytes } else { UNAUTHENTICATED_BYTES_MAX };
        Self {
            parser: Parser::new(bytes_max),
            deadline,
            drained: server.hub.drained(),
            server,
            stream,
            subscriber,
            buffer: BytesMut::new(),
            batch: Batch::default(),
            authenticated,
            proof: AddressProof::default(),
            wrong_passwords: 0,
            name: None,
            channels: Vec::new(),
        }
    }

    /// Serves the connection until it ends.
    pub(super) async fn serve(mut self) {
        let (redis_connection, peer) = (self.subscriber.number, self.subscriber.address);
        tracing::debug!(redis_connection, %peer, "connection of the Redis protocol opened");
        let end = self.run_session().await;
        tracing::debug!(redis_connection, %peer, ?end, "connection of the Redis protocol ended");
        if self.subscriber.is_closed() {
            self.server.metrics.redis_protocol_subscribers_disconnected.inc();
            tracing::warn!(peer = %self.subscriber.address, "slow subscriber was disconnected: its queue is above redisProtocol.backlogBytes");
        }
        // Before the socket is closed, so that no more events are queued for it.
        self.unsubscribe_from_all();
        match end {
            SessionEnd::Disconnected => {}
            SessionEnd::Quit => _ = timeout(SHUTDOWN_TIMEOUT, self.stream.shutdown()).await,
            SessionEnd::Rejected => {
                let mut drained = self.drained.clone();
                let stopping = async {
                    _ = drained.wait_for(|drained| *drained).await;
                    sleep(SHUTDOWN_TIMEOUT).await;
                };
                tokio::select! {
                    _ = timeout(LINGER_TIMEOUT, self.linger()) => {}
                    () = stopping => {}
                }
            }
        }
    }

    /// Shuts down the sending side, and discards further input.
    async fn linger(&mut self) {
        _ = timeout(SHUTDOWN_TIMEOUT, self.stream.shutdown()).await;
        let (mut bytes, mut discarded) = (0, vec![0; READ_BYTES]);
        while bytes <= LINGER_BYTES_MAX {
            match timeout(LINGER_IDLE_TIMEOUT, self.stream.read(&mut discarded)).await {
                Ok(Ok(read)) if read > 0 => bytes += read,
                _ => return,
            }
        }
    }

    /// Executes commands until the connection ends.
    async fn run_session(&mut self) -> SessionEnd {
        loop {
            let result = self.execute_buffered().await;
            self.commit().await;
            if let Err(end) = self.write().await {
                return end;
            }
            match result {
                Ok(()) => {}
                Err(end) => return end,
            }
            if let Err(end) = self.wait_for_input().await {
                return end;
            }
        }
    }

    /// Executes all complete commands in the buffer.
    async fn execute_buffered(&mut self) -> Result<(), SessionEnd> {
        loop {
            match self.parser.next(&mut self.buffer) {
                Ok(Some(words)) => {
                    self.deadline = self.deadline.filter(|_| !self.authenticated);
                    self.server.metrics.redis_protocol_commands.inc();
                    let result = match command::parse(words) {
                        Ok(command) => self.execute(command).await,
                        Err(why) => {
                            self.reject(&why);
                            Ok(())
                        }
                    };
                    result?;
                }
                Ok(None) => break,
                Err(violation) => return self.reject_violation(&violation),
            }
            if self.batch.is_full() {
                self.commit().await;
            }
            if self.batch.reply_bytes() > REPLY_BYTES_LIMIT {
                self.commit().await;
                self.write().await?;
            }
        }
        if self.authenticated {
            let is_partial = self.parser.is_in_command(&self.buffer);
            self.deadline = is_partial.then(|| self.deadline.unwrap_or_else(|| Instant::now() + COMMAND_TIMEOUT));
        }
        Ok(())
    }

    fn reject_violation(&mut self, violation: &Violation) -> Result<(), SessionEnd> {
        let peer = self.subscriber.address;
        // The parser leaves a wrong first byte in the buffer.
        if matches!(violation, Violation::NoArray(_)) && tls_record::is_client_hello(&self.buffer) {
            info_seldom!(
                TLS_CLIENT, %peer,
                "a client speaks TLS, but the port of the Redis protocol has none; use redis://, or set redisProtocol.tls"
            );
            self.batch.reply().extend_from_slice(&tls_record::ALERT);
            return Err(SessionEnd::Rejected);
        }
        info_seldom!(VIOLATED, %peer, %violation, "peer violated the Redis protocol; check what connects to this port");
        self.reject(&format!("ERR {violation}"));
        Err(SessionEnd::Rejected)
    }

    /// Waits for input, for events to write, or for the deadline.
    async fn wait_for_input(&mut self) -> Result<(), SessionEnd> {
        // Reserves space for a long argument at once, rather than by doubling.
        self.buffer.reserve(self.parser.bytes_needed(&self.buffer).clamp(READ_BYTES, 1 << 20));
        let deadline = self.deadline;
        loop {
            if !self.subscriber.is_empty() {
                self.write().await?;
            }
            if self.subscriber.is_closed() {
                return Err(SessionEnd::Disconnected);
            }
            tokio::select! {
                read = self.stream.read_buf(&mut self.buffer) => {
                    return if read.is_ok_and(|read| read > 0) { Ok(()) } else { Err(SessionEnd::Disconnected) };
                }
                () = self.subscriber.changed.notified() => continue,
                _ = self.drained.wait_for(|drained| *drained) => {
                    if self.subscriber.is_empty() {
                        return Err(SessionEnd::Quit);
                    }
                    continue;
                }
                () = sleep_until_optional(deadline) => {}
            }
            return self.reject_timeout().await;
        }
    }

    async fn reject_timeout(&mut self) -> Result<(), SessionEnd> {
        self.reject(if self.authenticated {
            "ERR Protocol error: the rest of a command took too long"
        } else {
            "NOAUTH Authentication required."
        });
        self.write().await?;
        Err(SessionEnd::Rejected)
    }

    /// Writes ready replies, then queued events.
    async fn write(&mut self) -> Result<(), SessionEnd> {
        loop {
            let mut out = self.batch.take_replies();
            let has_space_again = self.subscriber.take(&mut out);
            if has_space_again && let Some(portals) = &self.server.portals {
                portals.set_has_space(self.subscriber.number, true);
            }
            if out.is_empty() {
                return Ok(());
            }
            let mut unwritten = &out[..];
            while !unwritten.is_empty() {
                let Self { stream, subscriber, server, .. } = self;
                let write_timeout = server.live.load().limits.write_timeout;
                let written = progress(stream.write(unwritten), subscriber, write_timeout).await?;
                if written == 0 {
                    return Err(SessionEnd::Disconnected);
                }
                unwritten = &unwritten[written..];
            }
            // TLS may have the last bytes in its buffer.
            let Self { stream, subscriber, server, .. } = self;
            let write_timeout = server.live.load().limits.write_timeout;
            progress(stream.flush(), subscriber, write_timeout).await?;
        }
    }

    /// Commits the batch, and makes its replies ready.
    pub(super) async fn commit(&mut self) {
        self.batch.commit(&self.server, &self.subscriber).await;
    }

    /// Replies with an error, and counts it.
    pub(super) fn reject(&mut self, why: &str) {
        self.server.metrics.redis_protocol_commands_rejected.inc();
        encode::error(self.batch.reply(), why);
    }

    /// Marks the connection as authenticated, and lifts the limits of an unauthenticated one.
    pub(super) fn mark_authenticated(&mut self) {
        self.authenticated = true;
        self.count_as_proven();
        self.deadline = None;
        self.parser.set_bytes_max(self.server.bounds.command_bytes);
    }

    /// Counts the address as proven: after the right password, and at each later command.
    fn count_as_proven(&self) {
        if self.server.live.load().redis_protocol_password.is_some() {
            self.server.guess_limiter.record_valid(Some(self.subscriber.address), &self.proof);
        }
    }

    /// Rejects a password without comparing it, if too many wrong ones came from this address.
    pub(super) fn admit_password(&mut self) -> Result<(), SessionEnd> {
        // A connection that has authenticated before is exempt.
        if self.authenticated {
            return Ok(());
        }
        self.server.guess_limiter.admit(Some(self.subscriber.address)).map_err(|wait| {
            let seconds = wait.as_secs().max(1);
            self.reject(&format!("ERR too many wrong passwords came from this address: retry in {seconds} s"));
            SessionEnd::Rejected
        })
    }

    /// Replies to a wrong password after a delay.
    pub(super) async fn wrong_password(&mut self, password: &[u8]) -> Result<(), SessionEnd> {
        self.wrong_passwords += 1;
        self.server.metrics.wrong_secrets.inc();
        let delay = self.server.guess_limiter.record_wrong(Some(self.subscriber.address), password);
        // Earlier commands must not wait for the delay.
        self.commit().await;
        self.write().await?;
        tokio::time::sleep(delay).await;
        self.reject("WRONGPASS invalid username-password pair or user is disabled.");
        if self.wrong_passwords > WRONG_PASSWORDS_MAX { Err(SessionEnd::Rejected) } else { Ok(()) }
    }

    /// Tells whether the connection's state allows a command. Otherwise rejects it.
    pub(super) fn check_allowed(&mut self, command: &Command) -> bool {
        if !self.authenticated && !command.allowed_before_auth() {
            self.reject("NOAUTH Authentication required.");
            return false;
        }
        if self.authenticated {
            self.count_as_proven();
        }
        if !self.channels.is_empty() && !command.allowed_while_subscribed() {
            self.reject("ERR only SUBSCRIBE, UNSUBSCRIBE, PING and QUIT are allowed in this context");
            return false;
        }
        true
    }
}

/// Waits for a write or flush, unless it takes too long or the subscriber exceeds its bound meanwhile.
async fn progress<T>(
    output: impl Future<Output = io::Result<T>>,
    subscriber: &Subscriber,
    time_limit: Duration,
) -> Result<T, SessionEnd> {
    let mut output = pin!(timeout(time_limit, output));
    loop {
        tokio::select! {
            biased;
            done = output.as_mut() => return done.ok().and_then(Result::ok).ok_or(SessionEnd::Disconnected),
            () = subscriber.changed.notified() => if subscriber.is_closed() { return Err(SessionEnd::Disconnected) },
        }
    }
}

impl<S> Connection<S> {
    fn unsubscribe_from_all(&mut self) {
        let unwritten = self.subscriber.close();
        for channel in std::mem::take(&mut self.channels) {
            self.server.unsubscribe(&channel, &self.subscriber, &unwritten);
        }
    }
}

/// Also unsubscribes when the task is dropped.
impl<S> Drop for Connection<S> {
    fn drop(&mut self) {
        self.unsubscribe_from_all();
    }
}

impl RespServer {
    /// Serves a connection until it ends, or until the hub is drained and all commands received by then are answered.
    pub async fn serve<S>(self: Arc<Self>, stream: S, address: IpAddr)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send,
    {
        let number = self.next_number.fetch_add(1, Ordering::Relaxed);
        self.metrics.redis_protocol_connections.inc();
        let subscriber = Subscriber::new(number, address, self.bounds.backlog_bytes);
        // Runs when the task is dropped, too.
        let _guard = ConnectionGuard { server: self.clone(), subscriber: subscriber.clone() };
        Connection::new(self, stream, subscriber).serve().await;
    }
}

/// Uncounts a connection, and removes it from its portals, when dropped.
struct ConnectionGuard {
    server: Arc<RespServer>,
    subscriber: Arc<Subscriber>,
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.server.metrics.redis_protocol_connections.dec();
        if let Some(portals) = &self.server.portals {
            portals.close(self.subscriber.number);
        }
    }
}
