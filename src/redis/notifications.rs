//! What other servers say: who has more, and what passes the logs by.
//!
//! Nothing that has to arrive is said here. Where the line is lost, whoever listens is told that he may have missed
//! something ([`Notification::Resync`]), and asks.

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

/// The nodes of a Cluster pass on to each other what is said, and lose it where their own connections break, without a word. So there
/// every session looks into its log this often, whatever was heard.
const RESYNC_INTERVAL: Duration = Duration::from_secs(60);

/// Listens for as long as the link is there.
pub(super) async fn listen(link: Weak<ServerLink>) {
    let Some(here) = link.upgrade() else { return };
    let (channels, stock) = ([here.keys.append_channel(), here.keys.broadcast_channel()], here.keys.original(Name::Ws));
    let (node, wake) = (here.node.clone(), here.keys.append_channel());
    drop(here);
    // By a pattern, which has nothing special in it: among the subscribers of that channel are only stock's.
    let until = Mutex::new(Instant::now() + RESYNC_INTERVAL);
    subscriber::subscribe(link, &channels, &stock, Loopback::Own, |link, heard| {
        let own = match heard {
            SubscriptionEvent::Started => {
                link.set_subscribed(true);
                link.notify(&Notification::Resync);
                return true;
            }
            SubscriptionEvent::Message(channel, payload) if channel == wake => match woken(payload, &node) {
                Some(users) => {
                    if payload.ends_with(EPOCH_BEGINS.as_bytes()) || is_new(link, payload) {
                        link.renew_now.notify_one();
                    }
                    link.notify(&Notification::LogsAppended(users));
                    false
                }
                None => true,
            },
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

/// Who was woken by another server than this one; nobody, where it is not understood.
fn woken(payload: &[u8], node: &str) -> Option<Vec<UserId>> {
    let mut parts = std::str::from_utf8(payload).ok()?.split('\0');
    (parts.next()? != node).then(|| parts.filter_map(|user| UserId::new(user).ok()).collect())
}

/// Whether this is the name of a server that this one does not know yet. It asks at once who lives, since steps on logs wait for
/// those that it knows.
fn is_new(link: &ServerLink, payload: &[u8]) -> bool {
    !payload.contains(&0) && !link.membership().nodes.split(',').any(|node| node.as_bytes() == payload)
}
