//! Contract between the servers of a cluster.
//!
//! - [`Cluster`]: the trait
//! - [`portals`]: the part of it for portals
//! - `redis`: the implementation over one Redis (feature `redis`)
//!
//! Nothing durable travels this way: a log entry is read from the log. A broadcast may be lost with the connection. That
//! affects unsynced messages and disconnect requests only.

pub mod portals;

use std::sync::{Arc, Weak};

use futures_util::future::BoxFuture;

use crate::message::{DispatchId, Payload, Recipients, UserId};
use portals::{LocalPortals, RemotePortals};

/// Carries a request to every server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Broadcast {
    /// A message that bypasses the logs.
    Message {
        /// The encoded message.
        payload: Payload,
        /// Its recipients.
        recipients: Recipients,
        /// Recipients that do not get it.
        excluding: Vec<UserId>,
    },
    /// A request to close the connections of some users.
    Disconnect {
        /// The users.
        recipients: Recipients,
        /// Users whose connections stay open.
        excluding: Vec<UserId>,
    },
}

/// Handles broadcasts of other servers. Must not block.
pub type BroadcastHandler = Arc<dyn Fn(Broadcast) + Send + Sync>;

/// A message from a server of the original Mesa (`@cryb/mesa`), for users of ours.
#[derive(Clone, Debug)]
pub struct OriginalMessage {
    /// The encoded message.
    pub payload: Payload,
    /// Its recipients.
    pub users: Vec<UserId>,
    /// Identifies the message on every server of ours that receives it. Each recipient is to get it once. `None`: unknown;
    /// what several servers store is delivered several times.
    pub id: Option<DispatchId>,
    /// Received some time ago and stored by no server since. Where logs are disabled it is dropped.
    pub late: bool,
}

/// Stores messages from servers of the original, in order. Resolves when they are stored, which may take minutes while the
/// store is unreachable.
pub type OriginalMessageSink = Arc<dyn Fn(Vec<OriginalMessage>) -> BoxFuture<'static, ()> + Send + Sync>;

/// Says how a user is connected to servers of the original.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OriginalPresence {
    /// Not connected there.
    Offline,
    /// Possibly connected there. The original lists the user, perhaps only because a server of ours added the entry.
    Possible,
    /// Connected there, and not added by a server of ours.
    Exclusive,
}

/// The other servers, as one server sees them.
pub trait Cluster: Send + Sync + 'static {
    /// Sets how many connections of this user this server has. Never waits. Of two calls the later one counts.
    fn set_local_connections(&self, user: &UserId, connections: usize);

    /// Sets how many connections this server has in all. Never waits.
    fn set_connection_count(&self, connections: usize);

    /// Counts the connections of each user at the other servers. `None` where they cannot be queried now.
    fn remote_connections<'a>(&'a self, users: &'a [UserId]) -> BoxFuture<'a, Option<Vec<usize>>>;

    /// Counts all connections at the other servers. 0 where they cannot be queried now.
    fn remote_connection_count(&self) -> BoxFuture<'_, usize>;

    /// Looks up how each user is connected to servers of the original. Messages for connected ones must be published there
    /// too. Empty where the original has no server here.
    ///
    /// Fails with a sentence that says why where Redis cannot be queried now.
    fn original_presence<'a>(&'a self, users: &'a [UserId]) -> BoxFuture<'a, Result<Vec<OriginalPresence>, Arc<str>>>;

    /// Publishes a message to servers of the original. One with an id only if no dispatch with that id has been answered.
    ///
    /// Fails with a sentence that says why where it was not published.
    fn publish_to_original<'a>(
        &'a self,
        payload: &'a Payload,
        users: &'a [UserId],
        id: Option<&'a DispatchId>,
    ) -> BoxFuture<'a, Result<(), Arc<str>>>;

    /// Lists users who are online at any server of ours, in order of their ids, above `after`. `None` where they cannot be
    /// queried now.
    fn online_page<'a>(&'a self, after: Option<&'a UserId>, limit: usize) -> BoxFuture<'a, Option<Vec<UserId>>>;

    /// Lists all online users, also those of the original's servers, in no order. `None` where they cannot be queried now.
    fn online_users(&self) -> BoxFuture<'_, Option<Vec<UserId>>>;

    /// Counts the users that [`Cluster::online_users`] lists.
    fn online_user_count(&self) -> BoxFuture<'_, Option<usize>>;

    /// Tells whether [`Cluster::online_users`] lists a user.
    fn is_online<'a>(&'a self, user: &'a UserId) -> BoxFuture<'a, Option<bool>>;

    /// Counts connections at all servers, also the original's. `None` where they cannot be queried now.
    fn connection_count(&self) -> BoxFuture<'_, Option<usize>>;

    /// Joins this server's portals to those of the cluster. Called once.
    fn join_portals(&self, local: Weak<dyn LocalPortals>) -> Arc<dyn RemotePortals>;

    /// Sends a broadcast to every other server. Never waits. One that cannot be sent is lost, and logged.
    fn broadcast(&self, broadcast: Broadcast);

    /// Sets the handlers of broadcasts and of the original's messages. Called once.
    fn subscribe(&self, on_broadcast: BroadcastHandler, sink: OriginalMessageSink);
}
