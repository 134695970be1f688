//! The tallies in the state of a log over Redis: whatever was done, they agree with the stream, entry by entry; and what an append
//! takes away is what goes from a plain list.
//!
//! A *history* is some hundred random steps of two servers on the logs of three users, under limits of its own. After every step
//! `tallies.lua` holds each state against its stream, in Redis. `MESA_TALLIES` sets how many histories there are, and `MESA_SEED`
//! which is the first: `MESA_TALLIES=1000 cargo test --features redis --test store tallies -- --nocapture` is the long form.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use mesa::{
    message::{CollapseKey, DeviceId, Payload, Seq},
    store::{Append, Limits, Note, Overflow, ReadLimit, Store, StoreError},
};

use crate::{
    plain::{Looked, Message, Plain},
    random::{Random, announced_seed},
    redis::Somewhere,
    redis_modes::Cluster,
    redis_server::Redis,
    support::user,
};

const USERS: [&str; 3] = ["a", "b", "c"];
const SERVERS: usize = 2;
const STEPS: u64 = 80;

/// Histories where `MESA_TALLIES` says nothing: on one Redis, and in a Cluster.
const HISTORIES: u64 = 12;
const HISTORIES_SPREAD: u64 = 3;

/// Names that clients have; the first has none.
const DEVICES: [&str; 6] = ["", "one", "two", "three", "four", "five"];

/// The clocks of servers that were started anew are a little behind, and a step takes its time: what expires so near is not foretold.
const UNSURE_S: u64 = 3;

const TALLIES: &str = include_str!("tallies.lua");

/// ARGV: 1 what to do with the log of each user: keep a copy, bring that back, or take all away; 2 whether this Redis is another then.
/// KEYS: 1 the era, then of each user the state, the stream, and their copies.
const FAIL_OVER: &str = "
for at = 2, #KEYS, 4 do
  for n = at, at + 1 do
    local from, to = KEYS[n], KEYS[n + 2]
    if ARGV[1] == 'back' then from, to = to, from end
    if ARGV[1] == 'forget' then redis.call('DEL', from) end
    if ARGV[1] == 'back' or ARGV[1] == 'keep' then
      redis.call('DEL', to)
      redis.call('COPY', from, to)
    end
  end
end
if ARGV[2] == '1' then redis.call('HSET', KEYS[1], 'history', 'another', 'kept', '0') end
return 1";

/// How much of what it is for a run has come by.
#[derive(Debug, Default)]
struct Tally {
    checks: u64,
    entries: u64,
    several_blocks: u64,
    appends: u64,
    foretold: u64,
    dropped: u64,
    refused: u64,
    failovers: u64,
    restarts: u64,
}

struct Server {
    store: Arc<dyn Store>,
    ahead_ms: Arc<AtomicU64>,
}

/// What is chosen once for a history.
#[derive(Debug)]
struct Plan {
    limits: Limits,
    sizes: Sizes,
    /// Out of a hundred.
    mortal: u64,
    keyed: u64,
    keys: u64,
}

#[derive(Clone, Copy, Debug)]
enum Sizes {
    Small,
    SomeLarge,
    Large,
}

impl Plan {
    fn new(seed: u64, random: &mut Random) -> Self {
        let pick = |random: &mut Random, list: &[u64]| list[random.within(0..=list.len() as u64 - 1) as usize];
        // These in turn, so that a run of some length has all.
        let overflow = if seed.is_multiple_of(3) { Overflow::Reject } else { Overflow::DropOldest };
        let messages = [12, 300, 700, 1500, 5000][(seed % 5) as usize];
        let age = random.once_in(6).then_some(Duration::from_secs(7200));
        let device_age = random.once_in(2).then_some(Duration::from_secs(30 * 24 * 3600));
        let limits = Limits {
            messages,
            bytes: pick(random, &[100_000, 600_000, 1_500_000, 8_000_000]),
            overflow,
            age,
            device_age,
            devices: random.within(1..=4) as usize,
            ..Limits::default()
        };
        let sizes = [Sizes::Small, Sizes::SomeLarge, Sizes::Large][random.within(0..=2) as usize];
        let mortal = pick(random, &[0, 15, 60]);
        Self { limits, sizes, mortal, keyed: pick(random, &[0, 15, 50]), keys: pick(random, &[3, 20, 100]) }
    }

