//! What can be looked at: who is here, and what waits for whom.

use bytes::{BufMut as _, Bytes, BytesMut};

use super::encode;
use crate::{
    hub::{Hub, ReadLimit, StoreError},
    message::UserId,
};

/// Of what waits for a user so much is shown, the oldest of it, and one message at least. A Dispatcher sends all of what it
/// is shown back again.
const SHOWN_BYTES_MAX: usize = 64 << 10;
const SHOWN_MESSAGES_MAX: usize = 1000;

/// Users who are named in one answer. Where there are more it is refused: half of them would look like all.
const NAMED_MAX: usize = 100_000;

/// Users looked at in one go.
const PAGE: usize = 1000;

/// What waits for a user, as the list of messages that stock keeps; `None` if nothing does.
pub(super) async fn waiting(hub: &Hub, user: &[u8]) -> Result<Option<Bytes>, StoreError> {
    let Some(user) = user_id(user) else { return Ok(None) };
    let limit = ReadLimit { entries: SHOWN_MESSAGES_MAX, bytes: SHOWN_BYTES_MAX };
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

/// Writes the users for whom something waits, or how many they are.
pub(super) async fn who_waits(hub: &Hub, out: &mut BytesMut, count_only: bool) -> Result<(), StoreError> {
    let (mut waiting, mut names, mut after) = (0_usize, Vec::new(), None);
    loop {
        let page = hub.pending_of_users(after.as_ref(), PAGE).await?;
        let Some((last, _)) = page.last() else { break };
        after = Some(last.clone());
        for (user, _) in page.into_iter().filter(|(_, pending)| *pending > 0) {
            waiting += 1;
            if !count_only && names.len() <= NAMED_MAX {
                names.push(user);
            }
        }
    }
    if count_only {
        encode::integer(out, waiting as u64);
    } else if names.len() > NAMED_MAX {
        encode::error(
            out,
            &format!("ERR there are {waiting} of them, too many for one answer; `mesa users` has pages"),
        );
    } else {
        write_users(out, &names);
    }
    Ok(())
}

/// Writes the users who are here.
pub(super) async fn who_is_here(hub: &Hub, out: &mut BytesMut) {
    let too_many = "ERR there are too many of them for one answer; `mesa users` has pages, SCARD counts them";
    if hub.all_online_count().await > NAMED_MAX {
        return encode::error(out, too_many);
    }
    if let Some(users) = hub.all_online_users().await {
        return write_users(out, &users);
    }
    let (mut users, mut after) = (Vec::new(), None);
    loop {
        // Page by page, so that nobody who comes or goes has to wait for all of it.
        let page = hub.online(after.as_ref(), PAGE).await;
        let Some(last) = page.last() else { break };
        after = Some(last.clone());
        users.extend(page);
        if users.len() > NAMED_MAX {
            return encode::error(out, too_many);
        }
    }
    write_users(out, &users);
}

pub(super) async fn is_here(hub: &Hub, user: &[u8]) -> bool {
    match user_id(user) {
        Some(user) => hub.is_online(&user).await,
        None => false,
    }
}

/// The user of that name, if it is one that anybody can have.
pub(super) fn user_id(name: &[u8]) -> Option<UserId> {
    UserId::new(std::str::from_utf8(name).ok()?).ok()
}

fn write_users(out: &mut BytesMut, users: &[UserId]) {
    encode::array(out, users.len());
    users.iter().for_each(|user| encode::bulk(out, user.as_str().as_bytes()));
}
