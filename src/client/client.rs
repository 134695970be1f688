//! A client that comes back by itself: what a program holds of it. The rest is a task of its own, in `driver`.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{Stream, StreamExt};
use serde::Serialize;
use serde_json::{Map, Value, value::to_raw_value};
use tokio::sync::{mpsc, oneshot};

use super::{
    Connection, codec,
    driver::{Control, Credentials, Progress, Task},
    error::ClientError,
    event::{Event, Options},
};
use crate::protocol::opcode;

/// Events that wait for the program. With so many nothing more is read from the server, where messages wait as well as here.
const EVENTS_MAX: usize = 64;

/// Messages that wait to be sent, most of them while the client is away. One more is refused.
const UNSENT_MAX: usize = 1024;

/// Bytes of those messages; likewise.
const UNSENT_BYTES_MAX: usize = 4 << 20;

/// Longest pause between two attempts to connect, unless the server's interval is longer.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// Requests to the task that wait for it; it takes them at once unless it is in the middle of connecting.
const CONTROLS_MAX: usize = 4;

/// How a client comes back.
#[must_use = "a builder does nothing until it connects"]
#[derive(Clone, Debug)]
pub struct ClientBuilder {
    url: String,
    interval: Option<Duration>,
    pause_max: Duration,
}

impl ClientBuilder {
    /// Comes back after about this long, whatever the server announces, and also if it announces nothing.
    pub fn reconnect_interval(mut self, interval: Duration) -> Self {
        self.interval = Some(interval);
        self
    }

    /// The longest pause between two attempts: each is twice as long as the one before it, up to this. Default 30 s. The
    /// interval itself is never cut.
    pub fn pause_max(mut self, pause: Duration) -> Self {
        self.pause_max = pause;
        self
    }

    /// Connects for the first time, within ten seconds.
    ///
    /// # Errors
    /// When that does not succeed: only who was connected once comes back by himself.
    pub async fn connect(self) -> Result<Client, ClientError> {
        let connection = Connection::connect(&self.url).await?;
        let (events_in, events) = mpsc::channel(EVENTS_MAX);
        let (sends, sends_out) = mpsc::channel(UNSENT_MAX);
        let (controls, controls_out) = mpsc::channel(CONTROLS_MAX);
        let progress = Arc::new(Progress::default());
        let ways = (self.url, self.interval, self.pause_max);
        let task = Task::new(ways, events_in, sends_out, controls_out, progress.clone());
        tokio::spawn(task.run(connection));
        Ok(Client { events, sender: Sender { sends, progress }, controls, at_it: false })
    }
}

/// A client that comes back by itself when its connection breaks or the server goes away and says that it will be back:
/// after the interval that the server announces (`reconnect.interval`), or [`ClientBuilder::reconnect_interval`]. If neither
/// names one it does not come back, as with stock. Pauses vary by half in both directions, so that a thousand clients do not
/// come back at once, and double from one failed attempt to the next, up to [`ClientBuilder::pause_max`].
///
/// ```no_run
/// # async fn example() -> Result<(), mesa::client::ClientError> {
/// use mesa::client::{Client, Event, Options, token};
///
/// let mut client = Client::connect("ws://127.0.0.1:4000/").await?;
/// client.authenticate(token("alice"), Options::default()).await?;
/// client.send("HELLO", &"everybody")?;
/// while let Some(event) = client.next().await {
///     if let Event::Message(message) = event {
///         println!("{} {}", message.kind(), message.data);
///     }
/// }
/// # Ok(())
/// # }
/// ```
///
/// It is a [`Stream`] of [`Event`]s (the trait of the `futures` crates). After the last event it has ended.
///
/// **Done with an event** is who asks for the next one. Messages are confirmed to the server only then, so finish with a
/// message before you call [`Client::next`] again: who dies before that gets it once more. Up to 64 events are read ahead and
/// not confirmed. Who does not call `next` for longer than the server's heartbeat is patient is taken for gone, unless he
/// resumes.
///
/// **Resuming** ([`Options::after`]): the client keeps count of the sequences, names the last one it has handed out whenever it
/// comes back, and confirms what the program is done with (opcode 3, every 50 ms at most). So nothing is lost or repeated over
/// broken connections and a killed server. Over an end of this program the count is yours to keep: [`Delivery::position`] of
/// the last message you were done with, as `after` of the next start.
///
/// **Sending**: what is sent while the client is away is kept in memory (1 024 messages or 4 MiB; more is refused) and goes
/// when it is back and let in. There is no receipt for it: what was under way when a connection broke may be lost.
///
/// Dropping it closes the connection. It needs a tokio runtime.
///
/// [`Delivery::position`]: super::Delivery::position
pub struct Client {
    events: mpsc::Receiver<Event>,
    sender: Sender,
    controls: mpsc::Sender<Control>,
    /// The program was handed an event and has not asked for the next.
    at_it: bool,
}

