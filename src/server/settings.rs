//! Opens the configured store, and converts the configuration.

use std::{sync::Arc, time::Duration};

use crate::{
    cluster::Cluster,
    config::{self, Config},
    embedded::{
        Tuning,
        tables::{DiskOptions, open},
    },
    hub::{MailboxBounds, PortalSettings, Settings, Store, StoreError, SyncSettings, portals},
    store::{Durability, Limits, Overflow},
    webhook,
};

/// An opened store, and the connection to other servers if they share it.
pub(super) type Opened = (Arc<dyn Store>, Option<Arc<dyn Cluster>>);

/// Opens the configured store: embedded, or on Redis with other servers.
///
/// It replays a write-ahead log or waits for a network, so it must not run on the event loop.
pub(super) async fn open_store(config: &Config) -> Result<Opened, StoreError> {
    if let Some(redis) = config.redis.clone() {
        return open_redis(config, redis).await;
    }
    let options = DiskOptions {
        namespace: config.namespace.clone(),
        durability: durability(config.store.durability),
        cache_bytes: config.store.cache_bytes,
        queue: config.limits.queue,
        limits: limits(config),
        tuning: tuning(config),
        outbox: config.portal.webhook.as_ref().map(webhook::outbox_options),
        ..DiskOptions::new(&config.store.path)
    };
    let store = tokio::task::spawn_blocking(move || open(options)).await;
    let store = store.map_err(|error| StoreError::Damaged(format!("opening did not end: {error}").into()))??;
    Ok((store, None))
}

/// Returns the bounds of the write-ahead log. It is flushed from half of each bound on.
fn tuning(config: &Config) -> Tuning {
    let half = |bytes: u64| usize::try_from(bytes / 2).unwrap_or(usize::MAX);
    Tuning {
        wal_bytes_max: half(config.store.wal_bytes),
        memory_bytes_max: half(config.store.memory_bytes),
        ..Tuning::default()
    }
}

/// Connects to Redis and joins the other servers.
#[cfg(feature = "redis")]
pub(super) async fn open_redis(config: &Config, redis: config::Redis) -> Result<Opened, StoreError> {
    use crate::redis::{
        LinkOptions, RedisBackplane, ServerLink,
        store::{RedisOptions, open},
    };
    let (namespace, addresses) = (config.namespace.clone(), redis.addresses());
    let joining = move || ServerLink::open(&redis, namespace.as_deref(), LinkOptions::default());
    let link = tokio::task::spawn_blocking(joining).await;
    let link = link.map_err(|error| StoreError::Damaged(format!("opening did not end: {error}").into()))?;
    let link =
        link.map_err(|error| StoreError::Unreachable(format!("the key `redis`, {addresses}: {error}").into()))?;
    let options = RedisOptions {
        namespace: config.namespace.clone(),
        limits: limits(config),
        queue: config.limits.queue,
        ..RedisOptions::default()
    };
    let servers = RedisBackplane::new(link.clone());
    Ok((open(link, options), Some(servers)))
}

#[cfg(not(feature = "redis"))]
pub(super) fn open_redis(_: &Config, _: config::Redis) -> std::future::Ready<Result<Opened, StoreError>> {
    let why = "this build does not support Redis; build it with `--features redis`, or remove `redis`";
    std::future::ready(Err(StoreError::Incompatible(why.to_owned())))
}

pub(super) fn durability(durability: config::Durability) -> Durability {
    match durability {
        config::Durability::Always => Durability::Always,
        config::Durability::Interval(interval) => Durability::Interval(interval),
        config::Durability::Never => Durability::Never,
    }
}

pub(super) fn limits(config: &Config) -> Limits {
    let (sync, store) = (&config.sync, &config.store);
    let unless_zero = |duration: Duration| (!duration.is_zero()).then_some(duration);
    Limits {
        messages: sync.max_messages,
        bytes: sync.max_bytes,
        age: unless_zero(sync.max_age),
        overflow: match sync.overflow {
            config::Overflow::Reject => Overflow::Reject,
            config::Overflow::DropOldest => Overflow::DropOldest,
        },
        device_age: unless_zero(sync.device_max_age),
        devices: sync.max_devices,
        ids_window: config.api.id_window,
        ids: config.api.ids,
        store_bytes: (store.max_bytes > 0).then_some(store.max_bytes),
        free_bytes: store.min_free,
    }
}

pub(super) fn settings(config: &Config) -> Settings {
    let redelivery_interval = config.sync.redelivery_interval;
    let bounds = portals::Bounds { stall_timeout: config.limits.write_timeout, ..portals::Bounds::default() };
    let portals = PortalSettings { round_robin: config.portal.distribute_load, bounds };
    Settings {
        sync: config.sync.enabled.then_some(SyncSettings { redelivery_interval }),
        authentication_required: config.authentication.required,
        store_connected_users: config.authentication.store_connected_users,
        mailbox: MailboxBounds { messages: config.limits.unsynced_messages, bytes: config.limits.unsynced_bytes },
        portals: config.portal.enabled.then_some(portals),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_configuration_equals_the_store_defaults() {
        assert_eq!(limits(&Config::default()), Limits::default());
    }
}
