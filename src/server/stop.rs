//! Stop signal of a server.

use tokio::sync::watch;

/// Reports whether the server stops, or has been dropped.
pub(super) fn is_stopped(stop: &watch::Receiver<bool>) -> bool {
    *stop.borrow() || stop.has_changed().is_err()
}

/// Resolves when the server stops, or has been dropped.
pub(super) async fn stopped(stop: &mut watch::Receiver<bool>) {
    _ = stop.wait_for(|stop| *stop).await;
}
