//! Damages files of closed stores, and checks that damage is detected.
//!
//! A server on a damaged store either has every entry as before, or reports the damage. It never shows altered bytes or
//! another user's messages, and never omits an answered message without a report. `mesa inspect` must find the damage,
//! and a store from `mesa inspect --salvage` must have what `mesa inspect` showed.
//!
//! `MESA_CORRUPTIONS` sets the number of cases, and `MESA_SEED` repeats the choices of a run. `MESA_CORRUPTION_BLIND=1`
//! checks the suite itself: one expected entry is forged, and each store that opens must be reported as wrong.

mod damage;
mod fixtures;
#[path = "../../support/mod.rs"]
#[allow(dead_code, reason = "each suite uses a part of it")]
mod support;
mod verify;

use std::{
    collections::BTreeMap,
    io::Write as _,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::Instant,
};

use damage::Damage;
use fixtures::Fixture;
use support::seeded_rng::Random;
use verify::{CaseResult, Outcome, run_case};

/// Number of damaged stores if `MESA_CORRUPTIONS` is not set.
const CASES: u64 = 60;

/// Number of cases that run at the same time.
const THREADS: usize = 3;

/// Prints a line to stderr, where the test harness does not capture it.
fn announce(text: &str) {
    _ = std::io::stderr().write_all(format!("{text}\n").as_bytes());
}

/// Runs all cases on `THREADS` threads, and returns the results in order.
fn run_cases<'a>(
    damages: &'a [Damage],
    fixture_of: &(impl Fn(u64) -> &'a Fixture + Sync),
) -> Vec<(u64, &'a Damage, Result<CaseResult, String>)> {
    let next = AtomicU64::new(0);
    let work = || {
        let mut results = Vec::new();
        loop {
            let case = next.fetch_add(1, Ordering::SeqCst);
            let Some(damage) = damages.get(case as usize) else { return results };
            results.push((case, damage, run_case(fixture_of(case), Some(damage))));
        }
    };
    let mut results: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(work)).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("the thread does not panic")).collect()
    });
    results.sort_by_key(|(case, ..)| *case);
    results
}

// covers: G5, G6
#[test]
fn damaged_store_is_intact_or_reported() {
    let cases = std::env::var("MESA_CORRUPTIONS");
    let cases: u64 = cases.map_or(CASES, |number| number.parse().expect("MESA_CORRUPTIONS is a number"));
    let mut random = Random::from_env("corruption");
    let began = Instant::now();
    let mut fixtures = Fixture::create_all();
    for fixture in &fixtures {
        let result = run_case(fixture, None).expect("an undamaged store has no violation");
        assert_eq!(result.outcome, Outcome::Intact, "{}: expected an undamaged store to be intact", fixture.name);
        assert!(!result.damage_reported, "{}: expected no damage in an undamaged store", fixture.name);
    }
    if std::env::var_os("MESA_CORRUPTION_BLIND").is_some() {
        fixtures.iter_mut().for_each(Fixture::forge_entry);
    }
    announce(&format!("corruption: three stores created in {:.1} s", began.elapsed().as_secs_f64()));
    let mut counts: BTreeMap<(&str, Outcome), u64> = BTreeMap::new();
    let (mut reported_by_inspect_only, mut saved, mut lost) = (0, 0, 0);
    let mut violations = Vec::new();
    let fixture_of = |case: u64| &fixtures[(case % fixtures.len() as u64) as usize];
    // All damages are chosen before the first case runs, so that a seed repeats them whatever the threads do.
    let damages: Vec<Damage> = (0..cases).map(|case| Damage::choose(&mut random, fixture_of(case), case)).collect();
    for (case, damage, result) in run_cases(&damages, &fixture_of) {
        match result {
            Ok(result) => {
                *counts.entry((damage.kind(), result.outcome)).or_default() += 1;
                reported_by_inspect_only += u64::from(result.outcome == Outcome::Intact && result.damage_reported);
                saved += result.saved;
                lost += result.lost;
            }
            Err(violation) => {
                let violation = format!("case {case}, store {}, {damage:?}: {violation}", fixture_of(case).name);
                announce(&format!("corruption: VIOLATION {violation}"));
                violations.push(violation);
            }
        }
    }
    for ((kind, outcome), count) in &counts {
        announce(&format!("corruption: {kind:<16} {outcome:?} {count}"));
    }
    let total =
        |wanted| counts.iter().filter(|((_, outcome), _)| *outcome == wanted).map(|(_, count)| count).sum::<u64>();
    let [intact, not_started, isolated] = [Outcome::Intact, Outcome::NotStarted, Outcome::Isolated].map(total);
    let seconds = began.elapsed().as_secs_f64();
    announce(&format!(
        "corruption: {cases} damaged stores in {seconds:.0} s: intact {intact}, not started {not_started}, isolated \
         {isolated}, violations {}; with the server intact, mesa inspect reported damage in {reported_by_inspect_only}; \
         mesa inspect --salvage saved {saved} entries, and did not save {lost}",
        violations.len()
    ));
    assert!(violations.is_empty(), "{}", violations.join("\n"));
    assert!(intact > 0 && not_started > 0, "expected intact stores and servers that do not start in one run");
}
