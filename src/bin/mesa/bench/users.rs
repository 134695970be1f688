//! Names the users of a measurement, signs their tokens, and erases them at the end.

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use mesa::{
    auth::issue,
    client::token,
    dispatcher::{DispatchError, Dispatcher},
    message::UserId,
};
use serde_json::{Map, Value};

use crate::error::Failure;

/// Users that are erased at the same time. The server erases one at a time, and queues 16.
const ERASE_CONCURRENCY: usize = 8;

/// Names users that no other measurement and no application has.
#[derive(Debug)]
pub struct Users {
    ids: Vec<UserId>,
    /// Signs tokens; `None`: the token is the user id.
    secret: Option<String>,
}

impl Users {
    pub fn new(count: usize, secret: Option<String>) -> Result<Self, Failure> {
        let mut random = [0; 4];
        getrandom::fill(&mut random).map_err(|error| Failure::because(format!("no random number: {error}")))?;
        let run = u32::from_ne_bytes(random);
        let id = |number| UserId::new(&format!("bench-{run:08x}-{number}")).map_err(Failure::because);
        Ok(Self { ids: (0..count).map(id).collect::<Result<_, _>>()?, secret })
    }

    pub fn count(&self) -> usize {
        self.ids.len()
    }

    pub fn id(&self, number: usize) -> &UserId {
        &self.ids[number]
    }

    /// Returns all ids.
    pub fn all(&self) -> &[UserId] {
        &self.ids
    }

    /// Returns the id of one user, as a slice.
    pub fn one(&self, number: usize) -> &[UserId] {
        std::slice::from_ref(&self.ids[number])
    }

    /// Returns what a client authenticates with.
    pub fn credentials(&self, number: usize) -> Result<Map<String, Value>, Failure> {
        let id = self.id(number);
        match &self.secret {
            None => Ok(token(id.as_str())),
            Some(secret) => issue(secret, "HS256", id, None, Map::new()).map(|signed| token(&signed)),
        }
        .map_err(Failure::because)
    }

    /// Erases the users. With a store that cannot erase, clears their messages.
    pub async fn erase(&self, dispatcher: &Dispatcher) -> Result<(), Failure> {
        let erase = |id: &UserId| {
            let id = id.clone();
            async move {
                match dispatcher.erase(&id).await {
                    Ok(()) | Err(DispatchError::Rejected { status: 404, .. }) => Ok(()),
                    Err(DispatchError::Rejected { status: 501, .. }) => dispatcher.clear(&id).await.map(drop),
                    Err(error) => Err(error),
                }
            }
        };
        let erased = stream::iter(&self.ids).map(erase).buffer_unordered(ERASE_CONCURRENCY).try_collect::<Vec<()>>();
        erased.await.map(drop).map_err(|error| {
            Failure::because(format!(
                "users that begin with bench- could not be erased, and stay in the store: {error}"
            ))
        })
    }
}
