//! Runs the backends and clients that use the servers.
//!
//! They outlive the servers: after a broken connection an actor waits for the next server and continues there.
//!
//! - `current_server`: the server that actors connect to
//! - `backends`: dispatch messages
//! - `clients`: receive messages, each with its own behaviour
//! - `devices`: resume, and acknowledge by sequence
//! - `drain`: receives all pending messages at the end of a round

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
    current_server::{CurrentServer, RunningServer},
    drain::{drain, read_log},
};
use crate::{history::Recorder, support::seeded_rng::Random};

/// Parameters of the workload.
#[derive(Clone, Debug)]
pub struct Params {
    /// Backends. Each has one connection at a time.
    pub backends: u64,
    /// Users. Most of them have one or two clients.
    pub users: u64,
    /// Most dispatches in one burst of pipelined requests.
    pub burst_max: u64,
    /// Some dispatches have an idempotency id, and are retried with it until they are answered.
    pub ids: bool,
    /// Some dispatches are lines of an NDJSON stream.
    pub streams: bool,
}

impl Params {
    /// Returns the parameters for a machine with two cores.
    pub const fn standard() -> Self {
        Self { backends: 6, users: 20, burst_max: 8, ids: true, streams: true }
    }

    /// Returns the ids of all users.
    pub fn users(&self) -> impl Iterator<Item = String> {
        (0..self.users).map(|user| format!("user-{user:02}"))
    }
}

/// State that all actors share.
#[derive(Clone, Debug)]
pub struct Context {
    pub params: Arc<Params>,
    pub current: Arc<CurrentServer>,
    pub history: Arc<Recorder>,
    pub runtime: tokio::runtime::Handle,
    /// The number of the next connection.
    pub connections: Arc<AtomicU64>,
}

/// Running backends and clients.
#[derive(Debug)]
pub struct Actors {
    backends: Vec<JoinHandle<u64>>,
    clients: Vec<Task<()>>,
}

/// Starts all backends and clients. `next` has the number of each backend's next message.
pub fn start(context: &Context, next: &[u64], random: &mut Random) -> Actors {
    let mut actors = Actors { backends: Vec::new(), clients: Vec::new() };
    for (next, backend) in next.iter().zip(0..) {
        let (context, random, next) = (context.clone(), random.split(), *next);
        actors.backends.push(std::thread::spawn(move || backends::run(&context, backend, next, random)));
    }
    for (user, behaviour) in clients::all(&context.params) {
        let (context, random) = (context.clone(), random.split());
        let runtime = context.runtime.clone();
        actors.clients.push(runtime.spawn(async move { clients::run(&context, &user, behaviour, random).await }));
    }
    for (user, device) in devices::all(&context.params) {
        let (context, random) = (context.clone(), random.split());
        let runtime = context.runtime.clone();
        actors.clients.push(runtime.spawn(async move { devices::run(&context, &user, device, random).await }));
    }
    actors
}

impl Actors {
    /// Waits until all actors have ended, after [`CurrentServer::finish`]. Returns each backend's next number.
    pub fn join(self, context: &Context) -> Vec<u64> {
        for client in self.clients {
            context.runtime.block_on(client).expect("a client ends without a panic");
        }
        let joined = self.backends.into_iter().map(std::thread::JoinHandle::join);
        joined.map(|next| next.unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    }
}
