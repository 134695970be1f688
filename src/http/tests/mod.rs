//! Tests of the whole API over a store in memory.

mod admin;
mod json_errors;
mod metrics;
mod openapi;
mod status;
#[cfg(feature = "opentelemetry")]
mod traces;

use std::{sync::Arc, time::Duration};

use axum::{
    body::Body,
    http::{HeaderMap, Request, StatusCode, header},
};
use http_body_util::BodyExt as _;
use serde_json::Value;

use super::{Admin, Api, Caller, Http};
use crate::{
    config::Config,
    embedded::{
        Options,
        tables::memory::{self, Memory},
    },
    hub::{Hub, MailboxBounds, PortalSettings, Settings, SyncSettings, portals::Bounds},
    live::{Live, LiveSettings},
    metrics::Metrics,
};

pub(super) const KEY: &str = "0123456789abcdef";

/// An API over a store in memory.
pub(super) struct TestApi {
    pub http: Http,
    pub hub: Arc<Hub>,
    pub metrics: Arc<Metrics>,
}

/// Response of a test's request.
#[derive(Debug)]
pub(super) struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("UTF-8")
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    pub fn content_type(&self) -> &str {
        self.headers.get(header::CONTENT_TYPE).map_or("", |kind| kind.to_str().expect("ASCII"))
    }
}

impl TestApi {
    pub fn new() -> Self {
        Self::with(|_| {})
    }

    /// Creates an API with a changed configuration.
    pub fn with(change: impl FnOnce(&mut Config)) -> Self {
        let store = memory::open(&Memory::default(), Options::default()).unwrap();
        let settings = Settings {
            sync: Some(SyncSettings { redelivery_interval: Duration::ZERO }),
            authentication_required: false,
            store_connected_users: true,
            mailbox: MailboxBounds { messages: 10, bytes: 1000 },
            portals: Some(PortalSettings { round_robin: true, bounds: Bounds::default() }),
        };
        let metrics = Arc::new(Metrics::new());
        let hub = Hub::new(settings, store, metrics.clone(), None);
        let mut config = Config::default();
        config.api.keys.push(KEY.into());
        change(&mut config);
        let api = Api {
            hub: hub.clone(),
            guess_limiter: Arc::default(),
            metrics: metrics.clone(),
            admin: Admin::new(&config.admin, false),
            live: Live::new(LiveSettings::new(&config, None)),
        };
        Self { http: Http::new(api), hub, metrics }
    }

    /// Sends a request with the API key and further headers, and reads the response to its end.
    pub async fn call(&self, method: &str, path: &str, headers: &[(&str, &str)], body: impl Into<Body>) -> Answer {
        let mut request = Request::builder().method(method).uri(path).header(header::HOST, "localhost");
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("authorization")) {
            request = request.header(header::AUTHORIZATION, format!("Bearer {KEY}"));
        }
        for (name, value) in headers.iter().filter(|(_, value)| !value.is_empty()) {
            request = request.header(*name, *value);
        }
        let response = self.http.respond(&Caller::default(), request.body(body.into()).unwrap()).await;
        let (head, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes().to_vec();
        Answer { status: head.status, headers: head.headers, body }
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.call("GET", path, &[], Body::empty()).await
    }

    /// Dispatches a message to these users.
    pub async fn dispatch(&self, users: &[&str]) {
        let body = serde_json::json!({"message": {"d": 1}, "recipients": users}).to_string();
        let answer = self.call("POST", "/v1/dispatch", &[], body).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
    }
}
