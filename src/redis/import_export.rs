//! Copies pending messages between the original's `undelivered_messages` and a store of ours, in either direction.
//!
//! Both commands can be repeated, and resume where they stopped. The position of each user is stored in a field of the
//! same hash, which the original ignores. The source is not changed.

use std::{
    fs, io,
    io::Write,
    path::Path,
    sync::{Arc, LazyLock},
};

use serde_json::value::RawValue;

use super::original::taken;
use crate::{
    compat::{dispatch::StoredMessage, keyspace::Name},
    logging::{excerpt, json_error},
    message::{DispatchId, Payload, Seq, UserId},
    redis::{RedisError, Script, ServerLink, original::taken::TAKEN},
    store::{Append, Idempotency, ReadLimit, Store, StoreError},
};

/// Prefix of our own fields of the hash: user ids contain no control characters.
const OWN_FIELD_PREFIX: char = '\0';

/// Entries read at once.
const PAGE_LIMIT: ReadLimit = ReadLimit { entries: 1000, bytes: 4 << 20 };

/// Users listed at once.
const USERS_MAX: usize = 200;

/// Counts copied messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// Users with pending messages.
    pub users: u64,
    /// Messages that this run has copied, each read back from the target.
    pub messages: u64,
    /// Messages that an earlier run had copied.
    pub known: u64,
    /// Messages that cannot be copied. The log has a line for each, with the reason.
    pub refused: u64,
}

/// Why a run has failed. Messages that it has copied stay, and the next run resumes behind them.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MoveError {
    /// Redis failed.
    #[error(transparent)]
    Link(#[from] RedisError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The user's field is not a list of messages.
    #[error(
        "the pending messages of {user:?} in Redis are malformed: {why}. Repair or remove them, and run the command again"
    )]
    Malformed {
        /// The user.
        user: String,
        /// The parser's reason.
        why: String,
    },
    /// The messages read back differ from those written.
    #[error(
        "the messages read back for {user:?} differ from those written. Stop other writers, and run the command again"
    )]
    Differs {
        /// The user.
        user: String,
    },
}

/// Appends messages to a user's list, and moves the position.
///
/// ARGV: 1 the user, 2 the field of the user's position, 3 its expected and 4 its new value, 5 messages separated by
/// commas. Returns 0 if another process has changed the position meanwhile, or the list is malformed.
static APPEND_TO_LIST: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "if (redis.call('HGET', KEYS[1], ARGV[2]) or '') ~= ARGV[3] then return 0 end
        local field = redis.call('HGET', KEYS[1], ARGV[1]) or '[]'
        local list = string.match(field, '^%s*%[(.*)%]%s*$')
        if not list then return 0 end
        if string.match(list, '%S') then list = list .. ',' end
        redis.call('HSET', KEYS[1], ARGV[1], '[' .. list .. ARGV[5] .. ']', ARGV[2], ARGV[4])
        return 1",
    )
});

/// Lists names of fields without their values, which together may exceed the memory. ARGV: 1 scan cursor. Returns the
/// next cursor, and names.
static FIELD_NAMES: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local page, names = redis.call('HSCAN', KEYS[1], ARGV[1], 'COUNT', 100), {}
        for at = 1, #page[2], 2 do names[#names + 1] = page[2][at] end
        return {page[1], names}",
    )
});

/// Returns the key of the original's pending messages.
fn undelivered(link: &ServerLink) -> String {
    link.keys().original(Name::Undelivered)
}

/// Reads a field of the hash.
async fn field(link: &ServerLink, name: &str) -> Result<Option<String>, RedisError> {
    link.client().query(redis::cmd("HGET").arg(undelivered(link)).arg(name)).await
}

/// Returns a checksum of some messages.
fn sum(texts: &[&RawValue]) -> u32 {
    let mut sum = crc32fast::Hasher::new();
    texts.iter().for_each(|text| sum.update(text.get().as_bytes()));
    sum.finalize()
}

/// Splits a user's field into messages.
fn list<'a>(user: &str, text: &'a str) -> Result<Vec<&'a RawValue>, MoveError> {
    serde_json::from_str(text).map_err(|error| MoveError::Malformed { user: user.to_owned(), why: json_error(&error) })
}

