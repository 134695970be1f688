//! Runs three servers under kills, cut connections and restarts of their Redis.
//!
//! Every accepted message reaches its recipient and no other user, in the order in which its backend sent it.
//!
//! A run takes 20 s, or `CLUSTER_SECONDS`. The long form: `CLUSTER_SECONDS=600 cargo test --features redis --test
//! cluster chaos -- --nocapture`.

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::{
    WAIT_TIMEOUT,
    proxy::{LinkState, Proxy},
    redis_server::Redis,
    support::{
        http::Http,
        seeded_rng::Random,
        server::{Home, Server},
        socket::{Event, Socket},
    },
};

const SERVERS: usize = 3;
const USERS: u64 = 24;
const BACKENDS: u64 = 4;

/// Maximum time after the last fault until every accepted message has been received.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(60);

/// Identifies one entry: recipient, backend, and number of the backend's message.
type Delivery = (String, u64, u64);

/// Records what backends dispatched and clients received.
#[derive(Default)]
struct Tracker {
    accepted: Mutex<HashSet<Delivery>>,
    /// Backend and number of each message that a user received, in order, with repeats.
    received: Mutex<HashMap<String, Vec<(u64, u64)>>>,
    /// Messages that reached a user other than their recipient.
    foreign: AtomicU64,
    rejected: AtomicU64,
    backends_done: AtomicBool,
    clients_stop: AtomicBool,
}

struct ChaosRun {
    redis: Arc<Redis>,
    proxies: Vec<Arc<Proxy>>,
    homes: Vec<Home>,
    servers: Mutex<Vec<Option<Server>>>,
    tracker: Tracker,
    random: Mutex<Random>,
}

fn user(n: u64) -> String {
    format!("user-{n}")
}

impl ChaosRun {
    /// Returns the address of a random server, or `None` while that server is down.
    fn random_server(&self, random: &mut Random) -> Option<SocketAddr> {
        let index = random.within(0..=SERVERS as u64 - 1) as usize;
        self.servers.lock()[index].as_ref().map(|server| server.address)
    }

