//! Starts server processes, and reads their CPU time and memory.

use std::{
    ffi::OsStr,
    fs,
    net::{SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tempfile::TempDir;

/// Longest time until a server listens.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// Delay between two attempts to connect.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Ticks of a second in `/proc`: Linux has the same on all of its platforms.
const TICKS_PER_SECOND: f64 = 100.0;

/// Fields of `/proc/PID/stat` after the name of the program.
const USER_TIME: usize = 11;
const SYSTEM_TIME: usize = 12;

/// Server processes and their directory. They are killed when this is dropped.
pub struct Processes {
    children: Vec<Child>,
    pub directory: TempDir,
}

impl Processes {
    pub fn new() -> Self {
        Self { children: Vec::new(), directory: tempfile::tempdir().expect("a directory") }
    }

    /// Returns the path of a file in the directory.
    pub fn path(&self, name: &str) -> String {
        self.directory.path().join(name).to_str().expect("a path in UTF-8").to_owned()
    }

    /// Starts a program that is silent except for its errors, and waits until it listens.
    pub fn start(&mut self, program: impl AsRef<OsStr>, arguments: &[&str], address: SocketAddr) {
        let child = Command::new(&program)
            .args(arguments)
            .current_dir(self.directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("the program starts");
        self.children.push(child);
        let end = Instant::now() + START_TIMEOUT;
        while TcpStream::connect(address).is_err() {
            let child = self.children.last_mut().expect("the child from above");
            if let Ok(Some(status)) = child.try_wait() {
                panic!("{} ended with {status}; its reason is above", program.as_ref().display());
            }
            assert!(Instant::now() < end, "{} does not listen on {address}", program.as_ref().display());
            thread::sleep(POLL_INTERVAL);
        }
    }

    /// Returns the CPU time of all processes in seconds.
    pub fn cpu_seconds(&self) -> f64 {
        self.read("stat").iter().map(|stat| cpu_seconds(stat).expect("fields with times")).sum()
    }

    /// Returns the resident memory of all processes in bytes.
    pub fn resident_bytes(&self) -> f64 {
        self.read("status").iter().map(|status| resident_bytes(status).expect("a line with the memory")).sum()
    }

    fn read(&self, file: &str) -> Vec<String> {
        let path = |child: &Child| format!("/proc/{}/{file}", child.id());
        self.children.iter().map(|child| fs::read_to_string(path(child)).expect("a running process on Linux")).collect()
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        for child in &mut self.children {
            // The directory is deleted, so nothing needs a regular stop.
            _ = child.kill();
            _ = child.wait();
        }
    }
}

fn cpu_seconds(stat: &str) -> Option<f64> {
    // The name of the program may contain spaces and parentheses.
    let (_, fields) = stat.rsplit_once(") ")?;
    let fields: Vec<&str> = fields.split(' ').collect();
    let ticks = |field: usize| fields.get(field)?.parse::<f64>().ok();
    Some((ticks(USER_TIME)? + ticks(SYSTEM_TIME)?) / TICKS_PER_SECOND)
}

fn resident_bytes(status: &str) -> Option<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: f64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kibibytes * 1024.0)
}

/// Returns a local address with a port that is free at the moment.
pub fn free_address() -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    listener.local_addr().expect("an address")
}

/// Returns the path of an installed program.
///
/// # Errors
/// States what to install.
pub fn require(program: &str) -> Result<PathBuf, String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Debian installs servers in a folder that is not in everyone's PATH.
    let folders = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]);
    let mut files = folders.map(|folder| folder.join(program));
    files.find(|file| file.is_file()).ok_or_else(|| format!("install {program}"))
}

/// Raises the limit of open files to what the system allows. Children inherit it.
pub fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    // Without an effect the current limit applies.
    _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

/// Checks the parsers.
pub fn check() {
    let stat = "7 (a) b) S 1 7 7 0 -1 4194560 100 0 0 0 150 50 0 0 20 0 1 0 5 10 20";
    assert_eq!(cpu_seconds(stat), Some(2.0));
    assert_eq!(cpu_seconds("7 (a) S 1"), None);
    assert_eq!(resident_bytes("VmPeak:\t 9 kB\nVmRSS:\t    2 kB\n"), Some(2048.0));
    assert!(require("no-such-program").is_err());
}
