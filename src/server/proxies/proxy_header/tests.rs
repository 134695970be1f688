use tokio::{io::AsyncWriteExt as _, net::TcpListener};

use super::*;

const V4: [u8; 12] = [203, 0, 113, 7, 127, 0, 0, 1, 0x12, 0x34, 0, 80];

fn v2(command: u8, family: u8, addresses: &[u8]) -> Vec<u8> {
    let length = (addresses.len() as u16).to_be_bytes();
    [V2_BEGIN, &[command, family], &length, addresses].concat()
}

/// Sends `pieces` one by one, and returns the result and the rest of the input.
async fn read(pieces: &[&[u8]]) -> (Result<Option<String>, String>, Vec<u8>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    client.set_nodelay(true).unwrap();
    let (mut server, _) = listener.accept().await.unwrap();
    let pieces: Vec<Vec<u8>> = pieces.iter().map(|piece| piece.to_vec()).collect();
    let sending = tokio::spawn(async move {
        for piece in pieces {
            client.write_all(&piece).await.unwrap();
            tokio::task::yield_now().await;
        }
    });
    let read = read_header(&mut server).await;
    sending.await.unwrap();
    let mut rest = Vec::new();
    _ = server.read_to_end(&mut rest).await;
    (read.map(|address| address.map(|address| address.to_string())).map_err(|error| error.to_string()), rest)
}

#[tokio::test]
async fn header_is_read_to_its_end_and_no_further() {
    let with_additions = [&V4[..], &[4; 500]].concat();
    let v6: Vec<u8> = [&[0x20, 1, 0xd, 0xb8][..], &[0; 11], &[9], &[0; 16], &[1, 0, 0, 80]].concat();
    for (header, expected) in [
        (b"PROXY TCP4 203.0.113.7 127.0.0.1 4660 80\r\n".to_vec(), Some("203.0.113.7:4660")),
        (b"PROXY TCP6 2001:db8::9 ::1 256 80\r\n".to_vec(), Some("[2001:db8::9]:256")),
        (b"PROXY UNKNOWN\r\n".to_vec(), None),
        (b"PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n".to_vec(), None),
        (v2(0x21, 0x11, &V4), Some("203.0.113.7:4660")),
        (v2(0x21, 0x11, &with_additions), Some("203.0.113.7:4660")),
        (v2(0x21, 0x21, &v6), Some("[2001:db8::9]:256")),
        (v2(0x20, 0x00, &[]), None),
        (v2(0x21, 0x31, &[0; 216]), None),
    ] {
        let message = [&header[..], b"GET / HTTP/1.1\r\n"].concat();
        let bytes: Vec<&[u8]> = message.chunks(1).collect();
        for pieces in [&[&message[..]][..], &bytes] {
            let (read, rest) = read(pieces).await;
            assert_eq!(read, Ok(expected.map(str::to_owned)), "{header:?}");
            assert_eq!(rest, b"GET / HTTP/1.1\r\n", "{header:?}");
        }
    }
}

#[tokio::test]
async fn malformed_header_is_rejected() {
    let long = format!("PROXY TCP4 {}\r\n", "1".repeat(200));
    let large = v2(0x21, 0x11, &[0; 4097]);
    for (input, expected) in [
        (&b""[..], "has closed"),
        (b"GET / HTTP/1.1\r\n\r\n", "no PROXY header"),
        (b"POST / HTTP/1.1\r\n\r\n", "no PROXY header"),
        (b"\x16\x03\x01", "no PROXY header"),
        (b"PROXY TCP4 203.0.113.7", "has closed"),
        (b"PROXY TCP4 203.0.113.7 127.0.0.1 4660\r\n", "two addresses and ports"),
        (b"PROXY TCP4 203.0.113.7 127.0.0.1 4660 80 1\r\n", "two addresses and ports"),
        (b"PROXY TCP4 203.0.113.7 127.0.0.1 4660 80\n", "two addresses and ports"),
        (b"PROXY TCP4 2001:db8::9 127.0.0.1 4660 80\r\n", "two addresses and ports"),
        (b"PROXY TCP4 203.0.113.7 127.0.0.1 65536 80\r\n", "two addresses and ports"),
        (b"PROXY UDP4 203.0.113.7 127.0.0.1 4660 80\r\n", "two addresses and ports"),
        (b"PROXY TCP4 \xff\xff\r\n", "two addresses and ports"),
        (long.as_bytes(), "more than 107 bytes"),
        (&v2(0x21, 0x11, &V4[..11]), "too few bytes"),
        (&v2(0x31, 0x11, &V4), "unknown version or command"),
        (&large, "at most 4096 bytes"),
        (&v2(0x21, 0x11, &V4)[..20], "has closed"),
        (b"\r\n\r\n\0\r\nQUIX\n\x21\x11\0\x0c", "no PROXY header"),
    ] {
        let error = read(&[input]).await.0.expect_err(expected);
        assert!(error.contains(expected), "{input:?}: {error}");
    }
}
