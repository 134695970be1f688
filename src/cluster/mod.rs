//! Several servers as one: what they tell each other, and what they stand on.
//!
//! - [`Cluster`]: the contract
//! - [`portals`]: the part of it that is about portals
//! - `redis`: over one Redis (only with `--features redis`)
//!
//! Nothing that is promised is told this way: what is kept is in the log, and the log is asked. What is told may be lost
//! with the line: messages that are never kept, and who is to go.

pub mod portals;

use std::sync::{Arc, Weak};

use futures_util::future::BoxFuture;

use crate::message::{DispatchId, Payload, Recipients, UserId};
use portals::{LocalPortals, RemotePortals};

/// Something that every server is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Broadcast {
    /// A message that passes the logs by.
    Message {
        /// What is said.
        payload: Payload,
        /// Who it is for.
        recipients: Recipients,
        /// And who not.
        excluding: Vec<UserId>,
    },
    /// These are to go.
    Disconnect {
        /// Who.
        recipients: Recipients,
        /// And who not.
        excluding: Vec<UserId>,
    },
}

/// Who is told what other servers say. Must not block.
pub type BroadcastHandler = Arc<dyn Fn(Broadcast) + Send + Sync>;

/// A message from a server of another make, for users of ours.
#[derive(Clone, Debug)]
pub struct OriginalMessage {
    /// What is said.
    pub payload: Payload,
    /// Who it is for.
    pub users: Vec<UserId>,
    /// By which all of our servers that hear it know it; each of its users is to have it once. `None`: not known; what several
    /// keep of it comes several times.
    pub id: Option<DispatchId>,
    /// Heard a while ago, and kept by nobody since. Where nothing is kept there is nothing to be done.
    pub late: bool,
}

/// Who keeps messages that came from a server of another make: one after the other, and resolves when they are kept, which may
/// take minutes where the store cannot be reached.
pub type OriginalMessageSink = Arc<dyn Fn(Vec<OriginalMessage>) -> BoxFuture<'static, ()> + Send + Sync>;

/// How a user is connected to servers of another make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OriginalPresence {
    /// Not at all.
    Offline,
    /// Perhaps. He is taken to be connected, and may be so because he is, or was a moment ago, at one of ours.
    Possible,
    /// He is, and was at none of ours.
    Exclusive,
}

/// The other servers, from the side of one.
pub trait Cluster: Send + Sync + 'static {
    /// So many connections of this user are here now. Never waits; of two calls the later holds.
    fn set_local_connections(&self, user: &UserId, connections: usize);

    /// So many connections are here now, whoever they are. Never waits.
    fn set_connection_count(&self, connections: usize);

    /// Connections of each of these users at the other servers; `None` where that cannot be found out now.
    fn remote_connections<'a>(&'a self, users: &'a [UserId]) -> BoxFuture<'a, Option<Vec<usize>>>;

    /// Connections at the other servers in all; 0 where that cannot be found out now.
    fn remote_connection_count(&self) -> BoxFuture<'_, usize>;

    /// How each of these users is connected to servers of another make (stock's): those who are have to be told there. Empty
    /// where there are no such servers; where that cannot be found out now, a sentence that says why.
    fn original_presence<'a>(&'a self, users: &'a [UserId]) -> BoxFuture<'a, Result<Vec<OriginalPresence>, Arc<str>>>;

    /// Has servers of another make send a message to users of theirs; one with an id only where no dispatch with that id has
    /// been answered. Where that could not be said, a sentence that says why.
    fn publish_to_original<'a>(
        &'a self,
        payload: &'a Payload,
        users: &'a [UserId],
        id: Option<&'a DispatchId>,
    ) -> BoxFuture<'a, Result<(), Arc<str>>>;

    /// Users who are connected to any server, in the order of their ids, those above `after`; `None` where that cannot be
    /// found out now.
    fn online_page<'a>(&'a self, after: Option<&'a UserId>, limit: usize) -> BoxFuture<'a, Option<Vec<UserId>>>;

    /// Everybody who is connected to any server, of another make too, in no order; `None` where that cannot be found out now.
    fn online_users(&self) -> BoxFuture<'_, Option<Vec<UserId>>>;

    /// How many those are.
    fn online_user_count(&self) -> BoxFuture<'_, Option<usize>>;

    /// Whether a user is one of them.
    fn is_online<'a>(&'a self, user: &'a UserId) -> BoxFuture<'a, Option<bool>>;

    /// Connections at all servers, of another make too; `None` where that cannot be found out now.
    fn connection_count(&self) -> BoxFuture<'_, Option<usize>>;

    /// From here on the portals here are among those of all servers. Called once.
    fn join_portals(&self, near: Weak<dyn LocalPortals>) -> Arc<dyn RemotePortals>;

    /// Tells every other server. Never waits; what cannot be told is lost, and counted in the log.
    fn broadcast(&self, word: Broadcast);

    /// Sets who is told what other servers say. Called once.
    fn subscribe(&self, hears: BroadcastHandler, keeps: OriginalMessageSink);
}
