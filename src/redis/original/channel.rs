//! The original's channel `ws`, on which its servers and Dispatchers publish.
//!
//! Our servers subscribe to it as a pattern, which NUMSUB does not count. So all counted subscribers are servers of the
//! original.

use std::{collections::HashSet, sync::LazyLock};

use serde_json::value::RawValue;

use crate::{
    cluster::OriginalPresence,
    compat::{
        dispatch::{OutgoingDispatch, PublishedDispatch, SENDER, parse_recipient},
        keyspace::Name,
    },
    logging::json_error,
    message::{DISCONNECT_CLIENT, DispatchId, EVERYONE, INTERNAL_EVENT, JsonString, Payload, Recipients, UserId},
    redis::{RedisError, ServerLink, broadcast::users, connection::Script},
};

/// Users queried in one step.
const QUERIED_MAX: usize = 500;

/// Users read in one step.
const PAGE_MAX: usize = 1000;

/// Time for which the record of an added user is stored after the user went offline, in ms. Longer than any operation
/// that relies on it.
const OFFLINE_TTL_MS: u64 = 60_000;

/// A decoded message of the channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::redis) enum OriginalPublish {
    /// A message for users. `sync`: it is stored for offline users.
    Message { payload: Payload, recipients: Recipients, sync: bool },
    /// A request to close the connections of these users.
    Disconnect(Recipients),
    /// A marker of one of our servers, from which all our servers count messages.
    Mark(String),
}

/// Decodes a message of the channel. `None` if our servers published it, or it has no recipients or is malformed.
pub(in crate::redis) fn decode(text: &[u8]) -> Option<OriginalPublish> {
    let PublishedDispatch { message, recipients, from, mark } = serde_json::from_slice(text)
        .inspect_err(
            |error| tracing::warn!(error = %json_error(error), "a message on the original's channel is malformed and ignored"),
        )
        .ok()?;
    if from.as_deref() == Some(SENDER) {
        return mark.map(OriginalPublish::Mark);
    }
    if recipients.is_empty() {
        return None;
    }
    let recipients: Vec<String> = recipients.into_iter().filter_map(parse_recipient).collect();
    let recipients = if recipients.iter().any(|recipient| recipient == EVERYONE) {
        Recipients::Everyone
    } else {
        Recipients::Users(users(&recipients))
    };
    if message.op == INTERNAL_EVENT {
        return (message.t.as_ref().and_then(JsonString::text) == Some(DISCONNECT_CLIENT))
            .then_some(OriginalPublish::Disconnect(recipients));
    }
    let payload = message
        .payload()
        .inspect_err(|error| tracing::warn!(%error, "a message on the original's channel cannot be sent to clients and is ignored"))
        .ok()?;
    let sync = message.o.is_none_or(|options| options.sync.unwrap_or(true));
    Some(OriginalPublish::Message { payload, recipients, sync })
}

/// Encodes a message for the channel. `None` if it is not JSON.
pub(in crate::redis) fn encode(message: &[u8], recipients: &Recipients) -> Option<Vec<u8>> {
    let message: &RawValue = serde_json::from_slice(message).ok()?;
    let recipients = match recipients {
        Recipients::Everyone => vec![EVERYONE],
        Recipients::Users(users) => users.iter().map(UserId::as_str).collect(),
    };
    serde_json::to_vec(&OutgoingDispatch { message, recipients, from: SENDER, mark: None }).ok()
}

/// Publishes a message to the original.
pub(in crate::redis) async fn publish(
    link: &ServerLink,
    message: &[u8],
    recipients: &Recipients,
) -> Result<(), RedisError> {
    let Some(text) = encode(message, recipients) else { return Ok(()) };
    link.client().query(redis::cmd("PUBLISH").arg(link.keys().original(Name::Ws)).arg(text)).await
}

/// Publishes a message unless its dispatch has a result. KEYS: 1 result of the dispatch; ARGV: 1 channel, 2 message.
static PUBLISH_UNANSWERED: LazyLock<Script> = LazyLock::new(|| {
    Script::new("if redis.call('EXISTS', KEYS[1]) == 0 then redis.call('PUBLISH', ARGV[1], ARGV[2]) end")
});

