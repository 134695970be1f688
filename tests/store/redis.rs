//! Tests the store on Redis: matching of replies, lost connections, and several servers.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Waker},
    time::{Duration, Instant},
};

use mesa::{
    config,
    message::{DeviceId, DispatchId, Seq},
    redis::{
        LinkOptions, ServerLink,
        store::{RedisOptions, open},
    },
    store::{Append, Idempotency, Limits, RejectionReason, SessionReport, Store, StoreError},
};

use crate::{
    redis_server::Redis,
    redis_topologies::RedisCluster,
    support::{acknowledge, append, message, read, user, wait_until},
    wait::WAIT_TIMEOUT,
};

/// Namespace of a Redis or a Redis Cluster that tests share.
pub struct RedisNamespace {
    target: Target,
    name: String,
}

enum Target {
    Single(Arc<Redis>),
    Cluster(Arc<RedisCluster>),
}

static NAMESPACES: AtomicU64 = AtomicU64::new(0);

impl Default for RedisNamespace {
    fn default() -> Self {
        Self::on(Redis::shared())
    }
}

impl RedisNamespace {
    pub fn on(redis: Arc<Redis>) -> Self {
        Self::at(Target::Single(redis))
    }

    /// Creates a namespace of the shared Redis Cluster.
    pub fn in_cluster() -> Self {
        Self::at(Target::Cluster(RedisCluster::shared()))
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Creates another namespace of the same Redis.
    pub fn another(&self) -> Self {
        match &self.target {
            Target::Single(redis) => Self::on(redis.clone()),
            Target::Cluster(cluster) => Self::at(Target::Cluster(cluster.clone())),
        }
    }

    fn at(target: Target) -> Self {
        Self { target, name: format!("n{}", NAMESPACES.fetch_add(1, Ordering::Relaxed)) }
    }

    /// Opens the store, like one more server.
    pub fn open(&self, limits: Limits, ahead_ms: Arc<AtomicU64>) -> Arc<dyn Store> {
        let namespace = Some(self.name.clone());
        let redis = match &self.target {
            Target::Single(redis) => config::Redis::One(redis.url()),
            Target::Cluster(cluster) => config::Redis::Cluster(cluster.urls()),
        };
        // An open fails after some seconds without a reply. Like an operator, this opens it again, for at most 30 s.
        let (end, options) = (Instant::now() + REPLY_TIMEOUT, LinkOptions { ahead_ms, reply_timeout: REPLY_TIMEOUT });
        let link = loop {
            match ServerLink::open(&redis, namespace.as_deref(), options.clone()) {
                Err(error) => assert!(Instant::now() < end, "{error}"),
                Ok(link) => break link,
            }
        };
        open(link, RedisOptions { namespace, limits, expiry_interval: Duration::ZERO, ..RedisOptions::default() })
    }

    /// Opens the store with default limits, like one more server.
    pub fn open_default(&self) -> Arc<dyn Store> {
        self.open(Limits::default(), Arc::default())
    }

    /// Opens a connection for the test itself.
    pub fn connection(&self) -> Box<dyn redis::ConnectionLike + Send> {
        match &self.target {
            Target::Single(redis) => Box::new(redis::Client::open(redis.url()).unwrap().get_connection().unwrap()),
            Target::Cluster(cluster) => Box::new(cluster_client(cluster).get_connection().unwrap()),
        }
    }

    pub fn is_cluster(&self) -> bool {
        matches!(self.target, Target::Cluster(_))
    }

    /// Returns the name of a key of a user whose id has no brace.
    pub fn key(&self, kind: &str, id: &str) -> String {
        format!("mesa:{kind}:{{{id}}}_{}", self.name)
    }

    /// Returns the name of the key of the failover epoch.
    pub fn epoch_key(&self) -> String {
        format!("mesa:{{cluster}}:epoch_{}", self.name)
    }

    /// Changes the failover epoch, as another Redis that takes over does.
    pub fn change_epoch(&self) {
        let script = redis::Script::new("redis.call('HSET', KEYS[1], 'replid', 'another', 'durable', '0')");
        script.key(self.epoch_key()).invoke::<()>(&mut *self.connection()).unwrap();
    }
}

/// Returns the numbers of the messages after `after`, and the last sequence.
pub fn read_after(store: &dyn Store, after: Seq) -> (Vec<u64>, Seq) {
    let entries = read(store, "a", after);
    assert!(
        entries.is_sorted_by(|one, other| one.0 < other.0) && entries.iter().all(|(seq, _)| *seq > after),
        "{entries:?}"
    );
    (entries.iter().map(|(_, n)| *n).collect(), entries.last().map_or(after, |(seq, _)| *seq))
}

/// Records the users of each commit that the store announces.
fn record_commits(store: &dyn Store) -> Arc<Mutex<Vec<String>>> {
    let announced = Arc::new(Mutex::new(Vec::new()));
    let recorder = announced.clone();
    store.on_commit(Arc::new(move |users| {
        recorder.lock().unwrap().extend(users.iter().map(ToString::to_string));
    }));
    announced
}

#[tokio::test]
async fn commit_at_one_server_is_announced_at_every_server() {
    let namespace = RedisNamespace::default();
    let (one, other) = (namespace.open_default(), namespace.open_default());
    let announced = [record_commits(&*one), record_commits(&*other)];
    // A server receives no announcement until it has subscribed, and then it resyncs. So append until one arrives.
    let probes = AtomicU64::new(0);
    wait_until("the other server is subscribed", || {
        let append = Append::new(message(probes.fetch_add(1, Ordering::Relaxed)), vec![user("probe")]);
        futures_util::FutureExt::now_or_never(one.append(append));
        !announced[1].lock().unwrap().is_empty()
    })
    .await;
    append(&*one, 1, &["a", "b"]).await.unwrap();
    for users in &announced {
        wait_until("both users are announced", || {
            let users = users.lock().unwrap();
            ["a", "b"].iter().all(|user| users.iter().any(|one| one == user))
        })
        .await;
    }
    assert_eq!(read(&*other, "a", 0), [(1, 1)]);
}

// covers: G3
#[tokio::test]
async fn dropped_appends_do_not_mix_up_replies() {
    let namespace = RedisNamespace::default();
    let store = namespace.open_default();
    let users: Vec<String> = (0..20).map(|n| format!("user-{n}")).collect();
    for round in 0..50_u64 {
        let mut pending = Vec::new();
        for (at, id) in users.iter().enumerate() {
            let mut one = store.append(Append::new(message(at as u64), vec![user(id)]));
            let polled = one.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            // Every second append is dropped after it was sent. On a busy machine its result may already be there.
            if polled.is_pending() && (at as u64 + round).is_multiple_of(2) {
                pending.push(one);
            }
            if at % 5 == 0 {
                tokio::task::yield_now().await;
            }
        }
        for one in pending {
            assert_eq!(one.await.unwrap().seqs.len(), 1);
        }
        for (at, id) in users.iter().enumerate().skip(round as usize % 7).step_by(7) {
            let entries = read(&*store, id, 0);
            assert!(entries.iter().all(|(_, n)| *n == at as u64), "expected only messages to {id}, not {entries:?}");
        }
    }
    for (at, id) in users.iter().enumerate() {
        wait_until("the dropped appends are stored", || read(&*store, id, 0).len() == 50).await;
        let expected: Vec<_> = (1..=50).map(|seq| (seq, at as u64)).collect();
        assert_eq!(read(&*store, id, 0), expected);
    }
}

// covers: G4
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn append_without_redis_is_rejected_and_accepted_after_its_return() {
    let redis = Redis::start();
    let namespace = RedisNamespace::on(redis.clone());
    let store = namespace.open_default();
    append(&*store, 1, &["a"]).await.unwrap();
    redis.kill();
    let rejected = append(&*store, 2, &["a"]).await;
    assert!(matches!(rejected, Err(StoreError::Unreachable(_))), "{rejected:?}");
    assert!(store.unreachable().is_some());
    assert!(matches!(store.state(&user("a")), Err(StoreError::Unreachable(_))));
    // An acknowledgement during the outage is stored after it.
    acknowledge(&*store, "a", 1, 1);
    redis.restart();
    wait_until("the connection is restored", || store.state(&user("a")).is_ok()).await;
    assert_eq!(append(&*store, 3, &["a"]).await.unwrap(), [2], "a rejected append has no effect");
    assert_eq!(read(&*store, "a", 0), [(2, 3)], "an accepted entry is stored, and an acknowledged one is trimmed");
    assert!(store.unreachable().is_none());
    store.close().await.unwrap();
}

#[tokio::test]
async fn append_with_repeated_id_at_several_servers_is_stored_once() {
    let namespace = RedisNamespace::default();
    let servers = [namespace.open_default(), namespace.open_default()];
    let with_id = || Append {
        idempotency: Some(Idempotency {
            id: DispatchId::new("order 7").unwrap(),
            online: vec![false; 2],
            rejected: Vec::new(),
        }),
        ..Append::new(message(1), vec![user("a"), user("b")])
    };
    let appends = (0..20).map(|n| servers[n % 2].append(with_id()));
    let results = futures_util::future::join_all(appends).await;
    let firsts = results.iter().filter(|result| !result.as_ref().unwrap().duplicate).count();
    assert_eq!(firsts, 1, "expected one first result");
    for id in ["a", "b"] {
        assert_eq!(read(&*servers[0], id, 0), [(1, 1)]);
    }
}

#[tokio::test]
async fn entries_held_by_a_session_survive_acknowledgements_at_another_server() {
    let namespace = RedisNamespace::default();
    let (one, other) = (namespace.open_default(), namespace.open_default());
    for n in 1..=5 {
        append(&*one, n, &["a"]).await.unwrap();
    }
    one.attach(&user("a"), None).unwrap();
    one.report(&user("a"), SessionReport { hold: Some(2), ..SessionReport::default() });
    assert_eq!(read(&*one, "a", 0).len(), 5);
    acknowledge(&*other, "a", 1, 5);
    assert_eq!(read(&*other, "a", 0), [(3, 3), (4, 4), (5, 5)]);
    one.close().await.unwrap();
    drop(one);
    // Servers renew the list of live servers every 2 s.
    wait_until("the hold of the closed server ends", || read(&*other, "a", 0).is_empty()).await;
}

#[tokio::test]
async fn device_online_at_another_server_is_not_removed_for_a_new_one() {
    let namespace = RedisNamespace::default();
    let limits = Limits { devices: 1, ..Limits::default() };
    let (one, other) = (namespace.open(limits, Arc::default()), namespace.open(limits, Arc::default()));
    let [phone, laptop] = ["phone", "laptop"].map(|name| DeviceId::new(name).unwrap());
    one.attach(&user("a"), Some(&phone)).unwrap();
    let rejected = other.attach(&user("a"), Some(&laptop));
    assert!(matches!(rejected, Err(StoreError::Devices(1))), "{rejected:?}");
    one.detach(&user("a"), Some(&phone));
    wait_until("the phone is offline", || other.attach(&user("a"), Some(&laptop)).is_ok()).await;
    let devices = one.state(&user("a")).unwrap().devices;
    assert_eq!(devices.iter().map(|one| one.device.as_str()).collect::<Vec<_>>(), ["laptop"]);
}

/// Timeout of replies from Redis. The 500 ms of the crate `redis` are too short on a busy machine.
const REPLY_TIMEOUT: Duration = Duration::from_secs(30);

fn cluster_client(cluster: &RedisCluster) -> redis::cluster::ClusterClient {
    let client = redis::cluster::ClusterClient::builder(cluster.urls());
    client.connection_timeout(REPLY_TIMEOUT).response_timeout(REPLY_TIMEOUT).build().unwrap()
}

/// Runs a command on Redis; returns its reply, empty for nil.
pub async fn run_command(namespace: &RedisNamespace, words: &[&str]) -> String {
    let mut command = redis::cmd(words[0]);
    words[1..].iter().for_each(|word| _ = command.arg(*word));
    let reply: Option<String> = match &namespace.target {
        Target::Single(redis) => {
            let client = redis::Client::open(redis.url()).unwrap();
            let config = redis::AsyncConnectionConfig::new()
                .set_connection_timeout(Some(REPLY_TIMEOUT))
                .set_response_timeout(Some(REPLY_TIMEOUT));
            let mut connection = client.get_multiplexed_async_connection_with_config(&config).await.unwrap();
            command.query_async(&mut connection).await.unwrap()
        }
        Target::Cluster(cluster) => {
            command.query_async(&mut cluster_client(cluster).get_async_connection().await.unwrap()).await.unwrap()
        }
    };
    reply.unwrap_or_default()
}

#[tokio::test]
async fn failed_writes_of_the_indexes_in_a_cluster_are_repeated_with_the_next_append() {
    let namespace = RedisNamespace::in_cluster();
    let store = namespace.open_default();
    let indexes = ["users", "expiry"].map(|index| format!("mesa:{index}_{}", namespace.name));
    let hour = Duration::from_secs(3600);
    let with_ttl = |n| Append { ttl: Some(hour), ..Append::new(message(n), vec![user("a")]) };
    for (n, index) in (1..).zip(&indexes) {
        // The script on the log succeeds; the write of the index after it fails.
        run_command(&namespace, &["SET", index, "no sorted set"]).await;
        assert!(store.append(with_ttl(n)).await.is_err());
        run_command(&namespace, &["DEL", index]).await;
    }
    assert_eq!(run_command(&namespace, &["ZSCORE", &indexes[1], "a"]).await, "");
    store.append(with_ttl(3)).await.unwrap();
    let known: Vec<_> =
        store.users(None, 10).unwrap().into_iter().map(|(id, state)| (id, state.unwrap().pending)).collect();
    assert_eq!(known, [(user("a"), 3)]);
    let due = run_command(&namespace, &["ZSCORE", &indexes[1], "a"]).await;
    assert!(!due.is_empty(), "expected the user in the expiry index");
    // An entry that is in the index is not written again.
    store.append(with_ttl(4)).await.unwrap();
    assert_eq!(run_command(&namespace, &["ZSCORE", &indexes[1], "a"]).await, due);
}

// covers: G6
#[tokio::test]
async fn unreadable_state_of_one_user_rejects_only_that_user() {
    let namespace = RedisNamespace::on(Redis::start());
    let store = namespace.open_default();
    run_command(&namespace, &["SET", &format!("mesa:state:{{bad}}_{}", namespace.name), "junk"]).await;
    let appends = (0..20).map(|n| {
        let id = if n == 7 { "bad".to_owned() } else { format!("user-{n}") };
        store.append(Append::new(message(n), vec![user(&id)]))
    });
    for (n, result) in futures_util::future::join_all(appends).await.into_iter().enumerate() {
        let expected = if n == 7 { Err(RejectionReason::Damaged) } else { Ok(1) };
        assert_eq!(result.unwrap().seqs, [expected], "{n}");
    }
    assert!(store.state(&user("bad")).is_err());
    assert_eq!(store.state(&user("user-1")).unwrap().pending, 1);
}

// covers: G6
#[tokio::test]
async fn damaged_log_of_one_user_rejects_only_that_user() {
    let namespace = RedisNamespace::on(Redis::start());
    let store = namespace.open_default();
    let log = |name: &str| format!("mesa:log:{{{name}}}_{}", namespace.name);
    for (name, damage) in [("type", vec!["SET", "x"]), ("form", vec!["XADD", "5-0", "field", "value"])] {
        append(&*store, 1, &[name]).await.unwrap();
        let log = log(name);
        if damage[0] == "SET" {
            run_command(&namespace, &["SET", &log, damage[1]]).await;
        } else {
            run_command(&namespace, &["XADD", &log, damage[1], damage[2], damage[3]]).await;
        }
    }
    let users = ["alice", "type", "bob", "type", "form", "carol"].map(user).to_vec();
    let result = store.append(Append::new(message(2), users)).await.unwrap();
    let damaged = Err(RejectionReason::Damaged);
    assert_eq!(result.seqs, [Ok(1), damaged, Ok(1), damaged, damaged, Ok(1)]);
    for name in ["alice", "bob", "carol"] {
        assert_eq!(read(&*store, name, 0), [(1, 2)], "{name}");
    }
    // Damage to a user's deduplication data affects only that user too.
    let repeated = DispatchId::new("again").unwrap();
    let with_id = |users: &[&str]| Append {
        per_recipient_id: Some(repeated.clone()),
        ..Append::new(message(3), users.iter().map(|name| user(name)).collect())
    };
    store.append(with_id(&["alice"])).await.unwrap();
    run_command(&namespace, &["SET", &format!("mesa:delivered_{}:{{alice}}:again", namespace.name), "junk"]).await;
    assert_eq!(store.append(with_id(&["alice", "bob"])).await.unwrap().seqs, [damaged, Ok(2)]);
    // The log accepts entries again once the damaged key is deleted.
    run_command(&namespace, &["DEL", &log("type")]).await;
    assert!(append(&*store, 4, &["type"]).await.unwrap()[0] > 1);
}

#[tokio::test]
async fn append_with_per_recipient_id_at_several_servers_is_stored_once_per_user() {
    let namespace = RedisNamespace::default();
    let servers = [namespace.open_default(), namespace.open_default()];
    let append = |ids: &[&str]| Append {
        per_recipient_id: Some(DispatchId::new("mark-1-7").unwrap()),
        ..Append::new(message(1), ids.iter().map(|id| user(id)).collect())
    };
    servers[0].append(append(&["a", "b"])).await.unwrap();
    servers[1].append(append(&["b", "c"])).await.unwrap();
    for id in ["a", "b", "c"] {
        assert_eq!(read(&*servers[0], id, 0), [(1, 1)], "{id}");
    }
}

/// Runs Lua on the state of a user's log, which the script has as `S`; returns its result.
fn eval_on_state(namespace: &RedisNamespace, id: &str, lua: &str) -> i64 {
    let Target::Single(redis) = &namespace.target else { panic!("expected a single Redis") };
    let mut connection = redis::Client::open(redis.url()).unwrap().get_connection().unwrap();
    let script = format!("local S = cmsgpack.unpack(redis.call('GET', KEYS[1])) {lua}");
    let key = format!("mesa:state:{{{id}}}_{}", namespace.name);
    redis::Script::new(&script).key(key).invoke(&mut connection).unwrap()
}

const COUNT_REPORTS: &str = "local n = 0 for _ in pairs(S.reports) do n = n + 1 end return n";

#[tokio::test]
async fn server_taken_for_dead_reports_its_sessions_again() {
    let namespace = RedisNamespace::on(Redis::start());
    let store = namespace.open_default();
    store.attach(&user("a"), None).unwrap();
    assert_eq!(eval_on_state(&namespace, "a", COUNT_REPORTS), 1);
    // Does what another server does if this one is not in its list of live servers.
    eval_on_state(&namespace, "a", "S.reports = {} redis.call('SET', KEYS[1], cmsgpack.pack(S)) return 0");
    let live_servers = format!("mesa:{{cluster}}:servers_{}", namespace.name);
    let server =
        run_command(&namespace, &["EVAL", "return redis.call('ZRANGE', KEYS[1], 0, 0)[1]", "1", &live_servers]).await;
    run_command(&namespace, &["EVAL", "redis.call('ZADD', KEYS[1], 1, ARGV[1])", "1", &live_servers, &server]).await;
    wait_until("the session is reported again", || eval_on_state(&namespace, "a", COUNT_REPORTS) == 1).await;
}

#[tokio::test]
async fn session_report_that_is_not_repeated_after_a_failover_holds_nothing() {
    let namespace = RedisNamespace::on(Redis::start());
    let clock = Arc::new(AtomicU64::new(0));
    let store = namespace.open(Limits { messages: 3, ..Limits::default() }, clock.clone());
    append(&*store, 1, &["a"]).await.unwrap();
    // Report of a session that has ended. The Redis that takes over below receives no later one.
    let held = "S.reports['1-gone'] = {changes = 1, hold = 0, devices = {''}, log_name = S.name} redis.call('SET', KEYS[1], cmsgpack.pack(S)) return 0";
    let live_servers = format!("mesa:{{cluster}}:servers_{}", namespace.name);
    run_command(&namespace, &["EVAL", "redis.call('ZADD', KEYS[1], 9e15, '1-gone')", "1", &live_servers]).await;
    // Its report does not count until its server is in the list of live servers, which is renewed every 2 s.
    wait_until("its server counts as live", || {
        eval_on_state(&namespace, "a", held);
        acknowledge(&*store, "a", 1, 1);
        store.state(&user("a")).unwrap();
        eval_on_state(&namespace, "a", "return S.reports['1-gone'] and 1 or 0") > 0
    })
    .await;
    namespace.change_epoch();
    let mut n = 1;
    let mut append_up_to = async |max: u64| {
        let (mut accepted, end) = (0, Instant::now() + WAIT_TIMEOUT);
        while accepted < max && Instant::now() < end {
            n += 1;
            let result = store.append(Append::new(message(n), vec![user("a")])).await.unwrap();
            if result.seqs[0].is_err() {
                break;
            }
            accepted += 1;
            acknowledge(&*store, "a", 1, 1 << 50);
        }
        accepted
    };
    assert!(append_up_to(10).await < 10, "the session holds its entries");
    clock.fetch_add(16_000, Ordering::Relaxed);
    assert_eq!(append_up_to(10).await, 10);
}

#[tokio::test]
async fn acknowledgements_of_an_unreadable_log_do_not_block_others() {
    let namespace = RedisNamespace::on(Redis::start());
    let store = namespace.open_default();
    for id in ["bad", "good"] {
        append(&*store, 1, &[id]).await.unwrap();
    }
    run_command(&namespace, &["SET", &format!("mesa:state:{{bad}}_{}", namespace.name), "junk"]).await;
    acknowledge(&*store, "bad", 1, 1);
    acknowledge(&*store, "good", 1, 1);
    let result = store.append(Append::new(message(2), vec![user("bad"), user("good")])).await.unwrap();
    assert_eq!(result.seqs, [Err(RejectionReason::Damaged), Ok(2)]);
    assert_eq!(read(&*store, "good", 0), [(2, 2)]);
}
