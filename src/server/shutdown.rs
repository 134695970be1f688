//! The order in which everything stops: nothing new is taken; requests under way are answered; clients are told, and heard
//! until they know; who is told of clients has heard of the last of them; the store is closed at the end, when nobody can
//! ask it for anything any more.

use std::{sync::Arc, time::Duration};

use tokio::{sync::watch, task::JoinHandle, time::timeout};

use super::{connection_limit::Slots, context::Shared, resp_listener::Open};
use crate::hub::{CloseReason, Store, StoreError};

/// How long handlers may take over what has happened to clients by the end.
pub(super) const HANDLERS_MAX: Duration = Duration::from_secs(2);

/// How long clients have to go: one that takes no part in its farewell is cut before that.
const CLIENTS_MAX: Duration = Duration::from_secs(3);

/// How long clients, requests under way and those who are told of clients have to finish, in all.
const DRAIN_MAX: Duration = Duration::from_secs(5);

/// How often whoever is here by then is told.
const LOOK: Duration = Duration::from_millis(200);

/// How long the store has to write what it was given.
const CLOSE_MAX: Duration = Duration::from_secs(4);

pub(super) async fn stop(
    shared: &Shared,
    store: &Arc<dyn Store>,
    slots: &Slots,
    stop: &watch::Sender<bool>,
    accepting: JoinHandle<()>,
    wire: Option<Open>,
    failed: Option<StoreError>,
) -> Result<(), StoreError> {
    let hub = &shared.hub;
    if let Some(error) = &failed {
        tracing::error!(%error, "stopping");
    } else {
        tracing::info!(connections = hub.connections(), "stopping");
    }
    // Ends the accept loop, which drops the listener, and lets HTTP connections end after their answer.
    stop.send_replace(true);
    // It may have panicked; there is nothing to do about that here but to go on stopping.
    _ = accepting.await;
    let wire_slots = wire.as_ref().map(|wire| wire.slots.clone());
    if let Some(wire) = wire {
        wire.closed().await;
    }
    let why = if failed.is_some() { CloseReason::StoreFailed } else { CloseReason::Shutdown };
    let drained = timeout(DRAIN_MAX, async {
        let clients = timeout(CLIENTS_MAX, async {
            // A connection that was being upgraded when we began may register only now: it is told as well.
            loop {
                hub.close_all(why);
                if timeout(LOOK, shared.sockets.all_free()).await.is_ok() {
                    break;
                }
            }
        });
        // Who is still here then is cut by its own bound, and nobody is told of it.
        _ = clients.await;
        hub.mark_drained();
        // What was half a request when we began may have been one to be let in.
        while timeout(LOOK, slots.all_free()).await.is_err() {
            hub.close_all(why);
        }
        if let Some(slots) = wire_slots {
            slots.all_free().await;
        }
    });
    if drained.await.is_err() {
        tracing::warn!(connections = hub.connections(), "some clients did not take part in the farewell");
    }
    if let Some(calls) = &shared.calls
        && timeout(HANDLERS_MAX, calls.idle()).await.is_err()
    {
        tracing::warn!("handlers were still at work when the server stopped");
    }
    if let Some(error) = failed {
        return Err(error);
    }
    match timeout(CLOSE_MAX, store.close()).await {
        Ok(result) => result,
        Err(_) => Err(StoreError::Failed("closing took too long".into())),
    }
}