    /// Dispatches numbered messages to random users until `end`. Runs on its own thread.
    fn run_backend(&self, name: u64, end: Instant) {
        let mut random = self.random.lock().split();
        let (mut n, mut connection): (u64, Option<Http>) = (0, None);
        while Instant::now() < end {
            if connection.is_none() {
                connection = self.random_server(&mut random).and_then(|address| Http::connect(address).ok());
            }
            let Some(http) = &mut connection else {
                std::thread::sleep(Duration::from_millis(20));
                continue;
            };
            n += 1;
            let to: HashSet<String> = (0..=random.within(0..=2)).map(|_| user(random.within(0..=USERS - 1))).collect();
            let to: Vec<String> = to.into_iter().collect();
            let data = json!({ "to": to, "backend": name, "n": n });
            match http.try_dispatch(&data, &to) {
                Ok(200) => self.tracker.accepted.lock().extend(to.into_iter().map(|user| (user, name, n))),
                Ok(_) => _ = self.tracker.rejected.fetch_add(1, Ordering::Relaxed),
                Err(_) => connection = None,
            }
            if random.within(0..=49) == 0 {
                connection = None;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Connects a user, receives, and reconnects to a random server after a random time.
    async fn run_client(self: Arc<Self>, id: u64) {
        let (mut random, name) = (self.random.lock().split(), user(id));
        while !self.tracker.clients_stop.load(Ordering::Relaxed) {
            let Some(address) = self.random_server(&mut random) else {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let connecting = tokio::time::timeout(Duration::from_secs(5), Socket::connect(address, &name)).await;
            let Ok(Ok(mut socket)) = connecting else {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            // After the backends have ended, the client stays connected until every message has been received.
            let stay = Duration::from_millis(200 + random.within(0..=2999));
            let connected = Instant::now();
            while !self.tracker.clients_stop.load(Ordering::Relaxed) {
                if connected.elapsed() > stay && !self.tracker.backends_done.load(Ordering::Relaxed) {
                    break;
                }
                match tokio::time::timeout(Duration::from_millis(100), socket.event()).await {
                    Err(_) => {}
                    Ok(Ok(Event::Message(message))) => self.record(&name, &message.d),
                    Ok(Ok(Event::AckRequest)) => _ = socket.acknowledge().await,
                    Ok(Ok(_)) => {}
                    Ok(Err(_)) => break,
                }
            }
            if random.within(0..=1) == 0 {
                socket.reset();
            }
        }
    }

    /// Records a received message, or counts it as foreign if `name` is not among its recipients.
    fn record(&self, name: &str, data: &Value) {
        if !data["to"].as_array().is_some_and(|to| to.iter().any(|user| user == name)) {
            self.tracker.foreign.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let message = (data["backend"].as_u64().expect("a backend"), data["n"].as_u64().expect("a number"));
        self.tracker.received.lock().entry(name.to_owned()).or_default().push(message);
    }

    /// Injects random faults until `end`. Returns the number of server kills, cuts, silences and Redis restarts.
    async fn inject_faults(self: Arc<Self>, end: Instant) -> [u64; 4] {
        let (mut random, mut counts) = (self.random.lock().split(), [0; 4]);
        while Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(300 + random.within(0..=1499))).await;
            let (server, pause) =
                (random.within(0..=SERVERS as u64 - 1) as usize, Duration::from_millis(100 + random.within(0..=3999)));
            let fault = random.within(0..=3) as usize;
            counts[fault] += 1;
            match fault {
                0 => {
                    let running = self.servers.lock()[server].take();
                    if let Some(running) = running {
                        running.process.kill();
                    }
                    tokio::time::sleep(pause / 4).await;
                    let run = self.clone();
                    let start = move || run.homes[server].start();
                    let restarted = tokio::task::spawn_blocking(start).await.expect("the server starts again");
                    self.servers.lock()[server] = Some(restarted);
                }
                1 => self.proxies[server].disturb(LinkState::Cut, pause).await,
                2 => self.proxies[server].disturb(LinkState::Silent, pause).await,
                _ => {
                    self.redis.kill();
                    tokio::time::sleep(pause / 4).await;
                    let redis = self.redis.clone();
                    tokio::task::spawn_blocking(move || redis.restart()).await.expect("Redis starts again");
                }
            }
        }
        counts
    }

    /// Returns the accepted messages that their recipients have not received.
    fn missing(&self) -> Vec<Delivery> {
        let received = self.tracker.received.lock();
        let received: HashMap<&String, HashSet<(u64, u64)>> =
            received.iter().map(|(user, messages)| (user, messages.iter().copied().collect())).collect();
        let accepted = self.tracker.accepted.lock();
        let missing = accepted.iter().filter(|(user, backend, n)| {
            !received.get(user).is_some_and(|received| received.contains(&(*backend, *n)))
        });
        missing.cloned().collect()
    }

    /// Returns the users that first received a message after a later one of the same backend.
    ///
    /// Only accepted messages count. A dispatch without a response may take effect after the backend's next one.
    fn out_of_order(&self) -> Vec<String> {
        let (received, accepted) = (self.tracker.received.lock(), self.tracker.accepted.lock());
        let in_order = |user: &String, messages: &[(u64, u64)]| {
            let (mut seen, mut last) = (HashSet::new(), HashMap::new());
            let firsts = messages.iter().filter(|message| seen.insert(**message));
            let mut firsts = firsts.filter(|(backend, n)| accepted.contains(&(user.clone(), *backend, *n)));
            firsts.all(|(backend, n)| last.insert(*backend, *n) < Some(*n))
        };
        received.iter().filter(|(user, messages)| !in_order(user, messages)).map(|(user, _)| user.clone()).collect()
    }
}

// covers: G2, G3
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_servers_under_faults_deliver_every_accepted_message_in_order_to_its_recipients_only() {
    let seconds =
        std::env::var("CLUSTER_SECONDS").ok().map_or(20, |text| text.parse().expect("CLUSTER_SECONDS is a number"));
    let random = Mutex::new(Random::from_env("cluster"));
    let redis = Redis::start();
    let (mut proxies, mut homes) = (Vec::new(), Vec::new());
    for _ in 0..SERVERS {
        let proxy = Proxy::start(redis.address()).await;
        homes.push(Home::with_settings(&format!("redis: 'redis://{}',", proxy.address)));
        proxies.push(proxy);
    }
    let servers = Mutex::new(homes.iter().map(|home| Some(home.start())).collect());
    let run = Arc::new(ChaosRun { redis, proxies, homes, servers, tracker: Tracker::default(), random });
    let end = Instant::now() + Duration::from_secs(seconds);
    let clients: Vec<_> = (0..USERS).map(|id| tokio::spawn(run.clone().run_client(id))).collect();
    let backends: Vec<_> = (0..BACKENDS)
        .map(|name| {
            let run = run.clone();
            std::thread::spawn(move || run.run_backend(name, end))
        })
        .collect();
    let [kills, cuts, silences, restarts] = run.clone().inject_faults(end).await;
    let join = || backends.into_iter().for_each(|backend| backend.join().expect("a backend does not panic"));
    let joined = tokio::time::timeout(WAIT_TIMEOUT * 2, tokio::task::spawn_blocking(join)).await;
    joined.expect("the backends end in time").expect("the backends do not panic");
    run.tracker.backends_done.store(true, Ordering::Relaxed);
    let drain_start = Instant::now();
    while !run.missing().is_empty() && drain_start.elapsed() < DRAIN_TIMEOUT {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    run.tracker.clients_stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.expect("a client does not panic");
    }
    let (missing, out_of_order) = (run.missing(), run.out_of_order());
    let accepted = run.tracker.accepted.lock().len();
    let received: usize = run.tracker.received.lock().values().map(Vec::len).sum();
    println!(
        "{seconds} s: {accepted} entries accepted, {received} messages received, {} dispatches rejected; {kills} server kills, \
         {cuts} cuts, {silences} silences, {restarts} Redis restarts; drained in {:.1} s; {} entries lost, {} foreign, \
         {} users out of order",
        run.tracker.rejected.load(Ordering::Relaxed),
        drain_start.elapsed().as_secs_f32(),
        missing.len(),
        run.tracker.foreign.load(Ordering::Relaxed),
        out_of_order.len()
    );
    assert!(accepted > 100, "more than 100 entries are accepted, not {accepted}: with fewer the run shows nothing");
    assert_eq!(missing, [], "every accepted entry is received\n{}", run.homes[0].log());
    assert_eq!(run.tracker.foreign.load(Ordering::Relaxed), 0, "no user receives a message of another");
    assert_eq!(out_of_order, [""; 0], "every user receives the messages of each backend in order");
}
