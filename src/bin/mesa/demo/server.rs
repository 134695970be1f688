//! Runs the server of the demo: this program as a child process, on a free port, with a temporary store.
//!
//! The store outlives a killed server, and is removed at the end.

use std::{
    env, fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use serde::Deserialize;
use tempfile::TempDir;
use tokio::{
    process::{Child, Command},
    time::Instant,
};

use crate::error::Failure;

/// Longest time for the server to start.
const START_TIMEOUT: Duration = Duration::from_secs(15);

/// Interval between two checks whether the server has started.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Variables that the child inherits. Settings in the environment must not affect the demo.
const ENV_ALLOWED: &[&str] = &["PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH", "RUST_BACKTRACE"];

/// Lines of the server's log that are shown after a failure.
const LOG_TAIL_LINES: usize = 20;

/// A server that can be killed and restarted on the same store.
pub struct Server {
    /// Directory of store and log.
    directory: TempDir,
    child: Option<Child>,
}

/// Address and key of a running server.
#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// Address of WebSocket and API.
    pub address: SocketAddr,
    /// API key.
    pub api_key: String,
}

impl Server {
    /// Creates the directory, without starting the server.
    pub fn new() -> Result<Self, Failure> {
        let directory = tempfile::Builder::new().prefix("mesa-demo-").tempdir();
        let directory =
            directory.map_err(|error| Failure::because(format!("no temporary directory could be created: {error}")))?;
        Ok(Self { directory, child: None })
    }

    /// Starts the server, and waits until it listens.
    pub async fn start(&mut self) -> Result<Endpoint, Failure> {
        let ready = self.file("ready.json");
        // The file of an earlier start would have the wrong address.
        _ = fs::remove_file(&ready);
        let child =
            self.spawn(&ready).map_err(|error| Failure::because(format!("no server could be started: {error}")))?;
        let child = self.child.insert(child);
        let until = Instant::now() + START_TIMEOUT;
        loop {
            if let Ok(text) = fs::read(&ready) {
                return serde_json::from_slice(&text).map_err(|error| {
                    Failure::because(format!("the ready file of the server cannot be parsed: {error}"))
                });
            }
            if let Ok(Some(status)) = child.try_wait() {
                return Err(Failure::because(format!("the server ended before it listened ({status})")));
            }
            if Instant::now() > until {
                return Err(Failure::because(format!(
                    "the server did not listen within {} s",
                    START_TIMEOUT.as_secs()
                )));
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    fn spawn(&self, ready: &Path) -> std::io::Result<Child> {
        let log = fs::File::options().create(true).append(true).open(self.file("server.log"))?;
        Command::new(env::current_exe()?)
            .args(["serve", "--dev", "--port", "0", "--log-level", "info", "--store-path"])
            .arg(self.file("store"))
            .arg("--ready-file")
            .arg(ready)
            .env_clear()
            .envs(ENV_ALLOWED.iter().filter_map(|name| Some((*name, env::var_os(name)?))))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            // Ctrl-C must reach only the demo, which then ends its server itself.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
    }

    /// Kills the server with SIGKILL, so that it cannot write anything more.
    pub async fn kill(&mut self) -> Result<(), Failure> {
        if let Some(mut child) = self.child.take() {
            child.kill().await.map_err(|error| Failure::because(format!("the server could not be killed: {error}")))?;
        }
        Ok(())
    }

    /// Returns the last lines of its log.
    pub fn log_tail(&self) -> String {
        let log = fs::read(self.file("server.log")).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n")
    }

    /// Kills the server, and removes its directory.
    pub async fn remove(mut self) -> Result<(), Failure> {
        let killed = self.kill().await;
        let path = self.directory.path().to_owned();
        let removed = self.directory.close();
        killed?;
        removed.map_err(|error| Failure::because(format!("{} could not be removed: {error}", path.display())))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}
