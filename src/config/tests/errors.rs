//! Tests error texts of invalid configurations.

use serde_json::json;

use super::*;

#[test]
fn invalid_value_is_an_error_with_key_and_hint() {
    let long = "x".repeat(300);
    let cases: &[(&str, &str)] = &[
        // Wrong types.
        ("{ port: '4000' }", "port must be a whole number from 0 to 65535, but is \"4000\""),
        ("{ port: -1 }", "port must be a whole number from 0 to 65535, but is -1"),
        ("{ port: 1.5 }", "port must be a whole number from 0 to 65535, but is 1.5"),
        ("{ port: 65536 }", "but is 65536"),
        ("{ port: null }", "but is null"),
        ("{ port: 1e300 }", "port must be"),
        ("{ sync: true }", "sync must be an object, but is true"),
        ("{ sync: { enabled: 'yes' } }", "sync.enabled must be true or false, but is \"yes\""),
        ("{ sync: { enabled: [] } }", "sync.enabled must be true or false, but is a list"),
        ("{ sync: { confirmation: 'maybe' } }", "sync.confirmation must be 'receipt' or 'write', but is \"maybe\""),
        ("{ api: { keys: 'abc' } }", "api.keys must be a list of strings, but is a string of 3 characters"),
        ("{ api: { keys: [1] } }", "api.keys[0] must be a string, but is 1"),
        ("{ namespace: 7 }", "namespace must be a string, but is 7"),
        ("{ log: { format: 'xml' } }", "log.format must be 'text' or 'json'"),
        // Unknown keys.
        ("{ prot: 1 }", "unknown key `prot`; the nearest known one is `port`"),
        ("{ heartbeats: { interval: 1 } }", "unknown key `heartbeats`; the nearest known one is `heartbeat`"),
        (
            "{ heartbeat: { intervall: 1 } }",
            "unknown key `heartbeat.intervall`; the nearest known one is `heartbeat.interval`",
        ),
        ("{ storeMessages: true }", "unknown key `storeMessages`; the nearest known one is `options.storeMessages`"),
        ("{ limits: { frame_bytes: 1 } }", "the nearest known one is `limits.frameBytes`"),
        ("{ trustedProxies: '10.0.0.0/8' }", "trustedProxies must be a list of strings"),
        (
            "{ trustedProxies: ['10.0.0.0/33'] }",
            "trustedProxies[0] must be a network or an address, like 10.0.0.0/8 or ::1",
        ),
        ("{ trustedProxies: ['::1', 'proxy.example.org'] }", "but is \"proxy.example.org\""),
        ("{ proxyProtocol: true }", "proxyProtocol is on, and trustedProxies names no proxy that may use it"),
        ("{ tls: { cert: 'a.pem' } }", "tls.key is missing; set it to the PEM file with its private key"),
        ("{ tls: { key: 'a.key' } }", "tls.cert is missing"),
        ("{ tls: { clientCa: 'ca.pem' } }", "tls has no certificate; set tls.cert and tls.key"),
        ("{ tls: { certificates: [] } }", "tls has no certificate; set tls.cert and tls.key"),
        (
            "{ tls: { certificates: [{ cert: 'a.pem' }] } }",
            "tls.certificates[0] must be { cert: 'FILE', key: 'FILE' }, but is an object",
        ),
        (
            "{ tls: { cert: 'a.pem', key: 'a.key', certificates: [{ cert: 'b.pem', key: 'b.key' }] } }",
            "tls has both certificates and cert or key",
        ),
        ("{ tls: { clientCertificates: 'maybe' } }", "tls.clientCertificates must be 'required' or 'optional'"),
        ("{ redisProtocol: { tls: true } }", "redisProtocol.tls is true, and tls has no certificate to share"),
        ("{ redisProtocol: { tls: 'yes' } }", "redisProtocol.tls must be true, false or { cert"),
        ("{ plumbing: { port: 1 } }", "unknown key `plumbing`; remove it"),
        ("{ sync: { maxMessage: 1 } }", "the nearest known one is `sync.maxMessages`"),
        // Bounds.
        ("{ sync: { maxAge: -1 } }", "sync.maxAge must be a whole number of milliseconds from 0 to"),
        ("{ sync: { maxMessages: 0 } }", "sync.maxMessages must be a whole number from 1 to"),
        ("{ sync: { maxBytes: 65535 } }", "sync.maxBytes must be a whole number from 65536 to"),
        ("{ sync: { overflow: 'drop' } }", "sync.overflow must be 'reject' or 'dropOldest', but is \"drop\""),
        ("{ sync: { deviceMaxAge: '30d' } }", "sync.deviceMaxAge must be a whole number of milliseconds"),
        ("{ sync: { maxDevices: 0 } }", "sync.maxDevices must be a whole number from 1 to 128"),
        ("{ store: { maxBytes: -1 } }", "store.maxBytes must be a whole number from 0 to"),
        ("{ store: { minFree: '1G' } }", "store.minFree must be a whole number from 0 to"),
        ("{ api: { idWindow: 0 } }", "api.idWindow must be a whole number of milliseconds from 1000 to"),
        ("{ api: { ids: 0 } }", "api.ids must be a whole number from 1 to"),
        ("{ authentication: { somethingUnheardOf: 1 } }", "unknown key `authentication.somethingUnheardOf`; remove it"),
        ("{ 'sync.enabled': true }", "`sync.enabled` has a dot in it; write groups as objects"),
        ("{ server: {} }", "server is only for use as a library"),
        ("{ beforeExit: 'x' }", "beforeExit is only for use as a library"),
        // Rules.
        ("{ host: 'example.org' }", "host must be an IP address or localhost, but is \"example.org\""),
        ("{ path: 'ws' }", "path must start with '/', but is \"ws\""),
        ("{ path: '/a?b' }", "path must be visible ASCII without spaces, '?' and '#'"),
        ("{ path: '/a#b' }", "path must be visible ASCII"),
        ("{ path: '/a b' }", "path must be visible ASCII"),
        ("{ path: '/é' }", "path must be visible ASCII"),
        ("{ path: '/v1' }", "path must not be at or under /v1, which the HTTP API uses"),
        ("{ path: '/v1/x' }", "path must not be at or under /v1"),
        ("{ path: '/healthz' }", "/healthz"),
        ("{ path: '/readyz' }", "/readyz"),
        ("{ path: '/metrics' }", "/metrics"),
        ("{ path: '/client.js' }", "/client.js"),
        ("{ redisProtocol: { port: 4000 } }", "redisProtocol.port and port are both 4000; choose two ports"),
        (
            "{ redisProtocol: { port: 1 }, limits: { frameBytes: 16777216 } }",
            "redisProtocol.backlogBytes is 8388608 and must be at least twice limits.frameBytes (16777216)",
        ),
        ("{ redisProtocol: { host: 'redis' } }", "redisProtocol.host must be an IP address or localhost"),
        ("{ redisProtocol: { password: '' } }", "redisProtocol.password must not be empty"),
        (
            "{ redisProtocol: { port: 1, host: '0.0.0.0' } }",
            "redisProtocol.host 0.0.0.0 is reachable from other machines",
        ),
        (
            "{ redisProtocol: { port: 1, host: '0.0.0.0', password: '1' } }",
            "redisProtocol.password has 1 characters, and redisProtocol.host 0.0.0.0",
        ),
        ("{ redisProtocol: { port: 1, host: '::', password: 'fifteen letters' } }", "set one of at least 16"),
        ("{ redisProtocol: { backlogBytes: 1 } }", "redisProtocol.backlogBytes must be a whole number from 131072"),
        ("{ admin: { password: '' } }", "admin.password must not be empty"),
        (
            "{ admin: { password: 'fifteen letters' } }",
            "admin.password has 15 characters, and host 0.0.0.0 is reachable from other machines",
        ),
        ("{ namespace: '' }", "namespace must have 1 to 64 characters"),
        ("{ namespace: 'a b' }", "letters, digits and any of _ . : -, but is \"a b\""),
        ("{ heartbeat: { enabled: true, interval: 0 } }", "heartbeat.interval is 0 ms while heartbeat.enabled is on"),
        ("{ reconnect: { enabled: true, interval: 0 } }", "reconnect.interval is 0 ms while reconnect.enabled is on"),
        (
            "{ heartbeat: { interval: 86400001 } }",
            "heartbeat.interval must be a whole number of milliseconds from 0 to 86400000, but is 86400001",
        ),
        ("{ heartbeat: { maxAttempts: 0 } }", "heartbeat.maxAttempts must be a whole number from 1 to 100, but is 0"),
        ("{ heartbeat: { maxAttempts: 101 } }", "but is 101"),
        ("{ authentication: { timeout: 0 } }", "authentication.timeout must be"),
        ("{ limits: { frameBytes: 10 } }", "limits.frameBytes must be a whole number from 1024 to 16777216, but is 10"),
        (
            "{ sync: { enabled: true }, host: '::1', authentication: { insecure: true, storeConnectedUsers: false } }",
            "sync.enabled needs authentication.storeConnectedUsers, which is false",
        ),
        ("{ authentication: { insecure: true } }", "host 0.0.0.0 is reachable from other machines"),
        ("{ authentication: { jwt: { issuer: 'a' } } }", "authentication.jwt needs a secret"),
        ("{ authentication: { jwt: { secret: '0123456789abcdef', keyFile: 'a' } } }", "both a secret (or WS_KEY"),
        (
            "{ authentication: { jwt: { secret: 'short' } } }",
            "authentication.jwt.secret has 5 bytes and must have at least 16",
        ),
        (
            "{ authentication: { jwt: { keyFile: 'a' } } }",
            "algorithms must name the accepted algorithms with a keyFile: some of RS256",
        ),
        (
            "{ authentication: { jwt: { keyFile: 'a', algorithms: ['HS256'] } } }",
            "has \"HS256\", which does not work with a keyFile",
        ),
        (
            "{ authentication: { jwt: { secret: '0123456789abcdef', algorithms: ['RS256'] } } }",
            "\"RS256\", which does not work with a secret",
        ),
        (
            "{ authentication: { jwt: { secret: '0123456789abcdef', algorithms: ['none'] } } }",
            "\"none\", which does not work",
        ),
        (
            "{ authentication: { jwt: { secret: '0123456789abcdef', algorithms: [] } } }",
            "must name the accepted algorithms with a secret",
        ),
        (
            "{ authentication: { jwt: { secret: '0123456789abcdef', audience: '' } } }",
            "authentication.jwt.audience must not be empty",
        ),
        (
            "{ authentication: { jwt: { secret: '0123456789abcdef', leeway: 3600001 } } }",
            "authentication.jwt.leeway must be",
        ),
        ("{ api: { keys: ['0123456789abcdef', 'short'] } }", "api.keys[1] has 5 characters and must have 16 to 512"),
        (
            "{ api: { keys: ['0123456789 abcdef'] } }",
            "api.keys[0] must be visible ASCII without spaces; `openssl rand -hex 16`",
        ),
        ("{ store: { durability: { interval: 0 } } }", "from 1 to 86400000, but is { interval: 0 }"),
        ("{ store: { durability: { interval: 'soon' } } }", "but is { interval: \"soon\" }"),
        ("{ store: { durability: { interval: 1, x: 1 } } }", "but is an object with other keys"),
        ("{ store: { durability: {} } }", "but is an object with other keys"),
        ("{ origins: ['*'] }", "origins[0] must be an origin as browsers send it"),
        ("{ origins: ['https://a/'] }", "leave origins out to allow any"),
        ("{ origins: ['https://A'] }", "in lower case"),
        ("{ api: { corsOrigins: ['https://a/app'] } }", "without a path, but is \"https://a/app\""),
        ("{ api: { corsOrigins: ['https://a', '*'] } }", "api.corsOrigins[1] must be an origin"),
        ("{ api: { corsOrigins: ['null'] } }", "set it to ['*'] alone"),
        ("{ log: { level: 'inof' } }", "log.level must be off, error, warn"),
        ("{ log: { level: 'info,mesa=loud' } }", "but is \"info,mesa=loud\""),
        ("{ store: { path: '' } }", "store.path must name a directory"),
        ("{ store: { cacheBytes: 1 } }", "store.cacheBytes must be"),
        ("{ client: { version: '' } }", "client.version must be 1 to 64"),
        (&format!("{{ path: '/{long}' }}"), "path may have at most 256 bytes"),
        (&format!("{{ namespace: '{long}' }}"), "namespace must have 1 to 64"),
    ];
    for (text, expected) in cases {
        let error = problems(text);
        assert!(error.contains(expected), "{text}: expected {expected:?} in {error:?}");
        assert_eq!(error.lines().count(), 1, "{text}: expected one problem:\n{error}");
        assert!(error.ends_with('.') && !error.contains(".."), "{error}");
    }
}

