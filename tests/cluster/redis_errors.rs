//! Tests a Redis that rejects commands: the response, `/readyz` and the log name its error code.
//!
//! An error of Redis says nothing about the data, so clients stay connected and no log counts as damaged.

use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use super::{Redis, ServerGroup, message, next_data, wait_until};

/// Number of rejected dispatches in a row. They cause one log line, or two if a log interval ends meanwhile.
const REJECTED: u64 = 20;

/// Maximum number of log lines about failed requests per condition, which lasts less than three log intervals.
const LINES_MAX: usize = 3;

/// Runs an endless script of another application. Dropping it kills its client.
struct EndlessScript(Child);

impl EndlessScript {
    fn start(group: &ServerGroup) -> Self {
        let port = group.redis().address().port().to_string();
        let mut client = Command::new("redis-cli");
        client.args(["-p", &port, "EVAL", "while true do end", "0"]);
        Self(client.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("redis-cli runs"))
    }
}

impl Drop for EndlessScript {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

/// Checks one server and one client while Redis rejects commands.
struct Check {
    group: ServerGroup,
    alice: super::Socket,
    sent: u64,
}

impl Check {
    async fn start(group: ServerGroup) -> Self {
        let mut alice = group.client(0, "alice").await;
        group.dispatch(0, &message(1, &["alice"])).await;
        assert_eq!(next_data(&mut alice).await, 1);
        Self { group, alice, sent: 1 }
    }

    /// Returns the number of log lines about failed requests.
    fn failure_lines(&self) -> usize {
        self.lines_with("request failed")
    }

    fn lines_with(&self, text: &str) -> usize {
        let log = self.group.homes[0].complete_log(&self.group.servers[0]);
        log.lines().filter(|line| line.contains(text)).count()
    }

    /// Checks that responses, `/readyz` and the log name the error code while Redis rejects commands.
    async fn assert_rejected(&mut self, code: &str) {
        let (lines_before, group) = (self.failure_lines(), &self.group);
        let rejected = async || {
            let (status, response) = group.call(0, "POST", "/v1/dispatch", &message(0, &["alice"])).await;
            assert_eq!((status, &response["error"]["code"]), (503, &json!("unreachable")), "{code}: {response}");
            response["error"]["message"].as_str().unwrap_or_default().to_owned()
        };
        // A killed connection is reported as lost first.
        wait_until("the response names the error code", async || rejected().await.contains(code)).await;
        // On a busy machine "Redis accepts again" may follow a request that timed out before the condition began.
        let recoveries_before = self.lines_with("accepts again");
        for _ in 0..REJECTED {
            // Redis answers this read if it rejects only writes. The condition has not ended then.
            group.call(0, "GET", "/v1/users/alice", &Value::Null).await;
            let text = rejected().await;
            assert!(text.contains(code) && !text.contains("damaged"), "{code}: {text}");
        }
        wait_until("/readyz names the error code", async || {
            let mut http = group.http(0);
            let ready = tokio::task::spawn_blocking(move || http.call("GET", "/readyz", "").expect("a response"));
            let (status, text) = ready.await.expect("the request does not panic");
            status == 503 && String::from_utf8_lossy(&text).contains(code)
        })
        .await;
        let recoveries = self.lines_with("accepts again") - recoveries_before;
        assert_eq!(recoveries, 0, "{code}: no recovery is logged meanwhile\n{}", self.group.homes[0].log());
        let lines = self.failure_lines() - lines_before;
        assert!(
            lines <= LINES_MAX,
            "{code}: at most {LINES_MAX} log lines, not {lines}\n{}",
            self.group.homes[0].log()
        );
    }

