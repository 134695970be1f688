//! Tests the configuration: every key, its default, its variable and its rendering.

mod endpoints;
mod errors;
mod sources;

use std::{fs, io::Write as _};

use serde_json::Value;

use super::*;
use schema::{KEYS, Kind};

/// Loads `text` as the file.
fn load_text(text: &str) -> Result<Loaded, ConfigError> {
    load_with(text, |_| {})
}

/// Loads `text` as the file, together with other sources.
fn load_with(text: &str, change: impl FnOnce(&mut Sources)) -> Result<Loaded, ConfigError> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    let mut sources = Sources { file: Some(file.path().to_owned()), ..Sources::default() };
    change(&mut sources);
    load(&sources)
}

/// Returns the problems of `text`, one per line.
fn problems(text: &str) -> String {
    load_text(text).map(|loaded| loaded.config).expect_err(text).to_string()
}

fn env(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// Returns the value at a dotted name.
fn at<'a>(value: &'a Value, name: &str) -> &'a Value {
    name.split('.').fold(value, |value, word| value.get(word).unwrap_or_else(|| panic!("no {name}")))
}

/// Returns nested objects with `value` at a dotted name.
fn nested(name: &str, value: Value) -> Value {
    name.rsplit('.').fold(value, |value, word| serde_json::json!({ word: value }))
}

/// Object in the documentation of the original, unchanged.
const DOCUMENTED: &str = "{
  port: 4000,
  redis: 'redis://localhost:6379',            // cluster builds only
  sync: { enabled: true, redeliveryInterval: 1000 },
  authentication: { storeConnectedUsers: true }
}";

/// Key for the HTTP API.
const API_KEY: &str = "0123456789abcdef";
/// Secret that is long enough to cause no warning.
const SECRET: &str = "0123456789abcdef0123456789abcdef";

#[test]
fn documented_object_loads_unchanged_without_redis() {
    let loaded = load_with(DOCUMENTED, |sources| {
        sources.embedded = true;
        sources.env = env(&[("WS_KEY", SECRET)]);
    })
    .unwrap();
    assert_eq!(loaded.config.port, 4000);
    assert!(loaded.config.sync.enabled);
    assert_eq!(loaded.config.sync.redelivery_interval, Duration::from_secs(1));
    assert!(loaded.warnings.iter().any(|warning| warning.contains("redis")), "{:?}", loaded.warnings);

    let loaded = load_with(DOCUMENTED, |sources| sources.embedded = true).unwrap();
    let expected = "sync.enabled needs authentication";
    assert!(loaded.warnings.iter().any(|warning| warning.contains(expected)), "{:?}", loaded.warnings);

    let loaded = load_with(DOCUMENTED, |sources| (sources.embedded, sources.dev) = (true, true)).unwrap();
    assert!(loaded.config.authentication.insecure);

    #[cfg(not(feature = "redis"))]
    assert!(problems(DOCUMENTED).contains("--store embedded"));
    #[cfg(feature = "redis")]
    {
        let loaded = load_with(DOCUMENTED, |_| {}).unwrap();
        assert_eq!(loaded.config.redis, Some(crate::config::Redis::One("redis://localhost:6379".into())));
    }
}

#[cfg(feature = "redis")]
#[test]
fn redis_is_read_from_file_and_environment_and_never_shown() {
    let loaded = |name: &str, text: &str| load_with("{}", |sources| sources.env = env(&[(name, text)])).unwrap().config;
    let uri = loaded("REDIS_URI", "redis://u:sesame@h");
    assert!(uri.redis.is_some() && !format!("{uri:?}{}", uri.effective()).contains("sesame"));
    assert!(matches!(loaded("REDIS_SENTINELS", "a:1,b").redis, Some(crate::config::Redis::Sentinel { .. })));
    for (redis, expected) in
        [("''", "is empty"), ("{ hots: 'a' }", "redis.hots"), ("'http://u:sesame@h'", "must be a URL")]
    {
        let error = problems(&format!("{{ redis: {redis} }}"));
        assert!(error.contains(expected) && !error.contains("sesame"), "{error}");
    }
    // The outbox is in the embedded store.
    let webhook =
        "portal: { webhook: { url: 'https://a.example/', secret: 'whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw' } }";
    assert!(load_text(&format!("{{ {webhook} }}")).is_ok());
    let error = problems(&format!("{{ redis: 'redis://h', {webhook} }}"));
    assert!(error.contains("portal.webhook needs the embedded store"), "{error}");
}

