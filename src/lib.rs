//! A message server that delivers also to offline users.
//!
//! A backend dispatches a message to user ids. With `sync.enabled`, online users receive it at once, and offline users
//! receive it in order when they reconnect, also after a power cut. The server is one binary with an embedded store.
//! WebSocket and HTTP share one port. The Redis protocol, for Dispatchers and Portals of the original Mesa
//! (`@cryb/mesa`), has a port of its own, which is off by default. Clients of the original connect unchanged.
//!
//! The crate is a program (`mesa serve`, see the README) and a library: a server that runs inside your program,
//! clients, and backends.
//!
//! ```no_run
//! # #[tokio::main] async fn main() -> Result<(), mesa::server::ServerError> {
//! use mesa::server::Server;
//!
//! let server = Server::builder()
//!     .configure(|config| config.sync.enabled = true)
//!     .on_message(|client, message| async move { println!("{:?} says {}", client.user(), message.kind()) })
//!     .start()
//!     .await?;
//! server.run(async { _ = tokio::signal::ctrl_c().await }).await
//! # }
//! ```
//!
//! The [`guide`] has a chapter for each task, with examples that run as tests. [`guide::migration`] has a table of the
//! original's names.
//!
//! The public interface has types of other crates: `TcpListener` of tokio, `Value`, `Map` and `RawValue` of
//! `serde_json`, `Request` of http, and `axum::Router`, which [`server::Builder::attach`] returns. [`client::Client`]
//! and [`portal::Portal`] implement the trait `Stream` of the futures crates. All futures need a tokio runtime.
//!
//! # Modules
//!
//! In reading order. The first lines of each module describe its files.
//!
//! | module | contents |
//! |---|---|
//! | [`message`] | [`Message`](message::Message), [`UserId`](message::UserId), [`Payload`](message::Payload), [`Seq`](message::Seq) |
//! | [`protocol`] | WebSocket frames ([`ClientFrame`](protocol::decode::ClientFrame)), opcodes, close codes |
//! | [`config`] | the configuration, from file, environment and command line |
//! | `compat` | keys, channels and JSON of the original Mesa (`@cryb/mesa`) on Redis |
//! | [`http_client`] | outbound HTTP: bounded, signed, not to private addresses |
//! | [`auth`] | authentication of clients, and API keys of backends |
//! | `live` | settings that a reload changes while the server runs |
//! | [`metrics`], [`health`], [`logging`], [`telemetry`], [`util`] | counters, readiness, log lines, traces, helpers |
//! | [`failpoints`] | seeded bugs that the fault tests must find |
//! | [`store`] | contract of a store of user logs |
//! | [`embedded`] | the embedded store: sled tables, a write-ahead log, a value log |
//! | [`cluster`] | contract between servers |
//! | `redis` | the store and the cluster on a shared Redis (feature `redis`) |
//! | [`middleware`] | callbacks that observe or reject messages |
//! | [`hub`] | dispatch, sessions as cursors on logs, portals |
//! | [`http`] | the HTTP API, as an [`axum`] router |
//! | [`resp`] | the Redis protocol, for Dispatchers and Portals of the original |
//! | [`webhook`] | delivery of events from the outbox to a backend |
//! | [`server`] | listener, connections, heartbeat, shutdown; constructs the other modules |
//! | [`client`] | the Rust client |
//! | [`dispatcher`], [`portal`] | a backend's side of the HTTP API |
//!
//! Path of a message:
//!
//! 1. [`http`] accepts it and encodes its [`Payload`](message::Payload), the JSON text that every recipient receives.
//! 2. [`Hub::dispatch`](hub::Hub::dispatch) passes it to [`Store::append`](store::Store::append).
//! 3. The commit thread assigns a sequence in each recipient's log. It writes one record for all queued appends (group
//!    commit), syncs it, answers, and wakes the recipients' sessions.
//! 4. [`Session::poll_batch`](hub::Session::poll_batch) reads from its cursor on.
//! 5. The connection's task writes all ready frames in one call, followed by op 1.
//! 6. The client's answer (op 11) moves the cursor.
//!
//! # Design
//!
//! *The log is the queue.* Every synced message is appended to its recipients' logs, and delivered from there. A
//! session is a cursor on its user's log. An offline user has no session, a slow client's cursor moves late, and a
//! half-open connection's cursor does not move. Online users have no second path, and no client has a queue that could
//! grow.
//!
//! # Invariants
//!
//! - No socket sees a synced message before the store has it as durably as configured.
//! - A user's sequences are never reused. They rise by one, except over a reported gap: after a lossy restart, a restore, or
//!   a failover of a Redis. (With a Redis that is emptied while no server runs, they start again.)
//! - A cursor only moves forward.
//! - The hub never waits for a socket, and every queue has a named bound.
//! - The hub knows no wire format, the store no session, and `http` decides nothing.
//! - Wrong input from a peer is an error. Our own state is asserted.
//! - The session compares the owner of each entry with its own user before the server writes the entry to the socket.
//! - Imports point one way, without circles between files, and each foreign crate has one home: sled in
//!   [`embedded::tables`] and [`embedded::offline`], bincode in [`embedded`], redis in `redis`, tungstenite in [`server`] and
//!   [`client`], axum and hyper in [`http`] and [`server`], reqwest in [`http_client`], [`dispatcher`] and [`portal`], rustls in
//!   [`client`], clap in the binary. `tests/architecture` checks this.
//!
//! # What a crash may lose
//!
//! With [`Durability::Always`](config::Durability::Always) no answered dispatch is lost. Acknowledgements and webhook
//! events are written with the next commit, at most about 20 ms later. If the process dies before, the acknowledged
//! messages are delivered again, and those events are lost.

pub mod auth;
pub mod client;
pub mod cluster;
mod compat;
pub mod config;
pub mod dispatcher;
#[doc(hidden)]
pub mod embedded;
mod failpoints;
pub mod guide;
mod health;
mod http;
mod http_client;
mod hub;
mod live;
#[doc(hidden)]
pub mod logging;
pub mod message;
mod metrics;
pub mod middleware;
pub mod portal;
mod protocol;
#[cfg(feature = "redis")]
#[doc(hidden)]
pub mod redis;
mod resp;
pub mod server;
#[doc(hidden)]
pub mod store;
#[doc(hidden)]
pub mod telemetry;
#[doc(hidden)]
pub mod util;
mod webhook;
