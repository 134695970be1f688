//! What only a store over Redis has to hold: replies that are not mixed up, a line that is lost, several servers.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Waker},
    time::{Duration, Instant},
};

use mesa::{
    cluster::redis::{Link, LinkOptions},
    config,
    message::{DeviceId, DispatchId},
    store::{
        Append, Limits, Note, Once, Reason, Store, StoreError,
        redis::{RedisOptions, open},
    },
};

use crate::{
    redis_modes::Cluster,
    redis_server::Redis,
    support::{append, message, read, receive, until, user},
};

/// A namespace of a Redis, or a Redis Cluster, that the tests share.
pub struct Somewhere {
    redis: Where,
    namespace: String,
}

enum Where {
    One(Arc<Redis>),
    Spread(Arc<Cluster>),
}

static NAMESPACES: AtomicU64 = AtomicU64::new(0);

impl Default for Somewhere {
    fn default() -> Self {
        Self::on(Redis::shared())
    }
}

impl Somewhere {
    pub fn on(redis: Arc<Redis>) -> Self {
        Self::at(Where::One(redis))
    }

    /// In a Cluster.
    pub fn spread() -> Self {
        Self::at(Where::Spread(Cluster::shared()))
    }

    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Another one at the same.
    pub fn another(&self) -> Self {
        match &self.redis {
            Where::One(redis) => Self::on(redis.clone()),
            Where::Spread(cluster) => Self::at(Where::Spread(cluster.clone())),
        }
    }

    fn at(redis: Where) -> Self {
        Self { redis, namespace: format!("n{}", NAMESPACES.fetch_add(1, Ordering::Relaxed)) }
    }

    /// One more server, as it were.
    pub fn open(&self, limits: Limits, ahead_ms: Arc<AtomicU64>) -> Arc<dyn Store> {
        let namespace = Some(self.namespace.clone());
        let redis = match &self.redis {
            Where::One(redis) => config::Redis::One(redis.url()),
            Where::Spread(cluster) => config::Redis::Cluster(cluster.urls()),
        };
        // A start gives up after some seconds without an answer. An operator starts it again, and so does this.
        let (end, options) = (Instant::now() + REPLY_TIMEOUT, LinkOptions { ahead_ms, reply_timeout: REPLY_TIMEOUT });
        let link = loop {
            match Link::open(&redis, namespace.as_deref(), options.clone()) {
                Err(error) => assert!(Instant::now() < end, "{error}"),
                Ok(link) => break link,
            }
        };
        open(link, RedisOptions { namespace, limits, sweep_pause: Duration::ZERO, ..RedisOptions::default() })
    }

    pub fn server(&self) -> Arc<dyn Store> {
        self.open(Limits::default(), Arc::default())
    }

    /// A line of the test's own.
    pub fn line(&self) -> Box<dyn redis::ConnectionLike + Send> {
        match &self.redis {
            Where::One(redis) => Box::new(redis::Client::open(redis.url()).unwrap().get_connection().unwrap()),
            Where::Spread(cluster) => Box::new(cluster_client(cluster).get_connection().unwrap()),
        }
    }

    pub fn is_spread(&self) -> bool {
        matches!(self.redis, Where::Spread(_))
    }

    /// What something of a user is called whose id has no brace in it.
    pub fn key(&self, what: &str, id: &str) -> String {
        format!("mesa:{what}:{{{id}}}_{}", self.namespace)
    }

    /// What stands for what this Redis was when a server last looked.
    pub fn era(&self) -> String {
        format!("mesa:{{here}}:era_{}", self.namespace)
    }
}

fn listen(store: &dyn Store) -> Arc<Mutex<Vec<String>>> {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let listening = heard.clone();
    store.on_commit(Arc::new(move |users| {
        listening.lock().unwrap().extend(users.iter().map(ToString::to_string));
    }));
    heard
}

