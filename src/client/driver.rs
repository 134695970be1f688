//! Drives a reconnecting client in a background task.
//!
//! The task connects, authenticates, forwards events, sends messages, and acknowledges events that the program has
//! processed.

use std::{
    collections::VecDeque,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until, timeout},
};

use super::{
    Connection, close_code,
    codec::{self, Incoming},
    connect::Connector,
    credentials::{Credentials, is_too_fast, may_reconnect},
    error::ClientError,
    event::{Delivery, Event, Gap, Options},
    exchange::{Answer, Control, Progress, QueuedEvent},
    pace::Pace,
    serve_end::{ServeEnd, WRITE_TIMEOUT, blocked, write},
    silence::Silence,
};
use crate::{
    message::Seq,
    util::{backoff::Backoff, sleep::sleep_until_optional},
};

/// Maximum delay of an acknowledgement by op 3. Each is a frame, and servers limit the frames per second.
const ACK_DELAY: Duration = Duration::from_millis(50);

/// Bytes of messages that are passed to the socket together, approximately.
const SEND_BYTES: usize = 64 << 10;

/// Time limit for sending queued messages and closing.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Time after which an authenticated connection counts as a success, even without a message.
const SUCCESS_DELAY: Duration = Duration::from_secs(10);

/// Runs one client.
pub(super) struct Driver {
    connector: Arc<Connector>,
    /// Delay before reconnecting, in place of the server's interval.
    interval: Option<Duration>,
    // Fields are dropped in this order, so that sending fails once the last event was read.
    sends: mpsc::Receiver<String>,
    controls: mpsc::Receiver<Control>,
    events: mpsc::Sender<QueuedEvent>,
    progress: Arc<Progress>,
    /// Set once the program has authenticated.
    credentials: Option<(Credentials, Options)>,
    /// Receives the result of the program's authentication.
    answer: Option<Answer>,
    /// Number of events delivered to the program, processed or not.
    delivered: u64,
    /// `delivered` after the last message of this connection; 0 before the first. Other events do not delay op 11.
    last_message: u64,
    /// Acknowledgements by op 11, each due when the program has processed this many events.
    acks_due: VecDeque<u64>,
    /// Entries not acknowledged by op 3: the number of events that must be processed before, and the sequence.
    unacknowledged: VecDeque<(u64, Seq)>,
    /// Next acknowledgement by op 3: its sequence, and the time at which it is due.
    ack: Option<(Seq, Instant)>,
    /// For a client that resumes: last sequence that was queued for the program. [`Options::after`] of the credentials is
    /// the last one that the program has processed. Resuming acknowledges up to there, so it must not be a queued one.
    received: Seq,
    /// Whether the server has reported the state of the log on this connection.
    resumed: bool,
    /// Delays before attempts to reconnect. A message resets them, and so does a connection that lasts
    /// [`SUCCESS_DELAY`]. Op 22 does not: a server that fails right after it would be asked without pause.
    backoff: Backoff,
    /// Time at which this connection was authenticated, or opened without credentials.
    ready_since: Option<Instant>,
    pace: Pace,
    silence: Silence,
}

impl Driver {
    pub(super) fn new(
        (connector, interval, reconnect_delay_max, rate): (Arc<Connector>, Option<Duration>, Duration, u32),
        events: mpsc::Sender<QueuedEvent>,
        sends: mpsc::Receiver<String>,
        controls: mpsc::Receiver<Control>,
        progress: Arc<Progress>,
    ) -> Self {
        Self {
            connector,
            interval,
            events,
            sends,
            controls,
            progress,
            credentials: None,
            answer: None,
            delivered: 0,
            last_message: 0,
            acks_due: VecDeque::new(),
            unacknowledged: VecDeque::new(),
            ack: None,
            received: 0,
            resumed: false,
            backoff: Backoff::new(Duration::ZERO, reconnect_delay_max),
            ready_since: None,
            pace: Pace::new(rate, Instant::now()),
            silence: Silence::new(Instant::now()),
        }
    }

