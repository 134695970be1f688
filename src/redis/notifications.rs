//! Handles messages of the subscription: users with new entries, and broadcasts.
//!
//! No durable data depends on it. After the subscription was lost, listeners get [`Notification::Resync`] and read the
//! logs again.

use std::{
    sync::Weak,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use super::{
    ServerLink,
    link::Notification,
    membership::EPOCH_BEGINS,
    subscriber::{self, Loopback, SubscriptionEvent},
};
use crate::{compat::keyspace::Name, message::UserId};

/// Interval at which every session reads its log in a Redis Cluster, whatever was received. The nodes forward published
/// messages to each other, and lose them silently when their own connections break.
const RESYNC_INTERVAL: Duration = Duration::from_secs(60);

/// Subscribes, and notifies listeners until the link is dropped.
pub(super) async fn listen(link: Weak<ServerLink>) {
    let Some(link_now) = link.upgrade() else { return };
    let (channels, original) =
        ([link_now.keys.append_channel(), link_now.keys.broadcast_channel()], link_now.keys.original(Name::Ws));
    let (own_name, append_channel) = (link_now.server_name.clone(), link_now.keys.append_channel());
    drop(link_now);
    let next_resync = Mutex::new(Instant::now() + RESYNC_INTERVAL);
    // The original's channel is subscribed as a pattern without wildcards. So its NUMSUB counts only servers of the
    // original.
    subscriber::subscribe(link, &channels, &original, Loopback::Own, |link, event| {
        let is_own = match event {
            SubscriptionEvent::Started => {
                link.set_subscribed(true);
                link.notify(&Notification::Resync);
                return true;
            }
            SubscriptionEvent::Message(channel, payload) if channel == append_channel => {
                match users_with_entries(payload, &own_name) {
                    Some(users) => {
                        if payload.ends_with(EPOCH_BEGINS.as_bytes()) || is_unknown_server(link, payload) {
                            link.renew_now.notify_one();
                        }
                        link.notify(&Notification::LogsAppended(users));
                        false
                    }
                    None => true,
                }
            }
            SubscriptionEvent::Message(channel, payload) => {
                link.notify(&Notification::ChannelMessage { channel: channel.to_owned(), payload: payload.to_vec() });
                false
            }
            SubscriptionEvent::Lost => {
                link.set_subscribed(false);
                false
            }
        };
        let mut next_resync = next_resync.lock();
        if is_own && link.client.is_redis_cluster() && Instant::now() > *next_resync {
            *next_resync = Instant::now() + RESYNC_INTERVAL;
            link.notify(&Notification::Resync);
        }
        is_own
    })
    .await;
}

/// Parses the users with new entries. `None` if the message is from this server or malformed.
fn users_with_entries(payload: &[u8], own_name: &str) -> Option<Vec<UserId>> {
    let mut parts = std::str::from_utf8(payload).ok()?.split('\0');
    (parts.next()? != own_name).then(|| parts.filter_map(|user| UserId::new(user).ok()).collect())
}

/// Tells whether this is the name of an unknown server. Then the lease is renewed at once, which lists the live
/// servers: steps on logs must wait for its reports.
fn is_unknown_server(link: &ServerLink, payload: &[u8]) -> bool {
    !payload.contains(&0) && !link.membership().servers.split(',').any(|server| server.as_bytes() == payload)
}
