//! A network between clients and a server, which can fail.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
};

/// Passes connections on to a server, which may come to be another one.
pub struct Network {
    pub address: SocketAddr,
    server: Arc<Mutex<SocketAddr>>,
    cut: watch::Sender<u64>,
}

impl Network {
    pub async fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (cut, cuts) = watch::channel(0);
        let server = Arc::new(Mutex::new(server));
        let target = server.clone();
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let (mut cuts, target) = (cuts.clone(), *target.lock().expect("no panic"));
                cuts.mark_unchanged();
                tokio::spawn(async move {
                    let Ok(mut far) = TcpStream::connect(target).await else { return };
                    tokio::select! {
                        _ = copy_bidirectional(&mut near, &mut far) => {}
                        _ = cuts.changed() => {}
                    }
                });
            }
        });
        Self { address, server, cut }
    }

    pub fn url(&self) -> String {
        format!("ws://{}/", self.address)
    }

    /// Breaks every connection, without a word to either side.
    pub fn cut(&self) {
        self.cut.send_modify(|cuts| *cuts += 1);
    }

    /// From here on connections go to another server.
    pub fn lead_to(&self, server: SocketAddr) {
        *self.server.lock().expect("no panic") = server;
    }
}
