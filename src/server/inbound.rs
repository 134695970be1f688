//! Reads frames from a client and handles them.

use std::{
    net::SocketAddr,
    panic::AssertUnwindSafe,
    task::{Context, Poll},
    time::{Instant, SystemTime},
};

use futures_util::FutureExt;
use serde_json::{Map, Value, value::RawValue};
use tracing::field::{DisplayValue, display};

use super::{
    connection::{Attaching, Authenticating, Connection, End},
    heartbeat::Proof,
    socket::Inbound,
};
use crate::{
    auth::{AuthError, Identity},
    health::{LogLimit, info_seldom},
    hub::{Attach, ConnectionId, InboundMessage, StoreError},
    logging::{excerpt, panic_text, sentence},
    message::JsonString,
    middleware::Decision,
    protocol::{
        close_code::{CloseCode, reason},
        decode::{self, Authentication, ClientFrame, ClientMessage},
        encode,
    },
};

/// Limits the log lines about an unavailable component, which fails the authentication of every client.
static UNAVAILABLE: LogLimit = LogLimit::new();

/// Limit log lines that an unauthenticated client can cause with each connection.
static VIOLATION: LogLimit = LogLimit::new();
static INVALID_FRAME: LogLimit = LogLimit::new();
static REJECTED: LogLimit = LogLimit::new();

/// Frames read from one client before the task yields.
const FRAMES_PER_ROUND_MAX: usize = 32;

/// Maximum unwritten bytes for a client; above it no frame is read, because answers (pongs) would add more.
pub(super) const UNSENT_WHILE_READING_MAX: usize = 128 << 10;

/// Type of the frame in which a client sends its version.
const CLIENT_VERSION: &str = "CLIENT_VERSION";

