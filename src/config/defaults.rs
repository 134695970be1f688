//! Defines the default values of the configuration.

use std::time::Duration;

use super::{
    Admin, Api, Authentication, Client, Config, Confirmation, Durability, Heartbeat, Limits, Log, LogFormat, Overflow,
    Portal, Reconnect, RedisProtocol, RedisProtocolTls, Store, Sync,
};

impl Default for Config {
    fn default() -> Self {
        Self {
            host: "0.0.0.0".into(),
            port: 4000,
            path: "/".into(),
            namespace: None,
            redis: None,
            client: Client { enforce_equal_versions: false, version: "1.5.3".into() },
            store_messages: false,
            sync: Sync {
                enabled: false,
                redelivery_interval: Duration::ZERO,
                confirmation: Confirmation::Receipt,
                max_age: Duration::ZERO,
                max_messages: 100_000,
                max_bytes: 64 << 20,
                overflow: Overflow::Reject,
                device_max_age: Duration::from_secs(30 * 24 * 60 * 60),
                max_devices: 16,
            },
            portal: Portal { enabled: false, distribute_load: true, webhook: None },
            heartbeat: Heartbeat { enabled: false, interval: Duration::from_secs(10), max_attempts: 3 },
            reconnect: Reconnect { enabled: false, interval: Duration::from_secs(5) },
            authentication: Authentication {
                timeout: Duration::from_secs(10),
                required: false,
                send_user_object: true,
                disconnect_on_fail: true,
                store_connected_users: true,
                insecure: false,
                insecure_public: false,
                jwt: None,
                webhook: None,
            },
            gracefully_exit: true,
            store: Store {
                path: "data/store".into(),
                durability: Durability::Always,
                cache_bytes: 64 << 20,
                max_bytes: 0,
                wal_bytes: 128 << 20,
                memory_bytes: 128 << 20,
                min_free: 256 << 20,
            },
            api: Api::default(),
            origins: None,
            trusted_proxies: Vec::new(),
            proxy_protocol: false,
            tls: None,
            limits: Limits {
                connections: 100_000,
                connections_per_address: 0,
                header_timeout: Duration::from_secs(10),
                idle_timeout: Duration::from_secs(75),
                frame_bytes: 64 << 10,
                frames_per_second: 100,
                request_bytes: 1 << 20,
                recipients: 10_000,
                queue: 10_000,
                unsynced_messages: 1024,
                unsynced_bytes: 512 << 10,
                unsent_bytes: 64 << 10,
                write_timeout: Duration::from_secs(30),
            },
            redis_protocol: RedisProtocol::default(),
            admin: Admin::default(),
            log: Log { level: "info".into(), format: LogFormat::Text },
            dev: false,
        }
    }
}

impl Default for RedisProtocol {
    fn default() -> Self {
        Self {
            port: None,
            host: "127.0.0.1".into(),
            password: None,
            tls: RedisProtocolTls::Off,
            connections: 1000,
            command_bytes: 1 << 20,
            backlog_bytes: 8 << 20,
        }
    }
}

impl Default for Api {
    fn default() -> Self {
        Self { keys: Vec::new(), id_window: Duration::from_secs(10 * 60), ids: 1_000_000, cors_origins: Vec::new() }
    }
}
