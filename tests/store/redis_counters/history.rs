//! Runs a history: random steps of two servers on the logs of three users.

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
    Coverage,
    params::{Params, Sizes},
    reference_model::{LogSnapshot, Message, ReferenceLog},
};
use crate::{redis::RedisNamespace, seeded_rng::Random, support::user};

const USERS: [&str; 3] = ["a", "b", "c"];
const SERVERS: usize = 2;
const STEPS: u64 = 80;

/// Device names; the first stands for clients without a device.
const DEVICES: [&str; 6] = ["", "one", "two", "three", "four", "five"];

/// Entries that expire within this many seconds of a step are not predicted.
///
/// The clock of a restarted server lags a little, and a step takes time.
const UNCERTAIN_S: u64 = 3;

/// Advance of the clock after which entries with a short TTL are expired.
const SHORT_ADVANCE: Duration = Duration::from_secs(8);

const CHECK_COUNTERS: &str = include_str!("check_counters.lua");

/// Changes the logs of all users, and the failover epoch.
///
/// ARGV: 1 the change to each log: `copy` makes a copy, `restore` restores it, `delete` deletes the log; 2 whether the
/// epoch changes (1). KEYS: 1 the epoch; for each user the state, the stream, and their copies.
const FAIL_OVER: &str = "
for first = 2, #KEYS, 4 do
  for n = first, first + 1 do
    local from, to = KEYS[n], KEYS[n + 2]
    if ARGV[1] == 'restore' then from, to = to, from end
    if ARGV[1] == 'delete' then redis.call('DEL', from) end
    if ARGV[1] == 'restore' or ARGV[1] == 'copy' then
      redis.call('DEL', to)
      redis.call('COPY', from, to)
    end
  end
end
if ARGV[2] == '1' then redis.call('HSET', KEYS[1], 'replid', 'another', 'durable', '0') end
return 1";

struct Server {
    store: Arc<dyn Store>,
    ahead_ms: Arc<AtomicU64>,
}

pub struct History<'a> {
    namespace: &'a RedisNamespace,
    connection: Box<dyn redis::ConnectionLike + Send>,
    random: Random,
    params: Params,
    servers: Vec<Server>,
    /// Advance of the clock.
    ahead: Duration,
    /// Logs at the last check.
    snapshots: Vec<Option<LogSnapshot>>,
    /// Last sequence that was assigned to each user.
    assigned: [Seq; USERS.len()],
    attached: Vec<(usize, usize, usize)>,
    holds: [[Option<Seq>; USERS.len()]; SERVERS],
    /// Whether there is a copy of the logs.
    has_copy: bool,
    failed_over: bool,
    coverage: &'a mut Coverage,
    /// Seed, parameters and step, for assertion messages.
    context: String,
}

fn device(name: usize) -> Option<DeviceId> {
    (name > 0).then(|| DeviceId::new(DEVICES[name]).unwrap())
}

fn open(namespace: &RedisNamespace, limits: Limits) -> Server {
    let ahead_ms = Arc::new(AtomicU64::new(0));
    Server { store: namespace.open(limits, ahead_ms.clone()), ahead_ms }
}

impl<'a> History<'a> {
    pub fn new(namespace: &'a RedisNamespace, seed: u64, coverage: &'a mut Coverage) -> Self {
        let mut random = Random::from_seed(seed);
        let params = Params::new(seed, &mut random);
        let servers = (0..SERVERS).map(|_| open(namespace, params.limits)).collect();
        Self {
            namespace,
            connection: namespace.connection(),
            context: format!("MESA_SEED={seed}, {params:?}"),
            random,
            params,
            servers,
            ahead: Duration::ZERO,
            snapshots: vec![None; USERS.len()],
            assigned: [0; USERS.len()],
            attached: Vec::new(),
            holds: Default::default(),
            has_copy: false,
            failed_over: false,
            coverage,
        }
    }

    fn pick(&mut self, count: usize) -> usize {
        self.random.within(0..=count as u64 - 1) as usize
    }

