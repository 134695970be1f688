//! Reads a list taken from the original's `undelivered_messages`, piece by piece.
//!
//! A hash field can only be read completely. So the step that takes a list moves it to a key, of which pieces can be
//! read. A second key stores the position: `NAME INDEX OFFSET`. `NAME` and the index in the list identify a message, so
//! its id is the same in every attempt.

use std::sync::LazyLock;

use bytes::Bytes;

use super::json_list::{ELEMENT_BYTES_MAX, Elements, Next};
use crate::{
    compat::{dispatch::StoredMessage, keyspace::Name},
    health::LogLimit,
    logging::excerpt,
    message::{DispatchId, UserId},
    redis::{RedisError, Script, ServerLink, store::append::ENTRIES_MAX},
    store::Append,
};

/// Prefix of the hash fields in which earlier servers of ours stored a taken list.
pub(in crate::redis) const TAKEN: &str = "\0mesa:taken:";

/// Limits log lines: a list may hold many messages that cannot be sent.
static LOG_LIMIT: LogLimit = LogLimit::new();

/// Bytes of a piece. At most this and one message ([`ELEMENT_BYTES_MAX`]) are read and not appended yet.
const PIECE_BYTES: u64 = 1 << 20;

/// Bytes that are appended together, with at least one message. No more than one append step takes.
const APPEND_BYTES_MAX: usize = 1 << 20;

/// Takes a user's list, or resumes with one taken before.
///
/// KEYS: 1 the original's pending messages, 2 position, 3 the taken list; ARGV: 1 the user, 2 the field that marks a
/// taken list, 3 a new name. Returns the position and the length of the list in bytes; false if there is no list.
///
/// Earlier versions of our server stored the list itself in that field, as `NAME\nLIST` or `NAME+INDEX\nLIST`. For them
/// the field holds an empty list.
static TAKE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "redis.call('PERSIST', KEYS[1])
        local at = redis.call('GET', KEYS[2])
        if at then return {at, redis.call('STRLEN', KEYS[3])} end
        local field, name, index = ARGV[2], '', '0'
        local list = redis.call('HGET', KEYS[1], field)
        if list then
          local ends = string.find(list, '\\n', 1, true) or 0
          name, index = string.match(string.sub(list, 1, math.max(ends - 1, 0)), '^([^+ ]*)%+?(%d*)$')
          list = string.sub(list, ends + 1)
        else
          field, name = ARGV[1], ARGV[3]
          list = redis.call('HGET', KEYS[1], field)
          if not list then return false end
        end
        if not name or name == '' then name = ARGV[3] end
        at = name .. ' ' .. string.format('%.0f', tonumber(index) or 0) .. ' 0'
        redis.call('SET', KEYS[3], list)
        redis.call('SET', KEYS[2], at)
        redis.call('HDEL', KEYS[1], field)
        redis.call('HSET', KEYS[1], ARGV[2], name .. '\\n[]')
        return {at, #list}",
    )
});

/// Moves the position, and sets messages aside that cannot be sent.
///
/// KEYS as above, and 4 the messages set aside; ARGV: 1 old and 2 new position ('' = the end), 3 first and 4 last byte
/// of a message to set aside ('' = none), 5 texts to set aside after it ('' = none), 6 byte from which the remaining
/// list is set aside ('' = none), 7 the field that marks a taken list. Does nothing if another server has moved the
/// position.
///
/// The messages are appended to a key, in pieces: a hash field would be rewritten each time.
static ADVANCE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "redis.call('PERSIST', KEYS[1])
        if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 0 end
        local PIECE = 1024 * 1024
        local function set_aside(from, to)
          while from <= to do
            redis.call('APPEND', KEYS[4], redis.call('GETRANGE', KEYS[3], from, math.min(from + PIECE - 1, to)))
            from = from + PIECE
          end
          redis.call('APPEND', KEYS[4], '\\n')
        end
        if ARGV[3] ~= '' then set_aside(tonumber(ARGV[3]), tonumber(ARGV[4])) end
        if ARGV[5] ~= '' then redis.call('APPEND', KEYS[4], ARGV[5] .. '\\n') end
        if ARGV[6] ~= '' then
          local last = redis.call('STRLEN', KEYS[3]) - 1
          if tonumber(ARGV[6]) <= last then set_aside(tonumber(ARGV[6]), last) end
        end
        if ARGV[2] ~= '' then
          redis.call('SET', KEYS[2], ARGV[2])
        else
          redis.call('DEL', KEYS[2], KEYS[3])
          local taken = redis.call('HGET', KEYS[1], ARGV[7])
          if taken and string.sub(taken, -3) == '\\n[]' then redis.call('HDEL', KEYS[1], ARGV[7]) end
        end
        return 1",
    )
});

