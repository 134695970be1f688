//! What an error of Redis means: the connection is lost, Redis refuses, has no memory left, or the data is damaged.
//!
//! Also which requests Redis refuses now, for `/readyz`.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use redis::{ErrorKind, RedisError};

use super::line::LinkError;

/// The code with which our scripts say that what is stored is not what they have written.
const DAMAGED: &str = "DAMAGED";

/// The codes that mean damage. No other code does, whether it is known here or not.
const DAMAGE: [&str; 2] = [DAMAGED, "WRONGTYPE"];

/// The code of an authentication that failed while connecting, which the client library reports without one.
const WRONG_PASSWORD: &str = "WRONGPASS";

/// How Redis 7 says `NOPERM` where a script runs the command.
const NO_PERMISSION_IN_SCRIPT: &str = "The user executing the script can't ";

/// Bytes of an error's text that are repeated in answers and in the log.
const DETAIL_BYTES_MAX: usize = 300;

/// What is known of a code.
struct Known {
    code: &'static str,
    /// What is wrong, and what to do.
    sentence: &'static str,
    /// It passes without a change of configuration: a start waits for that.
    passes: bool,
    retry: Retry,
}

/// Over which connection a refused request is sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Retry {
    /// Over the same one.
    Same,
    /// Over a new one where Sentinels name the Redis: they may know a better one.
    Sentinel,
    /// Over a new one.
    Anew,
}

const fn known(code: &'static str, passes: bool, retry: Retry, sentence: &'static str) -> Known {
    Known { code, sentence, passes, retry }
}

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
        "this is a node of a Redis Cluster. Name its nodes as an array in the key `redis`",
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
    known(
        "NOAUTH",
        false,
        Retry::Anew,
        "Redis asks for a password. Set it in the key `redis` (redis://:PASSWORD@HOST)",
    ),
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

/// An answer of Redis that is an error.
#[derive(Debug)]
pub(super) struct Meaning {
    pub error: LinkError,
    /// Redis itself has answered: the connection works, and what was asked was not done.
    pub answered: bool,
    pub retry: Retry,
}

/// How long a refusal counts after it was last heard: three renewals of the lease, so that what refuses those counts all
/// the time.
const REFUSAL_TTL: Duration = Duration::from_secs(6);

/// Requests whose refusal is remembered: more than there are scripts and commands here. One more replaces the oldest.
const REFUSALS_MAX: usize = 64;

/// The requests that Redis refuses now.
#[derive(Default)]
pub(super) struct Refusals(Vec<Refusal>);

struct Refusal {
    request: Vec<u8>,
    why: Arc<str>,
    since: Instant,
    last: Instant,
}

impl Refusals {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Notes that a request was refused.
    pub(super) fn refused(&mut self, request: Vec<u8>, why: Arc<str>, now: Instant) {
        self.0.retain(|one| now.saturating_duration_since(one.last) < REFUSAL_TTL);
        let known = self.0.iter().position(|one| one.request == request).map(|at| self.0.remove(at));
        if self.0.len() >= REFUSALS_MAX {
            self.0.remove(0);
        }
        self.0.push(Refusal { request, why, since: known.map_or(now, |one| one.since), last: now });
    }

    /// Notes that a request was answered. Returns whether it was the last that was refused.
    pub(super) fn answered(&mut self, request: &[u8]) -> bool {
        let before = self.0.len();
        self.0.retain(|one| one.request != request);
        before > 0 && self.0.is_empty()
    }

    /// Why a request was refused last, and since when requests have been.
    pub(super) fn current(&self, now: Instant) -> Option<(Arc<str>, Duration)> {
        let mut current = self.0.iter().filter(|one| now.saturating_duration_since(one.last) < REFUSAL_TTL);
        let since = current.clone().map(|one| one.since).min()?;
        Some((current.next_back()?.why.clone(), now.saturating_duration_since(since)))
    }
}

/// Finds out what an error means.
pub(super) fn meaning(error: &RedisError) -> Meaning {
    let lost = |text: String| Meaning { error: LinkError::Lost(text.into()), answered: false, retry: Retry::Anew };
    let Some(code) = code(error) else {
        return match error.kind() {
            ErrorKind::MasterNameNotFoundBySentinel => lost(
                "its Sentinels name no primary: a failover may be under way, or redis.name is not what they call it"
                    .into(),
            ),
            ErrorKind::Io | ErrorKind::Parse | ErrorKind::ClusterConnectionNotFound => lost(error.to_string()),
            _ if error.is_unrecoverable_error() || error.is_timeout() => lost(error.to_string()),
            _ => Meaning { error: LinkError::Refused(error.to_string().into()), answered: false, retry: Retry::Same },
        };
    };
    let detail = cut(error.detail().unwrap_or_default());
    of_code(code, detail)
}

