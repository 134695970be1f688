//! One connection to a server, which does not come back by itself.
//!
//! **What a receipt says.** The server asks "have you got everything up to here?" (opcode 1), and the answer (opcode 11)
//! lets it forget those messages. [`Connection::next`] answers only when it is called *again* after handing out the message
//! before the question: whoever takes a message and dies before asking for the next one is sent it once more. So finish
//! with a message (write it down, if it matters) before calling `next`, and do call it: a client that stops calling is
//! taken for gone.
//!
//! **Resuming.** A program that writes down itself how far it has come asks to resume ([`Options::after`]): every message
//! then carries its sequence in the user's log, [`ConnectionEvent::Resumed`] says what is there and what is not any more, and it is
//! [`Connection::confirm`] that lets the server forget.

use std::{collections::VecDeque, future::poll_fn, task::Poll, time::Duration};

use futures_util::{SinkExt, StreamExt};
use serde::Serialize;
use serde_json::{Map, Value, value::to_raw_value};
use tokio::net::TcpStream;
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
    connect,
    error::{self, ClientError},
    event::{ConnectionEvent, Options},
};
use crate::{message::Seq, protocol::opcode};

/// Messages that are kept while the server has not answered the authentication yet; it should send none by then.
pub(super) const EARLY_MESSAGES_MAX: usize = 1024;

/// How long the first frame may take to come.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// How long an authentication may take: longer than a server waits by default, so that its own word comes first.
const AUTHENTICATION_TIMEOUT: Duration = Duration::from_secs(30);

/// How long the server has to say goodbye as well.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// The version of the protocol that is announced to servers which insist on one.
const VERSION: &str = "1.5.3";

/// One connection to a server.
#[derive(Debug)]
pub struct Connection {
    socket: WebSocketStream<TcpStream>,
    hello: Hello,
    /// What came before it was asked for, in order; at most [`EARLY_MESSAGES_MAX`].
    early: VecDeque<Incoming>,
    /// Receipts that are due. Counted, not sent at once, so that a dropped `next` loses none.
    receipts_due: usize,
    /// Something was handed to the socket and may still lie in its buffer.
    unflushed: bool,
    /// How it ended.
    closed: Option<(u16, String)>,
}

impl Connection {
    /// Connects to `ws://HOST[:PORT][/PATH]` and waits for the server's first word.
    ///
    /// # Errors
    /// When the address makes no sense, nobody answers there within ten seconds, or who does is no such server.
    pub async fn connect(url: &str) -> Result<Self, ClientError> {
        let socket = connect::dial(url).await?;
        let mut client = Self {
            socket,
            hello: Hello::default(),
            early: VecDeque::new(),
            receipts_due: 0,
            unflushed: false,
            closed: None,
        };
        match tokio::time::timeout(HELLO_TIMEOUT, client.incoming()).await {
            Err(_) => return Err(ClientError::Silent { waited: HELLO_TIMEOUT, waiting_for: "greeting" }),
            Ok(Err(error)) => return Err(error),
            Ok(Ok(Incoming::Hello(hello))) => client.hello = hello,
            Ok(Ok(Incoming::Closed(code, reason))) => return Err(ClientError::Refused { code, reason }),
            Ok(Ok(_)) => return Err(ClientError::Protocol("it did not begin with a greeting".into())),
        }
        if client.hello.rules.iter().any(|rule| rule == "enforce_equal_versions") {
            client.send("CLIENT_VERSION", &Map::from_iter([("v".to_owned(), Value::from(VERSION))])).await?;
        }
        Ok(client)
    }

    /// What the server said first: how long to wait before coming back, and its rules.
    #[must_use]
    pub fn hello(&self) -> &Hello {
        &self.hello
    }

    /// Says who this is, and returns the user object (empty if the server keeps that to itself).
    ///
    /// `data` is whatever the server's way of authentication asks for, most often [`token`](super::token). With `should_sync` false the
    /// server forgets what this user has missed.
    ///
    /// # Errors
    /// [`ClientError::Refused`] when the server closes the connection, which is how it says no, and
    /// [`ClientError::Silent`] when it says nothing for thirty seconds.
    pub async fn authenticate(
        &mut self,
        data: Map<String, Value>,
        should_sync: bool,
    ) -> Result<Map<String, Value>, ClientError> {
        self.authenticate_with(data, &Options { should_sync, ..Options::default() }).await
    }

