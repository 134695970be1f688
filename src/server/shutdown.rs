//! Stops a server in order.
//!
//! 1. No new connections are accepted, and requests in progress are answered.
//! 2. Clients are closed. Messages that they send before they receive the close frame still count.
//! 3. Listeners of client events receive the last events.
//! 4. The store is closed, when no component can use it any more.

use std::{sync::Arc, time::Duration};

use tokio::{sync::watch, task::JoinHandle, time::timeout};

use super::{connection_limit::ConnectionLimiter, context::ServerContext, resp_listener::RunningListener};
use crate::hub::{CloseReason, Store, StoreError};

/// Time for handlers to finish the last client events.
pub(super) const HANDLERS_TIMEOUT: Duration = Duration::from_secs(2);

/// Time for all clients to close. A client that does not answer the close frame is disconnected before that.
const CLIENTS_TIMEOUT: Duration = Duration::from_secs(3);

/// Time for clients, requests in progress and listeners of client events to finish, in total.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Interval at which the remaining connections are requested to close.
const RECHECK_INTERVAL: Duration = Duration::from_millis(200);

/// Time for the store to write the dispatches that it has accepted.
const STORE_CLOSE_TIMEOUT: Duration = Duration::from_secs(4);

/// Stops a server; `failed`: the error of the store for which it stops.
pub(super) async fn stop(
    context: &ServerContext,
    store: &Arc<dyn Store>,
    limiter: &ConnectionLimiter,
    stop: &watch::Sender<bool>,
    accepting: JoinHandle<()>,
    resp: Option<RunningListener>,
    failed: Option<StoreError>,
) -> Result<(), StoreError> {
    let hub = &context.hub;
    if let Some(error) = &failed {
        tracing::error!(%error, "stopping");
    } else {
        tracing::info!(connections = hub.begin_closing(), "stopping");
    }
    // Ends the accept loop, which drops the listener, and ends HTTP connections after their response.
    stop.send_replace(true);
    // The task may have panicked; shutdown continues anyway.
    _ = accepting.await;
    let resp_limiter = resp.as_ref().map(|resp| resp.limiter.clone());
    if let Some(resp) = resp {
        resp.closed().await;
    }
    let reason = if failed.is_some() { CloseReason::StoreFailed } else { CloseReason::Shutdown };
    let drained = timeout(DRAIN_TIMEOUT, async {
        let clients = timeout(CLIENTS_TIMEOUT, async {
            // A connection that was upgrading when shutdown began may register only now; it is closed as well.
            loop {
                hub.close_all(reason.clone());
                if timeout(RECHECK_INTERVAL, context.sockets.all_released()).await.is_ok() {
                    break;
                }
            }
        });
        // Remaining connections end by their own timeouts. Their last events may reach no listener.
        _ = clients.await;
        hub.mark_drained();
        // A connection whose request was incomplete when shutdown began may have become a WebSocket.
        while timeout(RECHECK_INTERVAL, limiter.all_released()).await.is_err() {
            hub.close_all(reason.clone());
        }
        if let Some(limiter) = resp_limiter {
            limiter.all_released().await;
        }
    });
    if drained.await.is_err() {
        tracing::warn!(
            connections = hub.connection_count(),
            "some clients did not complete the closing handshake and were disconnected"
        );
    }
    if let Some(runner) = &context.runner
        && timeout(HANDLERS_TIMEOUT, runner.idle()).await.is_err()
    {
        tracing::warn!("handlers were still running when the server stopped; their last events may be lost");
    }
    if let Some(error) = failed {
        return Err(error);
    }
    match timeout(STORE_CLOSE_TIMEOUT, store.close()).await {
        Ok(result) => result,
        Err(_) => Err(StoreError::Failed("closing the store took more than 4 s".into())),
    }
}
