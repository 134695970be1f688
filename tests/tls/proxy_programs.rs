//! Tests the configurations in `data/deploy` with the programs that they are for.

use std::{
    env, fs,
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use mesa::config::Config;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::{
    authority::Authority,
    dispatch, next, start,
    support::{
        in_process::{KEY, TestServer},
        server::Process,
        wait::WAIT_TIMEOUT,
    },
};

/// Returns a program that is in one of the usual directories. Without it a test does not run, which fails in CI.
fn program(name: &str) -> Option<PathBuf> {
    let path = env::var("PATH").unwrap_or_default();
    let directories = path.split(':').chain(["/usr/sbin", "/usr/local/sbin"]);
    let found = directories.map(|directory| PathBuf::from(directory).join(name)).find(|path| path.is_file());
    if found.is_none() {
        let skipped = format!("{name} is not installed, so its configuration in data/deploy was not tested");
        assert!(env::var_os("CI").is_none(), "{skipped}");
        eprintln!("{skipped}");
    }
    found
}

/// Reads a configuration, and replaces each text; each must be in it.
fn configuration(name: &str, replacements: &[(&str, String)]) -> String {
    let path = format!("{}/data/deploy/{name}", env!("CARGO_MANIFEST_DIR"));
    let mut text = fs::read_to_string(&path).unwrap();
    for (from, to) in replacements {
        assert!(text.contains(from), "{from} is not in {path}");
        text = text.replace(from, to);
    }
    text
}

/// Returns an address that no program uses now.
fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn trust_local_proxy(config: &mut Config) {
    config.trusted_proxies = vec!["127.0.0.1".into()];
    config.limits.connections_per_address = 3;
}

/// A started proxy, with what its clients need.
struct Proxy {
    address: SocketAddr,
    authority: Authority,
    process: Process,
}

impl Proxy {
    /// Starts a program, and waits until it listens.
    async fn start(authority: Authority, address: SocketAddr, command: &mut Command) -> Self {
        let log = fs::File::create(authority.path("proxy.log")).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let mut process = Process::new(command.spawn().unwrap());
        let log = || fs::read_to_string(authority.path("proxy.log")).unwrap_or_default();
        let listening = async {
            while TcpStream::connect(address).await.is_err() {
                assert!(process.try_wait().is_none(), "the proxy has ended: {}", log());
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(WAIT_TIMEOUT, listening).await.unwrap_or_else(|_| panic!("the proxy does not listen: {}", log()));
        Self { address, authority, process }
    }

    /// Connects from an address of this machine.
    async fn connect(&self, from: &str) -> std::io::Result<TlsStream<TcpStream>> {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(format!("{from}:0").parse().unwrap()).unwrap();
        let stream = socket.connect(self.address).await.unwrap();
        let connector = TlsConnector::from(self.authority.client(None, &["http/1.1"]));
        connector.connect("localhost".try_into().unwrap(), stream).await
    }

    /// Sends a request from an address of this machine, with addresses that a client may invent. Returns the head.
    async fn request(&self, from: &str, path: &str, headers: &str) -> (TlsStream<TcpStream>, String) {
        let mut stream = self.connect(from).await.unwrap();
        let invented = "X-Forwarded-For: 198.51.100.1\r\nForwarded: for=198.51.100.2\r\n";
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{invented}{headers}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
        let head = read_until(&mut stream, "\r\n\r\n").await;
        (stream, head)
    }

    /// Checks a client of Rust, the client's address, and a stream of events.
    async fn check(self) {
        let url = |scheme: &str| format!("{scheme}://localhost:{}", self.address.port());
        let transport = mesa::client::Transport::default().ca_pem(self.authority.pem()).no_proxy();
        let mut alice = mesa::client::Connection::connect_with(&url("wss"), &transport).await.unwrap();
        alice.authenticate(mesa::client::token("alice"), true).await.unwrap();
        let pem = self.authority.pem();
        let backend = mesa::dispatcher::Dispatcher::with_ca(&url("https"), KEY, pem.as_bytes()).unwrap();
        dispatch(&backend, "alice", "through the proxy").await;
        assert_eq!(next(&mut alice).await, "through the proxy");

        // Three connections of one address are allowed, whatever the client tells about itself.
        const UPGRADE: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                               Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
        let mut open = Vec::new();
        for _ in 0..3 {
            let (stream, head) = self.request("127.0.0.2", "/", UPGRADE).await;
            assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
            open.push(stream);
        }
        let fourth = async {
            let mut stream = self.connect("127.0.0.2").await?;
            stream.write_all(format!("GET / HTTP/1.1\r\nHost: localhost\r\n{UPGRADE}\r\n").as_bytes()).await?;
            std::io::Result::Ok(read_until(&mut stream, "\r\n\r\n").await)
        };
        let answer = fourth.await.unwrap_or_else(|error| error.to_string());
        assert!(!answer.contains(" 101 "), "{answer}");
        let (_other, head) = self.request("127.0.0.3", "/", UPGRADE).await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");

        // An event arrives while its stream stays open.
        let (mut events, head) =
            self.request("127.0.0.4", "/v1/events", &format!("Authorization: Bearer {KEY}\r\n")).await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        alice.send("HELLO", &"event").await.unwrap();
        let received = read_until(&mut events, "HELLO").await;
        assert!(received.contains("HELLO"), "{received}");
        self.process.kill();
    }
}

/// Reads until the text has arrived, or the connection ends.
async fn read_until(stream: &mut TlsStream<TcpStream>, text: &str) -> String {
    let (mut read, mut buffer) = (Vec::new(), [0; 1]);
    timeout(WAIT_TIMEOUT, async {
        while !read.ends_with(text.as_bytes()) && stream.read(&mut buffer).await.is_ok_and(|read| read > 0) {
            read.push(buffer[0]);
        }
    })
    .await
    .unwrap_or_else(|_| panic!("{text:?} does not arrive: {}", String::from_utf8_lossy(&read)));
    String::from_utf8(read).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn nginx_configuration_serves_clients() {
    let Some(nginx) = program("nginx") else { return };
    let server = TestServer::start(trust_local_proxy).await;
    let (authority, address) = (Authority::new(), free_address());
    let (cert, key) = authority.issue_files("localhost");
    let directory = authority.path("");
    let text = configuration(
        "nginx.conf",
        &[
            ("listen 443 ssl", format!("listen {address} ssl")),
            ("127.0.0.1:4000", server.address.to_string()),
            ("/etc/letsencrypt/live/example.org/fullchain.pem", cert.display().to_string()),
            ("/etc/letsencrypt/live/example.org/privkey.pem", key.display().to_string()),
        ],
    );
    let paths = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|name| format!("{name}_temp_path {}{name};", directory.display()));
    let file = authority.path("nginx.conf");
    let main = format!(
        "daemon off; master_process off; error_log stderr; pid {0}nginx.pid; events {{}} \
         http {{ access_log off; {1} {text} }}",
        directory.display(),
        paths.concat()
    );
    fs::write(&file, main).unwrap();
    let mut command = Command::new(nginx);
    command.arg("-p").arg(&directory).arg("-e").arg("stderr").arg("-c").arg(&file);
    Proxy::start(authority, address, &mut command).await.check().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn caddy_configuration_serves_clients() {
    let Some(caddy) = program("caddy") else { return };
    let server = TestServer::start(trust_local_proxy).await;
    let (authority, address) = (Authority::new(), free_address());
    let (cert, key) = authority.issue_files("localhost");
    let site = format!(
        "https://localhost:{} {{\n\tbind 127.0.0.1\n\ttls {} {}\n",
        address.port(),
        cert.display(),
        key.display()
    );
    let text = configuration("Caddyfile", &[("example.org {\n", site), ("127.0.0.1:4000", server.address.to_string())]);
    let file = authority.path("Caddyfile");
    fs::write(&file, format!("{{\n\tadmin off\n\tauto_https disable_redirects\n}}\n{text}")).unwrap();
    let mut command = Command::new(caddy);
    command.args(["run", "--adapter", "caddyfile", "--config"]).arg(&file);
    command
        .env("HOME", authority.path(""))
        .env("XDG_DATA_HOME", authority.path(""))
        .env("XDG_CONFIG_HOME", authority.path(""));
    Proxy::start(authority, address, &mut command).await.check().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn haproxy_configuration_serves_clients() {
    let Some(haproxy) = program("haproxy") else { return };
    let server = TestServer::start(trust_local_proxy).await;
    let (authority, address) = (Authority::new(), free_address());
    let issued = authority.issue("localhost");
    let pem = authority.path("both.pem");
    fs::write(&pem, format!("{}{}", issued.cert, issued.key)).unwrap();
    let text = configuration(
        "haproxy.cfg",
        &[
            ("bind :443", format!("bind {address}")),
            ("/etc/haproxy/certs/example.org.pem", pem.display().to_string()),
            ("127.0.0.1:4000", server.address.to_string()),
        ],
    );
    let file = authority.path("haproxy.cfg");
    fs::write(&file, text).unwrap();
    let mut command = Command::new(haproxy);
    command.arg("-db").arg("-f").arg(&file);
    Proxy::start(authority, address, &mut command).await.check().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn haproxy_configuration_with_the_proxy_protocol_serves_clients() {
    let Some(haproxy) = program("haproxy") else { return };
    let authority = Authority::new();
    let server = start(&authority, |config| {
        trust_local_proxy(config);
        config.proxy_protocol = true;
    })
    .await;
    let address = free_address();
    let text = configuration(
        "haproxy-tcp.cfg",
        &[("bind :443", format!("bind {address}")), ("127.0.0.1:4000", server.address.to_string())],
    );
    let file = authority.path("haproxy.cfg");
    fs::write(&file, text).unwrap();
    let mut command = Command::new(haproxy);
    command.arg("-db").arg("-f").arg(&file);
    Proxy::start(authority, address, &mut command).await.check().await;
}
