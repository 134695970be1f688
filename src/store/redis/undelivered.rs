//! What a stock process has left for a user (`undelivered_messages`): taken in one step, and put into his log.
//!
//! Taken means moved to a field of our own in the same hash, under a name that is new each time; a message is gone from there
//! only when it is in the log. So whoever dies in between leaves it to the next, and nothing comes twice. What has no room in the
//! log stays taken, with all that is behind it, and is tried again as the user makes room; what cannot be sent to a client, or is
//! larger than all the room there is for one, is put aside in a field of its own, for people to look at.
//!
//! What was taken is kept as `NAME+PLACE` and the list from there on, on a line of its own: so a message has the same name
//! however often it is tried.
//!
//! A stock process sees that a user is away, and leaves it for him a moment later. Meanwhile he may have come, and nobody would
//! look until he comes again: so it is looked once more when he is connected in stock's eyes too, and once more after that.

use std::{
    collections::VecDeque,
    sync::{LazyLock, Weak},
    time::{Duration, Instant},
};

use serde_json::value::RawValue;
use tokio::sync::mpsc;

use super::{Shared, append::ITEMS_MAX, moving::TAKEN};
use crate::{
    cluster::redis::{Link, LinkError, Script, StockMessage},
    logging::{excerpt, json_error},
    message::{DispatchId, UserId},
    store::Append,
};

/// Lists taken in one go: a process that leaves more all the time is not waited for.
const LISTS_MAX: usize = 16;

/// Users who have no room for all that was left for them, and for whom it is tried again when they have. For one more it is
/// tried when he comes the next time.
const OWED_MAX: usize = 10_000;

/// Of those, tried in one go.
const OWED_AT_ONCE: usize = 32;

/// Batches of users who have come that may wait. For those of one more it is looked when they come the next time.
pub(super) const CAME_MAX: usize = 1024;

/// Bytes of what is appended together, of a list that was taken (one message at least): never more than is appended in one step.
const RUN_BYTES_MAX: usize = 1 << 20;

/// So long after they have come it is looked what stock has left for them meanwhile: most of it is there then, and then the
/// rest, where a stock process is slow.
const LOOK_AFTER: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(2)];

/// KEYS: 1 what stock has left; ARGV: users. Gives those for whom there is something.
static LEFT: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local left = {}
        for _, user in ipairs(ARGV) do
          if redis.call('HEXISTS', KEYS[1], user) == 1 then left[#left + 1] = user end
        end
        return left",
    )
});

/// KEYS: 1 what stock has left; ARGV: 1 the user, 2 the field for what was taken, 3 a name.
static TAKE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "redis.call('PERSIST', KEYS[1])
        local taken = redis.call('HGET', KEYS[1], ARGV[2])
        if taken then return taken end
        local left = redis.call('HGET', KEYS[1], ARGV[1])
        if not left then return false end
        redis.call('HSET', KEYS[1], ARGV[2], ARGV[3] .. '\\n' .. left)
        redis.call('HDEL', KEYS[1], ARGV[1])
        return ARGV[3] .. '\\n' .. left",
    )
});

/// ARGV: 1 the field, 2 what was taken, 3 what stays of it ('' = nothing), 4 the field for what is put aside, 5 what comes
/// behind that there ('' = nothing). Does nothing where somebody else has been here.
static DONE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "redis.call('PERSIST', KEYS[1])
        if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return 0 end
        if ARGV[3] == '' then
          redis.call('HDEL', KEYS[1], ARGV[1])
        else
          redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
        end
        if ARGV[5] ~= '' then
          redis.call('HSET', KEYS[1], ARGV[4], (redis.call('HGET', KEYS[1], ARGV[4]) or '') .. ARGV[5] .. '\\n')
        end
        return 1",
    )
});

/// Takes what was left for users while they came.
pub(super) async fn keep_taking(shared: Weak<Shared>, came: &mut mpsc::Receiver<(Instant, Vec<UserId>)>) {
    // Those of whom each look comes next, in the order in which they came.
    let mut waiting: [VecDeque<(Instant, Vec<UserId>)>; LOOK_AFTER.len()] = Default::default();
    loop {
        let due = |(look, waiting): (usize, &VecDeque<(Instant, _)>)| Some(waiting.front()?.0 + LOOK_AFTER[look]);
        let next = waiting.iter().enumerate().filter_map(due).min();
        let more = if let Some(next) = next {
            tokio::time::timeout_at(next.into(), came.recv()).await.ok()
        } else {
            Some(came.recv().await)
        };
        match more {
            Some(Some(come)) if waiting[0].len() < CAME_MAX => waiting[0].push_back(come),
            Some(Some(_)) => tracing::debug!("what stock has left for who has come waits until he comes again"),
            Some(None) => return,
            None => {}
        }
        for look in 0..LOOK_AFTER.len() {
            while waiting[look].front().is_some_and(|(when, _)| when.elapsed() >= LOOK_AFTER[look])
                && let Some((when, users)) = waiting[look].pop_front()
            {
                let Some(shared) = shared.upgrade() else { return };
                let (next, when) = match shared.take_left(&users).await {
                    Ok(()) => (look + 1, when),
                    // When Redis is there again nobody else would look.
                    Err(error) => {
                        tracing::debug!(%error, "what stock has left is taken later");
                        (LOOK_AFTER.len() - 1, Instant::now())
                    }
                };
                if let Some(next) = waiting.get_mut(next).filter(|next| next.len() < CAME_MAX) {
                    next.push_back((when, users));
                }
            }
        }
    }
}