#[cfg(not(feature = "redis"))]
#[test]
fn redis_in_each_form_is_rejected_without_the_feature() {
    for redis in ["'redis://a'", "{ host: 'a', anything: [1] }", "[{ host: 'a' }, { host: 'b' }]", "''"] {
        let error = problems(&format!("{{ redis: {redis} }}"));
        assert!(error.contains("or start with `--store embedded`"), "{error}");
    }
    for name in ["REDIS_URI", "REDIS_SENTINELS"] {
        let error = load_with("{}", |sources| sources.env = env(&[(name, "redis://u:password@h")])).unwrap_err();
        assert!(error.to_string().starts_with(&format!("environment variable {name}: redis is set")), "{error}");
        assert!(!error.to_string().contains("password"));
    }
    assert!(load_text("{ redis: null }").is_ok());
}

#[test]
fn sample_file_has_every_key_with_its_default() {
    let text = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/data/mesa.json5")).unwrap();
    assert_eq!(load_text(&text).unwrap().config, Config::default());
    let sample = Value::Object(file::parse(&text, &mut Vec::new()).unwrap());
    for key in KEYS.iter().filter(|key| !matches!(key.kind, Kind::Library)) {
        at(&sample, key.name);
        for name in key.env {
            assert!(text.contains(name), "{name} is not in the sample");
        }
    }
}

