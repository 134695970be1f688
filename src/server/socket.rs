//! A WebSocket over TCP with buffers that shrink: the only place of the server that names tungstenite.
//!
//! tungstenite reads, checks and answers control frames; what it writes goes into the same buffer as the frames we
//! write ourselves, and that buffer alone is written to the socket, in one call for all that is ready. A frame of
//! ours is a header and a text that was made when the message was dispatched. The buffer is given back when it is
//! empty, so that an idle connection costs what it costs and not what its busiest moment did.

use std::{
    future::poll_fn,
    io,
    mem::MaybeUninit,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{Sink, Stream};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Error, Message, Utf8Bytes,
        error::{CapacityError, ProtocolError},
        handshake::derive_accept_key,
        protocol::{
            CloseFrame, Role, WebSocketConfig,
            frame::{FrameHeader, coding::Data, coding::OpCode},
        },
    },
};

use super::fragments::Fragments;
use crate::protocol::close_code::CloseCode;

/// What tungstenite reads from the socket at once. Clients say little; a larger frame is read in several goes.
const READ_BUFFER_BYTES: usize = 512;

/// Capacity an empty write buffer may keep: enough for a heartbeat or a lone message.
const KEPT_BYTES_MAX: usize = 512;

/// What the kernel takes from us beyond what is on its way: a question must not stand behind megabytes that a slow
/// client will need minutes for.
#[cfg(target_os = "linux")]
const KERNEL_UNSENT_BYTES: u32 = 128 << 10;

/// How long the kernel may go without an answer from the peer's for what was written, before it gives the connection
/// up. Closes half-open connections that have something to read.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a peer that was sent a close frame may go on sending; then the connection is reset.
const LINGER_TIMEOUT: Duration = Duration::from_secs(3);

/// How much it may send in that time; then the connection is reset. Twice the largest `limits.frameBytes`.
pub(super) const LINGER_BYTES_MAX: usize = 32 << 20;

/// How much of that is read at once.
const DISCARD_BYTES: usize = 8 << 10;

/// What stands for the code of a close frame that has none.
const NO_CODE: u16 = 1005;

/// What a peer said.
#[derive(Debug)]
pub(super) enum Inbound {
    Text(Utf8Bytes),
    /// The answer is in the write buffer by the time the next thing is heard.
    Ping,
    Pong(Bytes),
    /// The peer closed and said this, or the connection is gone without a word.
    Closed(Option<Box<(u16, String)>>),
    /// So many frames that are no whole message yet; to be charged, and then there may be more.
    Fragments(u32),
    /// The peer broke the protocol: close with this code and reason.
    Refused(CloseCode, &'static str),
}

/// What a WebSocket runs over.
pub(super) enum Line {
    /// A socket of our own listener.
    Tcp(TcpStream),
    /// Whatever the router we are part of was served over: options of the socket are up to who opened it.
    Foreign(Box<TokioIo<Upgraded>>),
}

/// One WebSocket.
pub(super) struct Socket(WebSocketStream<Pipe>);

impl Socket {
    /// Takes over an upgraded connection; `early` is what the peer sent right behind its request.
    pub(super) async fn upgraded(line: Line, mut early: Vec<u8>, frame_bytes_max: usize) -> Self {
        if let Line::Tcp(stream) = &line {
            let options = socket2::SockRef::from(stream);
            // Both are improvements where the system has them; without them timeouts of ours do the same later.
            _ = options.set_tcp_nodelay(true);
            #[cfg(target_os = "linux")]
            {
                _ = options.set_tcp_user_timeout(Some(TCP_USER_TIMEOUT));
                _ = options.set_tcp_notsent_lowat(KERNEL_UNSENT_BYTES);
            }
        }
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER_BYTES)
            .write_buffer_size(0)
            .max_message_size(Some(frame_bytes_max))
            .max_frame_size(Some(frame_bytes_max));
        let mut fragments = Fragments::default();
        early.truncate(fragments.read(&early));
        let pipe = Pipe { line, out: Vec::new(), written: 0, fragments, heard_close: false };
        Self(WebSocketStream::from_partially_read(pipe, early, Role::Server, Some(config)).await)
    }

