//! Starts several Redis nodes for a test: a primary and a replica with three Sentinels, or a Redis Cluster.

#![allow(dead_code, reason = "each suite uses a part of it")]

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, Weak},
};

use tempfile::TempDir;

use super::{
    redis_server::{free_port, redis_cli, temporary_directory},
    wait::block_until,
};

/// Password of every node.
pub const PASSWORD: &str = "mesa-secret";

/// Runs one process of a group: a Redis or a Sentinel. Dropping it kills the process.
pub struct RedisNode {
    pub port: u16,
    arguments: Vec<String>,
    log: std::path::PathBuf,
    process: Mutex<Option<Child>>,
}

impl RedisNode {
    fn start(port: u16, home: &Path, arguments: Vec<String>) -> Self {
        let node = Self { port, arguments, log: home.join(format!("{port}.log")), process: Mutex::new(None) };
        node.restart();
        node
    }

    /// Starts the process on the files that an earlier one wrote, and waits until it answers.
    pub fn restart(&self) {
        let log = fs::File::options().create(true).append(true).open(&self.log).expect("a log file");
        let child = Command::new("redis-server")
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second file handle"))
            .stderr(log)
            .spawn()
            .expect("redis-server is not installed (Debian: apt-get install redis-server); no test is skipped");
        *self.process.lock().unwrap() = Some(child);
        block_until("redis-server answers PING", || self.cli(&["PING"]) == "PONG");
    }

    /// Kills the process with SIGKILL, as a crash would.
    pub fn kill(&self) {
        if let Some(mut child) = self.process.lock().unwrap().take() {
            _ = child.kill();
            _ = child.wait();
        }
    }

    /// Sends a signal. `STOP` stands for a suspended machine, `CONT` for its resumption.
    pub fn signal(&self, name: &str) {
        let child = self.process.lock().unwrap();
        let pid = child.as_ref().expect("a running process").id().to_string();
        let status = Command::new("kill").args(["-s", name, &pid]).status().expect("kill runs");
        assert!(status.success(), "signal {name} is sent to process {pid}");
    }

    /// Deletes the append-only files. A stopped node restarts without data.
    pub fn delete_files(&self) {
        let directory = self.log.with_file_name(self.port.to_string());
        fs::remove_dir_all(directory.join("appendonlydir")).expect("an append-only directory");
    }

    /// Runs `redis-cli` on this node, and returns its output without surrounding white space.
    pub fn cli(&self, arguments: &[&str]) -> String {
        redis_cli(self.port, Some(PASSWORD), arguments)
    }

    /// Reports whether the node has this role: `master` or `slave`.
    pub fn has_role(&self, role: &str) -> bool {
        self.cli(&["INFO", "replication"]).contains(&format!("role:{role}"))
    }

    /// Reports whether this node of a Redis Cluster sees all slots served, and all three replicas.
    fn sees_whole_cluster(&self) -> bool {
        let replicated =
            self.has_role("master") || self.cli(&["INFO", "replication"]).contains("master_link_status:up");
        let known = self.cli(&["CLUSTER", "NODES"]).lines().filter(|line| line.contains("slave")).count() == 3;
        replicated && known && self.cli(&["CLUSTER", "INFO"]).contains("cluster_state:ok")
    }
}

