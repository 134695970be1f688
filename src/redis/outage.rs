//! Tracks an outage of slots in a Redis Cluster. All requests share its deadline.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use redis::{Arg, Cmd};

/// Time for which refused requests are resent, from the first refusal of the outage. After it requests fail at once.
pub(super) const OUTAGE_TIMEOUT: Duration = Duration::from_secs(3);

/// Duration of an outage after its last refused request: three lease renewals, which it refuses too.
const OUTAGE_TTL: Duration = Duration::from_secs(6);

/// Limit of stored hash tags of refused requests. A reply to a request with a further tag does not end the outage.
const TAGS_MAX: usize = 1024;

/// The part of a key that selects its slot.
type Tag = Box<[u8]>;

/// The current outage, if any.
#[derive(Default)]
pub(super) struct Outage(Mutex<Option<OutageState>>);

struct OutageState {
    began: Instant,
    last: Instant,
    /// Hash tags of refused requests.
    tags: HashSet<Tag>,
}

impl Outage {
    /// Records a refused request. Returns until when it may be resent.
    pub(super) fn refused(&self, command: &Cmd) -> Instant {
        self.refused_at(tag(command), Instant::now())
    }

    /// Records an answered request. It ends the outage if a request with the same tag was refused.
    pub(super) fn answered(&self, command: &Cmd) {
        let mut current = self.0.lock();
        if let Some(outage) = &*current
            && tag(command).is_some_and(|tag| outage.tags.contains(tag))
        {
            *current = None;
        }
    }

    fn refused_at(&self, tag: Option<&[u8]>, now: Instant) -> Instant {
        let mut current = self.0.lock();
        current.take_if(|outage| now.saturating_duration_since(outage.last) > OUTAGE_TTL);
        let outage = current.get_or_insert_with(|| OutageState { began: now, last: now, tags: HashSet::new() });
        outage.last = now;
        if outage.tags.len() < TAGS_MAX {
            outage.tags.extend(tag.map(Tag::from));
        }
        outage.began + OUTAGE_TIMEOUT
    }
}

/// Returns the hash tag of a command's first key. `None` if the command has no key.
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
    let tag = open.and_then(|tail| tail.split(|byte| *byte == b'}').next().filter(|tag| tag.len() < tail.len()));
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
