//! Stores whose files were damaged while nobody had them open: the server either has everything as it was, or says that
//! it has not. It never shows altered bytes or another user's messages, and never leaves out what was answered without a
//! word. `mesa inspect` sees the damage, and what `--salvage` saves is what it showed.
//!
//! `MESA_CORRUPTIONS` sets how many, `MESA_SEED` repeats its choices. With `MESA_CORRUPTION_BLIND=1` the harness shows that
//! it can fail: one entry of what is expected is forged, and every store that opens must be told to be wrong.

mod damage;
mod fixtures;
#[path = "../../support/mod.rs"]
#[allow(dead_code, reason = "each test uses its part")]
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
use fixtures::Sample;
use support::seeded_rng::Random;
use verify::{Outcome, judge};

/// Damaged stores where `MESA_CORRUPTIONS` says nothing.
const CORRUPTIONS: u64 = 60;

/// Judged at the same time.
const THREADS: usize = 3;

fn announce(text: &str) {
    // Past the test harness' capture.
    _ = std::io::stderr().write_all(format!("{text}\n").as_bytes());
}

type Judged = Result<verify::Found, String>;

/// Judges them all, a few at a time; gives them back in order.
fn judge_all<'a>(damages: &'a [Damage], which: &(impl Fn(u64) -> &'a Sample + Sync)) -> Vec<(u64, &'a Damage, Judged)> {
    let next = AtomicU64::new(0);
    let work = || {
        let mut done = Vec::new();
        loop {
            let case = next.fetch_add(1, Ordering::SeqCst);
            let Some(damage) = damages.get(case as usize) else { return done };
            done.push((case, damage, judge(which(case), Some(damage))));
        }
    };
    let mut done: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(work)).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("a judge")).collect()
    });
    done.sort_by_key(|(case, ..)| *case);
    done
}

#[test]
fn a_damaged_store_is_never_silently_wrong() {
    let wanted = std::env::var("MESA_CORRUPTIONS");
    let wanted: u64 = wanted.map_or(CORRUPTIONS, |number| number.parse().expect("MESA_CORRUPTIONS is a number"));
    let mut random = Random::announced("corruption");
    let began = Instant::now();
    let mut samples = Sample::all();
    for sample in &samples {
        let found = judge(sample, None).expect("a store that was not damaged");
        assert_eq!(found.outcome, Outcome::Whole, "{}: a store that was not damaged", sample.name);
        assert!(!found.inspect_told, "{}: damage where there is none", sample.name);
    }
    if std::env::var_os("MESA_CORRUPTION_BLIND").is_some() {
        samples.iter_mut().for_each(Sample::forge);
    }
    announce(&format!("corruption: three stores made in {:.1} s", began.elapsed().as_secs_f64()));
    let mut counts: BTreeMap<(&str, Outcome), u64> = BTreeMap::new();
    let (mut told_more, mut saved, mut lost) = (0, 0, 0);
    let mut violations = Vec::new();
    let which = |case: u64| &samples[(case % samples.len() as u64) as usize];
    // Chosen before anything is judged, so that a seed always means the same.
    let damages: Vec<Damage> = (0..wanted).map(|case| Damage::choose(&mut random, which(case), case)).collect();
    for (case, damage, judged) in judge_all(&damages, &which) {
        let sample = which(case);
        match judged {
            Ok(found) => {
                *counts.entry((damage.kind(), found.outcome)).or_default() += 1;
                told_more += u64::from(found.outcome == Outcome::Whole && found.inspect_told);
                saved += found.saved;
                lost += found.lost;
            }
            Err(violation) => {
                let told = format!("case {case}, store {}, {damage:?}: {violation}", sample.name);
                announce(&format!("corruption: VIOLATION {told}"));
                violations.push(told);
            }
        }
    }
    for ((kind, outcome), count) in &counts {
        announce(&format!("corruption: {kind:<16} {outcome:?} {count}"));
    }
    let total =
        |wanted| counts.iter().filter(|((_, outcome), _)| *outcome == wanted).map(|(_, count)| count).sum::<u64>();
    let [whole, refused, isolated] = [Outcome::Whole, Outcome::Refused, Outcome::Isolated].map(total);
    let seconds = began.elapsed().as_secs_f64();
    announce(&format!(
        "corruption: {wanted} damaged stores in {seconds:.0} s: whole {whole}, refused {refused}, isolated {isolated}, silent \
         {silent}; inspect told of damage that the server could do without in {told_more}; salvage saved {saved} entries and \
         could not save {lost}",
        silent = violations.len()
    ));
    assert!(violations.is_empty(), "{}", violations.join("\n"));
    assert!(whole > 0 && refused > 0, "damage of one outcome only is no test");
}