#[test]
fn value_at_a_bound_is_accepted() {
    for text in [
        "{ port: 0 }",
        "{ port: 65535 }",
        "{ port: 4e3 }",
        "{ port: 0xFA0 }",
        "{ path: '/v1x' }",
        "{ path: '/ws/v1' }",
        "{ host: 'localhost' }",
        "{ host: '::' }",
        "{ namespace: 'a.B_1:-' }",
        "{ heartbeat: { enabled: true, interval: 86400000, maxAttempts: 100 } }",
        "{ heartbeat: { enabled: false, interval: 0 } }",
        "{ origins: ['https://example.org', 'http://localhost:8080', 'null'] }",
        "{ origins: [] }",
        "{ api: { corsOrigins: ['https://example.org', 'http://localhost:8080'] } }",
        "{ api: { corsOrigins: ['*'] } }",
        "{ log: { level: 'INFO,mesa=debug,mesa::hub=off' } }",
        "{ host: '127.0.0.2', authentication: { insecure: true } }",
        "{ host: '::ffff:127.0.0.1', authentication: { insecure: true } }",
        "{ authentication: { insecure: true, insecurePublic: true } }",
        "{ sync: null }",
    ] {
        load_text(text).unwrap_or_else(|error| panic!("{text}: {error}"));
    }
}

