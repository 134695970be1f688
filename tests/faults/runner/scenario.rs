//! Defines the parameters of a run.

use std::{ops::RangeInclusive, time::Duration};

use crate::{fuse_disk::PowerCut, support::seeded_rng::Random, workload::Params};

/// Faults of a running server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL.
    Kill,
    /// SIGKILL, and the disk loses unsynced changes. Needs a store on the simulated disk.
    PowerCut(PowerCut),
    /// SIGTERM under load.
    Terminate,
    /// The connections of some users are closed.
    Disconnect,
    /// SIGSTOP, and SIGCONT up to 2 s later.
    Pause,
}

/// Length of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// Ends after this many faults that have happened.
    Faults(u64),
    /// Ends with the round in which this time is over.
    Time(Duration),
}

/// A kind of run.
#[derive(Clone, Debug)]
pub struct Scenario {
    pub name: &'static str,
    /// Additional settings of the server, in JSON5.
    pub settings: &'static str,
    /// `always` or `interval`, for the checker.
    pub durability: &'static str,
    /// The store is on the simulated disk. A kill during start is then a power cut too.
    pub simulated_disk: bool,
    /// Time from the start of a server to a fault, in milliseconds.
    pub work_ms: RangeInclusive<u64>,
    pub faults_per_round: u64,
    /// Servers are also killed during start.
    pub start_faults: bool,
    pub choose_fault: fn(&mut Random) -> Fault,
    pub params: Params,
    /// The failpoint that is on.
    pub failpoint: Option<&'static str>,
    /// Counts are printed after each round.
    pub progress: bool,
}

/// Chooses a kind of power cut.
pub fn any_power_cut(random: &mut Random) -> PowerCut {
    [PowerCut::LoseAll, PowerCut::Torn, PowerCut::Reordered][random.within(0..=2) as usize]
}