fn of_code(code: &str, detail: &str) -> Meaning {
    let (code, detail) = within_script(code, detail);
    let answered = |error, retry| Meaning { error, answered: true, retry };
    let named = if detail.is_empty() { code.to_owned() } else { format!("{code}: {detail}") };
    if code == "OOM" || detail.contains("OOM command not allowed") {
        return answered(LinkError::Full(named.into()), Retry::Same);
    }
    if DAMAGE.contains(&code) || is_script_failure(code, detail) {
        return answered(LinkError::Damaged(named.into()), Retry::Same);
    }
    let Some(known) = KNOWN.iter().find(|known| known.code == code) else {
        // Of what is not known nothing is assumed but that it says nothing about the data.
        let text = format!("Redis refuses a request ({named}). Its documentation names the cause");
        return answered(LinkError::Refused(text.into()), Retry::Same);
    };
    let text = format!("{} ({named})", known.sentence).into();
    let error = if known.passes { LinkError::Lost(text) } else { LinkError::Refused(text) };
    answered(error, known.retry)
}

fn code(error: &RedisError) -> Option<&str> {
    match error.kind() {
        ErrorKind::AuthenticationFailed => Some(WRONG_PASSWORD),
        _ => error.code(),
    }
}

/// The code of an error that a command within a script has had. Redis 7 reports a missing permission without its code, and
/// Redis below 7 wraps every error: `ERR Error running script (…): @user_script:12: NOPERM …`.
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

/// Lua itself has failed in one of our scripts: what they read does not have the form that they write.
fn is_script_failure(code: &str, detail: &str) -> bool {
    code == "ERR" && (detail.starts_with("user_script:") || detail.starts_with("Error running script"))
}

/// The text without what Redis adds about the script, and bounded.
fn cut(detail: &str) -> &str {
    let detail = detail.split_once(" script: ").map_or(detail, |(detail, _)| detail).trim();
    let mut end = detail.len().min(DETAIL_BYTES_MAX);
    while !detail.is_char_boundary(end) {
        end -= 1;
    }
    &detail[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(code: &str, detail: &str) -> LinkError {
        of_code(code, cut(detail)).error
    }

    #[test]
    fn only_listed_codes_mean_damage() {
        for known in &KNOWN {
            assert!(matches!(of(known.code, "why"), LinkError::Lost(_) | LinkError::Refused(_)), "{}", known.code);
        }
        for code in ["ERR", "UNHEARDOF", "NOPROTO", "INPROG", "STALE", "NOGOODSLAVE", "MULTI", ""] {
            assert!(matches!(of(code, "why"), LinkError::Refused(_)), "{code}");
        }
        for (code, detail) in [
            ("WRONGTYPE", "Operation against a key holding the wrong kind of value"),
            ("DAMAGED", "what is stored under mesa:state:{a} cannot be read"),
            ("ERR", "user_script:12: attempt to index local 'S' (a nil value) script: c0ffee, on @user_script:12."),
            ("ERR", "Error running script (call to f_c0ffee): @user_script:12: WRONGTYPE Operation against"),
            ("ERR", "Error running script (call to f_c0ffee): @user_script:12: user_script:12: attempt to index"),
        ] {
            assert!(matches!(of(code, detail), LinkError::Damaged(_)), "{code} {detail}");
        }
        for (code, detail) in [
            ("OOM", "command not allowed when used memory > 'maxmemory'."),
            ("ERR", "Error running script (call to f_c0ffee): @user_script:1: -OOM command not allowed when used"),
        ] {
            assert!(matches!(of(code, detail), LinkError::Full(_)), "{code} {detail}");
        }
    }

    #[test]
    fn refusal_counts_until_the_request_is_answered_or_not_repeated() {
        let (mut refusals, start) = (Refusals::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let current = |refusals: &Refusals, seconds| {
            refusals.current(at(seconds)).map(|(why, since)| (why.to_string(), since.as_secs()))
        };
        refusals.refused(b"HSET".into(), "a".into(), at(0));
        refusals.refused(b"XADD".into(), "b".into(), at(1));
        assert_eq!(current(&refusals, 2), Some(("b".into(), 2)));
        assert!(!refusals.answered(b"GET"));
        assert!(!refusals.answered(b"XADD"), "another is refused still");
        assert_eq!(current(&refusals, 3), Some(("a".into(), 3)));
        refusals.refused(b"HSET".into(), "c".into(), at(5));
        assert_eq!(current(&refusals, 10), Some(("c".into(), 10)));
        assert_eq!(current(&refusals, 11), None);
        assert!(refusals.answered(b"HSET"));
        assert!(!refusals.answered(b"HSET"), "it is not refused any more");
        for n in 0..1000_u32 {
            refusals.refused(n.to_be_bytes().into(), "d".into(), at(20));
        }
        assert_eq!(refusals.0.len(), REFUSALS_MAX);
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