/// Imports the original's pending messages into a store. Calls `on_user` after each user's field.
///
/// # Errors
/// See [`MoveError`].
pub async fn import(link: &Arc<ServerLink>, store: &dyn Store, on_user: &dyn Fn()) -> Result<Moved, MoveError> {
    let (mut moved, mut cursor) = (Moved::default(), String::from("0"));
    loop {
        let from = cursor.clone();
        let page = run_on(link, move |link| async move {
            link.client().run_script(&FIELD_NAMES, &[undelivered(&link)], &[from]).await
        });
        let (next, names): (String, Vec<String>) = page.await?;
        for name in names {
            let field_name = name.clone();
            // A server may have taken the field since.
            if let Some(text) = run_on(link, move |link| async move { field(&link, &field_name).await }).await? {
                import_field(link, store, &name, &text, &mut moved).await?;
                on_user();
            }
        }
        cursor = next;
        if cursor == "0" {
            return Ok(moved);
        }
    }
}

/// Imports a field of the hash: a user's list, or a taken list that is not in the log completely.
async fn import_field(
    link: &Arc<ServerLink>,
    store: &dyn Store,
    name: &str,
    text: &str,
    moved: &mut Moved,
) -> Result<(), MoveError> {
    let read_field = async |name: String| run_on(link, move |link| async move { field(&link, &name).await }).await;
    let taken_text =
        async |user: String| run_on(link, move |link| async move { taken::remaining(&link, &user).await }).await;
    let had_messages = if let Some(user) = name.strip_prefix(TAKEN) {
        // If the user has a list, the taken list is imported with it, and before it.
        if read_field(user.to_owned()).await?.is_some() {
            return Ok(());
        }
        let taken = taken_text(user.to_owned()).await?;
        let text = taken.as_deref().unwrap_or_else(|| after_name(text));
        import_list(link, store, user, ListKind::Taken, text, moved).await?
    } else if name.starts_with(OWN_FIELD_PREFIX) {
        false
    } else {
        let taken = match taken_text(name.to_owned()).await? {
            Some(taken) => Some(taken),
            None => read_field(format!("{TAKEN}{name}")).await?.map(|taken| after_name(&taken).to_owned()),
        };
        let before = match taken {
            Some(taken) => import_list(link, store, name, ListKind::Taken, &taken, moved).await?,
            None => false,
        };
        import_list(link, store, name, ListKind::Pending, text, moved).await? || before
    };
    moved.users += u64::from(had_messages);
    Ok(())
}

/// Returns a taken list without the name in front of it.
fn after_name(taken: &str) -> &str {
    taken.split_once('\n').map_or(taken, |(_, list)| list)
}

/// Selects one of a user's lists. Each has its own position.
#[derive(Clone, Copy)]
enum ListKind {
    Pending,
    Taken,
}

impl ListKind {
    fn name(self) -> &'static str {
        match self {
            Self::Pending => "imported",
            Self::Taken => "imported-taken",
        }
    }
}