impl Drop for RedisNode {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Creates a node's directory and returns the arguments of its process: those of every node, and `further`.
fn node_arguments(further: &str, home: &Path, port: u16) -> Vec<String> {
    let common = format!(
        "--port {port} --bind 127.0.0.1 --save  --appendonly yes --appendfsync always --repl-diskless-sync-delay 0 \
         --requirepass {PASSWORD} --masterauth {PASSWORD}"
    );
    let mut arguments: Vec<String> = common.split(' ').chain(further.split_whitespace()).map(str::to_owned).collect();
    let directory = home.join(port.to_string());
    fs::create_dir_all(&directory).expect("a directory");
    arguments.extend(["--dir".to_owned(), directory.display().to_string()]);
    arguments
}

/// Times in milliseconds without an answer after which a node counts as failed.
///
/// `detecting` holds while a test expects a failure. A machine that stalls for less than `not_detecting` causes no failover.
struct FailureTimeouts {
    detecting: u32,
    not_detecting: u32,
}

const SENTINEL_TIMEOUTS_MS: FailureTimeouts = FailureTimeouts { detecting: 700, not_detecting: 60_000 };

/// The nodes of a Redis Cluster exchange news at intervals of half of this time.
const CLUSTER_TIMEOUTS_MS: FailureTimeouts = FailureTimeouts { detecting: 2000, not_detecting: 20_000 };

impl FailureTimeouts {
    fn get(&self, detect: bool) -> String {
        if detect { self.detecting } else { self.not_detecting }.to_string()
    }
}

/// Runs a primary, a replica, and three Sentinels that watch them.
pub struct SentinelGroup {
    /// The first node is the primary at the beginning.
    pub nodes: [RedisNode; 2],
    pub sentinels: Vec<RedisNode>,
    home: TempDir,
}

impl SentinelGroup {
    /// Starts the group. Sentinels detect no failures before [`Self::detect_failures`].
    pub fn start() -> Self {
        let home = temporary_directory("mesa-sentinel-");
        let (primary_port, replica_port) = (free_port(), free_port());
        let primary = node_arguments("", home.path(), primary_port);
        let primary = RedisNode::start(primary_port, home.path(), primary);
        let replica = node_arguments(&format!("--replicaof 127.0.0.1 {primary_port}"), home.path(), replica_port);
        let replica = RedisNode::start(replica_port, home.path(), replica);
        let sentinels = (0..3).map(|_| {
            let port = free_port();
            let file = home.path().join(format!("{port}.conf"));
            let text = format!(
                "port {port}\nbind 127.0.0.1\nrequirepass {PASSWORD}\nsentinel sentinel-pass {PASSWORD}\n\
                 sentinel monitor mesa 127.0.0.1 {primary_port} 2\nsentinel auth-pass mesa {PASSWORD}\n\
                 sentinel down-after-milliseconds mesa {}\nsentinel failover-timeout mesa 3000\n",
                SENTINEL_TIMEOUTS_MS.not_detecting
            );
            fs::write(&file, text).expect("a configuration file");
            RedisNode::start(port, home.path(), vec![file.display().to_string(), "--sentinel".to_owned()])
        });
        let group = Self { nodes: [primary, replica], sentinels: sentinels.collect(), home };
        block_until("the replica is connected to the primary", || {
            group.nodes[1].cli(&["INFO", "replication"]).contains("master_link_status:up")
        });
        for sentinel in &group.sentinels {
            block_until("each Sentinel knows the replica and the other Sentinels", || {
                let known = sentinel.cli(&["SENTINEL", "MASTER", "mesa"]);
                let after = |name: &str| known.lines().skip_while(|line| *line != name).nth(1).map(str::to_owned);
                after("num-slaves").as_deref() == Some("1") && after("num-other-sentinels").as_deref() == Some("2")
            });
        }
        group
    }

    /// Makes the Sentinels detect failures, or stop detecting them.
    ///
    /// A test detects failures only while it keeps a node stopped. At other times a primary that does not run for 700 ms
    /// would cause a failover that the test does not expect, for example to an old primary that has just restarted.
    pub fn detect_failures(&self, detect: bool) {
        let milliseconds = SENTINEL_TIMEOUTS_MS.get(detect);
        for sentinel in &self.sentinels {
            let set = sentinel.cli(&["SENTINEL", "SET", "mesa", "down-after-milliseconds", &milliseconds]);
            assert_eq!(set, "OK", "a Sentinel takes the time");
        }
    }

