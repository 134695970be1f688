//! A Redis that is spoken to over TLS.

use std::fs;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use serde_json::json;

use super::{Home, Redis, Socket, message, next, redis_server::free_port};
use crate::support::http::Http;

/// Writes a certificate for this machine, its key, and the authority that has signed it.
fn certify(directory: &std::path::Path) -> [String; 3] {
    let mut of_authority = CertificateParams::new(Vec::new()).expect("parameters");
    of_authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority =
        CertifiedIssuer::self_signed(of_authority, KeyPair::generate().expect("a key")).expect("an authority");
    let key = KeyPair::generate().expect("a key");
    let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
    let certificate =
        CertificateParams::new(names).expect("parameters").signed_by(&key, &authority).expect("a certificate");
    [("authority", authority.pem()), ("certificate", certificate.pem()), ("key", key.serialize_pem())].map(
        |(name, text)| {
            let path = directory.join(name);
            fs::write(&path, text).expect("it is written");
            path.to_string_lossy().into_owned()
        },
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_over_tls_is_trusted_by_its_certificate_alone() {
    let directory = tempfile::tempdir().expect("a directory");
    let [authority, certificate, key] = certify(directory.path());
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
    let mut trusting = Home::with(&format!("redis: {{ host: '127.0.0.1', port: {port}, tls: {{}} }},"));
    trusting.set_variable("SSL_CERT_FILE", &authority);
    let server = trusting.start();
    let mut alice = Socket::connect(server.address, "alice").await.expect("a client");
    let body = message(1, &["alice"]).to_string();
    let address = server.address;
    let answered = tokio::task::spawn_blocking(move || {
        Http::connect(address).expect("a connection").call("POST", "/v1/dispatch", &body).expect("an answer")
    });
    assert_eq!(answered.await.expect("it asks").0, 200, "{}", trusting.log());
    assert_eq!(next(&mut alice).await, json!(1));

    let strange = Home::with(&format!("redis: 'rediss://localhost:{port}',"));
    let refused = tokio::task::spawn_blocking(move || strange.ready(strange.spawn(&[])).err()).await.expect("it ends");
    assert!(refused.as_ref().is_some_and(|told| told.contains("certificate")), "{refused:?}");
}