/// Imports a list. Returns whether it had messages.
async fn import_list(
    link: &Arc<ServerLink>,
    store: &dyn Store,
    id: &str,
    kind: ListKind,
    text: &str,
    moved: &mut Moved,
) -> Result<bool, MoveError> {
    let messages = list(id, text)?;
    let Ok(user) = UserId::new(id) else {
        tracing::warn!(user = %excerpt(id), messages = messages.len(), "not a valid user id: its messages are not imported and stay in Redis");
        moved.refused += messages.len() as u64;
        return Ok(false);
    };
    let position_field = format!("{OWN_FIELD_PREFIX}mesa:{}:{id}", kind.name());
    let known = {
        let position_field = position_field.clone();
        run_on(link, move |link| async move { field(&link, &position_field).await }).await?.unwrap_or_default()
    };
    // The original only appends to a list. A changed beginning means another list.
    let imported =
        known.split_once(' ').and_then(|(count, of)| Some((count.parse::<usize>().ok()?, of.parse::<u32>().ok()?)));
    let imported = imported.filter(|(count, of)| messages.get(..*count).is_some_and(|first| sum(first) == *of));
    let imported = imported.map_or(0, |(count, _)| count);
    let (mut appends, mut bytes): (Vec<Append>, usize) = (Vec::new(), 0);
    let (mut fresh, mut known) = (0, imported as u64);
    let mut beginning = crc32fast::Hasher::new();
    beginning.update(id.as_bytes());
    if matches!(kind, ListKind::Taken) {
        beginning.update(kind.name().as_bytes());
    }
    messages[..imported].iter().for_each(|text| beginning.update(text.get().as_bytes()));
    for (at, message) in messages.iter().enumerate().skip(imported) {
        beginning.update(message.get().as_bytes());
        let read = StoredMessage::parse(message.get());
        match read.and_then(|message| message.payload().map_err(|error| error.to_string())) {
            Ok(payload) => {
                // An earlier run may have died before it stored its position. So the id is made of the index in the
                // list and a checksum of all messages up to it.
                let id = DispatchId::new(&format!("import-{at}-{:08x}", beginning.clone().finalize()));
                let id = id.expect("a few letters and digits");
                let idempotency = Some(Idempotency { id, online: vec![false], rejected: Vec::new() });
                bytes += payload.as_bytes().len();
                appends.push(Append { idempotency, ..Append::new(payload, vec![user.clone()]) });
            }
            Err(error) => {
                tracing::warn!(user = %excerpt(&user), at, %error, "a message cannot be sent to clients: it is not imported and stays in Redis");
                moved.refused += 1;
            }
        }
        if appends.len() >= PAGE_LIMIT.entries || bytes >= PAGE_LIMIT.bytes || at + 1 == messages.len() {
            let all = appends.len() as u64;
            let new = append_and_verify(store, &user, std::mem::take(&mut appends)).await?;
            (bytes, fresh, known) = (0, fresh + new, known + all - new);
        }
    }
    let now = format!("{} {}", messages.len(), sum(&messages));
    run_on(link, move |link| async move {
        link.client().query::<()>(redis::cmd("HSET").arg(undelivered(&link)).arg(position_field).arg(now)).await
    })
    .await?;
    moved.messages += fresh;
    moved.known += known;
    Ok(!messages.is_empty())
}

/// Appends messages to a user's log, and reads the new ones back. Returns their number.
async fn append_and_verify(store: &dyn Store, user: &UserId, appends: Vec<Append>) -> Result<u64, MoveError> {
    let payloads: Vec<Payload> = appends.iter().map(|append| append.payload.clone()).collect();
    let before = store.state(user)?.head;
    let results = store.append_all(appends).await?;
    if results.iter().any(|result| result.summary.as_ref().is_some_and(|summary| !summary.rejected.is_empty())) {
        return Err(StoreError::Full(
            format!("the store rejects messages of {user:?}. Check its limits, and run the command again").into(),
        )
        .into());
    }
    let fresh: Vec<&Payload> =
        results.iter().zip(&payloads).filter(|(result, _)| !result.duplicate).map(|(_, payload)| payload).collect();
    let written = read_all(store, user, before)?;
    if !written.iter().map(|(_, payload)| payload).eq(fresh.iter().copied()) {
        return Err(MoveError::Differs { user: user.to_string() });
    }
    Ok(fresh.len() as u64)
}

/// Reads the pending entries of a user above `after`.
fn read_all(store: &dyn Store, user: &UserId, after: Seq) -> Result<Vec<(Seq, Payload)>, StoreError> {
    let acknowledged = store.state(user)?.acknowledged;
    let (mut all, mut after) = (Vec::new(), after);
    loop {
        let found = store.read(user, after, PAGE_LIMIT)?;
        let Some(last) = found.entries.last().map(|entry| entry.seq) else { return Ok(all) };
        after = last;
        let pending = found.entries.into_iter().filter(|entry| !acknowledged.contains(entry.seq));
        all.extend(pending.map(|entry| (entry.seq, entry.payload)));
    }
}

