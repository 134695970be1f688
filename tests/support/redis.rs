//! Redis process of a test: on a free port, append-only, with every write synced.

#![allow(dead_code, reason = "each suite uses a part of it")]

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc, LazyLock, Mutex, Weak,
        atomic::{AtomicU16, Ordering},
    },
    time::{Duration, Instant},
};

use tempfile::TempDir;

/// Maximum time until a started Redis answers `PING`. It reads its files first.
const START_TIMEOUT: Duration = Duration::from_secs(120);

/// Runs one Redis process. Dropping it kills the process.
pub struct Redis {
    directory: TempDir,
    port: u16,
    arguments: Vec<String>,
    process: Mutex<Option<Child>>,
}

static SHARED: Mutex<Weak<Redis>> = Mutex::new(Weak::new());

impl Redis {
    /// Starts a Redis without data.
    pub fn start() -> Arc<Self> {
        Self::start_with(&[])
    }

    /// Starts a Redis without data, with further arguments.
    pub fn start_with(arguments: &[&str]) -> Arc<Self> {
        let directory = temporary_directory("mesa-redis-");
        let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let redis = Arc::new(Self { directory, port: free_port(), arguments, process: Mutex::new(None) });
        redis.restart();
        redis
    }

    /// Returns the Redis that all tests of this process share. It ends when the last of them drops it.
    pub fn shared() -> Arc<Self> {
        let mut shared = SHARED.lock().unwrap();
        shared.upgrade().unwrap_or_else(|| {
            let redis = Self::start();
            *shared = Arc::downgrade(&redis);
            redis
        })
    }

    /// Starts the process on the files that an earlier one wrote, and waits until it answers.
    pub fn restart(&self) {
        let directory = self.directory.path();
        let log = std::fs::File::options().create(true).append(true).open(directory.join("log")).expect("a log file");
        let child = Command::new("redis-server")
            .args(["--port", &self.port.to_string(), "--bind", "127.0.0.1", "--save", ""])
            .args(["--appendonly", "yes", "--appendfsync", "always", "--dir"])
            .arg(directory)
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second file handle"))
            .stderr(log)
            .spawn()
            .expect("redis-server is not installed (Debian: apt-get install redis-server); no test is skipped");
        *self.process.lock().unwrap() = Some(child);
        let deadline = Instant::now() + START_TIMEOUT;
        while !self.answers_ping() {
            assert!(Instant::now() < deadline, "redis-server does not answer: {}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Copies all files that the Redis has written.
    pub fn copy_files(&self) -> TempDir {
        let copy = temporary_directory("mesa-redis-copy-");
        copy_directory(self.directory.path(), copy.path());
        copy
    }

    /// Kills the process, replaces its files by an earlier copy and restarts it.
    pub fn restart_on(&self, copy: &TempDir) {
        self.kill();
        _ = std::fs::remove_dir_all(self.directory.path().join("appendonlydir"));
        _ = std::fs::remove_file(self.directory.path().join("dump.rdb"));
        copy_directory(copy.path(), self.directory.path());
        self.restart();
    }

    fn answers_ping(&self) -> bool {
        let Ok(mut stream) = TcpStream::connect(self.address()) else { return false };
        let mut answer = [0; 5];
        stream.set_read_timeout(Some(Duration::from_secs(5))).expect("a read timeout");
        stream.write_all(b"PING\r\n").is_ok() && stream.read_exact(&mut answer).is_ok() && &answer == b"+PONG"
    }

    /// Kills the process with SIGKILL, as a crash would.
    pub fn kill(&self) {
        if let Some(mut child) = self.process.lock().unwrap().take() {
            _ = child.kill();
            _ = child.wait();
        }
    }

    /// Runs `redis-cli` on this Redis, and returns its output without surrounding white space.
    pub fn cli(&self, arguments: &[&str]) -> String {
        redis_cli(self.port, None, arguments)
    }

    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    pub fn url(&self) -> String {
        format!("redis://{}", self.address())
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }
}

/// Runs `redis-cli`, and returns its output without surrounding white space.
pub fn redis_cli(port: u16, password: Option<&str>, arguments: &[&str]) -> String {
    let mut command = Command::new("redis-cli");
    command.args(["-p", &port.to_string()]).args(arguments);
    if let Some(password) = password {
        command.env("REDISCLI_AUTH", password);
    }
    let output = command.output();
    let output = output.expect("redis-cli is not installed (Debian: apt-get install redis-tools); no test is skipped");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Creates a directory for the files of a Redis, in memory where the system has `/dev/shm`.
///
/// With `appendfsync always` a Redis does not reply during a sync. On a busy disk a sync took longer than a mesa server
/// waits for a reply. No test cuts the power of a Redis, so its files need not be on a disk.
pub fn temporary_directory(prefix: &str) -> TempDir {
    let memory = Path::new("/dev/shm");
    let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    tempfile::Builder::new().prefix(prefix).tempdir_in(parent).expect("a temporary directory")
}

fn copy_directory(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a target directory");
    for entry in std::fs::read_dir(from).expect("a readable source directory") {
        let entry = entry.expect("a directory entry");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("the type of a directory entry").is_dir() {
            copy_directory(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("a copied file");
        }
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Ports that [`free_port`] returns.
///
/// The system assigns ports from 32768 up to outgoing connections, so any of those may be in use at any moment. Nodes
/// of a Redis Cluster also listen on their port + 10000 (cluster bus). Both ports stay below 32768.
const PORTS: std::ops::Range<u16> = 12_000..22_000;

static NEXT_PORT: LazyLock<AtomicU16> = LazyLock::new(|| AtomicU16::new((std::process::id() * 97 % 10_000) as u16));

/// Returns a port that was not returned before in this process. It is free now, as is port + 10000.
pub fn free_port() -> u16 {
    let is_free = |port: u16| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
    let count = PORTS.end - PORTS.start;
    let mut candidates = (0..count).map(|_| PORTS.start + NEXT_PORT.fetch_add(1, Ordering::Relaxed) % count);
    candidates.find(|port| is_free(*port) && is_free(port + 10_000)).expect("a free port")
}
