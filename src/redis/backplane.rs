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

/// Queued broadcasts. One more is lost, and logged: a late broadcast would be of no use.
const QUEUE_MAX: usize = 4096;

/// Broadcasts published in one batch.
const BATCH_MAX: usize = 64;

/// Limits log lines: while Redis is unreachable every broadcast fails.
static LOG_LIMIT: LogLimit = LogLimit::new();

/// The original's message to its servers that disconnects clients.
const DISCONNECT: &[u8] = br#"{"op":5,"d":{},"t":"DISCONNECT_CLIENT"}"#;

/// [`Cluster`] over one Redis.
#[derive(Debug)]
pub struct RedisBackplane {
    link: Arc<ServerLink>,
    presence: Arc<Presence>,
    queue: mpsc::Sender<Broadcast>,
}

impl RedisBackplane {
    /// Starts the tasks that publish broadcasts and presence.
    #[must_use]
    pub fn new(link: Arc<ServerLink>) -> Arc<Self> {
        let (queue, waiting) = mpsc::channel(QUEUE_MAX);
        let presence = Presence::begin(&link);
        let publisher_presence = presence.clone();
        link.spawn("cluster_broadcast", waiting, move |link, queue| {
            Box::pin(publish_broadcasts(link, publisher_presence.clone(), queue))
        });
        Arc::new(Self { link, presence, queue })
    }
}

/// Publishes queued broadcasts.
async fn publish_broadcasts(link: Weak<ServerLink>, presence: Arc<Presence>, queue: &mut mpsc::Receiver<Broadcast>) {
    let mut batch = Vec::with_capacity(BATCH_MAX);
    while queue.recv_many(&mut batch, BATCH_MAX).await > 0 {
        let Some(link) = link.upgrade() else { return };
        let channel = link.keys().broadcast_channel();
        let has_original = presence.original_is_present();
        // Resolves the recipients of all broadcasts first. Otherwise broadcasts without exclusions would overtake
        // others.
        let resolved = async |broadcast: Broadcast| {
            let (Broadcast::Message { recipients, excluding, .. }
            | Broadcast::Disconnect { recipients, excluding, .. }) = &broadcast;
            let resolved =
                if has_original { Some(resolve_exclusions(&link, recipients, excluding).await) } else { None };
            (broadcast, resolved)
        };
        let resolved = futures_util::future::join_all(batch.drain(..).map(resolved)).await;
        let publish = async |(broadcast, resolved): (Broadcast, Option<Result<Recipients, RedisError>>)| {
            let mut command = redis::cmd("PUBLISH");
            command.arg(&channel).arg(broadcast::encode(link.server_name(), &broadcast));
            let to_servers = link.client().query::<redis::Value>(&command);
            let Some(resolved) = resolved else { return to_servers.await.map(drop) };
            let message = match &broadcast {
                Broadcast::Message { payload, .. } => &payload.as_bytes()[..],
                Broadcast::Disconnect { .. } => DISCONNECT,
            };
            // Our servers get the broadcast even if the publish to the original fails.
            let to_original = async { channel::publish(&link, message, &resolved?).await };
            let (to_original, to_servers) = tokio::join!(to_original, to_servers);
            to_original.and(to_servers.map(drop))
        };
        // One connection keeps their order.
        let published = futures_util::future::join_all(resolved.into_iter().map(publish)).await;
        link.pending_publishes.send_modify(|pending_publishes| *pending_publishes -= published.len());
        if let Some(Err(error)) = published.into_iter().find(Result::is_err)
            && let Some(suppressed) = LOG_LIMIT.due("publish")
        {
            tracing::warn!(%error, suppressed, "a broadcast to other servers failed and is lost");
        }
    }
}

/// Resolves the recipients for the original, which supports no exclusions: with exclusions, all other users are named.
async fn resolve_exclusions(
    link: &ServerLink,
    recipients: &Recipients,
    excluding: &[UserId],
) -> Result<Recipients, RedisError> {
    match recipients {
        Recipients::Everyone if excluding.is_empty() => Ok(Recipients::Everyone),
        Recipients::Everyone => {
            let all = channel::online_users(link).await?.into_iter();
            Ok(Recipients::Users(all.filter(|user| !excluding.contains(user)).collect()))
        }
        Recipients::Users(users) => {
            Ok(Recipients::Users(users.iter().filter(|user| !excluding.contains(user)).cloned().collect()))
        }
    }
}

impl Cluster for RedisBackplane {
    fn set_local_connections(&self, user: &UserId, connections: usize) {
        self.presence.set_connections(user, connections);
    }

    fn set_connection_count(&self, connections: usize) {
        self.presence.set_connection_count(connections);
    }

    fn remote_connections<'a>(&'a self, users: &'a [UserId]) -> BoxFuture<'a, Option<Vec<usize>>> {
        let (link, users) = (self.link.clone(), users.to_vec());
        let query = async move { presence::remote_connections(&link, &users).await };
        Box::pin(async move { self.link.run(query).await.ok() })
    }

