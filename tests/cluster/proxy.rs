//! A link that can be cut: between a server and its Redis.

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
    /// See [`Proxy::lose`].
    lost: Arc<Mutex<Option<&'static str>>>,
    /// How often it was cut.
    pub cuts: AtomicU64,
}

impl Proxy {
    pub async fn start(target: SocketAddr) -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let form = watch::Sender::new(Form::Whole);
        let proxy = Arc::new(Self { address, form, lost: Arc::default(), cuts: AtomicU64::new(0) });
        let (form, lost) = (proxy.form.clone(), proxy.lost.clone());
        tokio::spawn(async move {
            while let Ok((from, _)) = listener.accept().await {
                let (form, lost) = (form.subscribe(), lost.clone());
                if *form.borrow() == Form::Cut {
                    continue;
                }
                tokio::spawn(async move {
                    let Ok(to) = TcpStream::connect(target).await else { return };
                    let ((one_in, one_out), (other_in, other_out)) = (from.into_split(), to.into_split());
                    let loses = |bytes: &[u8]| {
                        let is_it = |text: &mut &str| bytes.windows(text.len()).any(|part| part == text.as_bytes());
                        lost.lock().expect("nobody panics with it").take_if(is_it).is_some()
                    };
                    tokio::select! {
                        () = pass(one_in, other_out, form.clone(), |_| false) => {}
                        () = pass(other_in, one_out, form, loses) => {}
                    }
                });
            }
        });
        proxy
    }

    /// The next answer in which this text is does not pass: its connection is cut instead.
    pub fn lose(&self, text: &'static str) {
        *self.lost.lock().expect("nobody panics with it") = Some(text);
    }

    /// Whether that has happened.
    pub fn has_lost(&self) -> bool {
        self.lost.lock().expect("nobody panics with it").is_none()
    }

    /// Lets nothing pass for a while.
    pub async fn disturb(&self, form: Form, pause: Duration) {
        self.cuts.fetch_add(1, Ordering::Relaxed);
        self.form.send_replace(form);
        tokio::time::sleep(pause).await;
        self.form.send_replace(Form::Whole);
    }
}

async fn pass(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut form: watch::Receiver<Form>,
    loses: impl Fn(&[u8]) -> bool,
) {
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
                        if loses(&bytes[..length]) || to.write_all(&bytes[..length]).await.is_err() {
                            return;
                        }
                    }
                    _ => return,
                },
            },
        }
    }
}
