//! WebSocket client that acknowledges messages as the published clients do.

use std::{net::SocketAddr, time::Duration};

use futures_util::{SinkExt as _, StreamExt as _};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::{WebSocketStream, tungstenite::Message};

/// Longest time until an expected frame arrives.
const FRAME_TIMEOUT: Duration = Duration::from_secs(120);

/// A received message.
#[derive(Clone, Debug, PartialEq)]
pub struct ReceivedMessage {
    /// Sequence, for a client that resumes; otherwise the position in the redelivery, `None` for a live message.
    pub s: Option<u64>,
    /// Data.
    pub d: Value,
}

/// A frame on an authenticated connection.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A message (op 0).
    Message(ReceivedMessage),
    /// Op 1: the server requests an acknowledgement of everything so far.
    AckRequest,
    /// Op 13: the range of the log that a resumed session will receive, and its gap.
    Resumed(Resumed),
    /// Op 11: the server has processed everything up to an op 1 of this client.
    Ack,
}

/// Result of resuming after a sequence.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Resumed {
    /// First sequence after the given one that the log still has.
    pub first: u64,
    /// Last sequence of the log.
    pub last: u64,
    /// Gap before `first`, if there is one.
    pub missed: Option<Gap>,
}

/// Sequences that are missing from the log, both ends included.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Gap {
    /// First missing sequence.
    pub from: u64,
    /// Last missing sequence.
    pub to: u64,
    /// Gap reason, one word.
    pub reason: String,
}

#[derive(Debug, Deserialize)]
struct Frame {
    op: u64,
    #[serde(default)]
    d: Value,
    s: Option<u64>,
}

/// Longest wait for the op 1 after op 22. Servers of the original send none.
const FIRST_ACK_REQUEST_TIMEOUT: Duration = Duration::from_millis(500);

/// Opens a WebSocket, without authentication.
///
/// # Errors
/// Fails if the connection or its handshake fails.
pub async fn connect_websocket(address: SocketAddr) -> Result<WebSocketStream<TcpStream>, String> {
    let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
    let connected = tokio_tungstenite::client_async(format!("ws://{address}/"), stream).await;
    connected.map(|(stream, _)| stream).map_err(|error| error.to_string())
}

/// An authenticated connection.
#[derive(Debug)]
pub struct Socket {
    stream: WebSocketStream<TcpStream>,
    /// The op 1 after op 22 may still arrive. It will be acknowledged and not returned.
    awaits_first_ack_request: bool,
    /// Frame that arrived instead of that op 1.
    early: Option<Frame>,
}

impl Socket {
    /// Connects and authenticates as `user`.
    ///
    /// # Errors
    /// Fails if the connection fails or the server closes it.
    pub async fn connect(address: SocketAddr, user: &str) -> Result<Self, String> {
        Self::connect_as(address, user, None, None).await
    }

    /// Connects as `user`, optionally resuming after a sequence, optionally as a device.
    ///
    /// # Errors
    /// Fails if the connection fails or the server closes it.
    pub async fn connect_as(
        address: SocketAddr,
        user: &str,
        after: Option<u64>,
        device: Option<&str>,
    ) -> Result<Self, String> {
        let stream = connect_websocket(address).await?;
        let mut socket = Self { stream, awaits_first_ack_request: false, early: None };
        let mut credentials = json!({ "token": user, "shouldSync": true });
        if let Some(after) = after {
            credentials["after"] = json!(after);
        }
        if let Some(device) = device {
            credentials["device"] = json!(device);
        }
        socket.send(&json!({ "op": 2, "d": credentials })).await?;
        loop {
            match socket.frame().await?.op {
                10 => {}
                22 if after.is_some() => return Ok(socket),
                22 => {
                    socket.acknowledge_first().await?;
                    return Ok(socket);
                }
                op => return Err(format!("op {op} before op 22")),
            }
        }
    }

    /// Returns the next frame. The caller has to acknowledge messages itself.
    ///
    /// # Errors
    /// Fails if the connection ends, or after [`FRAME_TIMEOUT`].
    pub async fn event(&mut self) -> Result<Event, String> {
        let frame = self.frame().await?;
        match frame.op {
            0 => Ok(Event::Message(ReceivedMessage { s: frame.s, d: frame.d })),
            1 => Ok(Event::AckRequest),
            11 => Ok(Event::Ack),
            13 => serde_json::from_value(frame.d).map(Event::Resumed).map_err(|error| format!("op 13: {error}")),
            op => Err(format!("op {op} among messages")),
        }
    }

    /// Acknowledges everything up to a sequence (op 3).
    ///
    /// # Errors
    /// Fails if the connection has ended.
    pub async fn acknowledge_through(&mut self, s: u64) -> Result<(), String> {
        self.send(&json!({ "op": 3, "d": { "s": s } })).await
    }

