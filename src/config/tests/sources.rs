//! Tests the sources of the configuration and their precedence.

use serde_json::json;

use super::*;

fn flag(name: &str, value: impl Into<Value>, typed: &str) -> (String, Value, String) {
    (name.to_owned(), value.into(), typed.to_owned())
}

#[test]
fn later_source_overrides_an_earlier_one() {
    let from_all_sources = |change: fn(&mut Sources)| {
        load_with("{ port: 1, reconnect: { enabled: false } }", |sources| {
            sources.dev = true;
            sources.env = env(&[("MESA_PORT", "2"), ("RECONNECTS_ENABLED", "off")]);
            sources.flags = vec![flag("port", 3, "--port")];
            change(sources);
        })
        .unwrap()
        .config
    };
    assert_eq!(from_all_sources(|_| {}).port, 3);
    assert_eq!(from_all_sources(|sources| sources.flags.clear()).port, 2);
    let file = from_all_sources(|sources| {
        sources.flags.clear();
        sources.env.clear();
    });
    assert_eq!(file.port, 1);
    assert!(!file.reconnect.enabled, "the file overrides --dev");
    let dev = from_all_sources(|sources| *sources = Sources { dev: true, ..Sources::default() });
    assert_eq!((dev.port, dev.reconnect.enabled, dev.host.as_str()), (4000, true, "127.0.0.1"));
    assert_eq!(load(&Sources::default()).unwrap().config, Config::default());
}

#[test]
fn groups_are_merged_and_lists_replaced() {
    let config = load_with("{ sync: { redeliveryInterval: 5 }, api: { keys: ['aaaaaaaaaaaaaaaa'] } }", |sources| {
        sources.env =
            env(&[("MESA_SYNC_CONFIRMATION", "write"), ("MESA_API_KEYS", "bbbbbbbbbbbbbbbb, cccccccccccccccc,")]);
    })
    .unwrap()
    .config;
    assert_eq!(config.sync.redelivery_interval, Duration::from_millis(5));
    assert_eq!(config.sync.confirmation, Confirmation::Write);
    assert_eq!(config.api.keys, ["bbbbbbbbbbbbbbbb", "cccccccccccccccc"]);
}

#[test]
fn every_environment_variable_is_read() {
    let defaults = Config::default().effective();
    let mut read = 0;
    for key in KEYS {
        let default = defaults.pointer(&format!("/{}", key.name.replace('.', "/"))).unwrap_or(&Value::Null);
        // The key without a variable is a list of objects.
        let Some(value) = another(key, default).filter(|_| !key.env.is_empty()) else { continue };
        let text = match &value {
            Value::String(text) => text.clone(),
            Value::Array(items) => items.iter().map(|item| item.as_str().unwrap()).collect::<Vec<_>>().join(","),
            Value::Object(_) => "250".to_owned(),
            other => other.to_string(),
        };
        let mut other_keys = file_with(key, &Value::Null);
        if key.name == "authentication.jwt.keyFile" {
            other_keys["authentication"]["jwt"]["secret"] = Value::Null;
        }
        let [name] = key.env else { panic!("{} needs exactly one variable", key.name) };
        let by_file = load_text(&file_with(key, &value).to_string()).unwrap().config;
        let other_keys = other_keys.to_string();
        let by_env = load_with(&other_keys, |sources| sources.env = env(&[(name, &text)]))
            .unwrap_or_else(|error| panic!("{name}={text}: {error}"))
            .config;
        assert_eq!(by_env, by_file, "{name}={text}");
        read += 1;
    }
    assert_eq!(read, KEYS.len() - 4);
}

#[test]
fn boolean_variable_accepts_common_spellings() {
    for (text, value) in [
        ("true", true),
        ("1", true),
        ("YES", true),
        ("on", true),
        ("false", false),
        ("0", false),
        ("no", false),
        ("Off", false),
    ] {
        let config = load_with("{}", |sources| sources.env = env(&[("MESA_GRACEFULLY_EXIT", text)])).unwrap().config;
        assert_eq!(config.gracefully_exit, value, "{text}");
    }
    let error = load_with("{}", |sources| sources.env = env(&[("SYNC_ENABLED", "si")])).unwrap_err().to_string();
    assert_eq!(error, "environment variable SYNC_ENABLED: sync.enabled must be true or false, but is \"si\".");
}