fn name() -> Result<String, LinkError> {
    let mut random = [0_u8; 8];
    getrandom::fill(&mut random).map_err(|error| LinkError::Refused(format!("no random number: {error}").into()))?;
    Ok(format!("{:016x}", u64::from_be_bytes(random)))
}

/// A message of a list that was taken.
struct Left {
    /// In the list.
    place: usize,
    append: Append,
}

/// What becomes of a list.
#[derive(Default)]
struct Sorted<'a> {
    /// All of it, as it stands there.
    texts: Vec<&'a RawValue>,
    left: Vec<Left>,
    /// What cannot be put into a log, each with its place.
    aside: Vec<(usize, &'a str)>,
}

/// The name under which a list was taken, how many of its messages are in the log already, and the list from there on.
fn parse(taken: &str) -> (&str, usize, &str) {
    let (called, list) = taken.split_once('\n').unwrap_or(("", taken));
    match called.split_once('+').map(|(name, place)| (name, place.parse())) {
        Some((name, Ok(place))) => (name, place, list),
        _ => (called, 0, list),
    }
}

fn sort<'a>(user: &UserId, name: &str, before: usize, list: &'a str, bytes_max: u64) -> Sorted<'a> {
    let mut sorted = Sorted::default();
    sorted.texts = match serde_json::from_str(list) {
        Ok(messages) => messages,
        Err(error) => {
            tracing::error!(user = %excerpt(user), error = %json_error(&error), "what stock has left for this user is no list of messages: it is put aside");
            sorted.aside.push((0, list));
            return sorted;
        }
    };
    for (place, text) in sorted.texts.iter().map(|text| text.get()).enumerate() {
        let read = StockMessage::read(text);
        let read = read.and_then(|message| message.payload().map_err(|error| error.to_string())).and_then(|payload| {
            let is_too_large = payload.as_bytes().len() as u64 > bytes_max;
            if is_too_large { Err("it is larger than sync.maxBytes".to_owned()) } else { Ok(payload) }
        });
        // Made of what has no control characters, and short.
        match (read, DispatchId::new(&format!("stock-{name}-{}", before + place))) {
            (Ok(payload), Ok(id)) => {
                let append = Append { each_once: Some(id), ..Append::new(payload, vec![user.clone()]) };
                sorted.left.push(Left { place, append });
            }
            (Err(error), _) => {
                tracing::error!(user = %excerpt(user), %error, "a message that stock has left cannot be sent to a client: it is put aside");
                sorted.aside.push((place, text));
            }
            (Ok(_), Err(_)) => sorted.aside.push((place, text)),
        }
    }
    sorted
}

/// How many of these can be appended together, so that where one has no room no other behind it has: none that is smaller comes
/// behind a larger one, and all of them go into one step.
fn run(left: &[Left]) -> usize {
    let (mut count, mut bytes, mut last) = (0, 0, 0);
    for size in left.iter().take(ITEMS_MAX).map(|left| left.append.payload.as_bytes().len()) {
        bytes += size;
        if count > 0 && (size < last || bytes > RUN_BYTES_MAX) {
            break;
        }
        (count, last) = (count + 1, size);
    }
    count
}

