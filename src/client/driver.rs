//! The task behind a client that comes back: it connects, authenticates, passes on what comes, sends what is to be sent, and
//! confirms what the program is done with.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::future::BoxFuture;
use serde_json::{Map, Value};
use tokio::{
    sync::{Notify, mpsc, oneshot},
    time::Instant,
};

use super::{
    Connection, close_code,
    codec::{self, Incoming},
    error::ClientError,
    event::{Delivery, Event, Options},
};
use crate::message::Seq;

/// How long what the program is done with may wait to be confirmed after a resume: each confirmation is a frame, and a server
/// takes only so many a second.
const CONFIRM_WITHIN: Duration = Duration::from_millis(50);

/// Bytes of messages that are handed to the socket together.
const SEND_BYTES: usize = 64 << 10;

/// How long a farewell may take in all.
const FAREWELL_MAX: Duration = Duration::from_secs(1);

type Answer = oneshot::Sender<Result<Map<String, Value>, ClientError>>;

/// What a program asks of the task.
pub(super) enum Control {
    Authenticate { credentials: Credentials, options: Options, answer: Answer },
    Disconnect(oneshot::Sender<()>),
}

/// Why a connection is not served any more.
enum End {
    /// The program has gone, or wants to go; it may wait to be told.
    Left(Option<oneshot::Sender<()>>),
    /// The connection ended so.
    Closed(u16, String),
    /// It was of no use.
    Failed(ClientError),
}

pub(super) struct Task {
    url: String,
    /// Rather than what the server announces.
    interval: Option<Duration>,
    pause_max: Duration,
    // In this order, so that nothing can be sent any more once the last event has been read.
    sends: mpsc::Receiver<String>,
    controls: mpsc::Receiver<Control>,
    events: mpsc::Sender<Event>,
    progress: Arc<Progress>,
    /// How to be let in, once the program has said that.
    credentials: Option<(Credentials, Options)>,
    /// Waits for the first authentication.
    answer: Option<Answer>,
    /// Events that were handed to the program, done or not.
    handed: u64,
    /// `handed` at the last message of this connection; 0 before the first. Other events delay no op 11.
    last_message: u64,
    /// Receipts (op 11) that are due when the program is done with so many events.
    receipts: VecDeque<u64>,
    /// Messages of a log: when the program is done with so many events it is done with that sequence.
    unconfirmed: VecDeque<(u64, Seq)>,
    /// Done with, and not confirmed yet: up to which sequence, and by when.
    confirm: Option<(Seq, Instant)>,
    /// On this connection it was told where the log begins and ends.
    resumed: bool,
    /// Attempts since it was last let in.
    attempts: u32,
}

impl Task {
    pub(super) fn new(
        (url, interval, pause_max): (String, Option<Duration>, Duration),
        events: mpsc::Sender<Event>,
        sends: mpsc::Receiver<String>,
        controls: mpsc::Receiver<Control>,
        progress: Arc<Progress>,
    ) -> Self {
        Self {
            url,
            interval,
            pause_max,
            events,
            sends,
            controls,
            progress,
            credentials: None,
            answer: None,
            handed: 0,
            last_message: 0,
            receipts: VecDeque::new(),
            unconfirmed: VecDeque::new(),
            confirm: None,
            resumed: false,
            attempts: 0,
        }
    }

