//! Loads certificates, and selects one for each handshake.

use std::{
    fmt,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use rustls::{
    CertificateError, Error as TlsError, InconsistentKeys, RootCertStore,
    client::{verify_server_cert_signed_by_trust_anchor, verify_server_name},
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem, pem::PemObject},
    server::{ClientHello, ParsedCertificate, ResolvesServerCert, WebPkiClientVerifier, danger::ClientCertVerifier},
    sign::CertifiedKey,
};

use super::error::SetupError;
use crate::{
    config::{Certificate, ClientCertificates, Tls as Settings},
    logging::system_error,
    util::read_bounded::read_bounded,
};

/// Largest PEM file, in bytes. A bundle with all public authorities has 250 KiB.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Verification time for which every certificate has expired: the year 2500.
const FAR_FUTURE: Duration = Duration::from_secs(16_725_225_600);

/// Content of the configured files and texts, as read at one time.
#[derive(PartialEq, Eq)]
pub(super) struct Sources {
    certificates: Vec<(Text, Text)>,
    client_ca: Option<Text>,
}

/// A PEM text, and where it comes from.
#[derive(PartialEq, Eq)]
struct Text {
    name: String,
    pem: Vec<u8>,
}

impl Text {
    fn read(key: &str, path: &Path) -> Result<Self, SetupError> {
        let name = format!("{key} {}", path.display());
        let pem = read_bounded(path, FILE_BYTES_MAX).map_err(|error| {
            SetupError(format!("{name} cannot be read: {}. Check the path and its permissions", system_error(&error)))
        })?;
        if pem.len() as u64 > FILE_BYTES_MAX {
            return Err(SetupError(format!("{name} has more than {FILE_BYTES_MAX} bytes. Name the right PEM file")));
        }
        Ok(Self { name, pem })
    }

    /// Parses all certificates of the text; at least one.
    fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, SetupError> {
        let name = &self.name;
        let parsed: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&self.pem).collect();
        let parsed =
            parsed.map_err(|error| SetupError(format!("{name} is not valid PEM: {}", describe_pem(&error))))?;
        if parsed.is_empty() {
            return Err(SetupError(format!(
                "{name} has no certificate. Give certificates in PEM (-----BEGIN CERTIFICATE-----)"
            )));
        }
        Ok(parsed)
    }

    fn private_key(&self) -> Result<PrivateKeyDer<'static>, SetupError> {
        let name = &self.name;
        PrivateKeyDer::from_pem_slice(&self.pem).map_err(|error| {
            SetupError(match error {
                pem::Error::NoItemsFound if is_encrypted(&self.pem) => format!(
                    "{name} is encrypted with a passphrase. Decrypt it (openssl pkey -in FILE -out NEW-FILE), and protect \
                     the file by its permissions"
                ),
                pem::Error::NoItemsFound => {
                    format!("{name} has no private key. Give one in PEM (-----BEGIN PRIVATE KEY-----)")
                }
                error => format!("{name} is not valid PEM: {}", describe_pem(&error)),
            })
        })
    }
}

fn is_encrypted(pem: &[u8]) -> bool {
    let text = String::from_utf8_lossy(pem);
    text.contains("BEGIN ENCRYPTED PRIVATE KEY") || text.contains("Proc-Type: 4,ENCRYPTED")
}

/// Describes an error of a PEM file without its content.
fn describe_pem(error: &pem::Error) -> &'static str {
    match error {
        pem::Error::MissingSectionEnd { .. } => "its last section has no END line, so it may be half written",
        pem::Error::Base64Decode(_) => "a section is not base64",
        _ => "a BEGIN line is malformed",
    }
}

impl Sources {
    /// Reads all files. Blocks.
    pub(super) fn read(settings: &Settings, key: &str) -> Result<Self, SetupError> {
        let certificates = settings.certificates.iter().enumerate().map(|(index, certificate)| {
            let key =
                if settings.certificates.len() == 1 { key.into() } else { format!("{key}.certificates[{index}]") };
            let in_memory = |word: &str, pem: &str| Text { name: format!("{key}.{word}"), pem: pem.into() };
            Ok(match certificate {
                Certificate::Files { cert, key: private_key } => {
                    (Text::read(&format!("{key}.cert"), cert)?, Text::read(&format!("{key}.key"), private_key)?)
                }
                Certificate::Pem { cert, key: private_key } => (in_memory("cert", cert), in_memory("key", private_key)),
            })
        });
        let client_ca = settings.client_ca.as_ref().map(|path| Text::read(&format!("{key}.clientCa"), path));
        Ok(Self { certificates: certificates.collect::<Result<_, SetupError>>()?, client_ca: client_ca.transpose()? })
    }

