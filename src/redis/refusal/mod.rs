//! Classifies errors of Redis: unavailable, full, refused, damaged.
//!
//! Also tracks the requests that Redis refuses now, for `/readyz`.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use redis::ErrorKind;

use crate::logging::network_error;

/// Code with which our scripts report a stored value that they did not write in this form.
const DAMAGED: &str = "DAMAGED";

/// The codes that mean damage. Every other code, known or not, does not.
const DAMAGE: [&str; 2] = [DAMAGED, "WRONGTYPE"];

/// Code of a failed authentication while connecting, which the client library reports without a code.
const WRONG_PASSWORD: &str = "WRONGPASS";

/// Text of Redis 7 for `NOPERM` within a script.
const NO_PERMISSION_IN_SCRIPT: &str = "The user executing the script can't ";

/// What to do when Redis has no memory left.
const FULL: &str = "its memory limit is reached. Raise its setting `maxmemory`, or let pending messages be acknowledged, \
                    expire or be cleared";

/// Limit of an error's text in responses and in the log, in bytes.
const DETAIL_BYTES_MAX: usize = 300;

/// A known error code.
struct Known {
    code: &'static str,
    /// What is wrong, and what to do.
    sentence: &'static str,
    /// It ends without a change of configuration, so a starting server waits.
    is_transient: bool,
    retry: Retry,
}

/// A cause that Redis reports with the code `ERR` and a specific text.
struct TextCause {
    /// Start of the text.
    prefix: &'static str,
    known: Known,
}

/// Selects the connection over which a refused request is resent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Retry {
    /// The same one.
    Same,
    /// A new one if Sentinels name the Redis: they may name another primary.
    Sentinel,
    /// A new one.
    Reconnect,
}

const fn known(code: &'static str, is_transient: bool, retry: Retry, sentence: &'static str) -> Known {
    Known { code, sentence, is_transient, retry }
}

const fn text_cause(prefix: &'static str, known: Known) -> TextCause {
    TextCause { prefix, known }
}

/// Causes without their own code.
const TEXT_CAUSES: [TextCause; 7] = [
    text_cause("Protocol error: unauthenticated", NOAUTH),
    text_cause(
        "max number of clients reached",
        known(
            "ERR",
            true,
            Retry::Reconnect,
            "Redis has as many clients as its setting `maxclients` allows. Raise that setting, or disconnect clients; CLIENT LIST lists them",
        ),
    ),
    text_cause(
        "This instance has cluster support disabled",
        known(
            "ERR",
            false,
            Retry::Reconnect,
            "this Redis is not a Redis Cluster. Give its address as text in the key `redis` (redis: 'redis://HOST'), not as an array",
        ),
    ),
    text_cause(
        "SELECT is not allowed in cluster mode",
        known(
            "ERR",
            false,
            Retry::Reconnect,
            "a Redis Cluster has only database 0. Remove the number from the key `redis`",
        ),
    ),
    text_cause(
        "DB index is out of range",
        known(
            "ERR",
            false,
            Retry::Reconnect,
            "this Redis has no database with that number. Use a number below its setting `databases` (16 by default) in the key \
             `redis`",
        ),
    ),
    text_cause(
        "invalid DB index",
        known("ERR", false, Retry::Reconnect, "the database in the key `redis` must be a number"),
    ),
    text_cause(
        "unknown command",
        known(
            "ERR",
            false,
            Retry::Same,
            "this Redis lacks a command: its version is too old, or the command was renamed. Use a newer Redis, or remove \
             `rename-command` from its configuration",
        ),
    ),
];

const NOAUTH: Known = known(
    "NOAUTH",
    false,
    Retry::Reconnect,
    "Redis requires a password. Set it in the key `redis` (redis://:PASSWORD@HOST)",
);

/// Codes with which Redis refuses every request. A reply to any request ends the refusal.
const REFUSING_ALL: [&str; 6] = ["BUSY", "LOADING", "UNKILLABLE", "NOAUTH", WRONG_PASSWORD, "DENIED"];

