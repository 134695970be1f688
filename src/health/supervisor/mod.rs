//! Supervises the tasks that run as long as the server.
//!
//! If such a task returns or panics while the server runs, the supervisor writes an ERROR line, marks the task as not
//! ready in `/readyz`, and restarts it after a delay. Without supervision its work would stop unnoticed.

use std::{
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{FutureExt, future::BoxFuture};

use super::Health;
use crate::{failpoints, logging::panic_text};

/// Delay before the first restart. It doubles with each further restart, up to the maximum.
const RESTART_DELAY_MIN: Duration = Duration::from_millis(100);
/// Longest delay before a restart.
const RESTART_DELAY_MAX: Duration = Duration::from_secs(10);

/// Time after which a restarted task counts as ready.
const READY_DELAY: Duration = Duration::from_secs(1);

/// Running time of a task after which the next restart has the shortest delay again.
const BACKOFF_RESET_DELAY: Duration = Duration::from_secs(60);

/// Runs a task, and restarts it whenever it ends before the server stops.
///
/// `part` is its name in `/readyz`. `state` is passed from run to run; a run that panics loses what it has moved out of
/// it. `should_end` reports whether the task was meant to end. Dropping the future ends the task.
pub async fn supervise<S: Send>(
    health: Arc<Health>,
    part: &'static str,
    mut state: S,
    should_end: impl Fn() -> bool + Send,
    mut run: impl for<'a> FnMut(&'a mut S) -> BoxFuture<'a, ()> + Send,
) {
    let mut delay = RESTART_DELAY_MIN;
    loop {
        let began = Instant::now();
        let ended = {
            let mut running =
                Box::pin(AssertUnwindSafe(failpoints::with_panic_point(part, run(&mut state))).catch_unwind());
            match tokio::time::timeout(READY_DELAY, &mut running).await {
                Ok(ended) => ended,
                Err(_) => {
                    health.ready(part);
                    running.await
                }
            }
        };
        if should_end() {
            return;
        }
        if began.elapsed() >= BACKOFF_RESET_DELAY {
            delay = RESTART_DELAY_MIN;
        }
        let why = match &ended {
            Ok(()) => "it returned".into(),
            Err(panic) => format!("it panicked: {}", panic_text(panic.as_ref())),
        };
        health.report_restart(part, &why, delay);
        tokio::time::sleep(delay).await;
        delay = (delay * 2).min(RESTART_DELAY_MAX);
    }
}

impl Health {
    /// Reports that a task has ended, and is restarted after `delay`.
    fn report_restart(&self, part: &'static str, why: &str, delay: Duration) {
        tracing::error!(
            part,
            why,
            ?delay,
            "a task of the server ended unexpectedly and is restarted; please report it"
        );
        self.not_ready_logged(
            part,
            format!("this task ended unexpectedly ({why}) and is restarted; please report it").into(),
        );
        self.restarts.inc();
    }
}

#[cfg(test)]
mod tests;
