//! `mesa serve`: runs a server until a signal stops it.

mod banner;
mod reload;
mod self_signed;

use std::{io::Write, net::SocketAddr, path::Path, time::Duration};

use mesa::{
    config::{Config, Loaded, Sources, keep_dev_key, load},
    server::Server,
};
use serde_json::{Value, json};

use crate::{
    args::{LogFormat, ServeArgs, StoreKind},
    config, env,
    error::Failure,
    logging, os, systemd,
};

/// Longest wait for background tasks after the server has stopped.
const RUNTIME_SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(1);

/// Usual name of a configuration file. It is not read without `--config`, so that a directory cannot change a server.
const FILE_USUAL: &str = "mesa.json5";

/// Runs a server until a signal stops it.
pub fn run(args: &ServeArgs) -> Result<(), Failure> {
    let mut loaded = load(&sources(args)).map_err(|error| config::unusable(&error))?;
    let self_signed = if args.tls_self_signed { Some(self_signed::set_up(&mut loaded.config)?) } else { None };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::because(format!("cannot start: {error}")))?;
    // Before the first log line: the log file may already have its largest allowed size.
    runtime.block_on(async { os::ignore_file_size_signal() }).map_err(Failure::because)?;
    logging::start(&loaded.config.log)?;
    // The server logs the warnings of `validate` itself.
    let logged_by_server = loaded.config.validate().map_err(|error| config::unusable(&error))?;
    for warning in loaded.warnings.iter().filter(|warning| !logged_by_server.contains(warning)) {
        tracing::warn!("{warning}");
    }
    if env::config_file(args.config.as_ref()).is_none() && Path::new(FILE_USUAL).is_file() {
        tracing::warn!("{FILE_USUAL} in the working directory is not used; `--config {FILE_USUAL}` uses it");
    }
    os::raise_file_limit();
    let served = runtime.block_on(serve(args, loaded, self_signed));
    runtime.shutdown_timeout(RUNTIME_SHUTDOWN_TIMEOUT);
    served
}

async fn serve(args: &ServeArgs, loaded: Loaded, self_signed: Option<String>) -> Result<(), Failure> {
    let config = loaded.config.clone();
    os::ignore_user_signals().map_err(Failure::because)?;
    let hangups = os::hangups().map_err(Failure::because)?;
    // Before the store is opened. Otherwise a signal during a long start would end the process at once.
    let shutdown = if config.gracefully_exit { Some(os::shutdown().map_err(Failure::because)?) } else { None };
    // The address before the store: a second server, started by mistake, must not open the store of the first.
    let listener = os::listen(&config.host, config.port)?;
    let server = Server::start(config, listener).await.map_err(Failure::because)?;
    let (address, redis_protocol) = (server.local_addr(), server.redis_protocol_addr());
    tokio::spawn(reload::on_signals(hangups, server.handle(), sources(args), loaded.generated_api_key.clone()));
    // Removed when the server stops.
    let ca = self_signed.map(|pem| self_signed::write(&pem, address)).transpose()?;
    let kept_key = keep_dev_key(&loaded).unwrap_or_else(|error| {
        tracing::warn!(%error, "the API key cannot be kept, so the next start has another one; set api.keys");
        None
    });
    let files = banner::Files { ca: ca.as_deref(), kept_key: kept_key.as_deref() };
    banner::print(&loaded, address, redis_protocol, args.dev, files);
    if let Some(file) = &args.ready_file {
        write_ready_file(file, address, redis_protocol, &loaded.config)?;
    }
    systemd::notify_ready();
    systemd::start_watchdog();
    match shutdown {
        Some(shutdown) => {
            let stopping = async {
                shutdown.await;
                systemd::notify("STOPPING=1");
            };
            server.run(stopping).await
        }
        None => server.run(std::future::pending()).await,
    }
    .map_err(Failure::because)?;
    tracing::info!("stopped");
    Ok(())
}

