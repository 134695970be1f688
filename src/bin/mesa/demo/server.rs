//! A server of the demonstration's own: this same program as a child, on a free port, with a temporary store that
//! outlives it when it is killed.

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

/// How long a server may take to start.
const START_TIMEOUT: Duration = Duration::from_secs(15);

/// Between two looks at whether it has.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// What a child needs of the environment. Not the rest: somebody's settings are not part of the story.
const PASSED_ON: &[&str] = &["PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH", "RUST_BACKTRACE"];

/// Lines of its log that are shown when something went wrong.
const LAST_WORDS: usize = 20;

/// A server that can be killed and started again on the same store.
pub struct Server {
    /// Store and log; removed in the end.
    directory: TempDir,
    child: Option<Child>,
}

/// How to reach a server that runs.
#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Reach {
    /// Where it listens.
    pub address: SocketAddr,
    /// Key of its API.
    pub api_key: String,
}

impl Server {
    /// Nothing runs yet.
    pub fn new() -> Result<Self, Failure> {
        let directory = tempfile::Builder::new().prefix("mesa-demo-").tempdir();
        let directory =
            directory.map_err(|error| Failure::because(format!("no temporary directory could be made: {error}")))?;
        Ok(Self { directory, child: None })
    }

    /// Starts it, and waits until it listens.
    pub async fn start(&mut self) -> Result<Reach, Failure> {
        let ready = self.file("ready.json");
        // What an earlier start wrote would be taken for this one's.
        _ = fs::remove_file(&ready);
        let child =
            self.spawn(&ready).map_err(|error| Failure::because(format!("no server could be started: {error}")))?;
        let child = self.child.insert(child);
        let until = Instant::now() + START_TIMEOUT;
        loop {
            if let Ok(text) = fs::read(&ready) {
                return serde_json::from_slice(&text)
                    .map_err(|error| Failure::because(format!("the server says unclearly where it listens: {error}")));
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
            tokio::time::sleep(LOOK_INTERVAL).await;
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
            .envs(PASSED_ON.iter().filter_map(|name| Some((*name, env::var_os(name)?))))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            // A Ctrl-C at the terminal is for the demonstration, which then ends its server itself.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
    }

    /// Kills it where it stands (SIGKILL): it can neither finish nor write down anything.
    pub async fn kill(&mut self) -> Result<(), Failure> {
        if let Some(mut child) = self.child.take() {
            child.kill().await.map_err(|error| Failure::because(format!("the server could not be killed: {error}")))?;
        }
        Ok(())
    }

    /// The end of its log.
    pub fn last_words(&self) -> String {
        let log = fs::read(self.file("server.log")).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LAST_WORDS)..].join("\n")
    }

    /// Leaves nothing behind.
    pub async fn clear_up(mut self) -> Result<(), Failure> {
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
