//! Tests loading of certificates.

use std::fs;

use rcgen::{CertificateParams, KeyPair, date_time_ymd};

use super::*;
use crate::config::Certificate;

/// Returns certificate and key for a host, in PEM.
fn certificate(host: &str, change: impl FnOnce(&mut CertificateParams)) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let mut parameters = CertificateParams::new([host.to_owned()]).unwrap();
    change(&mut parameters);
    (parameters.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

fn load(settings: Settings) -> Result<Tls, SetupError> {
    Tls::load(settings, "tls")
}

#[test]
fn expiry_is_that_of_the_certificate_that_expires_first() {
    let ends = |year| move |parameters: &mut CertificateParams| parameters.not_after = date_time_ymd(year, 3, 4);
    let certificates = [2049, 2031, 2120].map(|year| {
        let (cert, key) = certificate("localhost", ends(year));
        Certificate::pem(cert, key)
    });
    let tls = load(Settings { certificates: certificates.to_vec(), ..Settings::default() }).unwrap();
    let (expiry, name) = tls.reloading.lock().expiry.clone().unwrap();
    let seconds = expiry.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    assert_eq!(
        (seconds, name.as_str()),
        (date_time_ymd(2031, 3, 4).unix_timestamp().unsigned_abs(), "tls.certificates[1].cert")
    );
}

#[test]
fn unusable_file_is_an_error_with_name_and_remedy() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let (cert, key) = certificate("localhost", |_| {});
    let (other, _) = certificate("localhost", |_| {});
    let half = &cert[..cert.len() / 2];
    let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
    let large = "x".repeat((1 << 20) + 1);
    let good = (cert.as_str(), key.as_str());
    for (cert, key, expected) in [
        ("", good.1, "cert.pem has no certificate. Give certificates in PEM"),
        (half, good.1, "cert.pem is not valid PEM: its last section has no END line, so it may be half written"),
        (&large, good.1, "cert.pem has more than 1048576 bytes"),
        (&other, good.1, "is not that of the first certificate in tls.cert"),
        (good.0, "", "key.pem has no private key. Give one in PEM"),
        (good.0, good.0, "key.pem has no private key"),
        (good.0, encrypted, "key.pem is encrypted with a passphrase. Decrypt it"),
    ] {
        fs::write(path("cert.pem"), cert).unwrap();
        fs::write(path("key.pem"), key).unwrap();
        let error = load(Settings::new(Certificate::files(path("cert.pem"), path("key.pem")))).err().expect(expected);
        assert!(error.to_string().contains(expected), "{error}");
    }
    let error = load(Settings::new(Certificate::files(path("no.pem"), path("key.pem")))).err().unwrap().to_string();
    assert!(error.starts_with("tls.cert ") && error.contains("no such file or directory. Check the path"), "{error}");
    fs::write(path("cert.pem"), good.0).unwrap();
    fs::write(path("key.pem"), good.1).unwrap();
    let mut settings = Settings::new(Certificate::files(path("cert.pem"), path("key.pem")));
    assert!(load(settings.clone()).is_ok());
    settings.client_ca = Some(path("key.pem"));
    assert!(load(settings).err().unwrap().to_string().contains("tls.clientCa"));
}

#[test]
fn tickets_outlive_a_reload_unless_clients_have_certificates() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let write = || {
        let (cert, key) = certificate("localhost", |_| {});
        fs::write(path("cert.pem"), cert).unwrap();
        fs::write(path("key.pem"), key).unwrap();
    };
    for with_clients in [false, true] {
        write();
        let mut settings = Settings::new(Certificate::files(path("cert.pem"), path("key.pem")));
        settings.client_ca = with_clients.then(|| path("cert.pem"));
        let tls = load(settings).unwrap();
        let before = tls.http().ticketer.clone();
        assert_eq!(tls.reload_now(&mut tls.reloading.lock()), Ok(false));
        write();
        assert_eq!(tls.reload_now(&mut tls.reloading.lock()), Ok(true));
        assert_eq!(Arc::ptr_eq(&before, &tls.http().ticketer), !with_clients);
    }
}