    fn remote_connection_count(&self) -> BoxFuture<'_, usize> {
        let link = self.link.clone();
        let query = async move { presence::remote_connection_count(&link).await };
        Box::pin(async move { self.link.run(query).await.unwrap_or(0) })
    }

    fn original_presence<'a>(&'a self, users: &'a [UserId]) -> BoxFuture<'a, Result<Vec<OriginalPresence>, Arc<str>>> {
        if !self.presence.original_is_present() {
            return Box::pin(std::future::ready(Ok(Vec::new())));
        }
        let (link, users) = (self.link.clone(), users.to_vec());
        let query = async move { channel::connected(&link, &users).await };
        Box::pin(async move { self.link.run(query).await.map_err(|error| error.to_string().into()) })
    }

    fn publish_to_original<'a>(
        &'a self,
        payload: &'a Payload,
        users: &'a [UserId],
        id: Option<&'a DispatchId>,
    ) -> BoxFuture<'a, Result<(), Arc<str>>> {
        let (link, payload, users) = (self.link.clone(), payload.clone(), Recipients::Users(users.to_vec()));
        let id = id.cloned();
        let publishing = async move {
            match id {
                Some(id) => channel::publish_unanswered(&link, payload.as_bytes(), &users, &id).await,
                None => channel::publish(&link, payload.as_bytes(), &users).await,
            }
        };
        Box::pin(async move { self.link.run(publishing).await.map_err(|error| error.to_string().into()) })
    }

    fn online_page<'a>(&'a self, after: Option<&'a UserId>, limit: usize) -> BoxFuture<'a, Option<Vec<UserId>>> {
        let (link, after) = (self.link.clone(), after.cloned());
        let query = async move { presence::online_page(&link, after.as_ref(), limit).await };
        Box::pin(async move { self.link.run(query).await.ok() })
    }

    fn online_users(&self) -> BoxFuture<'_, Option<Vec<UserId>>> {
        let link = self.link.clone();
        let query = async move {
            if original_supported(&link) {
                channel::online_users(&link).await
            } else {
                presence::online_users(&link).await
            }
        };
        Box::pin(async move { self.link.run(query).await.ok() })
    }

    fn online_user_count(&self) -> BoxFuture<'_, Option<usize>> {
        let link = self.link.clone();
        let query = async move {
            if original_supported(&link) {
                channel::online_user_count(&link).await
            } else {
                presence::online_user_count(&link).await
            }
        };
        Box::pin(async move { self.link.run(query).await.ok() })
    }

    fn is_online<'a>(&'a self, user: &'a UserId) -> BoxFuture<'a, Option<bool>> {
        let (link, users) = (self.link.clone(), [user.clone()]);
        let query = async move {
            if original_supported(&link) {
                Ok(channel::connected(&link, &users)
                    .await?
                    .iter()
                    .any(|presence| *presence != OriginalPresence::Offline))
            } else {
                presence::is_online(&link, &users[0]).await
            }
        };
        Box::pin(async move { self.link.run(query).await.ok() })
    }

    fn connection_count(&self) -> BoxFuture<'_, Option<usize>> {
        let link = self.link.clone();
        let query = async move {
            if original_supported(&link) {
                channel::connection_count(&link).await
            } else {
                presence::connection_count(&link).await
            }
        };
        Box::pin(async move { self.link.run(query).await.ok() })
    }

    fn join_portals(&self, local: Weak<dyn LocalPortals>) -> Arc<dyn RemotePortals> {
        Portals::begin(&self.link, local)
    }

    fn broadcast(&self, broadcast: Broadcast) {
        self.link.pending_publishes.send_modify(|pending_publishes| *pending_publishes += 1);
        if self.queue.try_send(broadcast).is_err() {
            self.link.pending_publishes.send_modify(|pending_publishes| *pending_publishes -= 1);
            if let Some(suppressed) = LOG_LIMIT.due("queue") {
                tracing::warn!(suppressed, "the queue of broadcasts is full: a broadcast to other servers is lost");
            }
        }
    }

    fn subscribe(&self, on_broadcast: BroadcastHandler, sink: OriginalMessageSink) {
        let (channel_name, own) = (self.link.keys().broadcast_channel(), self.link.server_name().to_owned());
        let ingest = original_supported(&self.link)
            .then(|| OriginalIngest::begin(&self.link, self.presence.clone(), on_broadcast.clone(), sink));
        let resubscribed = ingest.as_ref().map(|ingest| ingest.resubscribed.clone());
        self.link.listen(Arc::new(move |notification| match notification {
            Notification::ChannelMessage { channel, payload } if *channel == channel_name => {
                if let Some(broadcast) = broadcast::decode(payload, &own) {
                    on_broadcast(broadcast);
                }
            }
            notification => {
                if let Some(ingest) = &ingest {
                    ingest.handle(notification);
                }
            }
        }));
        // Markers before this were missed, so one is published now.
        if let Some(resubscribed) = resubscribed {
            resubscribed.notify_one();
        }
    }
}
