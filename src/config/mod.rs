//! What the server is told: the documented keys under their documented names, and ours beside them.
//!
//! A [`Config`] is built once, checked by [`Config::validate`], and trusted from then on. [`load`] builds it from what
//! was written, each source over the one before: defaults, file, environment, command line. The steps, a file each:
//!
//! - `schema`: the table of every key, with its environment variable, its form and its bounds
//! - `file`, `env`: what one source says, as values under dotted keys
//! - `service_links`: variables that Kubernetes and Docker inject, which are no settings
//! - `settings`: one source over another, each value with where it came from
//! - `decode`: values into the types below
//! - `endpoints`: of those, whom the server asks and tells
//! - `validate`: what must hold between them
//! - `render`: the way back, for people to look at
//!
//! Durations are whole numbers of milliseconds wherever they are written, and [`Duration`]s in here.

mod decode;
mod defaults;
mod endpoints;
mod env;
mod error;
mod file;
mod load;
mod redis;
mod render;
mod schema;
mod service_links;
mod settings;
#[cfg(test)]
mod tests;
mod validate;

use std::{path::PathBuf, time::Duration};

pub use self::redis::{Redis, parse as parse_redis};
pub use endpoints::{AuthWebhook, Jwks, Webhook};
pub use error::ConfigError;
pub use load::{Loaded, Sources, load};
pub(crate) use validate::SECRET_BYTES_MIN;

/// Everything a server needs to know before it starts.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Config {
    /// Address to listen on. `0.0.0.0` unless told otherwise.
    pub host: String,
    /// Port for WebSocket and HTTP. 0 lets the system choose. Default 4000.
    pub port: u16,
    /// Path at which `WebSockets` are accepted. Default `/`.
    pub path: String,
    /// Suffix that keeps several applications apart; part of what a store belongs to.
    pub namespace: Option<String>,
    /// `redis`: the Redis that several servers share. Only in a build with `--features redis`; `None` (default): the
    /// embedded store.
    pub redis: Option<Redis>,
    /// `client.*`
    pub client: Client,
    /// `options.storeMessages`: announces `store_messages`, upon which clients keep what they send and receive.
    pub store_messages: bool,
    /// `sync.*`
    pub sync: Sync,
    /// `portal.*`
    pub portal: Portal,
    /// `heartbeat.*`
    pub heartbeat: Heartbeat,
    /// `reconnect.*`
    pub reconnect: Reconnect,
    /// `authentication.*`
    pub authentication: Authentication,
    /// `gracefullyExit`: on SIGTERM or SIGINT finish what was begun. Default true.
    pub gracefully_exit: bool,
    /// `store.*`
    pub store: Store,
    /// `api.*`
    pub api: Api,
    /// `origins`: which web pages may connect; `None` = any, and those of this machine where a token is believed (`dev`,
    /// `authentication.insecure`). Compared with the `Origin` header exactly.
    pub origins: Option<Vec<String>>,
    /// `limits.*`
    pub limits: Limits,
    /// `redisProtocol.*`
    pub redis_protocol: RedisProtocol,
    /// `log.*`
    pub log: Log,
    /// Set by `--dev`, not by a key: unless `origins` names others, only web pages of this machine may connect. Default
    /// false.
    pub dev: bool,
}

impl Config {
    /// Whether only web pages of this machine may connect: where every token is believed, any page that a developer opens
    /// could read the messages of every user.
    pub(crate) fn is_local_only(&self) -> bool {
        let Authentication { jwt, webhook, insecure, insecure_public, .. } = &self.authentication;
        // `insecurePublic` says that everyone may.
        let is_believed = *insecure && !insecure_public && jwt.is_none() && webhook.is_none();
        self.origins.is_none() && (self.dev || is_believed)
    }
}

/// `client.*`
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Client {
    /// Close clients of another version with 1002. Default false.
    pub enforce_equal_versions: bool,
    /// The version they must be of. Default 1.5.3, which is what `mesa-js-client` 1.4.8 announces.
    pub version: String,
}

