//! When parts of a Redis Cluster stopped serving their slots. All requests share one deadline for that.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use redis::{Arg, Cmd};

/// How long requests wait for slots without a node, from when the first of them was refused. Later requests fail at once.
pub(super) const OUTAGE_TIMEOUT: Duration = Duration::from_secs(3);

/// How long an outage counts after a request was last refused: three renewals of the lease, which are refused in it too.
const OUTAGE_TTL: Duration = Duration::from_secs(6);

/// Hash tags of refused requests that are remembered. Where there are more, an answer to one of those does not end the
/// outage.
const TAGS_MAX: usize = 1024;

/// The part of a key that selects its slot.
type Tag = Box<[u8]>;

/// The current outage, if any.
#[derive(Default)]
pub(super) struct Outage(Mutex<Option<Since>>);

struct Since {
    began: Instant,
    last: Instant,
    /// Hash tags of refused requests.
    tags: HashSet<Tag>,
}

impl Outage {
    /// Notes that a request was refused. Returns until when it may be sent again.
    pub(super) fn refused(&self, command: &Cmd) -> Instant {
        self.refused_at(tag(command), Instant::now())
    }

    /// Notes that a request was answered. That ends the outage where one with the same tag was refused.
    pub(super) fn answered(&self, command: &Cmd) {
        let mut since = self.0.lock();
        if let Some(outage) = &*since
            && tag(command).is_some_and(|tag| outage.tags.contains(tag))
        {
            *since = None;
        }
    }

    fn refused_at(&self, tag: Option<&[u8]>, now: Instant) -> Instant {
        let mut since = self.0.lock();
        since.take_if(|outage| now.saturating_duration_since(outage.last) > OUTAGE_TTL);
        let outage = since.get_or_insert_with(|| Since { began: now, last: now, tags: HashSet::new() });
        outage.last = now;
        if outage.tags.len() < TAGS_MAX {
            outage.tags.extend(tag.map(Tag::from));
        }
        outage.began + OUTAGE_TIMEOUT
    }
}

/// The hash tag of a command's first key; `None` where it has none.
fn tag(command: &Cmd) -> Option<&[u8]> {
    let mut words = command.args_iter().map(|word| match word {
        Arg::Simple(word) => word,
        _ => &[],
    });
    let key = match words.next()? {
        // The hash or source of the script, and the number of keys.
        b"EVALSHA" | b"EVAL" => words.nth(2)?,
        _ => words.next()?,
    };
    let open = key.iter().position(|byte| *byte == b'{').map(|at| &key[at + 1..]);
    let tag = open.and_then(|rest| rest.split(|byte| *byte == b'}').next().filter(|tag| tag.len() < rest.len()));
    Some(tag.filter(|tag| !tag.is_empty()).unwrap_or(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(key: &str) -> Cmd {
        let mut command = redis::cmd("GET");
        command.arg(key);
        command
    }

    #[test]
    fn requests_of_one_outage_share_its_deadline() {
        let (outage, now) = (Outage::default(), Instant::now());
        let until = outage.refused_at(Some(b"a"), now);
        assert_eq!(until, now + OUTAGE_TIMEOUT);
        let later = now + OUTAGE_TTL;
        assert_eq!(outage.refused_at(Some(b"b"), later), until, "another slot, and long after");
        let another = later + OUTAGE_TTL + Duration::from_millis(1);
        assert_eq!(outage.refused_at(Some(b"a"), another), another + OUTAGE_TIMEOUT, "nothing was refused for so long");
    }

    #[test]
    fn tag_is_that_of_the_first_key() {
        for (key, expected) in [("{a}1", "a"), ("x{a}{b}", "a"), ("{}a", "{}a"), ("{a", "{a"), ("a", "a")] {
            assert_eq!(tag(&get(key)), Some(expected.as_bytes()), "{key}");
        }
        let mut script = redis::cmd("EVALSHA");
        script.arg("hash").arg(2).arg("{a}1").arg("{a}2");
        assert_eq!((tag(&script), tag(&redis::cmd("PING"))), (Some(&b"a"[..]), None));
    }

    #[test]
    fn answer_to_a_refused_slot_ends_the_outage() {
        let outage = Outage::default();
        let until = outage.refused(&get("{a}1"));
        outage.answered(&get("{b}"));
        outage.answered(&redis::cmd("PING"));
        assert_eq!(outage.refused(&get("{a}2")), until);
        outage.answered(&get("{a}3"));
        assert!(outage.refused(&get("{a}4")) > until);
    }
}
