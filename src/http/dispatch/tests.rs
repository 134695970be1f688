//! Tests NDJSON streams with a hub and a store in memory, in paused time.

use std::convert::Infallible;

use axum::http::header;
use futures_util::{future::BoxFuture, stream};
use http_body_util::StreamBody;
use hyper::body::Frame;
use tokio::sync::mpsc;

use super::*;
use crate::{
    config::Config,
    embedded::{
        Options,
        tables::memory::{self, Memory},
    },
    http::{Admin, Caller, Http},
    hub::{Attach, Hub, MailboxBounds, ReadLimit, Settings, Store, StoreError, SyncSettings},
    live::{Live, LiveSettings},
    message::UserId,
    metrics::Metrics,
    store::{Append, AppendResult, intercept::InterceptStore},
};

const KEY: &str = "0123456789abcdef";

fn http() -> (Http, Arc<dyn Store>) {
    let store = memory::open(&Memory::default(), Options::default()).unwrap();
    (http_over(store.clone()).0, store)
}

fn http_over(store: Arc<dyn Store>) -> (Http, Arc<Hub>) {
    let settings = Settings {
        sync: Some(SyncSettings { redelivery_interval: std::time::Duration::ZERO }),
        authentication_required: false,
        store_connected_users: true,
        mailbox: MailboxBounds { messages: 10, bytes: 1000 },
        portals: None,
    };
    let metrics = Arc::new(Metrics::new());
    let hub = Hub::new(settings, store, metrics.clone(), None);
    let mut config = Config::default();
    config.api.keys.push(KEY.into());
    (config.limits.request_bytes, config.limits.recipients) = (1024, 3);
    let live = Live::new(LiveSettings::new(&config, None));
    let admin = Admin::new(&config.admin, false);
    let api = Api { hub: hub.clone(), guess_limiter: Arc::default(), metrics, admin, live };
    (Http::new(api), hub)
}

/// Holds an open stream: the sender of its lines, and its results.
struct TestStream {
    lines: Option<mpsc::Sender<&'static str>>,
    results: axum::body::BodyDataStream,
    buffer: String,
}

async fn open(http: &Http) -> TestStream {
    let (lines, mut body) = mpsc::channel(1);
    let pieces = stream::poll_fn(move |cx| body.poll_recv(cx));
    let frames = futures_util::StreamExt::map(pieces, |piece: &str| {
        Ok::<_, Infallible>(Frame::data(axum::body::Bytes::from(piece)))
    });
    let request = Request::post(PATH)
        .header(header::AUTHORIZATION, format!("Bearer {KEY}"))
        .header(header::HOST, "localhost")
        .header(header::CONTENT_TYPE, "application/x-ndjson")
        .body(StreamBody::new(frames))
        .unwrap();
    let response = http.respond(&Caller::default(), request).await;
    assert_eq!(response.status(), StatusCode::OK);
    TestStream { lines: Some(lines), results: response.into_body().into_data_stream(), buffer: String::new() }
}

impl TestStream {
    async fn send(&self, piece: &'static str) {
        self.lines.as_ref().unwrap().send(piece).await.unwrap();
    }

    /// Returns the next result; `None` at the end.
    async fn result(&mut self) -> Option<String> {
        loop {
            if let Some((line, rest)) = self.buffer.split_once('\n') {
                let line = line.to_owned();
                self.buffer = rest.to_owned();
                return Some(line);
            }
            let piece = futures_util::StreamExt::next(&mut self.results).await?.unwrap();
            self.buffer.push_str(std::str::from_utf8(&piece).unwrap());
        }
    }
}

const TO_ALICE: &str = r#"{"message":{},"recipients":["alice"]}
"#;
const ACCEPTED: &str = r#"{"recipients":1,"online":0,"offline":1,"stored":1,"rejected":[],"duplicate":false}"#;