    /// The same, with all that a client can ask for.
    ///
    /// # Errors
    /// As [`Connection::authenticate`].
    pub async fn authenticate_with(
        &mut self,
        mut data: Map<String, Value>,
        options: &Options,
    ) -> Result<Map<String, Value>, ClientError> {
        data.insert("shouldSync".into(), options.should_sync.into());
        data.extend(options.after.map(|after| ("after".into(), after.into())));
        data.extend(options.device.as_ref().map(|device| ("device".into(), device.as_str().into())));
        self.send_frame(opcode::AUTHENTICATION, None, &data).await?;
        match tokio::time::timeout(AUTHENTICATION_TIMEOUT, self.acknowledged()).await {
            Ok(answer) => answer,
            Err(_) => Err(ClientError::Silent { waited: AUTHENTICATION_TIMEOUT, waiting_for: "authentication" }),
        }
    }

    /// Waits for the answer to an authentication.
    async fn acknowledged(&mut self) -> Result<Map<String, Value>, ClientError> {
        loop {
            self.settle_receipts().await?;
            match self.incoming().await? {
                Incoming::Authenticated(user) => return Ok(user),
                Incoming::Closed(code, reason) => return Err(ClientError::Refused { code, reason }),
                Incoming::Hello(hello) => self.hello = hello,
                // Nothing was received before it, so there is nothing the application would have to take first.
                Incoming::ReceiptWanted if self.early.is_empty() => self.receipts_due += 1,
                early => {
                    if self.early.len() == EARLY_MESSAGES_MAX {
                        return Err(ClientError::Protocol(format!(
                            "it sent more than {EARLY_MESSAGES_MAX} frames before it answered the authentication"
                        )));
                    }
                    self.early.push_back(early);
                }
            }
        }
    }

    /// The next message, or how the connection ended. Also confirms what was handed out before: see the module.
    ///
    /// Safe to drop half-way, as in `select!`: nothing is lost.
    ///
    /// # Errors
    /// When the server sends what is no frame of the protocol; the connection is of no use then.
    pub async fn next(&mut self) -> Result<ConnectionEvent, ClientError> {
        loop {
            self.settle_receipts().await?;
            let incoming = match self.early.pop_front() {
                Some(early) => early,
                None => self.incoming().await?,
            };
            match incoming {
                Incoming::Message { op, data, kind, position } => {
                    return Ok(ConnectionEvent::Message { op, data, kind, position });
                }
                Incoming::ReceiptWanted => self.receipts_due += 1,
                Incoming::Closed(code, reason) => return Ok(ConnectionEvent::Closed { code, reason }),
                Incoming::Resumed { first, last, missed } => {
                    return Ok(ConnectionEvent::Resumed { first, last, missed });
                }
                // A server that is about to go may name another interval.
                Incoming::Hello(hello) => self.hello = hello,
                Incoming::Authenticated(_) => {}
            }
        }
    }

    /// Sends an application's message: opcode 0.
    ///
    /// # Errors
    /// When the data has no JSON form. A connection that breaks meanwhile is not an error here: [`Connection::next`] tells.
    pub async fn send(&mut self, kind: &str, data: &impl Serialize) -> Result<(), ClientError> {
        self.send_frame(opcode::DISPATCH, Some(kind), data).await
    }

    /// Lets the server forget everything up to a sequence of the user's log. For clients that resume; others confirm by
    /// [`Connection::next`].
    ///
    /// # Errors
    /// As [`Connection::send`].
    pub async fn confirm(&mut self, seq: Seq) -> Result<(), ClientError> {
        self.write(codec::confirm(seq)).await?;
        self.flush().await
    }

    /// Sends a frame with any opcode.
    ///
    /// # Errors
    /// As [`Connection::send`].
    pub async fn send_frame(&mut self, op: u64, kind: Option<&str>, data: &impl Serialize) -> Result<(), ClientError> {
        let data = to_raw_value(data).map_err(|error| ClientError::Data(error.to_string()))?;
        self.write(codec::encode(op, &data, kind)).await?;
        self.flush().await
    }

