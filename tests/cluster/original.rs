//! Tests mesa with servers and Dispatchers of the original Mesa (`@cryb/mesa` 1.5.8) on the same Redis and namespace.
//!
//! The original runs in a Node process of its own, see `original.js`.

use std::{
    io::{BufRead, BufReader, Write},
    net::SocketAddr,
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use serde_json::{Value, json};

use crate::{
    ServerGroup, WAIT_TIMEOUT, close_reason, message, next_data, redis_server::free_port, support::socket::Socket,
    unsynced, wait_until,
};

/// Settings of the mesa servers that share a namespace with the original.
pub const SETTINGS: &str = "namespace: 'shop',";

/// Runs one Node process with the original. Dropping it kills the process.
pub struct Original {
    process: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Original {
    pub fn start(group: &ServerGroup) -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let package = root.join("tests/node_clients/node_modules/stock158");
        assert!(
            package.exists(),
            "the original is not installed: run `npm ci` in tests/node_clients; no test is skipped"
        );
        let arguments = json!({ "redis": group.redis().url(), "namespace": "shop" }).to_string();
        let mut process = Command::new("node")
            .arg(root.join("tests/cluster/original.js"))
            .arg(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("node starts");
        let (stdin, stdout) = (process.stdin.take().expect("a pipe"), process.stdout.take().expect("a pipe"));
        Self { process, stdin, stdout: BufReader::new(stdout) }
    }

    /// Runs a command of `original.js` that has no result.
    pub fn run(&mut self, command: &Value) {
        assert_eq!(self.call(command), "done", "{command}");
    }

    /// Runs a command of `original.js` and returns its result.
    pub fn call(&mut self, command: &Value) -> Value {
        writeln!(self.stdin, "{command}").expect("the process reads its input");
        let mut answer = String::new();
        self.stdout.read_line(&mut answer).expect("the process answers");
        serde_json::from_str(&answer).expect("a JSON answer")
    }

    /// Starts a server of the original, and returns its address.
    pub fn serve(&mut self) -> SocketAddr {
        let port = free_port();
        self.run(&json!({ "command": "serve", "port": port }));
        ([127, 0, 0, 1], port).into()
    }
}

impl Drop for Original {
    fn drop(&mut self) {
        _ = self.process.kill();
        _ = self.process.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn original_dispatcher_reaches_online_clients_once_and_offline_users_on_connect() {
    let group = ServerGroup::start_with(2, SETTINGS);
    let mut original = Original::start(&group);
    // Both servers receive each message of the original, so a client could receive it twice.
    let (mut first, mut second) = (group.client(0, "alice").await, group.client(1, "alice").await);
    wait_until("the original sees alice online", async || {
        group.redis().cli(&["SISMEMBER", "connected_clients_shop", "alice"]) == "1"
    })
    .await;
    original.run(&json!({ "command": "dispatch", "sync": true, "numbers": [1, 2, 3], "to": ["alice", "bob"] }));
    for n in 1..=3 {
        assert_eq!((next_data(&mut first).await, next_data(&mut second).await), (json!(n), json!(n)));
    }
    // No repeat arrives before the next message.
    group.dispatch(0, &message(4, &["alice"])).await;
    assert_eq!((next_data(&mut first).await, next_data(&mut second).await), (json!(4), json!(4)));
    original.run(&json!({ "command": "dispatch", "sync": true, "numbers": [5], "to": ["alice"], "unsynced": true }));
    assert_eq!((next_data(&mut first).await, next_data(&mut second).await), (json!(5), json!(5)));
    // The original has stored messages for bob in its list, and mesa one in bob's log.
    group.dispatch(1, &message(9, &["bob"])).await;
    wait_until("the original has stored bob's messages", async || {
        group.redis().cli(&["HLEN", "undelivered_messages_shop"]) == "1"
    })
    .await;
    let mut bob = group.client(1, "bob").await;
    let mut received = Vec::new();
    for _ in 0..4 {
        received.push(next_data(&mut bob).await);
    }
    assert_eq!(
        received,
        [json!(9), json!(1), json!(2), json!(3)],
        "the log's entry comes first; the list is imported when bob connects"
    );
    assert_eq!(group.redis().cli(&["HLEN", "undelivered_messages_shop"]), "0", "the whole list is imported");
    original.run(&json!({ "command": "disconnect", "to": ["alice"] }));
    for client in [&mut first, &mut second] {
        assert!(close_reason(client).await.contains("code: Normal"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dispatch_to_client_of_original_server_is_delivered_there_and_not_stored() {
    let group = ServerGroup::start_with(1, SETTINGS);
    let mut original = Original::start(&group);
    let address = original.serve();
    let mut alice = Socket::connect(address, "alice").await.expect("a client of the original's server");
    let mut bob = group.client(0, "bob").await;
    wait_until("the original sees both users online", async || {
        group.redis().cli(&["SCARD", "connected_clients_shop"]) == "2"
    })
    .await;
    // A server looks for servers of the original once per second.
    let mut n = 0;
    wait_until("the mesa server knows the original's server", async || {
        n += 1;
        group.dispatch(0, &message(n, &["alice", "bob"])).await["online"] == 2
    })
    .await;
    assert_eq!(next_data(&mut alice).await, n);
    let dispatch = json!({ "message": { "d": 99, "o": { "sync": true } }, "recipients": ["alice"], "id": "id-99" });
    for _ in 0..2 {
        let response = group.dispatch(0, &dispatch).await;
        assert_eq!(
            (&response["online"], &response["stored"]),
            (&json!(1), &json!(0)),
            "the original delivers: {response}"
        );
    }
    assert_eq!(next_data(&mut alice).await, 99);
    for expected in 1..=n {
        assert_eq!(next_data(&mut bob).await, expected);
    }
    group.dispatch(0, &unsynced(100, &["*"], &["bob"])).await;
    assert_eq!(next_data(&mut alice).await, 100);
    group.dispatch(0, &unsynced(101, &["*"], &[])).await;
    assert_eq!((next_data(&mut alice).await, next_data(&mut bob).await), (json!(101), json!(101)));
    let (_, state) = group.call(0, "GET", "/v1/users/alice", &Value::Null).await;
    let pending = state["pending"].as_u64().unwrap_or(0);
    assert!(pending < n, "messages that the original's server delivers are not stored: {state}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn presence_keys_of_the_original_follow_connects_disconnects_and_a_killed_server() {
    let mut group = ServerGroup::start_with(2, SETTINGS);
    let count = |group: &ServerGroup| group.redis().cli(&["GET", "connected_clients_count_shop"]);
    let members = |group: &ServerGroup| group.redis().cli(&["SMEMBERS", "connected_clients_shop"]);
    let alice = [group.client(0, "alice").await, group.client(1, "alice").await];
    let bob = group.client(1, "bob").await;
    wait_until("three connections of two users are counted", async || {
        count(&group) == "3" && members(&group).lines().count() == 2
    })
    .await;
    let [at_first, at_second] = alice;
    drop(at_first);
    wait_until("two connections are counted", async || count(&group) == "2").await;
    assert_eq!(members(&group).lines().count(), 2, "alice is still connected to the second server");
    group.servers.pop().expect("a second server").process.kill();
    drop((at_second, bob));
    wait_until("the state of the killed server is removed", async || {
        count(&group) == "0" && members(&group).is_empty()
    })
    .await;
    let carol = group.client(0, "carol").await;
    wait_until("carol is counted", async || count(&group) == "1" && members(&group) == "carol").await;
    let last = group.servers.pop().expect("a first server");
    last.terminate();
    assert!(last.process.wait(WAIT_TIMEOUT).success());
    wait_until("the state of the stopped server is removed", async || {
        count(&group) == "0" && members(&group).is_empty()
    })
    .await;
    drop(carol);
}
