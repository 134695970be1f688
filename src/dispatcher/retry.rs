//! Retries calls that failed temporarily. An id makes the retry of a dispatch idempotent.

use std::time::Duration;

use tokio::time::Instant;

use super::DispatchError;
use crate::{message::DispatchId, util::backoff::Backoff};

/// Configures how a [`Dispatcher`](super::Dispatcher) retries temporary failures.
///
/// These are: no connection, no response, a broken connection, and status 503 (stopping or busy), 507 (full) or 429
/// (too many requests).
///
/// A dispatch without an id gets a random one. Within the server's `api.idWindow` (10 min by default), a retry of an
/// accepted dispatch returns its first result with `duplicate` set, also after a crash. So `timeout` must be shorter
/// than that window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Retry {
    /// Time from the first attempt, after which no attempt begins. Each attempt takes 30 s at most. Default 60 s.
    pub timeout: Duration,
    /// Delay before the second attempt; it doubles with each further one. Default 200 ms. Jitter subtracts up to half.
    pub delay: Duration,
    /// Maximum delay. Default 5 s.
    pub delay_max: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self { timeout: Duration::from_secs(60), delay: Duration::from_millis(200), delay_max: Duration::from_secs(5) }
    }
}

/// Tracks the attempts of one call.
pub(super) struct Attempts {
    /// Time after which no attempt begins. `None`: there is one attempt.
    pub(super) end: Option<Instant>,
    pub(super) backoff: Backoff,
}

impl Attempts {
    /// Waits for the next attempt after an error; returns the error if no attempt remains.
    pub(super) async fn wait_after(&mut self, error: DispatchError) -> Result<(), DispatchError> {
        let Some(end) = self.end else { return Err(error) };
        let delay = self.backoff.next();
        if !error.is_transient() || Instant::now() + delay > end {
            return Err(error);
        }
        tracing::debug!(%error, ?delay, "retrying");
        tokio::time::sleep(delay).await;
        Ok(())
    }

    /// Resets the delay after some progress.
    pub(super) fn reset_delay(&mut self) {
        self.backoff.reset();
    }
}

/// Generates a random id.
pub(super) fn random_id() -> Result<DispatchId, DispatchError> {
    let mut bytes = [0_u8; 16];
    getrandom::fill(&mut bytes).map_err(|error| DispatchError::Setup(format!("no random numbers: {error}")))?;
    let text = format!("{:032x}", u128::from_be_bytes(bytes));
    DispatchId::new(&text).map_err(|error| DispatchError::Setup(error.to_string()))
}