/// `sync.*`
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Sync {
    /// Keep messages for users who are away. Default false.
    pub enabled: bool,
    /// Pause before each message that is redelivered after a connection. Default 0.
    pub redelivery_interval: Duration,
    /// What counts as received.
    pub confirmation: Confirmation,
    /// Messages older than this are not shown to anybody any more. Zero (default): messages do not age.
    pub max_age: Duration,
    /// Messages that wait for one user; what happens to one more, `overflow` says. Default 100 000.
    pub max_messages: u64,
    /// Bytes of those messages; likewise. Default 64 MiB.
    pub max_bytes: u64,
    /// What happens to a message for a user for whom as much waits as may.
    pub overflow: Overflow,
    /// A device that was not here for this long is forgotten, unless it is all its user has. Zero: never. Default 30 days.
    pub device_max_age: Duration,
    /// Devices remembered for one user; with one more, the one that was away longest is forgotten. Default 16.
    pub max_devices: usize,
}

/// What happens to a message for a user for whom as much waits as may.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Overflow {
    /// It is not taken for this user, and the answer to the dispatch says so.
    #[default]
    Reject,
    /// The oldest go for it: counted, and told to clients that resume.
    DropOldest,
}

/// What counts as received.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Confirmation {
    /// The client has answered for it.
    #[default]
    Receipt,
    /// It was written to the socket: what stock does. Loses what was under way when a connection breaks.
    Write,
}

/// `portal.*`
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Portal {
    /// Tell backends what happens to clients and what they say. Default false.
    pub enabled: bool,
    /// To each portal in turn, rather than at random. Default true.
    pub distribute_load: bool,
    /// `portal.webhook.*`: tell a backend what happens; `None` without a URL.
    pub webhook: Option<Webhook>,
}

/// `heartbeat.*`
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Heartbeat {
    /// Ask silent clients whether they are there. Default false.
    pub enabled: bool,
    /// How often. Default 10 s.
    pub interval: Duration,
    /// Unanswered retries before the connection is closed. Default 3.
    pub max_attempts: u32,
}

/// `reconnect.*`
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Reconnect {
    /// Tell clients to come back by themselves. Default false.
    pub enabled: bool,
    /// How often they try. Default 5 s.
    pub interval: Duration,
}

/// `authentication.*`
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Authentication {
    /// A connection that has not authenticated by then is closed with 1008. Default 10 s.
    pub timeout: Duration,
    /// Unauthenticated clients get no `*` messages. Default false.
    pub required: bool,
    /// Answer with the user object rather than `{}`. Default true.
    pub send_user_object: bool,
    /// Close with 1008 on failure; otherwise the client may try again until the timeout. Default true.
    pub disconnect_on_fail: bool,
    /// Keep who is connected; needed by sync. Default true.
    pub store_connected_users: bool,
    /// `authentication.insecure`: the token *is* the user id. For development.
    pub insecure: bool,
    /// `authentication.insecurePublic`: yes, even on an address others can reach.
    pub insecure_public: bool,
    /// `authentication.jwt.*`
    pub jwt: Option<Jwt>,
    /// `authentication.webhook.*`: ask a backend; `None` without a URL.
    pub webhook: Option<AuthWebhook>,
}

/// `authentication.jwt.*`
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Jwt {
    /// Shared secret, for HS256, HS384 and HS512.
    pub secret: Option<String>,
    /// PEM file with a public key, for `RS*`, `PS*`, `ES*` and `EdDSA`.
    pub key_file: Option<PathBuf>,
    /// `authentication.jwt.jwks.*`: public keys fetched from where they are published.
    pub jwks: Option<Jwks>,
    /// Which algorithms are accepted. Never taken from the token. Default HS256 with a secret; must be named with a key.
    pub algorithms: Vec<String>,
    /// Claim that names the user. Default: `id`, then `sub`.
    pub id_claim: Option<String>,
    /// Claim whose object is merged into the user object sent to the client.
    pub user_claim: Option<String>,
    /// Required `iss`, if any.
    pub issuer: Option<String>,
    /// Required `aud`, if any.
    pub audience: Option<String>,
    /// Allowed difference of clocks for `exp` and `nbf`. Default 0.
    pub leeway: Duration,
}

impl std::fmt::Debug for Jwt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Jwt")
            .field("key_file", &self.key_file)
            .field("algorithms", &self.algorithms)
            .finish_non_exhaustive()
    }
}

