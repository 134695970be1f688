//! Runs the built binary: a server in a process of its own, and `mesa bench` as its load.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use mesa::dispatcher::Dispatcher;
use serde_json::Value;
use tempfile::TempDir;

const BINARY: &str = env!("CARGO_BIN_EXE_mesa");

/// API key of the server.
const KEY: &str = "a-key-for-benchmarks";

/// Longest time until the server listens.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// Delay between two looks for the ready file.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Settings of every server: any client and any rate, so that the load is bounded by the server only.
const SETTINGS: &str = "host: '127.0.0.1', port: 0, sync: { enabled: true }, limits: { framesPerSecond: 100000, \
                        connections: 1000000 }, log: { level: 'error' }";

/// Resources that a server has used until now.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    pub cpu_seconds: f64,
    pub resident_bytes: f64,
}

/// A running server with a new store. It is killed when this is dropped.
pub struct Server {
    process: Child,
    /// `ADDRESS:PORT`
    pub address: String,
    directory: TempDir,
}

impl Server {
    /// Starts a server with further settings, as JSON5 in which `DIR` is its directory.
    pub fn start(settings: &str) -> Self {
        Self::start_in(tempfile::tempdir().expect("a directory"), settings)
    }

    /// Starts a server that accepts user ids as tokens.
    pub fn start_insecure(settings: &str) -> Self {
        Self::start(&format!("authentication: {{ insecure: true }}, {settings}"))
    }

    /// Starts a server in a directory that may contain files of its settings.
    pub fn start_in(directory: TempDir, settings: &str) -> Self {
        let path = |name| directory.path().join(name);
        let config = format!("{{ {SETTINGS}, api: {{ keys: ['{KEY}'] }}, {settings} }}");
        let config = config.replace("DIR", directory.path().to_str().expect("a path in UTF-8"));
        fs::write(path("config.json5"), config).expect("a file");
        let process = Command::new(BINARY)
            .args(["serve", "--config"])
            .arg(path("config.json5"))
            .args([Path::new("--store-path"), &path("store"), Path::new("--ready-file"), &path("ready")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("the binary starts");
        let mut server = Self { process, address: String::new(), directory };
        server.address = server.wait_until_ready();
        server
    }

    fn wait_until_ready(&mut self) -> String {
        let end = Instant::now() + START_TIMEOUT;
        let file = self.directory.path().join("ready");
        loop {
            let ready = fs::read(&file).ok().and_then(|text| serde_json::from_slice::<Value>(&text).ok());
            if let Some(address) = ready.as_ref().and_then(|ready| ready["address"].as_str()) {
                return address.to_owned();
            }
            if let Ok(Some(status)) = self.process.try_wait() {
                panic!("the server ended with {status}; its reason is above");
            }
            assert!(Instant::now() < end, "the server does not listen after {START_TIMEOUT:?}");
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    pub fn dispatcher(&self) -> Dispatcher {
        Dispatcher::new(&format!("http://{}", self.address), KEY).expect("a dispatcher")
    }

    /// Reads the usage of the server from its status.
    pub async fn usage(&self) -> Usage {
        let status = self.dispatcher().status().await.expect("a status");
        let process = status.process.expect("this system reports the usage of a process");
        Usage {
            cpu_seconds: process.cpu_seconds.expect("CPU time"),
            resident_bytes: process.resident_bytes.expect("memory") as f64,
        }
    }

    /// Runs `mesa bench`, which fails on any lost or reordered message, and returns its result.
    pub fn load(&self, arguments: &str) -> Value {
        let output = Command::new(BINARY)
            .arg("bench")
            .args(arguments.split_whitespace())
            .args(["--json", "--keep", "--key", KEY, "--url", &format!("http://{}", self.address)])
            .stderr(Stdio::inherit())
            .output()
            .expect("the binary starts");
        assert!(output.status.success(), "mesa bench {arguments}: {}", output.status);
        serde_json::from_slice(&output.stdout).expect("one JSON object")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The store is deleted, so nothing needs a regular stop.
        _ = self.process.kill();
        _ = self.process.wait();
    }
}
