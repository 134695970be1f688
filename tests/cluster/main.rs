//! Several servers that share a real Redis, as their users see them.

mod battery;
mod beside;
mod epoch;
mod full;
mod left;
mod listed;
mod moving;
mod portals;
mod proxy;
#[path = "../support/redis_modes.rs"]
mod redis_modes;
#[path = "../support/redis.rs"]
mod redis_server;
mod refusals;
mod sentinel;
mod servers;
mod spread;
mod stock;
#[cfg(feature = "planted-bugs")]
mod supervised;
#[path = "../support/mod.rs"]
#[allow(dead_code, reason = "each test uses its part")]
mod support;
mod tls;

use std::{sync::Arc, time::Duration};

use redis_server::Redis;
use serde_json::{Value, json};
use support::{
    http::Http,
    server::{Home, Server},
    socket::{Event, Socket},
};

/// Longer than a lease, and than anything else that is waited for.
const PATIENCE: Duration = Duration::from_secs(120);

/// Some servers on one Redis.
struct Stage {
    /// Unless it is of the test's.
    redis: Option<Arc<Redis>>,
    homes: Vec<Home>,
    servers: Vec<Server>,
}

impl Stage {
    fn new(count: usize) -> Self {
        Self::with(count, "")
    }

    fn with(count: usize, settings: &str) -> Self {
        let redis = Redis::start();
        let stage = Self::on(&format!("redis: '{}', {settings}", redis.url()), count);
        Self { redis: Some(redis), ..stage }
    }

    /// On a Redis that these settings lead to.
    fn on(settings: &str, count: usize) -> Self {
        let homes: Vec<Home> = (0..count).map(|_| Home::with(settings)).collect();
        let servers = homes.iter().map(Home::start).collect();
        Self { redis: None, homes, servers }
    }

    fn redis(&self) -> &Redis {
        self.redis.as_ref().expect("it has one of its own")
    }

    fn http(&self, at: usize) -> Http {
        Http::connect(self.servers[at].address).expect("a connection")
    }

    async fn client(&self, at: usize, user: &str) -> Socket {
        Socket::connect(self.servers[at].address, user).await.expect("a client")
    }

    /// Asks a server, off the runtime's threads.
    async fn ask(&self, at: usize, method: &'static str, path: &str, body: &Value) -> (u16, Value) {
        let (mut http, path, body) = (self.http(at), path.to_owned(), body.to_string());
        let asked = tokio::task::spawn_blocking(move || http.call(method, &path, &body).expect("an answer"));
        let (status, text) = asked.await.expect("it asks");
        (status, serde_json::from_slice(&text).unwrap_or_default())
    }

    async fn dispatch(&self, at: usize, dispatch: &Value) -> Value {
        let (status, answer) = self.ask(at, "POST", "/v1/dispatch", dispatch).await;
        assert_eq!(status, 200, "{answer}\n{}", self.homes[at].log());
        answer
    }

    /// Waits until `path` at a server says what is wanted.
    async fn until(&self, what: &str, at: usize, path: &str, wanted: impl Fn(&Value) -> bool) {
        until(what, async || {
            let (_, answer) = self.ask(at, "GET", path, &Value::Null).await;
            wanted(&answer)
        })
        .await;
    }
}

async fn until(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let waited = tokio::time::timeout(PATIENCE, async {
        while !done().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    assert!(waited.await.is_ok(), "waited in vain for: {what}");
}

fn message(n: u64, to: &[&str]) -> Value {
    json!({ "message": { "op": 0, "d": n, "t": "N" }, "recipients": to })
}

fn unsynced(n: u64, to: &[&str], excluding: &[&str]) -> Value {
    json!({ "message": { "op": 0, "d": n, "t": "N", "o": { "sync": false } }, "recipients": to, "excluding": excluding })
}

/// The data of the next message; answers what else comes.
async fn next(socket: &mut Socket) -> Value {
    tokio::time::timeout(PATIENCE, socket.next()).await.expect("a message in time").expect("a message").d
}

/// Dispatches numbered messages until one is taken: the others are refused aloud. How many were.
async fn until_taken(stage: &Stage, at: usize, n: &mut u64, to: &[&str]) -> u64 {
    let mut refused = 0;
    until("dispatches to be taken again", async || {
        *n += 1;
        let (status, answer) = stage.ask(at, "POST", "/v1/dispatch", &message(*n, to)).await;
        if status != 200 {
            refused += 1;
            assert_eq!((status, &answer["error"]["code"]), (503, &json!("unreachable")), "{answer}");
        }
        status == 200
    })
    .await;
    refused
}

/// All numbers that come until this one has.
async fn through(socket: &mut Socket, last: u64) -> Vec<u64> {
    let mut got = Vec::new();
    while got.last() != Some(&last) {
        let event = tokio::time::timeout(PATIENCE, socket.event()).await.expect("something in time");
        match event.expect("something") {
            Event::Message(message) => got.push(message.d.as_u64().expect("a number")),
            Event::Question => socket.answer().await.expect("it is there"),
            _ => {}
        }
    }
    got
}

async fn closed(socket: &mut Socket) -> String {
    let ended = async {
        loop {
            match socket.event().await {
                Ok(Event::Question) => socket.answer().await.unwrap_or_default(),
                Ok(_) => {}
                Err(why) => return why,
            }
        }
    };
    tokio::time::timeout(PATIENCE, ended).await.expect("it ends in time")
}
