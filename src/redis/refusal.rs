//! Classifies errors of Redis: unavailable, full, refused, damaged.
//!
//! Also tracks which requests Redis refuses now, for `/readyz`.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use redis::ErrorKind;

use crate::logging::network_error;

/// Code with which our scripts report that a stored value does not have the form they wrote.
const DAMAGED: &str = "DAMAGED";

/// Codes that mean damage. No other code does, known or not.
const DAMAGE: [&str; 2] = [DAMAGED, "WRONGTYPE"];

/// Code of a failed authentication while connecting. The client library reports it without one.
const WRONG_PASSWORD: &str = "WRONGPASS";

/// Text of Redis 7 for `NOPERM` within a script.
const NO_PERMISSION_IN_SCRIPT: &str = "The user executing the script can't ";

/// What to do when Redis has no memory left.
const FULL: &str = "its memory limit is reached. Raise its setting `maxmemory`, or let pending messages be acknowledged, \
                    expire or be cleared";

/// Bytes of an error's text that are repeated in responses and in the log.
const DETAIL_BYTES_MAX: usize = 300;

/// A known error code.
struct Known {
    code: &'static str,
    /// What is wrong, and what to do.
    sentence: &'static str,
    /// It passes without a change of configuration, so a starting server waits.
    passes: bool,
    retry: Retry,
}

/// A cause that Redis reports with the code `ERR` and a text of its own.
struct Worded {
    /// Start of the text.
    begins: &'static str,
    known: Known,
}

/// Selects the connection over which a refused request is resent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Retry {
    /// The same one.
    Same,
    /// A new one if Sentinels name the Redis: they may know a better one.
    Sentinel,
    /// A new one.
    Anew,
}

const fn known(code: &'static str, passes: bool, retry: Retry, sentence: &'static str) -> Known {
    Known { code, sentence, passes, retry }
}

const fn worded(begins: &'static str, known: Known) -> Worded {
    Worded { begins, known }
}

/// Causes without a code of their own: the code is `ERR`, and the text tells.
const WORDED: [Worded; 7] = [
    worded("Protocol error: unauthenticated", NOAUTH),
    worded(
        "max number of clients reached",
        known(
            "ERR",
            true,
            Retry::Anew,
            "Redis has as many clients as its setting `maxclients` allows. Raise that, or end some; CLIENT LIST names them",
        ),
    ),
    worded(
        "This instance has cluster support disabled",
        known(
            "ERR",
            false,
            Retry::Anew,
            "this Redis is no Cluster. Name it as text in the key `redis` (redis: 'redis://HOST'), not as an array",
        ),
    ),
    worded(
        "SELECT is not allowed in cluster mode",
        known(
            "ERR",
            false,
            Retry::Anew,
            "a Redis Cluster has database 0 alone. Leave the number out of the key `redis`",
        ),
    ),
    worded(
        "DB index is out of range",
        known(
            "ERR",
            false,
            Retry::Anew,
            "this Redis has no database of that number. Name one below its setting `databases` (16 by default) in the key \
             `redis`",
        ),
    ),
    worded("invalid DB index", known("ERR", false, Retry::Anew, "the database in the key `redis` has to be a number")),
    worded(
        "unknown command",
        known(
            "ERR",
            false,
            Retry::Same,
            "this Redis lacks a command: its version is too old, or the command was renamed. Use a newer Redis, or take \
             `rename-command` out of its configuration",
        ),
    ),
];

const NOAUTH: Known = known(
    "NOAUTH",
    false,
    Retry::Anew,
    "Redis asks for a password. Set it in the key `redis` (redis://:PASSWORD@HOST)",
);

/// Codes with which Redis refuses every request: a reply to any request ends the refusal.
const REFUSING_ALL: [&str; 6] = ["BUSY", "LOADING", "UNKILLABLE", "NOAUTH", WRONG_PASSWORD, "DENIED"];

