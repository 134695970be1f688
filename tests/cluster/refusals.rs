//! A Redis that refuses says nothing about the data: the answer, `/readyz` and the log name its code, and clients stay.

use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use super::{Redis, Stage, message, next, until};
use crate::original::redis;

/// Dispatches that are refused in a row. They make one line in the log, or two where an interval ends meanwhile.
const REFUSED: u64 = 20;

/// Lines about failed requests that one condition may write: it lasts less than three intervals.
const LINES_MAX: usize = 3;

/// A script of another application that does not end. Dropping it ends its client.
struct Script(Child);

impl Script {
    fn start(stage: &Stage) -> Self {
        let port = stage.redis().address().port().to_string();
        let mut client = Command::new("redis-cli");
        client.args(["-p", &port, "EVAL", "while true do end", "0"]);
        Self(client.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("redis-cli"))
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

/// A stage with one server, and what a test of refusals does on it.
struct Refusing {
    stage: Stage,
    alice: super::Socket,
    sent: u64,
}

impl Refusing {
    async fn start(stage: Stage) -> Self {
        let mut alice = stage.client(0, "alice").await;
        stage.dispatch(0, &message(1, &["alice"])).await;
        assert_eq!(next(&mut alice).await, 1);
        Self { stage, alice, sent: 1 }
    }

    fn lines(&self) -> usize {
        self.lines_with("request failed")
    }

    fn lines_with(&self, text: &str) -> usize {
        let log = self.stage.homes[0].log_until_now(&self.stage.servers[0]);
        log.lines().filter(|line| line.contains(text)).count()
    }

    /// Redis refuses from here on: the answers, `/readyz` and the log say why.
    async fn is_refused(&mut self, code: &str) {
        let (before, stage) = (self.lines(), &self.stage);
        let refused = async || {
            let (status, answer) = stage.ask(0, "POST", "/v1/dispatch", &message(0, &["alice"])).await;
            assert_eq!((status, &answer["error"]["code"]), (503, &json!("unreachable")), "{code}: {answer}");
            answer["error"]["message"].as_str().unwrap_or_default().to_owned()
        };
        // A connection that was killed is reported as lost first.
        until("the answer to say why", async || refused().await.contains(code)).await;
        // "Redis is available again" may follow a request that timed out before the refusals began, on a busy machine.
        let recovered = self.lines_with("accepts again");
        for _ in 0..REFUSED {
            // Where Redis refuses writes alone, this read is answered. That is no end of the refusal.
            stage.ask(0, "GET", "/v1/users/alice", &Value::Null).await;
            let text = refused().await;
            assert!(text.contains(code) && !text.contains("damaged"), "{code}: {text}");
        }
        until("/readyz to say why", async || {
            let mut http = stage.http(0);
            let ready = tokio::task::spawn_blocking(move || http.call("GET", "/readyz", "").expect("an answer"));
            let (status, text) = ready.await.expect("it asks");
            status == 503 && String::from_utf8_lossy(&text).contains(code)
        })
        .await;
        let recovered = self.lines_with("accepts again") - recovered;
        assert_eq!(recovered, 0, "{code}: it is refused still\n{}", self.stage.homes[0].log());
        let lines = self.lines() - before;
        assert!(lines <= LINES_MAX, "{code}: {lines} lines\n{}", self.stage.homes[0].log());
    }

    /// Redis refuses no more: the client that was connected all the time receives what is sent now.
    async fn is_accepted(&mut self, after: &str) {
        self.sent += 1;
        let (stage, sent) = (&self.stage, self.sent);
        until(after, async || stage.ask(0, "POST", "/v1/dispatch", &message(sent, &["alice"])).await.0 == 200).await;
        // What was answered with 503 may have been done all the same.
        let received = async {
            loop {
                let number = next(&mut self.alice).await;
                if number != 0 {
                    break number;
                }
            }
        };
        assert_eq!(received.await, sent, "{after}");
        until("it to be ready", async || stage.ask(0, "GET", "/readyz", &Value::Null).await.0 == 200).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusal_of_redis_is_503_with_its_code_and_clients_stay() {
    let mut refusing = Refusing::start(Stage::new(1)).await;
    let say = |refusing: &Refusing, words: &[&str]| redis(&refusing.stage, words);

    say(&refusing, &["CONFIG", "SET", "lua-time-limit", "50"]);
    let script = Script::start(&refusing.stage);
    until("the script to run", async || say(&refusing, &["PING"]).contains("BUSY")).await;
    refusing.is_refused("BUSY").await;
    say(&refusing, &["SCRIPT", "KILL"]);
    refusing.is_accepted("BUSY").await;
    drop(script);

    say(&refusing, &["ACL", "SETUSER", "default", "-xadd"]);
    refusing.is_refused("NOPERM").await;
    say(&refusing, &["ACL", "SETUSER", "default", "+xadd"]);
    refusing.is_accepted("NOPERM").await;

    // Reading the state of a log is refused too, and does not make it damaged.
    say(&refusing, &["ACL", "SETUSER", "default", "-get"]);
    refusing.is_refused("NOPERM").await;
    say(&refusing, &["ACL", "SETUSER", "default", "+get"]);
    refusing.is_accepted("NOPERM of a read").await;

    // The entry is in the log by then, and the state that would know of it is not written.
    say(&refusing, &["ACL", "SETUSER", "default", "-set"]);
    refusing.is_refused("NOPERM").await;
    say(&refusing, &["ACL", "SETUSER", "default", "+set"]);
    refusing.is_accepted("NOPERM in the middle of a step").await;

    say(&refusing, &["CONFIG", "SET", "min-replicas-to-write", "1"]);
    refusing.is_refused("NOREPLICAS").await;
    say(&refusing, &["CONFIG", "SET", "min-replicas-to-write", "0"]);
    refusing.is_accepted("NOREPLICAS").await;

    // A Redis that has become a replica refuses writes, and each makes a new connection. Nobody answers at this primary.
    say(&refusing, &["REPLICAOF", "127.0.0.1", "9"]);
    refusing.is_refused("READONLY").await;
    say(&refusing, &["REPLICAOF", "NO", "ONE"]);
    refusing.is_accepted("READONLY").await;

    // A directory in place of its file makes every snapshot fail.
    let directory = say(&refusing, &["CONFIG", "GET", "dir"]).lines().nth(1).expect("a path").to_owned();
    std::fs::create_dir_all(format!("{directory}/dump.rdb/full")).expect("a directory");
    say(&refusing, &["CONFIG", "SET", "save", "1000000 1000000"]);
    say(&refusing, &["BGSAVE"]);
    until("the snapshot to fail", async || say(&refusing, &["SET", "x", "1"]).contains("MISCONF")).await;
    refusing.is_refused("MISCONF").await;
    say(&refusing, &["CONFIG", "SET", "stop-writes-on-bgsave-error", "no"]);
    refusing.is_accepted("MISCONF").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn password_of_redis_that_changes_is_503_with_its_code_and_clients_stay() {
    for (password, code) in [("", "NOAUTH"), ("first", "WRONGPASS")] {
        let database = Redis::start();
        let url = if password.is_empty() {
            database.url()
        } else {
            database.url().replace("redis://", &format!("redis://:{password}@"))
        };
        let stage = Stage { redis: Some(database.clone()), ..Stage::on("", 0) };
        if !password.is_empty() {
            redis(&stage, &["CONFIG", "SET", "requirepass", password]);
        }
        let stage = Stage { redis: Some(database), ..Stage::on(&format!("redis: '{url}', "), 1) };
        let mut refusing = Refusing::start(stage).await;
        let change = |from: &str, to: &str| {
            let login: &[&str] = if from.is_empty() { &[] } else { &["-a", from] };
            redis(&refusing.stage, &[login, &["CONFIG", "SET", "requirepass", to]].concat());
        };
        change(password, "second");
        for kind in ["normal", "pubsub"] {
            redis(&refusing.stage, &["-a", "second", "CLIENT", "KILL", "TYPE", kind]);
        }
        refusing.is_refused(code).await;
        let change_back = &["-a", "second", "CONFIG", "SET", "requirepass", password];
        redis(&refusing.stage, change_back);
        refusing.is_accepted(code).await;
    }
}

/// Users whose dispatch is a request with more arguments than Redis reads of a client that has not shown the password.
const RECIPIENTS: u32 = 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connection_that_redis_closes_while_it_refuses_is_reported_as_refused() {
    let database = Redis::start();
    let stage = Stage { redis: Some(database.clone()), ..Stage::on(&format!("redis: '{}', ", database.url()), 1) };
    let users: Vec<String> = (0..RECIPIENTS).map(|n| format!("user{n}")).collect();
    let everyone = json!({"message": {"d": {"n": 1}}, "recipients": users});
    for round in 0..5 {
        until("a dispatch to be done", async || stage.ask(0, "POST", "/v1/dispatch", &everyone).await.0 == 200).await;
        redis(&stage, &["CONFIG", "SET", "requirepass", "second"]);
        for kind in ["normal", "pubsub"] {
            redis(&stage, &["-a", "second", "CLIENT", "KILL", "TYPE", kind]);
        }
        for dispatch in 0..20 {
            let (status, answer) = stage.ask(0, "POST", "/v1/dispatch", &everyone).await;
            let text = answer["error"]["message"].as_str().unwrap_or_default();
            let is_named = text.contains("NOAUTH") && text.contains("redis://:PASSWORD@HOST");
            assert!(status == 503 && is_named, "round {round}, dispatch {dispatch}: {status} {answer}");
            let mut http = stage.http(0);
            let ready = tokio::task::spawn_blocking(move || http.call("GET", "/readyz", "").expect("an answer"));
            let (status, text) = ready.await.expect("it asks");
            let text = String::from_utf8_lossy(&text);
            assert!(status == 503 && text.contains("NOAUTH"), "round {round}, dispatch {dispatch}: {status} {text}");
        }
        redis(&stage, &["-a", "second", "CONFIG", "SET", "requirepass", ""]);
    }
}
