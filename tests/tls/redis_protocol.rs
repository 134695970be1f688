//! Tests the Redis protocol over TLS.

use mesa::config::{Certificate, RedisProtocolTls};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::timeout,
};

use crate::{
    authority::{Authority, connect},
    start,
    support::{resp::encode_command, wait::WAIT_TIMEOUT},
};

#[tokio::test(flavor = "multi_thread")]
async fn redis_protocol_over_tls_uses_shared_or_own_certificate() {
    let (authority, own) = (Authority::new(), Authority::new());
    let issued = own.issue("localhost");
    for (tls, trusted) in [
        (RedisProtocolTls::Shared, &authority),
        (RedisProtocolTls::Own(Certificate::pem(&issued.cert, &issued.key)), &own),
    ] {
        let server = start(&authority, |config| {
            config.redis_protocol.port = Some(0);
            config.redis_protocol.tls = tls;
        })
        .await;
        let address = server.redis_protocol.unwrap();
        let mut stream = connect(&trusted.client(None, &[]), address, "localhost").await.unwrap();
        // The reply is larger than every buffer of TLS.
        let text = "x".repeat(400_000);
        stream.write_all(&encode_command(&["ECHO", &text])).await.unwrap();
        stream.flush().await.unwrap();
        let mut reply = vec![0; text.len() + "$400000\r\n\r\n".len()];
        timeout(WAIT_TIMEOUT, stream.read_exact(&mut reply)).await.expect("a reply in time").unwrap();
        assert!(reply.starts_with(b"$400000\r\nxxx"));
        // A browser must not reach this port with the certificate of the other one.
        let error = connect(&trusted.client(None, &["h2", "http/1.1"]), address, "localhost").await.unwrap_err();
        assert!(error.contains("NoApplicationProtocol"), "{error}");
    }
}
