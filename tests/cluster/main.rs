//! Tests several servers on a real Redis, through their clients, backends and portals.

mod basics;
mod chaos;
mod epoch;
mod import_export;
mod maxmemory;
mod original;
mod original_races;
mod portals;
mod proxy;
mod redis_cluster;
mod redis_errors;
#[path = "../support/redis.rs"]
mod redis_server;
#[path = "../support/redis_topologies.rs"]
mod redis_topologies;
mod sentinel;
#[path = "../support/mod.rs"]
#[allow(dead_code, reason = "each suite uses a part of it")]
mod support;
#[cfg(feature = "failpoints")]
mod task_panics;
mod tls;
mod undelivered_import;
mod user_list;
mod user_state;

use std::{sync::Arc, time::Duration};

use redis_server::Redis;
use serde_json::{Value, json};
use support::{
    http::Http,
    server::{Home, Server},
    socket::{Event, Socket},
    wait::{self, WAIT_TIMEOUT},
};

/// Runs several mesa servers on one Redis.
struct ServerGroup {
    /// `None`: a test started the Redis itself.
    redis: Option<Arc<Redis>>,
    homes: Vec<Home>,
    servers: Vec<Server>,
}

impl ServerGroup {
    /// Starts a Redis and `count` servers on it.
    fn start(count: usize) -> Self {
        Self::start_with(count, "")
    }

    /// Starts a Redis and `count` servers on it, with further settings.
    fn start_with(count: usize, settings: &str) -> Self {
        let redis = Redis::start();
        let group = Self::start_on(&format!("redis: '{}', {settings}", redis.url()), count);
        Self { redis: Some(redis), ..group }
    }

    /// Starts `count` servers with these settings, of which one names a running Redis.
    fn start_on(settings: &str, count: usize) -> Self {
        let homes: Vec<Home> = (0..count).map(|_| Home::with_settings(settings)).collect();
        let servers = homes.iter().map(Home::start).collect();
        Self { redis: None, homes, servers }
    }

    fn redis(&self) -> &Redis {
        self.redis.as_ref().expect("the group has a Redis of its own")
    }

    fn http(&self, server: usize) -> Http {
        Http::connect(self.servers[server].address).expect("an HTTP connection")
    }

    async fn client(&self, server: usize, user: &str) -> Socket {
        Socket::connect(self.servers[server].address, user).await.expect("a connected client")
    }

    /// Sends an HTTP request on a blocking thread, and returns the status and the JSON of the response.
    async fn call(&self, server: usize, method: &'static str, path: &str, body: &Value) -> (u16, Value) {
        let (mut http, path, body) = (self.http(server), path.to_owned(), body.to_string());
        let request = tokio::task::spawn_blocking(move || http.call(method, &path, &body).expect("a response"));
        let (status, text) = request.await.expect("the request does not panic");
        (status, serde_json::from_slice(&text).unwrap_or_default())
    }

    /// Dispatches at a server and returns the result. Panics if the server does not accept it.
    async fn dispatch(&self, server: usize, dispatch: &Value) -> Value {
        let (status, response) = self.call(server, "POST", "/v1/dispatch", dispatch).await;
        assert_eq!(status, 200, "{response}\n{}", self.homes[server].log());
        response
    }

    /// Waits until a condition holds for the response to `GET path` at a server.
    async fn wait_until(&self, condition: &str, server: usize, path: &str, holds: impl Fn(&Value) -> bool) {
        wait_until(condition, async || {
            let (_, response) = self.call(server, "GET", path, &Value::Null).await;
            holds(&response)
        })
        .await;
    }
}

/// Waits until a condition holds, polled every 20 ms. Panics after [`WAIT_TIMEOUT`].
async fn wait_until(condition: &str, mut holds: impl AsyncFnMut() -> bool) {
    let waited = tokio::time::timeout(WAIT_TIMEOUT, async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    assert!(waited.await.is_ok(), "expected within {WAIT_TIMEOUT:?}: {condition}");
}

/// Returns a dispatch of a message with the data `n`.
fn message(n: u64, to: &[&str]) -> Value {
    json!({ "message": { "op": 0, "d": n, "t": "N" }, "recipients": to })
}

/// Returns a dispatch of an unsynced message with the data `n`.
fn unsynced(n: u64, to: &[&str], excluding: &[&str]) -> Value {
    json!({ "message": { "op": 0, "d": n, "t": "N", "o": { "sync": false } }, "recipients": to, "excluding": excluding })
}

/// Returns the data of a client's next message. Acknowledges every op 1 before it.
async fn next_data(socket: &mut Socket) -> Value {
    tokio::time::timeout(WAIT_TIMEOUT, socket.next()).await.expect("a message in time").expect("a message").d
}

/// Dispatches numbered messages until the server accepts one. Returns the number of rejected dispatches.
///
/// Each rejected dispatch must be answered with 503 `unreachable`.
async fn dispatch_until_accepted(group: &ServerGroup, server: usize, n: &mut u64, to: &[&str]) -> u64 {
    let mut rejected = 0;
    wait_until("the server accepts a dispatch", async || {
        *n += 1;
        let (status, response) = group.call(server, "POST", "/v1/dispatch", &message(*n, to)).await;
        if status != 200 {
            rejected += 1;
            assert_eq!((status, &response["error"]["code"]), (503, &json!("unreachable")), "{response}");
        }
        status == 200
    })
    .await;
    rejected
}

/// Returns the numbers that a client receives, up to `last`. Acknowledges every op 1 on the way.
async fn receive_through(socket: &mut Socket, last: u64) -> Vec<u64> {
    let mut received = Vec::new();
    while received.last() != Some(&last) {
        let event = tokio::time::timeout(WAIT_TIMEOUT, socket.event()).await.expect("an event in time");
        match event.expect("an open connection") {
            Event::Message(message) => received.push(message.d.as_u64().expect("a number")),
            Event::AckRequest => socket.acknowledge().await.expect("an open connection"),
            _ => {}
        }
    }
    received
}

/// Reads until the connection closes, and returns the reason.
async fn close_reason(socket: &mut Socket) -> String {
    let closed = async {
        loop {
            match socket.event().await {
                Ok(Event::AckRequest) => socket.acknowledge().await.unwrap_or_default(),
                Ok(_) => {}
                Err(reason) => return reason,
            }
        }
    };
    tokio::time::timeout(WAIT_TIMEOUT, closed).await.expect("the server closes the connection in time")
}
