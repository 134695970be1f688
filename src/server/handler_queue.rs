//! Queues events for handlers: a bounded queue for each connection, and a task while the queue is not empty.

use std::{
    any::Any,
    collections::{BTreeMap, HashMap, VecDeque},
    panic::AssertUnwindSafe,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use futures_util::FutureExt;
use parking_lot::Mutex;
use serde_json::value::RawValue;
use tokio::sync::{Notify, oneshot};

use super::{
    handle::Handle,
    handler::DynHandler,
    peer::{HandlerEvent, HandshakeInfo, Peer, ReceivedMessage},
};
use crate::{
    auth::Identity,
    failpoints,
    hub::{ConnectionId, Event, InboundMessage, Listener},
    logging::{excerpt, panic_text, sentence},
    message::UserId,
    middleware::Client,
};

/// Shards of the map of connections, so that two threads seldom contend for a lock.
const SHARDS: usize = 16;

/// The handlers of a server, and the queues in front of them.
pub(super) struct HandlerRunner {
    handlers: Vec<Arc<dyn DynHandler>>,
    handle: OnceLock<Handle>,
    peers: [Mutex<HashMap<ConnectionId, Peer>>; SHARDS],
    restarts: Mutex<Restarts>,
    /// Queues that a task is processing.
    running: AtomicUsize,
    done: Notify,
}

/// Users whom a kill of the previous start has disconnected.
///
/// One task calls the handlers for one user after another. An authentication of such a user waits until the handlers
/// have returned for that user, who is then the next one.
#[derive(Default)]
struct Restarts {
    /// Users for whom the handlers have not returned yet, each with the authentications that wait for that.
    unhandled: BTreeMap<UserId, Vec<oneshot::Sender<()>>>,
    /// Those of them with waiting authentications, each once, in order. They come before the others.
    urgent: VecDeque<UserId>,
    /// A task is processing these users.
    is_running: bool,
}

impl Restarts {
    /// Returns the next user; `None` if there is none.
    fn next(&mut self) -> Option<UserId> {
        let urgent = std::iter::from_fn(|| self.urgent.pop_front()).find(|user| self.unhandled.contains_key(user));
        urgent.or_else(|| self.unhandled.keys().next().cloned())
    }
}

impl HandlerRunner {
    pub(super) fn new(handlers: Vec<Arc<dyn DynHandler>>) -> Arc<Self> {
        Arc::new(Self {
            handlers,
            handle: OnceLock::new(),
            peers: Default::default(),
            restarts: Mutex::default(),
            running: AtomicUsize::new(0),
            done: Notify::new(),
        })
    }

    /// Sets the server's handle; once, before the first connection.
    pub(super) fn set_handle(&self, handle: Handle) {
        _ = self.handle.set(handle);
    }

    /// Registers a connection before its first event.
    pub(super) fn add_peer(&self, connection: ConnectionId, handshake: HandshakeInfo) {
        let Some(handle) = self.handle.get().cloned() else { return };
        self.shard(connection).lock().insert(connection, Peer::new(connection, handle, handshake));
    }

    /// Records the identity of a client before its authentication event.
    pub(super) fn set_pending_identity(&self, connection: ConnectionId, identity: &Identity) {
        if let Some(peer) = self.peer(connection) {
            peer.set_pending_identity(identity);
        }
    }

    /// Resolves when no handler runs and no event is queued.
    pub(super) async fn idle(&self) {
        loop {
            let done = self.done.notified();
            if self.running.load(Ordering::Acquire) == 0 {
                return;
            }
            done.await;
        }
    }

    fn shard(&self, connection: ConnectionId) -> &Mutex<HashMap<ConnectionId, Peer>> {
        &self.peers[connection as usize % SHARDS]
    }

    fn peer(&self, connection: ConnectionId) -> Option<Peer> {
        self.shard(connection).lock().get(&connection).cloned()
    }
}

/// Listener of the hub that queues events for the handlers.
pub(super) struct HubListener(pub Arc<HandlerRunner>);

impl Listener for HubListener {
    fn event(&self, connection: ConnectionId, event: Event<'_>) {
        if let Event::RestartDisconnection { user } = event {
            return push_restart(&self.0, user);
        }
        let is_last = matches!(event, Event::Disconnection { .. });
        let shard = self.0.shard(connection);
        let peer = if is_last { shard.lock().remove(&connection) } else { shard.lock().get(&connection).cloned() };
        if let (Some(peer), Some(event)) = (peer, handler_event(event)) {
            push(&self.0, peer, event);
        }
    }

    fn poll_ready(&self, connection: ConnectionId, cx: &mut Context<'_>) -> Poll<()> {
        let Some(peer) = self.0.peer(connection) else { return Poll::Ready(()) };
        // Registered first, so that any later release of capacity wakes the connection.
        peer.0.capacity_waker.register(cx.waker());
        if peer.0.queue.lock().is_full() { Poll::Pending } else { Poll::Ready(()) }
    }
}

/// Copies an event of a connection; `None` for other events.
fn handler_event(event: Event<'_>) -> Option<HandlerEvent> {
    Some(match event {
        Event::Connection => HandlerEvent::Connection,
        Event::Authentication { .. } => HandlerEvent::Authentication,
        Event::Message { message: InboundMessage { op, data, kind, .. }, .. } => {
            HandlerEvent::Message(ReceivedMessage {
                op,
                kind: kind.map(str::to_owned),
                // A part of a text that was parsed as JSON.
                data: data.and_then(|data| RawValue::from_string(data.to_owned()).ok()),
            })
        }
        Event::Disconnection { code, reason, .. } => HandlerEvent::Disconnection(code, reason.into()),
        Event::RestartDisconnection { .. } => return None,
    })
}

/// Queues a user whom a kill of the previous start has disconnected. There are as many as were connected then. All are
/// queued before the first connection.
fn push_restart(runner: &Arc<HandlerRunner>, user: &UserId) {
    {
        let mut restarts = runner.restarts.lock();
        restarts.unhandled.insert(user.clone(), Vec::new());
        if std::mem::replace(&mut restarts.is_running, true) {
            return;
        }
    }
    runner.running.fetch_add(1, Ordering::AcqRel);
    let runner = runner.clone();
    tokio::spawn(async move {
        while let Some(user) = next_restart(&runner) {
            if let Some(handle) = runner.handle.get() {
                call_restart(&runner.handlers, handle, &user).await;
            }
            // Dropping the senders ends the waits for this user.
            runner.restarts.lock().unhandled.remove(&user);
        }
        if runner.running.fetch_sub(1, Ordering::AcqRel) == 1 {
            runner.done.notify_waiters();
        }
    });
}

/// Takes the next of these users; `None` ends the task.
fn next_restart(runner: &HandlerRunner) -> Option<UserId> {
    let mut restarts = runner.restarts.lock();
    let next = restarts.next();
    restarts.is_running = next.is_some();
    next
}

/// Calls the handlers, one after another, with a user whom a kill of the previous start has disconnected.
async fn call_restart(handlers: &[Arc<dyn DynHandler>], handle: &Handle, user: &UserId) {
    for handler in handlers {
        // The handler owns its state, and is called again with the next user.
        let called = AssertUnwindSafe(async {
            if let Some(call) = handler.call_restart(handle.clone(), user.clone()) {
                call.await;
            }
        });
        if let Err(panic) = called.catch_unwind().await {
            report_panic(handle, "restart_disconnection", panic.as_ref(), None, Some(user));
        }
    }
}

/// Waits until the handlers have returned for a user whom a kill of the previous start has disconnected.
///
/// So no handler is notified that the user is back before it is notified of the disconnection. The wait is that for
/// the call in progress, for the users who returned earlier, and for this user.
async fn wait_for_restart(runner: &HandlerRunner, user: &UserId) {
    let handled = {
        let mut restarts = runner.restarts.lock();
        let Restarts { unhandled, urgent, .. } = &mut *restarts;
        let Some(waiting) = unhandled.get_mut(user) else { return };
        if waiting.is_empty() {
            urgent.push_back(user.clone());
        }
        let (sender, handled) = oneshot::channel();
        waiting.push(sender);
        handled
    };
    // Nothing is sent: the sender is dropped once the handlers have returned.
    _ = handled.await;
}

/// Returns the size of a message; `None` for other events, which have no bound.
fn message_bytes(event: &HandlerEvent) -> Option<usize> {
    let HandlerEvent::Message(message) = event else { return None };
    Some(message.data.as_ref().map_or(0, |data| data.get().len()) + message.kind.as_ref().map_or(0, String::len))
}

/// Queues an event, and starts a task for the queue if there is none.
fn push(runner: &Arc<HandlerRunner>, peer: Peer, event: HandlerEvent) {
    {
        let mut queue = peer.0.queue.lock();
        if let Some(bytes) = message_bytes(&event) {
            (queue.messages, queue.bytes) = (queue.messages + 1, queue.bytes + bytes);
        }
        queue.events.push_back(event);
        if std::mem::replace(&mut queue.running, true) {
            return;
        }
    }
    runner.running.fetch_add(1, Ordering::AcqRel);
    let runner = runner.clone();
    tokio::spawn(async move {
        while let Some(event) = next(&peer) {
            // Panics of handlers are caught in `call_handler`. Any other panic must not block the connection's later
            // events.
            let calling = AssertUnwindSafe(async {
                failpoints::panic_at("handlers");
                if matches!(event, HandlerEvent::Authentication) {
                    peer.apply_pending_identity();
                    if let Some(user) = peer.user() {
                        wait_for_restart(&runner, &user).await;
                    }
                }
                for handler in &runner.handlers {
                    call_handler(handler.as_ref(), &peer, event.clone()).await;
                }
            });
            if let Err(panic) = calling.catch_unwind().await {
                let (connection, why) = (peer.connection(), panic_text(panic.as_ref()));
                tracing::error!(connection, why, "an event of a connection did not reach every handler");
            }
            release(&peer, &event);
        }
        if runner.running.fetch_sub(1, Ordering::AcqRel) == 1 {
            runner.done.notify_waiters();
        }
    });
}

/// Takes the next event; `None` ends the task for this queue.
fn next(peer: &Peer) -> Option<HandlerEvent> {
    let mut queue = peer.0.queue.lock();
    let next = queue.events.pop_front();
    if next.is_none() {
        queue.running = false;
        // An idle connection holds no memory for an empty queue.
        queue.events = VecDeque::new();
    }
    next
}

/// Releases the capacity of a handled message.
fn release(peer: &Peer, event: &HandlerEvent) {
    let Some(bytes) = message_bytes(event) else { return };
    let has_capacity = {
        let mut queue = peer.0.queue.lock();
        let was_full = queue.is_full();
        (queue.messages, queue.bytes) = (queue.messages - 1, queue.bytes - bytes);
        was_full && !queue.is_full()
    };
    if has_capacity {
        peer.0.capacity_waker.wake();
    }
}

/// Error that the middleware receives for a handler that panicked.
#[derive(Debug, thiserror::Error)]
#[error("a handler of {name} panicked: {why}")]
struct HandlerPanic {
    name: &'static str,
    why: String,
}

/// Calls one handler, and reports its panic.
async fn call_handler(handler: &dyn DynHandler, peer: &Peer, event: HandlerEvent) {
    let name = event.name();
    // The handler owns its state, and is called again with the next event.
    let called = AssertUnwindSafe(async {
        if let Some(call) = handler.call(peer.clone(), event) {
            call.await;
        }
    });
    if let Err(panic) = called.catch_unwind().await {
        report_panic(peer.server(), name, panic.as_ref(), Some(peer), peer.user().as_ref());
    }
}

/// Logs a panic of a handler, and reports it to the middleware. `peer`: the client, if it is connected to this start.
fn report_panic(
    handle: &Handle,
    name: &'static str,
    panic: &(dyn Any + Send),
    peer: Option<&Peer>,
    user: Option<&UserId>,
) {
    let panicked = HandlerPanic { name, why: panic_text(panic).to_owned() };
    tracing::error!(connection = peer.map(Peer::connection), user = user.map(excerpt), "{}", sentence(&panicked));
    if let Some(hub) = handle.hub.upgrade() {
        let client = peer.map(|peer| Client::new(peer.connection(), peer.address().map(|from| from.ip()), user));
        hub.middleware().report_error(&panicked, client.as_ref());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_with_a_waiting_authentication_is_the_next_one() {
        let user = |id: &str| UserId::new(id).unwrap();
        let mut restarts = Restarts::default();
        for id in ["alice", "bob", "carol"] {
            restarts.unhandled.insert(user(id), Vec::new());
        }
        // The handlers have returned for dave meanwhile.
        restarts.urgent.extend([user("dave"), user("carol")]);
        let order = std::iter::from_fn(|| {
            let next = restarts.next()?;
            restarts.unhandled.remove(&next);
            Some(next)
        });
        assert_eq!(order.collect::<Vec<_>>(), ["carol", "alice", "bob"].map(user));
    }
}
