//! TCP proxy between clients and a server that can break connections.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
};

/// A TCP proxy whose target can change.
pub struct FlakyProxy {
    pub address: SocketAddr,
    target: Arc<Mutex<SocketAddr>>,
    cut: watch::Sender<u64>,
}

impl FlakyProxy {
    /// Starts a proxy to a server.
    pub async fn start(server: SocketAddr) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (cut, cuts) = watch::channel(0);
        let target = Arc::new(Mutex::new(server));
        let shared = target.clone();
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let (mut cuts, target) = (cuts.clone(), *shared.lock().expect("no panic"));
                cuts.mark_unchanged();
                tokio::spawn(async move {
                    let Ok(mut server) = TcpStream::connect(target).await else { return };
                    tokio::select! {
                        _ = copy_bidirectional(&mut client, &mut server) => {}
                        _ = cuts.changed() => {}
                    }
                });
            }
        });
        Self { address, target, cut }
    }

    pub fn url(&self) -> String {
        format!("ws://{}/", self.address)
    }

    /// Closes every connection without a WebSocket close frame.
    pub fn cut(&self) {
        self.cut.send_modify(|cuts| *cuts += 1);
    }

    /// Sets the server that later connections go to.
    pub fn set_target(&self, server: SocketAddr) {
        *self.target.lock().expect("no panic") = server;
    }
}
