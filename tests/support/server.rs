//! The built binary, started on a directory of the test's.

use std::{
    fs::{self, File},
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

/// The key of the HTTP API.
pub const KEY: &str = "test-key-0123456789";

/// How long a server may take to listen: opening a store may replay a long log, on a loaded machine.
const START_PATIENCE: Duration = Duration::from_secs(120);

/// How long a line may take to be in the log.
const LOG_PATIENCE: Duration = Duration::from_secs(120);

/// Where a server lives: its configuration, its store, its log.
#[derive(Debug)]
pub struct Home {
    directory: tempfile::TempDir,
    store: PathBuf,
    variables: Vec<(String, String)>,
}

impl Home {
    /// A new one, with a server's configuration in it.
    pub fn new() -> Self {
        Self::with("")
    }

    /// A new one, with further settings in its configuration: `key: value` pairs, each with a comma behind it.
    pub fn with(settings: &str) -> Self {
        let directory = tempfile::Builder::new().prefix("mesa-test-").tempdir().expect("a temporary directory");
        let config = format!(
            "{{ host: '127.0.0.1', port: 0, sync: {{ enabled: true }}, authentication: {{ insecure: true }}, \
             api: {{ keys: ['{KEY}'] }}, {settings} }}"
        );
        fs::write(directory.path().join("config.json5"), config).expect("the configuration is written");
        let store = directory.path().join("store");
        Self { directory, store, variables: Vec::new() }
    }

    /// Has the store elsewhere, for the servers that are started from here on.
    pub fn move_store(&mut self, store: PathBuf) {
        self.store = store;
    }

    /// Sets a variable for the servers that are started from here on.
    pub fn set_variable(&mut self, name: &str, value: &str) {
        self.variables.push((name.to_owned(), value.to_owned()));
    }

    /// The directory of the store.
    pub fn store(&self) -> PathBuf {
        self.store.clone()
    }

    /// A file in the home.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// What servers here have written, as far as it matters to someone who reads a failed test.
    pub fn log(&self) -> String {
        let log = fs::read_to_string(self.path("log")).unwrap_or_default();
        let tail: Vec<&str> = log.lines().rev().take(20).collect();
        tail.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    /// Waits until the log holds what is wanted, and returns all of it. Servers write their lines in their own time.
    pub fn log_once(&self, wanted: impl Fn(&str) -> bool) -> String {
        let end = Instant::now() + LOG_PATIENCE;
        loop {
            let log = fs::read_to_string(self.path("log")).unwrap_or_default();
            if wanted(&log) {
                return log;
            }
            assert!(Instant::now() < end, "the log does not hold what is wanted:\n{log}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// All that this server has logged until now. It writes its lines in its own time, but in order: when the line about a signal
    /// is in the file, so are those before it.
    pub fn log_until_now(&self, server: &Server) -> String {
        let signals = |log: &str| log.matches("SIGUSR1 is ignored").count();
        let before = signals(&fs::read_to_string(self.path("log")).unwrap_or_default());
        server.signal(rustix::process::Signal::USR1);
        self.log_once(|log| signals(log) > before)
    }

    /// `wrapper… mesa serve …`, ready to be spawned. `wrapper` may be empty.
    pub fn command(&self, wrapper: &[&str]) -> Command {
        let binary = env!("CARGO_BIN_EXE_mesa");
        let mut words = wrapper.iter().copied().chain([binary]);
        let mut command = Command::new(words.next().expect("at least the binary"));
        let log = File::options().create(true).append(true).open(self.path("log")).expect("a log");
        // Settings in the environment of the test are not meant for the server.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("MESA_")) {
            command.env_remove(name);
        }
        command
            .args(words)
            .arg("serve")
            .args([Path::new("--config"), &self.path("config.json5")])
            .args([Path::new("--store-path"), &self.store()])
            .args([Path::new("--ready-file"), &self.path("ready")])
            .current_dir(self.directory.path())
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log);
        command
    }

    /// Starts a server and returns at once.
    pub fn spawn(&self, wrapper: &[&str]) -> Process {
        _ = fs::remove_file(self.path("ready"));
        Process(self.command(wrapper).spawn().expect("the binary starts"))
    }

    /// Starts a server and waits until it listens.
    pub fn start(&self) -> Server {
        let process = self.spawn(&[]);
        self.wait_until_ready(process)
    }

    /// Waits until the server that `process` is, or runs, listens.
    pub fn wait_until_ready(&self, process: Process) -> Server {
        self.ready(process).unwrap_or_else(|why| panic!("{why}"))
    }

    /// As [`Home::wait_until_ready`], for who wants to know why it does not.
    ///
    /// # Errors
    /// With how it ended, and what it said.
    pub fn ready(&self, mut process: Process) -> Result<Server, String> {
        let end = Instant::now() + START_PATIENCE;
        loop {
            if let Ok(text) = fs::read_to_string(self.path("ready")) {
                let ready: Ready = serde_json::from_str(&text).expect("the ready file is JSON, and whole");
                return Ok(Server { process, address: ready.address, pid: ready.pid });
            }
            if let Some(status) = process.ended() {
                return Err(format!("the server ended at start-up with {status}:\n{}", self.log()));
            }
            if Instant::now() > end {
                return Err(format!("the server does not listen after {START_PATIENCE:?}:\n{}", self.log()));
            }
            thread::sleep(Duration::from_millis(2));
        }
    }
}

#[derive(serde::Deserialize)]
struct Ready {
    address: SocketAddr,
    pid: i32,
}

/// A process that does not outlive the test.
#[derive(Debug)]
pub struct Process(Child);

impl Process {
    /// What the system calls it.
    #[allow(dead_code, reason = "few tests look at the process itself")]
    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// Takes charge of a child that was started otherwise.
    pub fn new(child: Child) -> Self {
        Self(child)
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.0.try_wait().expect("a child can be asked")
    }

    /// Ends it without a word, and tells how it ended: by this, or by itself just before.
    pub fn kill(mut self) -> ExitStatus {
        self.kill_and_reap().expect("a child can be killed")
    }

    /// Waits until it ends by itself.
    pub fn wait(mut self, patience: Duration) -> ExitStatus {
        let end = Instant::now() + patience;
        loop {
            if let Some(status) = self.ended() {
                return status;
            }
            assert!(Instant::now() < end, "the process does not end within {patience:?}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn kill_and_reap(&mut self) -> io::Result<ExitStatus> {
        self.0.kill()?;
        self.0.wait()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        _ = self.kill_and_reap();
    }
}

/// A server that listens.
#[derive(Debug)]
pub struct Server {
    /// It, or what it runs under.
    pub process: Process,
    /// Where it listens.
    pub address: SocketAddr,
    /// The process id of the server itself.
    pub pid: i32,
}

impl Server {
    /// Asks it to end.
    pub fn terminate(&self) {
        self.signal(rustix::process::Signal::TERM);
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(self.pid).expect("a process id");
        rustix::process::kill_process(pid, signal).expect("a running server");
    }
}
