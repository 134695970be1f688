//! Configures a server: the keys that the original documents, and further ones.
//!
//! [`Config::validate`] checks a [`Config`] once; later code relies on it. [`load`] builds a [`Config`] from several sources. A
//! later source overrides an earlier one: defaults, `--dev`, file, environment, command line. Files in reading order:
//!
//! - `defaults`: default values
//! - `schema`: table of all keys, with environment variable, type and bounds
//! - `file`, `env`: read one source into values under dotted keys
//! - `service_links`: recognizes variables that Kubernetes and Docker inject
//! - `settings`: layers of values, each with its origin
//! - `decode`: converts settings to a [`Config`]
//! - `endpoints`: settings of the webhooks and of JWKS · `tls`: settings of TLS
//! - `proxies`: networks of trusted proxies
//! - `redis`: parses the key `redis`
//! - `dev_key`: keeps the API key of `--dev` over restarts
//! - `validate`: checks a complete [`Config`]
//! - `changes`: compares configurations, for a reload
//! - `render`: converts a [`Config`] back to JSON, with secrets masked
//!
//! In files and variables a duration is a whole number of milliseconds; in a [`Config`] it is a [`Duration`].

mod changes;
mod decode;
mod defaults;
mod dev_key;
mod endpoints;
mod env;
mod error;
mod file;
mod load;
mod proxies;
mod redis;
mod render;
mod schema;
mod service_links;
mod settings;
#[cfg(test)]
mod tests;
mod tls;
mod validate;

use std::{path::PathBuf, time::Duration};

pub use self::redis::{Redis, parse as parse_redis};
pub use endpoints::{AuthWebhook, Jwks, Webhook};
pub use error::ConfigError;
pub use load::{Loaded, Sources, keep_dev_key, load};
pub(crate) use proxies::parse_network;
pub use tls::{Certificate, ClientCertificates, RedisProtocolTls, Tls};
pub(crate) use validate::SECRET_BYTES_MIN;

/// Settings of a server. A reload changes some of them while it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Config {
    /// Address to listen on. Default `0.0.0.0`.
    pub host: String,
    /// Port for WebSocket and HTTP; 0 lets the system choose. Default 4000.
    pub port: u16,
    /// Path of the WebSocket. Default `/`.
    pub path: String,
    /// Namespace, which separates applications. A store belongs to one namespace.
    pub namespace: Option<String>,
    /// `redis`: the Redis that several servers share; needs a build with `--features redis`. `None` (default): the
    /// embedded store.
    pub redis: Option<Redis>,
    /// `client.*`
    pub client: Client,
    /// `options.storeMessages`: requests that clients store the messages that they send and receive. Default false.
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
    /// `gracefullyExit`: on SIGTERM or SIGINT, finish requests and close clients first. Default true.
    pub gracefully_exit: bool,
    /// `store.*`
    pub store: Store,
    /// `api.*`
    pub api: Api,
    /// `origins`: origins of the web pages that may connect, compared exactly with the `Origin` header.
    ///
    /// `None` (default): any page, but only pages of this machine with `dev` or `authentication.insecure`.
    pub origins: Option<Vec<String>>,
    /// `trustedProxies`: networks (`10.0.0.0/8`) and addresses of proxies. Their headers `Forwarded` and
    /// `X-Forwarded-For` tell the client's address. Default none.
    pub trusted_proxies: Vec<String>,
    /// `proxyProtocol`: connections of `trusted_proxies` begin with a header of the PROXY protocol, version 1 or 2. Default
    /// false.
    pub proxy_protocol: bool,
    /// `tls.*`: WebSocket and HTTP over TLS. `None` (default): plain TCP.
    pub tls: Option<Tls>,
    /// `limits.*`
    pub limits: Limits,
    /// `redisProtocol.*`
    pub redis_protocol: RedisProtocol,
    /// `admin.*`
    pub admin: Admin,
    /// `log.*`
    pub log: Log,
    /// Set by `--dev`, not by a key: only web pages of this machine may connect, unless `origins` is set. Default
    /// false.
    pub dev: bool,
}

impl Config {
    /// Returns whether only web pages of this machine may connect.
    ///
    /// Without this rule, any page in a developer's browser could read every user's messages from an insecure server.
    pub(crate) fn is_local_only(&self) -> bool {
        let Authentication { jwt, webhook, insecure, insecure_public, .. } = &self.authentication;
        let accepts_any_token = *insecure && !insecure_public && jwt.is_none() && webhook.is_none();
        self.origins.is_none() && (self.dev || accepts_any_token)
    }
}

/// `client.*`
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Client {
    /// Close clients of another version with 1002. Default false.
    pub enforce_equal_versions: bool,
    /// Version that clients must announce. Default 1.5.3, which `mesa-js-client` 1.4.8 announces.
    pub version: String,
}

