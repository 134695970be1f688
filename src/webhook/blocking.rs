//! Runs work on a blocking thread.

use std::future::Future;

/// Runs what may wait for a disk away from the event loop.
pub(super) fn on_disk_thread<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> impl Future<Output = Option<T>> {
    let running = tokio::task::spawn_blocking(work);
    // Cancelled only when the runtime stops, and then nobody waits.
    async move { running.await.ok() }
}