#[test]
fn durability_accepts_three_forms_in_each_source() {
    let forms = [
        ("'always'", "always", Durability::Always),
        ("'never'", "never", Durability::Never),
        ("{ interval: 100 }", "100", Durability::Interval(Duration::from_millis(100))),
    ];
    for (in_file, in_env, durability) in forms {
        let by_file = load_text(&format!("{{ store: {{ durability: {in_file} }} }}")).unwrap();
        assert_eq!(by_file.config.store.durability, durability);
        let by_env = load_with("{}", |sources| sources.env = env(&[("MESA_STORE_DURABILITY", in_env)])).unwrap();
        assert_eq!(by_env.config.store.durability, durability);
    }
    for wrong in ["'sometimes'", "100", "{ interval: 0 }", "{ interval: 100, x: 1 }", "{}", "true", "null"] {
        let error = problems(&format!("{{ store: {{ durability: {wrong} }} }}"));
        assert!(error.contains("store.durability must be 'always', 'never' or { interval: N }"), "{error}");
    }
}

#[test]
fn unknown_variable_with_our_prefix_is_ignored_with_a_warning() {
    let unknown = [("MESA_PROT", "1"), ("MESA_QUITE_UNKNOWN", "1"), ("MESA_BIN", "/usr/bin/mesa")];
    let loaded = load_with("{}", |sources| sources.env = env(&unknown)).unwrap();
    assert_eq!(loaded.config, Config::default());
    for expected in [
        "the environment variable MESA_PROT is no setting and is ignored; the nearest setting is MESA_PORT",
        "the environment variable MESA_QUITE_UNKNOWN is no setting and is ignored",
        "the environment variable MESA_BIN is no setting and is ignored",
    ] {
        assert!(loaded.warnings.iter().any(|warning| warning == expected), "{expected}: {:?}", loaded.warnings);
    }
    let many = (0..1000).map(|at| (format!("MESA_UNKNOWN_{at}"), "x".to_owned())).collect();
    let loaded = load_with("{}", |sources| sources.env = many).unwrap();
    assert!(loaded.warnings.len() < 30, "{} warnings", loaded.warnings.len());
    assert!(loaded.warnings.iter().any(|warning| warning.starts_with("980 more environment variables")));
}

#[test]
fn variables_of_a_kubernetes_service_are_ignored_and_explained_once() {
    let service = [
        ("MESA_SERVICE_HOST", "10.96.0.1"),
        ("MESA_SERVICE_PORT", "4000"),
        ("MESA_PORT", "tcp://10.96.0.1:4000"),
        ("MESA_PORT_4000_TCP", "tcp://10.96.0.1:4000"),
        ("MESA_PORT_4000_TCP_PROTO", "tcp"),
        ("MESA_PORT_4000_TCP_PORT", "4000"),
        ("MESA_PORT_4000_TCP_ADDR", "10.96.0.1"),
        ("MESA_REDIS_PROTOCOL_PORT", "tcp://10.96.0.2:6379"),
        ("REDIS_PORT", "tcp://10.96.0.3:6379"),
        ("REDIS_SERVICE_HOST", "10.96.0.3"),
    ];
    let loaded = load_with("{ port: 7 }", |sources| sources.env = env(&service)).unwrap();
    assert_eq!((loaded.config.port, loaded.config.redis_protocol.port, loaded.config.redis), (7, None, None));
    let of_links: Vec<_> = loaded.warnings.iter().filter(|warning| warning.contains("MESA_")).collect();
    let [warning] = of_links[..] else { panic!("{:?}", loaded.warnings) };
    assert!(warning.starts_with("the environment variables MESA_PORT, MESA_REDIS_PROTOCOL_PORT, "), "{warning}");
    assert!(warning.contains("and 4 more are ignored") && warning.contains("enableServiceLinks: false"), "{warning}");
    assert!(warning.ends_with("makes MESA_PORT and MESA_REDIS_PROTOCOL_PORT usable as a setting"), "{warning}");

    let loaded = load_with("{}", |sources| sources.env = env(&service[2..3])).unwrap();
    let one = loaded.warnings.iter().find(|warning| warning.contains("MESA_")).expect("a warning");
    assert!(one.starts_with("the environment variable MESA_PORT is ignored: Kubernetes sets it for "), "{one}");
    assert!(one.contains("removes it, and makes MESA_PORT usable"), "{one}");

    // A URL is no service link, but an error.
    let error = load_with("{}", |sources| sources.env = env(&[("MESA_PORT", "http://10.96.0.1:4000")])).unwrap_err();
    assert!(error.to_string().contains("port must be a whole number"), "{error}");
}

