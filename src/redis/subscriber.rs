//! A subscription that reconnects.
//!
//! An open socket may lead to a demoted primary. So each server publishes its own name when it renews its lease, and
//! resubscribes if it has not received it for 6 s. It also resubscribes after the connection for requests was replaced,
//! so that both lead to the same Redis. If the Redis has not changed, no message is missed: see [`hand_over`].

use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use redis::aio::{PubSubSink, PubSubStream};

use super::{RedisError, ServerLink, refusal::classify};

/// Delay between attempts to subscribe.
const RETRY_DELAY: Duration = Duration::from_millis(200);

/// Silence after which a ping is sent, and time limit of its reply. Then the subscription is lost.
const PING_TIMEOUT: Duration = Duration::from_secs(2);

/// Time without this server's own name: three lease renewals. Then it resubscribes.
const LOOPBACK_TIMEOUT: Duration = Duration::from_secs(6);

/// Time limit for subscribing to all channels. Then the attempt has failed.
const SUBSCRIBE_TIMEOUT: Duration = Duration::from_secs(5);

/// Time limit for the marker to arrive at both subscriptions. Then the new one counts as having missed messages.
const HAND_OVER_TIMEOUT: Duration = Duration::from_secs(1);

/// An event of a subscription.
pub(super) enum SubscriptionEvent<'a> {
    /// The subscription is active. Earlier messages may have been missed.
    Started,
    /// A message: channel and payload.
    Message(&'a str, &'a [u8]),
    /// The subscription is lost for now.
    Lost,
}

/// Selects the subscription that receives this server's own name, which proves that messages arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Loopback {
    /// This subscription, on the first of its channels.
    Own,
    /// Another subscription. This one resubscribes when that one does.
    Other,
}

/// A subscribed connection.
struct Subscription {
    sink: PubSubSink,
    messages: PubSubStream,
}

/// Why a subscription ended.
enum SubscriptionEnd {
    /// The connection broke, or messages no longer arrive.
    Lost,
    /// The connection for requests was replaced, and may lead to another Redis.
    Reconnected,
    /// The link was dropped.
    Stopped,
}

