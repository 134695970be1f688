//! An HTTP server that writes down what it is asked, and answers as it is told: also wrong, late, or not at all.

use std::{
    collections::VecDeque,
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
    time::timeout,
};

/// How long anything may take that a test waits for.
const PATIENCE: Duration = Duration::from_secs(120);

/// How a request is answered.
#[derive(Clone, Debug)]
pub enum Answer {
    /// With a status, headers (each with its line's end) and a body.
    With(u16, String, String),
    /// After a while.
    Late(Duration, u16),
    /// Not at all; the connection stays open.
    Silence,
    /// By closing the connection.
    Close,
    /// With a status and half of the body that was announced.
    HalfWay(u16),
    /// With a status and a body that has no end.
    Endless(u16),
}

impl Answer {
    /// A status and nothing else.
    pub fn status(status: u16) -> Self {
        Self::With(status, String::new(), String::new())
    }

    /// JSON.
    pub fn json(body: impl ToString) -> Self {
        Self::With(200, "content-type: application/json\r\n".to_owned(), body.to_string())
    }
}

/// What was asked.
#[derive(Clone, Debug)]
pub struct Request {
    /// `POST /hooks HTTP/1.1`
    pub line: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
    /// When it had come.
    pub at: Instant,
    /// Whether the answer began with a status of success.
    pub taken: bool,
}

impl Request {
    /// A header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("a body of JSON")
    }

    /// The events in the body.
    pub fn events(&self) -> Vec<Value> {
        self.json()["events"].as_array().expect("a list of events").clone()
    }
}

struct Shared {
    requests: Mutex<Vec<Request>>,
    script: Mutex<VecDeque<Answer>>,
    otherwise: Mutex<Answer>,
    changed: watch::Sender<u64>,
    connections: AtomicUsize,
}

/// The server.
pub struct Receiver {
    /// Where it listens, when it does.
    pub address: SocketAddr,
    shared: Arc<Shared>,
    listening: Option<JoinSet<()>>,
}

impl Receiver {
    /// Starts one that answers 200 to everything.
    pub fn start() -> Self {
        let shared = Arc::new(Shared {
            requests: Mutex::default(),
            script: Mutex::default(),
            otherwise: Answer::status(200).into(),
            changed: watch::Sender::new(0),
            connections: AtomicUsize::new(0),
        });
        let mut receiver = Self { address: SocketAddr::from(([127, 0, 0, 1], 0)), shared, listening: None };
        receiver.up();
        receiver
    }

    /// Where it is asked.
    pub fn url(&self) -> String {
        format!("http://{}/hooks", self.address)
    }

    /// Goes away, with all its connections.
    pub fn down(&mut self) {
        self.listening = None;
    }

    /// Comes back, where it was.
    pub fn up(&mut self) {
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        socket.set_reuseaddr(true).expect("an option");
        socket.bind(self.address).expect("the address is free");
        let listener = socket.listen(128).expect("a listener");
        self.address = listener.local_addr().expect("an address");
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, self.shared.clone()));
        self.listening = Some(tasks);
    }

    /// Answers the next requests like this, one by one, before it goes on as it does otherwise.
    pub fn script(&self, answers: impl IntoIterator<Item = Answer>) {
        self.shared.script.lock().expect("no panic").extend(answers);
    }

    /// How it answers what no script is for.
    pub fn otherwise(&self, answer: Answer) {
        *self.shared.otherwise.lock().expect("no panic") = answer;
    }

    /// All that was asked so far.
    pub fn requests(&self) -> Vec<Request> {
        self.shared.requests.lock().expect("no panic").clone()
    }

    /// Connections that were ever taken.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// The events of all requests that were taken, in order, without those that came before under the same id.
    pub fn events(&self) -> Vec<Value> {
        let mut events: Vec<Value> = Vec::new();
        let mut known = std::collections::HashSet::new();
        for request in self.requests().iter().filter(|request| request.taken) {
            events.extend(request.events().into_iter().filter(|event| known.insert(event["id"].to_string())));
        }
        events
    }

    /// Waits until `enough` of what was asked so far; panics where that takes too long.
    pub async fn until(&self, what: &str, enough: impl Fn(&Self) -> bool) {
        let mut changes = self.shared.changed.subscribe();
        let waited = timeout(PATIENCE, async {
            while !enough(self) {
                changes.changed().await.expect("the sender is here");
            }
        });
        if waited.await.is_err() {
            let bodies: Vec<_> =
                self.requests().iter().map(|request| String::from_utf8_lossy(&request.body).into_owned()).collect();
            let last = &bodies[bodies.len().saturating_sub(20)..];
            panic!("{what}: not within {PATIENCE:?}; of {} requests the last: {last:#?}", bodies.len());
        }
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        shared.connections.fetch_add(1, Ordering::SeqCst);
        let shared = shared.clone();
        connections.spawn(async move {
            // A peer that goes away is no concern of ours.
            _ = serve(stream, &shared).await;
        });
    }
}

async fn serve(stream: TcpStream, shared: &Shared) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    while let Some(mut request) = read(&mut stream).await? {
        let scripted = shared.script.lock().expect("no panic").pop_front();
        let answer = scripted.unwrap_or_else(|| shared.otherwise.lock().expect("no panic").clone());
        let status = match &answer {
            Answer::With(status, ..) | Answer::Late(_, status) | Answer::HalfWay(status) | Answer::Endless(status) => {
                *status
            }
            Answer::Silence | Answer::Close => 0,
        };
        request.taken = (200..300).contains(&status);
        shared.requests.lock().expect("no panic").push(request);
        shared.changed.send_modify(|changes| *changes += 1);
        let head = format!("HTTP/1.1 {status} Whatever\r\n");
        match answer {
            Answer::With(_, headers, body) => {
                let length = body.len();
                stream.write_all(format!("{head}{headers}content-length: {length}\r\n\r\n{body}").as_bytes()).await?;
            }
            Answer::Late(while_, _) => {
                tokio::time::sleep(while_).await;
                stream.write_all(format!("{head}content-length: 0\r\n\r\n").as_bytes()).await?;
            }
            Answer::Silence => std::future::pending().await,
            Answer::Close => return Ok(()),
            Answer::HalfWay(_) => {
                return stream.write_all(format!("{head}content-length: 1000\r\n\r\n{{\"id\":").as_bytes()).await;
            }
            Answer::Endless(_) => {
                stream.write_all(format!("{head}transfer-encoding: chunked\r\n\r\n").as_bytes()).await?;
                let chunk = format!("1000\r\n{}\r\n", " ".repeat(4096));
                loop {
                    stream.write_all(chunk.as_bytes()).await?;
                }
            }
        }
    }
    Ok(())
}

async fn read(stream: &mut BufReader<TcpStream>) -> io::Result<Option<Request>> {
    let mut line = String::new();
    if stream.read_line(&mut line).await? == 0 {
        return Ok(None);
    }
    let (mut headers, mut length) = (Vec::new(), 0);
    loop {
        let mut header = String::new();
        stream.read_line(&mut header).await?;
        let Some((name, value)) = header.trim_end().split_once(':') else { break };
        let (name, value) = (name.to_ascii_lowercase(), value.trim().to_owned());
        if name == "content-length" {
            length = value.parse().map_err(|_| io::ErrorKind::InvalidData)?;
        }
        headers.push((name, value));
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    Ok(Some(Request { line: line.trim_end().to_owned(), headers, body, at: Instant::now(), taken: false }))
}
