//! Defines [`Connection`], one connection to a server without reconnecting.
//!
//! **Acknowledgement.** The answer (opcode 11) to a heartbeat of the server (opcode 1) acknowledges all messages before
//! the heartbeat, and the server removes them. [`Connection::next`] answers only when it is called *again* after the
//! last of those messages. So process a message completely before the next call: a program that dies before gets the
//! message again. The server disconnects a client that stops calling `next`.
//!
//! **Resuming.** A program that stores its own position can resume ([`Options::after`]). Every message then has its
//! sequence in the user's log, [`ConnectionEvent::Resumed`] reports the state of the log, and
//! [`Connection::acknowledge`] acknowledges messages.

use std::{collections::VecDeque, future::poll_fn, task::Poll, time::Duration};

use futures_util::{SinkExt, StreamExt};
use serde::Serialize;
use serde_json::{Map, Value, value::to_raw_value};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        self, Error as WsError,
        protocol::{CloseFrame, frame::coding::CloseCode},
    },
};

use super::{
    close_code,
    codec::{self, Hello, Incoming},
    connect::Connector,
    error::{self, ClientError},
    event::{ConnectionEvent, Options},
    tls::Stream,
    transport::Transport,
};
use crate::{message::Seq, protocol::opcode};

/// Frames that are queued before the answer to an authentication. A mesa server sends few or none.
pub(super) const EARLY_FRAMES_MAX: usize = 1024;

/// Time limit for the greeting.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// Time limit for an authentication: longer than a server's default, so that its own close reason arrives first.
const AUTHENTICATION_TIMEOUT: Duration = Duration::from_secs(30);

/// Time limit for the closing handshake.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Protocol version that is announced to servers that require one.
const VERSION: &str = "1.5.3";

/// A connection to a server.
#[derive(Debug)]
pub struct Connection {
    socket: WebSocketStream<Stream>,
    hello: Hello,
    /// User object, once the client has authenticated.
    user: Option<Map<String, Value>>,
    /// Frames that arrived during an authentication, in order; at most [`EARLY_FRAMES_MAX`].
    early: VecDeque<Incoming>,
    /// Number of acknowledgements (opcode 11) that are due. A cancelled `next` does not change it.
    acks_due: usize,
    /// Whether the socket's buffer may have unsent data.
    unflushed: bool,
    /// Close code and reason.
    closed: Option<(u16, String)>,
}

impl Connection {
    /// Connects to `ws://HOST[:PORT][/PATH]` or `wss://`, and waits for the server's greeting.
    ///
    /// # Errors
    /// Fails if the address is invalid, the server is unreachable within 10 s, or it does not speak the protocol.
    pub async fn connect(url: &str) -> Result<Self, ClientError> {
        Self::connect_with(url, &Transport::default()).await
    }

    /// Connects with other certificates, or another proxy.
    ///
    /// # Errors
    /// Same as [`Connection::connect`]. Also fails if the certificates cannot be loaded.
    pub async fn connect_with(url: &str, transport: &Transport) -> Result<Self, ClientError> {
        let connector = Connector::new(url, transport).await?;
        Self::open(&connector).await
    }

    /// Connects by a prepared connector.
    pub(super) async fn open(connector: &Connector) -> Result<Self, ClientError> {
        let socket = connector.open().await?;
        let mut client = Self {
            socket,
            hello: Hello::default(),
            user: None,
            early: VecDeque::new(),
            acks_due: 0,
            unflushed: false,
            closed: None,
        };
        match tokio::time::timeout(HELLO_TIMEOUT, client.incoming()).await {
            Err(_) => return Err(ClientError::TimedOut { waited: HELLO_TIMEOUT, waiting_for: "greeting" }),
            Ok(Err(error)) => return Err(error),
            Ok(Ok(Incoming::Hello(hello))) => client.hello = hello,
            Ok(Ok(Incoming::Closed(code, reason))) => return Err(ClientError::Closed { code, reason }),
            Ok(Ok(_)) => return Err(ClientError::Protocol("its first frame is not a greeting".into())),
        }
        if client.hello.rules.iter().any(|rule| rule == "enforce_equal_versions") {
            client.send("CLIENT_VERSION", &Map::from_iter([("v".to_owned(), Value::from(VERSION))])).await?;
        }
        Ok(client)
    }

    /// Returns the latest greeting: the delay before reconnecting, and the server's rules.
    #[must_use]
    pub fn hello(&self) -> &Hello {
        &self.hello
    }

    /// Authenticates, and returns the user object (empty if the server does not send it).
    ///
    /// `data` is what the server's authenticator expects, most often [`token`](super::token). Without `should_sync` all
    /// pending messages of the user count as acknowledged.
    ///
    /// On an authenticated connection this renews the token. The server does not answer a renewal, so the call returns
    /// the known user at once. A rejected token closes the connection.
    ///
    /// # Errors
    /// Returns [`ClientError::Closed`] if the server closes the connection, which rejects the client, and
    /// [`ClientError::TimedOut`] without an answer for 30 s.
    pub async fn authenticate(
        &mut self,
        data: Map<String, Value>,
        should_sync: bool,
    ) -> Result<Map<String, Value>, ClientError> {
        self.authenticate_with(data, &Options { should_sync, ..Options::default() }).await
    }

