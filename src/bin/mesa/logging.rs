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
    reload,
    util::{SubscriberInitExt as _, TryInitError},
};

use crate::{env, error::Failure, output};

/// Longest wait for log lines at the end of the program, for example for a stalled reader.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// Longest wait for log lines after a panic that aborts the process.
const ABORT_FLUSH_TIMEOUT: Duration = Duration::from_millis(200);

static WRITER: OnceLock<LogWriter> = OnceLock::new();

/// Replaces the filter of the log.
type SetFilter = Box<dyn Fn(EnvFilter) -> Result<(), reload::Error> + Send + Sync>;

static SET_FILTER: OnceLock<SetFilter> = OnceLock::new();

/// Sets up the log for the rest of the program. Called once.
///
/// From then on, only the log writes to standard error. A panic becomes a log line, and no code waits for the reader.
pub fn start(log: &Log) -> Result<(), Failure> {
    #[cfg(feature = "opentelemetry")]
    traces::start()?;
    let filter = filter(&log.level).map_err(Failure::because)?;
    let unusable = |error: io::Error| Failure::because(format!("the log cannot be set up: {error}"));
    // A separate handle: the standard library locks its own while a write blocks.
    let out = File::from(io::stderr().as_fd().try_clone_to_owned().map_err(unusable)?);
    let coloured = io::stderr().is_terminal() && !env::is_set("NO_COLOR") && !env::is_dumb_terminal();
    let writer = LogWriter::start(out).map_err(unusable)?;
    let output = writer.clone();
    // The subscriber would report errors of its writer with `eprintln!`, which panics if standard error fails.
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(move || output.clone())
        .log_internal_errors(false);
    let (started, set_filter): (_, SetFilter) = match log.format {
        LogFormat::Text => {
            let lines = lines.with_ansi(coloured).with_filter_reloading();
            let handle = lines.reload_handle();
            (init(lines.finish()), Box::new(move |filter| handle.reload(filter)))
        }
        LogFormat::Json => {
            let lines = lines.json().flatten_event(true).with_filter_reloading();
            let handle = lines.reload_handle();
            (init(lines.finish()), Box::new(move |filter| handle.reload(filter)))
        }
    };
    started.map_err(|error| Failure::because(format!("the log cannot be set up: {error}")))?;
    std::panic::set_hook(Box::new(log_panic));
    _ = WRITER.set(writer);
    _ = SET_FILTER.set(set_filter);
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

    /// Begins the export.
    pub fn start() -> Result<(), Failure> {
        let traces = Traces::from_env().map_err(Failure::because)?;
        traces.into_iter().for_each(|traces| _ = TRACES.set(traces));
        Ok(())
    }

    /// Lets spans pass at every `log.level`, and none without export.
    pub fn pass_spans(filter: EnvFilter) -> EnvFilter {
        let level = if get().is_some() { "info" } else { "off" };
        filter.add_directive(format!("{SPAN_TARGET}={level}").parse().expect("a target and a level"))
    }

    pub fn get() -> Option<&'static Traces> {
        TRACES.get()
    }
}

/// Parses `log.level`.
///
/// # Errors
/// A sentence with the reason.
pub fn filter(level: &str) -> Result<EnvFilter, String> {
    let filter = EnvFilter::try_new(level);
    #[cfg(feature = "opentelemetry")]
    let filter = filter.map(traces::pass_spans);
    filter.map_err(|error| format!("log.level \"{level}\" cannot be used: {error}"))
}

/// Replaces the filter of the log while the program runs.
pub fn set_filter(filter: EnvFilter) {
    if let Some(Err(error)) = SET_FILTER.get().map(|set| set(filter)) {
        tracing::error!(%error, "log.level was not changed");
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
