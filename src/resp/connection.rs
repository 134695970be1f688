//! The life of a connection: it says commands, one behind the other, and is answered in that order.
//!
//! While what it has said is done nothing more is read from it: a peer that says more than can be done waits in its socket,
//! and no queue grows.

use std::{
    net::IpAddr,
    pin::pin,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    sync::watch,
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{
    Wire,
    command::{self, Command},
    encode,
    parser::{Parser, Violation},
    pipeline::Batch,
    subscriber_queue::Subscriber,
};
use crate::{
    auth::Proof,
    health::{LogLimit, info_seldom},
};

/// A stranger can do so as often as it connects.
static VIOLATED: LogLimit = LogLimit::new();

/// How long the rest of a command that was begun may take to come. Between commands a connection may be idle for as long
/// as it likes.
const COMMAND_TIME_MAX: Duration = Duration::from_secs(30);

/// Bytes of a command before the password was shown.
const STRANGER_BYTES_MAX: usize = 4 << 10;

/// Wrong passwords; one more closes the connection.
const WRONG_PASSWORDS_MAX: usize = 10;

/// Bytes read in one go, about.
const READ_BYTES: usize = 16 << 10;

/// Answers are written when there are so many bytes of them, also while more commands are at hand.
const ANSWERS_BYTES: usize = 64 << 10;

/// How long the peer's side may take to be told that the connection ends.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_millis(500);

/// A connection that is closed with unread bytes is reset, and its peer loses the last reply. So what a refused peer still
/// sends is discarded until it is silent for this long, or for [`LINGER_TIMEOUT`], or while the server stops, for
/// [`SHUTDOWN_TIMEOUT`].
const LINGER_IDLE_TIMEOUT: Duration = Duration::from_secs(2);
const LINGER_TIMEOUT: Duration = Duration::from_secs(30);

/// Bytes discarded while closing; a peer that sends more is reset.
const LINGER_BYTES_MAX: usize = 128 << 20;

/// Why a connection ends.
#[derive(Debug)]
pub(super) enum End {
    /// The peer is gone, or takes nothing.
    Gone,
    /// It has said that it goes, and was answered.
    Quit,
    /// We close it, once it has read why.
    Refused,
}

pub(super) struct Connection<S> {
    pub(super) wire: Arc<Wire>,
    stream: S,
    pub(super) subscriber: Arc<Subscriber>,
    /// Nothing more will happen.
    over: watch::Receiver<bool>,
    parser: Parser,
    buffer: BytesMut,
    pub(super) batch: Batch,
    /// Has shown the password, or need not.
    pub(super) authenticated: bool,
    proof: Proof,
    pub(super) wrong_passwords: usize,
    /// What it calls itself.
    pub(super) name: Option<Bytes>,
    pub(super) channels: Vec<Bytes>,
    /// By then the password has to be shown, or the command that was begun has to be whole.
    speak_by: Option<Instant>,
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Connection<S> {
    pub(super) fn new(wire: Arc<Wire>, stream: S, subscriber: Arc<Subscriber>) -> Self {
        let authenticated = wire.password.is_none();
        let bytes_max = if authenticated { wire.bounds.command_bytes } else { STRANGER_BYTES_MAX };
        Self {
            parser: Parser::new(bytes_max),
            speak_by: (!authenticated).then(|| Instant::now() + wire.bounds.authenticate_within),
            over: wire.hub.drained(),
            wire,
            stream,
            subscriber,
            buffer: BytesMut::new(),
            batch: Batch::default(),
            authenticated,
            proof: Proof::default(),
            wrong_passwords: 0,
            name: None,
            channels: Vec::new(),
        }
    }

    pub(super) async fn serve(mut self) {
        let end = self.talk().await;
        if self.subscriber.is_cut() {
            self.wire.metrics.redis_protocol_subscribers_cut.inc();
            tracing::warn!(peer = %self.subscriber.address, "a subscriber took too little and was cut (redisProtocol.backlogBytes)");
        }
        // Before the socket: nothing more is to be left for a connection that is closing.
        self.unsubscribe_from_all();
        match end {
            End::Gone => {}
            End::Quit => _ = timeout(SHUTDOWN_TIMEOUT, self.stream.shutdown()).await,
            End::Refused => {
                let mut over = self.over.clone();
                let stopping = async {
                    _ = over.wait_for(|over| *over).await;
                    sleep(SHUTDOWN_TIMEOUT).await;
                };
                tokio::select! {
                    _ = timeout(LINGER_TIMEOUT, self.linger()) => {}
                    () = stopping => {}
                }
            }
        }
    }

    /// Ends the connection, and discards what the peer still sends.
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

    /// Until there is nothing more to say.
    async fn talk(&mut self) -> End {
        loop {
            let heard = self.hear_all().await;
            self.settle().await;
            if let Err(end) = self.write().await {
                return end;
            }
            match heard {
                Ok(()) => {}
                Err(end) => return end,
            }
            if let Err(end) = self.listen().await {
                return end;
            }
        }
    }

    /// Does what was said, as far as it has come.
    async fn hear_all(&mut self) -> Result<(), End> {
        loop {
            match self.parser.next(&mut self.buffer) {
                Ok(Some(words)) => {
                    self.speak_by = self.speak_by.filter(|_| !self.authenticated);
                    self.wire.metrics.redis_protocol_commands.inc();
                    let heard = match command::read(words) {
                        Ok(command) => self.hear(command).await,
                        Err(why) => {
                            self.refuse(&why);
                            Ok(())
                        }
                    };
                    heard?;
                }
                Ok(None) => break,
                Err(violation) => return self.violated(&violation),
            }
            if self.batch.is_full() {
                self.settle().await;
            }
            if self.batch.answer_bytes() > ANSWERS_BYTES {
                self.settle().await;
                self.write().await?;
            }
        }
        if self.authenticated {
            let middle = self.parser.in_the_middle(&self.buffer);
            self.speak_by = middle.then(|| self.speak_by.unwrap_or_else(|| Instant::now() + COMMAND_TIME_MAX));
        }
        Ok(())
    }

    fn violated(&mut self, violation: &Violation) -> Result<(), End> {
        info_seldom!(VIOLATED, peer = %self.subscriber.address, %violation, "a peer does not speak the Redis protocol");
        self.refuse(&format!("ERR {violation}"));
        Err(End::Refused)
    }

    /// Waits for what has to be done next: something was said, or there is something to tell.
    async fn listen(&mut self) -> Result<(), End> {
        // Longer words are given their room at once, and not by doubling.
        self.buffer.reserve(self.parser.wants(&self.buffer).clamp(READ_BYTES, 1 << 20));
        let speak_by = self.speak_by;
        loop {
            if !self.subscriber.is_empty() {
                self.write().await?;
            }
            if self.subscriber.is_cut() {
                return Err(End::Gone);
            }
            tokio::select! {
                read = self.stream.read_buf(&mut self.buffer) => {
                    return if read.is_ok_and(|read| read > 0) { Ok(()) } else { Err(End::Gone) };
                }
                () = self.subscriber.changed.notified() => continue,
                _ = self.over.wait_for(|over| *over) => {
                    if self.subscriber.is_empty() {
                        return Err(End::Quit);
                    }
                    continue;
                }
                () = until(speak_by) => {}
            }
            return self.violated_slowly().await;
        }
    }

    async fn violated_slowly(&mut self) -> Result<(), End> {
        self.refuse(if self.authenticated {
            "ERR Protocol error: the rest of a command took too long"
        } else {
            "NOAUTH Authentication required."
        });
        self.write().await?;
        Err(End::Refused)
    }

    /// Writes the answers that are there, and what there is to tell.
    async fn write(&mut self) -> Result<(), End> {
        loop {
            let mut out = self.batch.take_answers();
            let has_room_again = self.subscriber.take(&mut out);
            if has_room_again && let Some(portals) = &self.wire.portals {
                portals.has_room(self.subscriber.number, true);
            }
            if out.is_empty() {
                return Ok(());
            }
            let mut rest = &out[..];
            while !rest.is_empty() {
                let Self { stream, subscriber, wire, .. } = self;
                let mut writing = pin!(timeout(wire.bounds.write_within, stream.write(rest)));
                let written = loop {
                    tokio::select! {
                        biased;
                        written = writing.as_mut() => break written,
                        // It may be cut while it takes nothing.
                        () = subscriber.changed.notified() => if subscriber.is_cut() { return Err(End::Gone) },
                    }
                };
                match written {
                    Ok(Ok(written)) if written > 0 => rest = &rest[written..],
                    _ => return Err(End::Gone),
                }
            }
        }
    }

    pub(super) async fn settle(&mut self) {
        self.batch.settle(&self.wire).await;
    }

    pub(super) fn refuse(&mut self, why: &str) {
        self.wire.metrics.redis_protocol_commands_refused.inc();
        encode::error(self.batch.answer(), why);
    }

    /// The password was shown.
    pub(super) fn let_in(&mut self) {
        self.authenticated = true;
        self.count_as_proven();
        self.speak_by = None;
        self.parser.set_bytes_max(self.wire.bounds.command_bytes);
    }

    /// Counts the address as proven: at the password, and while the connection is used.
    fn count_as_proven(&self) {
        if self.wire.password.is_some() {
            self.wire.guesses.right(Some(self.subscriber.address), &self.proof);
        }
    }

    /// Refuses a password without comparing it, where too many wrong ones came from this address.
    pub(super) fn admit_password(&mut self) -> Result<(), End> {
        // A connection that has presented the right one before is exempt.
        if self.authenticated {
            return Ok(());
        }
        self.wire.guesses.admit(Some(self.subscriber.address)).map_err(|wait| {
            let seconds = wait.as_secs().max(1);
            self.refuse(&format!("ERR too many wrong passwords came from this address: try again in {seconds} s"));
            End::Refused
        })
    }

    /// Answers a wrong password after a delay.
    pub(super) async fn wrong_password(&mut self, password: &[u8]) -> Result<(), End> {
        self.wrong_passwords += 1;
        self.wire.metrics.wrong_secrets.inc();
        let delay = self.wire.guesses.wrong(Some(self.subscriber.address), password);
        // What was asked before must not wait for it.
        self.settle().await;
        self.write().await?;
        tokio::time::sleep(delay).await;
        self.refuse("WRONGPASS invalid username-password pair or user is disabled.");
        if self.wrong_passwords > WRONG_PASSWORDS_MAX { Err(End::Refused) } else { Ok(()) }
    }

    /// Whether it may say that.
    pub(super) fn may(&mut self, command: &Command) -> bool {
        if !self.authenticated && !command.is_for_strangers() {
            self.refuse("NOAUTH Authentication required.");
            return false;
        }
        if self.authenticated {
            self.count_as_proven();
        }
        if !self.channels.is_empty() && !command.is_for_subscribers() {
            self.refuse("ERR only SUBSCRIBE, UNSUBSCRIBE, PING and QUIT are allowed in this context");
            return false;
        }
        true
    }
}

impl<S> Connection<S> {
    fn unsubscribe_from_all(&mut self) {
        let left = self.subscriber.close();
        for channel in std::mem::take(&mut self.channels) {
            self.wire.unsubscribe(&channel, &self.subscriber, &left);
        }
    }
}

/// Also where the task is dropped.
impl<S> Drop for Connection<S> {
    fn drop(&mut self) {
        self.unsubscribe_from_all();
    }
}

async fn until(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

impl Wire {
    /// Serves a connection until it ends, or until the hub has nothing more to tell and what it has said by then is answered.
    pub async fn serve<S>(self: Arc<Self>, stream: S, address: IpAddr)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send,
    {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        self.metrics.redis_protocol_connections.inc();
        let subscriber = Subscriber::new(number, address, self.bounds.backlog_bytes);
        // Also where the task is dropped.
        let _here = Here { wire: self.clone(), subscriber: subscriber.clone() };
        Connection::new(self, stream, subscriber).serve().await;
    }
}

/// A connection that is there.
struct Here {
    wire: Arc<Wire>,
    subscriber: Arc<Subscriber>,
}

impl Drop for Here {
    fn drop(&mut self) {
        self.wire.metrics.redis_protocol_connections.dec();
        if let Some(portals) = &self.wire.portals {
            portals.close(self.subscriber.number);
        }
    }
}