#[test]
fn all_problems_are_reported_at_once_with_their_origins() {
    let error = load_with("{ prot: 1, heartbeat: { enabled: true, interval: 0 }, path: 'x' }", |sources| {
        sources.env = env(&[("MESA_HOST", "nowhere"), ("AUTH_REQUIRED", "?")]);
    })
    .unwrap_err();
    let text = error.to_string();
    assert_eq!(error.problems().len(), 5, "{text}");
    assert_eq!(text.lines().count(), 5);
    assert!(text.contains("environment variable MESA_HOST: host must be"), "{text}");
    assert!(text.contains("environment variable AUTH_REQUIRED: authentication.required must be"), "{text}");
    let in_file = text.lines().filter(|line| line.starts_with(std::env::temp_dir().to_str().unwrap())).count();
    assert_eq!(in_file, 3, "{text}");
}

/// A string literal that goes on in the next line without a backslash has the indentation in it.
#[test]
fn texts_have_no_runs_of_spaces() {
    for text in [
        "{ admin: { password: 'short' } }",
        "{ admin: { password: '' } }",
        "{ redisProtocol: { port: 6379, host: '0.0.0.0', password: 'short' } }",
        "{ redisProtocol: { port: 6379, host: '0.0.0.0' } }",
        "{ authentication: { insecure: true } }",
        "{ tls: { cert: 'a' } }",
        "{ api: { keys: ['short'] }, authentication: { jwt: { secret: 'short' } } }",
    ] {
        let error = problems(text);
        assert!(!error.trim_start().contains("  "), "{error}");
    }
}