/// Error that the middleware receives for a client that broke the WebSocket protocol.
#[derive(Debug, thiserror::Error)]
#[error("a client broke the WebSocket protocol: {0}")]
struct ProtocolViolation(&'static str);

impl Connection {
    /// Reads frames from the client; true if there may be more.
    pub(super) fn poll_inbound(&mut self, cx: &mut Context<'_>, now: Instant) -> Result<bool, End> {
        for _ in 0..FRAMES_PER_ROUND_MAX {
            // Frames after an authentication wait for its result: they are of the user it admits.
            if self.authenticating.is_some()
                || self.attaching.is_some()
                || self.socket.unsent() > UNSENT_WHILE_READING_MAX
            {
                return Ok(false);
            }
            // While the listeners have no capacity, messages wait in the socket.
            if self.hub_handle.poll_ready(cx).is_pending() {
                return Ok(false);
            }
            match self.socket.poll_inbound(cx) {
                Poll::Pending => return Ok(false),
                Poll::Ready(Inbound::Text(text)) => self.handle_frame(text.as_str(), now)?,
                Poll::Ready(Inbound::Pong(payload)) => {
                    if !self.heartbeat.expects_pong(&payload) {
                        self.spend(1, now)?;
                    }
                    self.handle_pong(&payload);
                }
                Poll::Ready(Inbound::Ping) => self.spend(1, now)?,
                Poll::Ready(Inbound::Fragments(count)) => self.spend(count, now)?,
                Poll::Ready(Inbound::Closed(peer_close)) => {
                    self.peer_close = peer_close;
                    return Err(End::Gone);
                }
                Poll::Ready(Inbound::Violation(code, reason)) => {
                    self.context.metrics.malformed_frames.inc();
                    let (connection, peer) = self.origin();
                    info_seldom!(
                        VIOLATION,
                        connection,
                        peer,
                        code = code.code(),
                        reason,
                        "a client broke the WebSocket protocol"
                    );
                    self.hub_handle.report_error(&ProtocolViolation(reason));
                    return Err(End::Close(code, reason));
                }
            }
        }
        Ok(true)
    }

    /// Returns the id of the connection and the address of the client, for log lines.
    pub(super) fn origin(&self) -> (ConnectionId, Option<DisplayValue<SocketAddr>>) {
        (self.hub_handle.id(), self.peer.map(display))
    }

    /// Charges frames to the rate limit; above it the connection closes with 1008.
    fn spend(&mut self, frames: u32, now: Instant) -> Result<(), End> {
        let per_second = self.context.live.load().limits.frames_per_second;
        if self.frame_rate.spend(frames, per_second, now) {
            return Ok(());
        }
        self.context.metrics.rejected_connections.inc();
        Err(End::Close(CloseCode::Policy, reason::TOO_MANY_FRAMES))
    }

    /// Charges a frame to the rate limit, unless it answers a frame of the server.
    fn charge(&mut self, frame: &ClientFrame<'_>, now: Instant) -> Result<(), End> {
        let is_answer = match frame {
            ClientFrame::HeartbeatAck => self.heartbeat.expects_answer(),
            ClientFrame::Ack { .. } => self.frame_rate.take_acknowledgement(),
            _ => false,
        };
        if is_answer { Ok(()) } else { self.spend(1, now) }
    }

    fn handle_frame(&mut self, text: &str, now: Instant) -> Result<(), End> {
        let frame = decode::decode(text).map_err(|error| {
            self.context.metrics.malformed_frames.inc();
            let (connection, peer) = self.origin();
            info_seldom!(INVALID_FRAME, connection, peer, %error, "a client sent an invalid frame");
            self.hub_handle.report_error(&error);
            End::Close(error.close_code(), error.reason())
        })?;
        self.charge(&frame, now)?;
        match frame {
            ClientFrame::HeartbeatAck => self.handle_heartbeat_ack(now),
            ClientFrame::Heartbeat => self.push(encode::HEARTBEAT_ACK),
            ClientFrame::Authentication(authentication) => {
                self.authenticate(authentication)?;
            }
            ClientFrame::Ack { s } => {
                if !self.session.as_mut().is_some_and(|session| session.acknowledge_through(s)) {
                    return Err(End::Close(
                        CloseCode::Policy,
                        "acknowledgements (op 3) are for clients that resume (after)",
                    ));
                }
            }
            ClientFrame::Dispatch(message) => self.handle_message(message)?,
        }
        Ok(())
    }

    /// Handles a frame that arrives after the close frame was written.
    ///
    /// Application messages and acknowledgements still count. All other frames are ignored. False: no later frame
    /// counts.
    pub(super) fn handle_last_frame(&mut self, text: &str, now: Instant) -> bool {
        let Ok(frame) = decode::decode(text) else { return false };
        if self.charge(&frame, now).is_err() {
            return false;
        }
        match frame {
            ClientFrame::Dispatch(message) => self.handle_message(message).is_ok(),
            ClientFrame::HeartbeatAck => {
                self.handle_heartbeat_ack(now);
                true
            }
            ClientFrame::Ack { s } => self.session.as_mut().is_some_and(|session| session.acknowledge_through(s)),
            // Frames after an authentication are of the user it admits, and it admits none now.
            ClientFrame::Authentication(_) => false,
            ClientFrame::Heartbeat => true,
        }
    }

    /// Passes an application message to the hub, or compares the client's version.
    fn handle_message(&mut self, message: ClientMessage<'_>) -> Result<(), End> {
        self.context.metrics.messages_received.inc();
        let client = &self.context.config.client;
        if client.enforce_equal_versions && message.kind.as_ref().and_then(JsonString::text) == Some(CLIENT_VERSION) {
            let version: Option<Map<String, Value>> =
                message.data.and_then(|data| serde_json::from_str(data.get()).ok());
            let version = version.as_ref().and_then(|data| data.get("v")).and_then(Value::as_str);
            if version != Some(&client.version) {
                return Err(End::close(CloseCode::Version));
            }
            return Ok(());
        }
        let data = message.data.map(RawValue::get);
        let kind = message.kind.as_ref().map(JsonString::lossy);
        let kind_json = message.kind.as_ref().and_then(JsonString::raw);
        match self
            .hub_handle
            .receive(InboundMessage { kind_json, ..InboundMessage::new(message.op, data, kind.as_deref()) })
        {
            Decision::Disconnect => {
                self.context.metrics.middleware_rejections.inc();
                return Err(End::Close(CloseCode::Policy, "too many messages"));
            }
            Decision::Reject => _ = self.context.metrics.middleware_rejections.inc(),
            Decision::Pass => {}
        }
        Ok(())
    }

    /// Handles an op 11: records the acknowledgement, or schedules the deliveries.
    fn handle_heartbeat_ack(&mut self, now: Instant) {
        match self.heartbeat.on_ack(now) {
            Some(Proof::Received(position)) => self.acknowledge(Some(position)),
            Some(Proof::Authenticated) => self.release_soon(now),
            Some(Proof::Alive) | None => {}
        }
    }

    /// Handles a pong: records the acknowledgement.
    pub(super) fn handle_pong(&mut self, payload: &[u8]) {
        let position = self.heartbeat.on_pong(payload);
        self.acknowledge(position);
    }

    fn acknowledge(&mut self, position: Option<crate::hub::SentPosition>) {
        if let (Some(position), Some(session)) = (position, &mut self.session) {
            session.acknowledge(position);
        }
    }

    /// Starts an authentication.
    fn authenticate(&mut self, authentication: Authentication) -> Result<(), End> {
        let Authentication { data, text, token_has_lone_surrogate, should_sync, after, device } = authentication;
        let how = Attach { should_sync, after, device };
        let Some(authenticator) = self.context.live.load().authenticator.clone() else {
            let (connection, peer) = self.origin();
            tracing::debug!(connection, peer, "a client tried to authenticate, but no authentication is configured");
            return self.reject_authentication();
        };
        if token_has_lone_surrogate {
            let error = "the token has a lone surrogate (half of a character), so it is not valid text";
            let (connection, peer) = self.origin();
            info_seldom!(REJECTED, connection, peer, error, "authentication failed");
            return self.reject_authentication();
        }
        let checking = async move {
            let authentication = async {
                match &text {
                    Some(text) => authenticator.authenticate_text(&data, text).await,
                    None => authenticator.authenticate(&data).await,
                }
            };
            // A panic of the authenticator must not end the connection's task.
            let result = AssertUnwindSafe(authentication).catch_unwind().await;
            result.unwrap_or_else(|panic| {
                Err(AuthError::Unavailable(format!("the authenticator panicked: {}", panic_text(panic.as_ref()))))
            })
        };
        self.authenticating = Some(Box::new(Authenticating { checking: Box::pin(checking), how }));
        Ok(())
    }

    /// Polls an authentication in progress; true if it has ended, so that more frames can be read.
    pub(super) fn poll_authentication(&mut self, cx: &mut Context<'_>, now: Instant) -> Result<bool, End> {
        let Some(authenticating) = &mut self.authenticating else { return Ok(false) };
        let Poll::Ready(result) = authenticating.checking.as_mut().poll(cx) else { return Ok(false) };
        let how = authenticating.how.clone();
        self.authenticating = None;
        match result {
            Ok(identity) => self.attach(identity, how, now),
            Err(error) => {
                match &error {
                    AuthError::Unavailable(_) => {
                        if let Some(suppressed) = UNAVAILABLE.due("authenticator") {
                            let (connection, peer) = self.origin();
                            tracing::warn!(connection, peer, error = %sentence(&error), suppressed, "authentication failed");
                        }
                        self.hub_handle.report_error(&error);
                        // 1008 is final. After an outage the same credentials may be accepted.
                        self.fail_authentication(End::Close(CloseCode::TooBusy, reason::AUTHENTICATION_UNAVAILABLE))
                    }
                    AuthError::Rejected(_) => {
                        let (connection, peer) = self.origin();
                        info_seldom!(REJECTED, connection, peer, error = %sentence(&error), "authentication failed");
                        self.reject_authentication()
                    }
                }
            }
        }
        .map(|()| true)
    }

    /// Closes the connection with 1008, unless `authentication.disconnectOnFail` is false.
    fn reject_authentication(&mut self) -> Result<(), End> {
        self.fail_authentication(End::Close(CloseCode::Policy, "authentication failed"))
    }

    /// Closes the connection as `end`, unless `authentication.disconnectOnFail` is false.
    fn fail_authentication(&mut self, end: End) -> Result<(), End> {
        self.context.metrics.authentication_failures.inc();
        if self.context.config.authentication.disconnect_on_fail { Err(end) } else { Ok(()) }
    }

    /// Starts to attach an authenticated client, or renews the expiry of an attached one.
    fn attach(&mut self, identity: Identity, how: Attach, now: Instant) -> Result<(), End> {
        if identity.expires.is_some_and(|at| at <= SystemTime::now()) {
            return self.reject_authentication();
        }
        if let Some(session) = &self.session {
            // A newer token extends the session. Another user needs a new connection.
            if *session.user() != identity.id {
                return Err(End::Close(CloseCode::Policy, "this connection belongs to another user"));
            }
            self.expires = identity.expires;
            return Ok(());
        }
        let sends_user = self.context.config.authentication.send_user_object;
        let frame = match &identity.user_text {
            Some(text) if sends_user => encode::authenticated_text(text),
            _ => encode::authenticated(sends_user.then_some(&identity.user)),
        };
        let expires = identity.expires;
        if let Some(runner) = &self.context.runner {
            runner.set_pending_identity(self.hub_handle.id(), &identity);
        }
        let resumes = how.after.is_some();
        let session = self.hub_handle.attach_without_blocking(identity.id, how, now);
        self.attaching = Some(Box::new(Attaching { session, frame, resumes, expires }));
        Ok(())
    }

    /// Polls an attach in progress; true if it has ended, so that more frames can be read.
    pub(super) fn poll_attach(&mut self, cx: &mut Context<'_>, now: Instant) -> Result<bool, End> {
        let Some(attaching) = &mut self.attaching else { return Ok(false) };
        let Poll::Ready(attached) = attaching.session.as_mut().poll(cx) else { return Ok(false) };
        let Some(attaching) = self.attaching.take() else { return Ok(false) };
        let Attaching { frame, resumes, expires, .. } = *attaching;
        match attached {
            Ok(session) => {
                self.hub_handle.mark_attached(&session);
                let (connection, peer) = self.origin();
                tracing::debug!(connection, peer, user = %excerpt(session.user()), "client authenticated");
                self.push(&frame);
                self.session = Some(session);
                if !resumes {
                    self.hold(now);
                }
                self.authenticate_by = None;
                self.expires = expires;
                Ok(true)
            }
            Err(StoreError::Devices(_)) => Err(End::Close(
                CloseCode::Policy,
                "as many devices of this user are connected as sync.maxDevices allows",
            )),
            Err(error @ StoreError::Unreachable(_)) => {
                if let Some(suppressed) = UNAVAILABLE.due("store") {
                    tracing::warn!(%error, suppressed, "a user's log could not be opened");
                }
                Err(End::Close(CloseCode::TooBusy, "the store cannot be reached for now"))
            }
            Err(error) => {
                if let Some(suppressed) = UNAVAILABLE.due("log") {
                    tracing::error!(%error, suppressed, "a user's log could not be opened");
                }
                self.hub_handle.report_error(&error);
                Err(End::close(CloseCode::Internal))
            }
        }
    }
}