impl Shared {
    /// Puts what stock has left for a user into his log, as far as it has room.
    pub(super) async fn take_undelivered(&self, user: &UserId) -> Result<(), LinkError> {
        let link = self.caller.link()?;
        for _ in 0..LISTS_MAX {
            match self.take_list(&link, user).await? {
                Taken::Nothing => return Ok(()),
                Taken::All => {}
                Taken::Some => {
                    let mut owed = self.owed.lock();
                    if owed.len() < OWED_MAX && !owed.contains(user) {
                        owed.push_back(user.clone());
                    }
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// The same for those of these users for whom something is left.
    async fn take_left(&self, users: &[UserId]) -> Result<(), LinkError> {
        let link = self.caller.link()?;
        let keys = [link.names().stock("undelivered_messages")];
        let users: Vec<&str> = users.iter().map(UserId::as_str).collect();
        let left: Vec<String> = link.lines().run(&LEFT, &keys, &users).await?;
        for user in left.iter().filter_map(|user| UserId::new(user).ok()) {
            match self.take_undelivered(&user).await {
                // Somebody has to look at what there is of this user; the others are not to wait for that.
                Err(LinkError::Damaged(why)) => {
                    tracing::error!(user = %excerpt(user), %why, "what stock has left cannot be taken");
                }
                taken => taken?,
            }
        }
        Ok(())
    }

    /// The same for some of those who had no room: they may have some now.
    pub(super) async fn take_what_is_owed(&self) -> Result<(), LinkError> {
        let some: Vec<UserId> = {
            let mut owed = self.owed.lock();
            let count = owed.len().min(OWED_AT_ONCE);
            owed.drain(..count).collect()
        };
        let mut some = some.into_iter();
        while let Some(user) = some.next() {
            if let Err(error) = self.take_undelivered(&user).await {
                // Behind the others: what is wrong may be this user's alone.
                let mut owed = self.owed.lock();
                owed.extend(some);
                owed.push_back(user);
                return Err(error);
            }
        }
        Ok(())
    }

    async fn take_list(&self, link: &Link, user: &UserId) -> Result<Taken, LinkError> {
        let keys = [link.names().stock("undelivered_messages")];
        // Ids have no control characters: nobody is called that.
        let (field, aside) = (format!("{TAKEN}{user}"), format!("\0mesa:aside:{user}"));
        let taken: Option<String> =
            link.lines().run(&TAKE, &keys, &[user.as_str(), field.as_str(), name()?.as_str()]).await?;
        let Some(taken) = taken else { return Ok(Taken::Nothing) };
        let (called, before, list) = parse(&taken);
        let Sorted { texts, left, aside: bad } = sort(user, called, before, list, self.caller.limits().bytes);
        // The first that has no room: what is behind it waits too, or it would come before it.
        let mut stops = None;
        let mut rest = &left[..];
        while stops.is_none() && !rest.is_empty() {
            let (now, later) = rest.split_at(run(rest));
            rest = later;
            let made = self.append_all(now.iter().map(|left| left.append.clone()).collect()).await;
            for (left, made) in now.iter().zip(made) {
                match made {
                    Ok(made) if made.seqs.iter().all(Result::is_ok) => {}
                    // Nor is there any in the Redis: who comes now is to have what he has, which makes some.
                    Ok(_) | Err(LinkError::Full(_)) => stops = stops.or(Some(left.place)),
                    Err(error) => return Err(error),
                }
            }
        }
        let rest = match stops {
            None => String::new(),
            Some(stops) => {
                let waits: Vec<&str> = texts[stops..].iter().map(|text| text.get()).collect();
                tracing::warn!(user = %excerpt(user), messages = waits.len(), "this user has no room for all that stock has left; it stays until he has");
                if stops == 0 {
                    return Ok(Taken::Some);
                }
                format!("{called}+{}\n[{}]", before + stops, waits.join(","))
            }
        };
        let bad = bad.into_iter().filter(|(place, _)| stops.is_none_or(|stops| *place < stops));
        let put_aside = bad.map(|(_, text)| text).collect::<Vec<_>>().join("\n");
        let arguments = [field.as_str(), taken.as_str(), &rest, &aside, &put_aside];
        link.lines().run::<()>(&DONE, &keys, &arguments).await?;
        Ok(if stops.is_none() { Taken::All } else { Taken::Some })
    }
}

enum Taken {
    /// There is nothing.
    Nothing,
    /// A list, all of it.
    All,
    /// Not all of one: there is no room.
    Some,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_has_the_same_name_wherever_its_list_begins_by_then() {
        let (user, list) =
            (UserId::new("bob").unwrap(), r#"[{"op":0,"d":1},{"op":1},{"op":0,"d":333},{"op":0,"d":22}]"#);
        let names = |taken: &str| {
            let (name, before, list) = parse(taken);
            let sorted = sort(&user, name, before, list, 1000);
            let names = sorted.left.iter().map(|left| left.append.each_once.as_ref().unwrap().as_str().to_owned());
            (names.collect::<Vec<_>>(), sorted.aside.iter().map(|(place, _)| *place).collect::<Vec<_>>())
        };
        assert_eq!(
            names(&format!("ab\n{list}")),
            (["stock-ab-0", "stock-ab-2", "stock-ab-3"].map(Into::into).into(), vec![1])
        );
        let rest = r#"ab+2
[{"op":0,"d":333},{"op":0,"d":22}]"#;
        assert_eq!(names(rest), (["stock-ab-2", "stock-ab-3"].map(Into::into).into(), vec![]));
        let Sorted { left, .. } = sort(&user, "ab", 0, list, 1000);
        assert_eq!((run(&left), run(&left[2..])), (2, 1), "a smaller one behind a larger one is not of the same step");
        assert_eq!(sort(&user, "ab", 0, list, 15).left.len(), 2, "what is larger than all the room is put aside");
    }
}