    /// The next thing the peer said.
    pub(super) fn poll_inbound(&mut self, cx: &mut Context<'_>) -> Poll<Inbound> {
        let Poll::Ready(said) = Pin::new(&mut self.0).poll_next(cx) else { return self.poll_fragments() };
        Poll::Ready(match said {
            Some(Ok(Message::Text(text))) => Inbound::Text(text),
            Some(Ok(Message::Binary(_))) => Inbound::Refused(CloseCode::Binary, CloseCode::Binary.reason()),
            Some(Ok(Message::Ping(_) | Message::Frame(_))) => Inbound::Ping,
            Some(Ok(Message::Pong(payload))) => Inbound::Pong(payload),
            // A close frame ends in the pipe.
            Some(Ok(Message::Close(_))) | None => Inbound::Closed(None),
            Some(Err(error)) => {
                refusal(&error).map_or(Inbound::Closed(None), |(code, reason)| Inbound::Refused(code, reason))
            }
        })
    }

    /// What the pipe has counted; it reads nothing more before that was asked for.
    fn poll_fragments(&mut self) -> Poll<Inbound> {
        let fragments = &mut self.0.get_mut().fragments;
        if fragments.too_many() {
            return Poll::Ready(Inbound::Refused(CloseCode::Policy, "too many fragments of one message"));
        }
        match fragments.take() {
            0 => self.poll_close(),
            count => Poll::Ready(Inbound::Fragments(count)),
        }
    }

    /// The close frame of the peer, once; from there on the connection is closed.
    fn poll_close(&mut self) -> Poll<Inbound> {
        let pipe = self.0.get_mut();
        let Some(close) = pipe.fragments.close() else { return Poll::Pending };
        if std::mem::replace(&mut pipe.heard_close, true) {
            return Poll::Ready(Inbound::Closed(None));
        }
        Poll::Ready(match close.said() {
            Ok(goodbye) => {
                // The answer, unless this is one.
                let frame =
                    goodbye.clone().map(|(code, reason)| CloseFrame { code: code.into(), reason: reason.into() });
                self.push(Message::Close(frame));
                Inbound::Closed(Some(Box::new(goodbye.unwrap_or((NO_CODE, String::new())))))
            }
            Err((code, reason)) => Inbound::Refused(code, reason),
        })
    }

    /// Reads and discards what the peer still sends, until it closes, 3 s have passed, or `bytes_left` have come.
    ///
    /// A socket that is closed with unread data resets the connection: the peer may then lose the close frame that was sent
    /// to it, and see 1006.
    pub(super) async fn linger(mut self, mut bytes_left: usize) {
        _ = tokio::time::timeout(LINGER_TIMEOUT, poll_fn(|cx| self.poll_discard(cx, &mut bytes_left))).await;
    }

    /// Reads and discards; ready when the peer has closed or nothing is left of `bytes_left`.
    pub(super) fn poll_discard(&mut self, cx: &mut Context<'_>, bytes_left: &mut usize) -> Poll<()> {
        let mut buffer = [MaybeUninit::uninit(); DISCARD_BYTES];
        while *bytes_left > 0 {
            let mut buffer = ReadBuf::uninit(&mut buffer);
            match ready!(self.0.get_mut().line.poll_read(cx, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => {
                    *bytes_left = bytes_left.saturating_sub(buffer.filled().len());
                }
                _ => break,
            }
        }
        Poll::Ready(())
    }

    /// Puts a text frame of `bytes` bytes into the write buffer; `write` must append exactly that many.
    pub(super) fn push_text(&mut self, bytes: usize, write: impl FnOnce(&mut Vec<u8>)) {
        let header = FrameHeader { opcode: OpCode::Data(Data::Text), ..FrameHeader::default() };
        let out = &mut self.0.get_mut().out;
        out.reserve(bytes + 10);
        // Writing to a Vec cannot fail.
        header.format(bytes as u64, out).expect("a Vec takes everything");
        let start = out.len();
        write(out);
        debug_assert_eq!(out.len() - start, bytes, "a frame must be as long as its header says");
    }

    /// Puts a WebSocket ping into the write buffer.
    pub(super) fn push_ping(&mut self, payload: Vec<u8>) {
        self.push(Message::Ping(payload.into()));
    }

    /// Puts a close frame into the write buffer; nothing may follow it.
    pub(super) fn push_close(&mut self, code: u16, reason: &str) {
        self.push(Message::Close(Some(CloseFrame { code: code.into(), reason: Utf8Bytes::from(reason.to_owned()) })));
    }

    fn push(&mut self, message: Message) {
        // The pipe below takes everything at once, so this cannot block; it can fail only once the closing handshake
        // has begun, and then there is nobody to tell.
        _ = Pin::new(&mut self.0).start_send(message);
    }

    /// Bytes that are waiting to be taken by the system.
    pub(super) fn unsent(&self) -> usize {
        let pipe = self.0.get_ref();
        pipe.out.len() - pipe.written
    }

    /// Writes what is waiting; ready when all of it is written. The number tells how much went this time.
    pub(super) fn poll_write_out(&mut self, cx: &mut Context<'_>) -> (usize, Poll<io::Result<()>>) {
        let pipe = self.0.get_mut();
        let mut went = 0;
        while pipe.written < pipe.out.len() {
            match pipe.line.poll_write(cx, &pipe.out[pipe.written..]) {
                Poll::Pending => return (went, Poll::Pending),
                Poll::Ready(Ok(0)) => return (went, Poll::Ready(Err(io::ErrorKind::WriteZero.into()))),
                Poll::Ready(Ok(bytes)) => {
                    pipe.written += bytes;
                    went += bytes;
                }
                Poll::Ready(Err(error)) => return (went, Poll::Ready(Err(error))),
            }
        }
        pipe.written = 0;
        pipe.out.clear();
        if pipe.out.capacity() > KEPT_BYTES_MAX {
            pipe.out = Vec::new();
        }
        (went, Poll::Ready(Ok(())))
    }

    /// Tells the peer's system that nothing more comes.
    pub(super) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.0.get_mut().line {
            Line::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Line::Foreign(upgraded) => Pin::new(upgraded.as_mut()).poll_shutdown(cx),
        }
    }
}