/// `sync.*`
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Sync {
    /// Store messages in users' logs, for delivery to offline users. Default false.
    pub enabled: bool,
    /// Delay before each message of the backlog. Default 0.
    pub redelivery_interval: Duration,
    /// When a message counts as acknowledged.
    pub confirmation: Confirmation,
    /// Messages older than this expire. Zero (default): never.
    pub max_age: Duration,
    /// Quota: pending messages of one user. Beyond it `overflow` applies. Default 100 000.
    pub max_messages: u64,
    /// Quota: bytes of one user's pending messages. Beyond it `overflow` applies. Default 64 MiB.
    pub max_bytes: u64,
    /// Handling of a message beyond a quota.
    pub overflow: Overflow,
    /// A device offline for this long is removed, unless it is its user's only one. Zero: never. Default 30 days.
    pub device_max_age: Duration,
    /// Devices of one user. One more replaces the device that was offline for longest. Default 16.
    pub max_devices: usize,
}

/// Handling of a message beyond a user's quota.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Overflow {
    /// It is rejected for this user. The result of the dispatch names the user and the reason.
    #[default]
    Reject,
    /// The oldest pending messages are evicted and counted. Clients that resume receive a gap.
    DropOldest,
}

/// When a message counts as acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Confirmation {
    /// When the client has answered (op 11, or op 3).
    #[default]
    Receipt,
    /// When it is written to the socket, as in the original. A broken connection loses messages in flight.
    Write,
}

/// `portal.*`
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Portal {
    /// Send client events to backends. Default false.
    pub enabled: bool,
    /// Send events to the portals in turn; `false`: to a random one. Default true.
    pub distribute_load: bool,
    /// `portal.webhook.*`; `None` with neither a URL nor a secret.
    pub webhook: Option<Webhook>,
}

/// `heartbeat.*`
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Heartbeat {
    /// Send op 1 to clients, and close those that do not answer. Default false.
    pub enabled: bool,
    /// Interval between heartbeats. Default 10 s.
    pub interval: Duration,
    /// Unanswered retries; then the connection closes with 1001. Default 3.
    pub max_attempts: u32,
}

/// `reconnect.*`
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Reconnect {
    /// Announce `interval` to clients, which then reconnect by themselves. Default false.
    pub enabled: bool,
    /// Delay between their attempts. Default 5 s.
    pub interval: Duration,
}

/// `authentication.*`
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Authentication {
    /// Time for a connection to authenticate; then it closes with 1008 (1013 if a check is still running). Default 10 s.
    pub timeout: Duration,
    /// Unauthenticated clients receive no broadcasts. Default false.
    pub required: bool,
    /// Op 22 carries the user object; `false`: `{}`. Default true.
    pub send_user_object: bool,
    /// Close on failure with 1008, or 1013 if the credentials cannot be checked. `false`: the client may retry until the
    /// timeout. Default true.
    pub disconnect_on_fail: bool,
    /// Maintain a list of connected users; sync needs it. Default true.
    pub store_connected_users: bool,
    /// `authentication.insecure`: the token *is* the user id; for development. Default false.
    pub insecure: bool,
    /// `authentication.insecurePublic`: allow `insecure` on any `host`. Default false.
    pub insecure_public: bool,
    /// `authentication.jwt.*`
    pub jwt: Option<Jwt>,
    /// `authentication.webhook.*`: a backend authenticates clients; `None` with neither a URL nor a secret.
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
    /// `authentication.jwt.jwks.*`: public keys that the server fetches from a URL.
    pub jwks: Option<Jwks>,
    /// Accepted algorithms, never chosen by the token. Default HS256 with a secret; required with a key file or JWKS.
    pub algorithms: Vec<String>,
    /// Claim with the user id. Default: `id`, then `sub`.
    pub id_claim: Option<String>,
    /// Claim whose object is merged into the user object sent to the client.
    pub user_claim: Option<String>,
    /// Required `iss`, if any.
    pub issuer: Option<String>,
    /// Required `aud`, if any.
    pub audience: Option<String>,
    /// Allowed clock difference for `exp` and `nbf`. Default 0.
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
    /// Bytes of cache: half for the newest messages, half for pages of the sled trees. Default 64 MiB.
    pub cache_bytes: u64,
    /// Capacity: bytes of pending messages; a dispatch beyond it gets 507. 0 (default): limited by the disk only.
    pub max_bytes: u64,
    /// Bytes that stay free on the disk; a dispatch that would not leave them gets 507. Default 256 MiB.
    pub min_free: u64,
    /// Bound of the write-ahead log in bytes. From half of it on, its oldest messages are moved to the value log; at the
    /// bound, dispatches wait, and get 503 `busy` after 5 s. Default 128 MiB.
    pub wal_bytes: u64,
    /// The same for the memory that messages in the write-ahead log take, without their bodies. Default 128 MiB.
    pub memory_bytes: u64,
}

