//! Runs work on a blocking thread.

use std::future::Future;

/// Runs work that may wait for a disk on a blocking thread.
pub(super) fn on_disk_thread<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> impl Future<Output = Option<T>> {
    let running = tokio::task::spawn_blocking(work);
    // Cancelled only when the runtime stops.
    async move { running.await.ok() }
}