/// Publishes a message to the original unless its dispatch was answered before.
pub(in crate::redis) async fn publish_unanswered(
    link: &ServerLink,
    message: &[u8],
    recipients: &Recipients,
    id: &DispatchId,
) -> Result<(), RedisError> {
    let Some(text) = encode(message, recipients) else { return Ok(()) };
    let arguments = [link.keys().original(Name::Ws).into_bytes(), text];
    link.client().run_script(&PUBLISH_UNANSWERED, &[link.keys().dispatch_result(id.as_str())], &arguments).await
}

/// Publishes a marker. The original's servers ignore it, since it has no recipients.
pub(super) async fn publish_mark(link: &ServerLink, mark: &str) -> Result<(), RedisError> {
    let message = RawValue::from_string(r#"{"op":0,"t":"MARK"}"#.to_owned());
    let message = message.map_err(|error| RedisError::Refused(error.to_string().into()))?;
    let mark = OutgoingDispatch { message: &message, recipients: Vec::new(), from: SENDER, mark: Some(mark) };
    let text = serde_json::to_vec(&mark).map_err(|error| RedisError::Refused(error.to_string().into()))?;
    link.client().query(redis::cmd("PUBLISH").arg(link.keys().original(Name::Ws)).arg(text)).await
}

/// Tells whether a server of the original is subscribed.
pub(in crate::redis) async fn has_subscriber(link: &ServerLink) -> Result<bool, RedisError> {
    let command = redis::cmd("PUBSUB").arg("NUMSUB").arg(link.keys().original(Name::Ws)).to_owned();
    let (_, count): (String, u64) = link.client().query(&command).await?;
    Ok(count > 0)
}

/// Looks up users. KEYS: 1 `connected_clients`, 2 users that we added there; ARGV: users. Returns for each 0: not
/// listed; 1: listed, perhaps because we added the user; 2: listed, and not added by us.
static CONNECTED: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local found = {}
        for at, user in ipairs(ARGV) do
          found[at] = redis.call('SISMEMBER', KEYS[1], user)
          if found[at] == 1 and not redis.call('ZSCORE', KEYS[2], user) then found[at] = 2 end
        end
        return found",
    )
});

/// Looks up how users are connected to the original.
pub(in crate::redis) async fn connected(
    link: &ServerLink,
    users: &[UserId],
) -> Result<Vec<OriginalPresence>, RedisError> {
    let keys = [link.keys().original(Name::Clients), link.keys().original_users_added()];
    let mut found = Vec::with_capacity(users.len());
    for batch in users.chunks(QUERIED_MAX) {
        let batch: Vec<&str> = batch.iter().map(UserId::as_str).collect();
        let answer: Vec<u8> = link.client().run_script(&CONNECTED, &keys, &batch).await?;
        found.extend(answer.into_iter().map(|status| match status {
            0 => OriginalPresence::Offline,
            1 => OriginalPresence::Possible,
            _ => OriginalPresence::Exclusive,
        }));
    }
    Ok(found)
}

/// Removes records of added users. KEYS: 1 users that we added; ARGV: 1 ms since they went offline, 2 maximum number.
/// Returns the number of removed records.
static REMOVE_OFFLINE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local t = redis.call('TIME')
        local max = string.format('%.0f', t[1] * 1000 - ARGV[1])
        local offline = redis.call('ZRANGEBYSCORE', KEYS[1], '(0', max, 'LIMIT', 0, ARGV[2])
        for _, user in ipairs(offline) do redis.call('ZREM', KEYS[1], user) end
        return #offline",
    )
});

/// Removes the records of users that we added and that went offline more than a minute ago.
pub(in crate::redis) async fn remove_offline_records(link: &ServerLink) -> Result<(), RedisError> {
    let (keys, arguments) =
        ([link.keys().original_users_added()], [OFFLINE_TTL_MS.to_string(), QUERIED_MAX.to_string()]);
    while link.client().run_script::<usize>(&REMOVE_OFFLINE, &keys, &arguments).await? == QUERIED_MAX {}
    Ok(())
}

