//! A TCP proxy between a server and its Redis that can cut the connections or stop forwarding.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
};

/// State of all connections through a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkState {
    /// All bytes are forwarded.
    Whole,
    /// Open connections are closed. New ones are closed at once.
    Cut,
    /// Connections stay open, and no byte is forwarded.
    Silent,
}

/// Forwards TCP connections to a target address.
pub struct Proxy {
    pub address: SocketAddr,
    state: watch::Sender<LinkState>,
    /// See [`Proxy::drop_reply`].
    dropped_text: Arc<Mutex<Option<&'static str>>>,
    /// Number of calls of [`Proxy::disturb`].
    pub cuts: AtomicU64,
}

impl Proxy {
    pub async fn start(target: SocketAddr) -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a local address");
        let state = watch::Sender::new(LinkState::Whole);
        let proxy = Arc::new(Self { address, state, dropped_text: Arc::default(), cuts: AtomicU64::new(0) });
        let (state, dropped_text) = (proxy.state.clone(), proxy.dropped_text.clone());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (state, dropped_text) = (state.subscribe(), dropped_text.clone());
                if *state.borrow() == LinkState::Cut {
                    continue;
                }
                tokio::spawn(async move {
                    let Ok(server) = TcpStream::connect(target).await else { return };
                    let ((client_in, client_out), (server_in, server_out)) = (client.into_split(), server.into_split());
                    let is_dropped = |bytes: &[u8]| {
                        let contains = |text: &mut &str| bytes.windows(text.len()).any(|part| part == text.as_bytes());
                        dropped_text.lock().expect("an unpoisoned lock").take_if(contains).is_some()
                    };
                    tokio::select! {
                        () = forward(client_in, server_out, state.clone(), |_| false) => {}
                        () = forward(server_in, client_out, state, is_dropped) => {}
                    }
                });
            }
        });
        proxy
    }

    /// Closes the connection instead of forwarding the next reply that contains `text`.
    pub fn drop_reply(&self, text: &'static str) {
        *self.dropped_text.lock().expect("an unpoisoned lock") = Some(text);
    }

    /// Reports whether the reply of [`Proxy::drop_reply`] has been dropped.
    pub fn has_dropped(&self) -> bool {
        self.dropped_text.lock().expect("an unpoisoned lock").is_none()
    }

    /// Sets a state for a while, then forwards again.
    pub async fn disturb(&self, state: LinkState, pause: Duration) {
        self.cuts.fetch_add(1, Ordering::Relaxed);
        self.state.send_replace(state);
        tokio::time::sleep(pause).await;
        self.state.send_replace(LinkState::Whole);
    }
}

/// Forwards bytes in one direction. Returns when either side closes, the state is `Cut`, or `is_dropped` matches.
async fn forward(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut state: watch::Receiver<LinkState>,
    is_dropped: impl Fn(&[u8]) -> bool,
) {
    let mut bytes = vec![0; 16 << 10];
    loop {
        let current = *state.borrow_and_update();
        match current {
            LinkState::Cut => return,
            LinkState::Silent => {
                if state.changed().await.is_err() {
                    return;
                }
            }
            LinkState::Whole => tokio::select! {
                changed = state.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                read = from.read(&mut bytes) => match read {
                    Ok(length) if length > 0 => {
                        if is_dropped(&bytes[..length]) || to.write_all(&bytes[..length]).await.is_err() {
                            return;
                        }
                    }
                    _ => return,
                },
            },
        }
    }
}
