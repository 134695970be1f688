//! Supervision of the tasks that run for as long as the server.
//!
//! None of them ends while the server runs. One that returns or panics all the same is an ERROR line, is not ready in
//! `/readyz` under its name, and is started again after a pause. Without supervision its work would stop without a sign.

use std::{
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{FutureExt, future::BoxFuture};

use super::Health;
use crate::{failpoints, logging::panic_text};

/// Pause before a task is started again. It doubles with each time, up to the maximum.
const RESTART_DELAY_MIN: Duration = Duration::from_millis(100);
const RESTART_DELAY_MAX: Duration = Duration::from_secs(10);

/// A task that has run for so long is ready again.
const READY_AFTER: Duration = Duration::from_secs(1);

/// A task that has run for so long is started again after the shortest pause.
const DELAY_RESET_AFTER: Duration = Duration::from_secs(60);

/// Runs a task until it is over, and starts it again whenever it ends before that.
///
/// `part` names it in `/readyz`. `state` outlives the runs; what a run has taken out of it is lost if that run panics.
/// `is_over` says whether the task was to end. Dropping the future ends the task.
pub async fn supervise<S: Send>(
    health: Arc<Health>,
    part: &'static str,
    mut state: S,
    is_over: impl Fn() -> bool + Send,
    mut run: impl for<'a> FnMut(&'a mut S) -> BoxFuture<'a, ()> + Send,
) {
    let mut delay = RESTART_DELAY_MIN;
    loop {
        let began = Instant::now();
        let ended = {
            let mut running = Box::pin(AssertUnwindSafe(failpoints::until_panic(part, run(&mut state))).catch_unwind());
            match tokio::time::timeout(READY_AFTER, &mut running).await {
                Ok(ended) => ended,
                Err(_) => {
                    health.ready(part);
                    running.await
                }
            }
        };
        if is_over() {
            return;
        }
        if began.elapsed() >= DELAY_RESET_AFTER {
            delay = RESTART_DELAY_MIN;
        }
        let why = match &ended {
            Ok(()) => "it returned".into(),
            Err(panic) => format!("it panicked: {}", panic_text(panic.as_ref())),
        };
        health.restarts(part, &why, delay);
        tokio::time::sleep(delay).await;
        delay = (delay * 2).min(RESTART_DELAY_MAX);
    }
}

impl Health {
    /// Notes that a task has ended and is started again after `delay`.
    fn restarts(&self, part: &'static str, why: &str, delay: Duration) {
        tracing::error!(part, why, ?delay, "a task of the server ended unexpectedly and is started again");
        self.mark(part, format!("this task ended unexpectedly ({why}) and is started again; please report it").into());
        self.restarts.inc();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn task_that_ends_unexpectedly_is_not_ready_and_starts_again_with_its_state() {
        let (health, over) = (Arc::<Health>::default(), Arc::<AtomicBool>::default());
        let is_over = over.clone();
        let supervised = supervise(
            health.clone(),
            "task",
            0,
            move || is_over.load(Ordering::Relaxed),
            |runs| {
                Box::pin(async move {
                    *runs += 1;
                    match *runs {
                        1 => panic!("on purpose"),
                        2 => {}
                        _ => std::future::pending().await,
                    }
                })
            },
        );
        let mut supervised = Box::pin(supervised);
        let mut wait = async |time| assert!(tokio::time::timeout(time, &mut supervised).await.is_err());
        wait(Duration::from_millis(50)).await;
        let reports = health.reports();
        assert!(reports[0].part == "task" && reports[0].reason.contains("it panicked: on purpose"), "{reports:?}");
        wait(Duration::from_millis(100)).await;
        assert!(health.reports()[0].reason.contains("it returned"), "{:?}", health.reports());
        wait(Duration::from_secs(2)).await;
        assert!(health.reports().is_empty() && health.restarted().get() == 2);
    }

    #[tokio::test]
    async fn task_that_was_to_end_is_not_started_again() {
        let health = Arc::<Health>::default();
        supervise(health.clone(), "task", (), || true, |()| Box::pin(async {})).await;
        supervise(health.clone(), "task", (), || true, |()| Box::pin(async { panic!("on purpose") })).await;
        assert!(health.reports().is_empty() && health.restarted().get() == 0);
    }
}