    fn payload(&self, random: &mut Random) -> Payload {
        let characters = match self.sizes {
            Sizes::Large => random.within(4_000..=60_000),
            Sizes::SomeLarge if random.once_in(40) => random.within(20_000..=60_000),
            Sizes::SomeLarge | Sizes::Small => random.within(0..=60),
        };
        Payload::encode(0, Some(&format!("\"{}\"", "x".repeat(characters as usize))), Some("N")).unwrap()
    }

    fn ttl(&self, random: &mut Random) -> Option<Duration> {
        let mortal = random.within(1..=100) <= self.mortal;
        let ttl = match random.within(0..=7) {
            0 => Duration::from_millis(1),
            1 => Duration::from_millis(random.within(2..=2500)),
            2 => Duration::from_secs(20),
            3..=4 => Duration::from_secs(600),
            5 => Duration::from_secs(5 * 3600),
            6 => Duration::from_secs(10 * 24 * 3600),
            _ => Duration::from_secs(u32::MAX.into()),
        };
        mortal.then_some(ttl)
    }
}

struct History<'a> {
    place: &'a Somewhere,
    line: Box<dyn redis::ConnectionLike + Send>,
    random: Random,
    plan: Plan,
    servers: Vec<Server>,
    /// By how much the clock is ahead.
    ahead: Duration,
    /// As they were found last.
    looked: Vec<Option<Looked>>,
    /// The last sequence that each user was given.
    given: [Seq; USERS.len()],
    attached: Vec<(usize, usize, usize)>,
    holds: [[Option<Seq>; USERS.len()]; SERVERS],
    /// Whether there is a copy of the logs to come back to.
    kept: bool,
    tally: &'a mut Tally,
    /// What is told when something is wrong.
    at: String,
}

fn device(name: usize) -> Option<DeviceId> {
    (name > 0).then(|| DeviceId::new(DEVICES[name]).unwrap())
}

fn open(place: &Somewhere, limits: Limits) -> Server {
    let ahead_ms = Arc::new(AtomicU64::new(0));
    Server { store: place.open(limits, ahead_ms.clone()), ahead_ms }
}

impl<'a> History<'a> {
    fn new(place: &'a Somewhere, seed: u64, tally: &'a mut Tally) -> Self {
        let mut random = Random::from_seed(seed);
        let plan = Plan::new(seed, &mut random);
        let servers = (0..SERVERS).map(|_| open(place, plan.limits)).collect();
        Self {
            place,
            line: place.line(),
            at: format!("MESA_SEED={seed}, {plan:?}"),
            random,
            plan,
            servers,
            ahead: Duration::ZERO,
            looked: vec![None; USERS.len()],
            given: [0; USERS.len()],
            attached: Vec::new(),
            holds: Default::default(),
            kept: false,
            tally,
        }
    }

    fn pick(&mut self, count: usize) -> usize {
        self.random.within(0..=count as u64 - 1) as usize
    }

    fn eval<T: redis::FromRedisValue>(&mut self, script: &str, keys: &[String], arguments: &[&str]) -> T {
        let mut command = redis::cmd("EVAL");
        command.arg(script).arg(keys.len()).arg(keys).arg(arguments);
        command.query(&mut *self.line).unwrap()
    }

    /// Looks at everybody's log, and holds its state against its stream.
    fn check(&mut self) {
        for (at, id) in USERS.iter().enumerate() {
            let keys = [self.place.key("state", id), self.place.key("log", id)];
            let says_due = if self.place.is_spread() { "0" } else { "1" };
            let most = self.plan.limits.messages.to_string();
            let (wrong, looked): (Vec<String>, String) = self.eval(TALLIES, &keys, &[&most, says_due]);
            assert!(wrong.is_empty(), "{}: of {id}:\n{}", self.at, wrong.join("\n"));
            let looked: Option<Looked> = (!looked.is_empty()).then(|| serde_json::from_str(&looked).unwrap());
            self.tally.checks += 1;
            if let Some(looked) = &looked {
                self.tally.entries += looked.entries.len() as u64;
                self.tally.several_blocks += u64::from(looked.blocks > 1);
            }
            self.looked[at] = looked;
        }
    }

    /// Has all servers write down what they have to say. Looks after nothing, as a question about a state would.
    fn settle(&self) {
        for server in &self.servers {
            for id in USERS {
                server.store.lacking(&user(id), 1).unwrap();
            }
        }
    }

