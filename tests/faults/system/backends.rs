//! Backends that dispatch at the same time, each to a user of its own.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::{
    support::{http::Http, wait::WAIT_TIMEOUT},
    tracker::Tracker,
};

/// Running backends. They stop on request, or when the server rejects a dispatch with 503 or disconnects.
#[derive(Debug)]
pub struct Backends {
    threads: Vec<JoinHandle<Tracker>>,
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
}

impl Backends {
    /// Starts one backend for each user.
    pub fn start(address: SocketAddr, users: &[String]) -> Self {
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let threads = users.iter().cloned().map(|user| {
            let (stop, answered) = (stop.clone(), answered.clone());
            thread::spawn(move || dispatch_until_stopped(address, &user, &stop, &answered))
        });
        Self { threads: threads.collect(), stop, answered }
    }

    /// Returns the number of dispatches answered with 200 so far.
    pub fn answered(&self) -> usize {
        self.answered.load(Ordering::Relaxed)
    }

    /// Waits until this number of dispatches has been answered. Panics after [`WAIT_TIMEOUT`].
    pub fn wait_for(&self, answered: usize) {
        let end = Instant::now() + WAIT_TIMEOUT;
        while self.answered() < answered {
            assert!(
                Instant::now() < end,
                "expected {answered} answered dispatches within {WAIT_TIMEOUT:?}: {}",
                self.answered()
            );
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Stops the backends after their current dispatch. Returns what they dispatched.
    pub fn stop(self) -> Tracker {
        self.stop.store(true, Ordering::Relaxed);
        let mut tracker = Tracker::default();
        for thread in self.threads {
            tracker.merge(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        tracker
    }
}

fn dispatch_until_stopped(address: SocketAddr, user: &str, stop: &AtomicBool, answered: &AtomicUsize) -> Tracker {
    let mut tracker = Tracker::default();
    let Ok(mut http) = Http::connect(address) else { return tracker };
    while !stop.load(Ordering::Relaxed) {
        match tracker.dispatch(&mut http, user) {
            Ok(200) => _ = answered.fetch_add(1, Ordering::Relaxed),
            // The server is stopping, or has stopped.
            Ok(503) | Err(_) => break,
            Ok(status) => panic!("expected status 200 or 503 for a dispatch, found {status}"),
        }
    }
    tracker
}
