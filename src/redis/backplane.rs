//! [`Cluster`] over one Redis.

use std::sync::{Arc, Weak};

use futures_util::future::BoxFuture;
use tokio::sync::mpsc;

use super::{
    Notification, RedisError, ServerLink, broadcast,
    original::{
        channel::{self, original_supported},
        ingest::OriginalIngest,
    },
    portals::portal_pool::Portals,
    presence::{self, Presence},
};
use crate::{
    cluster::{
        Broadcast, BroadcastHandler, Cluster, OriginalMessageSink, OriginalPresence,
        portals::{LocalPortals, RemotePortals},
    },
    health::LogLimit,
    message::{DispatchId, Payload, Recipients, UserId},
};

/// Broadcasts that may wait to be published. One more is lost, and logged: it is worth something now or not at all.
const WORDS_MAX: usize = 4096;

/// Broadcasts published in one batch.
const TOLD_MAX: usize = 64;

/// While Redis is unreachable, every message would cause such a line.
static NOT_PASSED_ON: LogLimit = LogLimit::new();

/// What the original sends to clients that it disconnects.
const LEAVE: &[u8] = br#"{"op":5,"d":{},"t":"DISCONNECT_CLIENT"}"#;

/// [`Cluster`] over one Redis.
#[derive(Debug)]
pub struct RedisBackplane {
    link: Arc<ServerLink>,
    presence: Arc<Presence>,
    words: mpsc::Sender<Broadcast>,
}

impl RedisBackplane {
    /// Starts the tasks that publish broadcasts and presence.
    #[must_use]
    pub fn new(link: Arc<ServerLink>) -> Arc<Self> {
        let (words, waiting) = mpsc::channel(WORDS_MAX);
        let presence = Presence::begin(&link);
        let beside = presence.clone();
        link.spawn("cluster_broadcast", waiting, move |link, waiting| {
            Box::pin(keep_telling(link, beside.clone(), waiting))
        });
        Arc::new(Self { link, presence, words })
    }
}

/// Publishes queued broadcasts.
async fn keep_telling(link: Weak<ServerLink>, presence: Arc<Presence>, waiting: &mut mpsc::Receiver<Broadcast>) {
    let mut some = Vec::with_capacity(TOLD_MAX);
    while waiting.recv_many(&mut some, TOLD_MAX).await > 0 {
        let Some(link) = link.upgrade() else { return };
        let channel = link.keys().broadcast_channel();
        let beside = presence.original_is_present();
        // Resolves the recipients first. Otherwise broadcasts without that step would overtake those with it.
        let meant = async |word: Broadcast| {
            let (Broadcast::Message { recipients, excluding, .. } | Broadcast::Disconnect { recipients, excluding }) =
                &word;
            let meant = if beside { Some(without(&link, recipients, excluding).await?) } else { None };
            Ok::<_, RedisError>((word, meant))
        };
        let meant = futures_util::future::join_all(some.drain(..).map(meant)).await;
        let tell = async |meant: Result<(Broadcast, Option<Recipients>), RedisError>| {
            let (word, meant) = meant?;
            let mut command = redis::cmd("PUBLISH");
            command.arg(&channel).arg(broadcast::encode(link.node(), &word));
            let here = link.client().query::<redis::Value>(&command);
            let Some(meant) = meant else { return here.await };
            let message = match &word {
                Broadcast::Message { payload, .. } => &payload.as_bytes()[..],
                Broadcast::Disconnect { .. } => LEAVE,
            };
            channel::publish(&link, message, &meant).await?;
            here.await
        };
        // They share a connection, which keeps their order.
        let told = futures_util::future::join_all(meant.into_iter().map(tell)).await;
        link.pending_publishes.send_modify(|pending_publishes| *pending_publishes -= told.len());
        if let Some(Err(error)) = told.into_iter().find(Result::is_err)
            && let Some(suppressed) = NOT_PASSED_ON.due("words")
        {
            tracing::warn!(%error, suppressed, "a broadcast to other servers failed and is lost");
        }
    }
}

/// Resolves the recipients for the original, which knows no exclusions. With exclusions all remaining users are named.
async fn without(link: &ServerLink, recipients: &Recipients, excluding: &[UserId]) -> Result<Recipients, RedisError> {
    match recipients {
        Recipients::Everyone if excluding.is_empty() => Ok(Recipients::Everyone),
        Recipients::Everyone => {
            let all = channel::everybody(link).await?.into_iter();
            Ok(Recipients::Users(all.filter(|user| !excluding.contains(user)).collect()))
        }
        Recipients::Users(users) => {
            Ok(Recipients::Users(users.iter().filter(|user| !excluding.contains(user)).cloned().collect()))
        }
    }
}

impl Cluster for RedisBackplane {
    fn set_local_connections(&self, user: &UserId, connections: usize) {
        self.presence.here(user, connections);
    }

    fn set_connection_count(&self, connections: usize) {
        self.presence.count(connections);
    }