    /// The second that it is.
    fn now(&mut self) -> u64 {
        let (seconds, micros): (u64, u64) = redis::cmd("TIME").query(&mut *self.line).unwrap();
        (Duration::new(seconds, micros as u32 * 1000) + self.ahead).as_secs()
    }

    fn lot(&mut self) -> Vec<(Append, Vec<usize>)> {
        let most = if matches!(self.plan.sizes, Sizes::Large) { 80 } else { 700 };
        let count = match self.pick(10) {
            0..=4 => 1,
            5..=7 => self.random.within(2..=20),
            _ => self.random.within(20..=most),
        };
        let alone = self.pick(USERS.len());
        (0..count)
            .map(|_| {
                let whose = if self.random.once_in(10) { (0..USERS.len()).collect() } else { vec![alone] };
                let key = self.random.within(1..=100) <= self.plan.keyed;
                let key = key.then(|| format!("key {}", self.random.within(1..=self.plan.keys)));
                let append = Append {
                    ttl: self.plan.ttl(&mut self.random),
                    collapse: key.map(|key| CollapseKey::new(&key).unwrap()),
                    ..Append::new(
                        self.plan.payload(&mut self.random),
                        whose.iter().map(|at| user(USERS[*at])).collect(),
                    )
                };
                (append, whose)
            })
            .collect()
    }

    /// Appends for real and to plain lists, and holds the answers and what is there then against each other.
    async fn append(&mut self) {
        let (by, lot) = (self.pick(SERVERS), self.lot());
        self.settle();
        self.check();
        let (before, began) = (self.looked.clone(), self.now());
        let appends = lot.iter().map(|(append, _)| append.clone()).collect();
        let made =
            self.servers[by].store.append_all(appends).await.unwrap_or_else(|error| panic!("{}: {error}", self.at));
        let ended = self.now();
        self.check();
        self.tally.appends += lot.len() as u64;
        for (made, (_, whose)) in made.iter().zip(&lot) {
            for (seq, at) in made.seqs.iter().zip(whose) {
                if let Ok(seq) = seq {
                    assert!(*seq > self.given[*at], "{}: {seq} of {} was given before", self.at, USERS[*at]);
                    self.given[*at] = *seq;
                }
            }
        }
        let limits = self.plan.limits;
        let is_unsure = |expires: u64| expires > 0 && (began - UNSURE_S..=ended + UNSURE_S).contains(&expires);
        let is_first = self.tally.failovers == 0;
        let mut plain: Vec<Option<Plain>> = before
            .iter()
            .zip(&self.looked)
            .map(|(before, after)| {
                let after = after.as_ref()?;
                let plain = match before {
                    Some(before) if before.era == after.era && before.names() == after.names() && before.held == 0 => {
                        Plain::new(before, limits, began)
                    }
                    // A log that is not there begins at 1, unless a failover was before.
                    None if is_first => Plain::empty(limits, began),
                    _ => return None,
                };
                let unsure = plain.entries.iter().any(|(.., expires)| is_unsure(*expires));
                (plain.is_exact() && !unsure).then_some(plain)
            })
            .collect();
        for (made, (append, whose)) in made.iter().zip(&lot) {
            let lives = append.ttl.into_iter().chain(limits.age).min();
            // To the second above, and another since it is not known exactly when it came.
            let expires = lives.map_or(0, |lives| began + lives.as_secs() + 2);
            let key = append.collapse.as_ref().map(CollapseKey::as_str);
            let message = Message { bytes: append.payload.as_bytes().len() as u64, key, expires };
            let mut dropped = Some(0);
            for (seq, at) in made.seqs.iter().zip(whose) {
                if is_unsure(expires) {
                    plain[*at] = None;
                }
                let Some(plain) = &mut plain[*at] else {
                    dropped = None;
                    continue;
                };
                let (expected, goes) = plain.append(message);
                assert_eq!(*seq, expected, "{}: what {} was given", self.at, USERS[*at]);
                dropped = dropped.map(|dropped| dropped + goes);
                self.tally.foretold += 1;
                self.tally.refused += u64::from(seq.is_err());
            }
            if let Some(dropped) = dropped {
                assert_eq!(made.dropped, dropped, "{}: how many went", self.at);
                self.tally.dropped += dropped;
            }
        }
        for (at, plain) in plain.iter().enumerate() {
            let (Some(plain), Some(after)) = (plain, &self.looked[at]) else { continue };
            // What is past may have gone meanwhile.
            let there = |entries: &[(Seq, u64, u64)]| {
                let stays = entries.iter().filter(|(.., expires)| *expires == 0 || *expires > ended);
                stays.map(|(seq, bytes, _)| (*seq, *bytes)).collect::<Vec<_>>()
            };
            assert_eq!(there(&after.entries), there(&plain.entries), "{}: what is there of {}", self.at, USERS[at]);
            assert_eq!(after.head, plain.head, "{}: the head of {}", self.at, USERS[at]);
        }
    }

