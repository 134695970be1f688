//! Several Redis of the test's own: a primary with a replica under three Sentinels, and a Cluster.

#![allow(dead_code, reason = "each test uses its part")]

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, Weak},
    time::{Duration, Instant},
};

use tempfile::TempDir;

use super::redis_server::{directory, free_port};

/// How long anything may take that is waited for here.
const PATIENCE: Duration = Duration::from_secs(120);

/// What all of these ask for.
pub const PASSWORD: &str = "mesa-secret";

/// Asks a Redis as a person would; what it prints, without the line's end. One without a password does not mind it.
pub fn cli(port: u16, words: &[&str]) -> String {
    let mut command = Command::new("redis-cli");
    let asked = command.env("REDISCLI_AUTH", PASSWORD).args(["-p", &port.to_string()]).args(words).output();
    let asked =
        asked.expect("redis-cli is not installed (Debian: apt-get install redis-tools), and nothing is skipped");
    String::from_utf8_lossy(&asked.stdout).trim_end().to_owned()
}

/// Waits until that is so.
pub fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < end, "waited in vain for: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// One process of a group. Dropping it ends it.
pub struct Node {
    pub port: u16,
    words: Vec<String>,
    log: std::path::PathBuf,
    process: Mutex<Option<Child>>,
}

impl Node {
    fn start(port: u16, home: &Path, words: &[String]) -> Self {
        let node =
            Self { port, words: words.to_vec(), log: home.join(format!("{port}.log")), process: Mutex::new(None) };
        node.revive();
        node
    }

    /// Starts it, again or for the first time, and waits until it answers.
    pub fn revive(&self) {
        let log = fs::File::options().create(true).append(true).open(&self.log).expect("a log");
        let child = Command::new("redis-server")
            .args(&self.words)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .spawn()
            .expect("redis-server is not installed (Debian: apt-get install redis-server), and nothing is skipped");
        *self.process.lock().unwrap() = Some(child);
        wait("redis-server to answer", || cli(self.port, &["PING"]) == "PONG");
    }

    /// Ends it as a crash does.
    pub fn kill(&self) {
        if let Some(mut child) = self.process.lock().unwrap().take() {
            _ = child.kill();
            _ = child.wait();
        }
    }

    /// Stops it as a machine stops that is suspended (`STOP`), or has it go on (`CONT`).
    pub fn signal(&self, which: &str) {
        let child = self.process.lock().unwrap();
        let pid = child.as_ref().expect("it is running").id().to_string();
        let sent = Command::new("kill").args(["-s", which, &pid]).status().expect("kill runs");
        assert!(sent.success(), "{which} reaches it");
    }

    /// Takes away all that it has written down: it comes back with nothing.
    pub fn forget(&self) {
        let directory = self.log.with_file_name(self.port.to_string());
        fs::remove_dir_all(directory.join("appendonlydir")).expect("it has written something");
    }

    pub fn is(&self, role: &str) -> bool {
        cli(self.port, &["INFO", "replication"]).contains(&format!("role:{role}"))
    }

