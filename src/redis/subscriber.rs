//! A connection that listens, made again when it is lost.
//!
//! That it stands proves nothing: the Redis at its other end may be one that nobody speaks to any more, because another
//! has taken over. So each server hears itself: with every renewal of its lease it says its name where all listen, and one
//! that does not hear its own name any more listens anew. It does so too whenever the line for requests was made anew, so that
//! both lead to the same Redis. Where that is the one there was, as it mostly is, nothing is missed by it: see [`hand_over`].

use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use redis::aio::{PubSubSink, PubSubStream};

use super::{RedisError, ServerLink, refusal::meaning};

/// Between attempts to listen again.
const RETRY_DELAY: Duration = Duration::from_millis(200);

/// After silence of this long the line is tried, and has as long to answer.
const PING_TIMEOUT: Duration = Duration::from_secs(2);

/// Who has not heard his own name for this long does not hear the others either: three renewals of the lease.
const LOOPBACK_TIMEOUT: Duration = Duration::from_secs(6);

/// How long it may take until all channels are subscribed to.
const SUBSCRIBE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long it may take until a call is heard by each of two who listen to the same Redis.
const HAND_OVER_TIMEOUT: Duration = Duration::from_secs(1);

/// What is heard on some channels.
pub(super) enum SubscriptionEvent<'a> {
    /// From here on it is heard; what was said before may have been missed.
    Started,
    /// Something is said, on a channel.
    Message(&'a str, &'a [u8]),
    /// Nothing is heard for now.
    Lost,
}

/// Where this server hears its own beats, and so learns that it hears the others too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Loopback {
    /// Among what is listened to, on the first of the channels.
    Own,
    /// By the other listener: when that begins anew, so does this.
    Other,
}

/// A connection, subscribed.
struct Subscription {
    sink: PubSubSink,
    messages: PubSubStream,
}

/// Why it is not listened to any more.
enum End {
    Lost,
    /// The line for requests was made anew: that one may lead elsewhere now.
    Reconnected,
    Stopped,
}

/// Tells `on` what is said on these channels, for as long as the link is there; that says whether it was this server's own beat.
pub(super) async fn subscribe(
    link: Weak<ServerLink>,
    channels: &[String],
    pattern: &str,
    loopback: Loopback,
    on: impl Fn(&Arc<ServerLink>, SubscriptionEvent<'_>) -> bool,
) {
    let Some(here) = link.upgrade() else { return };
    let (mut made, mut hears) = (here.client.connection_number(), here.subscribed.subscribe());
    drop(here);
    let mut replacement = None;
    loop {
        let Some(here) = link.upgrade() else { return };
        let subscription = match replacement.take() {
            // What was made anew while it began is seen below.
            Some(subscription) => Ok(subscription),
            None => {
                made.mark_unchanged();
                hears.mark_unchanged();
                open(&here, channels, pattern).await.inspect(|_| _ = on(&here, SubscriptionEvent::Started))
            }
        };
        drop(here);
        match subscription {
            Ok(mut subscription) => {
                let listening = listen(&link, &mut subscription, loopback, &on);
                let end = tokio::select! {
                    end = listening => end,
                    _ = made.changed() => End::Reconnected,
                    _ = hears.changed(), if loopback == Loopback::Other => End::Lost,
                };
                let Some(here) = link.upgrade() else { return };
                match end {
                    End::Stopped => return,
                    End::Reconnected if loopback == Loopback::Own && here.client.is_single_server() => {
                        replacement = hand_over(&here, &mut subscription, channels, pattern, &on).await;
                    }
                    End::Reconnected | End::Lost => {}
                }
                if replacement.is_some() {
                    continue;
                }
                _ = on(&here, SubscriptionEvent::Lost);
            }
            Err(error) => tracing::debug!(%error, "what other servers say is not heard for now"),
        }
        tokio::time::sleep(RETRY_DELAY).await;
    }
}

async fn open(link: &ServerLink, channels: &[String], pattern: &str) -> Result<Subscription, RedisError> {
    let lost = |error: redis::RedisError| meaning(&error).error;
    let subscribing = async {
        let mut listener = link.client.pubsub().await?;
        for channel in channels {
            listener.subscribe(channel).await.map_err(lost)?;
        }
        listener.psubscribe(pattern).await.map_err(lost)?;
        let (sink, messages) = listener.split();
        Ok(Subscription { sink, messages })
    };
    let subscribed = tokio::time::timeout(SUBSCRIBE_TIMEOUT, subscribing).await;
    subscribed.unwrap_or_else(|_| Err(RedisError::Unavailable("subscribing took too long".into())))
}

async fn listen(
    link: &Weak<ServerLink>,
    subscription: &mut Subscription,
    loopback: Loopback,
    on: &impl Fn(&Arc<ServerLink>, SubscriptionEvent<'_>) -> bool,
) -> End {
    let mut heard = Instant::now();
    while loopback == Loopback::Other || heard.elapsed() < LOOPBACK_TIMEOUT {
        let message = match tokio::time::timeout(PING_TIMEOUT, subscription.messages.next()).await {
            Ok(Some(message)) => message,
            Ok(None) => return End::Lost,
            // Nobody says anything, or nothing arrives any more.
            Err(_) => match tokio::time::timeout(PING_TIMEOUT, subscription.sink.ping::<redis::Value>()).await {
                Ok(Ok(_)) => continue,
                _ => return End::Lost,
            },
        };
        let Some(here) = link.upgrade() else { return End::Stopped };
        if on(&here, SubscriptionEvent::Message(message.get_channel_name(), message.get_payload_bytes())) {
            heard = Instant::now();
        }
    }
    End::Lost
}

/// Listens anew, such that nothing is missed and nothing heard twice: while both listen, something is called that nobody else
/// calls. Up to there the old one is listened to, and from there on the new one. `None` where the old one does not hear it:
/// it may lead elsewhere, and then nobody knows what was missed.
///
/// All that is said on one Redis is heard by all in one order; in a Cluster, or of a Redis and its replica, that is not so.
async fn hand_over(
    link: &Arc<ServerLink>,
    old: &mut Subscription,
    channels: &[String],
    pattern: &str,
    on: &impl Fn(&Arc<ServerLink>, SubscriptionEvent<'_>) -> bool,
) -> Option<Subscription> {
    static CALLS: AtomicU64 = AtomicU64::new(0);
    let mut new = open(link, channels, pattern).await.ok()?;
    // For others it reads as a wake-up for nobody: no user is called that.
    let call = format!("{}\0\u{1}{}", link.node(), CALLS.fetch_add(1, Ordering::Relaxed));
    link.client.query::<redis::Value>(redis::cmd("PUBLISH").arg(&channels[0]).arg(&call)).await.ok()?;
    let is_call = |channel: &str, payload: &[u8]| channel == channels[0] && payload == call.as_bytes();
    let called = async {
        loop {
            let Some(message) = old.messages.next().await else { return false };
            let (channel, payload) = (message.get_channel_name(), message.get_payload_bytes());
            if is_call(channel, payload) {
                break;
            }
            _ = on(link, SubscriptionEvent::Message(channel, payload));
        }
        // What comes before it was heard by the old one.
        loop {
            let Some(message) = new.messages.next().await else { return false };
            if is_call(message.get_channel_name(), message.get_payload_bytes()) {
                return true;
            }
        }
    };
    tokio::time::timeout(HAND_OVER_TIMEOUT, called).await.is_ok_and(|heard| heard).then_some(new)
}
