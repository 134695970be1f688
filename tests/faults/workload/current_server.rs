//! Publishes the current server to all actors, and the end of the workload.

use std::net::SocketAddr;

use tokio::sync::watch;

/// A server that listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunningServer {
    pub number: u64,
    pub address: SocketAddr,
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    server: Option<RunningServer>,
    finished: bool,
}

/// The current server, if there is one. The runner sets it; actors wait for it.
#[derive(Debug, Default)]
pub struct CurrentServer(watch::Sender<State>);

impl CurrentServer {
    /// Publishes a server that listens.
    pub fn set(&self, server: RunningServer) {
        self.0.send_modify(|state| state.server = Some(server));
    }

    /// Publishes that the server has exited.
    pub fn clear(&self) {
        self.0.send_modify(|state| state.server = None);
    }

    /// Ends the workload: every actor ends.
    pub fn finish(&self) {
        self.0.send_modify(|state| state.finished = true);
    }

    /// Reports whether the workload has ended.
    pub fn is_finished(&self) -> bool {
        self.0.borrow().finished
    }

    /// Waits for a server with another number than `except`. Returns `None` when the workload ends.
    pub async fn wait(&self, except: Option<u64>) -> Option<RunningServer> {
        let mut states = self.0.subscribe();
        let wanted = |state: &State| state.finished || state.server.is_some_and(|server| Some(server.number) != except);
        let state = states.wait_for(wanted).await.map(|state| *state).ok()?;
        if state.finished { None } else { state.server }
    }

    /// Waits until the workload ends.
    pub async fn finished(&self) {
        // `self` holds the sender, so the channel cannot close during the wait.
        _ = self.0.subscribe().wait_for(|state| state.finished).await;
    }
}
