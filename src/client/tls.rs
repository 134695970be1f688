//! Secures the client's connections by TLS, and explains failures.

use std::{fmt, io, sync::Arc};

use rustls::{
    AlertDescription, CertificateError, ClientConfig, Error as TlsError, RootCertStore,
    crypto::{self, CryptoProvider},
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use rustls_platform_verifier::BuilderVerifierExt;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;

use super::{ClientError, transport::Authorities};
use crate::logging::{network_error, system_error};

/// A connected byte stream: TCP, or TLS over it, also through a proxy.
pub(super) trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin + fmt::Debug {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin + fmt::Debug> ByteStream for S {}

pub(super) type Stream = Box<dyn ByteStream>;

/// Remedy for a certificate that is not trusted.
const TRUST: &str =
    "Trust its authority by its PEM file (`Transport::ca_file`, `--ca FILE` of `mesa connect`), if it is yours";

/// Loads the trusted authorities. Reads files, so it blocks.
pub(super) fn connector(authorities: &Authorities) -> Result<TlsConnector, ClientError> {
    let provider = Arc::new(crypto::aws_lc_rs::default_provider());
    let mut config = match authorities {
        Authorities::System => system(provider)?,
        Authorities::File(path) => {
            let read = std::fs::read(path).map_err(|error| {
                let why = system_error(&error);
                ClientError::Certificates(format!("{}: {why}. Give the path of a readable PEM file", path.display()))
            });
            custom(provider, &read?, &path.display().to_string())?
        }
        Authorities::Pem(pem) => custom(provider, pem, "the given text")?,
    };
    // Without this, a proxy in front of the server may choose HTTP/2, in which this client has no WebSocket.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}

fn system(provider: Arc<CryptoProvider>) -> Result<ClientConfig, ClientError> {
    let verified = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(BuilderVerifierExt::with_platform_verifier);
    match verified {
        Ok(builder) => Ok(builder.with_no_client_auth()),
        Err(error) => Err(ClientError::Certificates(format!(
            "this system has none ({error}). Install them (package ca-certificates), or give a PEM file \
             (`Transport::ca_file`, `--ca FILE` of `mesa connect`)"
        ))),
    }
}

fn custom(provider: Arc<CryptoProvider>, pem: &[u8], name: &str) -> Result<ClientConfig, ClientError> {
    let unusable = |why: &str| {
        ClientError::Certificates(format!("{name} {why}. Give certificates in PEM (-----BEGIN CERTIFICATE-----)"))
    };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|error| unusable(&format!("is not valid PEM: {error}")))?;
        roots.add(certificate).map_err(|error| unusable(&format!("has a certificate that cannot be used: {error}")))?;
    }
    if roots.is_empty() {
        return Err(unusable("has no certificate"));
    }
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| unusable(&error.to_string()))?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

/// Does a TLS handshake as the client of `host`, a name or an IP address without brackets.
pub(super) async fn secure(
    connector: &TlsConnector,
    stream: Stream,
    host: &str,
    address: &str,
) -> Result<Stream, ClientError> {
    let failed = |reason: String| ClientError::Tls { address: address.to_owned(), reason };
    let Ok(name) = ServerName::try_from(host.to_owned()) else {
        return Err(failed(format!("\"{}\" is not a host name. Correct the address", host.escape_debug())));
    };
    match connector.connect(name, stream).await {
        Ok(secured) => Ok(Box::new(secured)),
        Err(error) => Err(failed(describe(&error, host))),
    }
}

/// Describes why a TLS handshake failed, with a remedy.
fn describe(error: &io::Error, host: &str) -> String {
    let Some(error) = error.get_ref().and_then(|inner| inner.downcast_ref::<TlsError>()) else {
        let why = network_error(error);
        return format!("{why} within the handshake. If the server does not use TLS, connect by ws://");
    };
    match error {
        TlsError::InvalidCertificate(certificate) => match certificate {
            CertificateError::UnknownIssuer => {
                format!("its certificate is not trusted, because no trusted authority signed it. {TRUST}")
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                format!("its certificate is for another name than {host}. Connect by a name of the certificate")
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "its certificate has expired. Renew it there, and check the clock of this machine".into()
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "its certificate is not valid yet. Check the clocks of both machines".into()
            }
            other => format!("its certificate is not trusted ({other}). {TRUST}"),
        },
        TlsError::AlertReceived(AlertDescription::ProtocolVersion) => {
            "it does not speak TLS on this port, or only versions before 1.2. Connect by ws://, or to the TLS port"
                .into()
        }
        TlsError::InvalidMessage(_) => {
            "it does not speak TLS on this port. Connect by ws://, or to the TLS port".into()
        }
        other => format!("{other}. Check the TLS settings of the server"),
    }
}
