//! From what happens to a client to the calls of handlers: a bounded queue for each connection, and a task for as long as
//! there is something in it.

use std::{
    collections::{HashMap, VecDeque},
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
use tokio::sync::Notify;

use super::{
    handle::Handle,
    handler::Called,
    peer::{Arrival, Peer, Received, Told},
};
use crate::{
    auth::Identity,
    failpoints,
    hub::{ConnectionId, Event, InboundMessage, Listener},
    logging::{excerpt, panic_text, sentence},
    middleware::Client,
};

/// Parts of the map of connections, so that two threads seldom meet at one lock.
const SHARDS: usize = 16;

/// The handlers of a server, and the queues in front of them.
pub(super) struct Calls {
    handlers: Vec<Arc<dyn Called>>,
    handle: OnceLock<Handle>,
    peers: [Mutex<HashMap<ConnectionId, Peer>>; SHARDS],
    /// Queues that a task is at.
    running: AtomicUsize,
    done: Notify,
}

impl Calls {
    pub(super) fn new(handlers: Vec<Arc<dyn Called>>) -> Arc<Self> {
        Arc::new(Self {
            handlers,
            handle: OnceLock::new(),
            peers: Default::default(),
            running: AtomicUsize::new(0),
            done: Notify::new(),
        })
    }

    /// The server there is to talk to; told once, before anybody connects.
    pub(super) fn belong_to(&self, handle: Handle) {
        _ = self.handle.set(handle);
    }

    /// A connection is about to be told of.
    pub(super) fn arrives(&self, connection: ConnectionId, arrival: Arrival) {
        let Some(handle) = self.handle.get().cloned() else { return };
        self.shard(connection).lock().insert(connection, Peer::new(connection, handle, arrival));
    }

    /// A client has shown who it is, and that is about to be told.
    pub(super) fn identified(&self, connection: ConnectionId, identity: &Identity) {
        if let Some(peer) = self.peer(connection) {
            peer.identified(identity);
        }
    }

    /// Resolves when no handler runs and nothing waits for one.
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

/// What the hub calls.
pub(super) struct Telling(pub Arc<Calls>);

impl Listener for Telling {
    fn event(&self, connection: ConnectionId, event: Event<'_>) {
        let gone = matches!(event, Event::Disconnection { .. });
        let shard = self.0.shard(connection);
        let peer = if gone { shard.lock().remove(&connection) } else { shard.lock().get(&connection).cloned() };
        if let Some(peer) = peer {
            push(&self.0, peer, told(event));
        }
    }

    fn poll_ready(&self, connection: ConnectionId, cx: &mut Context<'_>) -> Poll<()> {
        let Some(peer) = self.0.peer(connection) else { return Poll::Ready(()) };
        // Registered first: whoever makes room from here on wakes the connection.
        peer.0.room.register(cx.waker());
        if peer.0.queue.lock().is_full() { Poll::Pending } else { Poll::Ready(()) }
    }
}

fn told(event: Event<'_>) -> Told {
    match event {
        Event::Connection => Told::Connection,
        Event::Authentication { .. } => Told::Authentication,
        Event::Message { said: InboundMessage { op, data, kind, .. }, .. } => Told::Message(Received {
            op,
            kind: kind.map(str::to_owned),
            // It was cut out of a text that was read as JSON a moment ago.
            data: data.and_then(|data| RawValue::from_string(data.to_owned()).ok()),
        }),
        Event::Disconnection { code, reason, .. } => Told::Disconnection(code, reason.into()),
    }
}

fn bytes(told: &Told) -> Option<usize> {
    let Told::Message(message) = told else { return None };
    Some(message.data.as_ref().map_or(0, |data| data.get().len()) + message.kind.as_ref().map_or(0, String::len))
}

/// Puts something behind what waits already, and has a task look after it.
fn push(calls: &Arc<Calls>, peer: Peer, told: Told) {
    {
        let mut queue = peer.0.queue.lock();
        if let Some(bytes) = bytes(&told) {
            (queue.messages, queue.bytes) = (queue.messages + 1, queue.bytes + bytes);
        }
        queue.waiting.push_back(told);
        if std::mem::replace(&mut queue.running, true) {
            return;
        }
    }
    calls.running.fetch_add(1, Ordering::AcqRel);
    let calls = calls.clone();
    tokio::spawn(async move {
        while let Some(told) = next(&peer) {
            // What handlers do is caught there. A panic of our own must not keep the connection from what comes next.
            let calling = AssertUnwindSafe(async {
                failpoints::panic_at("handlers");
                if matches!(told, Told::Authentication) {
                    peer.introduce();
                }
                for handler in &calls.handlers {
                    call(handler.as_ref(), &peer, told.clone()).await;
                }
            });
            if let Err(panic) = calling.catch_unwind().await {
                let (connection, why) = (peer.connection(), panic_text(panic.as_ref()));
                tracing::error!(connection, why, "an event of a connection did not reach every handler");
            }
            forget(&peer, &told);
        }
        if calls.running.fetch_sub(1, Ordering::AcqRel) == 1 {
            calls.done.notify_waiters();
        }
    });
}

/// What comes next; `None` if nothing does, and then nobody is at it any more.
fn next(peer: &Peer) -> Option<Told> {
    let mut queue = peer.0.queue.lock();
    let next = queue.waiting.pop_front();
    if next.is_none() {
        queue.running = false;
        // An idle connection keeps no memory for what it does not have.
        queue.waiting = VecDeque::new();
    }
    next
}

/// A message has been dealt with: there is room for another.
fn forget(peer: &Peer, told: &Told) {
    let Some(bytes) = bytes(told) else { return };
    let made_room = {
        let mut queue = peer.0.queue.lock();
        let was_full = queue.is_full();
        (queue.messages, queue.bytes) = (queue.messages - 1, queue.bytes - bytes);
        was_full && !queue.is_full()
    };
    if made_room {
        peer.0.room.wake();
    }
}

/// What is told to the middleware of a handler that panicked.
#[derive(Debug, thiserror::Error)]
#[error("a handler of {name} panicked: {why}")]
struct Panicked {
    name: &'static str,
    why: String,
}

/// One call, whose panic is its own.
async fn call(handler: &dyn Called, peer: &Peer, told: Told) {
    let name = told.name();
    // What a handler left half done stays its own: it is called again with the next event, and knows what it does then.
    let called = AssertUnwindSafe(async {
        if let Some(call) = handler.call(peer.clone(), told) {
            call.await;
        }
    });
    if let Err(panic) = called.catch_unwind().await {
        let panicked = Panicked { name, why: panic_text(panic.as_ref()).to_owned() };
        let user = peer.user();
        let named = user.as_ref().map(excerpt);
        tracing::error!(connection = peer.connection(), user = named, "{}", sentence(&panicked));
        if let Some(hub) = peer.server().hub.upgrade() {
            let client = Client::new(peer.connection(), peer.address().map(|from| from.ip()), user.as_ref());
            hub.middleware().error(&panicked, Some(&client));
        }
    }
}