    /// Runs until the program drops the client, or a reconnect is excluded.
    pub(super) async fn run(mut self, mut connection: Connection) {
        let mut first = true;
        loop {
            let connected = Event::Connected { is_initial_connection: first, is_automatic_reconnection: !first };
            first = false;
            let end = match self.deliver(connected).await {
                Ok(()) => self.serve(&mut connection).await,
                Err(end) => end,
            };
            let interval = self.interval.or(connection.hello().reconnect_interval);
            let (code, reason, is_transient) = match end {
                ServeEnd::ByProgram(done) => {
                    self.close(connection).await;
                    done.map(|done| done.send(()));
                    return;
                }
                ServeEnd::Closed(code, reason) => {
                    if is_too_fast(code, &reason) {
                        self.pace.slow_down();
                    }
                    let credentials = self.credentials.as_ref().map(|(credentials, _)| credentials);
                    let is_transient = may_reconnect(code, &reason, credentials);
                    (code, reason, is_transient)
                }
                ServeEnd::Failed(error) => (close_code::LOST, error.to_string(), error.is_transient()),
            };
            if self.ready_since.take().is_some_and(|since| since.elapsed() >= SUCCESS_DELAY) {
                self.backoff.reset();
            }
            // The next connection has heartbeats of its own.
            self.acks_due.clear();
            let reconnect = interval.filter(|_| is_transient);
            let event = Event::Disconnected { code, reason: reason.clone(), will_reconnect: reconnect.is_some() };
            let is_dropped = self.deliver(event).await.is_err();
            let Some(interval) = reconnect.filter(|_| !is_dropped) else {
                self.answer.take().map(|answer| answer.send(Err(ClientError::Closed { code, reason })));
                return;
            };
            match self.reconnect(interval).await {
                Some(next) => connection = next,
                None => return,
            }
        }
    }

    /// Reconnects, with retries; `None` if the program has dropped the client, or an error is permanent.
    async fn reconnect(&mut self, interval: Duration) -> Option<Connection> {
        self.backoff.set_min(interval);
        loop {
            let delay = self.backoff.next();
            tracing::debug!(address = self.connector.address(), ?delay, "reconnecting");
            let connector = self.connector.clone();
            let attempt = async {
                tokio::time::sleep(delay).await;
                Connection::open(&connector).await
            };
            tokio::pin!(attempt);
            let attempt = loop {
                tokio::select! {
                    attempt = &mut attempt => break attempt,
                    () = self.events.closed() => return None,
                    control = self.controls.recv() => match control {
                        Some(Control::Authenticate { credentials, options, answer }) => {
                            self.set_credentials(credentials, options, answer);
                        }
                        Some(Control::Disconnect(done)) => {
                            _ = done.send(());
                            return None;
                        }
                        None => return None,
                    },
                }
            };
            match attempt {
                Ok(connection) => return Some(connection),
                Err(error) if error.is_transient() => tracing::debug!(%error, "reconnect failed; retrying"),
                Err(error) => {
                    let (code, reason) = match &error {
                        ClientError::Closed { code, reason } => (*code, reason.clone()),
                        other => (close_code::LOST, other.to_string()),
                    };
                    self.answer.take().map(|answer| answer.send(Err(error)));
                    _ = self.deliver(Event::Disconnected { code, reason, will_reconnect: false }).await;
                    return None;
                }
            }
        }
    }

    /// Serves a connection until it or the program ends.
    async fn serve(&mut self, connection: &mut Connection) -> ServeEnd {
        match self.try_serve(connection).await {
            Ok(end) | Err(end) => end,
        }
    }

    async fn try_serve(&mut self, connection: &mut Connection) -> Result<ServeEnd, ServeEnd> {
        self.resumed = false;
        self.last_message = 0;
        if self.credentials.is_some() {
            self.authenticate(connection).await?;
        }
        self.ready_since = Some(Instant::now());
        self.silence.start(connection.hello().heartbeat_interval, Instant::now());
        let mut permit = None;
        loop {
            self.send_acks(connection).await?;
            let ack_at = self.ack.map(|(_, by)| by);
            let send_at = self.pace.due(Instant::now());
            tokio::select! {
                biased;
                () = self.events.closed() => return Ok(ServeEnd::ByProgram(None)),
                control = self.controls.recv() => match control {
                    Some(Control::Authenticate { credentials, options, answer }) => {
                        if connection.is_authenticated() {
                            self.renew(connection, credentials, answer).await?;
                        } else {
                            self.set_credentials(credentials, options, answer);
                            self.authenticate(connection).await?;
                        }
                    }
                    Some(Control::Disconnect(done)) => return Ok(ServeEnd::ByProgram(Some(done))),
                    None => return Ok(ServeEnd::ByProgram(None)),
                },
                () = self.progress.done_changed.notified() => {}
                () = sleep_until_optional(ack_at) => self.acknowledge(connection).await?,
                () = sleep_until_optional(send_at) => {}
                text = self.sends.recv(), if send_at.is_none() && !connection.is_sending() => match text {
                    Some(text) => self.send(connection, text).await?,
                    // The program has dropped the client and all senders.
                    None => return Ok(ServeEnd::ByProgram(None)),
                },
                reserved = self.events.clone().reserve_owned(), if permit.is_none() => permit = reserved.ok(),
                incoming = connection.step(permit.is_some()), if permit.is_some() || connection.is_sending() => {
                    let Some(incoming) = incoming.map_err(ServeEnd::Failed)? else { continue };
                    self.silence.on_frame(&incoming, Instant::now());
                    if let Some(event) = self.handle(connection, incoming)?
                        && let Some(permit) = permit.take()
                    {
                        permit.send(event);
                        self.delivered += 1;
                    }
                }
                // Last, because frames that wait in the socket come first. While nothing is read, the server is not silent.
                () = sleep_until(self.silence.due()), if permit.is_some() => self.probe(connection).await?,
            }
        }
    }