    fn eval<T: redis::FromRedisValue>(&mut self, script: &str, keys: &[String], arguments: &[&str]) -> T {
        let mut command = redis::cmd("EVAL");
        command.arg(script).arg(keys.len()).arg(keys).arg(arguments);
        command.query(&mut *self.connection).unwrap()
    }

    /// Compares the state of each log with its stream, and stores the snapshots.
    fn check(&mut self) {
        for (index, id) in USERS.iter().enumerate() {
            let keys = [self.namespace.key("state", id), self.namespace.key("log", id)];
            let has_due = if self.namespace.is_cluster() { "0" } else { "1" };
            let entries_max = self.params.limits.messages.to_string();
            let (errors, snapshot): (Vec<String>, String) = self.eval(CHECK_COUNTERS, &keys, &[&entries_max, has_due]);
            assert!(errors.is_empty(), "{}: the log of {id}:\n{}", self.context, errors.join("\n"));
            let snapshot: Option<LogSnapshot> =
                (!snapshot.is_empty()).then(|| serde_json::from_str(&snapshot).unwrap());
            self.coverage.checks += 1;
            if let Some(snapshot) = &snapshot {
                self.coverage.entries += snapshot.entries.len() as u64;
                self.coverage.several_blocks += u64::from(snapshot.blocks > 1);
            }
            self.snapshots[index] = snapshot;
        }
    }

    /// Makes all servers write their session reports. Unlike a query of the state, it runs no expiry.
    fn flush_reports(&self) {
        for server in &self.servers {
            for id in USERS {
                server.store.unreceived_by(&user(id), 1).unwrap();
            }
        }
    }

    /// Returns the time of the servers, in seconds.
    fn now(&mut self) -> u64 {
        let (seconds, micros): (u64, u64) = redis::cmd("TIME").query(&mut *self.connection).unwrap();
        (Duration::new(seconds, micros as u32 * 1000) + self.ahead).as_secs()
    }

    /// Creates a random batch of appends, with the indexes of their recipients.
    fn batch(&mut self) -> Vec<(Append, Vec<usize>)> {
        let max = if matches!(self.params.sizes, Sizes::Large) { 80 } else { 700 };
        let count = match self.pick(10) {
            0..=4 => 1,
            5..=7 => self.random.within(2..=20),
            8 => self.random.within(20..=max),
            _ => max,
        };
        // Only some batches have short TTLs. The results of the others can be predicted.
        let is_brief = count == 1 || self.random.one_in(3);
        let single = self.pick(USERS.len());
        (0..count)
            .map(|_| {
                let recipients = if self.random.one_in(10) { (0..USERS.len()).collect() } else { vec![single] };
                let key = self.random.within(1..=100) <= self.params.with_key;
                let key = key.then(|| format!("key {}", self.random.within(1..=self.params.keys)));
                let append = Append {
                    ttl: self.params.ttl(&mut self.random, is_brief),
                    collapse: key.map(|key| CollapseKey::new(&key).unwrap()),
                    ..Append::new(
                        self.params.payload(&mut self.random),
                        recipients.iter().map(|index| user(USERS[*index])).collect(),
                    )
                };
                (append, recipients)
            })
            .collect()
    }

