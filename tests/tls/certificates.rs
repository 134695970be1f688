//! Tests which certificate a client gets, and which certificates a client needs.

use std::time::Duration;

use mesa::config::{Certificate, ClientCertificates, Tls};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use tokio::time::timeout;

use crate::{
    authority::{self, Authority, is_served, replace},
    client, dispatch, dispatcher, next, start,
    support::{in_process::TestServer, wait::WAIT_TIMEOUT},
};

/// Returns the server's certificate, for a client of `host`.
async fn presented(authority: &Authority, server: &TestServer, host: &str) -> Result<Vec<u8>, String> {
    let stream = authority::connect(&authority.client(None, &[]), server.address, host).await?;
    let chain = stream.get_ref().1.peer_certificates().unwrap();
    Ok(chain[0].to_vec())
}

fn der(pem: &str) -> Vec<u8> {
    CertificateDer::from_pem_slice(pem.as_bytes()).unwrap().to_vec()
}

#[tokio::test(flavor = "multi_thread")]
async fn renewed_certificate_is_used_for_new_connections_and_open_ones_stay() {
    let authority = Authority::new();
    let (cert, key) = authority.issue_files("localhost");
    let server = start(&authority, |config| {
        config.tls = Some(Tls::new(Certificate::files(&cert, &key)));
    })
    .await;
    let old = presented(&authority, &server, "localhost").await.unwrap();
    let mut alice = client(&authority, &server, "alice", 0).await;
    // Half of a file, then a certificate without its key: the old one stays in use.
    let renewed = authority.issue("localhost");
    for unusable in [&renewed.cert[..renewed.cert.len() / 2], &renewed.cert] {
        replace(&cert, unusable);
        server.handle.reload_certificates().await.unwrap_err();
        assert_eq!(presented(&authority, &server, "localhost").await.as_ref(), Ok(&old));
    }
    // The server notices the complete pair by itself.
    replace(&key, &renewed.key);
    timeout(WAIT_TIMEOUT, async {
        while presented(&authority, &server, "localhost").await != Ok(der(&renewed.cert)) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await
    .expect("the renewed certificate is used in time");
    assert_eq!(server.handle.reload_certificates().await, Ok(false));
    dispatch(&dispatcher(&authority, &server), "alice", "still here").await;
    assert_eq!(next(&mut alice).await, "still here");
}

#[tokio::test(flavor = "multi_thread")]
async fn certificate_is_chosen_by_the_requested_host() {
    let authority = Authority::new();
    let issued = ["localhost", "a.example.org", "*.example.org"].map(|name| authority.issue(name));
    let server = TestServer::start(|config| {
        let mut tls = Tls::default();
        tls.certificates = issued.iter().map(|each| Certificate::pem(&each.cert, &each.key)).collect();
        config.tls = Some(tls);
    })
    .await;
    for (host, index) in [("localhost", 0), ("a.example.org", 1), ("b.example.org", 2)] {
        assert_eq!(presented(&authority, &server, host).await, Ok(der(&issued[index].cert)), "{host}");
    }
    // An unknown host gets the first one, which its client rejects.
    let error = presented(&authority, &server, "c.example.net").await.unwrap_err();
    assert!(error.contains("localhost"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn client_certificate_of_the_authority_is_required_or_optional() {
    let (authority, strangers) = (Authority::new(), Authority::new());
    let (known, stranger) = (authority.issue("phone"), strangers.issue("phone"));
    for (policy, without) in [(ClientCertificates::Required, false), (ClientCertificates::Optional, true)] {
        let server = start(&authority, |config| {
            let tls = config.tls.as_mut().unwrap();
            (tls.client_ca, tls.client_certificates) = (Some(authority.path("ca.pem")), policy);
        })
        .await;
        for (certificate, expected) in [(Some(&known), true), (None, without), (Some(&stranger), false)] {
            let config = authority.client(certificate, &[]);
            let served = is_served(&config, server.address, "localhost").await;
            assert_eq!(served.is_ok(), expected, "{policy:?}, {}: {served:?}", certificate.is_some());
        }
    }
}