    /// Handles a frame. Returns the event for the program, if there is one.
    fn handle(&mut self, connection: &mut Connection, incoming: Incoming) -> Result<Option<QueuedEvent>, ServeEnd> {
        Ok(match incoming {
            Incoming::Message { op, data, kind, position } => {
                let mut reached = None;
                if let Some(seq) = position.filter(|_| self.resumes()) {
                    if seq <= self.received {
                        // A duplicate of a message that an earlier connection delivered.
                        return Ok(None);
                    }
                    self.received = seq;
                    reached = Some(seq);
                    self.unacknowledged.push_back((self.delivered + 1, seq));
                }
                self.last_message = self.delivered + 1;
                self.backoff.reset();
                Some((Event::Message(Delivery { op, kind, data, position }), reached))
            }
            Incoming::Resumed { first, last, missed } => {
                if !self.resumes() {
                    return Ok(Some((Event::Resumed { first, last, missed }, None)));
                }
                if !std::mem::replace(&mut self.resumed, true) && last < self.received {
                    // The log never reached our position, so it is another log with unrelated sequences.
                    tracing::warn!(
                        received = self.received,
                        last,
                        "the server's log is not the one of the last connection; resuming from its beginning"
                    );
                    self.received = first.saturating_sub(1);
                    self.set_after(self.received);
                    self.unacknowledged.clear();
                    self.ack = None;
                }
                // Queued messages are not missed, and a queued gap is not reported again.
                let missed = missed.filter(|missed| missed.to > self.received).map(|missed| {
                    let from = missed.from.max(self.received + 1);
                    Gap { from, ..missed }
                });
                if let Some(missed) = &missed {
                    // The sequences of a gap count as received.
                    self.received = missed.to;
                    self.unacknowledged.push_back((self.delivered + 1, missed.to));
                }
                // Stored even where it is lower: in a replaced log, the old position would skip new messages later.
                Some((Event::Resumed { first, last, missed }, Some(self.received)))
            }
            Incoming::Heartbeat => {
                // A client that resumes acknowledges by op 3, so op 11 only shows that it is alive.
                self.acks_due.push_back(if self.resumes() { 0 } else { self.last_message });
                None
            }
            Incoming::Hello(hello) => {
                self.silence.set_interval(hello.heartbeat_interval);
                connection.set_hello(hello);
                None
            }
            Incoming::Authenticated(_) | Incoming::HeartbeatAck | Incoming::Pong => None,
            Incoming::Closed(code, reason) => return Err(ServeEnd::Closed(code, reason)),
        })
    }

    fn set_credentials(&mut self, credentials: Credentials, options: Options, answer: Answer) {
        self.received = options.after.unwrap_or_default();
        self.credentials = Some((credentials, options));
        self.answer = Some(answer);
    }

    /// Sets the position that the next resume sends.
    fn set_after(&mut self, seq: Seq) {
        if let Some((_, Options { after: Some(after), .. })) = &mut self.credentials {
            *after = seq;
        }
    }

    fn resumes(&self) -> bool {
        self.credentials.as_ref().is_some_and(|(_, options)| options.after.is_some())
    }

    /// Sends due acknowledgements by op 11, and schedules one by op 3.
    async fn send_acks(&mut self, connection: &mut Connection) -> Result<(), ServeEnd> {
        let done = self.progress.done.load(Ordering::Acquire);
        while self.acks_due.front().is_some_and(|due| *due <= done) {
            self.acks_due.pop_front();
            write(connection, codec::heartbeat_ack()).await?;
        }
        self.advance();
        Ok(())
    }

    /// Moves the position over what the program has processed, and schedules its acknowledgement.
    fn advance(&mut self) {
        let done = self.progress.done.load(Ordering::Acquire);
        while let Some((_, seq)) = self.unacknowledged.front().copied().filter(|(due, _)| *due <= done) {
            self.unacknowledged.pop_front();
            self.set_after(seq);
            let by = self.ack.map_or_else(|| Instant::now() + ACK_DELAY, |(_, by)| by);
            self.ack = Some((seq, by));
        }
    }