    /// Checks that the client, connected all the time, receives new messages after a condition has ended.
    async fn assert_recovered(&mut self, after: &str) {
        self.sent += 1;
        let (group, sent) = (&self.group, self.sent);
        wait_until(&format!("the server accepts a dispatch after {after}"), async || {
            group.call(0, "POST", "/v1/dispatch", &message(sent, &["alice"])).await.0 == 200
        })
        .await;
        // A dispatch that was answered with 503 may have been stored.
        let received = async {
            loop {
                let number = next_data(&mut self.alice).await;
                if number != 0 {
                    break number;
                }
            }
        };
        assert_eq!(received.await, sent, "{after}");
        wait_until("the server is ready", async || group.call(0, "GET", "/readyz", &Value::Null).await.0 == 200).await;
    }
}

// covers: G4
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_error_is_503_with_its_code_and_clients_stay_connected() {
    let mut check = Check::start(ServerGroup::start(1)).await;
    let run = |check: &Check, arguments: &[&str]| check.group.redis().cli(arguments);

    run(&check, &["CONFIG", "SET", "lua-time-limit", "50"]);
    let script = EndlessScript::start(&check.group);
    wait_until("the script runs", async || run(&check, &["PING"]).contains("BUSY")).await;
    check.assert_rejected("BUSY").await;
    run(&check, &["SCRIPT", "KILL"]);
    check.assert_recovered("BUSY").await;
    drop(script);

    run(&check, &["ACL", "SETUSER", "default", "-xadd"]);
    check.assert_rejected("NOPERM").await;
    run(&check, &["ACL", "SETUSER", "default", "+xadd"]);
    check.assert_recovered("NOPERM").await;

    // A rejected read of a log's state does not make the log damaged.
    run(&check, &["ACL", "SETUSER", "default", "-get"]);
    check.assert_rejected("NOPERM").await;
    run(&check, &["ACL", "SETUSER", "default", "+get"]);
    check.assert_recovered("NOPERM of a read").await;

    // The entry is already in the log when Redis rejects the write of the log's state.
    run(&check, &["ACL", "SETUSER", "default", "-set"]);
    check.assert_rejected("NOPERM").await;
    run(&check, &["ACL", "SETUSER", "default", "+set"]);
    check.assert_recovered("NOPERM in the middle of a script").await;

    run(&check, &["CONFIG", "SET", "min-replicas-to-write", "1"]);
    check.assert_rejected("NOREPLICAS").await;
    run(&check, &["CONFIG", "SET", "min-replicas-to-write", "0"]);
    check.assert_recovered("NOREPLICAS").await;

    // A Redis that has become a replica rejects writes, and each makes the server reconnect. Its primary does not
    // exist.
    run(&check, &["REPLICAOF", "127.0.0.1", "9"]);
    check.assert_rejected("READONLY").await;
    run(&check, &["REPLICAOF", "NO", "ONE"]);
    check.assert_recovered("READONLY").await;

    // A directory in place of the snapshot's file makes every snapshot fail.
    let directory = run(&check, &["CONFIG", "GET", "dir"]).lines().nth(1).expect("a path").to_owned();
    std::fs::create_dir_all(format!("{directory}/dump.rdb/full")).expect("a directory");
    run(&check, &["CONFIG", "SET", "save", "1000000 1000000"]);
    run(&check, &["BGSAVE"]);
    wait_until("the snapshot fails", async || run(&check, &["SET", "x", "1"]).contains("MISCONF")).await;
    check.assert_rejected("MISCONF").await;
    run(&check, &["CONFIG", "SET", "stop-writes-on-bgsave-error", "no"]);
    check.assert_recovered("MISCONF").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changed_redis_password_is_503_with_its_code_and_clients_stay_connected() {
    for (password, code) in [("", "NOAUTH"), ("first", "WRONGPASS")] {
        let redis = Redis::start();
        let url = if password.is_empty() {
            redis.url()
        } else {
            redis.url().replace("redis://", &format!("redis://:{password}@"))
        };
        let group = ServerGroup { redis: Some(redis.clone()), ..ServerGroup::start_on("", 0) };
        if !password.is_empty() {
            group.redis().cli(&["CONFIG", "SET", "requirepass", password]);
        }
        let group = ServerGroup { redis: Some(redis), ..ServerGroup::start_on(&format!("redis: '{url}', "), 1) };
        let mut check = Check::start(group).await;
        let change = |from: &str, to: &str| {
            let login: &[&str] = if from.is_empty() { &[] } else { &["-a", from] };
            check.group.redis().cli(&[login, &["CONFIG", "SET", "requirepass", to]].concat());
        };
        change(password, "second");
        for kind in ["normal", "pubsub"] {
            check.group.redis().cli(&["-a", "second", "CLIENT", "KILL", "TYPE", kind]);
        }
        check.assert_rejected(code).await;
        let change_back = &["-a", "second", "CONFIG", "SET", "requirepass", password];
        check.group.redis().cli(change_back);
        check.assert_recovered(code).await;
    }
}

/// Number of recipients. Their dispatch is a request with more arguments than Redis reads from an unauthenticated
/// client.
const RECIPIENTS: u32 = 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connection_closed_by_redis_after_noauth_is_reported_as_noauth() {
    let redis = Redis::start();
    let group = ServerGroup::start_on(&format!("redis: '{}', ", redis.url()), 1);
    let group = ServerGroup { redis: Some(redis), ..group };
    let users: Vec<String> = (0..RECIPIENTS).map(|n| format!("user{n}")).collect();
    let to_all = json!({"message": {"d": {"n": 1}}, "recipients": users});
    for round in 0..5 {
        wait_until("the server accepts a dispatch", async || {
            group.call(0, "POST", "/v1/dispatch", &to_all).await.0 == 200
        })
        .await;
        group.redis().cli(&["CONFIG", "SET", "requirepass", "second"]);
        for kind in ["normal", "pubsub"] {
            group.redis().cli(&["-a", "second", "CLIENT", "KILL", "TYPE", kind]);
        }
        for dispatch in 0..20 {
            let (status, response) = group.call(0, "POST", "/v1/dispatch", &to_all).await;
            let text = response["error"]["message"].as_str().unwrap_or_default();
            let is_named = text.contains("NOAUTH") && text.contains("redis://:PASSWORD@HOST");
            assert!(status == 503 && is_named, "round {round}, dispatch {dispatch}: {status} {response}");
            let mut http = group.http(0);
            let ready = tokio::task::spawn_blocking(move || http.call("GET", "/readyz", "").expect("a response"));
            let (status, text) = ready.await.expect("the request does not panic");
            let text = String::from_utf8_lossy(&text);
            assert!(status == 503 && text.contains("NOAUTH"), "round {round}, dispatch {dispatch}: {status} {text}");
        }
        group.redis().cli(&["-a", "second", "CONFIG", "SET", "requirepass", ""]);
    }
}