    /// Authenticates with all options.
    ///
    /// # Errors
    /// Same as [`Connection::authenticate`].
    pub async fn authenticate_with(
        &mut self,
        mut data: Map<String, Value>,
        options: &Options,
    ) -> Result<Map<String, Value>, ClientError> {
        data.insert("shouldSync".into(), options.should_sync.into());
        data.extend(options.after.map(|after| ("after".into(), after.into())));
        data.extend(options.device.as_ref().map(|device| ("device".into(), device.as_str().into())));
        self.send_frame(opcode::AUTHENTICATION, None, &data).await?;
        if let Some(user) = &self.user {
            return Ok(user.clone());
        }
        match tokio::time::timeout(AUTHENTICATION_TIMEOUT, self.authenticated()).await {
            Ok(answer) => answer,
            Err(_) => Err(ClientError::TimedOut { waited: AUTHENTICATION_TIMEOUT, waiting_for: "authentication" }),
        }
    }

    /// Waits for the answer to an authentication.
    async fn authenticated(&mut self) -> Result<Map<String, Value>, ClientError> {
        loop {
            self.send_acks().await?;
            match self.incoming().await? {
                Incoming::Authenticated(user) => return Ok(self.user.insert(user).clone()),
                Incoming::Closed(code, reason) => return Err(ClientError::Closed { code, reason }),
                Incoming::Hello(hello) => self.hello = hello,
                // No message precedes the heartbeat, so the program has none to process first.
                Incoming::Heartbeat if self.early.is_empty() => self.acks_due += 1,
                early => {
                    if self.early.len() == EARLY_FRAMES_MAX {
                        return Err(ClientError::Protocol(format!(
                            "it sent more than {EARLY_FRAMES_MAX} frames before the answer to the authentication"
                        )));
                    }
                    self.early.push_back(early);
                }
            }
        }
    }

    /// Returns the next event, and acknowledges earlier messages, as the module describes.
    ///
    /// Cancel-safe, as in `select!`.
    ///
    /// # Errors
    /// Fails if the server violates the protocol; the connection is unusable then.
    pub async fn next(&mut self) -> Result<ConnectionEvent, ClientError> {
        loop {
            self.send_acks().await?;
            let incoming = match self.early.pop_front() {
                Some(early) => early,
                None => self.incoming().await?,
            };
            match incoming {
                Incoming::Message { op, data, kind, position } => {
                    return Ok(ConnectionEvent::Message { op, data, kind, position });
                }
                Incoming::Heartbeat => self.acks_due += 1,
                Incoming::Closed(code, reason) => return Ok(ConnectionEvent::Closed { code, reason }),
                Incoming::Resumed { first, last, missed } => {
                    return Ok(ConnectionEvent::Resumed { first, last, missed });
                }
                // A server that shuts down may announce another reconnect interval.
                Incoming::Hello(hello) => self.hello = hello,
                Incoming::Authenticated(_) | Incoming::HeartbeatAck | Incoming::Pong => {}
            }
        }
    }

    /// Sends an application's message (opcode 0).
    ///
    /// # Errors
    /// Fails if the data cannot be serialized. A connection that breaks is no error here: [`Connection::next`] reports it.
    pub async fn send(&mut self, kind: &str, data: &impl Serialize) -> Result<(), ClientError> {
        self.send_frame(opcode::DISPATCH, Some(kind), data).await
    }

    /// Acknowledges all entries up to a sequence of the user's log.
    ///
    /// For clients that resume. Others acknowledge by [`Connection::next`].
    ///
    /// # Errors
    /// Same as [`Connection::send`].
    pub async fn acknowledge(&mut self, seq: Seq) -> Result<(), ClientError> {
        self.write(codec::acknowledge(seq)).await?;
        self.flush().await
    }

    /// Sends a frame with any opcode.
    ///
    /// # Errors
    /// Same as [`Connection::send`].
    pub async fn send_frame(&mut self, op: u64, kind: Option<&str>, data: &impl Serialize) -> Result<(), ClientError> {
        let data = to_raw_value(data).map_err(|error| ClientError::Data(error.to_string()))?;
        self.write(codec::encode(op, &data, kind)).await?;
        self.flush().await
    }

    /// Closes the connection, and waits up to 1 s for the server's close frame. Unread messages stay pending.
    pub async fn close(mut self) {
        let close_frame = CloseFrame { code: CloseCode::Normal, reason: "".into() };
        let closing = async {
            if self.socket.close(Some(close_frame)).await.is_ok() {
                while let Some(Ok(_)) = self.socket.next().await {}
            }
        };
        // The socket is dropped after this, with or without an answer.
        _ = tokio::time::timeout(CLOSE_TIMEOUT, closing).await;
    }

