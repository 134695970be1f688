//! Tests errors of the webhook and JWKS settings.

use super::*;

/// Returns a configuration with `settings` in `portal.webhook`, next to a valid URL and secret.
fn webhook(settings: &str) -> String {
    format!("{{ portal: {{ webhook: {{ url: 'https://example.org/', secret: '{SECRET}', {settings} }} }} }}")
}

fn jwks(settings: &str) -> String {
    let keys = format!("jwks: {{ url: 'https://example.org/', {settings} }}");
    format!("{{ authentication: {{ jwt: {{ algorithms: ['ES256'], {keys} }} }} }}")
}

#[test]
fn endpoint_with_invalid_setting_is_rejected_with_a_hint() {
    assert!(load_text(&webhook("")).is_ok() && load_text(&jwks("")).is_ok());
    let cases = [
        (
            webhook("events: ['undeliverd']"),
            "portal.webhook.events has \"undeliverd\", which is not an event; the nearest known one is 'undelivered'",
        ),
        (webhook("events: ['x']"), "it may have connection, authentication, message,"),
        (webhook("events: []"), "portal.webhook.events is empty"),
        (webhook("evnts: []"), "unknown key `portal.webhook.evnts`; the nearest known one is `portal.webhook.events`"),
        (webhook("maxEvents: 0"), "portal.webhook.maxEvents must be a whole number from 1 to 10000, but is 0"),
        (
            webhook("retryMin: 5000, retryMax: 1000"),
            "portal.webhook.retryMin is 5000 ms and must not be more than retryMax",
        ),
        (webhook("undeliveredAfter: 1"), "portal.webhook.undeliveredAfter must be a whole number of milliseconds"),
        ("{ portal: { webhook: { url: 'https://example.org/' } } }".into(), "portal.webhook.secret is missing"),
        (format!("{{ portal: {{ webhook: {{ secret: '{SECRET}' }} }} }}"), "portal.webhook.url must be a URL"),
        (
            "{ portal: { webhook: { url: 'https://example.org/', secret: 'short' } } }".into(),
            "portal.webhook.secret has 5 bytes",
        ),
        (
            "{ portal: { webhook: { url: 'http://example.org/' } } }".into(),
            "portal.webhook.url must start with https://; plain",
        ),
        ("{ portal: { webhook: { url: 'https://127.1/' } } }".into(), "portal.webhook.url names a private address"),
        ("{ portal: { webhook: true } }".into(), "portal.webhook must be an object, but is true"),
        (
            "{ authentication: { webhook: { url: 'https://[::1]/' } } }".into(),
            "authentication.webhook.url names a private address",
        ),
        (
            "{ authentication: { webhook: { url: 'ftp://example.org/' } } }".into(),
            "authentication.webhook.url must start with https://",
        ),
        (
            "{ authentication: { webhook: { url: 'https://a.org/', secret: 'short' } } }".into(),
            "authentication.webhook.secret has 5 bytes",
        ),
        (
            format!("{{ authentication: {{ webhook: {{ url: 'https://a.org/' }}, jwt: {{ secret: '{SECRET}' }} }} }}"),
            "authentication has both jwt (or WS_KEY in the environment) and webhook; remove one of them",
        ),
        (
            jwks("maxStale: 1000"),
            "authentication.jwt.jwks.maxStale is 1000 ms and must not be less than refreshInterval",
        ),
        (
            "{ authentication: { jwt: { jwks: { timeout: 1000 }, algorithms: ['ES256'] } } }".into(),
            "jwks.url must be a URL",
        ),
        (
            "{ authentication: { jwt: { jwks: { url: 'https://a.org/' } } } }".into(),
            "algorithms must name the accepted algorithms with a JWKS",
        ),
        (
            "{ authentication: { jwt: { jwks: { url: 'https://a.org/' }, algorithms: ['HS256'] } } }".into(),
            "has \"HS256\", which does not work with a JWKS",
        ),
        (
            "{ authentication: { jwt: { jwks: { url: 'https://a.org/' }, keyFile: 'a', algorithms: ['ES256'] } } }"
                .into(),
            "both a keyFile and jwks",
        ),
        (
            format!("{{ authentication: {{ jwt: {{ jwks: {{ url: 'https://a.org/' }}, secret: '{SECRET}' }} }} }}"),
            "both a secret (or WS_KEY in the environment) and jwks",
        ),
    ];
    for (text, expected) in cases {
        let problems = problems(&text);
        assert!(problems.contains(expected), "{text}: expected {expected:?} in {problems:?}");
    }
}

#[test]
fn endpoint_with_private_address_is_accepted_if_allowed() {
    let text = format!(
        "{{ portal: {{ webhook: {{ url: 'http://127.0.0.1:9/', secret: '{SECRET}', allowPrivate: true }} }},
           authentication: {{ webhook: {{ url: 'http://10.0.0.1/', allowPrivate: true }} }} }}"
    );
    let config = load_text(&text).unwrap().config;
    assert!(config.portal.webhook.unwrap().allow_private && config.authentication.webhook.unwrap().allow_private);
}

#[test]
fn endpoint_secrets_and_queries_are_never_shown() {
    let text = format!(
        "{{ portal: {{ webhook: {{ url: 'https://example.org/?key=hidden', secret: '{SECRET}' }} }},
           authentication: {{ webhook: {{ url: 'https://example.org/?key=hidden', secret: '{SECRET}' }} }} }}"
    );
    let loaded = load_text(&text).unwrap();
    let shown = format!("{loaded:?} {:?} {}", loaded.config, loaded.config.effective());
    assert!(!shown.contains("hidden") && !shown.contains(SECRET), "{shown}");
    let wrong = text.replace("https://", "me:hidden@").replace(SECRET, "hidden");
    assert!(!problems(&wrong).contains("hidden"), "{}", problems(&wrong));
}

#[test]
fn dev_with_authentication_webhook_is_not_insecure() {
    let text = "{ authentication: { webhook: { url: 'https://example.org/' } } }";
    let config = load_with(text, |sources| sources.dev = true).unwrap().config;
    assert!(!config.authentication.insecure);
}
