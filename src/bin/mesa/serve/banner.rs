//! The few lines a person wants after starting a server: what it does, and how to reach it.

use std::{net::SocketAddr, path::absolute, sync::mpsc, thread, time::Duration};

use mesa::config::{Authentication, Config, Durability, Loaded, LogFormat};

use crate::output;

/// How long the start waits for the reader of standard output.
const PRINT_TIMEOUT: Duration = Duration::from_secs(1);

/// Prints them to standard output; to the log instead where that is for machines, unless a person tries things out and
/// needs the key.
pub fn print(loaded: &Loaded, address: SocketAddr, redis_protocol: Option<SocketAddr>, dev: bool) {
    let config = &loaded.config;
    if config.log.format == LogFormat::Json {
        let (store, users) = (store(config), users(&config.authentication));
        let redis = redis_protocol.map(|address| address.to_string());
        tracing::info!(%address, path = config.path, redis, sync = config.sync.enabled, store, users, "listening");
        if !dev {
            return;
        }
    }
    let text = text(loaded, address, redis_protocol, dev.then(program).as_deref());
    // A server whose standard output is closed, or whose reader stalls, serves all the same.
    let (done, printed) = mpsc::channel();
    let printing = thread::Builder::new().name("mesa-banner".into()).spawn(move || {
        _ = output::line(&text);
        _ = done.send(());
    });
    if printing.is_ok() {
        _ = printed.recv_timeout(PRINT_TIMEOUT);
    }
}

/// What this server was started as, so that the lines to copy can be copied.
fn program() -> String {
    std::env::args().next().filter(|name| !name.contains(char::is_whitespace)).unwrap_or_else(|| "mesa".into())
}

/// With the lines to copy where the name of the `program` in them is given.
fn text(loaded: &Loaded, address: SocketAddr, redis_protocol: Option<SocketAddr>, program: Option<&str>) -> String {
    let config = &loaded.config;
    let mut lines = vec![
        format!("mesa {} listens on {address}", env!("CARGO_PKG_VERSION")),
        format!("  clients    ws://{address}{}", config.path),
        format!("  backends   http://{address}/v1  {}", backends(config)),
        format!("  users      {}", users(&config.authentication)),
        format!("  store      {}", store(config)),
        format!("  sync       {}", sync(config)),
    ];
    if let Some(redis_protocol) = redis_protocol {
        let password = if config.redis_protocol.password.is_some() { ", with the password" } else { "" };
        lines.push(format!("  stock      redis://{redis_protocol} for Dispatchers and Portals{password}"));
    }
    if let Some(namespace) = &config.namespace {
        lines.push(format!("  namespace  {namespace}"));
    }
    if let Some(program) = program {
        lines.extend(try_it(loaded, address, program));
    }
    lines.join("\n")
}

fn backends(config: &Config) -> String {
    match config.api.keys.len() {
        0 => "(closed: set api.keys to let backends in)".into(),
        1 => "(1 key)".into(),
        keys => format!("({keys} keys)"),
    }
}

fn users(authentication: &Authentication) -> String {
    let Authentication { jwt, webhook, insecure, .. } = authentication;
    if let Some(jwt) = jwt {
        let published = if jwt.jwks.is_some() { ", checked with published keys" } else { "" };
        format!("show a JWT ({}){published}", jwt.algorithms.join(", "))
    } else if webhook.is_some() {
        "are who authentication.webhook says".into()
    } else if *insecure {
        "show their id as token, and are believed: for trying things only".into()
    } else {
        "cannot authenticate: set authentication.jwt or authentication.webhook, or start with --dev to try things"
            .into()
    }
}

fn store(config: &Config) -> String {
    if let Some(redis) = &config.redis {
        return format!("Redis at {}; what is answered is as safe as that keeps it", redis.addresses());
    }
    let path = absolute(&config.store.path).unwrap_or_else(|_| config.store.path.clone());
    let durability = match config.store.durability {
        Durability::Always => "a dispatch is answered once it would survive a power cut".into(),
        Durability::Interval(interval) => {
            format!("a dispatch is answered at once; a power cut may take back {} ms", interval.as_millis())
        }
        Durability::Never => "a dispatch is answered at once; a power cut may take it back".into(),
    };
    format!("{}; {durability}", path.display())
}

