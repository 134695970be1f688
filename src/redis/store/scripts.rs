//! The scripts, one for each step, each made of the parts of `lua/` that it needs. Redis creates all functions of a
//! script at every run; for all parts together that took longer than most steps.

use std::sync::LazyLock;

use crate::redis::Script;

/// A step on logs.
pub(super) struct LuaScript {
    /// Name of the step, for operators who watch commands with MONITOR.
    pub name: &'static str,
    pub script: LazyLock<Script>,
}

macro_rules! step {
    ($(#[$doc:meta])* $step:ident, $name:literal, [$($part:literal),+]) => {
        $(#[$doc])*
        pub(super) static $step: LuaScript = LuaScript {
            name: $name,
            script: LazyLock::new(|| Script::new(concat!($(include_str!(concat!("../lua/", $part, ".lua")), "\n"),+))),
        };
    };
}

step!(
    /// Appends entries.
    APPEND, "append",
    ["prelude", "check_epoch", "load_state", "cursors", "holds", "save_state", "entries", "blocks", "trim", "gaps", "evict", "mend", "epoch", "session_report", "append"]
);
step!(
    /// Writes a report.
    REPORT, "report",
    ["prelude", "check_epoch", "allow_when_full", "load_state", "cursors", "holds", "save_state", "entries", "blocks", "trim", "gaps", "mend", "epoch", "session_report", "report"]
);
step!(
    /// Attaches a session.
    ATTACH, "attach",
    ["prelude", "check_epoch", "allow_when_full", "load_state", "cursors", "holds", "save_state", "entries", "blocks", "trim", "gaps", "mend", "epoch", "session_report", "attach"]
);
step!(
    /// Clears a log.
    CLEAR, "clear",
    ["prelude", "check_epoch", "allow_when_full", "load_state", "cursors", "holds", "save_state", "entries", "blocks", "trim", "gaps", "clear"]
);
step!(
    /// Reads entries, without a report.
    READ, "read",
    ["prelude", "check_epoch", "load_state", "cursors", "holds", "entries", "without_report", "read"]
);
step!(
    /// Writes a report and reads entries.
    REPORT_AND_READ, "read",
    ["prelude", "check_epoch", "allow_when_full", "load_state", "cursors", "holds", "save_state", "entries", "blocks", "trim", "gaps", "mend", "epoch", "session_report", "with_report", "read"]
);
step!(
    /// Returns the state of users.
    STATE, "state",
    ["prelude", "check_epoch", "load_state", "cursors", "holds", "entries", "blocks", "user_state"]
);
step!(
    /// Explains gaps.
    EXPLAIN_GAPS, "explain_gaps",
    ["prelude", "check_epoch", "load_state", "cursors", "explain_gaps"]
);
step!(
    /// Returns cursors that have not acknowledged a sequence.
    UNRECEIVED_BY, "unreceived_by",
    ["prelude", "check_epoch", "load_state", "cursors", "unreceived_by"]
);
step!(
    /// Expires entries and devices.
    EXPIRE, "expire",
    ["prelude", "check_epoch", "allow_when_full", "load_state", "cursors", "holds", "save_state", "entries", "blocks", "trim", "gaps", "expire"]
);
step!(
    /// Confirms that the indexes were written.
    MARK_INDEXED, "mark_indexed",
    ["prelude", "check_epoch", "allow_when_full", "load_state", "cursors", "holds", "save_state", "mark_indexed"]
);
