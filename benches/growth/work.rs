//! Measures each kind of work at its base and in three larger forms.

use std::time::SystemTime;

use mesa::{auth::issue, message::UserId};
use serde_json::{Map, Value, json};

use crate::{child::Server, crowd::Crowd};

/// Users at the base, each with one client.
const USERS: usize = 1_000;

/// Bytes of data in a message, at the base and in the largest form.
pub const BYTES: usize = 256;
pub const BYTES_LARGE: usize = 4_096;

/// Factor of users and messages.
pub const FACTOR: usize = 10;

/// Bytes of a secret of HS256.
const SECRET: &str = "a-secret-of-32-bytes-for-a-bench";

/// A form of some work.
#[derive(Clone, Copy)]
struct Form {
    users: usize,
    /// Factor of the messages.
    messages: usize,
    bytes: usize,
}

/// The forms: base, users, messages, bytes. With more users each user has as many messages as before.
const FORMS: [Form; 4] = [
    Form { users: USERS, messages: 1, bytes: BYTES },
    Form { users: USERS * FACTOR, messages: FACTOR, bytes: BYTES },
    Form { users: USERS, messages: FACTOR, bytes: BYTES },
    Form { users: USERS, messages: 1, bytes: BYTES_LARGE },
];

/// How some work is done.
enum How {
    /// By `mesa bench`, with this number of messages.
    Bench { work: &'static str, messages: usize },
    /// Each message goes to all users, so more users do not need more messages.
    Fanout { messages: usize },
    /// Clients connect with a token of this algorithm.
    Connect { algorithm: &'static str },
}

/// Kind of work, with its figures: name, and field of the result of `mesa bench`.
struct Work {
    how: How,
    figures: &'static [(&'static str, &'static str)],
}

const CPU: &str = "/serverCpuUs";
const P99: &str = "/latencyUs/p99";

const WORK: [Work; 8] = [
    Work {
        how: How::Bench { work: "latency --rate 2000", messages: 2_000 },
        figures: &[("one to one at 2,000/s", CPU), ("its p99", P99)],
    },
    Work {
        how: How::Bench { work: "unicast", messages: 20_000 },
        figures: &[("one to one at full speed, NDJSON", CPU)],
    },
    Work {
        how: How::Bench { work: "enqueue", messages: 20_000 },
        figures: &[("enqueue for offline users, NDJSON", CPU)],
    },
    Work {
        how: How::Bench { work: "enqueue --via http --connections 50", messages: 10_000 },
        figures: &[("enqueue for offline users, HTTP", CPU)],
    },
    Work { how: How::Fanout { messages: 20 }, figures: &[("fan-out to all users, for each delivery", CPU)] },
    Work { how: How::Bench { work: "drain", messages: 20_000 }, figures: &[("drain of pending messages", CPU)] },
    Work { how: How::Connect { algorithm: "HS256" }, figures: &[("connect with a JWT, HS256", CPU)] },
    Work { how: How::Connect { algorithm: "RS256" }, figures: &[("connect with a JWT, RS256", CPU)] },
];

/// Medians of one figure in microseconds, one for each form that applies.
pub struct Row {
    pub name: &'static str,
    pub forms: Vec<Option<f64>>,
}

/// Measures all work in turn, as many times as there are rounds, and returns the medians.
pub fn measure(rounds: usize, is_wanted: impl Fn(&str) -> bool) -> Vec<Row> {
    let wanted: Vec<&Work> = WORK.iter().filter(|work| work.figures.iter().any(|(name, _)| is_wanted(name))).collect();
    let mut samples = vec![vec![Vec::new(); FORMS.len()]; wanted.len()];
    for round in 0..rounds {
        for (work, samples) in wanted.iter().zip(&mut samples) {
            for (form, samples) in FORMS.iter().zip(samples) {
                let result = work.how.run(form);
                println!("round {}, {}: {}", round + 1, work.figures[0].0, result.as_ref().map_or("-".into(), brief));
                samples.extend(result);
            }
        }
    }
    let row = |(work, samples): (&&Work, Vec<Vec<Value>>)| {
        let row = |(name, field): &(&'static str, &str)| Row {
            name,
            forms: samples.iter().map(|samples| median(samples, field)).collect(),
        };
        work.figures.iter().map(row).collect::<Vec<_>>()
    };
    wanted.iter().zip(samples).flat_map(row).collect()
}

fn brief(result: &Value) -> String {
    format!("{} x {} B: {:.2} µs", result["users"], result["bytes"], result.pointer(CPU).map_or(0.0, float))
}

fn median(samples: &[Value], field: &str) -> Option<f64> {
    let mut samples: Vec<f64> = samples.iter().filter_map(|sample| sample.pointer(field)).map(float).collect();
    samples.sort_by(f64::total_cmp);
    samples.get(samples.len() / 2).copied()
}

fn float(value: &Value) -> f64 {
    value.as_f64().expect("a number")
}

impl How {
    /// Measures one form with a new server; `None` if the form does not apply.
    fn run(&self, form: &Form) -> Option<Value> {
        let Form { users, messages: factor, bytes } = *form;
        match self {
            Self::Bench { work, messages } => {
                let messages = messages * factor;
                let load = format!("{work} --users {users} --messages {messages} --bytes {bytes}");
                Some(Server::start_insecure("").load(&load))
            }
            Self::Fanout { messages } => {
                let messages = if users > USERS { *messages } else { messages * factor };
                let load = format!("fanout --users {users} --messages {messages} --bytes {bytes}");
                Some(Server::start_insecure("").load(&load))
            }
            // No message is sent.
            Self::Connect { .. } if bytes != BYTES || (factor > 1 && users == USERS) => None,
            Self::Connect { algorithm } => Some(connect(algorithm, users)),
        }
    }
}

/// Measures the CPU time of the server for each connecting client.
fn connect(algorithm: &str, clients: usize) -> Value {
    let directory = tempfile::tempdir().expect("a directory");
    let (settings, tokens) = match algorithm {
        "HS256" => (format!("jwt: {{ secret: '{SECRET}' }}"), hs256(clients)),
        _ => {
            let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).expect("a key");
            std::fs::write(directory.path().join("key.pem"), key.public_key_pem()).expect("a file");
            let settings = "jwt: { keyFile: 'DIR/key.pem', algorithms: ['RS256'] }".to_owned();
            (settings, rs256(&key.serialize_pem(), clients))
        }
    };
    let server = Server::start_in(directory, &format!("authentication: {{ {settings} }}"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let before = server.usage().await;
        let crowd = Crowd::connect(&server.address, tokens);
        crowd.wait_until_authenticated().await;
        let cpu = server.usage().await.cpu_seconds - before.cpu_seconds;
        json!({ "users": clients, "bytes": 0, "serverCpuUs": cpu * 1e6 / clients as f64 })
    })
}

fn hs256(clients: usize) -> Vec<String> {
    let id = |number| UserId::new(&format!("user-{number}")).expect("an id");
    (0..clients).map(|number| issue(SECRET, "HS256", &id(number), None, Map::new()).expect("a token")).collect()
}

fn rs256(key: &str, clients: usize) -> Vec<String> {
    let key = jsonwebtoken::EncodingKey::from_rsa_pem(key.as_bytes()).expect("a key");
    let header = jsonwebtoken::Header::new(jsonwebtoken::Algorithm::RS256);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("a time after 1970").as_secs();
    let token = |number| {
        let claims = json!({ "id": format!("user-{number}"), "iat": now });
        jsonwebtoken::encode(&header, &claims, &key).expect("a token")
    };
    (0..clients).map(token).collect()
}
