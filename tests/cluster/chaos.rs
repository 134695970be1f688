//! Three servers under kills, cut links and restarts of their Redis: whatever was answered arrives, at whom it was for and in
//! the order in which each backend said it.
//!
//! Twenty seconds of it, or as many as `CLUSTER_SECONDS` says: `CLUSTER_SECONDS=600 cargo test --features redis --test cluster
//! battery -- --nocapture` is the long form.

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
    PATIENCE,
    proxy::{Form, Proxy},
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

/// After the disturbances everything that waits has to arrive within this.
const DRAIN: Duration = Duration::from_secs(60);

/// One copy: for whom, by which backend, which of its messages.
type Copied = (String, u64, u64);

#[derive(Default)]
struct Ledger {
    answered: Mutex<HashSet<Copied>>,
    /// For each user what he got, in order, repeats among it.
    got: Mutex<HashMap<String, Vec<(u64, u64)>>>,
    foreign: AtomicU64,
    refused: AtomicU64,
    /// The backends have said all.
    said: AtomicBool,
    over: AtomicBool,
}

struct Theatre {
    redis: Arc<Redis>,
    proxies: Vec<Arc<Proxy>>,
    homes: Vec<Home>,
    servers: Mutex<Vec<Option<Server>>>,
    ledger: Ledger,
    random: Mutex<Random>,
}

fn user(n: u64) -> String {
    format!("user-{n}")
}

impl Theatre {
    /// A server that is there.
    fn somewhere(&self, random: &mut Random) -> Option<SocketAddr> {
        let at = random.within(0..=SERVERS as u64 - 1) as usize;
        self.servers.lock()[at].as_ref().map(|server| server.address)
    }