    /// Until the program has gone, or the server will not have it any more.
    pub(super) async fn run(mut self, mut connection: Connection) {
        let mut first = true;
        loop {
            let connected = Event::Connected { is_initial_connection: first, is_automatic_reconnection: !first };
            first = false;
            let end = match self.hand(connected).await {
                Ok(()) => self.serve(&mut connection).await,
                Err(end) => end,
            };
            let interval = self.interval.or(connection.hello().reconnect_interval);
            let (code, reason, may_pass) = match end {
                End::Left(done) => {
                    self.farewell(connection).await;
                    done.map(|done| done.send(()));
                    return;
                }
                End::Closed(code, reason) => (code, reason, close_code::comes_back(code)),
                End::Failed(error) => (close_code::LOST, error.to_string(), error.may_pass()),
            };
            // Nothing can be confirmed to a connection that is gone; the next one asks for itself.
            self.receipts.clear();
            let back = interval.filter(|_| may_pass);
            let told = Event::Disconnected { code, reason: reason.clone(), will_reconnect: back.is_some() };
            let left = self.hand(told).await.is_err();
            let Some(interval) = back.filter(|_| !left) else {
                self.answer.take().map(|answer| answer.send(Err(ClientError::Refused { code, reason })));
                return;
            };
            match self.come_back(interval).await {
                Some(next) => connection = next,
                None => return,
            }
        }
    }

    /// Connects again, however often it takes; `None` if the program has gone meanwhile, or there is no use in it.
    async fn come_back(&mut self, interval: Duration) -> Option<Connection> {
        loop {
            let pause = pause(interval, self.attempts, self.pause_max);
            self.attempts = self.attempts.saturating_add(1);
            tracing::debug!(url = self.url, ?pause, "connecting again");
            let url = self.url.clone();
            let dialled = async {
                tokio::time::sleep(pause).await;
                Connection::connect(&url).await
            };
            tokio::pin!(dialled);
            let dialled = loop {
                tokio::select! {
                    dialled = &mut dialled => break dialled,
                    () = self.events.closed() => return None,
                    control = self.controls.recv() => match control {
                        Some(Control::Authenticate { credentials, options, answer }) => {
                            self.credentials = Some((credentials, options));
                            self.answer = Some(answer);
                        }
                        Some(Control::Disconnect(done)) => {
                            _ = done.send(());
                            return None;
                        }
                        None => return None,
                    },
                }
            };
            match dialled {
                Ok(connection) => return Some(connection),
                Err(error) if error.may_pass() => tracing::debug!(%error, "not yet"),
                Err(error) => {
                    let (code, reason) = match &error {
                        ClientError::Refused { code, reason } => (*code, reason.clone()),
                        other => (close_code::LOST, other.to_string()),
                    };
                    self.answer.take().map(|answer| answer.send(Err(error)));
                    _ = self.hand(Event::Disconnected { code, reason, will_reconnect: false }).await;
                    return None;
                }
            }
        }
    }

    /// Passes everything on, both ways, until the connection or the program is gone.
    async fn serve(&mut self, connection: &mut Connection) -> End {
        match self.try_serve(connection).await {
            Ok(end) | Err(end) => end,
        }
    }

    async fn try_serve(&mut self, connection: &mut Connection) -> Result<End, End> {
        self.resumed = false;
        self.last_message = 0;
        if self.credentials.is_some() {
            self.authenticate(connection).await?;
        } else {
            self.attempts = 0;
        }
        let mut room = None;
        loop {
            self.settle(connection).await?;
            let confirm_by = self.confirm.map(|(_, by)| by);
            tokio::select! {
                biased;
                () = self.events.closed() => return Ok(End::Left(None)),
                control = self.controls.recv() => match control {
                    Some(Control::Authenticate { credentials, options, answer }) => {
                        self.credentials = Some((credentials, options));
                        self.answer = Some(answer);
                        self.authenticate(connection).await?;
                    }
                    Some(Control::Disconnect(done)) => return Ok(End::Left(Some(done))),
                    None => return Ok(End::Left(None)),
                },
                () = self.progress.risen.notified() => {}
                () = until(confirm_by) => self.confirm(connection).await?,
                text = self.sends.recv(), if !connection.is_sending() => match text {
                    Some(text) => self.send(connection, text).await?,
                    // The program holds nothing of the client any more.
                    None => return Ok(End::Left(None)),
                },
                permit = self.events.clone().reserve_owned(), if room.is_none() => room = permit.ok(),
                heard = connection.step(room.is_some()), if room.is_some() || connection.is_sending() => {
                    if let Some(heard) = heard.map_err(End::Failed)?
                        && let Some(event) = self.hear(connection, heard)?
                        && let Some(room) = room.take()
                    {
                        room.send(event);
                        self.handed += 1;
                    }
                }
            }
        }
    }

