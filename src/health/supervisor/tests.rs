use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

#[tokio::test(start_paused = true)]
async fn task_that_ends_unexpectedly_is_not_ready_and_restarts_with_its_state() {
    let (health, ended) = (Arc::<Health>::default(), Arc::<AtomicBool>::default());
    let should_end = ended.clone();
    let supervised = supervise(
        health.clone(),
        "task",
        0,
        move || should_end.load(Ordering::Relaxed),
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
async fn task_that_was_meant_to_end_is_not_restarted() {
    let health = Arc::<Health>::default();
    supervise(health.clone(), "task", (), || true, |()| Box::pin(async {})).await;
    supervise(health.clone(), "task", (), || true, |()| Box::pin(async { panic!("on purpose") })).await;
    assert!(health.reports().is_empty() && health.restarted().get() == 0);
}
