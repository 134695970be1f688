//! Saying a dispatch again when it is not known whether it was taken: once it has an id, that is not doing it again.

use std::time::Duration;

use tokio::time::Instant;

use super::{DispatchError, backoff::jittered};
use crate::message::DispatchId;

/// How a [`Dispatcher`](super::Dispatcher) repeats what may have failed for now: where nobody could be reached, no answer came, the connection
/// broke, the server was stopping (503), full (507) or asked for patience (429).
///
/// Dispatches without an id get one at random, so that a repeat of what was taken all the same is not sent again; its result
/// has `duplicate` set. That holds for as long as the server remembers ids (`api.idWindow`, ten minutes by default), over its
/// crashes too; so `within` has to be shorter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Retry {
    /// No attempt begins later than this after the first. Each takes 30 s at most. Default 60 s.
    pub within: Duration,
    /// The pause before the second attempt; it doubles from one to the next. Default 200 ms.
    pub pause: Duration,
    /// The longest pause. Default 5 s.
    pub pause_max: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self { within: Duration::from_secs(60), pause: Duration::from_millis(200), pause_max: Duration::from_secs(5) }
    }
}

/// What is left of the attempts.
pub(super) struct Attempts {
    pub(super) retry: Option<Retry>,
    pub(super) end: Option<Instant>,
    pub(super) pause: Duration,
}

impl Attempts {
    /// Waits for the next attempt after one that failed so; gives the error back if it was the last.
    pub(super) async fn wait_after(&mut self, error: DispatchError) -> Result<(), DispatchError> {
        let (Some(retry), Some(end)) = (self.retry, self.end) else { return Err(error) };
        let pause = jittered(self.pause);
        if !error.may_pass() || Instant::now() + pause > end {
            return Err(error);
        }
        tracing::debug!(%error, ?pause, "trying again");
        tokio::time::sleep(pause).await;
        self.pause = (self.pause * 2).min(retry.pause_max);
        Ok(())
    }

    /// There was some progress: the pauses begin anew.
    pub(super) fn went_on(&mut self) {
        self.pause = self.retry.map_or(Duration::ZERO, |retry| retry.pause);
    }
}

/// An id that no other dispatch has.
pub(super) fn random_id() -> Result<DispatchId, DispatchError> {
    let mut bytes = [0_u8; 16];
    getrandom::fill(&mut bytes).map_err(|error| DispatchError::Setup(format!("no random numbers: {error}")))?;
    let text = format!("{:032x}", u128::from_be_bytes(bytes));
    DispatchId::new(&text).map_err(|error| DispatchError::Setup(error.to_string()))
}