    fn attach(&mut self) {
        let (by, whose, name) = (self.pick(SERVERS), self.pick(USERS.len()), self.pick(DEVICES.len()));
        match self.servers[by].store.attach(&user(USERS[whose]), device(name).as_ref()) {
            Ok(_) => self.attached.push((by, whose, name)),
            Err(StoreError::Devices(most)) => assert_eq!(most, self.plan.limits.devices),
            Err(error) => panic!("{}: {error}", self.at),
        }
    }

    fn detach(&mut self) {
        if self.attached.is_empty() {
            return;
        }
        let at = self.pick(self.attached.len());
        let (by, whose, name) = self.attached.swap_remove(at);
        self.servers[by].store.detach(&user(USERS[whose]), device(name).as_ref());
    }

    fn note(&mut self, by: usize, whose: usize, name: Option<DeviceId>, from: Seq, to: Seq) {
        let hold = self.holds[by][whose];
        let note = Note { device: name, received: Some((from, to)), hold, ..Note::default() };
        self.servers[by].store.note(&user(USERS[whose]), note);
    }

    fn receive(&mut self) {
        let (by, whose) = (self.pick(SERVERS), self.pick(USERS.len()));
        let Some(looked) = self.looked[whose].clone() else { return };
        let names = looked.names();
        let name = names[self.pick(names.len())].clone();
        let one = |name: &str| (!name.is_empty()).then(|| DeviceId::new(name).unwrap());
        let some = |history: &mut Self| {
            let count = looked.entries.len();
            if count == 0 { looked.head } else { looked.entries[history.pick(count)].0 }
        };
        match self.pick(8) {
            // In order, as far as somebody has come.
            0..=2 => {
                let to = some(self);
                self.note(by, whose, one(&name), 1, to);
            }
            // A few here and there, sometimes more than are remembered.
            3..=4 => {
                let most = if self.random.once_in(4) { 25 } else { 4 };
                for _ in 0..self.random.within(1..=most) {
                    let (from, length) = (some(self), self.random.within(0..=3));
                    self.note(by, whose, one(&name), from, from + length);
                }
            }
            // A part that begins in the middle.
            5 => {
                let (from, to) = (some(self), some(self));
                self.note(by, whose, one(&name), from, to);
            }
            // More than there is, and of a device that nobody knows.
            6 => {
                self.note(by, whose, one("unknown"), 1, looked.head);
                self.note(by, whose, one(&name), looked.head.saturating_sub(2), looked.head + 1000);
            }
            // All of it, by everybody.
            _ => {
                for name in &names {
                    self.note(by, whose, one(name), 1, looked.head);
                }
            }
        }
    }

    fn hold(&mut self) {
        let (by, whose) = (self.pick(SERVERS), self.pick(USERS.len()));
        let seqs = self.looked[whose].iter().flat_map(|looked| looked.entries.iter().map(|(seq, ..)| *seq));
        let seqs: Vec<Seq> = seqs.collect();
        let hold = (!seqs.is_empty() && self.random.once_in(3)).then(|| seqs[self.pick(seqs.len())]);
        self.holds[by][whose] = hold;
        self.servers[by].store.note(&user(USERS[whose]), Note { hold, ..Note::default() });
    }

    fn later(&mut self) {
        let hours = |hours: u64| Duration::from_secs(hours * 3600);
        let later = match self.pick(8) {
            0..=3 => Duration::from_secs(8),
            4 => hours(1),
            5 => hours(6),
            6 => hours(11 * 24),
            _ => hours(40 * 24),
        };
        self.ahead += later;
        for server in &self.servers {
            server.ahead_ms.fetch_add(later.as_millis() as u64, Ordering::Relaxed);
        }
    }