/// Position in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Position {
    /// Name of the list.
    name: String,
    /// Index of the next message.
    index: u64,
    /// Offset of that message, in bytes.
    offset: u64,
}

impl Position {
    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let (name, index, offset) = (words.next()?.to_owned(), words.next()?, words.next()?);
        Some(Self { name, index: index.parse().ok()?, offset: offset.parse().ok()? })
    }

    fn text(&self) -> String {
        format!("{} {} {}", self.name, self.index, self.offset)
    }
}

/// A message of the list.
pub(in crate::redis) struct ListMessage {
    /// Index and offset of this message.
    at: (u64, u64),
    /// Its append to the user's log.
    pub append: Append,
}

/// The next part of a list.
#[derive(Default)]
pub(in crate::redis) struct Part {
    /// Messages in order.
    pub messages: Vec<ListMessage>,
    /// First and last byte of a message that is too long to be read. It precedes the others, since it ended in the last
    /// piece.
    long: Option<(u64, u64)>,
    /// Messages that cannot be sent to clients, each with its index and offset.
    unsendable: Vec<((u64, u64), Bytes)>,
    /// What follows this part.
    then: Then,
}

/// Distinguishes what follows a part of a list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Then {
    #[default]
    More,
    End,
    /// The text behind this part is not a list.
    Broken,
}

/// A taken list.
pub(in crate::redis) struct List<'a> {
    link: &'a ServerLink,
    user: &'a UserId,
    keys: [String; 4],
    /// The position stored in Redis.
    stored: Position,
    /// Index and offset up to which parts were returned.
    returned: (u64, u64),
    /// Offset of the next piece.
    from: u64,
    length: u64,
    elements: Elements,
    /// Maximum size of a message, in bytes.
    bytes_max: u64,
}

/// Returns the keys for a user: the original's pending messages, position, taken list, messages set aside.
fn keys(link: &ServerLink, user: &str) -> [String; 4] {
    let (at, list) = link.keys().taken_list(user);
    [link.keys().original(Name::Undelivered), at, list, link.keys().unsendable(user)]
}

fn random_name() -> Result<String, RedisError> {
    let mut random = [0_u8; 8];
    getrandom::fill(&mut random).map_err(|error| RedisError::Refused(format!("no random number: {error}").into()))?;
    Ok(format!("{:016x}", u64::from_be_bytes(random)))
}

impl<'a> List<'a> {
    /// Takes the original's pending messages of a user, or resumes with a list taken before. `None` where there are
    /// none.
    pub(in crate::redis) async fn take(
        link: &'a ServerLink,
        user: &'a UserId,
        bytes_max: u64,
    ) -> Result<Option<Self>, RedisError> {
        let keys = keys(link, user.as_str());
        let arguments = [user.as_str(), &format!("{TAKEN}{user}"), &random_name()?];
        let list: Option<(String, u64)> = link.client().run_script(&TAKE, &keys[..3], &arguments).await?;
        let Some((text, length)) = list else { return Ok(None) };
        let unread = || RedisError::Damaged(format!("the position in {} is malformed: {text:?}", keys[2]).into());
        let at = Position::parse(&text).ok_or_else(unread)?;
        let (returned, from, elements) = ((at.index, at.offset), at.offset, Elements::new(at.offset > 0));
        Ok(Some(Self { link, user, keys, stored: at, returned, from, length, elements, bytes_max }))
    }

    /// Returns the next messages: those of one piece, and of more pieces where a message is longer.
    pub(in crate::redis) async fn next(&mut self) -> Result<Part, RedisError> {
        loop {
            let part = self.read_buffered();
            if part.then != Then::More
                || !part.messages.is_empty()
                || !part.unsendable.is_empty()
                || part.long.is_some()
            {
                return Ok(part);
            }
            let mut command = redis::cmd("GETRANGE");
            command.arg(&self.keys[2]).arg(self.from).arg(self.from + PIECE_BYTES - 1);
            let piece: Vec<u8> = self.link.client().query(&command).await?;
            if piece.is_empty() {
                return Ok(Part { then: Then::Broken, ..Part::default() });
            }
            self.from += piece.len() as u64;
            self.elements.push(&piece);
        }
    }