    /// Appends a batch to the store and to the reference model, and compares the results and the logs.
    async fn append(&mut self) {
        let (server, batch) = (self.pick(SERVERS), self.batch());
        self.flush_reports();
        self.check();
        let (before, began) = (self.snapshots.clone(), self.now());
        let appends = batch.iter().map(|(append, _)| append.clone()).collect();
        let results = self.servers[server]
            .store
            .append_all(appends)
            .await
            .unwrap_or_else(|error| panic!("{}: {error}", self.context));
        let ended = self.now();
        self.check();
        self.coverage.appends += batch.len() as u64;
        for (result, (_, recipients)) in results.iter().zip(&batch) {
            for (seq, index) in result.seqs.iter().zip(recipients) {
                if let Ok(seq) = seq {
                    let id = USERS[*index];
                    assert!(*seq > self.assigned[*index], "{}: {seq} of {id} was assigned before", self.context);
                    self.assigned[*index] = *seq;
                }
            }
        }
        let limits = self.params.limits;
        let is_uncertain = |expires: u64| expires > 0 && (began - UNCERTAIN_S..=ended + UNCERTAIN_S).contains(&expires);
        let failed_over = self.failed_over;
        let mut models: Vec<Option<ReferenceLog>> = before
            .iter()
            .zip(&self.snapshots)
            .map(|(before, after)| {
                let after = after.as_ref()?;
                let model = match before {
                    Some(before)
                        if before.epoch == after.epoch && before.names() == after.names() && before.held == 0 =>
                    {
                        ReferenceLog::new(before, limits, began)
                    }
                    // A log that does not exist begins at 1, unless a failover came first.
                    None if !failed_over => ReferenceLog::empty(limits, began),
                    _ => return None,
                };
                // A server may remove expired entries and their collapse keys at any time.
                let is_uncertain =
                    model.entries.iter().any(|(.., expires)| *expires > 0 && *expires <= ended + UNCERTAIN_S);
                (model.is_exact() && !is_uncertain).then_some(model)
            })
            .collect();
        for (result, (append, recipients)) in results.iter().zip(&batch) {
            let ttl = append.ttl.into_iter().chain(limits.age).min();
            // Rounded up, and one more second because the time of the append is not known exactly.
            let expires = ttl.map_or(0, |ttl| began + ttl.as_secs() + 2);
            let key = append.collapse.as_ref().map(CollapseKey::as_str);
            let message = Message { bytes: append.payload.as_bytes().len() as u64, key, expires };
            let mut dropped = Some(0);
            for (seq, index) in result.seqs.iter().zip(recipients) {
                if is_uncertain(expires) {
                    models[*index] = None;
                }
                let Some(model) = &mut models[*index] else {
                    dropped = None;
                    continue;
                };
                let (expected, evicted) = model.append(message);
                assert_eq!(*seq, expected, "{}: the sequence of {}", self.context, USERS[*index]);
                dropped = dropped.map(|dropped| dropped + evicted);
                self.coverage.predicted += 1;
                self.coverage.rejected += u64::from(seq.is_err());
            }
            if let Some(dropped) = dropped {
                assert_eq!(result.dropped, dropped, "{}: the number of evicted entries", self.context);
                self.coverage.dropped += dropped;
            }
        }
        for (index, model) in models.iter().enumerate() {
            let (Some(model), Some(after)) = (model, &self.snapshots[index]) else { continue };
            // Expired entries may have been removed meanwhile.
            let unexpired = |entries: &[(Seq, u64, u64)]| {
                let unexpired = entries.iter().filter(|(.., expires)| *expires == 0 || *expires > ended);
                unexpired.map(|(seq, bytes, _)| (*seq, *bytes)).collect::<Vec<_>>()
            };
            assert_eq!(
                unexpired(&after.entries),
                unexpired(&model.entries),
                "{}: the log of {}",
                self.context,
                USERS[index]
            );
            assert_eq!(after.head, model.head, "{}: the head of {}", self.context, USERS[index]);
        }
    }

    fn attach(&mut self) {
        let (server, owner, name) = (self.pick(SERVERS), self.pick(USERS.len()), self.pick(DEVICES.len()));
        match self.servers[server].store.attach(&user(USERS[owner]), device(name).as_ref()) {
            Ok(_) => self.attached.push((server, owner, name)),
            Err(StoreError::Devices(max)) => assert_eq!(max, self.params.limits.devices),
            Err(error) => panic!("{}: {error}", self.context),
        }
    }

    fn detach(&mut self) {
        if self.attached.is_empty() {
            return;
        }
        let at = self.pick(self.attached.len());
        let (server, owner, name) = self.attached.swap_remove(at);
        self.servers[server].store.detach(&user(USERS[owner]), device(name).as_ref());
    }