#[tokio::test(start_paused = true)]
async fn idle_stream_stays_open_and_partial_line_times_out() {
    let (http, _store) = http();
    let mut stream = open(&http).await;
    stream.send(TO_ALICE).await;
    assert_eq!(stream.result().await.unwrap(), ACCEPTED);
    tokio::time::sleep(std::time::Duration::from_secs(3600)).await;
    stream.send(TO_ALICE).await;
    assert_eq!(stream.result().await.unwrap(), ACCEPTED, "expected a result after an hour without lines");
    let (head, tail) = TO_ALICE.split_at(9);
    stream.send(head).await;
    tokio::time::timeout(std::time::Duration::from_secs(29), stream.result()).await.unwrap_err();
    stream.send(tail).await;
    assert_eq!(stream.result().await.unwrap(), ACCEPTED, "expected a result after 29 s in the middle of a line");
    stream.send(head).await;
    let error = stream.result().await.unwrap();
    assert!(error.contains(r#""code":"too_slow""#), "{error}");
    assert_eq!(stream.result().await, None);
}

#[tokio::test]
async fn stream_ends_at_shutdown_after_all_lines_are_answered() {
    let (http, _store) = http();
    let mut stream = open(&http).await;
    stream.send(TO_ALICE).await;
    assert_eq!(stream.result().await.unwrap(), ACCEPTED);
    http.stop();
    assert_eq!(stream.result().await, None);
    let mut late = open(&http).await;
    assert_eq!(late.result().await, None, "a stream opened after shutdown ends too");
}

#[tokio::test]
async fn lines_for_closed_store_are_each_rejected_and_stream_continues() {
    let (http, store) = http();
    let mut stream = open(&http).await;
    store.close().await.unwrap();
    stream.send("{\"message\":{},\"recipients\":[\"alice\"]}\n{}\n{\"message\":{},\"recipients\":[\"*\"]}\n").await;
    let (first, second) = (stream.result().await.unwrap(), stream.result().await.unwrap());
    assert!(first.contains(r#""code":"shutting_down""#), "{first}");
    assert!(second.contains(r#""code":"bad_dispatch""#), "{second}");
    assert_eq!(stream.result().await.unwrap(), ACCEPTED.replace('1', "0"), "a broadcast needs no store");
    stream.lines.take();
    assert_eq!(stream.result().await, None);
}

/// A store that is full for the appends of some idempotency ids.
struct FullFor {
    store: Arc<dyn Store>,
    rejected: parking_lot::Mutex<&'static [&'static str]>,
    /// It accepts each append of a batch for itself. Otherwise it accepts all or none.
    is_remote: bool,
}

impl InterceptStore for FullFor {
    fn store(&self) -> &dyn Store {
        &*self.store
    }

    fn on_append_all(&self, appends: Vec<Append>) -> BoxFuture<'_, Result<Vec<AppendResult>, StoreError>> {
        let rejected = *self.rejected.lock();
        let id = |append: &Append| append.idempotency.as_ref().map(|idempotency| idempotency.id.clone());
        if appends.iter().filter_map(id).any(|id| rejected.contains(&id.as_str())) {
            return Box::pin(async { Err(StoreError::Full("no space".into())) });
        }
        self.store.append_all(appends)
    }

    fn on_append_each(&self, appends: Vec<Append>) -> BoxFuture<'_, Vec<Result<AppendResult, StoreError>>> {
        let parts =
            if self.is_remote { appends.into_iter().map(|append| vec![append]).collect() } else { vec![appends] };
        Box::pin(async move {
            let mut results = Vec::new();
            for part in parts {
                let count = part.len();
                match self.on_append_all(part).await {
                    Ok(appended) => results.extend(appended.into_iter().map(Ok)),
                    Err(error) => results.extend(vec![Err(error); count]),
                }
            }
            results
        })
    }
}

/// A backend that sends again only the lines with an error repeats nothing, whatever lines fail.
// covers: G4
#[tokio::test]
async fn line_with_a_result_was_accepted_and_line_with_an_error_was_not() {
    const IDS: [&str; 5] = ["", "a", "b", "", "c"];
    const FAILURES: [&[&str]; 5] = [&["a"], &["b"], &["c"], &["a", "c"], &["a", "b", "c"]];
    for (sync, is_remote) in [(false, false), (true, false), (true, true)] {
        for failing in FAILURES {
            let store = memory::open(&Memory::default(), Options::default()).unwrap();
            let store = Arc::new(FullFor { store, rejected: failing.into(), is_remote });
            let (http, hub) = http_over(store.clone());
            let connected = hub.connect();
            let user = UserId::new("alice").unwrap();
            let _session = connected.attach(user.clone(), Attach::default(), std::time::Instant::now()).unwrap();
            let line = |(n, id): (usize, &str)| {
                let id = if id.is_empty() { String::new() } else { format!(r#","id":"{id}""#) };
                format!("{{\"message\":{{\"d\":{n},\"o\":{{\"sync\":{sync}}}}},\"recipients\":[\"alice\"]{id}}}\n")
            };
            let lines: Vec<String> = IDS.into_iter().enumerate().map(line).collect();
            let mut stream = open(&http).await;
            stream.send(lines.concat().leak()).await;
            let mut again = String::new();
            for line in &lines {
                let result = stream.result().await.unwrap();
                assert_eq!(result.contains("\"full\""), result.contains("error"), "{result}");
                if result.contains("error") {
                    again.push_str(line);
                }
            }
            assert!(!again.is_empty(), "expected an error");
            assert!(sync && !is_remote || again.lines().count() == failing.len(), "{failing:?}: {again}");
            *store.rejected.lock() = &[];
            stream.send(again.clone().leak()).await;
            for _ in again.lines() {
                let result = stream.result().await.unwrap();
                assert!(!result.contains("error") && result.contains("\"duplicate\":false"), "{failing:?}: {result}");
            }
            let mut numbers: Vec<String> = if sync {
                let all = ReadLimit { entries: 10, bytes: 1000 };
                let entries = store.read(&user, 0, all).unwrap().entries;
                entries.iter().map(|entry| String::from_utf8_lossy(entry.payload.as_bytes()).into_owned()).collect()
            } else {
                let unsynced = std::iter::from_fn(|| connected.mailbox().take());
                unsynced.map(|payload| String::from_utf8_lossy(payload.as_bytes()).into_owned()).collect()
            };
            numbers.sort();
            let expected: Vec<String> = (0..lines.len()).map(|n| format!("{{\"op\":0,\"d\":{n}}}")).collect();
            assert_eq!(numbers, expected, "sync {sync}, failing {failing:?}");
        }
    }
}

// The paused clock advances while the request waits for the store.
#[tokio::test(start_paused = true)]
async fn request_over_its_time_limit_is_counted_as_failed() {
    let store = memory::open(&Memory::default(), Options::default()).unwrap();
    let (http, hub) = http_over(Arc::new(NoClear(store)));
    let payload = crate::message::Payload::encode(0, None, None).unwrap();
    let to_alice = crate::message::Recipients::Users(vec![UserId::new("alice").unwrap()]);
    hub.dispatch(crate::hub::Dispatch::new(payload, to_alice)).await.unwrap();
    let request = Request::delete("/v1/users/alice/messages")
        .header(header::AUTHORIZATION, format!("Bearer {KEY}"))
        .header(header::HOST, "localhost")
        .body(Body::empty())
        .unwrap();
    let response = http.respond(&Caller::default(), request).await;
    assert_eq!(response.status(), StatusCode::REQUEST_TIMEOUT);
    let metrics = &http.api.metrics;
    assert_eq!((metrics.http_failed.get(), metrics.http_rejected.get(), metrics.http_succeeded.get()), (1, 0, 0));
}

/// A store that never answers a clear.
struct NoClear(Arc<dyn Store>);

impl InterceptStore for NoClear {
    fn store(&self) -> &dyn Store {
        &*self.0
    }

    fn on_clear(&self, _: &UserId) -> BoxFuture<'_, Result<u64, StoreError>> {
        Box::pin(std::future::pending())
    }
}

#[tokio::test]
async fn malformed_query_is_reported_to_callers_with_a_key_only() {
    let (http, _store) = http();
    for path in ["/v1/users?cursor=%ff", "/v1/users/alice/messages?%zz", "/v1/backup?%"] {
        for (key, expected) in [("", StatusCode::UNAUTHORIZED), (KEY, StatusCode::BAD_REQUEST)] {
            let mut request = Request::get(path).header(header::HOST, "localhost");
            if !key.is_empty() {
                request = request.header(header::AUTHORIZATION, format!("Bearer {key}"));
            }
            let response = http.respond(&Caller::default(), request.body(Body::empty()).unwrap()).await;
            assert_eq!(response.status(), expected, "{path}");
        }
    }
}

#[test]
fn content_type_selects_json_or_ndjson() {
    let form = |kind: &str| {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, kind.parse().unwrap());
        body_form(&headers).ok()
    };
    for json in ["application/json", "Application/JSON; charset=utf-8"] {
        assert_eq!(form(json), Some(Form::Json));
    }
    assert_eq!(form("application/x-ndjson; charset=utf-8"), Some(Form::Ndjson));
    assert!(form("text/plain").is_none() && form("").is_none());
}
