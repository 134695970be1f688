//! Answers to what a commit was asked for.

use tokio::sync::oneshot;

use crate::store::{Appended, StoreError};

/// Where an answer of this kind is awaited.
pub(in crate::embedded) type Done<T> = oneshot::Sender<Result<T, StoreError>>;

/// An answer to one request of a commit.
pub(in crate::embedded) enum Answer {
    Append(Done<Vec<Appended>>, Vec<Appended>),
    Clear(Done<u64>, u64),
}

/// Answers of a commit that is durable. They are given when this is dropped, also by a runtime that stops.
pub(in crate::embedded) struct Answers(pub Vec<Answer>);

impl Drop for Answers {
    fn drop(&mut self) {
        self.0.drain(..).for_each(Answer::give);
    }
}

impl Answer {
    /// Whoever asked may be gone.
    pub(in crate::embedded) fn give(self) {
        match self {
            Self::Append(done, appended) => _ = done.send(Ok(appended)),
            Self::Clear(done, cleared) => _ = done.send(Ok(cleared)),
        }
    }

    pub(in crate::embedded) fn refuse(self, error: &StoreError) {
        match self {
            Self::Append(done, _) => _ = done.send(Err(error.clone())),
            Self::Clear(done, _) => _ = done.send(Err(error.clone())),
        }
    }
}
