//! Two servers, three users, and what is done with them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use mesa::{
    message::{CollapseKey, DeviceId, Seq},
    store::{Append, Limits, ReadLimit, SessionReport, Store, StoreError},
};

use super::{
    Tally,
    params::{Plan, Sizes},
    reference_model::{Looked, Message, Plain},
};
use crate::{redis::Somewhere, seeded_rng::Random, support::user};

const USERS: [&str; 3] = ["a", "b", "c"];
const SERVERS: usize = 2;
const STEPS: u64 = 80;

/// Names that clients have; the first has none.
const DEVICES: [&str; 6] = ["", "one", "two", "three", "four", "five"];

/// The clocks of servers that were started anew are a little behind, and a step takes its time: what expires so near is not foretold.
const UNSURE_S: u64 = 3;

/// What is soon past is past then.
const SOON: Duration = Duration::from_secs(8);

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

struct Server {
    store: Arc<dyn Store>,
    ahead_ms: Arc<AtomicU64>,
}

pub struct History<'a> {
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
    failed_over: bool,
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
    pub fn new(place: &'a Somewhere, seed: u64, tally: &'a mut Tally) -> Self {
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
            failed_over: false,
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
                server.store.unreceived_by(&user(id), 1).unwrap();
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
            8 => self.random.within(20..=most),
            _ => most,
        };
        // What soon is past is in some lots only: of the others it can be foretold what becomes of them.
        let is_brief = count == 1 || self.random.once_in(3);
        let alone = self.pick(USERS.len());
        (0..count)
            .map(|_| {
                let whose = if self.random.once_in(10) { (0..USERS.len()).collect() } else { vec![alone] };
                let key = self.random.within(1..=100) <= self.plan.keyed;
                let key = key.then(|| format!("key {}", self.random.within(1..=self.plan.keys)));
                let append = Append {
                    ttl: self.plan.ttl(&mut self.random, is_brief),
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
        let failed_over = self.failed_over;
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
                    None if !failed_over => Plain::empty(limits, began),
                    _ => return None,
                };
                // A server may sweep what is past at any moment, and forget its keys with it.
                let unsure = plain.entries.iter().any(|(.., expires)| *expires > 0 && *expires <= ended + UNSURE_S);
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
        let note = SessionReport { device: name, acknowledged: Some((from, to)), hold, ..SessionReport::default() };
        self.servers[by].store.report(&user(USERS[whose]), note);
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
        self.servers[by].store.report(&user(USERS[whose]), SessionReport { hold, ..SessionReport::default() });
    }

    fn later(&mut self) {
        let hours = |hours: u64| Duration::from_secs(hours * 3600);
        let later = match self.pick(8) {
            0..=3 => SOON,
            4 => hours(1),
            5 => hours(6),
            6 => hours(11 * 24),
            _ => hours(40 * 24),
        };
        self.forward(later);
    }

    fn forward(&mut self, later: Duration) {
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
        self.failed_over = true;
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

    /// A person deletes the state of a log, its stream, or both; the next append puts that right.
    async fn delete(&mut self) {
        let (by, whose, which) = (self.pick(SERVERS), self.pick(USERS.len()), self.pick(3));
        let whats: &[&str] = [&["state"][..], &["log"], &["state", "log"]][which];
        let mut command = redis::cmd("DEL");
        whats.iter().for_each(|what| _ = command.arg(self.place.key(what, USERS[whose])));
        command.exec(&mut *self.line).unwrap();
        // In a Cluster a log of which nothing is left, and that no server has a session of, begins at 1 again.
        if self.place.is_spread() && which == 2 {
            self.given[whose] = 0;
        }
        self.failed_over = true;
        self.tally.deletions += 1;
        let append = Append::new(self.plan.payload(&mut self.random), vec![user(USERS[whose])]);
        let made = self.servers[by].store.append(append).await.unwrap();
        if let Ok(seq) = made.seqs[0] {
            assert!(seq > self.given[whose], "{}: {seq} was given before {whats:?} was deleted", self.at);
            self.given[whose] = seq;
        }
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
            0..=34 => {
                if self.plan.mortal > 0 && self.random.once_in(2) {
                    self.forward(SOON);
                }
                self.append().await;
            }
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
            98 if self.random.once_in(2) => self.delete().await,
            98 => self.fail_over(),
            _ => self.settle(),
        }
    }

    pub async fn run(mut self) {
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
