//! A Redis of the test's own: on a free port, with append-only on and every write synced.

#![allow(dead_code, reason = "not every test that starts one kills it")]

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

/// How long it may take to listen: it reads its files first.
const PATIENCE: Duration = Duration::from_secs(120);

/// A running Redis. Dropping it ends it.
pub struct Redis {
    directory: TempDir,
    port: u16,
    arguments: Vec<String>,
    process: Mutex<Option<Child>>,
}

static SHARED: Mutex<Weak<Redis>> = Mutex::new(Weak::new());

impl Redis {
    /// Starts one.
    pub fn start() -> Arc<Self> {
        Self::start_with(&[])
    }

    /// Starts one with further arguments.
    pub fn start_with(arguments: &[&str]) -> Arc<Self> {
        let directory = directory("mesa-redis-");
        let arguments = arguments.iter().map(|one| (*one).to_owned()).collect();
        let redis = Arc::new(Self { directory, port: free_port(), arguments, process: Mutex::new(None) });
        redis.revive();
        redis
    }

    /// One that all tests of this process share for as long as one of them has it.
    pub fn shared() -> Arc<Self> {
        let mut shared = SHARED.lock().unwrap();
        shared.upgrade().unwrap_or_else(|| {
            let redis = Self::start();
            *shared = Arc::downgrade(&redis);
            redis
        })
    }

    /// Starts it again on what it has written, and waits until it answers.
    pub fn revive(&self) {
        let directory = self.directory.path();
        let log = std::fs::File::options().create(true).append(true).open(directory.join("log")).expect("a log");
        let child = Command::new("redis-server")
            .args(["--port", &self.port.to_string(), "--bind", "127.0.0.1", "--save", ""])
            .args(["--appendonly", "yes", "--appendfsync", "always", "--dir"])
            .arg(directory)
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .spawn()
            .expect("redis-server is not installed (Debian: apt-get install redis-server), and nothing is skipped");
        *self.process.lock().unwrap() = Some(child);
        let end = Instant::now() + PATIENCE;
        while !self.answers() {
            assert!(Instant::now() < end, "redis-server does not answer: {}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// A copy of all that it has written down.
    pub fn copy(&self) -> TempDir {
        let copy = directory("mesa-redis-copy-");
        copy_directory(self.directory.path(), copy.path());
        copy
    }

    /// Ends it, and starts it on a copy of an earlier state.
    pub fn go_back_to(&self, copy: &TempDir) {
        self.kill();
        _ = std::fs::remove_dir_all(self.directory.path().join("appendonlydir"));
        _ = std::fs::remove_file(self.directory.path().join("dump.rdb"));
        copy_directory(copy.path(), self.directory.path());
        self.revive();
    }

    fn answers(&self) -> bool {
        let Ok(mut stream) = TcpStream::connect(self.address()) else { return false };
        let mut answer = [0; 5];
        stream.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
        stream.write_all(b"PING\r\n").is_ok() && stream.read_exact(&mut answer).is_ok() && &answer == b"+PONG"
    }

    /// Ends it as a crash does.
    pub fn kill(&self) {
        if let Some(mut child) = self.process.lock().unwrap().take() {
            _ = child.kill();
            _ = child.wait();
        }
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

/// A directory for the files of a Redis, in memory where the system has such a place.
///
/// A Redis waits for each sync (`appendfsync always`) while it answers nothing. On a disk that others keep busy that took
/// longer than a server waits for an answer. No test here cuts the power of a Redis: its files need not be on a disk.
pub fn directory(prefix: &str) -> TempDir {
    let memory = Path::new("/dev/shm");
    let place = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    tempfile::Builder::new().prefix(prefix).tempdir_in(place).expect("a temporary directory")
}

fn copy_directory(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).expect("a directory");
    for entry in std::fs::read_dir(from).expect("a directory") {
        let entry = entry.expect("an entry");
        let there = to.join(entry.file_name());
        if entry.file_type().expect("a type").is_dir() {
            copy_directory(&entry.path(), &there);
        } else {
            std::fs::copy(entry.path(), there).expect("a copy");
        }
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Ports given out here: below those that the system gives to outgoing connections (from 32768 up), of which one may be taken at any
/// moment, and so that the ports 10000 above, where the nodes of a Cluster talk to each other, are below them too.
const PORTS: std::ops::Range<u16> = 12_000..22_000;

static NEXT_PORT: LazyLock<AtomicU16> = LazyLock::new(|| AtomicU16::new((std::process::id() * 97 % 10_000) as u16));

/// A port nobody listens on now, nor on the one 10000 above, and that is given to nobody else by this process.
pub fn free_port() -> u16 {
    let is_free = |port: u16| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
    let count = PORTS.end - PORTS.start;
    let mut candidates = (0..count).map(|_| PORTS.start + NEXT_PORT.fetch_add(1, Ordering::Relaxed) % count);
    candidates.find(|port| is_free(*port) && is_free(port + 10_000)).expect("a free port")
}