#[test]
fn loaded_names_the_variables_that_set_a_key() {
    let variables = [("MESA_PORT", "7"), ("SYNC_ENABLED", "true"), ("MESA_NAMESPACE", ""), ("MESA_PROT", "1")];
    let loaded = load_with("{}", |sources| sources.env = env(&variables)).unwrap();
    assert_eq!(loaded.variables, ["MESA_PORT", "SYNC_ENABLED"]);
    let overridden = load_with("{}", |sources| {
        sources.env = env(&variables);
        sources.flags = vec![flag("port", 3, "--port")];
    });
    assert_eq!(overridden.unwrap().variables, ["SYNC_ENABLED"]);
}

#[test]
fn variable_of_another_program_is_ignored_without_a_warning() {
    let others = ["MESA_CONFIG", "MESA_URL", "MESA_API_KEY", "MESA_GL_VERSION_OVERRIDE", "MESA_LOG", "PATH", "SYNC"];
    let loaded = load_with("{}", |sources| sources.env = others.map(|name| (name.into(), "x".into())).into()).unwrap();
    assert_eq!(loaded.config, Config::default());
    assert!(!loaded.warnings.iter().any(|warning| warning.contains("environment")), "{:?}", loaded.warnings);
    let empty =
        load_with("{ port: 7 }", |sources| sources.env = env(&[("MESA_PORT", ""), ("MESA_NAMESPACE", "")])).unwrap();
    assert_eq!((empty.config.port, empty.config.namespace), (7, None), "an empty variable is not set");
}

#[test]
fn error_names_a_flag_as_typed() {
    let load_flags = |flags| load(&Sources { flags, ..Sources::default() });
    assert_eq!(load_flags(vec![flag("port", "4001", "--port")]).unwrap().config.port, 4001);
    let error = load_flags(vec![flag("port", 70_000, "--port"), flag("sync.enable", true, "--set sync.enable")]);
    assert_eq!(
        error.unwrap_err().to_string(),
        "--set sync.enable: unknown key `sync.enable`; the nearest known one is `sync.enabled`.\n\
         --port: port must be a whole number from 0 to 65535, but is 70000."
    );
}

#[test]
fn dev_listens_on_loopback_only() {
    // A store in the working directory may have the key of an earlier start.
    let directory = tempfile::tempdir().unwrap();
    let store = directory.path().to_str().unwrap();
    let dev = |text: &str| {
        load_with(text, |sources| {
            sources.dev = true;
            sources.flags = vec![("store.path".to_owned(), store.into(), "--store-path".to_owned())];
        })
    };
    let loaded = dev("{}").unwrap();
    let config = &loaded.config;
    assert_eq!(config.host, "127.0.0.1");
    assert!(config.sync.enabled && config.authentication.insecure && config.reconnect.enabled);
    let key = loaded.generated_api_key.unwrap();
    assert!(key.len() == 32 && key.bytes().all(|byte| byte.is_ascii_hexdigit()), "{key}");
    assert_eq!(config.api.keys, std::slice::from_ref(&key));
    assert_ne!(dev("{}").unwrap().generated_api_key.unwrap(), key, "each start generates another key");

    let error = dev("{ host: '0.0.0.0' }").unwrap_err().to_string();
    assert!(error.contains("authentication.insecure accepts every token, and host 0.0.0.0"), "{error}");
    assert!(dev("{ host: '0.0.0.0', authentication: { insecurePublic: true } }").is_ok());

    let jwt =
        dev(&json!({ "authentication": { "jwt": { "secret": SECRET } }, "api": { "keys": [API_KEY] } }).to_string());
    let jwt = jwt.unwrap();
    assert!(!jwt.config.authentication.insecure, "a configured JWT turns the insecure method off");
    assert_eq!(jwt.generated_api_key, None);
    assert_eq!(load_text("{}").unwrap().generated_api_key, None, "without dev no key is generated");
}

#[test]
fn null_in_the_file_does_not_override_default_or_environment() {
    let loaded = load_with("{ namespace: null, origins: null, authentication: { jwt: null } }", |sources| {
        sources.env = env(&[("WS_KEY", SECRET), ("MESA_NAMESPACE", "a")]);
    })
    .unwrap();
    assert_eq!(loaded.config.namespace.as_deref(), Some("a"));
    let jwt = loaded.config.authentication.jwt.unwrap();
    assert_eq!((jwt.algorithms, jwt.leeway), (vec!["HS256".to_owned()], Duration::ZERO));
}

#[test]
fn portals_are_enabled_by_setting_or_dev() {
    let loaded = load_text("{ portal: { enabled: true, distributeLoad: false } }").unwrap();
    assert_eq!(loaded.config.portal, Portal { enabled: true, distribute_load: false, webhook: None });
    assert!(!load_text("{}").unwrap().config.portal.enabled);
    assert!(load_with("{}", |sources| sources.dev = true).unwrap().config.portal.enabled);
}
