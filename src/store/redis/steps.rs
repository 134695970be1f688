//! The steps on a log: one script each, of those parts of `log/` that it needs. Redis makes every function of a script anew each
//! time it runs, which for all of them took longer than most steps do.

use std::sync::LazyLock;

use crate::cluster::redis::Script;

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
            script: LazyLock::new(|| Script::new(concat!($(include_str!(concat!("log/", $part, ".lua")), "\n"),+))),
        };
    };
}

step!(
    /// Makes copies of messages.
    APPEND, "append",
    ["begin", "epoch", "cursors", "views", "save", "entries", "blocks", "release", "gone", "room", "mend", "era", "view", "append"]
);
step!(
    /// Takes note of what a server says of a user.
    NOTE, "note",
    ["begin", "epoch", "though_full", "cursors", "views", "save", "entries", "blocks", "release", "gone", "mend", "era", "view", "note"]
);
step!(
    /// A session comes.
    ATTACH, "attach",
    ["begin", "epoch", "though_full", "cursors", "views", "save", "entries", "blocks", "release", "gone", "mend", "era", "view", "attach"]
);
step!(
    /// Everything goes.
    CLEAR, "clear",
    ["begin", "epoch", "though_full", "cursors", "views", "save", "entries", "blocks", "release", "gone", "clear"]
);
step!(
    /// Some entries, for who has nothing to say.
    READ, "read",
    ["begin", "epoch", "cursors", "views", "entries", "unnoted", "read"]
);
step!(
    /// Takes note, and some entries.
    NOTE_AND_READ, "read",
    ["begin", "epoch", "though_full", "cursors", "views", "save", "entries", "blocks", "release", "gone", "mend", "era", "view", "noted", "read"]
);
step!(
    /// What is known of a user.
    STATE, "state",
    ["begin", "epoch", "cursors", "views", "entries", "blocks", "state"]
);
step!(
    /// Why something is not there.
    MISSED, "missed",
    ["begin", "epoch", "cursors", "missed"]
);
step!(
    /// Who has not received a sequence.
    LACKING, "lacking",
    ["begin", "epoch", "cursors", "lacking"]
);
step!(
    /// Looks after what has become too old.
    SWEEP, "sweep",
    ["begin", "epoch", "though_full", "cursors", "views", "save", "entries", "blocks", "release", "gone", "sweep"]
);
step!(
    /// The caller has written down that a user is known, and when something is due.
    LISTED, "listed",
    ["begin", "epoch", "though_full", "cursors", "views", "save", "listed"]
);