    fn remote_connections<'a>(&'a self, users: &'a [UserId]) -> BoxFuture<'a, Option<Vec<usize>>> {
        let (link, users) = (self.link.clone(), users.to_vec());
        let asking = async move { presence::elsewhere(&link, &users).await };
        Box::pin(async move { self.link.run(asking).await.ok() })
    }

    fn remote_connection_count(&self) -> BoxFuture<'_, usize> {
        let link = self.link.clone();
        let asking = async move { presence::all_elsewhere(&link).await };
        Box::pin(async move { self.link.run(asking).await.unwrap_or(0) })
    }

    fn original_presence<'a>(&'a self, users: &'a [UserId]) -> BoxFuture<'a, Result<Vec<OriginalPresence>, Arc<str>>> {
        if !self.presence.original_is_present() {
            return Box::pin(std::future::ready(Ok(Vec::new())));
        }
        let (link, users) = (self.link.clone(), users.to_vec());
        let asking = async move { channel::connected(&link, &users).await };
        Box::pin(async move { self.link.run(asking).await.map_err(|error| error.to_string().into()) })
    }

    fn publish_to_original<'a>(
        &'a self,
        payload: &'a Payload,
        users: &'a [UserId],
        id: Option<&'a DispatchId>,
    ) -> BoxFuture<'a, Result<(), Arc<str>>> {
        let (link, payload, users) = (self.link.clone(), payload.clone(), Recipients::Users(users.to_vec()));
        let id = id.cloned();
        let telling = async move {
            match id {
                Some(id) => channel::publish_unanswered(&link, payload.as_bytes(), &users, &id).await,
                None => channel::publish(&link, payload.as_bytes(), &users).await,
            }
        };
        Box::pin(async move { self.link.run(telling).await.map_err(|error| error.to_string().into()) })
    }

    fn online_page<'a>(&'a self, after: Option<&'a UserId>, limit: usize) -> BoxFuture<'a, Option<Vec<UserId>>> {
        let (link, after) = (self.link.clone(), after.cloned());
        let asking = async move { presence::online(&link, after.as_ref(), limit).await };
        Box::pin(async move { self.link.run(asking).await.ok() })
    }

    fn online_users(&self) -> BoxFuture<'_, Option<Vec<UserId>>> {
        let link = self.link.clone();
        let asking = async move {
            if original_supported(&link) { channel::everybody(&link).await } else { presence::everybody(&link).await }
        };
        Box::pin(async move { self.link.run(asking).await.ok() })
    }

    fn online_user_count(&self) -> BoxFuture<'_, Option<usize>> {
        let link = self.link.clone();
        let asking = async move {
            if original_supported(&link) {
                channel::everybody_count(&link).await
            } else {
                presence::everybody_count(&link).await
            }
        };
        Box::pin(async move { self.link.run(asking).await.ok() })
    }

    fn is_online<'a>(&'a self, user: &'a UserId) -> BoxFuture<'a, Option<bool>> {
        let (link, users) = (self.link.clone(), [user.clone()]);
        let asking = async move {
            if original_supported(&link) {
                Ok(channel::connected(&link, &users).await?.iter().any(|one| *one != OriginalPresence::Offline))
            } else {
                presence::has(&link, &users[0]).await
            }
        };
        Box::pin(async move { self.link.run(asking).await.ok() })
    }

    fn connection_count(&self) -> BoxFuture<'_, Option<usize>> {
        let link = self.link.clone();
        let asking = async move {
            if original_supported(&link) {
                channel::connections(&link).await
            } else {
                presence::connections(&link).await
            }
        };
        Box::pin(async move { self.link.run(asking).await.ok() })
    }

    fn join_portals(&self, near: Weak<dyn LocalPortals>) -> Arc<dyn RemotePortals> {
        Portals::begin(&self.link, near)
    }

    fn broadcast(&self, word: Broadcast) {
        self.link.pending_publishes.send_modify(|pending_publishes| *pending_publishes += 1);
        if self.words.try_send(word).is_err() {
            self.link.pending_publishes.send_modify(|pending_publishes| *pending_publishes -= 1);
            if let Some(suppressed) = NOT_PASSED_ON.due("queue") {
                tracing::warn!(suppressed, "the queue of broadcasts is full: a broadcast to other servers is lost");
            }
        }
    }

    fn subscribe(&self, hears: BroadcastHandler, keeps: OriginalMessageSink) {
        let (past, own) = (self.link.keys().broadcast_channel(), self.link.node().to_owned());
        let from_stock = original_supported(&self.link)
            .then(|| OriginalIngest::begin(&self.link, self.presence.clone(), hears.clone(), keeps));
        let anew = from_stock.as_ref().map(|from_stock| from_stock.anew.clone());
        self.link.listen(Arc::new(move |told| match told {
            Notification::ChannelMessage { channel, payload } if *channel == past => {
                if let Some(word) = broadcast::decode(payload, &own) {
                    hears(word);
                }
            }
            told => {
                if let Some(from_stock) = &from_stock {
                    from_stock.hear(told);
                }
            }
        }));
        // A marker that was published before this may have been missed.
        if let Some(anew) = anew {
            anew.notify_one();
        }
    }
}
