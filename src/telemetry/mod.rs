//! Spans of requests, for traces in `OpenTelemetry`. Without the cargo feature `opentelemetry` nothing is compiled in.
//!
//! - `export`: sends spans to a collector

#[cfg(feature = "opentelemetry")]
mod export;

#[cfg(feature = "opentelemetry")]
pub use export::{SPAN_TARGET, TraceError, Traces};

/// The span of a request, or of a step of it. Without the feature it is empty.
#[derive(Debug)]
pub struct StepSpan {
    #[cfg(feature = "opentelemetry")]
    span: tracing::Span,
}

impl StepSpan {
    /// Begins the span of a request, as a child of the span that its header `traceparent` names.
    #[cfg_attr(not(feature = "opentelemetry"), expect(unused_variables, reason = "only traces need it"))]
    pub fn request<B>(request: &::http::Request<B>) -> Self {
        Self {
            #[cfg(feature = "opentelemetry")]
            span: export::request_span(request),
        }
    }

    /// Begins the span of dispatches: from their arrival at the hub to their results.
    pub fn dispatch() -> Self {
        Self {
            #[cfg(feature = "opentelemetry")]
            span: tracing::info_span!(target: SPAN_TARGET, "dispatch"),
        }
    }

    /// Begins the span of the wait for a commit of the store.
    pub fn commit() -> Self {
        Self {
            #[cfg(feature = "opentelemetry")]
            span: tracing::info_span!(target: SPAN_TARGET, "commit"),
        }
    }

    /// Runs a future in the span.
    #[cfg(feature = "opentelemetry")]
    pub fn run<F: Future>(self, future: F) -> tracing::instrument::Instrumented<F> {
        tracing::Instrument::instrument(future, self.span)
    }

    /// Returns the future.
    #[cfg(not(feature = "opentelemetry"))]
    pub fn run<F: Future>(self, future: F) -> F {
        future
    }
}
