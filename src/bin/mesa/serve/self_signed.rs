//! `--tls-self-signed`: a certificate for trials, whose private key stays in memory.

use std::{
    io::Write as _,
    net::{IpAddr, SocketAddr},
};

use mesa::config::{Certificate, Config, Tls};
use rcgen::{CertificateParams, KeyPair};
use tempfile::{NamedTempFile, TempPath};
use time::{Duration, OffsetDateTime};

use crate::error::Failure;

/// Validity of the certificate.
const VALIDITY: Duration = Duration::days(365);

/// Creates a certificate for this machine, and sets it in the configuration. Returns it in PEM.
pub fn set_up(config: &mut Config) -> Result<String, Failure> {
    if config.tls.is_some() {
        return Err(Failure::usage("tls is configured, so --tls-self-signed has no use; remove one of them"));
    }
    let failed =
        |error: rcgen::Error| Failure::because(format!("the certificate could not be created: {error}; retry"));
    let mut names = vec!["localhost".to_owned(), "127.0.0.1".into(), "::1".into()];
    if config.host.parse::<IpAddr>().is_ok_and(|address| !address.is_unspecified() && !address.is_loopback()) {
        names.push(config.host.clone());
    }
    let mut parameters = CertificateParams::new(names).map_err(failed)?;
    let now = OffsetDateTime::now_utc();
    // Clocks of clients may be a little late.
    (parameters.not_before, parameters.not_after) = (now - Duration::HOUR, now + VALIDITY);
    let key = KeyPair::generate().map_err(failed)?;
    let pem = parameters.self_signed(&key).map_err(failed)?.pem();
    config.tls = Some(Tls::new(Certificate::pem(pem.clone(), key.serialize_pem())));
    Ok(pem)
}

/// Writes the certificate to a temporary file, for the `--ca` of clients. Dropping the path removes the file.
pub fn write(pem: &str, address: SocketAddr) -> Result<TempPath, Failure> {
    // The same name after a restart. Renaming replaces an earlier file, and follows no link of another user.
    let path = std::env::temp_dir().join(format!("mesa-{}.pem", address.port()));
    let written = || {
        let mut file = NamedTempFile::new_in(std::env::temp_dir())?;
        file.write_all(pem.as_bytes())?;
        file.persist(&path).map_err(|error| error.error)?;
        TempPath::try_from_path(&path)
    };
    written().map_err(|error| {
        Failure::because(format!("cannot write the certificate to {}: {error}; remove that file", path.display()))
    })
}