    /// Returns the buffered elements: messages, and those to set aside.
    fn read_buffered(&mut self) -> Part {
        let mut part = Part::default();
        loop {
            let (text, bytes) = match self.elements.next() {
                Next::Element { text, bytes } => (text, bytes),
                Next::Long { before, length, bytes } => {
                    let (index, offset) = self.returned;
                    self.log_set_aside(&format!("it is longer than {ELEMENT_BYTES_MAX} bytes"));
                    part.long = Some((offset + before, offset + before + length - 1));
                    self.returned = (index + 1, offset + bytes);
                    continue;
                }
                Next::More => return part,
                Next::End => return Part { then: Then::End, ..part },
                Next::Broken => return Part { then: Then::Broken, ..part },
            };
            let (at, text) = (self.returned, &self.elements.text()[text]);
            match read(text, self.user, &self.stored.name, at.0, self.bytes_max) {
                Ok(append) => part.messages.push(ListMessage { at, append }),
                Err(error) => {
                    self.log_set_aside(&error);
                    part.unsendable.push((at, Bytes::copy_from_slice(text.trim_ascii())));
                }
            }
            self.returned = (at.0 + 1, at.1 + bytes);
        }
    }

    /// Logs that a message is set aside.
    fn log_set_aside(&self, error: &str) {
        if let Some(suppressed) = LOG_LIMIT.due("message") {
            let (user, key) = (excerpt(self.user), excerpt(&self.keys[3]));
            tracing::error!(%user, %error, %key, suppressed, "a pending message of the original cannot be sent to clients: it is set aside under this key of Redis. Inspect the key");
        }
    }

    /// Records a part as imported, up to a message above the quota if there is one. Returns true if the list may have
    /// more.
    pub(in crate::redis) async fn advance(
        &mut self,
        part: &Part,
        first_above_quota: Option<&ListMessage>,
    ) -> Result<bool, RedisError> {
        let then = if first_above_quota.is_some() { Then::More } else { part.then };
        let (index, offset) = first_above_quota.map_or(self.returned, |message| message.at);
        let is_before = |at: &(u64, u64)| at.0 < index;
        let aside: Vec<&[u8]> =
            part.unsendable.iter().filter(|(at, _)| is_before(at)).map(|(_, text)| &text[..]).collect();
        let now = Position { name: self.stored.name.clone(), index, offset };
        if then == Then::More && now == self.stored {
            return Ok(first_above_quota.is_none());
        }
        if then == Then::Broken
            && let Some(suppressed) = LOG_LIMIT.due("list")
        {
            let (user, key) = (excerpt(self.user), excerpt(&self.keys[3]));
            tracing::error!(%user, index, %key, suppressed, "the original's pending messages of this user are malformed from this index on: the remaining text is set aside under this key of Redis. Inspect the key");
        }
        let (before, text, field) = (self.stored.text(), now.text(), format!("{TAKEN}{}", self.user));
        let [from, to] =
            part.long.map_or([const { String::new() }; 2], |(from, to)| [from, to].map(|at| at.to_string()));
        // The remaining text is set aside from its first wrong byte on.
        let broken_from =
            if then == Then::Broken { (offset + self.elements.before()).to_string() } else { String::new() };
        let text = if then == Then::More { text.as_str() } else { "" };
        let aside = aside.join(&b'\n');
        let arguments = [
            before.as_bytes(),
            text.as_bytes(),
            from.as_bytes(),
            to.as_bytes(),
            &aside,
            broken_from.as_bytes(),
            field.as_bytes(),
        ];
        let is_first: bool = self.link.client().run_script(&ADVANCE, &self.keys, &arguments).await?;
        self.stored = now;
        Ok(is_first && then == Then::More && first_above_quota.is_none())
    }

    /// Counts the bytes of the list from a message on.
    pub(super) fn bytes_from(&self, message: &ListMessage) -> u64 {
        self.length.saturating_sub(message.at.1)
    }
}

