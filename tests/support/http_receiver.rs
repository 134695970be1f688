//! HTTP server that records requests and sends scripted responses, including broken, late and missing ones.

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

/// Longest time that a test waits for a condition.
const WAIT_TIMEOUT: Duration = Duration::from_secs(120);

/// A scripted response to a request.
#[derive(Clone, Debug)]
pub enum Response {
    /// A status, headers (each with its CRLF) and a body.
    With(u16, String, String),
    /// A status without a body, after a delay.
    Late(Duration, u16),
    /// No response; the connection stays open.
    Silence,
    /// No response; the connection is closed.
    Close,
    /// A status and a part of the announced body; then the connection is closed.
    HalfWay(u16),
    /// A status and an endless body.
    Endless(u16),
}

impl Response {
    /// Creates a response with a status and no body.
    pub fn status(status: u16) -> Self {
        Self::With(status, String::new(), String::new())
    }

    /// Creates a response with status 200 and a JSON body.
    pub fn json(body: impl ToString) -> Self {
        Self::With(200, "content-type: application/json\r\n".to_owned(), body.to_string())
    }
}

/// A recorded request.
#[derive(Clone, Debug)]
pub struct Request {
    /// Request line, as `POST /hooks HTTP/1.1`.
    pub line: String,
    /// Headers, with names in lower case.
    pub headers: Vec<(String, String)>,
    /// Body, complete.
    pub body: Vec<u8>,
    /// Time at which the body was complete.
    pub at: Instant,
    /// Whether the response has a status of success.
    pub accepted: bool,
}

impl Request {
    /// Returns a header's value; `name` is in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// Decodes the body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("a JSON body")
    }

    /// Returns the webhook events in the body.
    pub fn events(&self) -> Vec<Value> {
        self.json()["events"].as_array().expect("a list of events").clone()
    }
}

struct Shared {
    requests: Mutex<Vec<Request>>,
    script: Mutex<VecDeque<Response>>,
    default: Mutex<Response>,
    changed: watch::Sender<u64>,
    connections: AtomicUsize,
}

/// An HTTP server in this process.
pub struct Receiver {
    /// Address while it is up; the same after each [`Receiver::up`].
    pub address: SocketAddr,
    shared: Arc<Shared>,
    listening: Option<JoinSet<()>>,
}

impl Receiver {
    /// Starts a server that responds with 200 to every request.
    pub fn start() -> Self {
        let shared = Arc::new(Shared {
            requests: Mutex::default(),
            script: Mutex::default(),
            default: Response::status(200).into(),
            changed: watch::Sender::new(0),
            connections: AtomicUsize::new(0),
        });
        let mut receiver = Self { address: SocketAddr::from(([127, 0, 0, 1], 0)), shared, listening: None };
        receiver.up();
        receiver
    }

    /// Returns the URL for webhooks.
    pub fn url(&self) -> String {
        format!("http://{}/hooks", self.address)
    }

    /// Stops listening and closes all connections.
    pub fn down(&mut self) {
        self.listening = None;
    }

    /// Listens again, on the same address.
    pub fn up(&mut self) {
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        socket.set_reuseaddr(true).expect("SO_REUSEADDR is set");
        socket.bind(self.address).expect("the address is free");
        let listener = socket.listen(128).expect("a listener");
        self.address = listener.local_addr().expect("an address");
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, self.shared.clone()));
        self.listening = Some(tasks);
    }

    /// Adds responses for the next requests, one each. After them the default response applies again.
    pub fn script(&self, responses: impl IntoIterator<Item = Response>) {
        self.shared.script.lock().expect("no panic").extend(responses);
    }

    /// Sets the default response, for requests without a scripted one.
    pub fn respond_with(&self, response: Response) {
        *self.shared.default.lock().expect("no panic") = response;
    }

    /// Returns all requests so far, in order.
    pub fn requests(&self) -> Vec<Request> {
        self.shared.requests.lock().expect("no panic").clone()
    }

    /// Returns the number of connections accepted so far.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// Returns the webhook events of all accepted requests in order, without repeated ids.
    pub fn events(&self) -> Vec<Value> {
        let mut events: Vec<Value> = Vec::new();
        let mut ids = std::collections::HashSet::new();
        for request in self.requests().iter().filter(|request| request.accepted) {
            events.extend(request.events().into_iter().filter(|event| ids.insert(event["id"].to_string())));
        }
        events
    }

    /// Waits until `condition` holds for the requests so far. Panics after [`WAIT_TIMEOUT`].
    pub async fn wait_until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let mut changes = self.shared.changed.subscribe();
        let waited = timeout(WAIT_TIMEOUT, async {
            while !condition(self) {
                changes.changed().await.expect("`shared` holds the sender");
            }
        });
        if waited.await.is_err() {
            let bodies: Vec<_> =
                self.requests().iter().map(|request| String::from_utf8_lossy(&request.body).into_owned()).collect();
            let last = &bodies[bodies.len().saturating_sub(20)..];
            panic!("{what}: not within {WAIT_TIMEOUT:?}; last of {} requests: {last:#?}", bodies.len());
        }
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        shared.connections.fetch_add(1, Ordering::SeqCst);
        let shared = shared.clone();
        connections.spawn(async move {
            // A client may disconnect at any time.
            _ = serve(stream, &shared).await;
        });
    }
}

async fn serve(stream: TcpStream, shared: &Shared) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    while let Some(mut request) = read(&mut stream).await? {
        let scripted = shared.script.lock().expect("no panic").pop_front();
        let response = scripted.unwrap_or_else(|| shared.default.lock().expect("no panic").clone());
        let status = match &response {
            Response::With(status, ..)
            | Response::Late(_, status)
            | Response::HalfWay(status)
            | Response::Endless(status) => *status,
            Response::Silence | Response::Close => 0,
        };
        request.accepted = (200..300).contains(&status);
        shared.requests.lock().expect("no panic").push(request);
        shared.changed.send_modify(|changes| *changes += 1);
        let head = format!("HTTP/1.1 {status} Reason\r\n");
        match response {
            Response::With(_, headers, body) => {
                let length = body.len();
                stream.write_all(format!("{head}{headers}content-length: {length}\r\n\r\n{body}").as_bytes()).await?;
            }
            Response::Late(delay, _) => {
                tokio::time::sleep(delay).await;
                stream.write_all(format!("{head}content-length: 0\r\n\r\n").as_bytes()).await?;
            }
            Response::Silence => std::future::pending().await,
            Response::Close => return Ok(()),
            Response::HalfWay(_) => {
                return stream.write_all(format!("{head}content-length: 1000\r\n\r\n{{\"id\":").as_bytes()).await;
            }
            Response::Endless(_) => {
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
    Ok(Some(Request { line: line.trim_end().to_owned(), headers, body, at: Instant::now(), accepted: false }))
}
