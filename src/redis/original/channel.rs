//! What stock's servers and Dispatchers say to each other, on the channel that they call `ws`.
//!
//! Whoever of ours listens there does so by a pattern, and so is not counted among its subscribers: those are stock's.

use std::{collections::HashSet, sync::LazyLock};

use serde_json::value::RawValue;

use crate::{
    cluster::Beside,
    compat::{
        dispatch::{DISCONNECT_CLIENT, INTERNAL_EVENT, OURS, Published, Publishing, recipient},
        keyspace::Name,
    },
    logging::json_error,
    message::{DispatchId, EVERYONE, JsonString, Payload, Recipients, UserId},
    redis::{Link, LinkError, broadcast::users, connection::Script},
};

/// Users asked about in one step.
const ASKED_MAX: usize = 500;

/// Users read of a set in one step.
const PAGE: usize = 1000;

/// For how long, in ms, it is remembered whom we had put among the connected: longer than anything takes that was begun on
/// the strength of that.
const REMEMBERED_MS: u64 = 60_000;

/// Something stock has said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::redis) enum Said {
    /// A message for these, and whether it may be kept.
    Message { payload: Payload, recipients: Recipients, sync: bool },
    /// These are to go.
    Leave(Recipients),
    /// One of ours has said this, so that all of ours can count from there.
    Mark(String),
}

/// Reads what was published; nothing where it is ours, for nobody, or not understood.
pub(in crate::redis) fn read(text: &[u8]) -> Option<Said> {
    let Published { message, recipients, from, mark } = serde_json::from_slice(text)
        .inspect_err(
            |error| tracing::warn!(error = %json_error(error), "something on stock's channel is not understood"),
        )
        .ok()?;
    if from.as_deref() == Some(OURS) {
        return mark.map(Said::Mark);
    }
    if recipients.is_empty() {
        return None;
    }
    let recipients: Vec<String> = recipients.into_iter().filter_map(recipient).collect();
    let recipients = if recipients.iter().any(|one| one == EVERYONE) {
        Recipients::Everyone
    } else {
        Recipients::Users(users(&recipients))
    };
    if message.op == INTERNAL_EVENT {
        return (message.t.as_ref().and_then(JsonString::text) == Some(DISCONNECT_CLIENT))
            .then_some(Said::Leave(recipients));
    }
    let payload = message
        .payload()
        .inspect_err(|error| tracing::warn!(%error, "a message on stock's channel cannot be sent to clients"))
        .ok()?;
    let sync = message.o.is_none_or(|options| options.sync.unwrap_or(true));
    Some(Said::Message { payload, recipients, sync })
}

/// Writes what stock is to send.
pub(in crate::redis) fn write(message: &[u8], recipients: &Recipients) -> Option<Vec<u8>> {
    let message: &RawValue = serde_json::from_slice(message).ok()?;
    let recipients = match recipients {
        Recipients::Everyone => vec![EVERYONE],
        Recipients::Users(users) => users.iter().map(UserId::as_str).collect(),
    };
    serde_json::to_vec(&Publishing { message, recipients, from: OURS, mark: None }).ok()
}

/// Says it to stock.
pub(in crate::redis) async fn publish(link: &Link, message: &[u8], recipients: &Recipients) -> Result<(), LinkError> {
    let Some(text) = write(message, recipients) else { return Ok(()) };
    link.lines().ask(redis::cmd("PUBLISH").arg(link.names().stock(Name::Ws)).arg(text)).await
}

/// KEYS: 1 the answer to a dispatch; ARGV: 1 a channel, 2 what to say there, unless that dispatch was answered.
static UNANSWERED: LazyLock<Script> = LazyLock::new(|| {
    Script::new("if redis.call('EXISTS', KEYS[1]) == 0 then redis.call('PUBLISH', ARGV[1], ARGV[2]) end")
});

/// Says it to stock unless it is that of a dispatch that was answered before.
pub(in crate::redis) async fn publish_unanswered(
    link: &Link,
    message: &[u8],
    recipients: &Recipients,
    id: &DispatchId,
) -> Result<(), LinkError> {
    let Some(text) = write(message, recipients) else { return Ok(()) };
    let arguments = [link.names().stock(Name::Ws).into_bytes(), text];
    link.lines().run(&UNANSWERED, &[link.names().answer(id.as_str())], &arguments).await
}

/// Says a mark where stock speaks: it is for nobody, and stock's servers do nothing with it.
pub(super) async fn publish_mark(link: &Link, mark: &str) -> Result<(), LinkError> {
    let message = RawValue::from_string(r#"{"op":0,"t":"MARK"}"#.to_owned());
    let message = message.map_err(|error| LinkError::Refused(error.to_string().into()))?;
    let mark = Publishing { message: &message, recipients: Vec::new(), from: OURS, mark: Some(mark) };
    let text = serde_json::to_vec(&mark).map_err(|error| LinkError::Refused(error.to_string().into()))?;
    link.lines().ask(redis::cmd("PUBLISH").arg(link.names().stock(Name::Ws)).arg(text)).await
}

/// Whether a stock server listens.
pub(in crate::redis) async fn is_there(link: &Link) -> Result<bool, LinkError> {
    let asked = redis::cmd("PUBSUB").arg("NUMSUB").arg(link.names().stock(Name::Ws)).to_owned();
    let (_, count): (String, u64) = link.lines().ask(&asked).await?;
    Ok(count > 0)
}

/// KEYS: 1 `connected_clients`, 2 ours; ARGV: users. Gives for each 0: not connected; 1: connected, and perhaps because of us; 2:
/// connected to stock alone.
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

/// How these users are connected to stock.
pub(in crate::redis) async fn connected(link: &Link, users: &[UserId]) -> Result<Vec<Beside>, LinkError> {
    let keys = [link.names().stock(Name::Clients), link.names().ours()];
    let mut found = Vec::with_capacity(users.len());
    for some in users.chunks(ASKED_MAX) {
        let some: Vec<&str> = some.iter().map(UserId::as_str).collect();
        let answer: Vec<u8> = link.lines().run(&CONNECTED, &keys, &some).await?;
        found.extend(answer.into_iter().map(|one| match one {
            0 => Beside::Not,
            1 => Beside::Also,
            _ => Beside::Alone,
        }));
    }
    Ok(found)
}

/// KEYS: 1 ours; ARGV: 1 for how long who has gone is remembered, in ms, 2 how many are forgotten at most. Gives how many were.
static FORGET: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local t = redis.call('TIME')
        local until_then = string.format('%.0f', t[1] * 1000 - ARGV[1])
        local gone = redis.call('ZRANGEBYSCORE', KEYS[1], '(0', until_then, 'LIMIT', 0, ARGV[2])
        for _, user in ipairs(gone) do redis.call('ZREM', KEYS[1], user) end
        return #gone",
    )
});