    /// Says goodbye, and waits a moment for the server to do the same. What was not read stays with the server.
    pub async fn close(mut self) {
        let farewell = CloseFrame { code: CloseCode::Normal, reason: "".into() };
        let goodbye = async {
            if self.socket.close(Some(farewell)).await.is_ok() {
                while let Some(Ok(_)) = self.socket.next().await {}
            }
        };
        // Whether the server answers or not, the socket is gone after this.
        _ = tokio::time::timeout(CLOSE_TIMEOUT, goodbye).await;
    }

    /// Sends the receipts that are due. May be dropped half-way: what was not handed over stays due.
    async fn settle_receipts(&mut self) -> Result<(), ClientError> {
        while self.receipts_due > 0 {
            self.write(codec::receipt()).await?;
            self.receipts_due -= 1;
        }
        self.flush().await
    }

    /// Hands a text to the socket, without a point at which dropping would leave it half handed over.
    async fn write(&mut self, text: String) -> Result<(), ClientError> {
        if self.closed.is_some() {
            return Ok(());
        }
        let mut handed = poll_fn(|context| self.socket.poll_ready_unpin(context)).await;
        if handed.is_ok() {
            handed = self.socket.start_send_unpin(tungstenite::Message::text(text));
            self.unflushed = true;
        }
        handed.or_else(|error| self.write_failed(error))
    }

    async fn flush(&mut self) -> Result<(), ClientError> {
        if !self.unflushed || self.closed.is_some() {
            return Ok(());
        }
        let flushed = self.socket.flush().await;
        self.unflushed = false;
        flushed.or_else(|error| self.write_failed(error))
    }

    /// A write that fails because the connection is over is no error of its own: what the server said before it went
    /// can still be read, and reading tells of the end.
    #[expect(clippy::unused_self, reason = "reads as a step of the connection")]
    fn write_failed(&self, error: WsError) -> Result<(), ClientError> {
        match error {
            WsError::ConnectionClosed | WsError::AlreadyClosed | WsError::Io(_) | WsError::Protocol(_) => Ok(()),
            other => Err(ClientError::Data(other.to_string())),
        }
    }

    /// Sends what waits and, where `listen` says so, hears what comes. `None`: what waited is sent, or nothing of interest
    /// came. Safe to drop half-way.
    pub(super) async fn step(&mut self, listen: bool) -> Result<Option<Incoming>, ClientError> {
        if listen && let Some(early) = self.early.pop_front() {
            return Ok(Some(early));
        }
        self.take_step(listen).await
    }

    /// Puts a text behind what waits to be sent, without waiting for that.
    pub(super) async fn post(&mut self, text: String) -> Result<(), ClientError> {
        self.write(text).await
    }

    /// Whether what was posted is still waiting to be sent.
    pub(super) fn is_sending(&self) -> bool {
        self.unflushed && self.closed.is_none()
    }

    pub(super) fn take_hello(&mut self, hello: Hello) {
        self.hello = hello;
    }

    /// Reads one frame, passing over what WebSocket keeps for itself.
    async fn incoming(&mut self) -> Result<Incoming, ClientError> {
        loop {
            if let Some(incoming) = self.take_step(true).await? {
                return Ok(incoming);
            }
        }
    }

    async fn take_step(&mut self, listen: bool) -> Result<Option<Incoming>, ClientError> {
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
            Some(Ok(tungstenite::Message::Close(farewell))) => {
                self.closed = Some(match farewell {
                    Some(frame) => (frame.code.into(), frame.reason.as_str().to_owned()),
                    None => (close_code::NO_CODE, String::new()),
                });
                // The answer to a goodbye waits for a flush, and the server waits for the answer.
                _ = tokio::time::timeout(CLOSE_TIMEOUT, self.socket.flush()).await;
            }
            // Pings are answered by the WebSocket layer itself.
            Some(Ok(_)) => {}
            Some(Err(WsError::Capacity(error))) => {
                return Err(ClientError::Protocol(format!("it sent a frame that is too large: {error}")));
            }
            Some(Err(error)) => self.closed = Some((close_code::LOST, error::lost(&error))),
            None => self.closed = Some((close_code::LOST, "the connection ended".into())),
        }
        Ok(None)
    }
}
