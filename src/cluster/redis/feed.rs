//! What other servers say: who has more, and what passes the logs by.
//!
//! Nothing that has to arrive is said here. Where the line is lost, whoever listens is told that he may have missed
//! something ([`Told::Gap`]), and asks.
//!
//! A connection that stands proves nothing: the Redis at its other end may be one that nobody speaks to any more, because another
//! has taken over. So each server hears itself: with every renewal of its lease it says its name where all listen, and one
//! that does not hear its own name any more listens anew. It does so too whenever the line for requests was made anew, so that
//! both lead to the same Redis.

use std::{
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use parking_lot::Mutex;

use super::Link;
use crate::message::UserId;

/// Between attempts to listen again.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// After silence of this long the line is tried, and has as long to answer.
const PING_AFTER: Duration = Duration::from_secs(2);

/// Who has not heard his own name for this long does not hear the others either: three renewals of the lease.
const DEAF_AFTER: Duration = Duration::from_secs(6);

/// The nodes of a Cluster pass on to each other what is said, and lose it where their own connections break, without a word. So there
/// every session looks into its log this often, whatever was heard.
const LOOK_ANYWAY: Duration = Duration::from_secs(60);

/// How long it may take until all channels are subscribed to.
const SUBSCRIBE_PATIENCE: Duration = Duration::from_secs(5);

/// Something another server has said.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Told {
    /// The logs of these users have more.
    Woken(Vec<UserId>),
    /// For a while nothing was heard: any log may have more.
    Gap,
    /// From now on these users of this server are connected in stock's eyes; what was left for them before may not be seen
    /// by anybody. Not said by others, but by whoever has written it down here.
    Came(Vec<UserId>),
    /// This server was taken for dead, or the Redis may have forgotten something: who is here is to be said again.
    Forgotten,
    /// Something on a channel that is not about logs.
    Said {
        /// Which, as it is called in this namespace.
        channel: String,
        /// What.
        payload: Vec<u8>,
    },
}

/// What is heard on some channels.
pub(super) enum Heard<'a> {
    /// From here on it is heard; what was said before may have been missed.
    Begins,
    /// Something is said, on a channel.
    Said(&'a str, &'a [u8]),
    /// Nothing is heard for now.
    Lost,
}

/// Listens for as long as the link is there.
pub(super) async fn listen(link: Weak<Link>) {
    let Some(here) = link.upgrade() else { return };
    let (channels, stock) = ([here.names.wake(), here.names.past()], here.names.stock("ws"));
    let (node, wake) = (here.node.clone(), here.names.wake());
    drop(here);
    // By a pattern, which has nothing special in it: among the subscribers of that channel are only stock's.
    let until = Mutex::new(Instant::now() + LOOK_ANYWAY);
    hear(link, &channels, &stock, SelfHeard::Here, |link, heard| {
        let own = match heard {
            Heard::Begins => {
                link.set_hears(true);
                link.tell(&Told::Gap);
                return true;
            }
            Heard::Said(channel, payload) if channel == wake => match woken(payload, &node) {
                Some(users) => {
                    link.tell(&Told::Woken(users));
                    false
                }
                None => true,
            },
            Heard::Said(channel, payload) => {
                link.tell(&Told::Said { channel: channel.to_owned(), payload: payload.to_vec() });
                false
            }
            Heard::Lost => {
                link.set_hears(false);
                false
            }
        };
        let mut until = until.lock();
        if own && link.lines.is_spread() && Instant::now() > *until {
            *until = Instant::now() + LOOK_ANYWAY;
            link.tell(&Told::Gap);
        }
        own
    })
    .await;
}

/// Where this server hears its own beats, and so learns that it hears the others too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SelfHeard {
    /// Among what is listened to.
    Here,
    /// By the other listener: when that begins anew, so does this.
    Elsewhere,
}

/// Tells `on` what is said on these channels, for as long as the link is there; that says whether it was this server's own beat.
pub(super) async fn hear(
    link: Weak<Link>,
    channels: &[String],
    pattern: &str,
    self_heard: SelfHeard,
    on: impl Fn(&Arc<Link>, Heard<'_>) -> bool,
) {
    loop {
        let Some(here) = link.upgrade() else { return };
        let (mut made, mut hears) = (here.lines.made(), here.hears.subscribe());
        made.mark_unchanged();
        let listening = async {
            let mut listener = here.lines.listener().await?;
            for channel in channels {
                listener.subscribe(channel).await.map_err(|error| super::LinkError::Lost(error.to_string().into()))?;
            }
            listener.psubscribe(pattern).await.map_err(|error| super::LinkError::Lost(error.to_string().into()))?;
            Ok::<_, super::LinkError>(listener)
        };
        let listening = tokio::time::timeout(SUBSCRIBE_PATIENCE, listening).await;
        match listening.unwrap_or_else(|_| Err(super::LinkError::Lost("subscribing took too long".into()))) {
            Ok(listener) => {
                _ = on(&here, Heard::Begins);
                drop(here);
                let (mut ask, mut said) = listener.split();
                let mut heard = Instant::now();
                while self_heard == SelfHeard::Elsewhere || heard.elapsed() < DEAF_AFTER {
                    let next = tokio::select! {
                        next = tokio::time::timeout(PING_AFTER, said.next()) => next,
                        // It may lead elsewhere now.
                        _ = made.changed() => break,
                        _ = hears.changed(), if self_heard == SelfHeard::Elsewhere => break,
                    };
                    let message = match next {
                        Ok(Some(message)) => message,
                        Ok(None) => break,
                        // Nobody says anything, or nothing arrives any more.
                        Err(_) => match tokio::time::timeout(PING_AFTER, ask.ping::<redis::Value>()).await {
                            Ok(Ok(_)) => continue,
                            _ => break,
                        },
                    };
                    let Some(here) = link.upgrade() else { return };
                    if on(&here, Heard::Said(message.get_channel_name(), message.get_payload_bytes())) {
                        heard = Instant::now();
                    }
                }
                let Some(here) = link.upgrade() else { return };
                _ = on(&here, Heard::Lost);
            }
            Err(error) => {
                tracing::debug!(%error, "what other servers say is not heard for now");
                drop(here);
            }
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}

/// Who was woken by another server than this one; nobody, where it is not understood.
fn woken(payload: &[u8], node: &str) -> Option<Vec<UserId>> {
    let mut parts = std::str::from_utf8(payload).ok()?.split('\0');
    (parts.next()? != node).then(|| parts.filter_map(|user| UserId::new(user).ok()).collect())
}
