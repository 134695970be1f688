//! Defines [`Client`], the handle of a reconnecting client. Its background task is in `driver`.

use std::{
    fmt,
    future::{Future, poll_fn},
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::{Stream, StreamExt};
use serde::Serialize;
use serde_json::{Map, Value, value::to_raw_value};
use tokio::sync::{mpsc, oneshot};

use super::{
    Connection, close_code, codec,
    connect::Connector,
    credentials::Credentials,
    driver::Driver,
    error::ClientError,
    event::{Event, Options},
    exchange::{Control, Progress, QueuedEvent},
    pace::MESSAGES_PER_SECOND,
    position::{PositionStore, Positions},
    transport::Transport,
};
use crate::{message::Seq, protocol::opcode};

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

/// Configures how a client connects, reconnects and resumes.
#[must_use = "a builder does nothing until it connects"]
#[derive(Clone, Debug)]
pub struct ClientBuilder {
    url: String,
    interval: Option<Duration>,
    reconnect_delay_max: Duration,
    messages_per_second: u32,
    transport: Transport,
    positions: Option<Arc<dyn PositionStore>>,
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

    /// Sets the rate at which messages are sent, averaged over 10 s. Default 50, so 500 at once.
    ///
    /// Further messages wait in the queue. Stay below the server's `limits.framesPerSecond` (default 100), which closes
    /// the connection of a faster client. After such a close the client reconnects, and halves its rate.
    pub fn messages_per_second(mut self, rate: u32) -> Self {
        self.messages_per_second = rate;
        self
    }

    /// Sets certificates and proxy.
    pub fn transport(mut self, transport: Transport) -> Self {
        self.transport = transport;
        self
    }

    /// Sets the store of the client's position in the user's log, so that the client resumes also in the next process.
    ///
    /// The stored position is `after` of the authentication, in place of [`Options::after`], which counts only while the
    /// store is empty (default 0). The position moves after the program has processed a message, before the server gets
    /// the acknowledgement, and before [`Client::next`] returns the next event.
    pub fn positions(mut self, store: impl PositionStore) -> Self {
        self.positions = Some(Arc::new(store));
        self
    }

    /// Connects for the first time, within 10 s.
    ///
    /// # Errors
    /// Fails if this attempt fails, or the stored position cannot be loaded. A client reconnects only after a first
    /// connection.
    pub async fn connect(self) -> Result<Client, ClientError> {
        let positions = match self.positions {
            Some(store) => Some(Positions::load(store).await?),
            None => None,
        };
        let connector = Connector::new(&self.url, &self.transport).await?;
        let connection = Connection::open(&connector).await?;
        let (events_in, events) = mpsc::channel(EVENTS_MAX);
        let (sends, sends_out) = mpsc::channel(UNSENT_MAX);
        let (controls, controls_out) = mpsc::channel(CONTROLS_MAX);
        let progress = Arc::new(Progress::default());
        let settings = (connector, self.interval, self.reconnect_delay_max, self.messages_per_second);
        let driver = Driver::new(settings, events_in, sends_out, controls_out, progress.clone());
        tokio::spawn(driver.run(connection));
        Ok(Client {
            events,
            sender: Sender { sends, progress },
            controls,
            in_progress: None,
            positions,
            is_ended: false,
        })
    }
}

/// A client that reconnects after its connection broke, or the server closed it with a code that permits a reconnect.
///
/// The delay is [`ClientBuilder::reconnect_interval`], or else the server's `reconnect.interval`. Without either the
/// client does not reconnect, like the original. The delay doubles after each failed attempt, up to
/// [`ClientBuilder::reconnect_delay_max`]. An attempt has succeeded when a message arrives, or the connection has lasted
/// 10 s. The client waits a random time between half of the delay and all of it (jitter), so
/// that a thousand clients do not reconnect at once.
///
/// **A dead server.** After 25 s without a frame (or the server's heartbeat interval) the client requests an answer.
/// Without one for 10 s it reconnects. The timer does not run while the queue of events is full.
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
/// **Resuming** ([`Options::after`]). The client counts the sequences, and sends that of the last processed message
/// whenever it reconnects. It acknowledges processed messages by op 3, at most every 50 ms. So no message is lost or
/// repeated over broken connections and a killed server.
///
/// **Restarting.** With [`ClientBuilder::positions`] the client stores its position, and resumes from it at the next
/// start. It is stored before `next` returns the following event. So a program that is killed gets at most the message
/// in progress again, and loses none. A program can also store the position itself, together with the effect of the
/// message: [`Delivery::position`] of the last processed message is `after` of the next start.
///
/// **Sending.** Messages sent while the client is offline are queued in memory: 1,024 messages or 4 MiB, then
/// [`ClientError::Full`]. They are sent after the client has reconnected and authenticated, at the rate of
/// [`ClientBuilder::messages_per_second`]. They are not acknowledged: a message in flight may be lost when a connection
/// breaks.
///
/// Dropping it closes the connection. It needs a tokio runtime.
///
/// [`Delivery::position`]: super::Delivery::position
pub struct Client {
    events: mpsc::Receiver<QueuedEvent>,
    sender: Sender,
    controls: mpsc::Sender<Control>,
    /// Set if the last call of `next` returned an event, which the program is processing: the position after it.
    in_progress: Option<Option<Seq>>,
    positions: Option<Positions>,
    /// Set if the position cannot be stored. Then there is no further event.
    is_ended: bool,
}

impl Client {
    /// Configures a client of the server at `ws://HOST[:PORT][/PATH]` or `wss://`.
    pub fn builder(url: &str) -> ClientBuilder {
        ClientBuilder {
            url: url.to_owned(),
            interval: None,
            reconnect_delay_max: RECONNECT_DELAY_MAX,
            messages_per_second: MESSAGES_PER_SECOND,
            transport: Transport::default(),
            positions: None,
        }
    }

    /// Connects to `ws://HOST[:PORT][/PATH]` or `wss://`, within 10 s.
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
    /// On an authenticated connection this renews the token, and returns the known user at once. The options of the
    /// first authentication stay. A token of another user closes the connection.
    ///
    /// # Errors
    /// Returns [`ClientError::Closed`] if the server rejects the credentials.
    pub async fn authenticate(
        &mut self,
        credentials: Map<String, Value>,
        options: Options,
    ) -> Result<Map<String, Value>, ClientError> {
        self.authenticate_as(Credentials::Fixed(credentials), options).await
    }

    /// Authenticates with credentials that are made for each connection, for tokens that expire.
    ///
    /// The client reconnects with new credentials when the token expires.
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
        self.authenticate_as(Credentials::Function(Box::new(move || Box::pin(credentials()))), options).await
    }

    async fn authenticate_as(
        &mut self,
        credentials: Credentials,
        mut options: Options,
    ) -> Result<Map<String, Value>, ClientError> {
        if let Some(positions) = &self.positions {
            options.after = positions.saved().or(options.after).or(Some(0));
        }
        let (answer, answered) = oneshot::channel();
        let sent = self.controls.send(Control::Authenticate { credentials, options, answer }).await;
        sent.map_err(|_| ClientError::Ended)?;
        answered.await.map_err(|_| ClientError::Ended)?
    }

    /// Returns the next event; `None` when the client has ended. Cancel-safe, as in `select!`.
    pub async fn next(&mut self) -> Option<Event> {
        StreamExt::next(self).await
    }

    /// Acknowledges the last event now, as the following call of [`Client::next`] would.
    ///
    /// For programs that wait long before that call. Returns after the position is stored, if there is a store.
    ///
    /// # Errors
    /// Fails if the position cannot be stored. Then the event is not acknowledged, and the call can be repeated.
    pub async fn acknowledge(&mut self) -> Result<(), ClientError> {
        poll_fn(|context| self.poll_done(context)).await
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
        // Without the position stored, the message must stay unacknowledged. It is repeated at the next start.
        _ = self.acknowledge().await;
        let (done, closed) = oneshot::channel();
        if self.controls.send(Control::Disconnect(done)).await.is_ok() {
            // Nothing reads the remaining events, and the task must not wait for that.
            self.events.close();
            _ = closed.await;
        }
    }

    /// Stores the position after the event in progress, and then counts the event as processed.
    ///
    /// In this order: the server may remove an acknowledged message, and a message whose position is not stored is
    /// requested again at the next start.
    fn poll_done(&mut self, context: &mut Context<'_>) -> Poll<Result<(), ClientError>> {
        let Some(position) = self.in_progress else { return Poll::Ready(Ok(())) };
        if let (Some(position), Some(positions)) = (position, &mut self.positions) {
            ready!(positions.poll_save(position, context))?;
        }
        self.in_progress = None;
        self.sender.progress.done.fetch_add(1, Ordering::AcqRel);
        self.sender.progress.done_changed.notify_one();
        Poll::Ready(Ok(()))
    }

    /// Ends the client because its position cannot be stored. Returns the last event.
    fn end(&mut self, error: &ClientError) -> Event {
        // The driver closes the connection. The event in progress stays unacknowledged.
        self.events.close();
        self.is_ended = true;
        self.in_progress = None;
        Event::Disconnected { code: close_code::LOST, reason: error.to_string(), will_reconnect: false }
    }
}

impl Stream for Client {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        if self.is_ended {
            return Poll::Ready(None);
        }
        if let Err(error) = ready!(self.poll_done(cx)) {
            return Poll::Ready(Some(self.end(&error)));
        }
        let Some((event, position)) = ready!(self.events.poll_recv(cx)) else { return Poll::Ready(None) };
        self.in_progress = Some(position);
        Poll::Ready(Some(event))
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