    async fn acknowledge(&mut self, connection: &mut Connection) -> Result<(), ServeEnd> {
        match self.ack.take() {
            Some((seq, _)) => write(connection, codec::acknowledge(seq)).await,
            None => Ok(()),
        }
    }

    /// Requests an answer of a silent server, or ends the connection if it did not answer the last request.
    async fn probe(&mut self, connection: &mut Connection) -> Result<(), ServeEnd> {
        let Some(probe) = self.silence.probe(Instant::now()) else {
            return Err(ServeEnd::Closed(close_code::LOST, "the server did not answer a heartbeat".into()));
        };
        if connection.is_sending() {
            // The socket is full. A server that reads the unsent data has as much time as for an answer.
            return Ok(());
        }
        if probe.heartbeat {
            write(connection, codec::heartbeat()).await?;
        }
        if probe.ping { connection.write_ping().await.map_err(ServeEnd::Failed) } else { Ok(()) }
    }

    /// Sends a message, and queued ones up to about [`SEND_BYTES`] and as the pace allows.
    async fn send(&mut self, connection: &mut Connection, mut text: String) -> Result<(), ServeEnd> {
        let mut sent = 0;
        loop {
            sent += text.len();
            self.progress.unsent_bytes.fetch_sub(text.len(), Ordering::AcqRel);
            self.pace.spend();
            write(connection, text).await?;
            if sent >= SEND_BYTES || self.pace.due(Instant::now()).is_some() {
                return Ok(());
            }
            match self.sends.try_recv() {
                Ok(next) => text = next,
                Err(_) => return Ok(()),
            }
        }
    }

    async fn authenticate(&mut self, connection: &mut Connection) -> Result<(), ServeEnd> {
        self.advance();
        let Some((credentials, options)) = &mut self.credentials else { return Ok(()) };
        let authenticated = async {
            let data = credentials.create().await;
            connection.authenticate_with(data, options).await
        };
        let authenticated = tokio::select! {
            authenticated = authenticated => authenticated,
            () = self.events.closed() => return Err(ServeEnd::ByProgram(None)),
        };
        match authenticated {
            Ok(user) => {
                if options.after.is_some() {
                    // `false` discards only the messages that were pending before.
                    options.should_sync = true;
                }
                let event = Event::Authenticated { user: user.clone() };
                self.answer.take().map(|answer| answer.send(Ok(user)));
                self.deliver(event).await
            }
            Err(ClientError::Closed { code, reason }) => Err(ServeEnd::Closed(code, reason)),
            Err(error) => Err(ServeEnd::Failed(error)),
        }
    }

    /// Sends a newer token on an authenticated connection. The options stay, as the server ignores those of a renewal.
    async fn renew(
        &mut self,
        connection: &mut Connection,
        renewed: Credentials,
        answer: Answer,
    ) -> Result<(), ServeEnd> {
        let Some((credentials, options)) = &mut self.credentials else { return Ok(()) };
        *credentials = renewed;
        let data = tokio::select! {
            data = credentials.create() => data,
            () = self.events.closed() => return Err(ServeEnd::ByProgram(None)),
        };
        let renewal = timeout(WRITE_TIMEOUT, connection.authenticate_with(data, options)).await;
        let user = renewal.map_err(|_| blocked())?.map_err(ServeEnd::Failed)?;
        // The program may have dropped the call.
        _ = answer.send(Ok(user));
        Ok(())
    }

    /// Delivers an event to the program, waiting for space in its queue.
    async fn deliver(&mut self, event: Event) -> Result<(), ServeEnd> {
        if self.answer.is_some() && self.events.capacity() == 0 {
            // The program waits in `authenticate` and reads no events meanwhile: waiting here would be a deadlock.
            return Ok(());
        }
        self.events.send((event, None)).await.map_err(|_| ServeEnd::ByProgram(None))?;
        self.delivered += 1;
        Ok(())
    }

    /// Sends queued messages and acknowledgements, then closes the connection.
    async fn close(&mut self, mut connection: Connection) {
        let closing = async {
            // Without pacing: a message above the rate is lost in either case.
            while let Ok(text) = self.sends.try_recv() {
                connection.write(text).await?;
            }
            if self.send_acks(&mut connection).await.is_ok() {
                _ = self.acknowledge(&mut connection).await;
            }
            connection.close().await;
            Ok::<_, ClientError>(())
        };
        // The client ends after this, with or without an answer.
        _ = tokio::time::timeout(CLOSE_TIMEOUT, closing).await;
    }
}