    /// What a frame is to the program.
    fn hear(&mut self, connection: &mut Connection, heard: Incoming) -> Result<Option<Event>, End> {
        Ok(match heard {
            Incoming::Message { op, data, kind, position } => {
                if let (Some(seq), Some((_, options))) = (position, &mut self.credentials)
                    && let Some(after) = &mut options.after
                {
                    if seq <= *after {
                        // It was handed out on an earlier connection already.
                        return Ok(None);
                    }
                    *after = seq;
                    self.unconfirmed.push_back((self.handed + 1, seq));
                }
                self.last_message = self.handed + 1;
                Some(Event::Message(Delivery { op, kind, data, position }))
            }
            Incoming::Resumed { first, last, missed } => {
                if let Some((_, options)) = &mut self.credentials
                    && let Some(after) = &mut options.after
                {
                    if !std::mem::replace(&mut self.resumed, true) && last < *after {
                        // The log has never been where we are: it is another one, and its sequences say nothing about what
                        // was dealt with in the one before it.
                        tracing::warn!(after, last, "the server has another store than before");
                        *after = first.saturating_sub(1);
                        self.unconfirmed.clear();
                        self.confirm = None;
                    }
                    // What will never come is behind us as well.
                    *after = (*after).max(missed.as_ref().map_or(0, |missed| missed.to));
                }
                Some(Event::Resumed { first, last, missed })
            }
            Incoming::ReceiptWanted => {
                // Who resumes confirms by himself: this asks no more than whether he is there.
                self.receipts.push_back(if self.resumes() { 0 } else { self.last_message });
                None
            }
            Incoming::Hello(hello) => {
                connection.take_hello(hello);
                None
            }
            Incoming::Authenticated(_) => None,
            Incoming::Closed(code, reason) => return Err(End::Closed(code, reason)),
        })
    }

    fn resumes(&self) -> bool {
        self.credentials.as_ref().is_some_and(|(_, options)| options.after.is_some())
    }

    /// Answers the questions whose time has come, and takes note of what can be confirmed.
    async fn settle(&mut self, connection: &mut Connection) -> Result<(), End> {
        let done = self.progress.done.load(Ordering::Acquire);
        while self.receipts.front().is_some_and(|due| *due <= done) {
            self.receipts.pop_front();
            connection.post(codec::receipt()).await.map_err(End::Failed)?;
        }
        while let Some((_, seq)) = self.unconfirmed.front().copied().filter(|(due, _)| *due <= done) {
            self.unconfirmed.pop_front();
            let by = self.confirm.map_or_else(|| Instant::now() + CONFIRM_WITHIN, |(_, by)| by);
            self.confirm = Some((seq, by));
        }
        Ok(())
    }

    async fn confirm(&mut self, connection: &mut Connection) -> Result<(), End> {
        match self.confirm.take() {
            Some((seq, _)) => connection.post(codec::confirm(seq)).await.map_err(End::Failed),
            None => Ok(()),
        }
    }

    /// Sends a message, and what waits behind it as far as that is not much.
    async fn send(&mut self, connection: &mut Connection, mut text: String) -> Result<(), End> {
        let mut sent = 0;
        loop {
            sent += text.len();
            self.progress.unsent_bytes.fetch_sub(text.len(), Ordering::AcqRel);
            connection.post(text).await.map_err(End::Failed)?;
            match self.sends.try_recv() {
                Ok(next) if sent < SEND_BYTES => text = next,
                Ok(next) => {
                    // One message more than is much.
                    self.progress.unsent_bytes.fetch_sub(next.len(), Ordering::AcqRel);
                    return connection.post(next).await.map_err(End::Failed);
                }
                Err(_) => return Ok(()),
            }
        }
    }

