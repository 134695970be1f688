//! Tests a Redis over TLS.

use std::fs;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use serde_json::json;

use super::{Home, Redis, Socket, message, next_data, redis_server::free_port};
use crate::support::http::Http;

/// Writes a certificate authority, a certificate for localhost, and its key. Returns their paths.
fn write_certificate(directory: &std::path::Path) -> [String; 3] {
    let mut parameters = CertificateParams::new(Vec::new()).expect("parameters of the authority");
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority =
        CertifiedIssuer::self_signed(parameters, KeyPair::generate().expect("a key")).expect("an authority");
    let key = KeyPair::generate().expect("a key");
    let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
    let parameters = CertificateParams::new(names).expect("parameters of the certificate");
    let certificate = parameters.signed_by(&key, &authority).expect("a certificate");
    [("authority", authority.pem()), ("certificate", certificate.pem()), ("key", key.serialize_pem())].map(
        |(name, text)| {
            let path = directory.join(name);
            fs::write(&path, text).expect("a new file");
            path.to_string_lossy().into_owned()
        },
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_over_tls_is_accepted_only_with_a_trusted_certificate() {
    let directory = tempfile::tempdir().expect("a directory");
    let [authority, certificate, key] = write_certificate(directory.path());
    let port = free_port();
    let _redis = Redis::start_with(&[
        "--tls-port",
        &port.to_string(),
        "--tls-cert-file",
        &certificate,
        "--tls-key-file",
        &key,
        "--tls-ca-cert-file",
        &authority,
        "--tls-auth-clients",
        "no",
    ]);
    let mut trusting = Home::with_settings(&format!("redis: {{ host: '127.0.0.1', port: {port}, tls: {{}} }},"));
    trusting.set_variable("SSL_CERT_FILE", &authority);
    let server = trusting.start();
    let mut alice = Socket::connect(server.address, "alice").await.expect("a connected client");
    let body = message(1, &["alice"]).to_string();
    let address = server.address;
    let request = tokio::task::spawn_blocking(move || {
        Http::connect(address).expect("an HTTP connection").call("POST", "/v1/dispatch", &body).expect("a response")
    });
    assert_eq!(request.await.expect("the request does not panic").0, 200, "{}", trusting.log());
    assert_eq!(next_data(&mut alice).await, json!(1));

    let distrusting = Home::with_settings(&format!("redis: 'rediss://localhost:{port}',"));
    let started = tokio::task::spawn_blocking(move || distrusting.ready(distrusting.spawn(&[])).err());
    let error = started.await.expect("the start does not panic");
    assert!(error.as_ref().is_some_and(|text| text.contains("certificate")), "{error:?}");
}