const KNOWN: [Known; 17] = [
    known(
        "BUSY",
        true,
        Retry::Same,
        "Redis runs a script or function of some client, and answers no other request. SCRIPT KILL or FUNCTION KILL ends one that has \
         written nothing; SLOWLOG GET names it afterwards",
    ),
    known(
        "LOADING",
        true,
        Retry::Sentinel,
        "Redis is reading its data from the disk. Wait until that ends; INFO persistence shows the progress",
    ),
    known(
        "MASTERDOWN",
        true,
        Retry::Reconnect,
        "this is a replica that has lost its primary. Restart the primary, or point the key `redis` to another one",
    ),
    known(
        "READONLY",
        true,
        Retry::Reconnect,
        "this is a replica, which accepts no writes. Point the key `redis` to the primary, or to the Sentinels",
    ),
    known(
        "CLUSTERDOWN",
        true,
        Retry::Reconnect,
        "some slots of the Redis Cluster have no node. CLUSTER INFO and CLUSTER NODES show which",
    ),
    known(
        "TRYAGAIN",
        true,
        Retry::Same,
        "keys are moving between nodes of the Redis Cluster. This ends when the slot has moved",
    ),
    known(
        "MOVED",
        true,
        Retry::Reconnect,
        "another node of the Redis Cluster has that slot. Name the nodes as an array in the key `redis`; if they are, this \
         ends when the slot has moved",
    ),
    known(
        "ASK",
        true,
        Retry::Same,
        "keys are moving between nodes of the Redis Cluster. This ends when the slot has moved",
    ),
    known(
        "NOREPLICAS",
        true,
        Retry::Sentinel,
        "Redis has fewer connected replicas than min-replicas-to-write requires. Restart replicas, or lower that setting",
    ),
    known(
        "MISCONF",
        true,
        Retry::Sentinel,
        "Redis accepts no writes because it could not write its data to the disk. Check its log, and the free space of its disk",
    ),
    NOAUTH,
    known(
        WRONG_PASSWORD,
        false,
        Retry::Reconnect,
        "Redis does not accept the user name or the password. Correct them in the key `redis`",
    ),
    known(
        "NOPERM",
        false,
        Retry::Same,
        "the ACL of Redis does not allow this server a command, key or channel. ACL LOG names it; ACL SETUSER grants it",
    ),
    known(
        "DENIED",
        false,
        Retry::Reconnect,
        "Redis is in protected mode. Set a password for it, or bind it to the address that this server uses",
    ),
    known("CROSSSLOT", false, Retry::Same, "this is a Redis Cluster. Name its nodes as an array in the key `redis`"),
    known("EXECABORT", false, Retry::Same, "Redis has dropped a transaction. Its log has the reason"),
    known("UNKILLABLE", true, Retry::Same, "Redis runs a script that cannot be stopped. Wait for it, or restart Redis"),
];

/// Classification of an error.
#[derive(Debug)]
pub(super) struct Classified {
    pub error: RedisError,
    /// Redis has replied: the connection works, and the request was not done.
    pub answered: bool,
    pub retry: Retry,
    /// Redis refuses every request, not only this one.
    pub refuses_all: bool,
}

impl Classified {
    /// Tells whether a connection with this error is useless for every request.
    pub(super) fn ends_connection(&self) -> bool {
        !self.answered || self.retry == Retry::Reconnect
    }
}

/// Validity of a refusal after its last occurrence: three lease renewals, so that a refused renewal counts without a
/// break.
const REFUSAL_TTL: Duration = Duration::from_secs(6);

/// Limit of stored refusals: more than there are scripts and commands. One more drops the oldest.
const REFUSALS_MAX: usize = 64;

/// The requests that Redis refuses now.
#[derive(Default)]
pub(super) struct Refusals {
    refused: Vec<Refusal>,
    /// When the last answered request was sent. An earlier refusal of all requests has ended.
    answered: Option<Instant>,
}

struct Refusal {
    request: Vec<u8>,
    why: Arc<str>,
    /// Every request was refused, not only this one.
    refuses_all: bool,
    sent: Instant,
    since: Instant,
    last: Instant,
}

impl Refusals {
    /// Records that a request sent at `sent` was refused.
    pub(super) fn refused(&mut self, request: Vec<u8>, why: Arc<str>, refuses_all: bool, sent: Instant, now: Instant) {
        if refuses_all && self.answered.is_some_and(|answered| answered > sent) {
            return;
        }
        self.refused.retain(|one| now.saturating_duration_since(one.last) < REFUSAL_TTL);
        let known = self.refused.iter().position(|one| one.request == request).map(|at| self.refused.remove(at));
        if self.refused.len() >= REFUSALS_MAX {
            self.refused.remove(0);
        }
        let since = known.map_or(now, |one| one.since);
        self.refused.push(Refusal { request, why, refuses_all, sent, since, last: now });
    }

    /// Records that a request sent at `sent` was answered. Returns true if this ended the last refusal.
    pub(super) fn answered(&mut self, request: impl FnOnce() -> Vec<u8>, sent: Instant) -> bool {
        self.answered = self.answered.max(Some(sent));
        if self.refused.is_empty() {
            return false;
        }
        let request = request();
        self.refused.retain(|one| one.request != request && !(one.refuses_all && one.sent <= sent));
        self.refused.is_empty()
    }

    /// Returns the last refusal's reason, and since when requests have been refused.
    pub(super) fn current(&self, now: Instant) -> Option<(Arc<str>, Duration)> {
        let mut current = self.refused.iter().filter(|one| now.saturating_duration_since(one.last) < REFUSAL_TTL);
        let since = current.clone().map(|one| one.since).min()?;
        Some((current.next_back()?.why.clone(), now.saturating_duration_since(since)))
    }
}