#[test]
fn configuration_of_the_readme_loads_and_warns_only_of_its_public_secret() {
    let readme = include_str!("../../../README.md");
    let sample = readme.split("// mesa.json5\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let loaded = load_text(sample).unwrap();
    assert!(loaded.config.sync.enabled && loaded.config.authentication.jwt.is_some());
    let [warning] = &loaded.warnings[..] else { panic!("{:?}", loaded.warnings) };
    assert!(warning.contains("authentication.jwt.secret is the sample of the documentation"), "{warning}");
}

#[test]
fn secret_in_a_sample_of_the_guide_is_long_enough() {
    let (guide, mut secrets) = (concat!(env!("CARGO_MANIFEST_DIR"), "/src/guide"), 0);
    for file in fs::read_dir(guide).unwrap() {
        let text = fs::read_to_string(file.unwrap().path()).unwrap();
        for secret in text.split("secret: '").skip(1).filter_map(|rest| rest.split('\'').next()) {
            if secret != "…" {
                assert!(secret.len() >= SECRET.len(), "{secret}");
                secrets += 1;
            }
        }
    }
    assert!(secrets >= 2, "a sample is no longer found");
}

#[test]
fn guide_has_every_key_with_its_default() {
    let text = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/src/guide/configuration.md")).unwrap();
    let (defaults, mut rows) = (Config::default().effective(), 0);
    let mut of_keys = false;
    for row in text.lines().filter(|line| {
        // Other tables have first cells with the name of a key too.
        of_keys = line.starts_with('|') && (of_keys || line.starts_with("| key | default |"));
        of_keys && line.starts_with("| `")
    }) {
        let mut cells = row.split('|').map(|cell| cell.trim().trim_matches('`'));
        let (Some(name), Some(default)) = (cells.nth(1), cells.next()) else { continue };
        if schema::find(name).is_some() {
            let expected: Value = json5::from_str(default).unwrap();
            assert_eq!(at(&defaults, name), &expected, "{row}");
            rows += 1;
        }
    }
    assert_eq!(rows, 105, "a row was added, or is no longer found");
}

fn leaf(name: &str) -> &str {
    name.rsplit_once('.').map_or(name, |(_, leaf)| leaf)
}

/// Returns a value other than the default, for each key that has a field.
fn another(key: &schema::Key, default: &Value) -> Option<Value> {
    Some(match key.kind {
        Kind::Bool => (!default.as_bool().unwrap_or(false)).into(),
        // The two ports have to differ.
        Kind::Integer { .. } if key.name == "redisProtocol.port" => 6379.into(),
        Kind::Millis { .. } if leaf(key.name) == "retryMax" => 2000.into(),
        Kind::Millis { .. } if leaf(key.name) == "maxStale" => 86_400_007.into(),
        Kind::Integer { min, .. } | Kind::Millis { min, .. } => (min + 7).into(),
        Kind::Choice(names) => names[1].into(),
        Kind::Durability => serde_json::json!({ "interval": 250 }),
        Kind::Texts => match key.name {
            "origins" | "api.corsOrigins" => vec!["https://example.org"].into(),
            "authentication.jwt.algorithms" => vec!["HS512"].into(),
            "trustedProxies" => vec!["10.0.0.0/8", "::1"].into(),
            "portal.webhook.events" => vec!["undelivered"].into(),
            _ => vec![API_KEY].into(),
        },
        Kind::Text => match key.name {
            "host" => "127.0.0.1".into(),
            "redisProtocol.host" => "::1".into(),
            "admin.password" => SECRET.into(),
            "path" => "/socket".into(),
            "log.level" => "debug".into(),
            name if leaf(name) == "url" => "https://example.org/another".into(),
            name if leaf(name) == "secret" => SECRET.into(),
            _ => "another".into(),
        },
        Kind::Certificates => {
            let files = |name: &str| serde_json::json!({ "cert": format!("{name}.pem"), "key": format!("{name}.key") });
            vec![files("a"), files("b")].into()
        }
        Kind::RedisTls => true.into(),
        Kind::Redis | Kind::Library => return None,
    })
}

/// Returns a file with `value` at `key`, and the other keys that it needs to be valid.
fn file_with(key: &schema::Key, value: &Value) -> Value {
    let mut file = nested(key.name, value.clone());
    let jwt = file.pointer_mut("/authentication/jwt").and_then(Value::as_object_mut);
    if let Some(jwt) = jwt {
        if key.name == "authentication.jwt.keyFile" {
            jwt.insert("algorithms".into(), vec!["ES256"].into());
        } else if let Some(jwks) = jwt.get_mut("jwks").and_then(Value::as_object_mut) {
            jwks.entry("url").or_insert("https://example.org/keys".into());
            jwt.insert("algorithms".into(), vec!["ES256"].into());
        } else {
            jwt.entry("secret").or_insert(SECRET.into());
        }
    }
    for pointer in ["/portal/webhook", "/authentication/webhook"] {
        if let Some(webhook) = file.pointer_mut(pointer).and_then(Value::as_object_mut) {
            webhook.entry("url").or_insert("https://example.org/hooks".into());
            webhook.entry("secret").or_insert(SECRET.into());
        }
    }
    if key.name == "proxyProtocol" {
        file["trustedProxies"] = vec!["::1"].into();
    }
    if key.name == "redisProtocol.tls" {
        file["tls"] = serde_json::json!({});
    }
    let tls = file.pointer_mut("/tls").and_then(Value::as_object_mut);
    if let Some(tls) = tls.filter(|tls| !tls.contains_key("certificates")) {
        tls.entry("cert").or_insert("cert.pem".into());
        tls.entry("key").or_insert("key.pem".into());
    }
    if key.name == "authentication.insecure" {
        file["host"] = "127.0.0.1".into();
    }
    if key.name == "sync.enabled" {
        file["authentication"] = serde_json::json!({ "jwt": { "secret": SECRET } });
    }
    file
}

/// Tests each key alone: the value of the file is in effect, and is rendered.
#[test]
fn every_key_is_decoded_and_rendered() {
    let defaults = Config::default().effective();
    let mut read = 0;
    for key in KEYS {
        let Some(value) =
            another(key, defaults.pointer(&format!("/{}", key.name.replace('.', "/"))).unwrap_or(&Value::Null))
        else {
            continue;
        };
        let loaded =
            load_text(&file_with(key, &value).to_string()).unwrap_or_else(|error| panic!("{}: {error}", key.name));
        let printed = loaded.config.effective();
        match key.name {
            "redisProtocol.password" | "admin.password" => assert_eq!(at(&printed, key.name), "********"),
            name if leaf(name) == "secret" => assert_eq!(at(&printed, name), "********"),
            "api.keys" => assert_eq!(at(&printed, key.name), &serde_json::json!(["********"])),
            name => assert_eq!(at(&printed, name), &value, "{name}"),
        }
        let changed = Config::default().changed_keys(&loaded.config);
        assert!(changed.contains(&key.name), "{}: {changed:?}", key.name);
        read += 1;
    }
    assert_eq!(read, KEYS.len() - 3, "all but redis, server and beforeExit");
}

#[test]
fn rendered_config_has_exactly_the_known_keys() {
    fn leaves(value: &Value, prefix: &str, into: &mut Vec<String>) {
        match value {
            Value::Object(map) => map.iter().for_each(|(word, value)| {
                leaves(value, &if prefix.is_empty() { word.clone() } else { format!("{prefix}.{word}") }, into);
            }),
            _ => into.push(prefix.to_owned()),
        }
    }
    let mut printed = Vec::new();
    leaves(&Config::default().effective(), "", &mut printed);
    let mut known: Vec<_> =
        KEYS.iter().filter(|key| !matches!(key.kind, Kind::Library)).map(|key| key.name.to_owned()).collect();
    printed.sort();
    known.sort();
    assert_eq!(printed, known);
}

#[test]
fn rendered_config_with_secrets_put_back_loads_unchanged() {
    let mut everything = Value::Object(serde_json::Map::new());
    let defaults = Config::default().effective();
    // Only one authentication method can be configured.
    // And one form of the certificates.
    let others =
        ["authentication.jwt.keyFile", "authentication.jwt.jwks.", "authentication.webhook.", "tls.certificates"];
    for key in KEYS.iter().filter(|key| !others.iter().any(|other| key.name.starts_with(other))) {
        let pointer = format!("/{}", key.name.replace('.', "/"));
        if let Some(value) = another(key, defaults.pointer(&pointer).unwrap_or(&Value::Null)) {
            // With sync on it has to be true.
            let value = if key.name == "authentication.storeConnectedUsers" { true.into() } else { value };
            merge_into(&mut everything, nested(key.name, value));
        }
    }
    for text in [everything.to_string(), "{}".to_owned()] {
        let config = load_text(&text).unwrap().config;
        let mut printed = config.effective();
        if let Some(jwt) = &config.authentication.jwt {
            printed["authentication"]["jwt"]["secret"] = jwt.secret.clone().into();
        }
        if let Some(webhook) = &config.portal.webhook {
            printed["portal"]["webhook"]["secret"] = webhook.secret.clone().into();
        }
        printed["redisProtocol"]["password"] = config.redis_protocol.password.clone().into();
        printed["admin"]["password"] = config.admin.password.clone().into();
        printed["api"]["keys"] = config.api.keys.clone().into();
        assert_eq!(load_text(&printed.to_string()).unwrap().config, config);
    }
}

#[test]
fn certificates_are_decoded_and_rendered_in_each_form() {
    let own = "{ redisProtocol: { tls: { cert: 'a.pem', key: 'a.key' } } }";
    let config = load_text(own).unwrap().config;
    assert_eq!(config.redis_protocol.tls, RedisProtocolTls::Own(Certificate::files("a.pem", "a.key")));
    assert_eq!(load_text(&config.effective().to_string()).unwrap().config, config);
    // A list of one certificate is the same as that certificate.
    let one = load_text("{ tls: { certificates: [{ cert: 'a.pem', key: 'a.key' }] } }").unwrap().config;
    assert_eq!(one, load_text("{ tls: { cert: 'a.pem', key: 'a.key' } }").unwrap().config);
    assert_eq!(one.tls, Some(Tls::new(Certificate::files("a.pem", "a.key"))));
}

fn merge_into(into: &mut Value, from: Value) {
    match from {
        Value::Object(map) if into.is_object() => {
            for (word, value) in map {
                merge_into(&mut into[&word], value);
            }
        }
        other => *into = other,
    }
}

#[test]
fn rendered_config_has_no_secret() {
    let secret = "a very secret secret of enough bytes";
    let (password, admin) = ("a password of the Redis protocol", "a password of the admin page");
    let text = format!(
        "{{ api: {{ keys: ['{API_KEY}'] }}, authentication: {{ jwt: {{ secret: '{secret}' }} }}, \
         redisProtocol: {{ password: '{password}' }}, admin: {{ password: '{admin}' }} }}"
    );
    let loaded = load_text(&text).unwrap();
    let shown = format!("{loaded:?} {:?} {}", loaded.config, loaded.config.effective());
    assert!([secret, API_KEY, password, admin].iter().all(|each| !shown.contains(each)), "{shown}");
    assert!(load_text(&loaded.config.effective().to_string()).is_err(), "a masked secret is rejected");
}