/// Reads an element of a list.
fn read(text: &[u8], user: &UserId, name: &str, index: u64, bytes_max: u64) -> Result<Append, String> {
    let text = std::str::from_utf8(text).map_err(|_| "it is not UTF-8".to_owned())?;
    let payload = StoredMessage::parse(text)?.payload().map_err(|error| error.to_string())?;
    if payload.as_bytes().len() as u64 > bytes_max {
        return Err("it is larger than sync.maxBytes".to_owned());
    }
    let id = DispatchId::new(&format!("original-{name}-{index}")).map_err(|error| error.to_string())?;
    Ok(Append { per_recipient_id: Some(id), ..Append::new(payload, vec![user.clone()]) })
}

/// Counts the messages that can be appended in one step.
///
/// If one of them exceeds the quota, all after it must exceed it too. So no message is smaller than the one before it.
pub(in crate::redis) fn appendable_together(messages: &[ListMessage]) -> usize {
    let (mut count, mut bytes, mut last) = (0, 0, 0);
    for size in messages.iter().take(ENTRIES_MAX).map(|message| message.append.payload.as_bytes().len()) {
        bytes += size;
        if count > 0 && (size < last || bytes > APPEND_BYTES_MAX) {
            break;
        }
        (count, last) = (count + 1, size);
    }
    count
}

/// Tells whether a user has a taken list that is not in the log completely.
pub(super) async fn exists(link: &ServerLink, user: &UserId) -> Result<bool, RedisError> {
    let (at, _) = link.keys().taken_list(user.as_str());
    link.client().query(redis::cmd("EXISTS").arg(at)).await
}

/// Returns the part of a taken list that is not in the log yet, as a list. `None` if there is no taken list.
pub(in crate::redis) async fn remaining(link: &ServerLink, user: &str) -> Result<Option<String>, RedisError> {
    let (at, list) = link.keys().taken_list(user);
    let at: Option<String> = link.client().query(redis::cmd("GET").arg(at)).await?;
    let Some(at) = at.as_deref().and_then(Position::parse) else { return Ok(None) };
    let text: String = link.client().query(redis::cmd("GETRANGE").arg(list).arg(at.offset).arg(-1)).await?;
    Ok(Some(if at.offset > 0 { format!("[{text}") } else { text }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the messages of a list, and the indexes of those that are set aside.
    fn read_list(name: &str, (index, offset): (u64, u64), list: &str, bytes_max: u64) -> (Vec<ListMessage>, Vec<u64>) {
        let (user, mut elements) = (UserId::new("bob").unwrap(), Elements::new(offset > 0));
        elements.push(&list.as_bytes()[offset as usize..]);
        let (mut messages, mut aside, mut at) = (Vec::new(), Vec::new(), (index, offset));
        while let Next::Element { text, bytes } = elements.next() {
            match read(&elements.text()[text], &user, name, at.0, bytes_max) {
                Ok(append) => messages.push(ListMessage { at, append }),
                Err(_) => aside.push(at.0),
            }
            at = (at.0 + 1, at.1 + bytes);
        }
        (messages, aside)
    }

    fn ids(messages: &[ListMessage]) -> Vec<String> {
        messages.iter().map(|message| message.append.per_recipient_id.as_ref().unwrap().as_str().to_owned()).collect()
    }

    #[test]
    fn message_has_the_same_id_from_any_position_of_its_list() {
        let list = r#"[{"op":0,"d":1},{"op":1},{"op":0,"d":333},{"op":0,"d":22}]"#;
        let (messages, aside) = read_list("ab", (0, 0), list, 1000);
        assert_eq!(
            (ids(&messages), aside),
            (["original-ab-0", "original-ab-2", "original-ab-3"].map(Into::into).into(), vec![1])
        );
        let (later, aside) = read_list("ab", messages[1].at, list, 1000);
        assert_eq!((ids(&later), aside), (["original-ab-2", "original-ab-3"].map(Into::into).into(), vec![]));
        assert_eq!(
            (appendable_together(&messages), appendable_together(&messages[2..])),
            (2, 1),
            "a smaller message after a larger one is in another step"
        );
        assert_eq!(read_list("ab", (0, 0), list, 15).0.len(), 2, "a message larger than the quota is set aside");
    }

    #[test]
    fn position_parses_as_written() {
        let at = Position { name: "c0ffee".into(), index: 3, offset: 70_000_000 };
        assert_eq!(Position::parse(&at.text()), Some(at));
        assert!(["", "c0ffee", "c0ffee 3", "c0ffee x 1"].iter().all(|text| Position::parse(text).is_none()));
    }
}
