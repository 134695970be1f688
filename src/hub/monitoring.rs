//! Figures of the server for monitoring.

use super::Hub;
use crate::{metrics::StoreFigures, store::OutboxStatus};

impl Hub {
    /// Returns the figures of the store; `None` if it is remote. Reads no message and no user.
    #[must_use]
    pub fn store_figures(&self) -> Option<StoreFigures> {
        self.store.figures()
    }

    /// Reports whether other servers share the store.
    #[must_use]
    pub fn is_store_remote(&self) -> bool {
        self.store.is_remote()
    }

    /// Returns the state of the outbox of webhook events; `None` without a webhook.
    #[must_use]
    pub fn outbox_status(&self) -> Option<OutboxStatus> {
        self.store.outbox().map(|outbox| outbox.status())
    }

    /// Advances the window of recent latencies. Called once per second.
    pub fn tick_latencies(&self) {
        self.metrics.dispatch_latency.tick();
        if let Some(figures) = self.store.figures() {
            figures.commit_latency.tick();
        }
    }
}
