//! The runs there are, each short for every change and as long as one likes by command.

use std::{collections::BTreeSet, process::ExitCode, time::Duration};

use crate::{
    runner::{Fault, Form, Theatre, Until, any_cut},
    support::seeded_rng::{Random, announced_seed},
    workload::Plan,
};

/// By name.
pub const NAMES: &[&str] = &["kills", "interval", "power", "soak"];

/// Bugs that can be planted, and the form that has to find each.
const PLANTED: &[(&str, &str)] = &[
    ("NoSync", "power"),
    ("EarlyResponse", "power"),
    ("LostRecord", "kills"),
    ("ForeignEntry", "kills"),
    ("Reorder", "kills"),
    ("AckTooFar", "kills"),
    ("LostAck", "kills"),
    ("SequenceReuse", "kills"),
    ("LostIds", "kills"),
    ("SharedCursor", "kills"),
    ("UnreportedGap", "kills"),
    ("SwappedResults", "kills"),
];

/// Faults within which a planted bug has to be found.
const FOUND_WITHIN: u64 = 60;

/// How long a server works between two faults of a soak, in milliseconds.
const SOAK_WORK_MS: u64 = 5_000;

/// What a form does, and until when where nothing is said: short, and by command.
fn form(name: &str) -> (Form, Until, Until) {
    let kills = Form {
        name: "kills",
        settings: "",
        durability: "always",
        work_ms: 0..=250,
        per_chapter: 10,
        start_faults: true,
        forgets: false,
        choose: |_| Fault::Kill,
        plan: Plan::standard(),
        planted: None,
        progress: false,
    };
    match name {
        "kills" => (kills, Until::Faults(100), Until::Faults(1000)),
        "interval" => {
            let settings = "store: { durability: { interval: 100 } },";
            let form = Form { name: "interval", settings, durability: "interval", ..kills };
            (form, Until::Faults(20), Until::Faults(200))
        }
        "power" => {
            let form = Form { name: "power", forgets: true, choose: |random| Fault::Cut(any_cut(random)), ..kills };
            (form, Until::Faults(24), Until::Faults(500))
        }
        "soak" => {
            let form = Form { name: "soak", forgets: true, choose: mixed, ..kills };
            (form, Until::Faults(10), Until::Time(minutes(30)))
        }
        other => unreachable!("{other} is not among the names"),
    }
}

/// Everything in turn, as chance has it.
fn mixed(random: &mut Random) -> Fault {
    // Half of them leave the server alive, so that some live long enough to settle what lies about.
    match random.within(0..=9) {
        0 => Fault::Terminate,
        1..=2 => Fault::Pause,
        3..=5 => Fault::Disconnect,
        6 => Fault::Kill,
        _ => Fault::Cut(any_cut(random)),
    }
}

const fn minutes(minutes: u64) -> Duration {
    Duration::from_secs(60 * minutes)
}

/// Turns on each planted bug, and demands that it is found.
pub fn planted(words: &[&str]) -> ExitCode {
    if let Err(lack) = has_planted() {
        return lack;
    }
    let chosen = PLANTED.iter().filter(|(bug, _)| words.is_empty() || words.contains(bug));
    let results: Vec<Result<(), String>> = chosen.map(|(bug, name)| find(bug, name)).collect();
    conclude(&results)
}

/// What lies in the journal for ten seconds is settled. Few servers live that long here, so these settle much sooner,
/// which only a build with planted bugs can be told.
pub fn settling(amount: Option<&str>) -> ExitCode {
    if let Err(lack) = has_planted() {
        return lack;
    }
    let faults = amount.map_or(40, |amount| amount.parse().expect("a number"));
    let results = ["kills", "power"].map(|name| {
        let (form, ..) = form(name);
        let form = Form { planted: Some("EarlyFlush"), work_ms: 0..=600, progress: amount.is_some(), ..form };
        run(&form, Until::Faults(faults))
    });
    conclude(&results)
}

/// Whether bugs can be planted here; if not, the end.
fn has_planted() -> Result<(), ExitCode> {
    if cfg!(feature = "failpoints") {
        return Ok(());
    }
    eprintln!("this build has no planted bugs: cargo test --features failpoints --test faults -- planted");
    Err(ExitCode::from(2))
}

/// Ok if the bug was found.
fn find(bug: &'static str, name: &str) -> Result<(), String> {
    let (form, _, _) = form(name);
    let form = Form { planted: Some(bug), per_chapter: 5, ..form };
    match run(&form, Until::Faults(FOUND_WITHIN)) {
        Ok(()) => Err(format!("the planted bug {bug} was not found by `{name}`")),
        Err(why) => {
            let kinds = why.lines().filter_map(|line| Some(line.split_once(": ")?.0)).filter(|kind| is_kind(kind));
            let kinds: BTreeSet<&str> = kinds.collect();
            eprintln!("planted {bug}: found by `{name}`: {kinds:?}\n");
            Ok(())
        }
    }
}

/// Whether a line of the checker begins with this.
fn is_kind(text: &str) -> bool {
    text.starts_with(char::is_uppercase) && text.chars().all(char::is_alphabetic)
}

/// One form, as long as it is said: in faults, and a soak in minutes.
pub fn long(name: &str, amount: Option<&str>) -> ExitCode {
    let (mut form, _, usual) = form(name);
    let amount = amount.map(|amount| amount.parse().expect("a number"));
    let until = match (usual, amount) {
        (usual, None) => usual,
        (Until::Faults(_), Some(faults)) => Until::Faults(faults),
        (Until::Time(_), Some(amount)) => Until::Time(minutes(amount)),
    };
    form.progress = true;
    form.work_ms = match until {
        // Work enough for a million answers in a thousand kills.
        Until::Faults(_) => 0..=800,
        Until::Time(_) => SOAK_WORK_MS..=SOAK_WORK_MS,
    };
    conclude(&[run(&form, until)])
}

/// All short forms whose names have one of the words in them.
pub fn short(words: &[&str]) -> ExitCode {
    let words: Vec<&str> = words.iter().copied().filter(|word| !word.starts_with('-')).collect();
    let chosen = NAMES.iter().filter(|name| words.is_empty() || words.iter().any(|word| name.contains(word)));
    let results: Vec<Result<(), String>> = chosen
        .map(|name| {
            let (form, until, _) = form(name);
            run(&form, until)
        })
        .collect();
    conclude(&results)
}

fn run(form: &Form, until: Until) -> Result<(), String> {
    match Theatre::open(form, announced_seed(form.name)) {
        Ok(theatre) => theatre.play(until),
        Err(lack) if std::env::var_os("CI").is_some() => Err(format!("{}: no disk that forgets: {lack}", form.name)),
        Err(lack) => {
            eprintln!(
                "{}: there is no disk that forgets here ({lack}): what a power cut does was NOT tested",
                form.name
            );
            Ok(())
        }
    }
}

fn conclude(results: &[Result<(), String>]) -> ExitCode {
    let failures: Vec<&String> = results.iter().filter_map(|result| result.as_ref().err()).collect();
    failures.iter().for_each(|why| eprintln!("FAILED: {why}"));
    ExitCode::from(u8::from(!failures.is_empty()))
}
