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
    sync::Weak,
    time::{Duration, Instant},
};

use futures_util::StreamExt;

use super::Link;
use crate::message::UserId;

/// Between attempts to listen again.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// After silence of this long the line is tried, and has as long to answer.
const PING_AFTER: Duration = Duration::from_secs(2);

/// Who has not heard his own name for this long does not hear the others either: three renewals of the lease.
const DEAF_AFTER: Duration = Duration::from_secs(6);

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
    /// Something on a channel that is not about logs.
    Said {
        /// Which, as it is called in this namespace.
        channel: String,
        /// What.
        payload: Vec<u8>,
    },
}

/// Listens for as long as the link is there.
pub(super) async fn listen(link: Weak<Link>) {
    loop {
        let Some(here) = link.upgrade() else { return };
        let (channels, stock) = ([here.names.wake(), here.names.past()], here.names.stock("ws"));
        let (node, wake) = (here.node.clone(), here.names.wake());
        let mut made = here.lines.made();
        made.mark_unchanged();
        let listening = async {
            let mut listener = here.lines.listener().await?;
            for channel in &channels {
                listener.subscribe(channel).await.map_err(|error| super::LinkError::Lost(error.to_string().into()))?;
            }
            // By a pattern, which has nothing special in it: among the subscribers of that channel are only stock's.
            listener.psubscribe(&stock).await.map_err(|error| super::LinkError::Lost(error.to_string().into()))?;
            Ok::<_, super::LinkError>(listener)
        };
        match listening.await {
            Ok(listener) => {
                here.hears.send_replace(true);
                here.tell(&Told::Gap);
                drop(here);
                let (mut ask, mut said) = listener.split();
                let mut heard = Instant::now();
                while heard.elapsed() < DEAF_AFTER {
                    let next = tokio::select! {
                        next = tokio::time::timeout(PING_AFTER, said.next()) => next,
                        // It may lead elsewhere now.
                        _ = made.changed() => break,
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
                    let channel = message.get_channel_name();
                    if channel == wake {
                        match woken(message.get_payload_bytes(), &node) {
                            Some(users) => here.tell(&Told::Woken(users)),
                            None => heard = Instant::now(),
                        }
                    } else {
                        let payload = message.get_payload_bytes().to_vec();
                        here.tell(&Told::Said { channel: channel.to_owned(), payload });
                    }
                }
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
