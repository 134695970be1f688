//! What a stock process has left for a user (`undelivered_messages`): taken in one step, and put into his log.
//!
//! Taken means moved to a field of our own in the same hash, under a name that is new each time; it is gone from there only
//! when all of it is in the log. So whoever dies in between leaves it to the next, and nothing comes twice.

use std::sync::LazyLock;

use super::Shared;
use crate::{
    cluster::redis::{LinkError, Script, StockMessage},
    message::{DispatchId, UserId},
    store::{Append, Once},
};

/// KEYS: 1 what stock has left; ARGV: 1 the user, 2 the field for what was taken, 3 a name.
static TAKE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local taken = redis.call('HGET', KEYS[1], ARGV[2])
        if taken then return taken end
        local left = redis.call('HGET', KEYS[1], ARGV[1])
        if not left then return false end
        redis.call('HSET', KEYS[1], ARGV[2], ARGV[3] .. '\\n' .. left)
        redis.call('HDEL', KEYS[1], ARGV[1])
        return ARGV[3] .. '\\n' .. left",
    )
});

/// ARGV: 1 the field, 2 what was taken.
static DONE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "if redis.call('HGET', KEYS[1], ARGV[1]) == ARGV[2] then redis.call('HDEL', KEYS[1], ARGV[1]) end
        return 1",
    )
});

impl Shared {
    /// Puts what stock has left for a user into his log.
    pub(super) async fn take_undelivered(&self, user: &UserId) -> Result<(), LinkError> {
        let link = self.caller.link()?;
        let keys = [link.names().stock("undelivered_messages")];
        // Ids have no control characters: nobody is called that.
        let field = format!("\0mesa:taken:{user}");
        let mut random = [0_u8; 8];
        getrandom::fill(&mut random).map_err(|error| LinkError::Refused(format!("no random number: {error}")))?;
        let name = format!("{:016x}", u64::from_be_bytes(random));
        let taken: Option<String> = link.lines().run(&TAKE, &keys, &[user.as_str(), &field, &name]).await?;
        let Some(taken) = taken else { return Ok(()) };
        let (name, left) = taken.split_once('\n').unwrap_or_default();
        let messages: Vec<StockMessage<'_>> = match serde_json::from_str(left) {
            Ok(messages) => messages,
            Err(error) => {
                tracing::error!(%user, %error, "what stock has left for this user is not understood, and stays");
                return Ok(());
            }
        };
        let mut appends = Vec::with_capacity(messages.len());
        for (at, message) in messages.iter().enumerate() {
            let payload = match message.payload() {
                Ok(payload) => payload,
                Err(error) => {
                    tracing::warn!(%user, %error, "a message that stock has left cannot be sent to a client");
                    continue;
                }
            };
            // Made of what has no control characters, and short.
            let Ok(id) = DispatchId::new(&format!("stock-{name}-{at}")) else { continue };
            let once = Some(Once { id, online: vec![false], refused: Vec::new() });
            appends.push(Append { once, ..Append::new(payload, vec![user.clone()]) });
        }
        let made = self.append_all(appends).await?;
        if made.iter().any(|one| one.answered.as_ref().is_some_and(|answered| !answered.rejected.is_empty())) {
            tracing::warn!(%user, "this user has no room for all that stock has left; it stays until he comes again");
            return Ok(());
        }
        link.lines().run::<()>(&DONE, &keys, &[field.as_str(), taken.as_str()]).await
    }
}
