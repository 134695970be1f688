//! Prints the addresses and the main settings of a started server.

use std::{
    net::SocketAddr,
    path::{Path, absolute},
    sync::mpsc,
    thread,
    time::Duration,
};

use mesa::config::{Authentication, Config, Durability, Loaded, LogFormat, RedisProtocolTls};

use crate::output;

/// Longest wait for the reader of standard output.
const PRINT_TIMEOUT: Duration = Duration::from_secs(1);

/// Files that the banner names.
#[derive(Clone, Copy, Default)]
pub struct Files<'a> {
    /// The self-signed certificate, which clients have to trust.
    pub ca: Option<&'a Path>,
    /// The generated API key, kept for later starts.
    pub kept_key: Option<&'a Path>,
}

/// Prints the banner to standard output.
///
/// With `log.format: 'json'` it is a log line instead. With `--dev` both are written, because the user needs the API
/// key.
pub fn print(loaded: &Loaded, address: SocketAddr, redis_protocol: Option<SocketAddr>, dev: bool, files: Files<'_>) {
    let config = &loaded.config;
    if config.log.format == LogFormat::Json {
        let (store, users) = (store(config), users(&config.authentication));
        let redis_protocol = redis_protocol.map(|address| address.to_string());
        let sync = config.sync.enabled;
        let tls = config.tls.is_some();
        tracing::info!(%address, path = config.path, tls, redis_protocol, sync, store, users, "listening");
        if let Some(ca) = files.ca {
            tracing::info!(ca = %ca.display(), "clients have to trust this self-signed certificate");
        }
        if !dev {
            return;
        }
    }
    let text = text(loaded, address, redis_protocol, dev.then(output::program).as_deref(), files);
    // A closed standard output or a stalled reader must not stop the server.
    let (done, printed) = mpsc::channel();
    let printing = thread::Builder::new().name("mesa-banner".into()).spawn(move || {
        _ = output::line(&text);
        _ = done.send(());
    });
    if printing.is_ok() {
        _ = printed.recv_timeout(PRINT_TIMEOUT);
    }
}

/// Formats the banner, with commands to copy if `program` has a name.
fn text(
    loaded: &Loaded,
    address: SocketAddr,
    redis_protocol: Option<SocketAddr>,
    program: Option<&str>,
    files: Files<'_>,
) -> String {
    let config = &loaded.config;
    let (websocket, http) = schemes(config);
    let mut lines = vec![
        format!("mesa {} listens on {address}", env!("CARGO_PKG_VERSION")),
        format!("  clients    {websocket}://{address}{}", config.path),
        format!("  backends   {http}://{address}/v1  {}", backends(config)),
        format!("  users      {}", users(&config.authentication)),
        format!("  store      {}", store(config)),
        format!("  sync       {}", sync(config)),
    ];
    lines.extend(admin(config).map(|who| format!("  admin      {http}://{address}/admin  {who}")));
    if let Some(redis_protocol) = redis_protocol {
        let password = if config.redis_protocol.password.is_some() { ", with the password" } else { "" };
        let scheme = if config.redis_protocol.tls == RedisProtocolTls::Off { "redis" } else { "rediss" };
        lines.push(format!("  original   {scheme}://{redis_protocol} for Dispatchers and Portals{password}"));
    }
    if let Some(namespace) = &config.namespace {
        lines.push(format!("  namespace  {namespace}"));
    }
    if let Some(ca) = files.ca {
        let ca = ca.display();
        lines.push(format!("  tls        self-signed, for trials: clients trust it by {ca} (mesa: --ca, Node: NODE_EXTRA_CA_CERTS, curl: --cacert)"));
    }
    if let Some(program) = program {
        lines.extend(try_it(loaded, address, program, files));
    }
    lines.join("\n")
}

/// Returns the schemes of the URLs for WebSocket and HTTP.
fn schemes(config: &Config) -> (&'static str, &'static str) {
    if config.tls.is_some() { ("wss", "https") } else { ("ws", "http") }
}

fn backends(config: &Config) -> String {
    match config.api.keys.len() {
        0 => "(closed: set api.keys to allow backends)".into(),
        1 => "(1 key)".into(),
        keys => format!("({keys} keys)"),
    }
}

/// Describes who may use the admin page; `None` if there is none.
fn admin(config: &Config) -> Option<&'static str> {
    match config.admin.password {
        Some(_) => Some("(with the password)"),
        None if config.dev => Some("(open to this machine without a password, because of --dev)"),
        None => None,
    }
}

fn users(authentication: &Authentication) -> String {
    let Authentication { jwt, webhook, insecure, .. } = authentication;
    if let Some(jwt) = jwt {
        let published = if jwt.jwks.is_some() { ", verified with a JWKS" } else { "" };
        format!("authenticate with a JWT ({}){published}", jwt.algorithms.join(", "))
    } else if webhook.is_some() {
        "are authenticated by authentication.webhook".into()
    } else if *insecure {
        "use their id as token, without verification: for development only".into()
    } else {
        "cannot authenticate: set authentication.jwt or authentication.webhook, or start with --dev for development"
            .into()
    }
}

