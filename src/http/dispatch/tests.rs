//! Streams over a hub and a store in memory, where time can be made to pass.

use std::convert::Infallible;

use axum::http::header;
use futures_util::stream;
use http_body_util::StreamBody;
use hyper::body::Frame;
use tokio::sync::mpsc;

use super::*;
use crate::{
    auth::ApiKeys,
    config::{self, Config},
    embedded::{
        Options,
        tables::memory::{self, Memory},
    },
    http::{Caller, Http},
    hub::{Hub, MailboxBounds, Settings, Store, SyncSettings},
    metrics::Metrics,
};

const KEY: &str = "0123456789abcdef";

fn http() -> (Http, Arc<dyn Store>) {
    let store = memory::open(&Memory::default(), Options::default()).unwrap();
    let settings = Settings {
        sync: Some(SyncSettings { redelivery_interval: std::time::Duration::ZERO }),
        authentication_required: false,
        store_connected_users: true,
        mailbox: MailboxBounds { messages: 10, bytes: 1000 },
        portals: None,
    };
    let metrics = Arc::new(Metrics::new());
    let hub = Hub::new(settings, store.clone(), metrics.clone());
    let keys = ApiKeys::new(&config::Api { keys: vec![KEY.into()], ..config::Api::default() });
    let limits = config::Limits { request_bytes: 1024, recipients: 3, ..Config::default().limits };
    (Http::new(Api { hub, keys, guesses: Arc::default(), metrics, limits, local_only: false }), store)
}

/// A stream that was opened: where its lines go, and its answers.
struct Talking {
    say: Option<mpsc::Sender<&'static str>>,
    answers: axum::body::BodyDataStream,
    heard: String,
}

async fn open(http: &Http) -> Talking {
    let (say, mut said) = mpsc::channel(1);
    let pieces = stream::poll_fn(move |cx| said.poll_recv(cx));
    let frames =
        futures_util::StreamExt::map(pieces, |piece: &str| Ok::<_, Infallible>(Frame::data(Bytes::from(piece))));
    let request = Request::post(PATH)
        .header(header::AUTHORIZATION, format!("Bearer {KEY}"))
        .header(header::HOST, "localhost")
        .header(header::CONTENT_TYPE, "application/x-ndjson")
        .body(StreamBody::new(frames))
        .unwrap();
    let response = http.respond(&Caller::default(), request).await;
    assert_eq!(response.status(), StatusCode::OK);
    Talking { say: Some(say), answers: response.into_body().into_data_stream(), heard: String::new() }
}

impl Talking {
    async fn say(&self, piece: &'static str) {
        self.say.as_ref().unwrap().send(piece).await.unwrap();
    }

    /// The next answer; `None` at the end.
    async fn hear(&mut self) -> Option<String> {
        loop {
            if let Some((line, rest)) = self.heard.split_once('\n') {
                let line = line.to_owned();
                self.heard = rest.to_owned();
                return Some(line);
            }
            let piece = futures_util::StreamExt::next(&mut self.answers).await?.unwrap();
            self.heard.push_str(std::str::from_utf8(&piece).unwrap());
        }
    }
}

const TO_ALICE: &str = r#"{"message":{},"recipients":["alice"]}
"#;
const TAKEN: &str = r#"{"recipients":1,"online":0,"offline":1,"stored":1,"rejected":[],"duplicate":false}"#;

#[tokio::test(start_paused = true)]
async fn a_stream_may_be_idle_and_a_line_that_was_begun_may_not() {
    let (http, _store) = http();
    let mut talking = open(&http).await;
    talking.say(TO_ALICE).await;
    assert_eq!(talking.hear().await.unwrap(), TAKEN);
    tokio::time::sleep(std::time::Duration::from_secs(3600)).await;
    talking.say(TO_ALICE).await;
    assert_eq!(talking.hear().await.unwrap(), TAKEN, "after an hour");
    let (begun, behind) = TO_ALICE.split_at(9);
    talking.say(begun).await;
    tokio::time::timeout(std::time::Duration::from_secs(29), talking.hear()).await.unwrap_err();
    talking.say(behind).await;
    assert_eq!(talking.hear().await.unwrap(), TAKEN, "after half a minute in the middle of a line");
    talking.say(begun).await;
    let told = talking.hear().await.unwrap();
    assert!(told.contains(r#""code":"too_slow""#), "{told}");
    assert_eq!(talking.hear().await, None);
}

#[tokio::test]
async fn a_stream_ends_with_the_server_when_what_it_took_in_is_answered() {
    let (http, _store) = http();
    let mut talking = open(&http).await;
    talking.say(TO_ALICE).await;
    assert_eq!(talking.hear().await.unwrap(), TAKEN);
    http.stop();
    assert_eq!(talking.hear().await, None);
    let mut late = open(&http).await;
    assert_eq!(late.hear().await, None, "one that was opened after that ends as well");
}

#[tokio::test]
async fn lines_of_a_store_that_is_closed_are_each_refused_and_the_stream_goes_on() {
    let (http, store) = http();
    let mut talking = open(&http).await;
    store.close().await.unwrap();
    talking.say("{\"message\":{},\"recipients\":[\"alice\"]}\n{}\n{\"message\":{},\"recipients\":[\"*\"]}\n").await;
    let (first, second) = (talking.hear().await.unwrap(), talking.hear().await.unwrap());
    assert!(first.contains(r#""code":"shutting_down""#), "{first}");
    assert!(second.contains(r#""code":"bad_dispatch""#), "{second}");
    assert_eq!(talking.hear().await.unwrap(), TAKEN.replace('1', "0"), "what is not kept needs no store");
    talking.say.take();
    assert_eq!(talking.hear().await, None);
}

#[test]
fn a_body_has_to_be_json() {
    let form = |kind: &str| {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, kind.parse().unwrap());
        form(&headers).ok()
    };
    for json in ["application/json", "Application/JSON; charset=utf-8"] {
        assert_eq!(form(json), Some(Form::One));
    }
    assert_eq!(form("application/x-ndjson; charset=utf-8"), Some(Form::Lines));
    assert!(form("text/plain").is_none() && form("").is_none());
}
