//! Sends spans to a collector, by OTLP over HTTP.

use std::{env, time::Duration};

use opentelemetry::{
    propagation::{Extractor, TextMapPropagator as _},
    trace::TracerProvider as _,
};
use opentelemetry_otlp::{ExporterBuildError, Protocol, SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::{
    Resource,
    propagation::TraceContextPropagator,
    trace::{SdkTracer, SdkTracerProvider},
};
use tracing::{Span, Subscriber, info_span};
use tracing_opentelemetry::{OpenTelemetryLayer, OpenTelemetrySpanExt as _};
use tracing_subscriber::registry::LookupSpan;

use crate::logging::excerpt;

/// Target of all spans. A filter of log lines must let it pass.
pub const SPAN_TARGET: &str = "mesa::trace";

/// Name of the service, unless `OTEL_SERVICE_NAME` sets another.
const SERVICE_NAME: &str = "mesa";

/// Longest wait for the last spans when the export ends.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);

/// Standard variables that name the collector, the specific one first.
const ENDPOINT_VARIABLES: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];

/// Describes why traces cannot be exported.
#[derive(Debug, thiserror::Error)]
#[error("traces cannot be exported: {0}; check OTEL_EXPORTER_OTLP_ENDPOINT")]
pub struct TraceError(#[from] ExporterBuildError);

/// Exports spans, from a thread of its own, in batches. Its queue is bounded; at the bound, spans are dropped.
#[derive(Debug)]
pub struct Traces {
    provider: SdkTracerProvider,
}

impl Traces {
    /// Begins the export if a standard variable (`OTEL_EXPORTER_OTLP_ENDPOINT`) names a collector.
    ///
    /// Call it outside a runtime.
    ///
    /// # Errors
    /// Fails if a standard variable has a wrong value.
    pub fn from_env() -> Result<Option<Self>, TraceError> {
        let is_set = |name: &&str| env::var_os(*name).is_some_and(|value| !value.is_empty());
        if !ENDPOINT_VARIABLES.iter().any(is_set) {
            return Ok(None);
        }
        // The exporter reads the variables itself.
        let exporter = SpanExporter::builder().with_http().with_protocol(Protocol::HttpBinary).build()?;
        let name = env::var("OTEL_SERVICE_NAME").ok().filter(|name| !name.is_empty());
        Ok(Some(Self::over(exporter, &name.unwrap_or_else(|| SERVICE_NAME.to_owned()))))
    }

    /// Begins the export to the URL of a collector, without reading variables. Call it outside a runtime.
    ///
    /// # Errors
    /// Fails if the URL is invalid.
    pub fn to(url: &str, service: &str) -> Result<Self, TraceError> {
        let exporter =
            SpanExporter::builder().with_http().with_protocol(Protocol::HttpBinary).with_endpoint(url).build()?;
        Ok(Self::over(exporter, service))
    }

    fn over(exporter: SpanExporter, service: &str) -> Self {
        let resource = Resource::builder().with_service_name(service.to_owned()).build();
        Self { provider: SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build() }
    }

    /// Returns the layer that records spans.
    #[must_use]
    pub fn layer<S>(&self) -> OpenTelemetryLayer<S, SdkTracer>
    where
        S: Subscriber + for<'span> LookupSpan<'span>,
    {
        // Places in the source and threads cost more than they tell.
        tracing_opentelemetry::layer()
            .with_tracer(self.provider.tracer(SERVICE_NAME))
            .with_location(false)
            .with_threads(false)
    }

    /// Sends the last spans, and ends the export. Call it outside a runtime.
    pub fn shutdown(&self) {
        if let Err(error) = self.provider.shutdown_with_timeout(SHUTDOWN_TIMEOUT) {
            tracing::warn!(%error, "the last spans could not be sent to the OpenTelemetry collector");
        }
    }
}

/// Begins the span of a request.
pub(super) fn request_span<B>(request: &::http::Request<B>) -> Span {
    // Both may be as long as a head, and come from strangers too.
    let (method, path) = (excerpt(request.method()), excerpt(request.uri().path()));
    let span =
        info_span!(target: SPAN_TARGET, "request", otel.kind = "server", http.request.method = method, url.path = path);
    let parent = TraceContextPropagator::new().extract(&Headers(request.headers()));
    // Fails only without a layer that records spans.
    _ = span.set_parent(parent);
    span
}

struct Headers<'a>(&'a ::http::HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(::http::HeaderName::as_str).collect()
    }
}