/// Forgets whom we had put among the connected, of those who went long ago.
pub(in crate::redis) async fn forget(link: &Link) -> Result<(), LinkError> {
    let (keys, arguments) = ([link.names().ours()], [REMEMBERED_MS.to_string(), ASKED_MAX.to_string()]);
    while link.lines().run::<usize>(&FORGET, &keys, &arguments).await? == ASKED_MAX {}
    Ok(())
}

/// Everybody who is connected, to whichever server.
///
/// Read in pages, so that Redis has time for others in between. A user who comes or goes meanwhile may be among them or not.
pub(in crate::redis) async fn everybody(link: &Link) -> Result<Vec<UserId>, LinkError> {
    let connected = link.names().stock(Name::Clients);
    // A page may repeat users of another one.
    let (mut all, mut cursor) = (HashSet::new(), 0_u64);
    loop {
        let mut command = redis::cmd("SSCAN");
        command.arg(&connected).arg(cursor).arg("COUNT").arg(PAGE);
        let (next, page): (u64, Vec<String>) = link.lines().ask(&command).await?;
        all.extend(users(&page));
        if next == 0 {
            return Ok(all.into_iter().collect());
        }
        cursor = next;
    }
}

/// How many those are.
pub(in crate::redis) async fn everybody_count(link: &Link) -> Result<usize, LinkError> {
    link.lines().ask(redis::cmd("SCARD").arg(link.names().stock(Name::Clients))).await
}

/// Connections, to all servers together. Stock may count below zero.
pub(in crate::redis) async fn connections(link: &Link) -> Result<usize, LinkError> {
    let count: Option<i64> = link.lines().ask(redis::cmd("GET").arg(link.names().stock(Name::Count))).await?;
    Ok(usize::try_from(count.unwrap_or(0)).unwrap_or(0))
}

/// Stock connects to one Redis, and cannot speak to a Cluster: there, nothing is kept for it, and nothing heard of it.
pub(in crate::redis) fn may_have_stock(link: &Link) -> bool {
    !link.lines().is_spread()
}

/// What stock calls it; empty where there is none.
pub(in crate::redis) fn where_stock_reads(link: &Link, name: Name) -> String {
    if may_have_stock(link) { link.names().stock(name) } else { String::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stock_publishes_is_read_and_what_we_publish_is_not() {
        let user = |id| UserId::new(id).unwrap();
        let payload = Payload::encode(0, Some("{\"n\":1.0}"), Some("T")).unwrap();
        let text = br#"{"message":{"op":0,"d":{"n":1.0},"t":"T","o":{"sync":false}},"recipients":["a","b"]}"#;
        let recipients = Recipients::Users(vec![user("a"), user("b")]);
        let message = Said::Message { payload: payload.clone(), recipients: recipients.clone(), sync: false };
        assert_eq!(read(text), Some(message));
        let text = br#"{"message":{"op":5,"d":{},"t":"DISCONNECT_CLIENT"},"recipients":["*"]}"#;
        assert_eq!(read(text), Some(Said::Leave(Recipients::Everyone)));
        for nothing in
            [&br#"{"message":{"op":0},"recipients":[]}"#[..], b"{", b"{\"message\":{\"op\":1},\"recipients\":[\"a\"]}"]
        {
            assert_eq!(read(nothing), None);
        }
        // As a Node service may say it: ids that are numbers, and one that it had not.
        let text = br#"{"message":{"op":0,"d":{"n":1.0},"t":"T","o":{"sync":null}},"recipients":["a",7,null,-1,"b"]}"#;
        let recipients_read = Recipients::Users(vec![user("a"), user("7"), user("b")]);
        let message = Said::Message { payload: payload.clone(), recipients: recipients_read, sync: true };
        assert_eq!(read(text), Some(message));
        let mark = br#"{"message":{"op":0,"t":"MARK"},"recipients":[],"from":"mesa","mark":"1-a-7"}"#;
        assert_eq!(read(mark), Some(Said::Mark("1-a-7".into())));
        let ours = write(payload.as_bytes(), &recipients).unwrap();
        assert_eq!(read(&ours), None);
        let expected = r#"{"message":{"op":0,"d":{"n":1.0},"t":"T"},"recipients":["a","b"],"from":"mesa"}"#;
        assert_eq!(String::from_utf8(ours).unwrap(), expected);
    }
}
