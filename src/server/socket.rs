//! A WebSocket over TCP with buffers that shrink: the only file of the server that uses tungstenite.
//!
//! tungstenite reads frames, and answers control frames. Its output goes into the same buffer as the server's text
//! frames, and that buffer is written to the socket in one call. A text frame is a header and a text that was encoded
//! at dispatch. An empty buffer is freed, so that an idle connection uses little memory.

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
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
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

use super::{fragments::Fragments, stream::AcceptedStream};
use crate::protocol::close_code::CloseCode;

/// Read buffer of tungstenite, in bytes. Most frames of clients are smaller; a larger frame takes several reads.
const READ_BUFFER_BYTES: usize = 512;

/// Capacity in bytes that an empty write buffer may retain: enough for a heartbeat or a single message.
const IDLE_CAPACITY_MAX: usize = 512;

/// Bytes in the kernel's send buffer that are not in flight yet, at which the socket accepts no more.
///
/// A heartbeat must not queue behind megabytes, for which a slow client needs minutes.
#[cfg(target_os = "linux")]
const KERNEL_UNSENT_BYTES: u32 = 128 << 10;

/// Time for the peer's TCP to acknowledge written bytes. Then the kernel drops the connection.
///
/// It ends half-open connections to which the server has written.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(60);

/// Time for which a peer may continue to send after the close frame; then the connection is reset.
const LINGER_TIMEOUT: Duration = Duration::from_secs(3);

/// Bytes that it may send in that time; then the connection is reset. Twice the largest `limits.frameBytes`.
pub(super) const LINGER_BYTES_MAX: usize = 32 << 20;

/// Bytes discarded per read.
const DISCARD_BYTES: usize = 8 << 10;

/// Code that represents a close frame without a code.
const NO_CODE: u16 = 1005;