fn sync(config: &Config) -> &'static str {
    if config.sync.enabled {
        "on: messages wait for users who are away"
    } else {
        "off: who is away misses what is sent; set sync.enabled to keep it"
    }
}

/// Two lines to copy into another terminal.
fn try_it(loaded: &Loaded, address: SocketAddr, program: &str) -> Vec<String> {
    let config = &loaded.config;
    let usual = address.port() == Config::default().port && config.path == "/" && reaches_loopback(address);
    let url =
        |scheme: &str, path: &str| if usual { String::new() } else { format!(" --url {scheme}://{address}{path}") };
    let key = loaded.generated_api_key.as_deref().unwrap_or("ONE-OF-YOUR-API-KEYS");
    let who = if config.authentication.insecure { "--as alice" } else { "--token TOKEN" };
    vec![
        String::new(),
        format!("  API key    {key}"),
        String::new(),
        "Try it in other terminals:".into(),
        format!("  {program} connect {who}{}", url("ws", &config.path)),
        format!(
            "  MESA_API_KEY={key} {program} dispatch{} --to alice --type GREETING '{{\"text\":\"Hello\"}}'",
            url("http", "")
        ),
    ]
}

/// Whether the usual address of the other commands reaches this one.
fn reaches_loopback(address: SocketAddr) -> bool {
    address.is_ipv4() && (address.ip().is_loopback() || address.ip().is_unspecified())
}

#[cfg(test)]
mod tests {
    use mesa::config::{Sources, load};

    use super::*;

    fn shown(port: u16) -> String {
        let loaded = load(&Sources { dev: true, ..Sources::default() }).expect("--dev needs nothing");
        text(&loaded, SocketAddr::from(([127, 0, 0, 1], port)), None, Some("mesa"))
    }

    #[test]
    fn a_server_that_speaks_the_redis_protocol_says_where() {
        let loaded = load(&Sources { dev: true, ..Sources::default() }).expect("--dev needs nothing");
        let address = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let text = text(&loaded, address(4000), Some(address(6379)), None);
        assert!(text.contains("\n  stock      redis://127.0.0.1:6379 for Dispatchers and Portals"), "{text}");
    }

    #[test]
    fn each_way_to_tell_who_a_client_is_is_named() {
        let url = || ("authentication.webhook.url".to_owned(), "https://example.org/who".into(), "a test".to_owned());
        let jwks =
            || ("authentication.jwt.jwks.url".to_owned(), "https://example.org/keys".into(), "a test".to_owned());
        let algorithms = || ("authentication.jwt.algorithms".to_owned(), "RS256".into(), "a test".to_owned());
        for (flags, expected) in [
            (vec![url()], "are who authentication.webhook says"),
            (vec![jwks(), algorithms()], "show a JWT (RS256), checked with published keys"),
            (vec![], "cannot authenticate: set authentication.jwt or authentication.webhook"),
        ] {
            let loaded = load(&Sources { flags, ..Sources::default() }).expect("it holds");
            let text = text(&loaded, SocketAddr::from(([127, 0, 0, 1], 4000)), None, None);
            assert!(text.contains(&format!("\n  users      {expected}")), "{text}");
        }
    }

    #[test]
    fn a_server_for_trying_shows_lines_to_copy() {
        let text = shown(4000);
        assert!(text.contains("\n  mesa connect --as alice\n"), "{text}");
        assert!(text.contains("mesa dispatch --to alice"), "{text}");
    }

    #[test]
    fn lines_to_copy_name_the_port_where_it_is_not_the_usual() {
        let text = shown(4001);
        assert!(text.contains("mesa connect --as alice --url ws://127.0.0.1:4001/"), "{text}");
        assert!(text.contains("mesa dispatch --url http://127.0.0.1:4001 --to alice"), "{text}");
    }
}
