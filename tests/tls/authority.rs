//! Issues certificates, and connects with them.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::support::wait::WAIT_TIMEOUT;

/// A certificate authority, with a directory for PEM files.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    directory: TempDir,
}

/// A certificate with its key, in PEM.
#[derive(Clone)]
pub struct Issued {
    pub cert: String,
    pub key: String,
}

impl Authority {
    pub fn new() -> Self {
        let mut parameters = CertificateParams::new(Vec::new()).unwrap();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(parameters, KeyPair::generate().unwrap()).unwrap();
        let authority = Self { issuer, directory: tempfile::tempdir().unwrap() };
        std::fs::write(authority.path("ca.pem"), authority.pem()).unwrap();
        authority
    }

    /// Returns the certificate of the authority, in PEM.
    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Issues a certificate of a server or client.
    pub fn issue(&self, name: &str) -> Issued {
        let key = KeyPair::generate().unwrap();
        let mut parameters = CertificateParams::new([name.to_owned()]).unwrap();
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let cert = parameters.signed_by(&key, &self.issuer).unwrap().pem();
        Issued { cert, key: key.serialize_pem() }
    }

    /// Issues a certificate into the files `NAME.pem` and `NAME.key`.
    pub fn issue_files(&self, name: &str) -> (PathBuf, PathBuf) {
        let issued = self.issue(name);
        let (cert, key) = (self.path(&format!("{name}.pem")), self.path(&format!("{name}.key")));
        replace(&cert, &issued.cert);
        replace(&key, &issued.key);
        (cert, key)
    }

    /// Returns settings of a client that trusts this authority.
    pub fn client(&self, certificate: Option<&Issued>, protocols: &[&str]) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match certificate {
            None => builder.with_no_client_auth(),
            Some(Issued { cert, key }) => {
                let chain = vec![CertificateDer::from_pem_slice(cert.as_bytes()).unwrap()];
                builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap()).unwrap()
            }
        };
        config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        Arc::new(config)
    }
}

/// Replaces a file as renewal programs do.
pub fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(new, path).unwrap();
}

/// Does a handshake, as a client of `host`.
pub async fn connect(
    config: &Arc<ClientConfig>,
    address: SocketAddr,
    host: &str,
) -> Result<TlsStream<TcpStream>, String> {
    let stream = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from(host.to_owned()).unwrap();
    let connecting = TlsConnector::from(config.clone()).connect(name, stream);
    timeout(WAIT_TIMEOUT, connecting).await.expect("a handshake in time").map_err(|error| error.to_string())
}

/// Sends a request, and reads until the server closes.
pub async fn exchange(
    stream: &mut (impl AsyncReadExt + AsyncWriteExt + Unpin),
    request: &[u8],
) -> Result<Vec<u8>, String> {
    stream.write_all(request).await.map_err(|error| error.to_string())?;
    stream.flush().await.map_err(|error| error.to_string())?;
    let mut response = Vec::new();
    let read = timeout(WAIT_TIMEOUT, stream.read_to_end(&mut response)).await.expect("the server closes in time");
    match read {
        Ok(_) => Ok(response),
        // After its response a server may reset the connection.
        Err(_) if !response.is_empty() => Ok(response),
        Err(error) => Err(error.to_string()),
    }
}

/// A request whose connection closes after the response.
pub const HEALTH: &[u8] = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

/// Reports whether the server serves a request to this client.
pub async fn is_served(config: &Arc<ClientConfig>, address: SocketAddr, host: &str) -> Result<(), String> {
    let mut stream = connect(config, address, host).await?;
    let response = exchange(&mut stream, HEALTH).await?;
    assert!(response.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&response));
    Ok(())
}
