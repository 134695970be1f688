//! Those who use the server while it is being harmed. They stay over its deaths: whoever loses his connection waits for
//! the next server and goes on.
//!
//! - `current_server`: which server is there now, for all of them
//! - `backends`: send
//! - `clients`: receive, each in a manner of his own
//! - `devices`: resume, and confirm by themselves
//! - `drain`: in the end everything is received

mod backends;
mod clients;
mod current_server;
mod devices;
mod drain;

use std::{
    sync::{Arc, atomic::AtomicU64},
    thread::JoinHandle,
};

use tokio::task::JoinHandle as Task;

pub use self::{
    current_server::{Here, Stage},
    drain::{drain, look},
};
use crate::{history::Recorder, support::seeded_rng::Random};

/// What is done.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Connections that send, each with a count of its own.
    pub backends: u64,
    /// Users, most of whom have a client or two.
    pub users: u64,
    /// Dispatches sent at once over one connection, at most.
    pub depth: u64,
    /// Whether some dispatches have ids, and what was not answered of those is sent again under the same.
    pub ids: bool,
    /// Whether some dispatches are lines of a stream.
    pub streams: bool,
}

impl Plan {
    /// For two cores.
    pub const fn standard() -> Self {
        Self { backends: 6, users: 20, depth: 8, ids: true, streams: true }
    }

    /// All users.
    pub fn users(&self) -> impl Iterator<Item = String> {
        (0..self.users).map(|user| format!("user-{user:02}"))
    }
}

/// What all actors share.
#[derive(Clone, Debug)]
pub struct World {
    pub plan: Arc<Plan>,
    pub stage: Arc<Stage>,
    pub history: Arc<Recorder>,
    pub runtime: tokio::runtime::Handle,
    /// Numbers for connections.
    pub connections: Arc<AtomicU64>,
}

/// Actors at work.
#[derive(Debug)]
pub struct Running {
    backends: Vec<JoinHandle<u64>>,
    clients: Vec<Task<()>>,
}

/// Starts them; `next` is the number each backend goes on with.
pub fn start(world: &World, next: &[u64], random: &mut Random) -> Running {
    let mut running = Running { backends: Vec::new(), clients: Vec::new() };
    for (next, backend) in next.iter().zip(0..) {
        let (world, random, next) = (world.clone(), random.split(), *next);
        running.backends.push(std::thread::spawn(move || backends::run(&world, backend, next, random)));
    }
    for (user, manner) in clients::cast(&world.plan) {
        let (world, random) = (world.clone(), random.split());
        let runtime = world.runtime.clone();
        running.clients.push(runtime.spawn(async move { clients::run(&world, &user, manner, random).await }));
    }
    for (user, device) in devices::cast(&world.plan) {
        let (world, random) = (world.clone(), random.split());
        let runtime = world.runtime.clone();
        running.clients.push(runtime.spawn(async move { devices::run(&world, &user, device, random).await }));
    }
    running
}

impl Running {
    /// Waits until all have come to their end, after [`Stage::close`]; returns the numbers the backends go on with.
    pub fn join(self, world: &World) -> Vec<u64> {
        for client in self.clients {
            world.runtime.block_on(client).expect("a client does not panic");
        }
        let joined = self.backends.into_iter().map(std::thread::JoinHandle::join);
        joined.map(|next| next.unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    }
}