    /// Says numbered messages until it is told to stop. Runs on a thread of its own.
    fn backend(&self, name: u64, until: Instant) {
        let mut random = self.random.lock().split();
        let (mut n, mut connection): (u64, Option<Http>) = (0, None);
        while Instant::now() < until {
            if connection.is_none() {
                connection = self.somewhere(&mut random).and_then(|address| Http::connect(address).ok());
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
                Ok(200) => self.ledger.answered.lock().extend(to.into_iter().map(|user| (user, name, n))),
                Ok(_) => _ = self.ledger.refused.fetch_add(1, Ordering::Relaxed),
                Err(_) => connection = None,
            }
            if random.within(0..=49) == 0 {
                connection = None;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Comes, reads, goes, comes again elsewhere.
    async fn client(self: Arc<Self>, id: u64) {
        let (mut random, name) = (self.random.lock().split(), user(id));
        while !self.ledger.over.load(Ordering::Relaxed) {
            let Some(address) = self.somewhere(&mut random) else {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let connecting = tokio::time::timeout(Duration::from_secs(5), Socket::connect(address, &name)).await;
            let Ok(Ok(mut socket)) = connecting else {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            // While backends speak it goes again after a while; behind them it stays until all has come.
            let stays = Duration::from_millis(200 + random.within(0..=2999));
            let came = Instant::now();
            while !self.ledger.over.load(Ordering::Relaxed) {
                if came.elapsed() > stays && !self.ledger.said.load(Ordering::Relaxed) {
                    break;
                }
                match tokio::time::timeout(Duration::from_millis(100), socket.event()).await {
                    Err(_) => {}
                    Ok(Ok(Event::Message(message))) => self.take(&name, &message.d),
                    Ok(Ok(Event::Question)) => _ = socket.answer().await,
                    Ok(Ok(_)) => {}
                    Ok(Err(_)) => break,
                }
            }
            if random.within(0..=1) == 0 {
                socket.reset();
            }
        }
    }

    fn take(&self, name: &str, data: &Value) {
        if !data["to"].as_array().is_some_and(|to| to.iter().any(|one| one == name)) {
            self.ledger.foreign.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let one = (data["backend"].as_u64().expect("a backend"), data["n"].as_u64().expect("a number"));
        self.ledger.got.lock().entry(name.to_owned()).or_default().push(one);
    }

    /// Kills, cuts and restarts until then; how often each.
    async fn disturb(self: Arc<Self>, until: Instant) -> [u64; 4] {
        let (mut random, mut done) = (self.random.lock().split(), [0; 4]);
        while Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(300 + random.within(0..=1499))).await;
            let (at, pause) =
                (random.within(0..=SERVERS as u64 - 1) as usize, Duration::from_millis(100 + random.within(0..=3999)));
            let what = random.within(0..=3) as usize;
            done[what] += 1;
            match what {
                0 => {
                    let server = self.servers.lock()[at].take();
                    if let Some(server) = server {
                        server.process.kill();
                    }
                    tokio::time::sleep(pause / 4).await;
                    let starting = self.clone();
                    let start = move || starting.homes[at].start();
                    let server = tokio::task::spawn_blocking(start).await.expect("it starts again");
                    self.servers.lock()[at] = Some(server);
                }
                1 => self.proxies[at].disturb(Form::Cut, pause).await,
                2 => self.proxies[at].disturb(Form::Silent, pause).await,
                _ => {
                    self.redis.kill();
                    tokio::time::sleep(pause / 4).await;
                    let redis = self.redis.clone();
                    tokio::task::spawn_blocking(move || redis.revive()).await.expect("it starts again");
                }
            }
        }
        done
    }

    /// What was answered and has not come.
    fn missing(&self) -> Vec<Copied> {
        let got = self.ledger.got.lock();
        let came: HashMap<&String, HashSet<(u64, u64)>> =
            got.iter().map(|(user, all)| (user, all.iter().copied().collect())).collect();
        let answered = self.ledger.answered.lock();
        let missing = answered
            .iter()
            .filter(|(user, backend, n)| !came.get(user).is_some_and(|came| came.contains(&(*backend, *n))));
        missing.cloned().collect()
    }

    /// Users who got something of a backend for the first time behind something later of that backend. What was not answered
    /// may have been done later than what was said behind it.
    fn disordered(&self) -> Vec<String> {
        let (got, answered) = (self.ledger.got.lock(), self.ledger.answered.lock());
        let in_order = |user: &String, all: &[(u64, u64)]| {
            let (mut seen, mut last) = (HashSet::new(), HashMap::new());
            let firsts = all.iter().filter(|one| seen.insert(**one));
            let mut firsts = firsts.filter(|(backend, n)| answered.contains(&(user.clone(), *backend, *n)));
            firsts.all(|(backend, n)| last.insert(*backend, *n) < Some(*n))
        };
        got.iter().filter(|(user, all)| !in_order(user, all)).map(|(user, _)| user.clone()).collect()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn battery_of_three_servers_loses_nothing_that_was_answered_and_mixes_nobody_up() {
    let seconds =
        std::env::var("CLUSTER_SECONDS").ok().map_or(20, |text| text.parse().expect("CLUSTER_SECONDS is a number"));
    let random = Mutex::new(Random::announced("cluster"));
    let redis = Redis::start();
    let (mut proxies, mut homes) = (Vec::new(), Vec::new());
    for _ in 0..SERVERS {
        let proxy = Proxy::start(redis.address()).await;
        homes.push(Home::with(&format!("redis: 'redis://{}',", proxy.address)));
        proxies.push(proxy);
    }
    let servers = Mutex::new(homes.iter().map(|home| Some(home.start())).collect());
    let theatre = Arc::new(Theatre { redis, proxies, homes, servers, ledger: Ledger::default(), random });
    let until = Instant::now() + Duration::from_secs(seconds);
    let clients: Vec<_> = (0..USERS).map(|id| tokio::spawn(theatre.clone().client(id))).collect();
    let backends: Vec<_> = (0..BACKENDS)
        .map(|name| {
            let theatre = theatre.clone();
            std::thread::spawn(move || theatre.backend(name, until))
        })
        .collect();
    let [kills, cuts, silences, restarts] = theatre.clone().disturb(until).await;
    let waiting = tokio::task::spawn_blocking(|| backends.into_iter().for_each(|one| one.join().expect("a backend")));
    tokio::time::timeout(PATIENCE * 2, waiting).await.expect("backends end").expect("they end well");
    theatre.ledger.said.store(true, Ordering::Relaxed);
    let drained = Instant::now();
    while !theatre.missing().is_empty() && drained.elapsed() < DRAIN {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    theatre.ledger.over.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.expect("a client ends");
    }
    let (missing, disordered) = (theatre.missing(), theatre.disordered());
    let answered = theatre.ledger.answered.lock().len();
    let got: usize = theatre.ledger.got.lock().values().map(Vec::len).sum();
    println!(
        "{seconds} s: {answered} copies answered, {got} received, {} dispatches refused; {kills} kills, {cuts} cuts, \
         {silences} silences, {restarts} restarts of Redis; drained in {:.1} s; {} lost, {} foreign, {} in disorder",
        theatre.ledger.refused.load(Ordering::Relaxed),
        drained.elapsed().as_secs_f32(),
        missing.len(),
        theatre.ledger.foreign.load(Ordering::Relaxed),
        disordered.len()
    );
    assert!(answered > 100, "too little was said for this to mean anything: {answered}");
    assert_eq!(missing, [], "what was answered is lost\n{}", theatre.homes[0].log());
    assert_eq!(theatre.ledger.foreign.load(Ordering::Relaxed), 0, "somebody got what was for another");
    assert_eq!(disordered, [""; 0], "what one backend said came in another order");
}
