//! What other servers say: who has more, and what passes the logs by.
//!
//! Nothing that has to arrive is said here. Where the line is lost, whoever listens is told that he may have missed
//! something ([`Told::Gap`]), and asks.

use std::{
    sync::Weak,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use super::{
    Link,
    link::Told,
    membership::EPOCH_BEGINS,
    subscriber::{self, Heard, SelfHeard},
};
use crate::{compat::keyspace::Name, message::UserId};

/// The nodes of a Cluster pass on to each other what is said, and lose it where their own connections break, without a word. So there
/// every session looks into its log this often, whatever was heard.
const LOOK_ANYWAY: Duration = Duration::from_secs(60);

/// Listens for as long as the link is there.
pub(super) async fn listen(link: Weak<Link>) {
    let Some(here) = link.upgrade() else { return };
    let (channels, stock) = ([here.names.wake(), here.names.past()], here.names.stock(Name::Ws));
    let (node, wake) = (here.node.clone(), here.names.wake());
    drop(here);
    // By a pattern, which has nothing special in it: among the subscribers of that channel are only stock's.
    let until = Mutex::new(Instant::now() + LOOK_ANYWAY);
    subscriber::hear(link, &channels, &stock, SelfHeard::Here, |link, heard| {
        let own = match heard {
            Heard::Begins => {
                link.set_hears(true);
                link.tell(&Told::Gap);
                return true;
            }
            Heard::Said(channel, payload) if channel == wake => match woken(payload, &node) {
                Some(users) => {
                    if payload.ends_with(EPOCH_BEGINS.as_bytes()) || is_new(link, payload) {
                        link.beats_sooner.notify_one();
                    }
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

/// Who was woken by another server than this one; nobody, where it is not understood.
fn woken(payload: &[u8], node: &str) -> Option<Vec<UserId>> {
    let mut parts = std::str::from_utf8(payload).ok()?.split('\0');
    (parts.next()? != node).then(|| parts.filter_map(|user| UserId::new(user).ok()).collect())
}

/// Whether this is the name of a server that this one does not know yet. It asks at once who lives, since steps on logs wait for
/// those that it knows.
fn is_new(link: &Link, payload: &[u8]) -> bool {
    !payload.contains(&0) && !link.live().nodes.split(',').any(|node| node.as_bytes() == payload)
}
