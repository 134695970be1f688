//! Runs the built binary in a temporary directory.

use std::{
    fs::{self, File},
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use super::command::remove_mesa_variables;

/// API key.
pub const KEY: &str = "test-key-0123456789";

/// Longest time until a server listens. Opening a store may replay a long write-ahead log on a loaded machine.
const START_TIMEOUT: Duration = Duration::from_secs(120);

/// Longest time until a line is in the log file.
const LOG_TIMEOUT: Duration = Duration::from_secs(120);

/// Directory of a server, with its configuration, store and log file.
#[derive(Debug)]
pub struct Home {
    directory: tempfile::TempDir,
    store: PathBuf,
    variables: Vec<(String, String)>,
}

impl Home {
    /// Creates a directory with a configuration.
    pub fn new() -> Self {
        Self::with_settings("")
    }

    /// Creates a directory with further settings: JSON5 `key: value` pairs, each followed by a comma.
    pub fn with_settings(settings: &str) -> Self {
        let directory = tempfile::Builder::new().prefix("mesa-test-").tempdir().expect("a temporary directory");
        let config = format!(
            "{{ host: '127.0.0.1', port: 0, sync: {{ enabled: true }}, authentication: {{ insecure: true }}, \
             api: {{ keys: ['{KEY}'] }}, {settings} }}"
        );
        fs::write(directory.path().join("config.json5"), config).expect("the configuration is written");
        let store = directory.path().join("store");
        Self { directory, store, variables: Vec::new() }
    }

    /// Sets the store's directory, for servers that start later.
    pub fn move_store(&mut self, store: PathBuf) {
        self.store = store;
    }

    /// Sets an environment variable, for servers that start later.
    pub fn set_variable(&mut self, name: &str, value: &str) {
        self.variables.push((name.to_owned(), value.to_owned()));
    }

    /// Returns the store's directory.
    pub fn store(&self) -> PathBuf {
        self.store.clone()
    }

    /// Returns the path of a file in the directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Returns the address of the Redis protocol of the running server.
    pub fn redis_protocol_address(&self) -> SocketAddr {
        let text = fs::read(self.path("ready")).expect("a ready file");
        let ready: Ready = serde_json::from_slice(&text).expect("the ready file is complete JSON");
        ready.redis_protocol.expect("the port of the Redis protocol is enabled")
    }

    /// Returns the last 20 lines of the log, for messages of failed tests.
    pub fn log(&self) -> String {
        let log = fs::read_to_string(self.path("log")).unwrap_or_default();
        let tail: Vec<&str> = log.lines().rev().take(20).collect();
        tail.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    /// Waits until `condition` holds for the log, and returns the log. Servers write it asynchronously.
    pub fn wait_for_log(&self, condition: impl Fn(&str) -> bool) -> String {
        let end = Instant::now() + LOG_TIMEOUT;
        loop {
            let log = fs::read_to_string(self.path("log")).unwrap_or_default();
            if condition(&log) {
                return log;
            }
            assert!(Instant::now() < end, "the expected lines are not in the log after {LOG_TIMEOUT:?}:\n{log}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Returns everything that this server has logged until now.
    ///
    /// The server writes its log asynchronously, but in order. Once the line about a signal is in the file, so are all
    /// earlier lines.
    pub fn complete_log(&self, server: &Server) -> String {
        let signals = |log: &str| log.matches("SIGUSR1 is ignored").count();
        let before = signals(&fs::read_to_string(self.path("log")).unwrap_or_default());
        server.signal(rustix::process::Signal::USR1);
        self.wait_for_log(|log| signals(log) > before)
    }

    /// Builds the command `wrapper… mesa serve …`. `wrapper` may be empty.
    pub fn command(&self, wrapper: &[&str]) -> Command {
        let binary = env!("CARGO_BIN_EXE_mesa");
        let mut arguments = wrapper.iter().copied().chain([binary]);
        let mut command = Command::new(arguments.next().expect("it contains the binary"));
        let log = File::options().create(true).append(true).open(self.path("log")).expect("a log file");
        remove_mesa_variables(&mut command);
        command
            .args(arguments)
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

    /// Starts a server without waiting for it.
    pub fn spawn(&self, wrapper: &[&str]) -> Process {
        _ = fs::remove_file(self.path("ready"));
        Process(self.command(wrapper).spawn().expect("the binary starts"))
    }

    /// Starts a server and waits until it listens.
    pub fn start(&self) -> Server {
        let process = self.spawn(&[]);
        self.wait_until_ready(process)
    }

    /// Waits until the server listens that is `process` or its child. Panics if it does not.
    pub fn wait_until_ready(&self, process: Process) -> Server {
        self.ready(process).unwrap_or_else(|why| panic!("{why}"))
    }

    /// Waits until the server listens that is `process` or its child.
    ///
    /// # Errors
    /// Fails if the process exits, or after [`START_TIMEOUT`]; the text has the exit status and the end of the log.
    pub fn ready(&self, mut process: Process) -> Result<Server, String> {
        let end = Instant::now() + START_TIMEOUT;
        loop {
            if let Ok(text) = fs::read_to_string(self.path("ready")) {
                let ready: Ready = serde_json::from_str(&text).expect("the ready file is complete JSON");
                return Ok(Server { process, address: ready.address, pid: ready.pid });
            }
            if let Some(status) = process.try_wait() {
                return Err(format!("the server ended at start-up with {status}:\n{}", self.log()));
            }
            if Instant::now() > end {
                return Err(format!("the server does not listen after {START_TIMEOUT:?}:\n{}", self.log()));
            }
            thread::sleep(Duration::from_millis(2));
        }
    }
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Ready {
    address: SocketAddr,
    redis_protocol: Option<SocketAddr>,
    pid: i32,
}

/// A child process. Dropping it kills the process.
#[derive(Debug)]
pub struct Process(Child);

impl Process {
    /// Returns its process id.
    #[allow(dead_code, reason = "few tests need the process id")]
    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// Takes ownership of a child process.
    pub fn new(child: Child) -> Self {
        Self(child)
    }

    /// Takes its standard input, if it is a pipe.
    pub fn take_stdin(&mut self) -> Option<std::process::ChildStdin> {
        self.0.stdin.take()
    }

    /// Returns its exit status; `None` while it runs.
    pub fn try_wait(&mut self) -> Option<ExitStatus> {
        self.0.try_wait().expect("the status of a child")
    }

    /// Kills it (SIGKILL) and returns its exit status, which is its own if it exited just before.
    pub fn kill(mut self) -> ExitStatus {
        self.kill_and_reap().expect("a child can be killed")
    }

    /// Waits until it exits. Panics after `timeout`.
    pub fn wait(mut self, timeout: Duration) -> ExitStatus {
        let end = Instant::now() + timeout;
        loop {
            if let Some(status) = self.try_wait() {
                return status;
            }
            assert!(Instant::now() < end, "the process does not exit within {timeout:?}");
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

/// A running server.
#[derive(Debug)]
pub struct Server {
    /// The server's process, or the wrapper that runs it.
    pub process: Process,
    /// Address on which it listens.
    pub address: SocketAddr,
    /// Process id of the server itself.
    pub pid: i32,
}

impl Server {
    /// Requests a graceful shutdown (SIGTERM).
    pub fn terminate(&self) {
        self.signal(rustix::process::Signal::TERM);
    }

    /// Stops the server with SIGTERM. Panics unless it exits with code 0 within `timeout`.
    pub fn stop(self, timeout: Duration) {
        self.terminate();
        let status = self.process.wait(timeout);
        assert!(status.success(), "expected exit code 0 after SIGTERM, found {status}");
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(self.pid).expect("a process id");
        rustix::process::kill_process(pid, signal).expect("a running server");
    }
}