    /// As a node of a Cluster: that is whole, with all replicas following.
    fn sees_all(&self) -> bool {
        let replicated =
            self.is("master") || cli(self.port, &["INFO", "replication"]).contains("master_link_status:up");
        let known = cli(self.port, &["CLUSTER", "NODES"]).lines().filter(|line| line.contains("slave")).count() == 3;
        replicated && known && cli(self.port, &["CLUSTER", "INFO"]).contains("cluster_state:ok")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

fn words(text: &str, home: &Path, port: u16) -> Vec<String> {
    let common = format!(
        "--port {port} --bind 127.0.0.1 --save  --appendonly yes --appendfsync always --repl-diskless-sync-delay 0 \
         --requirepass {PASSWORD} --masterauth {PASSWORD}"
    );
    let mut all: Vec<String> = common.split(' ').chain(text.split_whitespace()).map(str::to_owned).collect();
    let directory = home.join(port.to_string());
    fs::create_dir_all(&directory).expect("a directory");
    all.extend(["--dir".to_owned(), directory.display().to_string()]);
    all
}

/// A primary, a replica, and three Sentinels that watch them.
pub struct Watched {
    /// The first is the primary at the beginning.
    pub nodes: [Node; 2],
    pub sentinels: Vec<Node>,
    home: TempDir,
}

impl Watched {
    pub fn start() -> Self {
        let home = directory("mesa-sentinel-");
        let (one, other) = (free_port(), free_port());
        let first = Node::start(one, home.path(), &words("", home.path(), one));
        let second = words(&format!("--replicaof 127.0.0.1 {one}"), home.path(), other);
        let second = Node::start(other, home.path(), &second);
        let sentinels = (0..3).map(|_| {
            let port = free_port();
            let file = home.path().join(format!("{port}.conf"));
            let text = format!(
                "port {port}\nbind 127.0.0.1\nrequirepass {PASSWORD}\nsentinel sentinel-pass {PASSWORD}\n\
                 sentinel monitor mesa 127.0.0.1 {one} 2\nsentinel auth-pass mesa {PASSWORD}\n\
                 sentinel down-after-milliseconds mesa 700\nsentinel failover-timeout mesa 3000\n"
            );
            fs::write(&file, text).expect("a configuration");
            Node::start(port, home.path(), &[file.display().to_string(), "--sentinel".to_owned()])
        });
        let watched = Self { nodes: [first, second], sentinels: sentinels.collect(), home };
        wait("the replica to follow", || {
            cli(watched.nodes[1].port, &["INFO", "replication"]).contains("master_link_status:up")
        });
        for sentinel in &watched.sentinels {
            wait("the sentinels to know all", || {
                let known = cli(sentinel.port, &["SENTINEL", "MASTER", "mesa"]);
                let after = |name: &str| known.lines().skip_while(|line| *line != name).nth(1).map(str::to_owned);
                after("num-slaves").as_deref() == Some("1") && after("num-other-sentinels").as_deref() == Some("2")
            });
        }
        watched
    }

    /// As it stands in a server's configuration.
    pub fn setting(&self) -> String {
        let sentinels = self.sentinels.iter().map(|one| format!("{{ host: '127.0.0.1', port: {} }}", one.port));
        let sentinels = sentinels.collect::<Vec<_>>().join(", ");
        format!(
            "redis: {{ sentinels: [{sentinels}], name: 'mesa', password: '{PASSWORD}', sentinelPassword: '{PASSWORD}' }},"
        )
    }
}

/// Three primaries with a replica each.
pub struct Cluster {
    pub nodes: Vec<Node>,
    home: TempDir,
}

static SHARED: Mutex<Weak<Cluster>> = Mutex::new(Weak::new());

impl Cluster {
    /// One in which another takes over when a node has not answered for two seconds.
    pub fn start() -> Arc<Self> {
        Self::start_with(2000)
    }

    fn start_with(node_timeout_ms: u32) -> Arc<Self> {
        let home = directory("mesa-cluster-");
        let nodes = (0..6).map(|_| {
            let port = free_port();
            let more = format!(
                "--cluster-enabled yes --cluster-node-timeout {node_timeout_ms} --cluster-replica-validity-factor 0"
            );
            Node::start(port, home.path(), &words(&more, home.path(), port))
        });
        let cluster = Self { nodes: nodes.collect(), home };
        let addresses = cluster.nodes.iter().map(|node| format!("127.0.0.1:{}", node.port));
        let made = Command::new("redis-cli")
            .env("REDISCLI_AUTH", PASSWORD)
            .args(["--cluster", "create"])
            .args(addresses)
            .args(["--cluster-replicas", "1", "--cluster-yes"])
            .output()
            .expect("redis-cli is not installed, and nothing is skipped");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stdout));
        for node in &cluster.nodes {
            wait("the cluster to be whole", || node.sees_all());
        }
        Arc::new(cluster)
    }

    /// One that all tests of this process share for as long as one of them has it. Nobody takes over there only because the machine
    /// is busy.
    pub fn shared() -> Arc<Self> {
        let mut shared = SHARED.lock().unwrap();
        shared.upgrade().unwrap_or_else(|| {
            let cluster = Self::start_with(20_000);
            *shared = Arc::downgrade(&cluster);
            cluster
        })
    }

    pub fn urls(&self) -> Vec<String> {
        self.nodes.iter().take(2).map(|node| format!("redis://:{PASSWORD}@127.0.0.1:{}", node.port)).collect()
    }

    /// As it stands in a server's configuration: two of its nodes.
    pub fn setting(&self) -> String {
        format!("redis: ['{}'],", self.urls().join("', '"))
    }

    /// Those that have what `owner` has.
    pub fn replicas_of(&self, owner: &Node) -> Vec<&Node> {
        let master = format!("master_port:{}", owner.port);
        self.nodes.iter().filter(|node| cli(node.port, &["INFO", "replication"]).contains(&master)).collect()
    }

    /// Whoever of those that answer has the slot of this key.
    pub fn owner(&self, key: &str) -> &Node {
        let owner = self.nodes.iter().find(|node| {
            let here = cli(node.port, &["EXISTS", key]);
            node.is("master") && (here == "0" || here == "1")
        });
        owner.expect("somebody has it")
    }
}