impl Client {
    /// For the server at `ws://HOST[:PORT][/PATH]`.
    pub fn builder(url: &str) -> ClientBuilder {
        ClientBuilder { url: url.to_owned(), interval: None, pause_max: PAUSE_MAX }
    }

    /// Connects to `ws://HOST[:PORT][/PATH]`, within ten seconds.
    ///
    /// # Errors
    /// When the address makes no sense, nobody answers there, or who does is no such server.
    pub async fn connect(url: &str) -> Result<Self, ClientError> {
        Self::builder(url).connect().await
    }

    /// Says who this is, now and whenever the client comes back; returns the user object. `credentials` is whatever the
    /// server's way of authentication asks for, most often [`token`](super::token). If the connection breaks meanwhile, this
    /// goes on with the next one.
    ///
    /// # Errors
    /// [`ClientError::Refused`] when the server says no, for good.
    pub async fn authenticate(
        &mut self,
        credentials: Map<String, Value>,
        options: Options,
    ) -> Result<Map<String, Value>, ClientError> {
        self.authenticate_by(move || std::future::ready(credentials.clone()), options).await
    }

    /// The same with credentials that are asked for at every connection: for tokens that expire.
    ///
    /// # Errors
    /// As [`Client::authenticate`].
    pub async fn authenticate_by<F, R>(
        &mut self,
        credentials: F,
        options: Options,
    ) -> Result<Map<String, Value>, ClientError>
    where
        F: Fn() -> R + Send + Sync + 'static,
        R: Future<Output = Map<String, Value>> + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let credentials: Credentials = Box::new(move || Box::pin(credentials()));
        let asked = self.controls.send(Control::Authenticate { credentials, options, answer }).await;
        asked.map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }

    /// What happens next; `None` when the client is gone for good. Safe to drop half-way, as in `select!`.
    pub async fn next(&mut self) -> Option<Event> {
        StreamExt::next(self).await
    }

    /// Sends an application's message: opcode 0. Returns at once; while the client is away the message waits.
    ///
    /// # Errors
    /// When the data has no JSON form, as much waits as may, or the client is gone for good.
    pub fn send(&self, kind: &str, data: &impl Serialize) -> Result<(), ClientError> {
        self.sender.send(kind, data)
    }

    /// What sends from elsewhere, while [`Client::next`] waits.
    #[must_use]
    pub fn sender(&self) -> Sender {
        self.sender.clone()
    }

    /// Goes, and does not come back: sends what waits, confirms what was handed out, says goodbye. Takes a second at most;
    /// what could not be sent by then is lost. A client that is away can do none of it: the server learns at the next start
    /// what was dealt with, from [`Options::after`].
    pub async fn disconnect(mut self) {
        self.is_done();
        let (done, closed) = oneshot::channel();
        if self.controls.send(Control::Disconnect(done)).await.is_ok() {
            // The events that are still to be read are not: the task must not wait for them.
            self.events.close();
            _ = closed.await;
        }
    }

    fn is_done(&mut self) {
        if std::mem::take(&mut self.at_it) {
            self.sender.progress.done.fetch_add(1, Ordering::AcqRel);
            self.sender.progress.risen.notify_one();
        }
    }
}

impl Stream for Client {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        self.is_done();
        let event = self.events.poll_recv(cx);
        self.at_it = matches!(event, Poll::Ready(Some(_)));
        event
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

/// Sends messages for a [`Client`]. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Sender {
    sends: mpsc::Sender<String>,
    progress: Arc<Progress>,
}

impl Sender {
    /// Sends an application's message, as [`Client::send`].
    ///
    /// # Errors
    /// When the data has no JSON form, as much waits as may, or the client is gone for good.
    pub fn send(&self, kind: &str, data: &impl Serialize) -> Result<(), ClientError> {
        let data = to_raw_value(data).map_err(|error| ClientError::Data(error.to_string()))?;
        let text = codec::encode(opcode::DISPATCH, &data, Some(kind));
        let bytes = text.len();
        if self.progress.unsent_bytes.fetch_add(bytes, Ordering::AcqRel) + bytes > UNSENT_BYTES_MAX {
            self.progress.unsent_bytes.fetch_sub(bytes, Ordering::AcqRel);
            return Err(ClientError::Full);
        }
        self.sends.try_send(text).map_err(|error| {
            self.progress.unsent_bytes.fetch_sub(bytes, Ordering::AcqRel);
            match error {
                mpsc::error::TrySendError::Full(_) => ClientError::Full,
                mpsc::error::TrySendError::Closed(_) => gone(),
            }
        })
    }
}

fn gone() -> ClientError {
    ClientError::Gone
}
