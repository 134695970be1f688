//! TLS proxy in front of a server, and an HTTP proxy, for the tests of client transports.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::TlsAcceptor;

/// Terminates TLS with a certificate of an authority of its own.
pub struct TlsFront {
    pub address: SocketAddr,
    /// Certificate of the authority, in PEM.
    pub authority: String,
}

impl TlsFront {
    /// Starts a proxy to a server, with a certificate for `name`.
    pub async fn start(server: SocketAddr, name: &str) -> Self {
        let mut parameters = CertificateParams::new(Vec::new()).expect("parameters of the authority");
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority =
            CertifiedIssuer::self_signed(parameters, KeyPair::generate().expect("a key")).expect("an authority");
        let key = KeyPair::generate().expect("a key");
        let parameters = CertificateParams::new([name.to_owned()]).expect("parameters of the certificate");
        let certificate = parameters.signed_by(&key, &authority).expect("a certificate");
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("protocol versions")
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
            )
            .expect("a TLS configuration");
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    let Ok(mut client) = acceptor.accept(client).await else { return };
                    let Ok(mut server) = TcpStream::connect(server).await else { return };
                    _ = copy_bidirectional(&mut client, &mut server).await;
                });
            }
        });
        Self { address, authority: authority.pem() }
    }
}

/// An HTTP proxy that tunnels every CONNECT to one server, or rejects it.
pub struct ConnectProxy {
    pub address: SocketAddr,
    /// Heads of the requests.
    pub requests: Arc<Mutex<Vec<String>>>,
}

impl ConnectProxy {
    /// Starts a proxy with this status line.
    pub async fn start(server: SocketAddr, status: &'static str) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let requests: Arc<Mutex<Vec<String>>> = Arc::default();
        let recorded = requests.clone();
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let recorded = recorded.clone();
                tokio::spawn(async move {
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        let Ok(byte) = client.read_u8().await else { return };
                        head.push(byte);
                    }
                    recorded.lock().expect("no panic").push(String::from_utf8_lossy(&head).into_owned());
                    let response = format!("HTTP/1.1 {status}\r\nX-Proxy: test\r\n\r\n");
                    if client.write_all(response.as_bytes()).await.is_err() || !status.starts_with('2') {
                        return;
                    }
                    let Ok(mut server) = TcpStream::connect(server).await else { return };
                    _ = copy_bidirectional(&mut client, &mut server).await;
                });
            }
        });
        Self { address, requests }
    }
}