/// A value that cannot be decoded is replaced by its default, which must cause no second problem.
#[test]
fn undecodable_value_is_reported_as_one_problem() {
    let error = problems("{ sync: { enabled: true }, authentication: { jwt: { secret: 7 } } }");
    assert_eq!(error.lines().count(), 1, "{error}");
    assert!(error.contains("authentication.jwt.secret must be a string, but is 7"), "{error}");
}

#[test]
fn error_never_shows_a_secret() {
    let hidden = "hidden-one";
    for text in [
        json!({ "api": { "keys": [hidden] } }),
        json!({ "api": { "keys": hidden } }),
        json!({ "authentication": { "jwt": { "secret": hidden } } }),
        json!({ "authentication": { "jwt": { "secret": [hidden] } } }),
        json!({ "redis": { "password": [hidden] } }),
        json!({ "authentication": hidden }),
    ] {
        let error = problems(&text.to_string());
        assert!(!error.contains(hidden), "{error}");
    }
}

#[test]
fn syntax_error_has_line_and_column() {
    let error = problems("{\n  port: 4000,\n  path '/'\n}");
    assert!(error.ends_with("line 3, column 8: this is not JSON5: expected colon."), "{error}");
    let error = problems("{\n  port: 4000,\n");
    assert!(error.contains("line 1, column 1: the text ends within what begins here"), "{error}");
    for (text, expected) in [
        ("[]", "the configuration must be an object"),
        ("{} {}", "trailing characters"),
        ("{ port: 1, port: 2 }", "the key `port` is in one object twice; remove one of the two"),
        ("{ sync: { enabled: false, 'enabled': true } }", "the key `sync.enabled` is in one object twice"),
        ("{ port: NaN }", "a number must be finite"),
        ("{ port: Infinity }", "a number must be finite"),
    ] {
        let error = problems(text);
        assert!(error.contains(expected), "{text}: expected {expected:?} in {error:?}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
}

#[test]
fn keys_given_twice_and_wrong_items_are_reported_together() {
    let error = problems(
        "{ port: 1, port: 2, port: 3, sync: { enabled: true, enabled: 1, maxAge: 'x' },
           api: { keys: [1, 'a-key-of-sixteen-characters', null, [], 'b'] }, trustedProxies: [true],
           tls: { certificates: [{ cert: 'c' }, { cert: 'c', key: 'k', key: 'l' }, 'cert'] }, wrong: [{ a: 1, a: 2 }] }",
    );
    for expected in [
        "the key `port` is in one object twice; remove one of the two.",
        "the key `sync.enabled` is in one object twice",
        "the key `tls.certificates[1].key` is in one object twice",
        "the key `wrong[0].a` is in one object twice",
        "sync.maxAge must be a whole number of milliseconds",
        "api.keys[0] must be a string, but is 1.",
        "api.keys[2] must be a string, but is null.",
        "api.keys[3] must be a string, but is a list of strings.",
        "trustedProxies[0] must be a string, but is true.",
        "tls.certificates[0] must be { cert: 'FILE', key: 'FILE' }, but is an object.",
        "tls.certificates[2] must be { cert: 'FILE', key: 'FILE' }, but is \"cert\".",
        "unknown key `wrong`",
    ] {
        assert!(error.contains(expected), "expected {expected:?} in\n{error}");
    }
    assert!(!error.contains("sync.enabled must"), "the first value counts: {error}");
}

#[test]
fn reported_keys_and_items_are_bounded() {
    let error = problems(&format!("{{ api: {{ keys: [{}] }}, {} }}", "1,".repeat(1000), "port: 1,".repeat(1000)));
    assert_eq!(error.matches("twice").count(), 20, "{error}");
    assert_eq!(error.matches("must be a string").count(), 20, "{error}");
    assert!(error.contains("api.keys has 980 more items that are wrong"), "{error}");
}

#[test]
fn file_depth_and_size_are_bounded() {
    for (open, close) in [("[", "]"), ("{a:", "}")] {
        let deep = format!("{{ redis: {}1{} }}", open.repeat(100_000), close.repeat(100_000));
        let error = problems(&deep);
        assert!(error.contains("nested more than 32 deep"), "{error}");
        let fits = format!("{{ redis: {}1{} }}", open.repeat(31), close.repeat(31));
        assert!(load_with(&fits, |sources| sources.embedded = true).is_ok());
    }
    let error = problems(&format!("{{}}{}", " ".repeat(1 << 20)));
    assert!(error.contains("at most 1048576 bytes"), "{error}");
    let widest = format!("{{}}{}", " ".repeat((1 << 20) - 2));
    assert!(load_text(&widest).is_ok());
}

#[test]
fn unreadable_file_is_named_in_the_error() {
    let read = |path: &str| load(&Sources { file: Some(path.into()), ..Sources::default() }).unwrap_err().to_string();
    let error = read("/nonexistent/mesa.json5");
    assert!(
        error.starts_with("/nonexistent/mesa.json5: the configuration file cannot be read: No such file"),
        "{error}"
    );
    assert!(read("/").starts_with("/: the configuration file cannot be read"));
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(b"{ path: '\xff' }").unwrap();
    let error = read(file.path().to_str().unwrap());
    assert!(error.contains("must be UTF-8 text, but byte 10 is not"), "{error}");
}

/// The bounds also apply to a configuration that a program builds field by field.
#[test]
fn config_built_in_code_is_validated() {
    let rejected = |change: fn(&mut Config), expected: &str| {
        let mut config = Config::default();
        change(&mut config);
        let error = config.validate().expect_err(expected).to_string();
        assert!(error.contains(expected), "{error}");
    };
    rejected(|config| config.limits.queue = 0, "limits.queue must be");
    rejected(|config| config.heartbeat.max_attempts = 1000, "heartbeat.maxAttempts must be");
    rejected(|config| config.store.cache_bytes = 0, "store.cacheBytes must be");
    rejected(|config| config.sync.max_bytes = 1, "sync.maxBytes must be");
    rejected(|config| config.sync.max_age = Duration::MAX, "sync.maxAge must be");
    rejected(|config| config.store.min_free = u64::MAX, "store.minFree must be");
    rejected(|config| config.api.id_window = Duration::ZERO, "api.idWindow must be");
    rejected(|config| config.limits.write_timeout = Duration::MAX, "limits.writeTimeout must be");
    rejected(|config| config.authentication.timeout = Duration::from_micros(1), "authentication.timeout must be");
    rejected(
        |config| config.store.durability = Durability::Interval(Duration::ZERO),
        "store.durability has an interval of 0",
    );
    // Each number of a rendered configuration, below and above its bounds.
    for key in KEYS {
        let (Kind::Integer { min, max } | Kind::Millis { min, max }) = key.kind else { continue };
        for number in [min.checked_sub(1), Some(max + 1)].into_iter().flatten() {
            let mut checks = validate::Checks::default();
            checks.numbers(&nested(key.name, number.into()));
            let problems: Vec<String> = checks.problems.iter().map(ToString::to_string).collect();
            assert_eq!(problems.len(), 1, "{}: {problems:?}", key.name);
            assert!(problems[0].contains(&format!("{} must be", key.name)), "{problems:?}");
        }
    }
    assert_eq!(
        Config::default().validate().unwrap().len(),
        2,
        "one warning for no authentication, one for no API keys"
    );
}

#[test]
fn weak_setting_causes_a_warning() {
    let warned = |text: &str, expected: &str| {
        let warnings = load_text(text).unwrap().warnings;
        assert!(
            warnings.iter().any(|warning| warning.contains(expected)),
            "{text}: expected {expected:?} in {warnings:?}"
        );
    };
    warned("{ authentication: { jwt: { secret: '0123456789abcdef' } } }", "16 bytes; 32 or more are advised");
    warned("{ host: '127.0.0.1', authentication: { insecure: true } }", "every token is accepted");
    warned("{ authentication: { insecure: true, insecurePublic: true } }", "can read every user's messages");
    warned("{ authentication: { insecure: true, jwt: { secret: '0123456789abcdef' } } }", "has no effect next to");
    let small = "{ sync: { enabled: true }, store: { maxBytes: 1000000 }, authentication: { insecure: true, \
                 insecurePublic: true } }";
    warned(small, "one offline user can fill the store");
    warned("{}", "api.keys is empty");
    for method in ["authentication.jwt (secret", "WS_KEY", "keyFile", "jwks", "authentication.webhook", "--dev"] {
        warned("{ sync: { enabled: true } }", method);
    }
    let quiet = json!({ "authentication": { "jwt": { "secret": SECRET } }, "api": { "keys": [API_KEY] } }).to_string();
    assert_eq!(load_text(&quiet).unwrap().warnings, Vec::<String>::new());
}

proptest::proptest! {
    #[test]
    fn arbitrary_text_is_parsed_or_rejected_without_panic(text in r#"[{}\[\]:,'"a-c0-9 \\/\*.xXuU+\-eENInft\n\u{2028}é]{0,60}"#) {
        let _ = file::parse(&text, &mut Vec::new());
        let _ = file::parse(&format!("{{ a: {text} }}"), &mut Vec::new());
    }
}

#[test]
fn code_in_the_file_is_named_with_its_line() {
    for (text, line) in [
        ("const mesa = require('x')", 1),
        ("module.exports = { port: 4000 }", 1),
        ("{\n  port: process.env.PORT,\n}", 2),
        ("{\n  authentication: {\n    callback: async token => ({}) },\n}", 3),
        ("{ port: 4000,\n  beforeExit: function () {} }", 2),
    ] {
        let error = problems(text);
        let expected = format!("line {line}: functions and code do not belong in the file");
        assert!(error.contains(&expected), "{text}: {error}");
    }
    assert!(!problems("{ port: 4000 path: '/' }").contains("code"));
}

#[test]
fn empty_file_is_an_error_that_says_so() {
    for text in ["", " \n\n", "// nothing\n"] {
        assert!(problems(text).contains("the configuration file is empty"), "{text:?}");
    }
}
