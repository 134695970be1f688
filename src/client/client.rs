//! Defines [`Client`], the handle of a reconnecting client. Its background task is in `driver`.

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
    driver::{Control, Credentials, Driver, Progress},
    error::ClientError,
    event::{Event, Options},
};
use crate::protocol::opcode;

/// Events that are queued for the program. When the queue is full, nothing more is read from the server.
const EVENTS_MAX: usize = 64;

/// Messages that are queued to be sent, most of them while the client is offline. One more is rejected.
const UNSENT_MAX: usize = 1024;

/// Bytes of those messages; more are rejected.
const UNSENT_BYTES_MAX: usize = 4 << 20;

/// Default maximum delay between two attempts to connect, unless the server's interval is longer.
const RECONNECT_DELAY_MAX: Duration = Duration::from_secs(30);

/// Requests that are queued for the driver. It handles them at once, except while it is authenticating.
const CONTROLS_MAX: usize = 4;

/// Configures how a client reconnects.
#[must_use = "a builder does nothing until it connects"]
#[derive(Clone, Debug)]
pub struct ClientBuilder {
    url: String,
    interval: Option<Duration>,
    reconnect_delay_max: Duration,
}

impl ClientBuilder {
    /// Sets the delay before reconnecting, in place of the server's interval, and also if the server has none.
    pub fn reconnect_interval(mut self, interval: Duration) -> Self {
        self.interval = Some(interval);
        self
    }

    /// Sets the maximum delay between two attempts. Default 30 s.
    ///
    /// The delay doubles with each attempt up to this maximum. A maximum below the interval counts as the interval.
    pub fn reconnect_delay_max(mut self, delay: Duration) -> Self {
        self.reconnect_delay_max = delay;
        self
    }

    /// Connects for the first time, within 10 s.
    ///
    /// # Errors
    /// Fails if this attempt fails. A client reconnects only after a first connection.
    pub async fn connect(self) -> Result<Client, ClientError> {
        let connection = Connection::connect(&self.url).await?;
        let (events_in, events) = mpsc::channel(EVENTS_MAX);
        let (sends, sends_out) = mpsc::channel(UNSENT_MAX);
        let (controls, controls_out) = mpsc::channel(CONTROLS_MAX);
        let progress = Arc::new(Progress::default());
        let settings = (self.url, self.interval, self.reconnect_delay_max);
        let driver = Driver::new(settings, events_in, sends_out, controls_out, progress.clone());
        tokio::spawn(driver.run(connection));
        Ok(Client { events, sender: Sender { sends, progress }, controls, has_event: false })
    }
}

/// A client that reconnects after its connection broke, or the server closed it with a code that permits a reconnect.
///
/// The delay is [`ClientBuilder::reconnect_interval`], or else the server's `reconnect.interval`. Without either the
/// client does not reconnect, like the original. The delay doubles after each failed attempt, up to
/// [`ClientBuilder::reconnect_delay_max`]. The client waits a random time between half of the delay and all of it (jitter), so
/// that a thousand clients do not reconnect at once.
///
/// ```no_run
/// # async fn example() -> Result<(), mesa::client::ClientError> {
/// use mesa::client::{Client, Event, Options, token};
///
/// let mut client = Client::connect("ws://127.0.0.1:4000/").await?;
/// client.authenticate(token("alice"), Options::default()).await?;
/// client.send("HELLO", &"everyone")?;
/// while let Some(event) = client.next().await {
///     if let Event::Message(message) = event {
///         println!("{} {}", message.kind(), message.data);
///     }
/// }
/// # Ok(())
/// # }
/// ```
///
/// It is a [`Stream`] of [`Event`]s (the trait of the `futures` crates), which ends after the last event.
///
/// **Acknowledgement.** [`Client::next`] acknowledges the event of the previous call. So process a message completely
/// before the next call: a program that dies before gets the message again. Up to 64 events are read ahead and not
/// acknowledged. A program that does not call `next` for longer than the heartbeat's timeout is disconnected, unless it
/// resumes.
///
/// **Resuming** ([`Options::after`]). The client counts the sequences, and sends the last one that it has returned
/// whenever it reconnects. It acknowledges processed messages by op 3, at most every 50 ms. So no message is lost or
/// repeated over broken connections and a killed server. A program that ends must store the position itself:
/// [`Delivery::position`] of the last processed message is `after` of the next start.
///
/// **Sending.** Messages sent while the client is offline are queued in memory: 1,024 messages or 4 MiB, then
/// [`ClientError::Full`]. They are sent after the client has reconnected and authenticated. They are not acknowledged: a
/// message in flight may be lost when a connection breaks.
///
/// Dropping it closes the connection. It needs a tokio runtime.
///
/// [`Delivery::position`]: super::Delivery::position
pub struct Client {
    events: mpsc::Receiver<Event>,
    sender: Sender,
    controls: mpsc::Sender<Control>,
    /// Whether the last call of `next` returned an event, which the program is processing.
    has_event: bool,
}