/// `store.*`
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Store {
    /// Directory of the embedded store. Default `data/store`.
    pub path: PathBuf,
    /// When a dispatch is answered.
    pub durability: Durability,
    /// Memory for what is read again and again, in bytes: half of it for the newest messages, half for pages of the tables.
    /// Default 64 MiB.
    pub cache_bytes: u64,
    /// Bytes of messages that wait in all; a dispatch beyond that gets 507. 0 (default): as many as the disk has room for.
    pub max_bytes: u64,
    /// Bytes that stay free on the disk: with less, a dispatch gets 507. Default 256 MiB.
    pub min_free: u64,
}

/// When a dispatch is answered, and so what a crash may take back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// Once it would survive a power cut.
    #[default]
    Always,
    /// At once, made durable at least this often: a power cut may take back that much, a killed process nothing.
    Interval(Duration),
    /// At once, made durable when the system sees fit.
    Never,
}

/// `api.*`
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Api {
    /// Keys that backends show as `Authorization: Bearer KEY`. None: the HTTP API refuses everyone.
    pub keys: Vec<String>,
    /// For how long the id of a dispatch is remembered: a repeat within that gets the first answer and is not sent again.
    /// Default 10 minutes.
    pub id_window: Duration,
    /// How many ids are remembered at most; beyond that the oldest is forgotten early. Default 1 000 000.
    pub ids: usize,
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Api").field("keys", &self.keys.len()).finish_non_exhaustive()
    }
}

/// `redisProtocol.*`: the Redis protocol, for the Dispatchers and Portals of the stock package.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RedisProtocol {
    /// Port on which it is spoken; 0 lets the system choose. `None` (default): it is not.
    pub port: Option<u16>,
    /// Address to listen on. Default `127.0.0.1`; any that others can reach needs a password.
    pub host: String,
    /// What a connection has to show (`AUTH`) before it may say anything else; `None`: nothing.
    pub password: Option<String>,
    /// Connections; one more is closed at once. Default 1 000.
    pub connections: usize,
    /// Bytes of one command; a larger one closes its connection. Default 1 MiB.
    pub command_bytes: usize,
    /// Bytes that wait for one subscriber; one that lets more pile up is cut, as in Redis. Default 8 MiB.
    pub backlog_bytes: usize,
}

impl std::fmt::Debug for RedisProtocol {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisProtocol").field("port", &self.port).field("host", &self.host).finish_non_exhaustive()
    }
}

/// `limits.*`: each says what happens there.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// `WebSockets`; one more is answered with 503. A few connections more are for HTTP, and the limit of open files holds
    /// where it is lower. Default 100 000.
    pub connections: usize,
    /// Connections of one address; one more is closed at once. 0: no limit. Default 0.
    pub connections_per_address: usize,
    /// Time for the head of a request to arrive; then the connection is closed. Default 10 s.
    pub header_timeout: Duration,
    /// Time for the next request to begin on a connection that is kept alive; then the connection is closed. Default 75 s,
    /// longer than load balancers keep theirs (60 s).
    pub idle_timeout: Duration,
    /// Bytes of one frame from a client; a larger one closes the connection with 1009. Default 64 KiB.
    pub frame_bytes: usize,
    /// Frames a second from one client, averaged over ten seconds; more closes the connection with 1008. Fragments count;
    /// answers to what the server sent (op 11, pongs, one op 3 for each message) do not. Default 100.
    pub frames_per_second: u32,
    /// Bytes of one HTTP request, or of one line of a stream; a larger one gets 413. Default 1 MiB.
    pub request_bytes: usize,
    /// Recipients of one dispatch; more gets 422. Default 10 000.
    pub recipients: usize,
    /// Messages waiting to be committed; further dispatches wait for room. Default 10 000.
    pub queue: usize,
    /// Unsynced messages waiting for one slow connection; the oldest is dropped, and counted. Default 1 024.
    pub unsynced_messages: usize,
    /// Bytes of those messages; likewise. Default 512 KiB.
    pub unsynced_bytes: usize,
    /// Bytes written to a connection and not yet taken by the client's side; no more is read from the log until they
    /// are. Default 64 KiB.
    pub unsent_bytes: usize,
    /// A connection, WebSocket or HTTP, that takes nothing of what was written for this long is closed; its messages stay. Default 30 s.
    pub write_timeout: Duration,
}

/// `log.*`
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Log {
    /// A filter such as `info` or `mesa=debug`. Default `info`.
    pub level: String,
    /// Lines for people or for machines.
    pub format: LogFormat,
}

/// Form of a log line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}
