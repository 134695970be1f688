//! What a client may say, and what is done about it.

use std::{
    panic::AssertUnwindSafe,
    task::{Context, Poll},
    time::{Instant, SystemTime},
};

use futures_util::FutureExt;
use serde_json::{Map, Value, value::RawValue};

use super::{
    connection::{Attaching, Authenticating, Connection, End},
    heartbeat::Proof,
    socket::Inbound,
};
use crate::{
    auth::{AuthError, Identity},
    health::{LogLimit, info_seldom},
    hub::{Attach, InboundMessage, StoreError},
    logging::{panic_text, sentence},
    message::JsonString,
    middleware::Verdict,
    protocol::{
        close_code::CloseCode,
        decode::{self, Authentication, ClientFrame, ClientMessage},
        encode,
    },
};

/// A part that is away fails the authentication of every client.
static UNAVAILABLE: LogLimit = LogLimit::new();

/// What a stranger can do as often as it connects. One line each says that it happens, and how often.
static BROKEN: LogLimit = LogLimit::new();
static NOT_TAKEN: LogLimit = LogLimit::new();
static REFUSED: LogLimit = LogLimit::new();

/// Frames taken from one client before others have their turn.
const FRAMES_PER_ROUND_MAX: usize = 32;

/// Bytes a client may let pile up of what it must be answered (pongs) before we stop listening to it.
pub(super) const UNSENT_WHILE_LISTENING_MAX: usize = 128 << 10;

/// The type of the frame in which a client tells its version.
const CLIENT_VERSION: &str = "CLIENT_VERSION";