/// What a server answers to the key of an upgrade request.
pub(super) fn accept_key(key: &str) -> String {
    derive_accept_key(key.as_bytes())
}

/// Which close code and reason a failed read deserves; `None` when the connection is simply gone.
fn refusal(error: &Error) -> Option<(CloseCode, &'static str)> {
    match error {
        Error::Capacity(CapacityError::MessageTooLong { .. }) => {
            Some((CloseCode::TooLarge, CloseCode::TooLarge.reason()))
        }
        Error::Utf8(_) => Some((CloseCode::NotJson, "a text frame must be UTF-8")),
        Error::Protocol(error) => violation(error).map(|reason| (CloseCode::Version, reason)),
        _ => None,
    }
}

/// Which rule of RFC 6455 a peer broke; `None` when the connection is simply gone.
fn violation(error: &ProtocolError) -> Option<&'static str> {
    Some(match error {
        ProtocolError::ResetWithoutClosingHandshake
        | ProtocolError::SendAfterClosing
        | ProtocolError::ReceivedAfterClosing => return None,
        ProtocolError::UnmaskedFrameFromClient => "a client must mask its frames",
        ProtocolError::NonZeroReservedBits => "reserved bits are set, and no extension was agreed on",
        ProtocolError::FragmentedControlFrame => "a control frame must not be fragmented",
        ProtocolError::ControlFrameTooBig => "a control frame has at most 125 bytes",
        ProtocolError::UnknownControlFrameType(_)
        | ProtocolError::UnknownDataFrameType(_)
        | ProtocolError::InvalidOpcode(_) => "a reserved WebSocket opcode",
        ProtocolError::UnexpectedContinueFrame => "a continuation frame without a message",
        ProtocolError::ExpectedFragment(_) => "a new message before the last one was complete",
        _ => "the WebSocket protocol was violated",
    })
}

impl Line {
    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Foreign(upgraded) => Pin::new(upgraded.as_mut()).poll_read(cx, buf),
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Foreign(upgraded) => match Pin::new(upgraded.as_mut()).poll_write(cx, bytes) {
                // What is underneath may keep what it took until it is told to let go of it.
                Poll::Ready(Ok(taken)) => {
                    _ = Pin::new(upgraded.as_mut()).poll_flush(cx)?;
                    Poll::Ready(Ok(taken))
                }
                other => other,
            },
        }
    }
}

/// The stream as tungstenite sees it: reads pass through, writes only fill the buffer.
struct Pipe {
    line: Line,
    out: Vec<u8>,
    /// How much of `out` the system has taken.
    written: usize,
    fragments: Fragments,
    /// The close frame of the peer was reported.
    heard_close: bool,
}

impl AsyncRead for Pipe {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            // Nothing is read before these are charged. tungstenite would read on for as long as only fragments come.
            if self.fragments.any() || self.fragments.too_many() || self.fragments.close().is_some() {
                return Poll::Pending;
            }
            let before = buf.filled().len();
            ready!(self.line.poll_read(cx, buf))?;
            let read = buf.filled().len() - before;
            let passed = self.fragments.read(&buf.filled()[before..]);
            buf.set_filled(before + passed);
            // Nothing at all is the end of the stream; a part of a close frame is not.
            if passed > 0 || read == 0 {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.out.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
