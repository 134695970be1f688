//! Sends the replies to the operations of a commit.

use tokio::sync::oneshot;

use crate::store::{AppendResult, StoreError};

/// Sends the reply to one caller.
pub(in crate::embedded) type ReplySender<T> = oneshot::Sender<Result<T, StoreError>>;

/// Holds the reply to one operation of a commit.
pub(in crate::embedded) enum Reply {
    Append(ReplySender<Vec<AppendResult>>, Vec<AppendResult>),
    Clear(ReplySender<u64>, u64),
}

/// Holds the replies of a durable commit, and sends them when dropped.
///
/// So a runtime that shuts down sends them too.
pub(in crate::embedded) struct Replies(pub Vec<Reply>);

impl Drop for Replies {
    fn drop(&mut self) {
        self.0.drain(..).for_each(Reply::send);
    }
}

impl Reply {
    /// Sends the reply. The caller may no longer wait.
    pub(in crate::embedded) fn send(self) {
        match self {
            Self::Append(done, appended) => _ = done.send(Ok(appended)),
            Self::Clear(done, cleared) => _ = done.send(Ok(cleared)),
        }
    }

    /// Replies with an error instead.
    pub(in crate::embedded) fn reject(self, error: &StoreError) {
        match self {
            Self::Append(done, _) => _ = done.send(Err(error.clone())),
            Self::Clear(done, _) => _ = done.send(Err(error.clone())),
        }
    }
}
