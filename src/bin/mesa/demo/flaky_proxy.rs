//! A network between Alice and the server that can go away without a word: a TCP proxy that stops forwarding and keeps
//! its sockets open. Neither side is told anything, as when a phone loses its signal.

use std::{io, net::SocketAddr};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};

/// A way to the server. Closed when dropped.
pub struct Network {
    address: SocketAddr,
    dead: watch::Sender<bool>,
    carrier: JoinHandle<()>,
}

impl Network {
    /// A way to `server`, for one connection.
    pub async fn to(server: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let (dead, died) = watch::channel(false);
        let carrier = tokio::spawn(async move {
            // If either side cannot be had, dropping the other tells it so.
            if let Ok((near, _)) = listener.accept().await
                && let Ok(far) = TcpStream::connect(server).await
            {
                carry(near, far, died).await;
            }
        });
        Ok(Self { address, dead, carrier })
    }

    /// Where to connect to get through.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on nothing gets through, and nobody is told.
    pub fn die(&self) {
        self.dead.send_replace(true);
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.carrier.abort();
    }
}

async fn carry(mut near: TcpStream, mut far: TcpStream, mut died: watch::Receiver<bool>) {
    let dead = tokio::select! {
        // Over when both sides have ended; what went wrong is theirs to see.
        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => false,
        dead = died.wait_for(|dead| *dead) => dead.is_ok(),
    };
    if dead {
        // Both sockets stay open, held by this task, until the network is taken down.
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn a_network_that_died_closes_nothing() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let network = Network::to(listener.local_addr().unwrap()).await.unwrap();
        let mut near = TcpStream::connect(network.address()).await.unwrap();
        let (mut far, _) = listener.accept().await.unwrap();
        let mut byte = [0];
        far.write_all(b"a").await.unwrap();
        assert_eq!(near.read(&mut byte).await.unwrap(), 1);

        network.die();
        tokio::time::sleep(Duration::from_millis(20)).await;
        far.write_all(b"b").await.unwrap();
        let silence = tokio::time::timeout(Duration::from_millis(100), near.read(&mut byte)).await;
        assert!(silence.is_err(), "neither data nor an end came through: {silence:?}");
    }
}
