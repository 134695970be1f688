//! Answers read-only commands: online users, and pending messages.

use bytes::{BufMut as _, Bytes, BytesMut};

use super::encode;
use crate::{
    hub::{Hub, ReadLimit, StoreError},
    message::UserId,
};

/// Bytes of a user's oldest pending messages in one reply, with at least one. A Dispatcher sends all of them back.
const PENDING_BYTES_MAX: usize = 64 << 10;

/// Messages in one reply.
const PENDING_MESSAGES_MAX: usize = 1000;

/// Users in one reply. With more users the command fails, since a partial list would look complete.
const USERS_MAX: usize = 100_000;

/// Users read in one step.
const PAGE_USERS: usize = 1000;

/// Returns the pending messages of a user as a JSON list, like the original. `None` if there are none.
pub(super) async fn pending(hub: &Hub, user: &[u8]) -> Result<Option<Bytes>, StoreError> {
    let Some(user) = user_id(user) else { return Ok(None) };
    let limit = ReadLimit { entries: PENDING_MESSAGES_MAX, bytes: PENDING_BYTES_MAX };
    let entries = hub.oldest_pending(&user, limit).await?;
    if entries.is_empty() {
        return Ok(None);
    }
    let mut list =
        BytesMut::with_capacity(entries.iter().map(|entry| entry.payload.as_bytes().len() + 1).sum::<usize>() + 1);
    list.put_u8(b'[');
    for (at, entry) in entries.iter().enumerate() {
        if at > 0 {
            list.put_u8(b',');
        }
        list.put_slice(entry.payload.as_bytes());
    }
    list.put_u8(b']');
    Ok(Some(list.freeze()))
}

/// Encodes the users with pending messages, or their number.
pub(super) async fn users_with_pending(hub: &Hub, out: &mut BytesMut, count_only: bool) -> Result<(), StoreError> {
    let (mut count, mut names, mut after) = (0_usize, Vec::new(), None);
    loop {
        let page = hub.pending_of_users(after.as_ref(), PAGE_USERS).await?;
        let Some((last, _)) = page.last() else { break };
        after = Some(last.clone());
        for (user, _) in page.into_iter().filter(|(_, pending)| *pending > 0) {
            count += 1;
            if !count_only && names.len() <= USERS_MAX {
                names.push(user);
            }
        }
    }
    if count_only {
        encode::integer(out, count as u64);
    } else if names.len() > USERS_MAX {
        encode::error(
            out,
            &format!("ERR {count} users are too many for one reply: list them by page with `mesa users`"),
        );
    } else {
        write_users(out, &names);
    }
    Ok(())
}

/// Encodes the online users.
pub(super) async fn online_users(hub: &Hub, out: &mut BytesMut) {
    let too_many =
        "ERR too many users are online for one reply: list them by page with `mesa users`, or count them with SCARD";
    if hub.all_online_count().await > USERS_MAX {
        return encode::error(out, too_many);
    }
    if let Some(users) = hub.all_online_users().await {
        return write_users(out, &users);
    }
    let (mut users, mut after) = (Vec::new(), None);
    loop {
        // By page, so that connecting users do not wait for the whole list.
        let page = hub.online(after.as_ref(), PAGE_USERS).await;
        let Some(last) = page.last() else { break };
        after = Some(last.clone());
        users.extend(page);
        if users.len() > USERS_MAX {
            return encode::error(out, too_many);
        }
    }
    write_users(out, &users);
}

pub(super) async fn is_online(hub: &Hub, user: &[u8]) -> bool {
    match user_id(user) {
        Some(user) => hub.is_online(&user).await,
        None => false,
    }
}

/// Parses a user id. `None` if it is invalid.
pub(super) fn user_id(name: &[u8]) -> Option<UserId> {
    UserId::new(std::str::from_utf8(name).ok()?).ok()
}

fn write_users(out: &mut BytesMut, users: &[UserId]) {
    encode::array(out, users.len());
    users.iter().for_each(|user| encode::bulk(out, user.as_str().as_bytes()));
}
