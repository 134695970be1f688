//! The floor: a server that does the least. It stores and checks nothing, and writes each frame with one system call.
//!
//! It is this program in a process of its own, with the original's protocol and `PUBLISH` of Redis.

use std::{
    collections::HashMap,
    io::{self, BufRead, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::Arc,
};

use futures_util::{SinkExt as _, StreamExt as _};
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio_tungstenite::{accept_async, tungstenite::Message};

use crate::{
    clients::Protocol,
    contestant::{Answers, Contestant, Running, To},
    original::Original,
    process::{Processes, free_address},
};

/// First argument of the process.
pub const ARGUMENT: &str = "--floor";

/// First byte of a text frame that is not a fragment, and a length that states that two bytes with the length follow.
const TEXT: u8 = 0x81;
const TWO_BYTES: u8 = 126;

/// Connected clients by user id.
type Clients = Mutex<HashMap<String, Arc<TcpStream>>>;

pub struct Floor;

impl Contestant for Floor {
    fn name(&self) -> &'static str {
        "floor"
    }

    fn prepare(&self) -> Result<(), String> {
        Ok(())
    }

    fn start(&self) -> Running {
        let (mut processes, clients, publishers) = (Processes::new(), free_address(), free_address());
        let program = std::env::current_exe().expect("the path of this program");
        // The first listener is the last to be opened.
        processes.start(program, &[ARGUMENT, &clients.to_string(), &publishers.to_string()], clients);
        Running { processes, clients, publishers }
    }

    fn protocol(&self) -> Protocol {
        Protocol::WebSocket
    }

    fn has_queue(&self) -> bool {
        false
    }

    fn open(&self, _stream: &mut TcpStream) -> io::Result<()> {
        Ok(())
    }

    fn encode(&self, buffer: &mut Vec<u8>, to: To, message: &str, number: u64) {
        Original.encode(buffer, to, message, number);
    }

    fn answers(&self) -> Answers {
        Original.answers()
    }
}

/// Serves until the process is killed. The arguments are the addresses for clients and publishers.
pub fn serve() {
    let address = |number| std::env::args().nth(number).and_then(|text| text.parse::<SocketAddr>().ok());
    let clients: Arc<Clients> = Arc::default();
    let publishers = TcpListener::bind(address(3).expect("an address")).expect("a free port");
    let connected = clients.clone();
    std::thread::spawn(move || {
        for stream in publishers.incoming().flatten() {
            let clients = connected.clone();
            std::thread::spawn(move || publish(stream, &clients));
        }
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind(address(2).expect("an address")).await.expect("a free port");
        while let Ok((stream, _)) = listener.accept().await {
            let clients = clients.clone();
            tokio::spawn(async move { connect(stream, &clients).await });
        }
    });
}

/// Authenticates a client. From then on only the publishers use its socket.
async fn connect(stream: tokio::net::TcpStream, clients: &Clients) -> Option<()> {
    let mut socket = accept_async(stream).await.ok()?;
    socket.send(Message::text(r#"{"op":10,"d":{"rules":[]}}"#)).await.ok()?;
    let authentication = socket.next().await?.ok()?.into_text().ok()?;
    let user = serde_json::from_str::<serde_json::Value>(&authentication).ok()?["d"]["token"].as_str()?.to_owned();
    socket.send(Message::text(r#"{"op":22,"d":{}}"#)).await.ok()?;
    let stream = socket.into_inner().into_std().ok()?;
    stream.set_nonblocking(false).ok()?;
    stream.set_nodelay(true).ok()?;
    clients.lock().insert(user, Arc::new(stream));
    Some(())
}

/// A message and its recipients.
#[derive(Deserialize)]
struct Dispatch<'a> {
    #[serde(borrow)]
    message: &'a RawValue,
    recipients: Vec<String>,
}

/// Writes each published message to its recipients, one after the other.
fn publish(stream: TcpStream, clients: &Clients) -> io::Result<()> {
    let mut answers = stream.try_clone()?;
    let mut commands = io::BufReader::with_capacity(1 << 16, stream);
    loop {
        let words = command(&mut commands)?;
        let Some(body) = words.get(2) else { return Err(io::Error::other("not PUBLISH")) };
        let dispatch: Dispatch = serde_json::from_str(body)?;
        let frame = frame(dispatch.message.get());
        for recipient in &dispatch.recipients {
            if recipient == "*" {
                let all: Vec<_> = clients.lock().values().cloned().collect();
                all.iter().try_for_each(|client| client.as_ref().write_all(&frame))?;
            } else {
                let client = clients.lock().get(recipient).cloned();
                client.as_deref().map_or(Ok(()), |mut client| client.write_all(&frame))?;
            }
        }
        answers.write_all(b":1\r\n")?;
    }
}

/// Reads the words of a command of the Redis protocol.
fn command(stream: &mut impl BufRead) -> io::Result<Vec<String>> {
    let words = number(stream, "*")?;
    let word = |_| {
        let length = number(stream, "$")?;
        let mut word = vec![0; length + 2];
        stream.read_exact(&mut word)?;
        word.truncate(length);
        String::from_utf8(word).map_err(io::Error::other)
    };
    (0..words).map(word).collect()
}

fn number(stream: &mut impl BufRead, prefix: &str) -> io::Result<usize> {
    let mut line = String::new();
    stream.read_line(&mut line)?;
    let digits = line.trim_end().strip_prefix(prefix).ok_or_else(|| io::Error::other("not a command"))?;
    digits.parse().map_err(io::Error::other)
}

/// Encodes a message of 126 to 65,535 bytes as a WebSocket frame.
fn frame(text: &str) -> Vec<u8> {
    let length = (text.len() as u16).to_be_bytes();
    [&[TEXT, TWO_BYTES, length[0], length[1]], text.as_bytes()].concat()
}

/// Checks the parser, and a frame.
pub fn check() {
    let mut buffer = Vec::new();
    Original.encode(&mut buffer, To::User(3), "{}", 0);
    let words = command(&mut &buffer[..]).expect("a command");
    assert_eq!(words[..2], ["PUBLISH", "ws"]);
    let dispatch: Dispatch = serde_json::from_str(&words[2]).expect("a dispatch");
    assert_eq!((dispatch.message.get(), &dispatch.recipients[..]), ("{}", &["u3".to_owned()][..]));
    assert_eq!(frame(&"x".repeat(300))[..5], [TEXT, TWO_BYTES, 1, 44, b'x']);
}
