//! TCP proxy between Alice and the server that can fail silently.
//!
//! After a failure it forwards nothing, and its sockets stay open. Neither side receives a close, as when a phone loses
//! its signal.

use std::{io, net::SocketAddr};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};

/// A proxy for one connection. It closes when it is dropped.
pub struct FlakyProxy {
    address: SocketAddr,
    failed: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl FlakyProxy {
    /// Starts a proxy to `server`, for one connection.
    pub async fn start(server: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let (failed, failure) = watch::channel(false);
        let task = tokio::spawn(async move {
            // If the second connection fails, dropping the first closes it.
            if let Ok((near, _)) = listener.accept().await
                && let Ok(far) = TcpStream::connect(server).await
            {
                forward(near, far, failure).await;
            }
        });
        Ok(Self { address, failed, task })
    }

    /// Returns the address of the proxy.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops forwarding without closing a socket.
    pub fn fail(&self) {
        self.failed.send_replace(true);
    }
}

impl Drop for FlakyProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn forward(mut near: TcpStream, mut far: TcpStream, mut failure: watch::Receiver<bool>) {
    let failed = tokio::select! {
        // Ends when both sides have closed. They see errors themselves.
        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => false,
        failed = failure.wait_for(|failed| *failed) => failed.is_ok(),
    };
    if failed {
        // This task holds both sockets open until the proxy is dropped.
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn failed_proxy_leaves_sockets_open() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let proxy = FlakyProxy::start(listener.local_addr().unwrap()).await.unwrap();
        let mut client = TcpStream::connect(proxy.address()).await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        let mut byte = [0];
        server.write_all(b"a").await.unwrap();
        assert_eq!(client.read(&mut byte).await.unwrap(), 1);

        proxy.fail();
        tokio::time::sleep(Duration::from_millis(20)).await;
        server.write_all(b"b").await.unwrap();
        let silence = tokio::time::timeout(Duration::from_millis(100), client.read(&mut byte)).await;
        assert!(silence.is_err(), "expected neither data nor an end from a failed proxy: {silence:?}");
    }
}
