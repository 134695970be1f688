//! Sets up the log on standard error, as text or JSON, and the export of traces.

use std::{
    fs::File,
    io::{self, IsTerminal},
    os::fd::AsFd,
    panic::PanicHookInfo,
    sync::OnceLock,
    time::Duration,
};

use mesa::{
    config::{Log, LogFormat},
    logging::{LogWriter, panic_text},
};
use tracing::Subscriber;
use tracing_subscriber::{
    EnvFilter,
    registry::LookupSpan,
    util::{SubscriberInitExt as _, TryInitError},
};

use crate::{env, error::Failure, output};

/// Longest wait for log lines at the end of the program, for example for a stalled reader.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// Longest wait for log lines after a panic that aborts the process.
const ABORT_FLUSH_TIMEOUT: Duration = Duration::from_millis(200);

static WRITER: OnceLock<LogWriter> = OnceLock::new();

/// Sets up the log for the rest of the program. Called once.
///
/// From then on, only the log writes to standard error. A panic becomes a log line, and no code waits for the reader.
pub fn start(log: &Log) -> Result<(), Failure> {
    let filter = EnvFilter::try_new(&log.level)
        .map_err(|error| Failure::because(format!("log.level \"{}\" cannot be used: {error}", log.level)))?;
    #[cfg(feature = "opentelemetry")]
    let filter = traces::start(filter)?;
    let unusable = |error: io::Error| Failure::because(format!("the log cannot be set up: {error}"));
    // A separate handle: the standard library locks its own while a write blocks.
    let out = File::from(io::stderr().as_fd().try_clone_to_owned().map_err(unusable)?);
    let coloured = io::stderr().is_terminal() && !env::is_set("NO_COLOR");
    let writer = LogWriter::start(out).map_err(unusable)?;
    let output = writer.clone();
    // The subscriber would report errors of its writer with `eprintln!`, which panics if standard error fails.
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(move || output.clone())
        .log_internal_errors(false);
    let started = match log.format {
        LogFormat::Text => init(lines.with_ansi(coloured).finish()),
        LogFormat::Json => init(lines.json().flatten_event(true).finish()),
    };
    started.map_err(|error| Failure::because(format!("the log cannot be set up: {error}")))?;
    std::panic::set_hook(Box::new(log_panic));
    _ = WRITER.set(writer);
    Ok(())
}

/// Makes the subscriber that of the program, with the layer that records spans, if traces are exported.
fn init<S>(subscriber: S) -> Result<(), TryInitError>
where
    S: Subscriber + for<'span> LookupSpan<'span> + Send + Sync,
{
    #[cfg(feature = "opentelemetry")]
    if let Some(traces) = traces::get() {
        return tracing_subscriber::layer::SubscriberExt::with(subscriber, traces.layer()).try_init();
    }
    subscriber.try_init()
}

/// Exports traces, if an environment variable names a collector.
#[cfg(feature = "opentelemetry")]
mod traces {
    use std::sync::OnceLock;

    use mesa::telemetry::{SPAN_TARGET, Traces};
    use tracing_subscriber::EnvFilter;

    use crate::error::Failure;

    static TRACES: OnceLock<Traces> = OnceLock::new();

    /// Begins the export. Returns the filter, which then lets spans pass at every `log.level`, and none without export.
    pub fn start(filter: EnvFilter) -> Result<EnvFilter, Failure> {
        let traces = Traces::from_env().map_err(Failure::because)?;
        let level = if traces.is_some() { "info" } else { "off" };
        traces.into_iter().for_each(|traces| _ = TRACES.set(traces));
        Ok(filter.add_directive(format!("{SPAN_TARGET}={level}").parse().expect("a target and a level")))
    }

    pub fn get() -> Option<&'static Traces> {
        TRACES.get()
    }
}

/// Waits until all lines are written and all spans are sent, for a bounded time.
pub fn flush() {
    #[cfg(feature = "opentelemetry")]
    if let Some(traces) = traces::get() {
        traces.shutdown();
    }
    if let Some(writer) = WRITER.get() {
        writer.flush(FLUSH_TIMEOUT);
    }
}

/// Prints why the program ends, as its last line on standard error.
pub fn report_failure(reason: &str) {
    match WRITER.get() {
        Some(writer) => writer.last_line(output::failure_line(reason).as_bytes()),
        None => output::remark(&output::failure_line(reason)),
    }
}

/// Writes a panic to the log.
fn log_panic(panic: &PanicHookInfo<'_>) {
    let text = panic_text(panic.payload());
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("without a name").to_owned();
    let location = panic.location().map_or_else(|| "an unknown location".to_owned(), ToString::to_string);
    let backtrace = std::backtrace::Backtrace::capture();
    let backtrace = (backtrace.status() == std::backtrace::BacktraceStatus::Captured).then(|| backtrace.to_string());
    tracing::error!(thread = name, backtrace, "thread panicked at {location}: {text}");
    // With this text the standard library aborts the process. No later line can be written.
    if text.starts_with("panic in a ") {
        flush_before_abort();
    }
}

fn flush_before_abort() {
    if let Some(writer) = WRITER.get() {
        writer.flush(ABORT_FLUSH_TIMEOUT);
    }
}
