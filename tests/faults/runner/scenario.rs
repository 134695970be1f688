//! What a run is to be.

use std::{ops::RangeInclusive, time::Duration};

use crate::{fuse_disk::Cut, support::seeded_rng::Random, workload::Plan};

/// What is done to a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL.
    Kill,
    /// SIGKILL, and of what was not synced only some is left. Where the store is on a disk that forgets.
    Cut(Cut),
    /// SIGTERM: an end in order, in the middle of everything.
    Terminate,
    /// The connections of some users are closed.
    Disconnect,
    /// SIGSTOP, and SIGCONT some seconds later.
    Pause,
}

/// How long a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// This many faults that have fired.
    Faults(u64),
    /// The chapter in which this is over.
    Time(Duration),
}

/// A kind of run.
#[derive(Clone, Debug)]
pub struct Form {
    pub name: &'static str,
    /// Settings of the server beside the usual ones.
    pub settings: &'static str,
    /// What the checker is told about it: `always` or `interval`.
    pub durability: &'static str,
    /// Whether the store is on a disk that forgets; then a server that is killed at start has its power cut as well.
    pub forgets: bool,
    /// How long a server works before something is done to it, in milliseconds.
    pub work_ms: RangeInclusive<u64>,
    /// Faults in one chapter.
    pub per_chapter: u64,
    /// Whether servers are also killed while they start.
    pub start_faults: bool,
    pub choose: fn(&mut Random) -> Fault,
    pub plan: Plan,
    /// The planted bug that is turned on.
    pub planted: Option<&'static str>,
    /// Whether it tells how it is going, chapter by chapter.
    pub progress: bool,
}

/// A power cut of any kind.
pub fn any_cut(random: &mut Random) -> Cut {
    [Cut::Clear, Cut::Torn, Cut::Reordered][random.within(0..=2) as usize]
}
