//! Backends that dispatch until the server is gone, and remember what they were told.

use std::{net::SocketAddr, thread};

use serde_json::json;

use crate::{
    history::{Mark, Sent},
    support::{http::Http, random::Random},
};

/// Dispatching at the same time.
pub const BACKENDS: u64 = 4;

/// Everybody writes to this user.
pub const SHARED: &str = "shared";

/// Everybody writes to this user as well, and now and then the user comes and reads.
pub const READER: &str = "reader";

/// The user only this backend writes to.
pub fn own_user(backend: u64) -> String {
    format!("user-of-{backend}")
}

/// All users whose logs grow and are never read by their owner.
pub fn kept_users() -> Vec<String> {
    (0..BACKENDS).map(own_user).chain([SHARED.to_owned()]).collect()
}

/// Backends at work.
#[derive(Debug)]
pub struct Running(Vec<thread::JoinHandle<Vec<Sent>>>);

/// Starts all backends at `address`; `next` is the number each goes on with.
pub fn start(address: SocketAddr, next: &[u64], random: &mut Random) -> Running {
    let threads = (0..BACKENDS).zip(next).map(|(backend, next)| {
        let (next, random) = (*next, random.split());
        thread::spawn(move || dispatch_until_gone(address, backend, next, random))
    });
    Running(threads.collect())
}

impl Running {
    /// Waits until all have noticed that the server is gone; returns what they did.
    pub fn join(self) -> Vec<Sent> {
        let joined = self.0.into_iter().map(std::thread::JoinHandle::join);
        joined.flat_map(|sent| sent.unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    }
}

fn dispatch_until_gone(address: SocketAddr, backend: u64, first: u64, mut random: Random) -> Vec<Sent> {
    let mut done = Vec::new();
    let Ok(mut http) = Http::connect(address) else { return done };
    for n in first.. {
        let mut recipients = vec![own_user(backend)];
        if random.once_in(2) {
            recipients.push(SHARED.to_owned());
        }
        if random.once_in(3) {
            recipients.push(READER.to_owned());
        }
        // Now and then one that does not fit beside many others.
        let padding = if random.once_in(20) { random.within(1_000..=40_000) } else { random.within(0..=200) };
        let data = json!({ "b": backend, "n": n, "x": "x".repeat(padding as usize) });
        let answered = http.dispatch(&data, &recipients).is_ok();
        done.push(Sent { mark: Mark { backend, n }, recipients, answered });
        if !answered {
            break;
        }
    }
    done
}