    /// Builds the certificates with their keys.
    pub(super) fn keys(&self, provider: &CryptoProvider) -> Result<CertifiedKeys, SetupError> {
        let mut keys = Vec::new();
        for (cert, key) in &self.certificates {
            let chain = cert.certificates()?;
            ParsedCertificate::try_from(&chain[0])
                .map_err(|error| SetupError(format!("{} has a certificate that cannot be used: {error}", cert.name)))?;
            let certified = CertifiedKey::from_der(chain, key.private_key()?, provider).map_err(|error| {
                SetupError(match error {
                    TlsError::InconsistentKeys(InconsistentKeys::KeyMismatch) => format!(
                        "the key in {} is not that of the first certificate in {}. Give both files of one certificate, \
                         with the server's own certificate first",
                        key.name, cert.name
                    ),
                    error => format!("{} cannot be used: {error}", key.name),
                })
            })?;
            keys.push(Arc::new(certified));
        }
        Ok(CertifiedKeys(keys))
    }

    /// Builds the verifier of client certificates, if an authority is configured.
    pub(super) fn client_verifier(
        &self,
        provider: &Arc<CryptoProvider>,
        certificates: ClientCertificates,
    ) -> Result<Option<Arc<dyn ClientCertVerifier>>, SetupError> {
        let Some(text) = &self.client_ca else { return Ok(None) };
        let unusable = |error: &dyn fmt::Display| {
            SetupError(format!("{} has a certificate that cannot be used: {error}", text.name))
        };
        let mut roots = RootCertStore::empty();
        for certificate in text.certificates()? {
            roots.add(certificate).map_err(|error| unusable(&error))?;
        }
        let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
        let builder = match certificates {
            ClientCertificates::Required => builder,
            ClientCertificates::Optional => builder.allow_unauthenticated(),
        };
        builder.build().map(Some).map_err(|error| unusable(&error))
    }

    /// Returns when the first certificate expires, with its source.
    pub(super) fn earliest_expiry(&self, keys: &CertifiedKeys) -> Option<(SystemTime, String)> {
        let expiries = self
            .certificates
            .iter()
            .zip(&keys.0)
            .filter_map(|((cert, _), key)| Some((expiry(key.end_entity_cert().ok()?)?, cert.name.clone())));
        expiries.min()
    }
}

/// Returns when a certificate expires.
fn expiry(certificate: &CertificateDer<'_>) -> Option<SystemTime> {
    let parsed = ParsedCertificate::try_from(certificate).ok()?;
    // The library tells the end of the validity only in the error of a later verification, and checks it first.
    let far = UnixTime::since_unix_epoch(FAR_FUTURE);
    match verify_server_cert_signed_by_trust_anchor(&parsed, &RootCertStore::empty(), &[], far, &[]) {
        Err(TlsError::InvalidCertificate(CertificateError::ExpiredContext { not_after, .. })) => {
            SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(not_after.as_secs()))
        }
        _ => None,
    }
}

/// Certificates with their keys, in the configured order.
#[derive(Debug)]
pub(super) struct CertifiedKeys(Vec<Arc<CertifiedKey>>);

impl ResolvesServerCert for CertifiedKeys {
    /// Selects the first certificate that is valid for the requested host, or else the first one.
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let [one] = &self.0[..] else {
            let is_usable = |key: &&Arc<CertifiedKey>| key.key.choose_scheme(hello.signature_schemes()).is_some();
            let host = hello.server_name().and_then(|host| ServerName::try_from(host).ok());
            let named = host.and_then(|host| self.0.iter().filter(is_usable).find(|key| is_valid_for(key, &host)));
            return named.or_else(|| self.0.iter().find(is_usable)).cloned();
        };
        Some(one.clone())
    }
}

fn is_valid_for(key: &CertifiedKey, host: &ServerName<'_>) -> bool {
    let parsed = key.end_entity_cert().and_then(ParsedCertificate::try_from);
    parsed.is_ok_and(|certificate| verify_server_name(&certificate, host).is_ok())
}
