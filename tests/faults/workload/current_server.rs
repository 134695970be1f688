//! Which server there is, and whether the play goes on.

use std::net::SocketAddr;

use tokio::sync::watch;

/// A server that listens, and its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Here {
    pub life: u64,
    pub address: SocketAddr,
}

#[derive(Clone, Copy, Debug, Default)]
struct Scene {
    here: Option<Here>,
    over: bool,
}

/// Seen by all actors, set by one.
#[derive(Debug, Default)]
pub struct Stage(watch::Sender<Scene>);

impl Stage {
    /// A server listens.
    pub fn enter(&self, here: Here) {
        self.0.send_modify(|scene| scene.here = Some(here));
    }

    /// It is gone.
    pub fn leave(&self) {
        self.0.send_modify(|scene| scene.here = None);
    }

    /// The play is over: everybody comes to his end.
    pub fn close(&self) {
        self.0.send_modify(|scene| scene.over = true);
    }

    /// Whether it is.
    pub fn is_over(&self) -> bool {
        self.0.borrow().over
    }

    /// Waits for a server, other than number `not`; `None` when it is over.
    pub async fn server(&self, not: Option<u64>) -> Option<Here> {
        let mut scenes = self.0.subscribe();
        let wanted = |scene: &Scene| scene.over || scene.here.is_some_and(|here| Some(here.life) != not);
        let scene = scenes.wait_for(wanted).await.map(|scene| *scene).ok()?;
        if scene.over { None } else { scene.here }
    }

    /// Waits until it is over.
    pub async fn over(&self) {
        // The sender is in `self`, so this ends for one reason only.
        _ = self.0.subscribe().wait_for(|scene| scene.over).await;
    }
}
