//! Handles what the subscription delivers: users with new entries, and broadcasts.
//!
//! Nothing durable depends on it. After the connection was lost, listeners get [`Notification::Resync`] and read the logs
//! again.

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

/// How often every session reads its log in a Redis Cluster, whatever was received. The nodes forward what is published to
/// each other, and lose it without notice where their own connections break.
const RESYNC_INTERVAL: Duration = Duration::from_secs(60);

/// Subscribes until the link is dropped.
pub(super) async fn listen(link: Weak<ServerLink>) {
    let Some(link_now) = link.upgrade() else { return };
    let (channels, original) =
        ([link_now.keys.append_channel(), link_now.keys.broadcast_channel()], link_now.keys.original(Name::Ws));
    let (node, append_channel) = (link_now.server_name.clone(), link_now.keys.append_channel());
    drop(link_now);
    // Subscribes with a pattern that has no wildcards. So NUMSUB of that channel counts only servers of the original.
    let until = Mutex::new(Instant::now() + RESYNC_INTERVAL);
    subscriber::subscribe(link, &channels, &original, Loopback::Own, |link, event| {
        let own = match event {
            SubscriptionEvent::Started => {
                link.set_subscribed(true);
                link.notify(&Notification::Resync);
                return true;
            }
            SubscriptionEvent::Message(channel, payload) if channel == append_channel => {
                match users_with_entries(payload, &node) {
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
        let mut until = until.lock();
        if own && link.client.is_redis_cluster() && Instant::now() > *until {
            *until = Instant::now() + RESYNC_INTERVAL;
            link.notify(&Notification::Resync);
        }
        own
    })
    .await;
}

/// Parses the users with new entries. `None` if the message is from this server or malformed.
fn users_with_entries(payload: &[u8], node: &str) -> Option<Vec<UserId>> {
    let mut parts = std::str::from_utf8(payload).ok()?.split('\0');
    (parts.next()? != node).then(|| parts.filter_map(|user| UserId::new(user).ok()).collect())
}

/// Tells whether this is the name of a server that is not known yet. Then the lease is renewed at once to list the live
/// servers, because steps on logs wait for the reports of known ones.
fn is_unknown_server(link: &ServerLink, payload: &[u8]) -> bool {
    !payload.contains(&0) && !link.membership().servers.split(',').any(|node| node.as_bytes() == payload)
}