impl Client {
    /// Configures a client of the server at `ws://HOST[:PORT][/PATH]`.
    pub fn builder(url: &str) -> ClientBuilder {
        ClientBuilder { url: url.to_owned(), interval: None, reconnect_delay_max: RECONNECT_DELAY_MAX }
    }

    /// Connects to `ws://HOST[:PORT][/PATH]`, within 10 s.
    ///
    /// # Errors
    /// Fails if the address is invalid, the server is unreachable, or it does not speak the protocol.
    pub async fn connect(url: &str) -> Result<Self, ClientError> {
        Self::builder(url).connect().await
    }

    /// Authenticates, now and after each reconnect, and returns the user object.
    ///
    /// `credentials` is what the server's authenticator expects, most often [`token`](super::token). If the connection
    /// breaks meanwhile, the call continues on the next one.
    ///
    /// # Errors
    /// Returns [`ClientError::Closed`] if the server rejects the credentials.
    pub async fn authenticate(
        &mut self,
        credentials: Map<String, Value>,
        options: Options,
    ) -> Result<Map<String, Value>, ClientError> {
        self.authenticate_by(move || std::future::ready(credentials.clone()), options).await
    }

    /// Authenticates with credentials that are made for each connection, for tokens that expire.
    ///
    /// # Errors
    /// Same as [`Client::authenticate`].
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
        let sent = self.controls.send(Control::Authenticate { credentials, options, answer }).await;
        sent.map_err(|_| ClientError::Ended)?;
        answered.await.map_err(|_| ClientError::Ended)?
    }

    /// Returns the next event; `None` when the client has ended. Cancel-safe, as in `select!`.
    pub async fn next(&mut self) -> Option<Event> {
        StreamExt::next(self).await
    }

    /// Queues an application's message (opcode 0) and returns at once.
    ///
    /// # Errors
    /// Fails if the data cannot be serialized, the queue is full, or the client has ended.
    pub fn send(&self, kind: &str, data: &impl Serialize) -> Result<(), ClientError> {
        self.sender.send(kind, data)
    }

    /// Returns a handle that sends messages while [`Client::next`] waits.
    #[must_use]
    pub fn sender(&self) -> Sender {
        self.sender.clone()
    }

    /// Ends the client: sends queued messages, acknowledges processed ones, and closes the connection.
    ///
    /// Takes 1 s at most; messages not sent by then are lost. An offline client neither sends nor acknowledges: its
    /// queued messages are lost. If it resumes, [`Options::after`] of the next start acknowledges the processed
    /// messages.
    pub async fn disconnect(mut self) {
        self.mark_done();
        let (done, closed) = oneshot::channel();
        if self.controls.send(Control::Disconnect(done)).await.is_ok() {
            // Nothing reads the remaining events, and the task must not wait for that.
            self.events.close();
            _ = closed.await;
        }
    }

    fn mark_done(&mut self) {
        if std::mem::take(&mut self.has_event) {
            self.sender.progress.done.fetch_add(1, Ordering::AcqRel);
            self.sender.progress.done_changed.notify_one();
        }
    }
}

impl Stream for Client {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        self.mark_done();
        let event = self.events.poll_recv(cx);
        self.has_event = matches!(event, Poll::Ready(Some(_)));
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
    /// Queues an application's message, like [`Client::send`].
    ///
    /// # Errors
    /// Fails if the data cannot be serialized, the queue is full, or the client has ended.
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
                mpsc::error::TrySendError::Closed(_) => ClientError::Ended,
            }
        })
    }
}