/// Returns the random id of the store in `directory`, which differs from earlier and later stores there.
///
/// The id is in the file `origin`, which the first call creates and syncs to disk before it returns.
///
/// # Errors
/// When the file cannot be read or written.
pub fn origin(directory: &Path) -> io::Result<String> {
    let (path, temporary) = (directory.join("origin"), directory.join("origin.new"));
    match fs::read_to_string(&path) {
        Ok(text) => return Ok(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let mut random = [0_u8; 8];
    getrandom::fill(&mut random).map_err(io::Error::other)?;
    let text = format!("{:016x}", u64::from_be_bytes(random));
    let mut file = fs::File::create(&temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&temporary, &path)?;
    fs::File::open(directory)?.sync_all()?;
    Ok(text)
}

/// Exports a store's pending messages to the original, behind those that are pending there.
///
/// [`origin`] identifies the store: the position of each user is stored for each origin. Calls `on_user` after each user.
///
/// # Errors
/// See [`MoveError`].
pub async fn export(
    store: &dyn Store,
    origin: &str,
    link: &Arc<ServerLink>,
    on_user: &dyn Fn(),
) -> Result<Moved, MoveError> {
    let (mut moved, mut after) = (Moved::default(), None);
    loop {
        let users = store.users(after.as_ref(), USERS_MAX)?;
        let Some((last, _)) = users.last() else { return Ok(moved) };
        after = Some(last.clone());
        for (user, state) in users {
            let state = state?;
            if state.pending == 0 {
                continue;
            }
            let pending = read_all(store, &user, state.acknowledged.through())?;
            export_user(&pending, origin, &user, link, &mut moved).await?;
            on_user();
        }
    }
}

/// Appends a user's pending messages to the original's list, and reads them back.
async fn export_user(
    pending: &[(Seq, Payload)],
    origin: &str,
    user: &UserId,
    link: &Arc<ServerLink>,
    moved: &mut Moved,
) -> Result<(), MoveError> {
    let position_field = format!("{OWN_FIELD_PREFIX}mesa:exported:{origin}:{user}");
    let field_name = position_field.clone();
    let known = run_on(link, move |link| async move { field(&link, &field_name).await }).await?.unwrap_or_default();
    let exported: Seq = known.parse().unwrap_or(0);
    let texts: Vec<&[u8]> =
        pending.iter().filter(|(seq, _)| *seq > exported).map(|(_, payload)| &payload.as_bytes()[..]).collect();
    moved.users += u64::from(!pending.is_empty());
    moved.known += (pending.len() - texts.len()) as u64;
    let Some((last, _)) = pending.last().filter(|_| !texts.is_empty()) else { return Ok(()) };
    let (added, last, id) = (texts.join(&b","[..]), last.to_string(), user.to_string());
    let count = texts.len();
    let expected = texts.iter().map(|text| String::from_utf8_lossy(text).into_owned()).collect::<Vec<_>>();
    let adding = move |link: Arc<ServerLink>| async move {
        let (key, arguments) = (
            [undelivered(&link)],
            [id.as_bytes(), position_field.as_bytes(), known.as_bytes(), last.as_bytes(), &added],
        );
        let added: bool = link.client().run_script(&APPEND_TO_LIST, &key, &arguments).await?;
        Ok((added, field(&link, &id).await?.unwrap_or_default()))
    };
    let (added, text) = run_on(link, adding).await?;
    let list = list(user.as_str(), &text)?;
    let written = list.len().checked_sub(count).map(|at| &list[at..]).unwrap_or_default();
    if !added || !written.iter().map(|text| text.get()).eq(expected.iter().map(String::as_str)) {
        return Err(MoveError::Differs { user: user.to_string() });
    }
    moved.messages += count as u64;
    Ok(())
}

/// Runs `work` on the Redis runtime.
async fn run_on<T, F>(link: &Arc<ServerLink>, work: impl FnOnce(Arc<ServerLink>) -> F) -> Result<T, RedisError>
where
    T: Send + 'static,
    F: Future<Output = Result<T, RedisError>> + Send + 'static,
{
    link.run(work(link.clone())).await
}