    /// Acknowledges a range for one device, through one server.
    fn report(&mut self, server: usize, owner: usize, name: Option<DeviceId>, from: Seq, to: Seq) {
        let hold = self.holds[server][owner];
        let report = SessionReport { device: name, acknowledged: Some((from, to)), hold, ..SessionReport::default() };
        self.servers[server].store.report(&user(USERS[owner]), report);
    }

    /// Acknowledges random ranges.
    fn acknowledge(&mut self) {
        let (server, owner) = (self.pick(SERVERS), self.pick(USERS.len()));
        let Some(snapshot) = self.snapshots[owner].clone() else { return };
        let names = snapshot.names();
        let name = names[self.pick(names.len())].clone();
        let device = |name: &str| (!name.is_empty()).then(|| DeviceId::new(name).unwrap());
        let random_seq = |history: &mut Self| {
            let count = snapshot.entries.len();
            if count == 0 { snapshot.head } else { snapshot.entries[history.pick(count)].0 }
        };
        match self.pick(8) {
            // A prefix.
            0..=2 => {
                let to = random_seq(self);
                self.report(server, owner, device(&name), 1, to);
            }
            // A few ranges, sometimes more than an `AckSet` stores.
            3..=4 => {
                let max = if self.random.one_in(4) { 25 } else { 4 };
                for _ in 0..self.random.within(1..=max) {
                    let (from, length) = (random_seq(self), self.random.within(0..=3));
                    self.report(server, owner, device(&name), from, from + length);
                }
            }
            // One range in the middle.
            5 => {
                let (from, to) = (random_seq(self), random_seq(self));
                self.report(server, owner, device(&name), from, to);
            }
            // Of an unknown device, and beyond the head.
            6 => {
                self.report(server, owner, device("unknown"), 1, snapshot.head);
                self.report(server, owner, device(&name), snapshot.head.saturating_sub(2), snapshot.head + 1000);
            }
            // Everything, for all devices.
            _ => {
                for name in &names {
                    self.report(server, owner, device(name), 1, snapshot.head);
                }
            }
        }
    }

    fn hold(&mut self) {
        let (server, owner) = (self.pick(SERVERS), self.pick(USERS.len()));
        let seqs = self.snapshots[owner].iter().flat_map(|snapshot| snapshot.entries.iter().map(|(seq, ..)| *seq));
        let seqs: Vec<Seq> = seqs.collect();
        let hold = (!seqs.is_empty() && self.random.one_in(3)).then(|| seqs[self.pick(seqs.len())]);
        self.holds[server][owner] = hold;
        self.servers[server].store.report(&user(USERS[owner]), SessionReport { hold, ..SessionReport::default() });
    }

    fn advance_randomly(&mut self) {
        let hours = |hours: u64| Duration::from_secs(hours * 3600);
        let time = match self.pick(8) {
            0..=3 => SHORT_ADVANCE,
            4 => hours(1),
            5 => hours(6),
            6 => hours(11 * 24),
            _ => hours(40 * 24),
        };
        self.advance_clock(time);
    }

    fn advance_clock(&mut self, time: Duration) {
        self.ahead += time;
        for server in &self.servers {
            server.ahead_ms.fetch_add(time.as_millis() as u64, Ordering::Relaxed);
        }
    }

    /// Reads, which must not change the log, and queries the state, which runs expiry first.
    fn query(&mut self) {
        let (server, owner) = (self.pick(SERVERS), self.pick(USERS.len()));
        let (store, owner) = (&self.servers[server].store, user(USERS[owner]));
        let limit = ReadLimit { entries: 300, bytes: 400_000 };
        let after = store.read(&owner, 0, limit).unwrap().through;
        store.read(&owner, after, limit).unwrap();
        let state = store.state(&owner).unwrap();
        assert!(state.devices.iter().all(|device| device.pending <= state.pending), "{}: {state:?}", self.context);
    }

