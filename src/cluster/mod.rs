//! Defines the contract between the servers of a cluster.
//!
//! - [`Cluster`]: the trait
//! - [`portals`]: the part of it for portals
//! - `redis`: the implementation over one Redis (feature `redis`)
//!
//! No durable data is sent this way: log entries are read from the log. A broadcast may be lost with the connection.
//! Only unsynced messages and disconnect requests are broadcasts.

pub mod portals;

use std::sync::{Arc, Weak};

use futures_util::future::BoxFuture;

use crate::message::{DispatchId, Payload, Recipients, UserId};
use portals::{LocalPortals, RemotePortals};

/// A request to every server.
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
        /// Text for the close frames; `None`: the default.
        reason: Option<Arc<str>>,
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
    /// Id of the message, the same on all our servers. It makes each recipient get the message once. `None`: unknown,
    /// so each server that stores the message delivers it.
    pub id: Option<DispatchId>,
    /// Received more than 1 s ago, and not stored by its recipients' servers. Dropped where logs are disabled.
    pub late: bool,
}

/// Stores messages from servers of the original, in order. Resolves when they are stored: after minutes, if the store
/// is unreachable.
pub type OriginalMessageSink = Arc<dyn Fn(Vec<OriginalMessage>) -> BoxFuture<'static, ()> + Send + Sync>;

/// Tells whether a user is connected to servers of the original.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OriginalPresence {
    /// Not connected there.
    Offline,
    /// Perhaps connected there: the original lists the user, but a server of ours may have added the entry.
    Possible,
    /// Connected there, and not added by a server of ours.
    Exclusive,
}

/// The servers of a cluster, as one of them sees it.
pub trait Cluster: Send + Sync + 'static {
    /// Sets the number of this user's connections on this server. Never waits. The later of two calls counts.
    fn set_local_connections(&self, user: &UserId, connections: usize);

    /// Sets the number of all connections of this server. Never waits.
    fn set_connection_count(&self, connections: usize);

    /// Counts the connections of each user at other servers. `None` while Redis cannot be queried.
    fn remote_connections<'a>(&'a self, users: &'a [UserId]) -> BoxFuture<'a, Option<Vec<usize>>>;

    /// Counts all connections at other servers. 0 while Redis cannot be queried.
    fn remote_connection_count(&self) -> BoxFuture<'_, usize>;

    /// Looks up whether each user is connected to servers of the original. Messages for these users must be published
    /// there too. Empty if no server of the original is running.
    ///
    /// Fails with the reason while Redis cannot be queried.
    fn original_presence<'a>(&'a self, users: &'a [UserId]) -> BoxFuture<'a, Result<Vec<OriginalPresence>, Arc<str>>>;

    /// Publishes a message to servers of the original. With an id, only if no dispatch with that id was answered
    /// before.
    ///
    /// Fails with the reason why it was not published.
    fn publish_to_original<'a>(
        &'a self,
        payload: &'a Payload,
        users: &'a [UserId],
        id: Option<&'a DispatchId>,
    ) -> BoxFuture<'a, Result<(), Arc<str>>>;

    /// Lists users who are online at any server of ours, above `after`, in order of their ids. `None` while Redis
    /// cannot be queried.
    fn online_page<'a>(&'a self, after: Option<&'a UserId>, limit: usize) -> BoxFuture<'a, Option<Vec<UserId>>>;

    /// Lists all online users, also those of the original's servers, unordered. `None` while Redis cannot be queried.
    fn online_users(&self) -> BoxFuture<'_, Option<Vec<UserId>>>;

    /// Counts the users that [`Cluster::online_users`] lists.
    fn online_user_count(&self) -> BoxFuture<'_, Option<usize>>;

    /// Tells whether [`Cluster::online_users`] lists a user.
    fn is_online<'a>(&'a self, user: &'a UserId) -> BoxFuture<'a, Option<bool>>;

    /// Counts connections at all servers, also the original's. `None` while Redis cannot be queried.
    fn connection_count(&self) -> BoxFuture<'_, Option<usize>>;

    /// Joins this server's portals to those of the cluster. Called once.
    fn join_portals(&self, local: Weak<dyn LocalPortals>) -> Arc<dyn RemotePortals>;

    /// Sends a broadcast to every other server. Never waits. If it cannot be sent, it is lost, and that is logged.
    fn broadcast(&self, broadcast: Broadcast);

    /// Sets the handlers of broadcasts and of the original's messages. Called once.
    fn subscribe(&self, on_broadcast: BroadcastHandler, sink: OriginalMessageSink);
}
