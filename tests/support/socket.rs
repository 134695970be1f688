//! A client over a WebSocket, which answers receipts as the published clients do.

use std::{net::SocketAddr, time::Duration};

use futures_util::{SinkExt as _, StreamExt as _};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::{WebSocketStream, tungstenite::Message};

/// Longest silence while something is still to come.
const PATIENCE: Duration = Duration::from_secs(120);

/// What was received.
#[derive(Clone, Debug, PartialEq)]
pub struct Received {
    /// Position in the redelivery; `None` for a live one.
    pub s: Option<u64>,
    /// The data.
    pub d: Value,
}

/// What comes over an authenticated connection.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A message.
    Message(Received),
    /// Op 1: whether everything so far has arrived.
    Question,
    /// Op 13: what there is of the log for one that resumes, and what is not there any more.
    Resumed(Resumed),
    /// Op 11: the server has heard everything up to an op 1 of the client's.
    Heard,
}

/// What one that resumes is told.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Resumed {
    /// The first sequence behind the one it named that is there.
    pub first: u64,
    /// The last.
    pub last: u64,
    /// What is not there.
    pub missed: Option<Missed>,
}

/// Sequences that are not there any more, both ends included, and why.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Missed {
    /// The first.
    pub from: u64,
    /// The last.
    pub to: u64,
    /// One word.
    pub reason: String,
}

#[derive(Debug, Deserialize)]
struct Frame {
    op: u64,
    #[serde(default)]
    d: Value,
    s: Option<u64>,
}

/// How long the op 1 that follows op 22 is waited for; servers of the original send none.
const FIRST_QUESTION: Duration = Duration::from_millis(500);

/// A connection that is authenticated.
#[derive(Debug)]
pub struct Socket {
    stream: WebSocketStream<TcpStream>,
    /// The op 1 that follows op 22 may still come: it will be answered and not reported.
    held: bool,
    /// Came while that op 1 was waited for.
    early: Option<Frame>,
}

impl Socket {
    /// Connects as `user`.
    ///
    /// # Errors
    /// When the server goes away.
    pub async fn connect(address: SocketAddr, user: &str) -> Result<Self, String> {
        Self::connect_as(address, user, None, None).await
    }

    /// Connects as one of a user's devices, or as one that resumes behind a sequence, or as both.
    ///
    /// # Errors
    /// When the server goes away.
    pub async fn connect_as(
        address: SocketAddr,
        user: &str,
        after: Option<u64>,
        device: Option<&str>,
    ) -> Result<Self, String> {
        let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
        let (stream, _) = tokio_tungstenite::client_async(format!("ws://{address}/"), stream)
            .await
            .map_err(|error| error.to_string())?;
        let mut socket = Self { stream, held: false, early: None };
        let mut who = json!({ "token": user, "shouldSync": true });
        if let Some(after) = after {
            who["after"] = json!(after);
        }
        if let Some(device) = device {
            who["device"] = json!(device);
        }
        socket.send(&json!({ "op": 2, "d": who })).await?;
        loop {
            match socket.frame().await?.op {
                10 => {}
                22 if after.is_some() => return Ok(socket),
                22 => {
                    socket.release().await?;
                    return Ok(socket);
                }
                op => return Err(format!("op {op} before the authentication was answered")),
            }
        }
    }

    /// The next thing that comes: for who answers by himself.
    ///
    /// # Errors
    /// When the connection ends, or nothing comes.
    pub async fn event(&mut self) -> Result<Event, String> {
        let frame = self.frame().await?;
        match frame.op {
            0 => Ok(Event::Message(Received { s: frame.s, d: frame.d })),
            1 => Ok(Event::Question),
            11 => Ok(Event::Heard),
            13 => serde_json::from_value(frame.d).map(Event::Resumed).map_err(|error| format!("op 13: {error}")),
            op => Err(format!("op {op} among messages")),
        }
    }

    /// Says that the application has processed everything up to a sequence (op 3).
    ///
    /// # Errors
    /// When the connection has ended.
    pub async fn confirm_through(&mut self, s: u64) -> Result<(), String> {
        self.send(&json!({ "op": 3, "d": { "s": s } })).await
    }

    /// Asks (op 1) for an [`Event::Heard`].
    ///
    /// # Errors
    /// When the connection has ended.
    pub async fn ask(&mut self) -> Result<(), String> {
        self.send(&json!({ "op": 1, "d": {} })).await
    }

