//! The steps on a log: one script each, of those parts of `lua/` that it needs. Redis makes every function of a script anew each
//! time it runs, which for all of them took longer than most steps do.

use std::sync::LazyLock;

use crate::redis::Script;

/// A step.
pub(super) struct Step {
    /// What the script is told that it is, for who watches what Redis is asked.
    pub name: &'static str,
    pub script: LazyLock<Script>,
}

macro_rules! step {
    ($(#[$doc:meta])* $step:ident, $name:literal, [$($part:literal),+]) => {
        $(#[$doc])*
        pub(super) static $step: Step = Step {
            name: $name,
            script: LazyLock::new(|| Script::new(concat!($(include_str!(concat!("../lua/", $part, ".lua")), "\n"),+))),
        };
    };
}

step!(
    /// Makes copies of messages.
    APPEND, "append",
    ["prelude", "check_epoch", "cursors", "holds", "save_state", "entries", "blocks", "trim", "gaps", "evict", "mend", "epoch", "session_report", "append"]
);
step!(
    /// Takes note of what a server says of a user.
    NOTE, "note",
    ["prelude", "check_epoch", "allow_when_full", "cursors", "holds", "save_state", "entries", "blocks", "trim", "gaps", "mend", "epoch", "session_report", "report"]
);
step!(
    /// A session comes.
    ATTACH, "attach",
    ["prelude", "check_epoch", "allow_when_full", "cursors", "holds", "save_state", "entries", "blocks", "trim", "gaps", "mend", "epoch", "session_report", "attach"]
);
step!(
    /// Everything goes.
    CLEAR, "clear",
    ["prelude", "check_epoch", "allow_when_full", "cursors", "holds", "save_state", "entries", "blocks", "trim", "gaps", "clear"]
);
step!(
    /// Some entries, for who has nothing to say.
    READ, "read",
    ["prelude", "check_epoch", "cursors", "holds", "entries", "without_report", "read"]
);
step!(
    /// Takes note, and some entries.
    NOTE_AND_READ, "read",
    ["prelude", "check_epoch", "allow_when_full", "cursors", "holds", "save_state", "entries", "blocks", "trim", "gaps", "mend", "epoch", "session_report", "with_report", "read"]
);
step!(
    /// What is known of a user.
    STATE, "state",
    ["prelude", "check_epoch", "cursors", "holds", "entries", "blocks", "user_state"]
);
step!(
    /// Why something is not there.
    MISSED, "missed",
    ["prelude", "check_epoch", "cursors", "explain_gaps"]
);
step!(
    /// Who has not received a sequence.
    LACKING, "lacking",
    ["prelude", "check_epoch", "cursors", "unreceived_by"]
);
step!(
    /// Looks after what has become too old.
    SWEEP, "sweep",
    ["prelude", "check_epoch", "allow_when_full", "cursors", "holds", "save_state", "entries", "blocks", "trim", "gaps", "expire"]
);
step!(
    /// The caller has written down that a user is known, and when something is due.
    LISTED, "listed",
    ["prelude", "check_epoch", "allow_when_full", "cursors", "holds", "save_state", "mark_indexed"]
);