/// Classifies an error.
pub(super) fn classify(error: &redis::RedisError) -> Classified {
    let unanswered = |error, retry| Classified { error, answered: false, retry, refuses_all: false };
    let lost = |text: String| unanswered(RedisError::Unavailable(text.into()), Retry::Reconnect);
    let Some(code) = code(error) else {
        return match error.kind() {
            ErrorKind::MasterNameNotFoundBySentinel => lost(
                "its Sentinels name no primary: a failover may be under way, or redis.name is not what they call it"
                    .into(),
            ),
            ErrorKind::Io | ErrorKind::Parse | ErrorKind::ClusterConnectionNotFound => lost(network_error(error)),
            _ if error.is_unrecoverable_error() || error.is_timeout() => lost(network_error(error)),
            _ => unanswered(RedisError::Refused(network_error(error).into()), Retry::Same),
        };
    };
    let detail = cut(error.detail().unwrap_or_default());
    classify_code(code, detail)
}

/// Classifies an error by its code and text.
fn classify_code(code: &str, detail: &str) -> Classified {
    let (code, detail) = within_script(code, detail);
    let answered = |error, retry| Classified { error, answered: true, retry, refuses_all: false };
    let named = if detail.is_empty() { code.to_owned() } else { format!("{code}: {detail}") };
    if code == "OOM" || detail.contains("OOM command not allowed") {
        return answered(RedisError::Full(format!("{FULL} ({named})").into()), Retry::Same);
    }
    let text_cause =
        TEXT_CAUSES.iter().find(|cause| code == "ERR" && detail.starts_with(cause.prefix)).map(|cause| &cause.known);
    if text_cause.is_none() && (DAMAGE.contains(&code) || is_script_failure(code, detail)) {
        return answered(RedisError::Damaged(named.into()), Retry::Same);
    }
    let Some(known) = text_cause.or_else(|| KNOWN.iter().find(|known| known.code == code)) else {
        // An unknown code is taken for no statement about the data.
        let text = format!(
            "Redis refuses a request ({named}). Search for that text in the documentation of Redis and in its log; the \
             request succeeds again once the cause is removed"
        );
        return answered(RedisError::Refused(text.into()), Retry::Same);
    };
    let named = if known.code == code { named } else { format!("{}: {named}", known.code) };
    let text = format!("{} ({named})", known.sentence).into();
    let error = if known.is_transient { RedisError::Unavailable(text) } else { RedisError::Refused(text) };
    Classified { refuses_all: REFUSING_ALL.contains(&known.code), ..answered(error, known.retry) }
}

fn code(error: &redis::RedisError) -> Option<&str> {
    match error.kind() {
        ErrorKind::AuthenticationFailed => Some(WRONG_PASSWORD),
        _ => error.code(),
    }
}

/// Extracts the code of an error of a command within a script. Redis 7 reports a missing permission without its
/// code. Redis below 7 wraps every error: `ERR Error running script (…): @user_script:12: NOPERM …`.
fn within_script<'a>(code: &'a str, detail: &'a str) -> (&'a str, &'a str) {
    if detail.starts_with(NO_PERMISSION_IN_SCRIPT) {
        return ("NOPERM", detail);
    }
    let wrapped = detail.starts_with("Error running script").then(|| detail.rsplit_once("@user_script:")).flatten();
    let inner = wrapped.and_then(|(_, rest)| rest.split_once(": ")).map(|(_, inner)| inner.trim_start_matches('-'));
    match inner.map(|inner| inner.split_once(' ').unwrap_or((inner, ""))) {
        Some((word, rest)) if !word.is_empty() && word.chars().all(|each| each.is_ascii_uppercase()) => (word, rest),
        _ => (code, detail),
    }
}

/// Tells whether Lua itself failed in one of our scripts: a stored value does not have the form that scripts write.
fn is_script_failure(code: &str, detail: &str) -> bool {
    code == "ERR" && (detail.starts_with("user_script:") || detail.starts_with("Error running script"))
}

/// Cuts off what Redis appends about the script, and limits the length.
fn cut(detail: &str) -> &str {
    let detail = detail.split_once(" script: ").map_or(detail, |(detail, _)| detail).trim();
    let mut end = detail.len().min(DETAIL_BYTES_MAX);
    while !detail.is_char_boundary(end) {
        end -= 1;
    }
    &detail[..end]
}

/// Why a request failed.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RedisError {
    /// Redis cannot be reached, the connection was lost before the reply, or Redis takes no requests for now (it is
    /// busy, a replica, a primary without replicas, or a Redis Cluster under repair). The request may have been done.
    #[error("Redis is unavailable: {0}")]
    Unavailable(Arc<str>),
    /// Redis has no memory for more.
    #[error("Redis has no memory left: {0}")]
    Full(Arc<str>),
    /// Redis refuses until an operator changes a password, permissions or an address. No statement about the data.
    #[error("Redis refuses: {0}")]
    Refused(Arc<str>),
    /// A stored value does not have the form that it was written in.
    #[error("data in Redis is damaged: {0}")]
    Damaged(Arc<str>),
}

#[cfg(test)]
mod tests;