const KNOWN: [Known; 17] = [
    known(
        "BUSY",
        true,
        Retry::Same,
        "Redis runs a script or function of some client and answers nothing else. SCRIPT KILL or FUNCTION KILL ends one that has \
         written nothing; SLOWLOG GET names it afterwards",
    ),
    known(
        "LOADING",
        true,
        Retry::Sentinel,
        "Redis is reading its data from the disk. Wait until it has; INFO persistence shows how far it is",
    ),
    known(
        "MASTERDOWN",
        true,
        Retry::Anew,
        "this is a replica that has lost its primary. Bring the primary back, or lead the key `redis` to another one",
    ),
    known(
        "READONLY",
        true,
        Retry::Anew,
        "this is a replica, which accepts no writes. Lead the key `redis` to the primary, or to the Sentinels",
    ),
    known(
        "CLUSTERDOWN",
        true,
        Retry::Anew,
        "some slots of the Cluster have no node. CLUSTER INFO and CLUSTER NODES name what is missing",
    ),
    known(
        "TRYAGAIN",
        true,
        Retry::Same,
        "keys are moving between nodes of the Cluster. It passes when the slot has moved",
    ),
    known(
        "MOVED",
        true,
        Retry::Anew,
        "another node of the Redis Cluster has that slot. Name the nodes as an array in the key `redis`; where they are, this \
         passes when the slot has moved",
    ),
    known("ASK", true, Retry::Same, "keys are moving between nodes of the Cluster. It passes when the slot has moved"),
    known(
        "NOREPLICAS",
        true,
        Retry::Sentinel,
        "Redis has fewer replicas in contact than min-replicas-to-write demands. Bring them back, or lower that setting",
    ),
    known(
        "MISCONF",
        true,
        Retry::Sentinel,
        "Redis accepts no writes because it could not write its data to the disk. Look at its log, and at the room on its disk",
    ),
    NOAUTH,
    known(
        WRONG_PASSWORD,
        false,
        Retry::Anew,
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
        Retry::Anew,
        "Redis is in protected mode. Set a password for it, or bind it to the right address",
    ),
    known("CROSSSLOT", false, Retry::Same, "this is a Redis Cluster. Name its nodes as an array in the key `redis`"),
    known("EXECABORT", false, Retry::Same, "Redis has dropped a transaction. Its log says why"),
    known("UNKILLABLE", true, Retry::Same, "Redis runs a script that cannot be stopped. Wait for it, or restart Redis"),
];

/// Classification of an error.
#[derive(Debug)]
pub(super) struct Meaning {
    pub error: RedisError,
    /// Redis itself has replied: the connection works, and the request was not done.
    pub answered: bool,
    pub retry: Retry,
    /// Redis refuses every request in the same way.
    pub is_of_all: bool,
}

impl Meaning {
    /// Tells whether a connection with this error is of no use for any request.
    pub(super) fn ends_connection(&self) -> bool {
        !self.answered || self.retry == Retry::Anew
    }
}

/// How long a refusal counts after its last occurrence: three renewals of the lease, so that a refused renewal counts all the
/// time.
const REFUSAL_TTL: Duration = Duration::from_secs(6);

/// Refused requests that are remembered: more than there are scripts and commands. With one more the oldest is dropped.
const REFUSALS_MAX: usize = 64;

/// The requests that Redis refuses now.
#[derive(Default)]
pub(super) struct Refusals {
    refused: Vec<Refusal>,
    /// When the last answered request was sent. A refusal of all requests that was met earlier is over.
    answered: Option<Instant>,
}

struct Refusal {
    request: Vec<u8>,
    why: Arc<str>,
    /// Every request was refused, not only this one.
    is_of_all: bool,
    sent: Instant,
    since: Instant,
    last: Instant,
}

impl Refusals {
    /// Records that a request sent at `sent` was refused.
    pub(super) fn refused(&mut self, request: Vec<u8>, why: Arc<str>, is_of_all: bool, sent: Instant, now: Instant) {
        if is_of_all && self.answered.is_some_and(|answered| answered > sent) {
            return;
        }
        self.refused.retain(|one| now.saturating_duration_since(one.last) < REFUSAL_TTL);
        let known = self.refused.iter().position(|one| one.request == request).map(|at| self.refused.remove(at));
        if self.refused.len() >= REFUSALS_MAX {
            self.refused.remove(0);
        }
        let since = known.map_or(now, |one| one.since);
        self.refused.push(Refusal { request, why, is_of_all, sent, since, last: now });
    }