#[tokio::test]
async fn every_server_hears_of_a_commit_of_any() {
    let place = Somewhere::default();
    let (one, other) = (place.server(), place.server());
    let heard = [listen(&*one), listen(&*other)];
    // Until it listens it hears nothing, and then hears that it may have missed something.
    let probes = AtomicU64::new(0);
    until("the other to listen", || {
        let append = Append::new(message(probes.fetch_add(1, Ordering::Relaxed)), vec![user("probe")]);
        futures_util::FutureExt::now_or_never(one.append(append));
        !heard[1].lock().unwrap().is_empty()
    })
    .await;
    append(&*one, 1, &["a", "b"]).await.unwrap();
    for each in &heard {
        until("both users to be woken", || {
            let heard = each.lock().unwrap();
            ["a", "b"].iter().all(|user| heard.iter().any(|one| one == user))
        })
        .await;
    }
    assert_eq!(read(&*other, "a", 0), [(1, 1)]);
}

#[tokio::test]
async fn a_reply_is_never_taken_for_another_however_many_give_up_waiting() {
    let place = Somewhere::default();
    let store = place.server();
    let users: Vec<String> = (0..20).map(|n| format!("user-{n}")).collect();
    for round in 0..50_u64 {
        let mut waiting = Vec::new();
        for (at, id) in users.iter().enumerate() {
            let mut one = store.append(Append::new(message(at as u64), vec![user(id)]));
            let answer = one.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            // Every second is given up when it is under way. On a busy machine the answer may be there already.
            if answer.is_pending() && (at as u64 + round).is_multiple_of(2) {
                waiting.push(one);
            }
            if at % 5 == 0 {
                tokio::task::yield_now().await;
            }
        }
        for one in waiting {
            assert_eq!(one.await.unwrap().seqs.len(), 1);
        }
        for (at, id) in users.iter().enumerate().skip(round as usize % 7).step_by(7) {
            let entries = read(&*store, id, 0);
            assert!(entries.iter().all(|(_, n)| *n == at as u64), "{id} has {entries:?}");
        }
    }
    for (at, id) in users.iter().enumerate() {
        until("what was given up to be done", || read(&*store, id, 0).len() == 50).await;
        let expected: Vec<_> = (1..=50).map(|seq| (seq, at as u64)).collect();
        assert_eq!(read(&*store, id, 0), expected);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_redis_appends_fail_aloud_and_when_it_is_back_all_goes_on() {
    let redis = Redis::start();
    let place = Somewhere::on(redis.clone());
    let store = place.server();
    append(&*store, 1, &["a"]).await.unwrap();
    redis.kill();
    let refused = append(&*store, 2, &["a"]).await;
    assert!(matches!(refused, Err(StoreError::Unreachable(_))), "{refused:?}");
    assert!(store.unreachable().is_some());
    assert!(matches!(store.state(&user("a")), Err(StoreError::Unreachable(_))));
    // A receipt that comes meanwhile is written down later.
    receive(&*store, "a", 1, 1);
    redis.revive();
    until("the line to be there again", || store.state(&user("a")).is_ok()).await;
    assert_eq!(append(&*store, 3, &["a"]).await.unwrap(), [2], "what was refused was not done");
    assert_eq!(read(&*store, "a", 0), [(2, 3)], "what was answered is there, and what was received is not");
    assert!(store.unreachable().is_none());
    store.close().await.unwrap();
}

#[tokio::test]
async fn an_append_with_an_id_is_done_once_by_whichever_server_it_is_asked_for() {
    let place = Somewhere::default();
    let servers = [place.server(), place.server()];
    let once = || Append {
        once: Some(Once { id: DispatchId::new("order 7").unwrap(), online: vec![false; 2], refused: Vec::new() }),
        ..Append::new(message(1), vec![user("a"), user("b")])
    };
    let asked = (0..20).map(|n| servers[n % 2].append(once()));
    let answers = futures_util::future::join_all(asked).await;
    let firsts = answers.iter().filter(|answer| !answer.as_ref().unwrap().duplicate).count();
    assert_eq!(firsts, 1, "one is the first");
    for id in ["a", "b"] {
        assert_eq!(read(&*servers[0], id, 0), [(1, 1)]);
    }
}

#[tokio::test]
async fn what_a_session_at_one_server_holds_no_receipt_at_another_takes_away() {
    let place = Somewhere::default();
    let (one, other) = (place.server(), place.server());
    for n in 1..=5 {
        append(&*one, n, &["a"]).await.unwrap();
    }
    one.attach(&user("a"), None).unwrap();
    one.note(&user("a"), Note { hold: Some(2), ..Note::default() });
    assert_eq!(read(&*one, "a", 0).len(), 5);
    receive(&*other, "a", 1, 5);
    assert_eq!(read(&*other, "a", 0), [(3, 3), (4, 4), (5, 5)]);
    one.close().await.unwrap();
    drop(one);
    // The list of servers is renewed every two seconds.
    until("the hold to end with its server", || read(&*other, "a", 0).is_empty()).await;
}

#[tokio::test]
async fn a_device_that_is_at_another_server_does_not_make_room() {
    let place = Somewhere::default();
    let limits = Limits { devices: 1, ..Limits::default() };
    let (one, other) = (place.open(limits, Arc::default()), place.open(limits, Arc::default()));
    let [phone, laptop] = ["phone", "laptop"].map(|name| DeviceId::new(name).unwrap());
    one.attach(&user("a"), Some(&phone)).unwrap();
    let refused = other.attach(&user("a"), Some(&laptop));
    assert!(matches!(refused, Err(StoreError::Devices(1))), "{refused:?}");
    one.detach(&user("a"), Some(&phone));
    until("the phone to be away", || other.attach(&user("a"), Some(&laptop)).is_ok()).await;
    let devices = one.state(&user("a")).unwrap().devices;
    assert_eq!(devices.iter().map(|one| one.device.as_str()).collect::<Vec<_>>(), ["laptop"]);
}

/// How long a test waits for Redis. The 500 ms that the crate has by default are too few on a busy machine.
const REPLY_TIMEOUT: Duration = Duration::from_secs(30);

fn cluster_client(cluster: &Cluster) -> redis::cluster::ClusterClient {
    let client = redis::cluster::ClusterClient::builder(cluster.urls());
    client.connection_timeout(REPLY_TIMEOUT).response_timeout(REPLY_TIMEOUT).build().unwrap()
}

/// Lets something be done with the Redis itself; gives what it answers.
pub async fn ask(place: &Somewhere, words: &[&str]) -> String {
    let mut command = redis::cmd(words[0]);
    words[1..].iter().for_each(|word| _ = command.arg(*word));
    let answer: Option<String> = match &place.redis {
        Where::One(redis) => {
            let client = redis::Client::open(redis.url()).unwrap();
            let config = redis::AsyncConnectionConfig::new()
                .set_connection_timeout(Some(REPLY_TIMEOUT))
                .set_response_timeout(Some(REPLY_TIMEOUT));
            let mut line = client.get_multiplexed_async_connection_with_config(&config).await.unwrap();
            command.query_async(&mut line).await.unwrap()
        }
        Where::Spread(cluster) => {
            command.query_async(&mut cluster_client(cluster).get_async_connection().await.unwrap()).await.unwrap()
        }
    };
    answer.unwrap_or_default()
}

#[tokio::test]
async fn in_a_cluster_who_could_not_be_written_down_is_with_the_next_step_and_what_is_due_too() {
    let place = Somewhere::spread();
    let store = place.server();
    let lists = ["known", "due"].map(|list| format!("mesa:{list}_{}", place.namespace));
    let hour = Duration::from_secs(3600);
    let mortal = |n| Append { ttl: Some(hour), ..Append::new(message(n), vec![user("a")]) };
    for (n, list) in (1..).zip(&lists) {
        // The step is done by then; what would come behind it is not.
        ask(&place, &["SET", list, "no list"]).await;
        assert!(store.append(mortal(n)).await.is_err());
        ask(&place, &["DEL", list]).await;
    }
    assert_eq!(ask(&place, &["ZSCORE", &lists[1], "a"]).await, "");
    store.append(mortal(3)).await.unwrap();
    let known: Vec<_> =
        store.users(None, 10).unwrap().into_iter().map(|(id, state)| (id, state.unwrap().pending)).collect();
    assert_eq!(known, [(user("a"), 3)]);
    let due = ask(&place, &["ZSCORE", &lists[1], "a"]).await;
    assert!(!due.is_empty(), "it is due");
    // When it is written down it is not written again.
    store.append(mortal(4)).await.unwrap();
    assert_eq!(ask(&place, &["ZSCORE", &lists[1], "a"]).await, due);
}

#[tokio::test]
async fn a_log_that_cannot_be_read_is_its_users_alone() {
    let place = Somewhere::on(Redis::start());
    let store = place.server();
    ask(&place, &["SET", &format!("mesa:state:{{bad}}_{}", place.namespace), "junk"]).await;
    let appends = (0..20).map(|n| {
        let whose = if n == 7 { "bad".to_owned() } else { format!("user-{n}") };
        store.append(Append::new(message(n), vec![user(&whose)]))
    });
    for (n, made) in futures_util::future::join_all(appends).await.into_iter().enumerate() {
        let expected = if n == 7 { Err(Reason::Damaged) } else { Ok(1) };
        assert_eq!(made.unwrap().seqs, [expected], "{n}");
    }
    assert!(store.state(&user("bad")).is_err());
    assert_eq!(store.state(&user("user-1")).unwrap().pending, 1);
}

#[tokio::test]
async fn damaged_log_of_one_user_rejects_that_user_alone() {
    let place = Somewhere::on(Redis::start());
    let store = place.server();
    let log = |name: &str| format!("mesa:log:{{{name}}}_{}", place.namespace);
    for (name, damage) in [("type", vec!["SET", "x"]), ("form", vec!["XADD", "5-0", "field", "value"])] {
        append(&*store, 1, &[name]).await.unwrap();
        let log = log(name);
        if damage[0] == "SET" {
            ask(&place, &["SET", &log, damage[1]]).await;
        } else {
            ask(&place, &["XADD", &log, damage[1], damage[2], damage[3]]).await;
        }
    }
    let users = ["alice", "type", "bob", "type", "form", "carol"].map(user).to_vec();
    let made = store.append(Append::new(message(2), users)).await.unwrap();
    let damaged = Err(Reason::Damaged);
    assert_eq!(made.seqs, [Ok(1), damaged, Ok(1), damaged, damaged, Ok(1)]);
    for name in ["alice", "bob", "carol"] {
        assert_eq!(read(&*store, name, 0), [(1, 2)], "{name}");
    }
    // What is wrong with the data of one id is that user's alone too.
    let copied = DispatchId::new("again").unwrap();
    let once = |users: &[&str]| Append {
        each_once: Some(copied.clone()),
        ..Append::new(message(3), users.iter().map(|name| user(name)).collect())
    };
    store.append(once(&["alice"])).await.unwrap();
    ask(&place, &["SET", &format!("mesa:copied_{}:{{alice}}:again", place.namespace), "junk"]).await;
    assert_eq!(store.append(once(&["alice", "bob"])).await.unwrap().seqs, [damaged, Ok(2)]);
    // It begins anew as soon as the damage is gone.
    ask(&place, &["DEL", &log("type")]).await;
    assert!(append(&*store, 4, &["type"]).await.unwrap()[0] > 1);
}

#[tokio::test]
async fn a_copy_that_several_servers_make_is_made_once_for_each_user() {
    let place = Somewhere::default();
    let servers = [place.server(), place.server()];
    let append = |whose: &[&str]| Append {
        each_once: Some(DispatchId::new("mark-1-7").unwrap()),
        ..Append::new(message(1), whose.iter().map(|id| user(id)).collect())
    };
    servers[0].append(append(&["a", "b"])).await.unwrap();
    servers[1].append(append(&["b", "c"])).await.unwrap();
    for id in ["a", "b", "c"] {
        assert_eq!(read(&*servers[0], id, 0), [(1, 1)], "{id}");
    }
}

/// Runs Lua on the state of a user's log, as `S`.
fn look_into(place: &Somewhere, id: &str, lua: &str) -> i64 {
    let Where::One(redis) = &place.redis else { panic!("one Redis") };
    let mut line = redis::Client::open(redis.url()).unwrap().get_connection().unwrap();
    let script = format!("local S = cmsgpack.unpack(redis.call('GET', KEYS[1])) {lua}");
    let key = format!("mesa:state:{{{id}}}_{}", place.namespace);
    redis::Script::new(&script).key(key).invoke(&mut line).unwrap()
}

const COUNT_VIEWS: &str = "local n = 0 for _ in pairs(S.views) do n = n + 1 end return n";

#[tokio::test]
async fn a_server_that_was_taken_for_dead_says_again_who_is_here() {
    let place = Somewhere::on(Redis::start());
    let store = place.server();
    store.attach(&user("a"), None).unwrap();
    assert_eq!(look_into(&place, "a", COUNT_VIEWS), 1);
    // What another does whose list of servers does not have this one.
    look_into(&place, "a", "S.views = {} redis.call('SET', KEYS[1], cmsgpack.pack(S)) return 0");
    let nodes = format!("mesa:{{here}}:nodes_{}", place.namespace);
    let mine = ask(&place, &["EVAL", "return redis.call('ZRANGE', KEYS[1], 0, 0)[1]", "1", &nodes]).await;
    ask(&place, &["EVAL", "redis.call('ZADD', KEYS[1], 1, ARGV[1])", "1", &nodes, &mine]).await;
    until("it to be said again", || look_into(&place, "a", COUNT_VIEWS) == 1).await;
}

#[tokio::test]
async fn what_a_server_does_not_say_again_after_a_failover_holds_nothing_any_more() {
    let place = Somewhere::on(Redis::start());
    let clock = Arc::new(AtomicU64::new(0));
    let store = place.open(Limits { messages: 3, ..Limits::default() }, clock.clone());
    append(&*store, 1, &["a"]).await.unwrap();
    // A session that has left, which the Redis that took over has never been told.
    let held =
        "S.views['1-gone'] = {n = 1, h = 0, d = {''}, e = S.era} redis.call('SET', KEYS[1], cmsgpack.pack(S)) return 0";
    let alive = format!("mesa:{{here}}:nodes_{}", place.namespace);
    ask(&place, &["EVAL", "redis.call('ZADD', KEYS[1], 9e15, '1-gone')", "1", &alive]).await;
    // Until it is on the list of those that live, which is renewed every two seconds, its word counts for nothing.
    until("it to be taken for one that lives", || {
        look_into(&place, "a", held);
        receive(&*store, "a", 1, 1);
        store.state(&user("a")).unwrap();
        look_into(&place, "a", "return S.views['1-gone'] and 1 or 0") > 0
    })
    .await;
    let era = format!("mesa:{{here}}:era_{}", place.namespace);
    ask(&place, &["EVAL", "redis.call('HSET', KEYS[1], 'history', 'another', 'kept', '0')", "1", &era]).await;
    let mut n = 1;
    let mut fills = async |most: u64| {
        let (mut taken, until_then) = (0, std::time::Instant::now() + Duration::from_secs(120));
        while taken < most && std::time::Instant::now() < until_then {
            n += 1;
            let made = store.append(Append::new(message(n), vec![user("a")])).await.unwrap();
            if made.seqs[0].is_err() {
                break;
            }
            taken += 1;
            receive(&*store, "a", 1, 1 << 50);
        }
        taken
    };
    assert!(fills(10).await < 10, "it is held");
    clock.fetch_add(16_000, Ordering::Relaxed);
    assert_eq!(fills(10).await, 10);
}

#[tokio::test]
async fn a_log_that_a_failover_has_forgotten_whole_gives_out_no_number_twice() {
    let place = Somewhere::on(Redis::start());
    let store = place.server();
    for n in 1..=5 {
        append(&*store, n, &["a"]).await.unwrap();
    }
    for key in ["state", "log"] {
        ask(&place, &["DEL", &format!("mesa:{key}:{{a}}_{}", place.namespace)]).await;
    }
    let era = format!("mesa:{{here}}:era_{}", place.namespace);
    ask(&place, &["EVAL", "redis.call('HSET', KEYS[1], 'history', 'another', 'kept', '0')", "1", &era]).await;
    let seqs = append(&*store, 6, &["a"]).await.unwrap();
    assert!(seqs[0] > 5, "{seqs:?}");
    receive(&*store, "a", 1, 5);
    assert_eq!(read(&*store, "a", 5), [(seqs[0], 6)], "what was received of the old ones is none of the new");
}

#[tokio::test]
async fn nor_does_it_by_a_server_that_has_not_looked_yet_what_has_taken_over() {
    let place = Somewhere::on(Redis::start());
    let [one, other] = [place.server(), place.server()];
    for n in 1..=5 {
        append(&*one, n, &["a"]).await.unwrap();
    }
    for key in ["state", "log"] {
        ask(&place, &["DEL", &place.key(key, "a")]).await;
    }
    ask(&place, &["EVAL", "redis.call('HSET', KEYS[1], 'history', 'another', 'kept', '0')", "1", &place.era()]).await;
    // This one finds out, and writes it down; the other does so within two seconds.
    append(&*one, 6, &["b"]).await.unwrap();
    let seqs = append(&*other, 7, &["a"]).await.unwrap();
    assert!(seqs[0] > 5, "{seqs:?}");
}

#[tokio::test]
async fn what_a_second_failover_takes_away_of_the_first_is_given_out_no_number_twice_either() {
    let place = Somewhere::on(Redis::start());
    let store = place.server();
    append(&*store, 1, &["a"]).await.unwrap();
    let (state, log) = (place.key("state", "a"), place.key("log", "a"));
    let copies = [&state, &log].map(|key| format!("{key} kept"));
    ask(&place, &["COPY", &state, &copies[0]]).await;
    ask(&place, &["COPY", &log, &copies[1]]).await;
    let another = "redis.call('HSET', KEYS[1], 'history', 'another', 'kept', '0')";
    ask(&place, &["EVAL", another, "1", &place.era()]).await;
    let given = append(&*store, 2, &["a"]).await.unwrap();
    // What takes over now has nothing of what this log was given since the first failover.
    ask(&place, &["RENAME", &copies[0], &state]).await;
    ask(&place, &["RENAME", &copies[1], &log]).await;
    ask(&place, &["EVAL", another, "1", &place.era()]).await;
    let seqs = append(&*store, 3, &["a"]).await.unwrap();
    assert!(seqs[0] > given[0], "{seqs:?} behind {given:?}");
}

#[tokio::test]
async fn receipts_of_a_log_that_cannot_be_read_hold_up_no_others() {
    let place = Somewhere::on(Redis::start());
    let store = place.server();
    for id in ["bad", "good"] {
        append(&*store, 1, &[id]).await.unwrap();
    }
    ask(&place, &["SET", &format!("mesa:state:{{bad}}_{}", place.namespace), "junk"]).await;
    receive(&*store, "bad", 1, 1);
    receive(&*store, "good", 1, 1);
    let made = store.append(Append::new(message(2), vec![user("bad"), user("good")])).await.unwrap();
    assert_eq!(made.seqs, [Err(Reason::Damaged), Ok(2)]);
    assert_eq!(read(&*store, "good", 0), [(2, 2)]);
}
