//! A link that can be cut: between a server and its Redis.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
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

/// How a link is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// All passes.
    Whole,
    /// Connections are closed, and none is taken.
    Cut,
    /// Nothing passes, and nobody is told.
    Silent,
}

/// A link to `target`.
pub struct Proxy {
    pub address: SocketAddr,
    form: watch::Sender<Form>,
    /// How often it was cut.
    pub cuts: AtomicU64,
}

impl Proxy {
    pub async fn start(target: SocketAddr) -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let proxy = Arc::new(Self { address, form: watch::Sender::new(Form::Whole), cuts: AtomicU64::new(0) });
        let form = proxy.form.clone();
        tokio::spawn(async move {
            while let Ok((from, _)) = listener.accept().await {
                let form = form.subscribe();
                if *form.borrow() == Form::Cut {
                    continue;
                }
                tokio::spawn(async move {
                    let Ok(to) = TcpStream::connect(target).await else { return };
                    let ((one_in, one_out), (other_in, other_out)) = (from.into_split(), to.into_split());
                    tokio::select! {
                        () = pass(one_in, other_out, form.clone()) => {}
                        () = pass(other_in, one_out, form) => {}
                    }
                });
            }
        });
        proxy
    }

    /// Lets nothing pass for a while.
    pub async fn disturb(&self, form: Form, pause: Duration) {
        self.cuts.fetch_add(1, Ordering::Relaxed);
        self.form.send_replace(form);
        tokio::time::sleep(pause).await;
        self.form.send_replace(Form::Whole);
    }
}

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut form: watch::Receiver<Form>) {
    let mut bytes = vec![0; 16 << 10];
    loop {
        let now = *form.borrow_and_update();
        match now {
            Form::Cut => return,
            Form::Silent => {
                if form.changed().await.is_err() {
                    return;
                }
            }
            Form::Whole => tokio::select! {
                changed = form.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                read = from.read(&mut bytes) => match read {
                    Ok(length) if length > 0 => {
                        if to.write_all(&bytes[..length]).await.is_err() {
                            return;
                        }
                    }
                    _ => return,
                },
            },
        }
    }
}