/// What is told to the middleware of a client that broke the WebSocket protocol.
#[derive(Debug, thiserror::Error)]
#[error("a client broke the WebSocket protocol: {0}")]
struct Broken(&'static str);

impl Connection {
    /// Takes what the client said; true if there may be more.
    pub(super) fn poll_inbound(&mut self, cx: &mut Context<'_>, now: Instant) -> Result<bool, End> {
        for _ in 0..FRAMES_PER_ROUND_MAX {
            // While it is being found out who the client is, what it says behind that waits: it is to be heard as him.
            if self.authenticating.is_some()
                || self.attaching.is_some()
                || self.socket.unsent() > UNSENT_WHILE_LISTENING_MAX
            {
                return Ok(false);
            }
            // Who is told what clients say may have no room for more: then it waits where it is.
            if self.connected.poll_ready(cx).is_pending() {
                return Ok(false);
            }
            match self.socket.poll_inbound(cx) {
                Poll::Pending => return Ok(false),
                Poll::Ready(Inbound::Text(text)) => self.hear(text.as_str(), now)?,
                Poll::Ready(Inbound::Pong(payload)) => {
                    if !self.heartbeat.expects_pong(&payload) {
                        self.spend(1, now)?;
                    }
                    self.arrived(&payload);
                }
                // It has been answered already; it counts like any frame.
                Poll::Ready(Inbound::Ping) => self.spend(1, now)?,
                Poll::Ready(Inbound::Fragments(count)) => self.spend(count, now)?,
                Poll::Ready(Inbound::Closed(goodbye)) => {
                    self.goodbye = goodbye;
                    return Err(End::Gone);
                }
                Poll::Ready(Inbound::Refused(code, reason)) => {
                    self.shared.metrics.malformed_frames.inc();
                    info_seldom!(BROKEN, code = code.code(), reason, "a client broke the WebSocket protocol");
                    self.connected.report_error(&Broken(reason));
                    return Err(End::Close(code, reason));
                }
            }
        }
        Ok(true)
    }

    fn spend(&mut self, frames: u32, now: Instant) -> Result<(), End> {
        if self.budget.spend(frames, now) {
            return Ok(());
        }
        self.shared.metrics.refused_connections.inc();
        Err(End::Close(CloseCode::Policy, "too many frames"))
    }

    /// Charges a frame, unless it is an answer to something that was sent to the client.
    fn charge(&mut self, frame: &ClientFrame<'_>, now: Instant) -> Result<(), End> {
        let answer = match frame {
            ClientFrame::HeartbeatAck => self.heartbeat.expects_answer(),
            ClientFrame::Receipt { .. } => self.budget.take_acknowledgement(),
            _ => false,
        };
        if answer { Ok(()) } else { self.spend(1, now) }
    }

    fn hear(&mut self, text: &str, now: Instant) -> Result<(), End> {
        let frame = decode::decode(text).map_err(|error| {
            self.shared.metrics.malformed_frames.inc();
            info_seldom!(NOT_TAKEN, %error, "a client sent a frame that cannot be taken");
            self.connected.report_error(&error);
            End::Close(error.close_code(), error.reason())
        })?;
        self.charge(&frame, now)?;
        match frame {
            ClientFrame::HeartbeatAck => self.take_answer(now),
            ClientFrame::Heartbeat => self.push(encode::HEARTBEAT_ACK),
            ClientFrame::Authentication(authentication) => {
                self.authenticate(authentication)?;
            }
            ClientFrame::Receipt { s } => {
                if !self.session.as_mut().is_some_and(|session| session.acknowledge_through(s)) {
                    return Err(End::Close(CloseCode::Policy, "receipts are for clients that resume (after)"));
                }
            }
            ClientFrame::Dispatch(message) => self.take(message)?,
        }
        Ok(())
    }

    /// Hears a client that has been told to go, but may not know yet: what it says to the application is still taken, and
    /// what it confirms; everything else is too late. False: nothing more is to be heard.
    pub(super) fn hear_last(&mut self, text: &str, now: Instant) -> bool {
        let Ok(frame) = decode::decode(text) else { return false };
        if self.charge(&frame, now).is_err() {
            return false;
        }
        match frame {
            ClientFrame::Dispatch(message) => self.take(message).is_ok(),
            ClientFrame::HeartbeatAck => {
                self.take_answer(now);
                true
            }
            ClientFrame::Receipt { s } => self.session.as_mut().is_some_and(|session| session.acknowledge_through(s)),
            // What it says behind that would be heard as somebody whom nobody lets in any more.
            ClientFrame::Authentication(_) => false,
            ClientFrame::Heartbeat => true,
        }
    }

    /// Takes what a client says to the application.
    fn take(&mut self, message: ClientMessage<'_>) -> Result<(), End> {
        self.shared.metrics.messages_received.inc();
        let client = &self.shared.config.client;
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
            .connected
            .receive(InboundMessage { kind_json, ..InboundMessage::new(message.op, data, kind.as_deref()) })
        {
            Verdict::Disconnect => {
                self.shared.metrics.messages_refused.inc();
                return Err(End::Close(CloseCode::Policy, "too much was said"));
            }
            Verdict::Refuse => _ = self.shared.metrics.messages_refused.inc(),
            Verdict::Pass => {}
        }
        Ok(())
    }

    /// Takes an op 11: acknowledges what it proves to be received, or starts the deliveries.
    fn take_answer(&mut self, now: Instant) {
        match self.heartbeat.answered(now) {
            Some(Proof::Received(mark)) => self.confirm(Some(mark)),
            Some(Proof::Authenticated) => self.release_soon(now),
            Some(Proof::Alive) | None => {}
        }
    }

    /// A pong came: what was written before its ping has arrived.
    pub(super) fn arrived(&mut self, payload: &[u8]) {
        let mark = self.heartbeat.pong(payload);
        self.confirm(mark);
    }

    fn confirm(&mut self, mark: Option<crate::hub::SentPosition>) {
        if let (Some(mark), Some(session)) = (mark, &mut self.session) {
            session.acknowledge(mark);
        }
    }

    fn authenticate(&mut self, authentication: Authentication) -> Result<(), End> {
        let Authentication { data, text, token_is_cut, should_sync, after, device } = authentication;
        let how = Attach { should_sync, after, device };
        let Some(authenticator) = self.shared.authenticator.clone() else {
            tracing::debug!("a client tried to authenticate, but no authentication is configured");
            return self.refuse();
        };
        if token_is_cut {
            let error = "the token has half of a surrogate pair (a character that was cut in two), so it is no text";
            info_seldom!(REFUSED, error, "authentication failed");
            return self.refuse();
        }
        let checking = async move {
            let asked = async {
                match &text {
                    Some(text) => authenticator.authenticate_text(&data, text).await,
                    None => authenticator.authenticate(&data).await,
                }
            };
            // Its panic is its own, and authenticates no client.
            let checked = AssertUnwindSafe(asked).catch_unwind().await;
            checked.unwrap_or_else(|panic| {
                Err(AuthError::Unavailable(format!("the authenticator panicked: {}", panic_text(panic.as_ref()))))
            })
        };
        self.authenticating = Some(Authenticating { checking: Box::pin(checking), how });
        Ok(())
    }

    /// Goes on with an authentication under way; true if it came to its end, so that there is more to hear.
    pub(super) fn poll_authentication(&mut self, cx: &mut Context<'_>, now: Instant) -> Result<bool, End> {
        let Some(authenticating) = &mut self.authenticating else { return Ok(false) };
        let Poll::Ready(result) = authenticating.checking.as_mut().poll(cx) else { return Ok(false) };
        let how = authenticating.how.clone();
        self.authenticating = None;
        match result {
            Ok(identity) => self.welcome(identity, how, now),
            Err(error) => {
                match &error {
                    AuthError::Unavailable(_) => {
                        if let Some(suppressed) = UNAVAILABLE.due("authenticator") {
                            tracing::warn!(error = %sentence(&error), suppressed, "authentication failed");
                        }
                        self.connected.report_error(&error);
                    }
                    AuthError::Refused(_) => {
                        info_seldom!(REFUSED, error = %sentence(&error), "authentication failed");
                    }
                }
                self.refuse()
            }
        }
        .map(|()| true)
    }

    fn refuse(&mut self) -> Result<(), End> {
        self.shared.metrics.authentication_failures.inc();
        if self.shared.config.authentication.disconnect_on_fail {
            return Err(End::Close(CloseCode::Policy, "authentication failed"));
        }
        Ok(())
    }

    fn welcome(&mut self, identity: Identity, how: Attach, now: Instant) -> Result<(), End> {
        if identity.expires.is_some_and(|at| at <= SystemTime::now()) {
            return self.refuse();
        }
        if let Some(session) = &self.session {
            // Showing a newer token keeps a session alive; becoming somebody else takes a new connection.
            if *session.user() != identity.id {
                return Err(End::Close(CloseCode::Policy, "this connection belongs to another user"));
            }
            self.expires = identity.expires;
            return Ok(());
        }
        let sends_user = self.shared.config.authentication.send_user_object;
        let frame = match &identity.user_text {
            Some(text) if sends_user => encode::authenticated_text(text),
            _ => encode::authenticated(sends_user.then_some(&identity.user)),
        };
        let expires = identity.expires;
        if let Some(calls) = &self.shared.calls {
            calls.identified(self.connected.id(), &identity);
        }
        let resumes = how.after.is_some();
        let session = self.connected.attach_without_blocking(identity.id, how, now);
        self.attaching = Some(Attaching { session, frame, resumes, expires });
        Ok(())
    }

    /// Goes on with taking a user's place; true if it came to its end, so that there is more to hear.
    pub(super) fn poll_attaching(&mut self, cx: &mut Context<'_>, now: Instant) -> Result<bool, End> {
        let Some(attaching) = &mut self.attaching else { return Ok(false) };
        let Poll::Ready(attached) = attaching.session.as_mut().poll(cx) else { return Ok(false) };
        let Some(Attaching { frame, resumes, expires, .. }) = self.attaching.take() else { return Ok(false) };
        match attached {
            Ok(session) => {
                self.connected.attached(&session);
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
                self.connected.report_error(&error);
                Err(End::close(CloseCode::Internal))
            }
        }
    }
}