fn store(config: &Config) -> String {
    if let Some(redis) = &config.redis {
        return format!("Redis at {}; its persistence decides what a crash may lose", redis.addresses());
    }
    let path = absolute(&config.store.path).unwrap_or_else(|_| config.store.path.clone());
    let durability = match config.store.durability {
        Durability::Always => "a dispatch is answered after the sync, and survives a power cut".into(),
        Durability::Interval(interval) => {
            format!("a dispatch is answered before the sync; a power cut may lose the last {} ms", interval.as_millis())
        }
        Durability::Never => "a dispatch is answered before the sync; a power cut may lose it".into(),
    };
    format!("{}; {durability}", path.display())
}

fn sync(config: &Config) -> &'static str {
    if config.sync.enabled {
        "on: messages for offline users are stored"
    } else {
        "off: messages for offline users are dropped; set sync.enabled to store them"
    }
}

/// Returns commands to copy into another terminal.
fn try_it(loaded: &Loaded, address: SocketAddr, program: &str, files: Files<'_>) -> Vec<String> {
    let config = &loaded.config;
    let (websocket, http) = schemes(config);
    let is_default = config.tls.is_none()
        && address.port() == Config::default().port
        && config.path == "/"
        && reaches_loopback(address);
    let ca = files.ca.map_or_else(String::new, |ca| format!(" --ca {}", ca.display()));
    let url = |scheme: &str, path: &str| {
        if is_default { String::new() } else { format!(" --url {scheme}://{address}{path}") }
    };
    let key = loaded.generated_api_key.as_deref().unwrap_or("ONE-OF-YOUR-API-KEYS");
    let identity = if config.authentication.insecure { "--as alice" } else { "--token TOKEN" };
    let kept =
        files.kept_key.map(|file| format!("             the same at the next start: kept in {}", file.display()));
    let mut lines = vec![String::new(), format!("  API key    {key}")];
    lines.extend(kept);
    lines.extend([
        String::new(),
        "Try it in other terminals:".into(),
        format!("  {program} connect {identity}{}{ca}", url(websocket, &config.path)),
        format!(
            "  MESA_API_KEY={key} {program} dispatch{}{ca} --to alice --type GREETING '{{\"text\":\"Hello\"}}'",
            url(http, "")
        ),
    ]);
    lines
}

/// Returns whether the default address of the other commands reaches this server.
fn reaches_loopback(address: SocketAddr) -> bool {
    address.is_ipv4() && (address.ip().is_loopback() || address.ip().is_unspecified())
}

#[cfg(test)]
mod tests {
    use mesa::config::{Sources, load};

    use super::*;

    fn dev_banner(port: u16) -> String {
        let loaded = load(&Sources { dev: true, ..Sources::default() }).expect("--dev needs no other setting");
        let files = Files { kept_key: Some(Path::new("data/store/dev-api-key")), ..Files::default() };
        text(&loaded, SocketAddr::from(([127, 0, 0, 1], port)), None, Some("mesa"), files)
    }

    #[test]
    fn banner_has_the_address_of_the_redis_protocol() {
        let loaded = load(&Sources { dev: true, ..Sources::default() }).expect("--dev needs no other setting");
        let address = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let text = text(&loaded, address(4000), Some(address(6379)), None, Files::default());
        assert!(text.contains("\n  original   redis://127.0.0.1:6379 for Dispatchers and Portals"), "{text}");
    }

    #[test]
    fn banner_names_the_authentication_method() {
        let url = || {
            ("authentication.webhook.url".to_owned(), "https://example.org/authenticate".into(), "a test".to_owned())
        };
        let jwks =
            || ("authentication.jwt.jwks.url".to_owned(), "https://example.org/keys".into(), "a test".to_owned());
        let algorithms = || ("authentication.jwt.algorithms".to_owned(), "RS256".into(), "a test".to_owned());
        for (flags, expected) in [
            (vec![url()], "are authenticated by authentication.webhook"),
            (vec![jwks(), algorithms()], "authenticate with a JWT (RS256), verified with a JWKS"),
            (vec![], "cannot authenticate: set authentication.jwt or authentication.webhook"),
        ] {
            let loaded = load(&Sources { flags, ..Sources::default() }).expect("a valid configuration");
            let text = text(&loaded, SocketAddr::from(([127, 0, 0, 1], 4000)), None, None, Files::default());
            assert!(text.contains(&format!("\n  users      {expected}")), "{text}");
        }
    }

    #[test]
    fn dev_banner_has_commands_to_copy() {
        let text = dev_banner(4000);
        assert!(text.contains("\n  mesa connect --as alice\n"), "{text}");
        assert!(text.contains("mesa dispatch --to alice"), "{text}");
        assert!(text.contains("\n             the same at the next start: kept in data/store/dev-api-key\n"), "{text}");
    }

    #[test]
    fn commands_to_copy_have_the_port_if_it_is_not_the_default() {
        let text = dev_banner(4001);
        assert!(text.contains("mesa connect --as alice --url ws://127.0.0.1:4001/"), "{text}");
        assert!(text.contains("mesa dispatch --url http://127.0.0.1:4001 --to alice"), "{text}");
    }
}
