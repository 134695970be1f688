//! Backends that dispatch at the same time, each to a user of its own, until they are told to stop or the server is gone.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::{ledger::Ledger, support::http::Http};

/// Backends at work.
#[derive(Debug)]
pub struct Backends {
    threads: Vec<JoinHandle<Ledger>>,
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
}

impl Backends {
    /// Starts as many as there are `users`.
    pub fn start(address: SocketAddr, users: &[String]) -> Self {
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let threads = users.iter().cloned().map(|user| {
            let (stop, answered) = (stop.clone(), answered.clone());
            thread::spawn(move || dispatch(address, &user, &stop, &answered))
        });
        Self { threads: threads.collect(), stop, answered }
    }

    /// Dispatches answered with success so far.
    pub fn answered(&self) -> usize {
        self.answered.load(Ordering::Relaxed)
    }

    /// Waits until this many have been answered.
    pub fn wait_for(&self, answered: usize) {
        let end = Instant::now() + Duration::from_secs(120);
        while self.answered() < answered {
            assert!(Instant::now() < end, "only {} of {answered} dispatches in 120 s", self.answered());
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Lets them finish what they are at, or find the server gone; what they did.
    pub fn stop(self) -> Ledger {
        self.stop.store(true, Ordering::Relaxed);
        let mut ledger = Ledger::default();
        for thread in self.threads {
            ledger.merge(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        ledger
    }
}

fn dispatch(address: SocketAddr, user: &str, stop: &AtomicBool, answered: &AtomicUsize) -> Ledger {
    let mut ledger = Ledger::default();
    let Ok(mut http) = Http::connect(address) else { return ledger };
    while !stop.load(Ordering::Relaxed) {
        match ledger.dispatch(&mut http, user) {
            Ok(200) => _ = answered.fetch_add(1, Ordering::Relaxed),
            // It is going, or gone.
            Ok(503) | Err(_) => break,
            Ok(status) => panic!("a dispatch was answered with {status}"),
        }
    }
    ledger
}