    async fn restart(&mut self) {
        let index = self.pick(SERVERS);
        self.servers[index].store.close().await.unwrap();
        // The store continues its stored clock, so the advance is reset.
        self.servers[index] = open(self.namespace, self.params.limits);
        self.attached.retain(|(server, ..)| *server != index);
        self.holds[index] = [None; USERS.len()];
        self.coverage.restarts += 1;
    }

    /// Simulates a failover to a Redis with all data, with the data of an earlier step, or with none.
    fn fail_over(&mut self) {
        // In a Redis Cluster a test cannot do this to a single log.
        if self.namespace.is_cluster() {
            return;
        }
        self.failed_over = true;
        self.coverage.failovers += 1;
        let action = match self.pick(4) {
            0 => "delete",
            1 => "",
            _ if self.has_copy => "restore",
            _ => "",
        };
        self.change_all_logs(action, "1");
        self.has_copy = false;
    }

    /// Deletes the state of a log, its stream, or both, like an operator. The next append repairs the log.
    async fn delete(&mut self) {
        let (server, owner, choice) = (self.pick(SERVERS), self.pick(USERS.len()), self.pick(3));
        let kinds: &[&str] = [&["state"][..], &["log"], &["state", "log"]][choice];
        let mut command = redis::cmd("DEL");
        kinds.iter().for_each(|kind| _ = command.arg(self.namespace.key(kind, USERS[owner])));
        command.exec(&mut *self.connection).unwrap();
        // In a Redis Cluster a log begins at 1 again if it has no key left and no server has a session of its user. A log
        // without pending entries has only its state.
        let has_key: [bool; 2] = ["state", "log"].map(|kind| {
            redis::cmd("EXISTS").arg(self.namespace.key(kind, USERS[owner])).query(&mut *self.connection).unwrap()
        });
        if self.namespace.is_cluster() && has_key == [false, false] {
            self.assigned[owner] = 0;
        }
        self.failed_over = true;
        self.coverage.deletions += 1;
        let append = Append::new(self.params.payload(&mut self.random), vec![user(USERS[owner])]);
        let result = self.servers[server].store.append(append).await.unwrap();
        if let Ok(seq) = result.seqs[0] {
            assert!(seq > self.assigned[owner], "{}: deleted {kinds:?}, and {seq} is not new", self.context);
            self.assigned[owner] = seq;
        }
    }

    /// Copies all logs, for a later failover.
    fn copy_logs(&mut self) {
        if !self.namespace.is_cluster() {
            self.change_all_logs("copy", "0");
            self.has_copy = true;
        }
    }

    fn change_all_logs(&mut self, action: &str, epoch_changes: &str) {
        let mut keys = vec![self.namespace.epoch_key()];
        for id in USERS {
            keys.extend(["state", "log", "state copy", "log copy"].map(|name| self.namespace.key(name, id)));
        }
        self.eval::<()>(FAIL_OVER, &keys, &[action, epoch_changes]);
    }

    async fn step(&mut self) {
        match self.pick(100) {
            0..=34 => {
                if self.params.with_ttl > 0 && self.random.one_in(2) {
                    self.advance_clock(SHORT_ADVANCE);
                }
                self.append().await;
            }
            35..=44 => self.attach(),
            45..=50 => self.detach(),
            51..=70 => self.acknowledge(),
            71..=75 => self.hold(),
            76..=77 => {
                let (server, owner) = (self.pick(SERVERS), self.pick(USERS.len()));
                self.servers[server].store.clear(&user(USERS[owner])).await.unwrap();
            }
            78..=86 => self.advance_randomly(),
            87..=93 => self.query(),
            94..=95 => self.copy_logs(),
            96..=97 => self.restart().await,
            98 if self.random.one_in(2) => self.delete().await,
            98 => self.fail_over(),
            _ => self.flush_reports(),
        }
    }

    pub async fn run(mut self) {
        let context = self.context.clone();
        for n in 1..=STEPS {
            self.context = format!("{context}, step {n}");
            self.step().await;
            self.check();
        }
        for server in &self.servers {
            server.store.close().await.unwrap();
        }
    }
}