    /// Records that a request sent at `sent` was answered. Returns true if this ended the last refusal.
    pub(super) fn answered(&mut self, request: impl FnOnce() -> Vec<u8>, sent: Instant) -> bool {
        self.answered = self.answered.max(Some(sent));
        if self.refused.is_empty() {
            return false;
        }
        let request = request();
        self.refused.retain(|one| one.request != request && !(one.is_of_all && one.sent <= sent));
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
pub(super) fn meaning(error: &redis::RedisError) -> Meaning {
    let met = |error, retry| Meaning { error, answered: false, retry, is_of_all: false };
    let lost = |text: String| met(RedisError::Unavailable(text.into()), Retry::Anew);
    let Some(code) = code(error) else {
        return match error.kind() {
            ErrorKind::MasterNameNotFoundBySentinel => lost(
                "its Sentinels name no primary: a failover may be under way, or redis.name is not what they call it"
                    .into(),
            ),
            ErrorKind::Io | ErrorKind::Parse | ErrorKind::ClusterConnectionNotFound => lost(network_error(error)),
            _ if error.is_unrecoverable_error() || error.is_timeout() => lost(network_error(error)),
            _ => met(RedisError::Refused(network_error(error).into()), Retry::Same),
        };
    };
    let detail = cut(error.detail().unwrap_or_default());
    of_code(code, detail)
}

fn of_code(code: &str, detail: &str) -> Meaning {
    let (code, detail) = within_script(code, detail);
    let answered = |error, retry| Meaning { error, answered: true, retry, is_of_all: false };
    let named = if detail.is_empty() { code.to_owned() } else { format!("{code}: {detail}") };
    if code == "OOM" || detail.contains("OOM command not allowed") {
        return answered(RedisError::Full(format!("{FULL} ({named})").into()), Retry::Same);
    }
    let worded = WORDED.iter().find(|one| code == "ERR" && detail.starts_with(one.begins)).map(|one| &one.known);
    if worded.is_none() && (DAMAGE.contains(&code) || is_script_failure(code, detail)) {
        return answered(RedisError::Damaged(named.into()), Retry::Same);
    }
    let Some(known) = worded.or_else(|| KNOWN.iter().find(|known| known.code == code)) else {
        // An unknown code is assumed to say nothing about the data.
        let text = format!(
            "Redis refuses a request ({named}). Look for that text in the documentation of Redis and in its log; the \
             request works again once its cause is mended"
        );
        return answered(RedisError::Refused(text.into()), Retry::Same);
    };
    let named = if known.code == code { named } else { format!("{}: {named}", known.code) };
    let text = format!("{} ({named})", known.sentence).into();
    let error = if known.passes { RedisError::Unavailable(text) } else { RedisError::Refused(text) };
    Meaning { is_of_all: REFUSING_ALL.contains(&known.code), ..answered(error, known.retry) }
}

fn code(error: &redis::RedisError) -> Option<&str> {
    match error.kind() {
        ErrorKind::AuthenticationFailed => Some(WRONG_PASSWORD),
        _ => error.code(),
    }
}

/// Extracts the code of an error that a command within a script has met. Redis 7 reports a missing permission without its
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

/// Tells whether Lua itself failed in one of our scripts: a stored value does not have the form that the scripts write.
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
    /// Redis cannot be reached, the connection was lost before the reply, or Redis takes no requests for now (it is busy, a
    /// replica, a primary without replicas, or a Redis Cluster under repair). The request may have been done.
    #[error("Redis is unavailable: {0}")]
    Unavailable(Arc<str>),
    /// Redis has no memory for more.
    #[error("Redis has no memory left: {0}")]
    Full(Arc<str>),
    /// Redis refuses until an operator changes something: a password, permissions, an address. Says nothing about the data.
    #[error("Redis refuses: {0}")]
    Refused(Arc<str>),
    /// A stored value does not have the form that it was written in.
    #[error("data in Redis is damaged: {0}")]
    Damaged(Arc<str>),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(code: &str, detail: &str) -> RedisError {
        of_code(code, cut(detail)).error
    }

    #[test]
    fn only_listed_codes_mean_damage() {
        for known in &KNOWN {
            assert!(
                matches!(of(known.code, "why"), RedisError::Unavailable(_) | RedisError::Refused(_)),
                "{}",
                known.code
            );
        }
        for code in ["ERR", "UNHEARDOF", "NOPROTO", "INPROG", "STALE", "NOGOODSLAVE", "MULTI", ""] {
            assert!(matches!(of(code, "why"), RedisError::Refused(_)), "{code}");
        }
        for (code, detail) in [
            ("WRONGTYPE", "Operation against a key holding the wrong kind of value"),
            ("DAMAGED", "what is stored under mesa:state:{a} cannot be read"),
            ("ERR", "user_script:12: attempt to index local 'S' (a nil value) script: c0ffee, on @user_script:12."),
            ("ERR", "Error running script (call to f_c0ffee): @user_script:12: WRONGTYPE Operation against"),
            ("ERR", "Error running script (call to f_c0ffee): @user_script:12: user_script:12: attempt to index"),
        ] {
            assert!(matches!(of(code, detail), RedisError::Damaged(_)), "{code} {detail}");
        }
        for (code, detail) in [
            ("OOM", "command not allowed when used memory > 'maxmemory'."),
            ("ERR", "Error running script (call to f_c0ffee): @user_script:1: -OOM command not allowed when used"),
        ] {
            assert!(matches!(of(code, detail), RedisError::Full(_)), "{code} {detail}");
        }
    }

    #[test]
    fn refusal_counts_until_the_request_is_answered_or_not_repeated() {
        let (mut refusals, start) = (Refusals::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let current = |refusals: &Refusals, seconds| {
            refusals.current(at(seconds)).map(|(why, since)| (why.to_string(), since.as_secs()))
        };
        let (one, all) = (false, true);
        let refused = |refusals: &mut Refusals, name: &[u8], why: &str, of, seconds| {
            refusals.refused(name.into(), why.into(), of, at(seconds), at(seconds));
        };
        let answered = |refusals: &mut Refusals, name: &[u8], seconds| refusals.answered(|| name.into(), at(seconds));
        refused(&mut refusals, b"HSET", "a", one, 0);
        refused(&mut refusals, b"XADD", "b", one, 1);
        assert_eq!(current(&refusals, 2), Some(("b".into(), 2)));
        assert!(!answered(&mut refusals, b"GET", 2));
        assert!(!answered(&mut refusals, b"XADD", 2), "another is refused still");
        assert_eq!(current(&refusals, 3), Some(("a".into(), 3)));
        refused(&mut refusals, b"HSET", "c", one, 5);
        assert_eq!(current(&refusals, 10), Some(("c".into(), 10)));
        assert_eq!(current(&refusals, 11), None);
        assert!(answered(&mut refusals, b"HSET", 11));
        assert!(!answered(&mut refusals, b"HSET", 11), "it is not refused any more");
        refused(&mut refusals, b"HSET", "d", all, 12);
        assert!(!answered(&mut refusals, b"GET", 11), "it was sent before");
        assert_eq!(current(&refusals, 13), Some(("d".into(), 1)));
        assert!(answered(&mut refusals, b"GET", 13), "nothing is answered while all is refused");
        refused(&mut refusals, b"HSET", "e", all, 12);
        assert_eq!(current(&refusals, 13), None, "it is reported late");
        for n in 0..1000_u32 {
            refused(&mut refusals, &n.to_be_bytes(), "f", one, 20);
        }
        assert_eq!(refusals.refused.len(), REFUSALS_MAX);
    }

    #[test]
    fn refusal_with_a_general_code_says_what_to_do() {
        for (detail, expected) in [
            ("Protocol error: unauthenticated multibulk length", "(NOAUTH: ERR: Protocol error: unauthenticated"),
            ("Protocol error: unauthenticated bulk length", "redis://:PASSWORD@HOST"),
            ("max number of clients reached", "`maxclients`"),
            ("This instance has cluster support disabled", "not as an array"),
            ("DB index is out of range", "`databases`"),
            ("unknown command 'XADD', with args beginning with: ", "`rename-command`"),
            ("something new", "documentation of Redis"),
        ] {
            let text = of("ERR", detail).to_string();
            assert!(text.contains(expected), "{text}");
        }
        let full = of("OOM", "command not allowed when used memory > 'maxmemory'.").to_string();
        assert!(full.contains("Raise its setting `maxmemory`"), "{full}");
    }

    #[test]
    fn refusal_names_the_code_and_what_to_do() {
        let text =
            of("NOPERM", "this user has no permissions to run the 'hset' command script: c0ffee, on @user_script:3.");
        let text = text.to_string();
        assert!(text.contains("(NOPERM: this user has no permissions to run the 'hset' command)"), "{text}");
        assert!(text.contains("ACL SETUSER"), "{text}");
        let wrapped = "Error running script (call to f_c0ffee): @user_script: 12: NOPERM this user has no permissions";
        assert!(of("ERR", wrapped).to_string().contains("(NOPERM: this user has no permissions)"));
        let within =
            "The user executing the script can't run this command or subcommand script: c0ffee, on @user_script:3.";
        assert!(of("ERR", within).to_string().contains("(NOPERM: The user executing"));
        let silent = of("WRONGPASS", "").to_string();
        assert!(silent.ends_with("(WRONGPASS)"), "{silent}");
        let unknown = of("UNHEARDOF", &"é".repeat(400)).to_string();
        assert!(unknown.contains("UNHEARDOF") && unknown.len() < DETAIL_BYTES_MAX + 200, "{unknown}");
    }
}