/// Lists all online users, of our servers and of the original's.
///
/// Reads pages, so that Redis serves other clients in between. A user who connects or disconnects meanwhile may be
/// listed or not.
pub(in crate::redis) async fn online_users(link: &ServerLink) -> Result<Vec<UserId>, RedisError> {
    let connected = link.keys().original(Name::Clients);
    // Pages may repeat users.
    let (mut all, mut cursor) = (HashSet::new(), 0_u64);
    loop {
        let mut command = redis::cmd("SSCAN");
        command.arg(&connected).arg(cursor).arg("COUNT").arg(PAGE_MAX);
        let (next, page): (u64, Vec<String>) = link.client().query(&command).await?;
        all.extend(users(&page));
        if next == 0 {
            return Ok(all.into_iter().collect());
        }
        cursor = next;
    }
}

/// Counts all online users.
pub(in crate::redis) async fn online_user_count(link: &ServerLink) -> Result<usize, RedisError> {
    link.client().query(redis::cmd("SCARD").arg(link.keys().original(Name::Clients))).await
}

/// Counts the connections to all servers. The original's counter may fall below zero, which counts as 0.
pub(in crate::redis) async fn connection_count(link: &ServerLink) -> Result<usize, RedisError> {
    let count: Option<i64> = link.client().query(redis::cmd("GET").arg(link.keys().original(Name::Count))).await?;
    Ok(usize::try_from(count.unwrap_or(0)).unwrap_or(0))
}

/// Tells whether the original can use this Redis. It does not support Redis Cluster, so nothing is written or read for
/// it there.
pub(in crate::redis) fn original_supported(link: &ServerLink) -> bool {
    !link.client().is_redis_cluster()
}

/// Returns a key or channel of the original; empty where it cannot use this Redis.
pub(in crate::redis) fn original_name(link: &ServerLink, name: Name) -> String {
    if original_supported(link) { link.keys().original(name) } else { String::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decode_returns_messages_of_the_original_and_skips_ours() {
        let user = |id| UserId::new(id).unwrap();
        let payload = Payload::encode(0, Some("{\"n\":1.0}"), Some("T")).unwrap();
        let text = br#"{"message":{"op":0,"d":{"n":1.0},"t":"T","o":{"sync":false}},"recipients":["a","b"]}"#;
        let recipients = Recipients::Users(vec![user("a"), user("b")]);
        let message =
            OriginalPublish::Message { payload: payload.clone(), recipients: recipients.clone(), sync: false };
        assert_eq!(decode(text), Some(message));
        let text = br#"{"message":{"op":5,"d":{},"t":"DISCONNECT_CLIENT"},"recipients":["*"]}"#;
        assert_eq!(decode(text), Some(OriginalPublish::Disconnect(Recipients::Everyone)));
        for nothing in
            [&br#"{"message":{"op":0},"recipients":[]}"#[..], b"{", b"{\"message\":{\"op\":1},\"recipients\":[\"a\"]}"]
        {
            assert_eq!(decode(nothing), None);
        }
        // Like a Node service may send it: ids that are numbers, and values that are no ids.
        let text = br#"{"message":{"op":0,"d":{"n":1.0},"t":"T","o":{"sync":null}},"recipients":["a",7,null,-1,"b"]}"#;
        let recipients_read = Recipients::Users(vec![user("a"), user("7"), user("b")]);
        let message = OriginalPublish::Message { payload: payload.clone(), recipients: recipients_read, sync: true };
        assert_eq!(decode(text), Some(message));
        let mark = br#"{"message":{"op":0,"t":"MARK"},"recipients":[],"from":"mesa","mark":"1-a-7"}"#;
        assert_eq!(decode(mark), Some(OriginalPublish::Mark("1-a-7".into())));
        let ours = encode(payload.as_bytes(), &recipients).unwrap();
        assert_eq!(decode(&ours), None);
        let expected = r#"{"message":{"op":0,"d":{"n":1.0},"t":"T"},"recipients":["a","b"],"from":"mesa"}"#;
        assert_eq!(String::from_utf8(ours).unwrap(), expected);
    }
}