    /// Asks what must not change a thing, and what looks after the log first.
    fn ask(&mut self) {
        let (by, whose) = (self.pick(SERVERS), self.pick(USERS.len()));
        let (store, whose) = (&self.servers[by].store, user(USERS[whose]));
        let limit = ReadLimit { entries: 300, bytes: 400_000 };
        let after = store.read(&whose, 0, limit).unwrap().through;
        store.read(&whose, after, limit).unwrap();
        let state = store.state(&whose).unwrap();
        assert!(state.devices.iter().all(|device| device.pending <= state.pending), "{}: {state:?}", self.at);
    }

    async fn restart(&mut self) {
        let by = self.pick(SERVERS);
        let server = &self.servers[by];
        server.store.close().await.unwrap();
        // It goes on from the time it had.
        self.servers[by] = open(self.place, self.plan.limits);
        self.attached.retain(|(server, ..)| *server != by);
        self.holds[by] = [None; USERS.len()];
        self.tally.restarts += 1;
    }

    /// Another Redis takes over: with all there was, with what there was some steps ago, or with nothing.
    fn fail_over(&mut self) {
        // In a Cluster that is nothing which a test could do to one log.
        if self.place.is_spread() {
            return;
        }
        self.tally.failovers += 1;
        let what = match self.pick(4) {
            0 => "forget",
            1 => "",
            _ if self.kept => "back",
            _ => "",
        };
        self.with_all_logs(what, "1");
        self.kept = false;
    }

    fn keep(&mut self) {
        if !self.place.is_spread() {
            self.with_all_logs("keep", "0");
            self.kept = true;
        }
    }

    fn with_all_logs(&mut self, what: &str, another: &str) {
        let mut keys = vec![self.place.era()];
        for id in USERS {
            keys.extend(["state", "log", "kept state", "kept log"].map(|name| self.place.key(name, id)));
        }
        self.eval::<()>(FAIL_OVER, &keys, &[what, another]);
    }

    async fn step(&mut self) {
        match self.pick(100) {
            0..=34 => self.append().await,
            35..=44 => self.attach(),
            45..=50 => self.detach(),
            51..=70 => self.receive(),
            71..=75 => self.hold(),
            76..=77 => {
                let (by, whose) = (self.pick(SERVERS), self.pick(USERS.len()));
                self.servers[by].store.clear(&user(USERS[whose])).await.unwrap();
            }
            78..=86 => self.later(),
            87..=93 => self.ask(),
            94..=95 => self.keep(),
            96..=97 => self.restart().await,
            98 => self.fail_over(),
            _ => self.settle(),
        }
    }

    async fn run(mut self) {
        let plan = self.at.clone();
        for n in 1..=STEPS {
            self.at = format!("{plan}, step {n}");
            self.step().await;
            self.check();
        }
        for server in &self.servers {
            server.store.close().await.unwrap();
        }
    }
}

async fn run(name: &str, place: fn() -> Somewhere, histories: u64) {
    let wanted = std::env::var("MESA_TALLIES");
    let histories = wanted.map_or(histories, |number| number.parse().expect("MESA_TALLIES is a number"));
    let (seed, mut all) = (announced_seed(name), Tally::default());
    let began = std::time::Instant::now();
    for n in 0..histories {
        let mut tally = Tally::default();
        History::new(&place(), seed.wrapping_add(n), &mut tally).run().await;
        all.add(&tally);
    }
    println!("{name}: {histories} histories in {:.1} s: {all:?}", began.elapsed().as_secs_f64());
    // A shorter run need not have come by everything.
    if histories >= HISTORIES {
        assert!(all.several_blocks > 0 && all.dropped > 0 && all.refused > 0, "not all was looked at: {all:?}");
    }
}

impl Tally {
    fn add(&mut self, one: &Self) {
        self.checks += one.checks;
        self.entries += one.entries;
        self.several_blocks += one.several_blocks;
        self.appends += one.appends;
        self.foretold += one.foretold;
        self.dropped += one.dropped;
        self.refused += one.refused;
        self.failovers += one.failovers;
        self.restarts += one.restarts;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tallies_over_redis_agree_with_the_entries_after_any_history() {
    // Or each history would start one of its own.
    let _redis = Redis::shared();
    run("tallies", Somewhere::default, HISTORIES).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tallies_in_a_redis_cluster_agree_with_the_entries_after_any_history() {
    let _cluster = Cluster::shared();
    run("tallies in a cluster", Somewhere::spread, HISTORIES_SPREAD).await;
}