/// An event read from a peer.
#[derive(Debug)]
pub(super) enum Inbound {
    Text(Utf8Bytes),
    /// A ping, which tungstenite answers.
    Ping,
    Pong(Bytes),
    /// The peer has closed with this code and reason, or the connection has ended without a close frame.
    Closed(Option<Box<(u16, String)>>),
    /// Number of new fragments, which are charged like frames.
    Fragments(u32),
    /// The peer broke the protocol: close with this code and reason.
    Violation(CloseCode, &'static str),
}

/// The byte stream under a WebSocket.
pub(super) enum Transport {
    /// A connection of the server's listener.
    Accepted(AcceptedStream),
    /// A stream of the embedding program's router, which sets its socket options.
    Embedded(Box<TokioIo<Upgraded>>),
}

/// One WebSocket.
pub(super) struct Socket(WebSocketStream<Pipe>);

impl Socket {
    /// Creates a WebSocket over an upgraded connection. `early`: bytes that the peer sent after its upgrade request.
    pub(super) async fn upgraded(transport: Transport, mut early: Vec<u8>, frame_bytes_max: usize) -> Self {
        if let Transport::Accepted(stream) = &transport {
            let options = socket2::SockRef::from(stream.tcp());
            // Options that the system may not support. The server's timeouts have the same effect later.
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
        let pipe = Pipe { transport, out: Vec::new(), written: 0, unflushed: false, fragments, close_reported: false };
        Self(WebSocketStream::from_partially_read(pipe, early, Role::Server, Some(config)).await)
    }

    /// Reads the next event from the peer.
    pub(super) fn poll_inbound(&mut self, cx: &mut Context<'_>) -> Poll<Inbound> {
        let Poll::Ready(next) = Pin::new(&mut self.0).poll_next(cx) else { return self.poll_fragments() };
        Poll::Ready(match next {
            Some(Ok(Message::Text(text))) => Inbound::Text(text),
            Some(Ok(Message::Binary(_))) => Inbound::Violation(CloseCode::Binary, CloseCode::Binary.reason()),
            Some(Ok(Message::Ping(_) | Message::Frame(_))) => Inbound::Ping,
            Some(Ok(Message::Pong(payload))) => Inbound::Pong(payload),
            // tungstenite receives no close frame, see `Pipe`.
            Some(Ok(Message::Close(_))) | None => Inbound::Closed(None),
            Some(Err(error)) => {
                close_for(&error).map_or(Inbound::Closed(None), |(code, reason)| Inbound::Violation(code, reason))
            }
        })
    }

    /// Returns the fragments that the pipe has counted. Until this call it reads no more bytes.
    fn poll_fragments(&mut self) -> Poll<Inbound> {
        let fragments = &mut self.0.get_mut().fragments;
        if fragments.too_many() {
            return Poll::Ready(Inbound::Violation(CloseCode::Policy, "too many fragments of one message"));
        }
        match fragments.take() {
            0 => self.poll_close(),
            count => Poll::Ready(Inbound::Fragments(count)),
        }
    }

    /// Returns the peer's close frame, once, and answers it. Later calls return a closed connection.
    fn poll_close(&mut self) -> Poll<Inbound> {
        let pipe = self.0.get_mut();
        let Some(close) = pipe.fragments.close() else { return Poll::Pending };
        if std::mem::replace(&mut pipe.close_reported, true) {
            return Poll::Ready(Inbound::Closed(None));
        }
        Poll::Ready(match close.parse() {
            Ok(peer_close) => {
                // After a close frame of the server, tungstenite sends no second one.
                let frame =
                    peer_close.clone().map(|(code, reason)| CloseFrame { code: code.into(), reason: reason.into() });
                self.push(Message::Close(frame));
                Inbound::Closed(Some(Box::new(peer_close.unwrap_or((NO_CODE, String::new())))))
            }
            Err((code, reason)) => Inbound::Violation(code, reason),
        })
    }

    /// Discards bytes of the peer until it closes, 3 s have passed, or `bytes_left` bytes have arrived.
    ///
    /// Closing a socket with unread data resets the connection. The peer may then lose the close frame and report 1006.
    pub(super) async fn linger(mut self, mut bytes_left: usize) {
        _ = tokio::time::timeout(LINGER_TIMEOUT, poll_fn(|cx| self.poll_discard(cx, &mut bytes_left))).await;
    }

    /// Discards bytes of the peer; ready when the peer has closed or `bytes_left` is 0.
    pub(super) fn poll_discard(&mut self, cx: &mut Context<'_>, bytes_left: &mut usize) -> Poll<()> {
        let mut buffer = [MaybeUninit::uninit(); DISCARD_BYTES];
        while *bytes_left > 0 {
            let mut buffer = ReadBuf::uninit(&mut buffer);
            match ready!(self.0.get_mut().transport.poll_read(cx, &mut buffer)) {
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
        header.format(bytes as u64, out).expect("writing to a Vec cannot fail");
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
        // The pipe accepts all bytes at once, so this cannot block. It fails only after a close frame was sent, when
        // the peer needs no further frame.
        _ = Pin::new(&mut self.0).start_send(message);
    }

    /// Returns the number of bytes that are not written to the socket yet. Bytes in the buffer of TLS count as one.
    pub(super) fn unsent(&self) -> usize {
        let pipe = self.0.get_ref();
        pipe.out.len() - pipe.written + usize::from(pipe.unflushed)
    }

    /// Writes the buffer; ready when all of it is written. Also returns the number of bytes that this call has written.
    ///
    /// With TLS a byte counts as written once TLS has encrypted it. TLS buffers one record at most, so a peer that reads
    /// nothing still makes this pending.
    pub(super) fn poll_write_out(&mut self, cx: &mut Context<'_>) -> (usize, Poll<io::Result<()>>) {
        let pipe = self.0.get_mut();
        let mut sent = 0;
        while pipe.written < pipe.out.len() {
            match pipe.transport.poll_write(cx, &pipe.out[pipe.written..]) {
                Poll::Pending => return (sent, Poll::Pending),
                Poll::Ready(Ok(0)) => return (sent, Poll::Ready(Err(io::ErrorKind::WriteZero.into()))),
                Poll::Ready(Ok(bytes)) => {
                    pipe.written += bytes;
                    sent += bytes;
                    pipe.unflushed = true;
                }
                Poll::Ready(Err(error)) => return (sent, Poll::Ready(Err(error))),
            }
        }
        if pipe.unflushed {
            match pipe.transport.poll_flush(cx) {
                Poll::Pending => return (sent, Poll::Pending),
                Poll::Ready(Err(error)) => return (sent, Poll::Ready(Err(error))),
                Poll::Ready(Ok(())) => pipe.unflushed = false,
            }
        }
        pipe.written = 0;
        pipe.out.clear();
        if pipe.out.capacity() > IDLE_CAPACITY_MAX {
            pipe.out = Vec::new();
        }
        (sent, Poll::Ready(Ok(())))
    }

    /// Shuts down the sending side of the socket.
    pub(super) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.0.get_mut().transport {
            Transport::Accepted(stream) => Pin::new(stream).poll_shutdown(cx),
            Transport::Embedded(upgraded) => Pin::new(upgraded.as_mut()).poll_shutdown(cx),
        }
    }
}

/// Computes the `Sec-WebSocket-Accept` header for the key of an upgrade request.
pub(super) fn accept_key(key: &str) -> String {
    derive_accept_key(key.as_bytes())
}

/// Returns close code and reason for a failed read; `None` if the connection has ended.
fn close_for(error: &Error) -> Option<(CloseCode, &'static str)> {
    match error {
        Error::Capacity(CapacityError::MessageTooLong { .. }) => {
            Some((CloseCode::TooLarge, CloseCode::TooLarge.reason()))
        }
        Error::Utf8(_) => Some((CloseCode::NotJson, "a text frame must be UTF-8")),
        Error::Protocol(error) => violation(error).map(|reason| (CloseCode::Version, reason)),
        _ => None,
    }
}

/// Returns the close reason for a violation of RFC 6455; `None` if the connection has ended.
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

impl Transport {
    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Accepted(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Embedded(upgraded) => Pin::new(upgraded.as_mut()).poll_read(cx, buf),
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self {
            Self::Accepted(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Embedded(upgraded) => Pin::new(upgraded.as_mut()).poll_write(cx, bytes),
        }
    }

    /// Writes what the stream itself buffers: TLS here, or any stream of the embedding program.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Accepted(stream) => Pin::new(stream).poll_flush(cx),
            Self::Embedded(upgraded) => Pin::new(upgraded.as_mut()).poll_flush(cx),
        }
    }
}

/// The stream under tungstenite: reads pass through, except for close frames, and writes only fill the buffer.
struct Pipe {
    transport: Transport,
    out: Vec<u8>,
    /// Bytes of `out` that are written to the socket.
    written: usize,
    /// Whether written bytes may still be in a buffer of the transport.
    unflushed: bool,
    fragments: Fragments,
    /// Whether the close frame of the peer was reported.
    close_reported: bool,
}

impl AsyncRead for Pipe {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            // Fragments are charged before more is read. tungstenite would continue to read while only fragments
            // arrive.
            if self.fragments.any() || self.fragments.too_many() || self.fragments.close().is_some() {
                return Poll::Pending;
            }
            let before = buf.filled().len();
            ready!(self.transport.poll_read(cx, buf))?;
            let read = buf.filled().len() - before;
            let passed = self.fragments.read(&buf.filled()[before..]);
            buf.set_filled(before + passed);
            // A read of no bytes is the end of the stream. A part of a close frame is withheld, and is not the end.
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