    /// Requests an [`Event::Ack`] (op 1).
    ///
    /// # Errors
    /// Fails if the connection has ended.
    pub async fn request_ack(&mut self) -> Result<(), String> {
        self.send(&json!({ "op": 1, "d": {} })).await
    }

    /// Waits until the socket has unread bytes.
    ///
    /// # Errors
    /// Fails if the connection has failed, or after [`FRAME_TIMEOUT`].
    pub async fn wait_readable(&self) -> Result<(), String> {
        let peeked = timeout(FRAME_TIMEOUT, self.stream.get_ref().peek(&mut [0])).await;
        peeked.map_err(|_| "nothing arrives")?.map(|_| ()).map_err(|error| error.to_string())
    }

    /// Sends a frame unchanged.
    ///
    /// # Errors
    /// Fails if the connection has ended.
    pub async fn send_frame(&mut self, frame: &Value) -> Result<(), String> {
        self.send(frame).await
    }

    /// Answers the oldest [`Event::AckRequest`] (op 11).
    ///
    /// # Errors
    /// Fails if the connection has ended.
    pub async fn acknowledge(&mut self) -> Result<(), String> {
        self.send(&json!({ "op": 11, "d": {} })).await
    }

    /// Closes the connection and waits until the server has closed it too.
    ///
    /// By then the server has processed all earlier frames of this client.
    ///
    /// # Errors
    /// Fails if the server does not complete the closing handshake, or closes first.
    pub async fn close(mut self) -> Result<(), String> {
        self.stream.close(None).await.map_err(|error| error.to_string())?;
        loop {
            match timeout(FRAME_TIMEOUT, self.stream.next()).await.map_err(|_| "the server does not close")? {
                Some(Ok(Message::Close(None))) => return Ok(()),
                // The client's close frame has no code, nor has the reply to it. A frame with a code was sent before.
                Some(Ok(Message::Close(Some(_)))) => return Err("the server closed first".into()),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error.to_string()),
                None => return Err("the connection broke".into()),
            }
        }
    }

    /// Resets the connection (TCP RST), as when the process is killed. Unread data is discarded.
    pub fn reset(self) {
        // A socket with a linger time of 0 s resets the connection when it is dropped.
        _ = socket2::SockRef::from(self.stream.get_ref()).set_linger(Some(Duration::ZERO));
    }

    /// Returns the next message, and acknowledges when the server requests it.
    ///
    /// # Errors
    /// Fails if the connection ends, or after [`FRAME_TIMEOUT`].
    pub async fn next(&mut self) -> Result<ReceivedMessage, String> {
        loop {
            let frame = self.frame().await?;
            match frame.op {
                0 => return Ok(ReceivedMessage { s: frame.s, d: frame.d }),
                1 => self.acknowledge().await?,
                op => return Err(format!("op {op} among messages")),
            }
        }
    }

    /// Acknowledges until `pending` returns 0: the server has no pending entries for the user.
    ///
    /// # Errors
    /// Fails if the connection ends or another message arrives.
    pub async fn acknowledge_all(&mut self, mut pending: impl FnMut() -> Result<u64, String>) -> Result<(), String> {
        for _ in 0..2_000 {
            if pending()? == 0 {
                return Ok(());
            }
            if let Ok(received) = timeout(Duration::from_millis(10), self.next()).await {
                return Err(format!("a message after the last expected one: {:?}", received?));
            }
        }
        Err("entries are still pending after 2,000 attempts".into())
    }

    async fn send(&mut self, frame: &Value) -> Result<(), String> {
        self.stream.send(Message::text(frame.to_string())).await.map_err(|error| error.to_string())
    }

    /// Answers the op 1 after op 22, so that the server starts to deliver.
    async fn acknowledge_first(&mut self) -> Result<(), String> {
        match timeout(FIRST_ACK_REQUEST_TIMEOUT, self.read()).await {
            Ok(Ok(frame)) if frame.op == 1 => self.acknowledge().await?,
            Ok(frame) => self.early = Some(frame?),
            Err(_) => self.awaits_first_ack_request = true,
        }
        Ok(())
    }

    async fn frame(&mut self) -> Result<Frame, String> {
        if let Some(early) = self.early.take() {
            return Ok(early);
        }
        let frame = self.read().await?;
        if std::mem::take(&mut self.awaits_first_ack_request) && frame.op == 1 {
            self.acknowledge().await?;
            return self.read().await;
        }
        Ok(frame)
    }

    async fn read(&mut self) -> Result<Frame, String> {
        loop {
            let message = timeout(FRAME_TIMEOUT, self.stream.next()).await.map_err(|_| "no further frame arrives")?;
            match message.ok_or("the connection has ended")?.map_err(|error| error.to_string())? {
                Message::Text(text) => return serde_json::from_str(&text).map_err(|error| format!("{error}: {text}")),
                Message::Ping(_) | Message::Pong(_) => {}
                other => return Err(format!("{other:?}")),
            }
        }
    }
}