/// Returns the sources of the configuration, with the options of the command line.
fn sources(args: &ServeArgs) -> Sources {
    let mut sources = env::sources(env::config_file(args.config.as_ref()));
    let mut flag = |key: &str, value: Option<Value>, flag: &str| {
        sources.flags.extend(value.map(|value| (key.to_owned(), value, flag.to_owned())));
    };
    let text = |text: &Option<String>| text.clone().map(Value::from);
    flag("port", args.port.map(Value::from), "--port");
    flag("host", text(&args.host), "--host");
    flag("path", text(&args.path), "--path");
    flag("namespace", text(&args.namespace), "--namespace");
    flag("store.path", text(&args.store_path), "--store-path");
    flag("log.level", text(&args.log_level), "--log-level");
    let format = args.log_format.map(|format| match format {
        LogFormat::Text => "text".into(),
        LogFormat::Json => "json".into(),
    });
    flag("log.format", format, "--log-format");
    sources.embedded = args.store == Some(StoreKind::Embedded);
    sources.dev = args.dev;
    sources
}

/// Writes the ready file for the program that started the server.
///
/// It is written atomically, and readable only by its owner, because it has an API key.
fn write_ready_file(
    file: &Path,
    address: SocketAddr,
    redis_protocol: Option<SocketAddr>,
    config: &Config,
) -> Result<(), Failure> {
    let ready = json!({
        "address": address.to_string(),
        "redisProtocol": redis_protocol.map(|address| address.to_string()),
        "apiKey": config.api.keys.first(),
        // The caller may have started a wrapper, with another process id.
        "pid": std::process::id(),
    });
    let written = || {
        let directory = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut temporary = tempfile::NamedTempFile::new_in(directory)?;
        temporary.write_all(ready.to_string().as_bytes())?;
        temporary.persist(file).map_err(|error| error.error)?;
        Ok::<_, std::io::Error>(())
    };
    written().map_err(|error| Failure::because(format!("cannot write {}: {error}", file.display())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Command, parse_words};

    #[test]
    fn option_becomes_a_setting_with_its_name_as_origin() {
        let words = "serve --port 0 --host ::1 --path /socket --namespace chat --store embedded --store-path /tmp/s \
                     --log-level debug --log-format json --config /etc/mesa.json5";
        let Ok(Command::Serve(args)) = parse_words(&words.split_whitespace().collect::<Vec<_>>()) else {
            panic!("rejected")
        };
        let sources = sources(&args);
        let expected = [
            ("port", json!(0), "--port"),
            ("host", json!("::1"), "--host"),
            ("path", json!("/socket"), "--path"),
            ("namespace", json!("chat"), "--namespace"),
            ("store.path", json!("/tmp/s"), "--store-path"),
            ("log.level", json!("debug"), "--log-level"),
            ("log.format", json!("json"), "--log-format"),
        ];
        let expected = expected.map(|(key, value, flag)| (key.to_owned(), value, flag.to_owned()));
        assert_eq!(sources.flags, expected);
        assert!(sources.embedded && !sources.dev);
        assert_eq!(sources.file.as_deref(), Some(Path::new("/etc/mesa.json5")));
    }

    #[test]
    fn option_that_is_not_given_sets_nothing() {
        let Ok(Command::Serve(args)) = parse_words(&["serve", "--dev"]) else { panic!("rejected") };
        let sources = sources(&args);
        assert!(sources.flags.is_empty() && sources.dev && !sources.embedded);
    }

    #[test]
    fn ready_file_has_address_and_key() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("ready");
        let mut config = Config::default();
        config.api.keys.push("0123456789abcdef".into());
        write_ready_file(&file, SocketAddr::from(([127, 0, 0, 1], 4000)), None, &config).unwrap();
        let text = std::fs::read_to_string(&file).unwrap();
        let expected = json!({
            "address": "127.0.0.1:4000", "redisProtocol": null, "apiKey": "0123456789abcdef", "pid": std::process::id(),
        });
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), expected);
    }
}