/// Passes messages on these channels to `on`, until the link is dropped.
///
/// `on` returns whether a message was this server's own name.
pub(super) async fn subscribe(
    link: Weak<ServerLink>,
    channels: &[String],
    pattern: &str,
    loopback: Loopback,
    on: impl Fn(&Arc<ServerLink>, SubscriptionEvent<'_>) -> bool,
) {
    let Some(link_now) = link.upgrade() else { return };
    let (mut connection, mut other) = (link_now.client.connection_number(), link_now.subscribed.subscribe());
    drop(link_now);
    let mut replacement = None;
    loop {
        let Some(link_now) = link.upgrade() else { return };
        let subscription = match replacement.take() {
            // `connection` is not marked: a reconnect during the hand-over ends this subscription too.
            Some(subscription) => Ok(subscription),
            None => {
                connection.mark_unchanged();
                other.mark_unchanged();
                open(&link_now, channels, pattern).await.inspect(|_| _ = on(&link_now, SubscriptionEvent::Started))
            }
        };
        drop(link_now);
        match subscription {
            Ok(mut subscription) => {
                let listening = listen(&link, &mut subscription, loopback, &on);
                let end = tokio::select! {
                    end = listening => end,
                    _ = connection.changed() => SubscriptionEnd::Reconnected,
                    _ = other.changed(), if loopback == Loopback::Other => SubscriptionEnd::Lost,
                };
                let Some(link_now) = link.upgrade() else { return };
                match end {
                    SubscriptionEnd::Stopped => return,
                    SubscriptionEnd::Reconnected if loopback == Loopback::Own && link_now.client.is_single_server() => {
                        replacement = hand_over(&link_now, &mut subscription, channels, pattern, &on).await;
                    }
                    SubscriptionEnd::Reconnected | SubscriptionEnd::Lost => {}
                }
                if replacement.is_some() {
                    continue;
                }
                _ = on(&link_now, SubscriptionEvent::Lost);
            }
            Err(error) => tracing::debug!(%error, "the subscription failed; it is retried"),
        }
        tokio::time::sleep(RETRY_DELAY).await;
    }
}

/// Subscribes to the channels over a new connection.
async fn open(link: &ServerLink, channels: &[String], pattern: &str) -> Result<Subscription, RedisError> {
    let to_error = |error: redis::RedisError| classify(&error).error;
    let subscribing = async {
        let mut listener = link.client.pubsub().await?;
        for channel in channels {
            listener.subscribe(channel).await.map_err(to_error)?;
        }
        listener.psubscribe(pattern).await.map_err(to_error)?;
        let (sink, messages) = listener.split();
        Ok(Subscription { sink, messages })
    };
    let subscribed = tokio::time::timeout(SUBSCRIBE_TIMEOUT, subscribing).await;
    subscribed.unwrap_or_else(|_| Err(RedisError::Unavailable("subscribing took too long".into())))
}

/// Receives messages until the subscription is lost.
async fn listen(
    link: &Weak<ServerLink>,
    subscription: &mut Subscription,
    loopback: Loopback,
    on: &impl Fn(&Arc<ServerLink>, SubscriptionEvent<'_>) -> bool,
) -> SubscriptionEnd {
    let mut last_own = Instant::now();
    while loopback == Loopback::Other || last_own.elapsed() < LOOPBACK_TIMEOUT {
        let message = match tokio::time::timeout(PING_TIMEOUT, subscription.messages.next()).await {
            Ok(Some(message)) => message,
            Ok(None) => return SubscriptionEnd::Lost,
            // No message was published, or the connection is dead.
            Err(_) => match tokio::time::timeout(PING_TIMEOUT, subscription.sink.ping::<redis::Value>()).await {
                Ok(Ok(_)) => continue,
                _ => return SubscriptionEnd::Lost,
            },
        };
        let Some(link_now) = link.upgrade() else { return SubscriptionEnd::Stopped };
        if on(&link_now, SubscriptionEvent::Message(message.get_channel_name(), message.get_payload_bytes())) {
            last_own = Instant::now();
        }
    }
    SubscriptionEnd::Lost
}

/// Replaces a subscription without missed or repeated messages.
///
/// While both subscriptions are active a unique marker is published. The old one is read up to the marker, the new one
/// from there on. `None` if the marker does not arrive at both: they may lead to different Redis nodes, so messages may
/// be missing.
///
/// Every subscriber of one Redis receives all messages in one order. Subscribers in a Redis Cluster, or of a Redis and
/// its replica, do not.
async fn hand_over(
    link: &Arc<ServerLink>,
    old: &mut Subscription,
    channels: &[String],
    pattern: &str,
    on: &impl Fn(&Arc<ServerLink>, SubscriptionEvent<'_>) -> bool,
) -> Option<Subscription> {
    static MARKERS: AtomicU64 = AtomicU64::new(0);
    let mut new = open(link, channels, pattern).await.ok()?;
    // Other servers take the marker for new entries of no user: it is no valid user id.
    let marker = format!("{}\0\u{1}{}", link.server_name(), MARKERS.fetch_add(1, Ordering::Relaxed));
    link.client.query::<redis::Value>(redis::cmd("PUBLISH").arg(&channels[0]).arg(&marker)).await.ok()?;
    let is_marker = |channel: &str, payload: &[u8]| channel == channels[0] && payload == marker.as_bytes();
    let switched = async {
        loop {
            let Some(message) = old.messages.next().await else { return false };
            let (channel, payload) = (message.get_channel_name(), message.get_payload_bytes());
            if is_marker(channel, payload) {
                break;
            }
            _ = on(link, SubscriptionEvent::Message(channel, payload));
        }
        // The old subscription has passed on what precedes the marker.
        loop {
            let Some(message) = new.messages.next().await else { return false };
            if is_marker(message.get_channel_name(), message.get_payload_bytes()) {
                return true;
            }
        }
    };
    tokio::time::timeout(HAND_OVER_TIMEOUT, switched).await.is_ok_and(|arrived| arrived).then_some(new)
}