    /// Returns the key `redis` of a mesa server's configuration.
    pub fn setting(&self) -> String {
        let address = |sentinel: &RedisNode| format!("{{ host: '127.0.0.1', port: {} }}", sentinel.port);
        let sentinels = self.sentinels.iter().map(address).collect::<Vec<_>>().join(", ");
        format!(
            "redis: {{ sentinels: [{sentinels}], name: 'mesa', password: '{PASSWORD}', sentinelPassword: '{PASSWORD}' }},"
        )
    }
}

/// Runs a Redis Cluster of three primaries with one replica each.
pub struct RedisCluster {
    pub nodes: Vec<RedisNode>,
    home: TempDir,
}

static SHARED: Mutex<Weak<RedisCluster>> = Mutex::new(Weak::new());

impl RedisCluster {
    /// Starts a Redis Cluster. Its nodes detect no failures before [`Self::detect_failures`].
    pub fn start() -> Arc<Self> {
        let home = temporary_directory("mesa-cluster-");
        let nodes = (0..6).map(|_| {
            let port = free_port();
            let further = format!(
                "--cluster-enabled yes --cluster-node-timeout {} --cluster-replica-validity-factor 0",
                CLUSTER_TIMEOUTS_MS.not_detecting
            );
            RedisNode::start(port, home.path(), node_arguments(&further, home.path(), port))
        });
        let cluster = Self { nodes: nodes.collect(), home };
        let addresses = cluster.nodes.iter().map(|node| format!("127.0.0.1:{}", node.port));
        let created = Command::new("redis-cli")
            .env("REDISCLI_AUTH", PASSWORD)
            .args(["--cluster", "create"])
            .args(addresses)
            .args(["--cluster-replicas", "1", "--cluster-yes"])
            .output()
            .expect("redis-cli is not installed (Debian: apt-get install redis-tools); no test is skipped");
        assert!(created.status.success(), "{}", String::from_utf8_lossy(&created.stdout));
        for node in &cluster.nodes {
            block_until("every node sees the whole Redis Cluster", || node.sees_whole_cluster());
        }
        Arc::new(cluster)
    }

    /// Returns the Redis Cluster that all tests of this process share. It ends when the last of them drops it.
    pub fn shared() -> Arc<Self> {
        let mut shared = SHARED.lock().unwrap();
        shared.upgrade().unwrap_or_else(|| {
            let cluster = Self::start();
            *shared = Arc::downgrade(&cluster);
            cluster
        })
    }

    /// Makes the running nodes detect failures, or stop detecting them; see [`SentinelGroup::detect_failures`].
    pub fn detect_failures(&self, detect: bool) {
        let milliseconds = CLUSTER_TIMEOUTS_MS.get(detect);
        for node in self.nodes.iter().filter(|node| node.cli(&["PING"]) == "PONG") {
            assert_eq!(node.cli(&["CONFIG", "SET", "cluster-node-timeout", &milliseconds]), "OK");
        }
    }

    /// Returns the URLs of two nodes. A client learns of the others from them.
    pub fn urls(&self) -> Vec<String> {
        self.nodes.iter().take(2).map(|node| format!("redis://:{PASSWORD}@127.0.0.1:{}", node.port)).collect()
    }

    /// Returns the key `redis` of a mesa server's configuration.
    pub fn setting(&self) -> String {
        format!("redis: ['{}'],", self.urls().join("', '"))
    }

    /// Returns the replicas of `primary`.
    pub fn replicas_of(&self, primary: &RedisNode) -> Vec<&RedisNode> {
        let master = format!("master_port:{}", primary.port);
        self.nodes.iter().filter(|node| node.cli(&["INFO", "replication"]).contains(&master)).collect()
    }

    /// Returns the running primary that serves the slot of a key.
    pub fn owner(&self, key: &str) -> &RedisNode {
        let owner = self.nodes.iter().find(|node| {
            let exists = node.cli(&["EXISTS", key]);
            node.has_role("master") && (exists == "0" || exists == "1")
        });
        owner.unwrap_or_else(|| panic!("no running primary serves the slot of {key}"))
    }
}