    /// Waits until something has come that was not taken yet.
    ///
    /// # Errors
    /// When nothing comes.
    pub async fn readable(&self) -> Result<(), String> {
        let came = timeout(PATIENCE, self.stream.get_ref().peek(&mut [0])).await.map_err(|_| "nothing comes")?;
        came.map(|_| ()).map_err(|error| error.to_string())
    }

    /// Sends a frame as it stands.
    ///
    /// # Errors
    /// When the connection has ended.
    pub async fn say(&mut self, frame: &Value) -> Result<(), String> {
        self.send(frame).await
    }

    /// Answers the oldest question.
    ///
    /// # Errors
    /// When the connection has ended.
    pub async fn answer(&mut self) -> Result<(), String> {
        self.send(&json!({ "op": 11, "d": {} })).await
    }

    /// Closes, and waits until the server has closed too: by then it has heard everything that was said before.
    ///
    /// # Errors
    /// When it does not.
    pub async fn close(mut self) -> Result<(), String> {
        self.stream.close(None).await.map_err(|error| error.to_string())?;
        loop {
            match timeout(PATIENCE, self.stream.next()).await.map_err(|_| "the server does not close")? {
                Some(Ok(Message::Close(None))) => return Ok(()),
                // Ours has no reason, and so has the answer to it: this one was on its way before.
                Some(Ok(Message::Close(Some(_)))) => return Err("the server closed first".into()),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error.to_string()),
                None => return Err("the connection broke".into()),
            }
        }
    }

    /// Goes away as a process that was killed goes: what was not read yet is thrown away, and the peer is told so.
    pub fn reset(self) {
        // A socket that is dropped with unread data, or with this set, resets the connection.
        _ = socket2::SockRef::from(self.stream.get_ref()).set_linger(Some(Duration::ZERO));
    }

    /// The next message; answers what else comes.
    ///
    /// # Errors
    /// When the connection ends, or nothing comes.
    pub async fn next(&mut self) -> Result<Received, String> {
        loop {
            let frame = self.frame().await?;
            match frame.op {
                0 => return Ok(Received { s: frame.s, d: frame.d }),
                1 => self.answer().await?,
                op => return Err(format!("op {op} among messages")),
            }
        }
    }

    /// Goes on answering until the server has nothing pending for the user, as `pending` tells.
    ///
    /// # Errors
    /// When the connection ends, or a further message comes.
    pub async fn confirm(&mut self, mut pending: impl FnMut() -> Result<u64, String>) -> Result<(), String> {
        for _ in 0..2_000 {
            if pending()? == 0 {
                return Ok(());
            }
            if let Ok(received) = timeout(Duration::from_millis(10), self.next()).await {
                return Err(format!("a message beyond the last: {:?}", received?));
            }
        }
        Err("the server goes on waiting for a receipt".into())
    }

    async fn send(&mut self, frame: &Value) -> Result<(), String> {
        self.stream.send(Message::text(frame.to_string())).await.map_err(|error| error.to_string())
    }

    /// Answers the op 1 that follows op 22, so that the server starts its deliveries.
    async fn release(&mut self) -> Result<(), String> {
        match timeout(FIRST_QUESTION, self.read()).await {
            Ok(Ok(frame)) if frame.op == 1 => self.answer().await?,
            Ok(frame) => self.early = Some(frame?),
            Err(_) => self.held = true,
        }
        Ok(())
    }

    async fn frame(&mut self) -> Result<Frame, String> {
        if let Some(early) = self.early.take() {
            return Ok(early);
        }
        let frame = self.read().await?;
        if std::mem::take(&mut self.held) && frame.op == 1 {
            self.answer().await?;
            return self.read().await;
        }
        Ok(frame)
    }

    async fn read(&mut self) -> Result<Frame, String> {
        loop {
            let message = timeout(PATIENCE, self.stream.next()).await.map_err(|_| "nothing more comes")?;
            match message.ok_or("the connection has ended")?.map_err(|error| error.to_string())? {
                Message::Text(text) => return serde_json::from_str(&text).map_err(|error| format!("{error}: {text}")),
                Message::Ping(_) | Message::Pong(_) => {}
                other => return Err(format!("{other:?}")),
            }
        }
    }
}
