//! Tests the JavaScript client at `/client.js`, and its types at `/client.d.ts`.

use std::io::{Read as _, Write as _};

use crate::{
    connect, head, status,
    support::server::{Home, Server},
};

const SCRIPT: &str = include_str!("../../src/client/js/mesa.min.js");
const TYPES: &str = include_str!("../../src/client/js/mesa.d.ts");
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Sends a request without a key, and returns head and body of the response.
fn request(server: &Server, method: &str, target: &str, header: &str) -> (String, Vec<u8>) {
    let mut stream = connect(server.address);
    let request = format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{header}\r\n");
    stream.write_all(request.as_bytes()).expect("a successful write");
    let (head, mut body) = (head(&mut stream).expect("a response"), Vec::new());
    stream.read_to_end(&mut body).expect("a body");
    (head, body)
}

fn header<'a>(head: &'a str, name: &str) -> &'a str {
    let line = head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    line.unwrap_or_else(|| panic!("no header {name}: {head}"))
}

#[test]
fn client_script_is_served_without_key_and_cached_by_its_etag_and_version() {
    let home = Home::new();
    let server = home.start();
    for (path, content_type, text) in [
        ("/client.js", "text/javascript; charset=utf-8", SCRIPT),
        ("/client.d.ts", "application/typescript; charset=utf-8", TYPES),
    ] {
        for (query, cache) in [
            (String::new(), "no-cache"),
            ("?v=0.0.0".to_owned(), "no-cache"),
            (format!("?v={VERSION}"), "public, max-age=31536000, immutable"),
        ] {
            let (head, body) = request(&server, "GET", &format!("{path}{query}"), "");
            assert_eq!(status(&head), 200, "{head}");
            assert!(body == text.as_bytes(), "{path}{query} is not the file of the repository");
            assert_eq!(header(&head, "content-type"), content_type);
            assert_eq!(header(&head, "cache-control"), cache, "{path}{query}");
            assert_eq!(header(&head, "access-control-allow-origin"), "*");
        }

        let (head, body) = request(&server, "HEAD", path, "");
        assert_eq!((status(&head), body.len()), (200, 0), "{head}");
        assert_eq!(header(&head, "content-length"), text.len().to_string());

        let etag = header(&head, "etag").to_owned();
        for (sent, expected) in [
            (etag.clone(), 304),
            (format!("W/{etag}"), 304),
            (format!("\"other\", {etag}"), 304),
            ("*".to_owned(), 304),
            ("\"other\"".to_owned(), 200),
        ] {
            let (head, body) = request(&server, "GET", path, &format!("If-None-Match: {sent}\r\n"));
            assert_eq!(status(&head), expected, "{sent}: {head}");
            assert_eq!(header(&head, "etag"), etag);
            assert_eq!(body.is_empty(), expected == 304, "{sent}");
        }
    }
    assert_eq!(status(&request(&server, "DELETE", "/client.js", "").0), 405);
}
