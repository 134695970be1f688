//! What other servers say: who has more, and what passes the logs by.
//!
//! Nothing that has to arrive is said here. Where the line is lost, whoever listens is told that he may have missed
//! something ([`Told::Gap`]), and asks.

use std::{sync::Weak, time::Duration};

use futures_util::StreamExt;

use super::Link;
use crate::message::UserId;

/// Between attempts to listen again.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// After silence of this long the line is tried, and has as long to answer.
const PING_AFTER: Duration = Duration::from_secs(2);

/// Something another server has said.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Told {
    /// The logs of these users have more.
    Woken(Vec<UserId>),
    /// For a while nothing was heard: any log may have more.
    Gap,
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
    hear(link, &channels, &stock, |link, heard| match heard {
        Heard::Begins => {
            link.hears.send_replace(true);
            link.tell(&Told::Gap);
        }
        Heard::Said(channel, payload) if channel == wake => {
            if let Some(users) = woken(payload, &node) {
                link.tell(&Told::Woken(users));
            }
        }
        Heard::Said(channel, payload) => {
            link.tell(&Told::Said { channel: channel.to_owned(), payload: payload.to_vec() });
        }
        Heard::Lost => {}
    })
    .await;
}

/// Tells `on` what is said on these channels, for as long as the link is there.
pub(super) async fn hear(
    link: Weak<Link>,
    channels: &[String],
    pattern: &str,
    on: impl Fn(&std::sync::Arc<Link>, Heard<'_>),
) {
    loop {
        let Some(here) = link.upgrade() else { return };
        let listening = async {
            let mut listener = here.lines.listener().await?;
            for channel in channels {
                listener.subscribe(channel).await.map_err(|error| super::LinkError::Lost(error.to_string().into()))?;
            }
            listener.psubscribe(pattern).await.map_err(|error| super::LinkError::Lost(error.to_string().into()))?;
            Ok::<_, super::LinkError>(listener)
        };
        match listening.await {
            Ok(listener) => {
                on(&here, Heard::Begins);
                drop(here);
                let (mut ask, mut said) = listener.split();
                loop {
                    let next = tokio::time::timeout(PING_AFTER, said.next());
                    let message = match next.await {
                        Ok(Some(message)) => message,
                        Ok(None) => break,
                        // Nobody says anything, or nothing arrives any more.
                        Err(_) => match tokio::time::timeout(PING_AFTER, ask.ping::<redis::Value>()).await {
                            Ok(Ok(_)) => continue,
                            _ => break,
                        },
                    };
                    let Some(here) = link.upgrade() else { return };
                    on(&here, Heard::Said(message.get_channel_name(), message.get_payload_bytes()));
                }
                let Some(here) = link.upgrade() else { return };
                on(&here, Heard::Lost);
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