/// When a dispatch is answered, which decides what a crash may lose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// After the sync. Neither a crash nor a power cut loses it.
    #[default]
    Always,
    /// Before the sync, which follows within this time. A power cut may lose the dispatches of that time, a killed
    /// process none.
    Interval(Duration),
    /// Before the sync, which is left to the operating system.
    Never,
}

/// `api.*`
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Api {
    /// Keys that backends send as `Authorization: Bearer KEY`. Without any, the HTTP API rejects every request.
    pub keys: Vec<String>,
    /// Deduplication window: a retry with the same idempotency id within it gets the first result. Default 10 minutes.
    pub id_window: Duration,
    /// Idempotency ids that are stored; one more removes the oldest before its window ends. Default 1 000 000.
    pub ids: usize,
    /// Origins of the web pages that may call the HTTP API (CORS), compared exactly; `*` alone: every page. Default none.
    pub cors_origins: Vec<String>,
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Api").field("keys", &self.keys.len()).finish_non_exhaustive()
    }
}

/// `redisProtocol.*`: the port of the Redis protocol, for Dispatchers and Portals of the original.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RedisProtocol {
    /// Port; 0 lets the system choose. `None` (default): off.
    pub port: Option<u16>,
    /// Address to listen on; any but a loopback address needs a password. Default `127.0.0.1`.
    pub host: String,
    /// Password that a connection must send (`AUTH`) first. `None` (default): no password.
    pub password: Option<String>,
    /// Certificates of a `rediss://` port. Default: plain TCP.
    pub tls: RedisProtocolTls,
    /// Connections; one more closes at once. Default 1 000.
    pub connections: usize,
    /// Bytes of one command; a larger one closes its connection. Default 1 MiB.
    pub command_bytes: usize,
    /// Bytes queued for one subscriber; one with more is disconnected, as in Redis. Default 8 MiB.
    pub backlog_bytes: usize,
}

impl std::fmt::Debug for RedisProtocol {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisProtocol").field("port", &self.port).field("host", &self.host).finish_non_exhaustive()
    }
}

/// `admin.*`: the admin page, at `/admin`.
#[derive(Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Admin {
    /// Password of the page. `None` (default): there is no page. With `dev` it is then open to this machine.
    pub password: Option<String>,
}

impl std::fmt::Debug for Admin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Admin").field("has_password", &self.password.is_some()).finish()
    }
}

/// `limits.*`: bounds, each with its consequence.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// WebSocket connections; one more gets 503. 16 further connections are for HTTP. A lower limit of open files
    /// applies instead. Default 100 000.
    pub connections: usize,
    /// Connections of one address; one more closes at once. 0 (default): no limit.
    pub connections_per_address: usize,
    /// Time for a request head to arrive; then the connection closes. Default 10 s.
    pub header_timeout: Duration,
    /// Idle time of a keep-alive connection; then it closes. Default 75 s, above the usual 60 s of load balancers.
    pub idle_timeout: Duration,
    /// Bytes of one frame from a client; a larger one closes the connection with 1009. Default 64 KiB.
    pub frame_bytes: usize,
    /// Frames per second from one client, averaged over 10 s; more closes the connection with 1008. Default 100.
    ///
    /// Fragments count. Answers to the server (op 11, pongs, one op 3 per message) do not.
    pub frames_per_second: u32,
    /// Bytes of one HTTP body, or of one line of a stream; a larger one gets 413. Default 1 MiB.
    pub request_bytes: usize,
    /// Recipients of one dispatch; more gets 422. Default 10 000.
    pub recipients: usize,
    /// Operations queued for the commit thread; a batch of an NDJSON stream counts as one. Further dispatches wait
    /// (backpressure). Default 10 000.
    pub queue: usize,
    /// Unsynced messages queued for one connection; one more drops the oldest, which is counted. Default 1 024.
    pub unsynced_messages: usize,
    /// Bytes of those messages; beyond that the oldest are dropped and counted. Default 512 KiB.
    pub unsynced_bytes: usize,
    /// Bytes written to a connection and not yet received by the client. Until it receives some, the server reads
    /// nothing more from its log. Default 64 KiB.
    pub unsent_bytes: usize,
    /// A connection (WebSocket or HTTP) that receives nothing for this long closes; its entries stay pending. Default
    /// 30 s.
    pub write_timeout: Duration,
}

/// `log.*`
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Log {
    /// Filter, such as `info` or `mesa=debug`. Default `info`.
    pub level: String,
    /// Format of the lines. Default text.
    pub format: LogFormat,
}

/// Format of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// Text for people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}