    async fn authenticate(&mut self, connection: &mut Connection) -> Result<(), End> {
        let Some((credentials, options)) = &mut self.credentials else { return Ok(()) };
        let authenticated = async {
            let data = credentials().await;
            connection.authenticate_with(data, options).await
        };
        let authenticated = tokio::select! {
            authenticated = authenticated => authenticated,
            () = self.events.closed() => return Err(End::Left(None)),
        };
        match authenticated {
            Ok(user) => {
                self.attempts = 0;
                if options.after.is_some() {
                    // What was not wanted has been passed over; what comes from here on is.
                    options.should_sync = true;
                }
                let told = Event::Authenticated { user: user.clone() };
                self.answer.take().map(|answer| answer.send(Ok(user)));
                self.hand(told).await
            }
            Err(ClientError::Refused { code, reason }) => Err(End::Closed(code, reason)),
            Err(error) => Err(End::Failed(error)),
        }
    }

    /// Hands an event to the program, however long it takes to have room for it.
    async fn hand(&mut self, event: Event) -> Result<(), End> {
        if self.answer.is_some() && self.events.capacity() == 0 {
            // The program waits to be let in and reads nothing meanwhile: it must not wait for itself.
            return Ok(());
        }
        self.events.send(event).await.map_err(|_| End::Left(None))?;
        self.handed += 1;
        Ok(())
    }

    /// The last words: what was sent before, and what the program is done with.
    async fn farewell(&mut self, mut connection: Connection) {
        let last_words = async {
            while let Ok(text) = self.sends.try_recv() {
                connection.post(text).await?;
            }
            if self.settle(&mut connection).await.is_ok() {
                _ = self.confirm(&mut connection).await;
            }
            connection.close().await;
            Ok::<_, ClientError>(())
        };
        // Whether the server answers or not, the client is gone after this.
        _ = tokio::time::timeout(FAREWELL_MAX, last_words).await;
    }
}

async fn until(when: Option<Instant>) {
    match when {
        Some(when) => tokio::time::sleep_until(when).await,
        None => std::future::pending().await,
    }
}

/// How long to wait before the next attempt: half to one and a half times what `attempts` make of the interval.
fn pause(interval: Duration, attempts: u32, pause_max: Duration) -> Duration {
    let longest = pause_max.max(interval);
    let base = interval.saturating_mul(1 << attempts.min(16)).min(longest);
    let mut bytes = [0_u8; 4];
    // Where there is no chance to be had, all wait equally long.
    let share =
        getrandom::fill(&mut bytes).map_or(0.5, |()| f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX));
    base.mul_f64(0.5 + share)
}

/// What it takes to be let in, made anew for every connection.
pub(super) type Credentials = Box<dyn Fn() -> BoxFuture<'static, Map<String, Value>> + Send + Sync>;

/// What a program and the task share.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Events the program is done with.
    pub done: AtomicU64,
    /// Told whenever that rises.
    pub risen: Notify,
    /// Bytes that wait to be sent.
    pub unsent_bytes: AtomicUsize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_their_bound_and_vary() {
        let (second, cap) = (Duration::from_secs(1), Duration::from_secs(30));
        for (attempts, base) in [(0, 1), (1, 2), (2, 4), (4, 16), (5, 30), (1_000_000, 30)] {
            let pauses: Vec<Duration> = (0..64).map(|_| pause(second, attempts, cap)).collect();
            let (low, high) = (second * base / 2, second * base * 3 / 2);
            assert!(pauses.iter().all(|pause| (low..=high).contains(pause)), "{attempts}: {pauses:?}");
            assert!(pauses.iter().any(|pause| *pause != pauses[0]), "{attempts}");
        }
        // An interval of the server's is not cut.
        assert!(pause(Duration::from_secs(60), 3, cap) >= Duration::from_secs(30));
    }
}