    /// Sends the acknowledgements that are due. Cancel-safe: those that are not in the socket's buffer stay due.
    async fn send_acks(&mut self) -> Result<(), ClientError> {
        while self.acks_due > 0 {
            self.write(codec::heartbeat_ack()).await?;
            self.acks_due -= 1;
        }
        self.flush().await
    }

    /// Appends a text to the socket's buffer, and does not wait until it is sent. Cancel-safe: all of the text or
    /// nothing.
    pub(super) async fn write(&mut self, text: String) -> Result<(), ClientError> {
        self.write_frame(tungstenite::Message::text(text)).await
    }

    /// Appends a ping to the socket's buffer, like [`Connection::write`].
    pub(super) async fn write_ping(&mut self) -> Result<(), ClientError> {
        self.write_frame(tungstenite::Message::Ping(Vec::new().into())).await
    }

    async fn write_frame(&mut self, frame: tungstenite::Message) -> Result<(), ClientError> {
        if self.closed.is_some() {
            return Ok(());
        }
        let mut result = poll_fn(|context| self.socket.poll_ready_unpin(context)).await;
        if result.is_ok() {
            result = self.socket.start_send_unpin(frame);
            self.unflushed = true;
        }
        result.or_else(|error| self.write_failed(error))
    }

    async fn flush(&mut self) -> Result<(), ClientError> {
        if !self.unflushed || self.closed.is_some() {
            return Ok(());
        }
        let flushed = self.socket.flush().await;
        self.unflushed = false;
        flushed.or_else(|error| self.write_failed(error))
    }

    /// Ignores a write error of an ended connection.
    ///
    /// Frames that the server sent before the end can still be read. Then reading reports the end.
    #[expect(clippy::unused_self, reason = "reads as a step of the connection")]
    fn write_failed(&self, error: WsError) -> Result<(), ClientError> {
        match error {
            WsError::ConnectionClosed | WsError::AlreadyClosed | WsError::Io(_) | WsError::Protocol(_) => Ok(()),
            other => Err(ClientError::Data(other.to_string())),
        }
    }

    /// Sends buffered data and, if `listen`, reads a frame. Cancel-safe.
    ///
    /// `None`: the data is sent, or the frame was another control frame of WebSocket than a pong.
    pub(super) async fn step(&mut self, listen: bool) -> Result<Option<Incoming>, ClientError> {
        if listen && let Some(early) = self.early.pop_front() {
            return Ok(Some(early));
        }
        self.poll_step(listen).await
    }

    /// Returns whether some buffered data is not sent yet.
    pub(super) fn is_sending(&self) -> bool {
        self.unflushed && self.closed.is_none()
    }

    /// Returns whether the client has authenticated on this connection.
    pub(super) fn is_authenticated(&self) -> bool {
        self.user.is_some()
    }

    pub(super) fn set_hello(&mut self, hello: Hello) {
        self.hello = hello;
    }

    /// Reads one frame, skipping control frames of WebSocket, and answers to heartbeats of the client.
    async fn incoming(&mut self) -> Result<Incoming, ClientError> {
        loop {
            match self.poll_step(true).await? {
                None | Some(Incoming::HeartbeatAck | Incoming::Pong) => {}
                Some(incoming) => return Ok(incoming),
            }
        }
    }

    async fn poll_step(&mut self, listen: bool) -> Result<Option<Incoming>, ClientError> {
        if let Some((code, reason)) = &self.closed {
            return Ok(Some(Incoming::Closed(*code, reason.clone())));
        }
        let frame = poll_fn(|context| {
            if self.unflushed && self.socket.poll_flush_unpin(context).is_ready() {
                self.unflushed = false;
                return Poll::Ready(None);
            }
            if listen { self.socket.poll_next_unpin(context).map(Some) } else { Poll::Pending }
        });
        let Some(frame) = frame.await else { return Ok(None) };
        match frame {
            Some(Ok(tungstenite::Message::Text(text))) => return codec::decode(text.as_str()).map(Some),
            Some(Ok(tungstenite::Message::Binary(_))) => {
                return Err(ClientError::Protocol("it sent a binary frame".into()));
            }
            Some(Ok(tungstenite::Message::Close(close_frame))) => {
                self.closed = Some(match close_frame {
                    Some(frame) => (frame.code.into(), frame.reason.as_str().to_owned()),
                    None => (close_code::NO_CODE, String::new()),
                });
                // The server waits for our close frame, which a flush sends.
                _ = tokio::time::timeout(CLOSE_TIMEOUT, self.socket.flush()).await;
            }
            Some(Ok(tungstenite::Message::Pong(_))) => return Ok(Some(Incoming::Pong)),
            // The WebSocket layer answers pings.
            Some(Ok(_)) => {}
            Some(Err(WsError::Capacity(error))) => {
                return Err(ClientError::Protocol(format!("it sent a frame that is too large: {error}")));
            }
            Some(Err(error)) => self.closed = Some((close_code::LOST, error::describe_loss(&error))),
            None => self.closed = Some((close_code::LOST, "the connection ended".into())),
        }
        Ok(None)
    }
}
