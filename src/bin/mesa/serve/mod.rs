//! `mesa serve`: from what was typed to a running server, and its orderly end.

mod banner;

use std::{io::Write, net::SocketAddr, path::Path, time::Duration};

use mesa::{
    config::{Config, Loaded, Sources, load},
    server::Server,
};
use serde_json::{Value, json};

use crate::{
    args::{LogFormat, ServeArgs, StoreKind},
    config, env,
    error::Failure,
    logging, os,
};

/// What may still be at work in the background once the server has stopped gets this long.
const LEFTOVERS: Duration = Duration::from_secs(1);

/// Runs a server until it is told to stop.
pub fn run(args: &ServeArgs) -> Result<(), Failure> {
    let loaded = load(&sources(args)).map_err(|error| config::unusable(&error))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::because(format!("cannot start: {error}")))?;
    // Before the first line of the log, whose file may be as large as it may get.
    runtime.block_on(async { os::ignore_file_size_signal() }).map_err(Failure::because)?;
    logging::start(&loaded.config.log)?;
    // What the configuration itself is warned of, the server says when it is put together.
    let of_the_server = loaded.config.validate().map_err(|error| config::unusable(&error))?;
    for warning in loaded.warnings.iter().filter(|warning| !of_the_server.contains(warning)) {
        tracing::warn!("{warning}");
    }
    os::raise_file_limit();
    let served = runtime.block_on(serve(args, loaded));
    runtime.shutdown_timeout(LEFTOVERS);
    served
}

async fn serve(args: &ServeArgs, loaded: Loaded) -> Result<(), Failure> {
    let config = loaded.config.clone();
    os::ignore_reload_signals().map_err(Failure::because)?;
    // Before anything is opened, so that a signal during a long start is not met by the default: the end, at once.
    let shutdown = if config.gracefully_exit { Some(os::shutdown().map_err(Failure::because)?) } else { None };
    // And the address before the store: of two servers started by mistake, the second must not touch the first's.
    let listener = os::listen(&config.host, config.port)?;
    let server = Server::start(config, listener).await.map_err(Failure::because)?;
    let (address, redis_protocol) = (server.local_addr(), server.wire_addr());
    banner::print(&loaded, address, redis_protocol, args.dev);
    if let Some(file) = &args.ready_file {
        announce(file, address, redis_protocol, &loaded.config)?;
    }
    match shutdown {
        Some(shutdown) => server.run(shutdown).await,
        None => server.run(std::future::pending()).await,
    }
    .map_err(Failure::because)?;
    tracing::info!("stopped");
    Ok(())
}

/// What was typed, as settings.
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

/// Tells a program that waits for it where the server listens. The file is there in full or not at all, and for this
/// user alone: it has a key in it.
fn announce(
    file: &Path,
    address: SocketAddr,
    redis_protocol: Option<SocketAddr>,
    config: &Config,
) -> Result<(), Failure> {
    let ready = json!({
        "address": address.to_string(),
        "redisProtocol": redis_protocol.map(|address| address.to_string()),
        "apiKey": config.api.keys.first(),
        // Where a wrapper was started, this is the server under it.
        "pid": std::process::id(),
    });
    let written = || {
        let directory = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut draft = tempfile::NamedTempFile::new_in(directory)?;
        draft.write_all(ready.to_string().as_bytes())?;
        draft.persist(file).map_err(|error| error.error)?;
        Ok::<_, std::io::Error>(())
    };
    written().map_err(|error| Failure::because(format!("cannot write {}: {error}", file.display())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Command, typed};

    #[test]
    fn each_flag_is_a_setting_that_names_itself() {
        let words = "serve --port 0 --host ::1 --path /socket --namespace chat --store embedded --store-path /tmp/s \
                     --log-level debug --log-format json --config /etc/mesa.json5";
        let Ok(Command::Serve(args)) = typed(&words.split_whitespace().collect::<Vec<_>>()) else { panic!("refused") };
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
    fn what_is_not_typed_is_not_set() {
        let Ok(Command::Serve(args)) = typed(&["serve", "--dev"]) else { panic!("refused") };
        let sources = sources(&args);
        assert!(sources.flags.is_empty() && sources.dev && !sources.embedded);
    }

    #[test]
    fn who_waits_for_the_server_finds_address_and_key() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("ready");
        let mut config = Config::default();
        config.api.keys.push("0123456789abcdef".into());
        announce(&file, SocketAddr::from(([127, 0, 0, 1], 4000)), None, &config).unwrap();
        let text = std::fs::read_to_string(&file).unwrap();
        let expected = json!({
            "address": "127.0.0.1:4000", "redisProtocol": null, "apiKey": "0123456789abcdef", "pid": std::process::id(),
        });
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), expected);
    }
}
