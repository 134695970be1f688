use super::*;

fn checked(uri: &str, headers: &[(&str, &str)], local_only: bool) -> Result<(), u16> {
    let mut request = Request::builder().uri(uri);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    check(&request.body(()).unwrap(), local_only).map_err(|error| error.status_and_message().0.as_u16())
}

#[test]
fn ambiguous_head_is_rejected() {
    let host = ("host", "localhost:4000");
    assert_eq!(checked("/", &[host], false), Ok(()));
    assert_eq!(checked("/v1/users/%C3%a9", &[host, ("transfer-encoding", "Chunked")], false), Ok(()));
    assert_eq!(checked("/", &[("host", "[::1]:4000")], false), Ok(()));
    for headers in [
        &[][..],
        &[host, host],
        &[("host", "a b")],
        &[("host", "a/b")],
        &[("host", "me@a")],
        &[host, ("transfer-encoding", "gzip, chunked")],
        &[host, ("transfer-encoding", "chunked, chunked")],
        &[host, ("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")],
        &[host, ("transfer-encoding", "identity")],
    ] {
        assert_eq!(checked("/", headers, false), Err(400), "{headers:?}");
    }
    for path in ["/%", "/%z", "/%zz", "/v1/users/%4", "/%4%20"] {
        assert_eq!(checked(path, &[host], false), Err(400), "{path}");
    }
    let old = Request::builder().version(Version::HTTP_10).body(()).unwrap();
    assert_eq!((check(&old, false), check(&old, true)), (Ok(()), Ok(())), "HTTP/1.0 needs no Host");
    let new = Request::builder().version(Version::HTTP_2).body(()).unwrap();
    assert_eq!(check(&new, true), Ok(()), "HTTP/2 has no Host");
}

#[test]
fn query_that_is_not_utf8_is_rejected() {
    for good in [None, Some(""), Some("cursor=al%20ice%C3%A9&limit=1"), Some("a=b+c")] {
        assert!(check_query(good).is_ok(), "{good:?}");
    }
    for bad in ["cursor=%ff", "cursor=%C3", "cursor=%zz", "cursor=%4", "cursor=%", "%e2%82=1"] {
        assert!(check_query(Some(bad)).is_err(), "{bad}");
    }
}

#[test]
fn local_only_check_rejects_hosts_and_origins_of_other_machines() {
    let hosts =
        ["localhost", "LOCALHOST:4000", "127.0.0.1:4000", "[::1]:4000", "192.168.1.2", "mesa:4000", "a.localhost"];
    for host in hosts {
        assert_eq!(checked("/", &[("host", host)], true), Ok(()), "{host}");
    }
    let foreign = ["", "evil.example", "evil.example:4000", "127.0.0.1.evil.example", "localhost.evil.example", "a.b."];
    for host in foreign {
        assert_eq!(checked("/", &[("host", host)], true), Err(403), "{host}");
    }
    for host in ["evillocalhost.", ".localhost", "127.0.0.1:x"] {
        assert_ne!((host, is_localhost(host)), (host, true));
    }
    let with = |origin| checked("/", &[("host", "localhost"), ("origin", origin)], true);
    for origin in [
        "http://localhost",
        "https://localhost:8080",
        "http://127.0.0.1:3000",
        "http://[::1]:3000",
        "http://app.localhost:1",
    ] {
        assert_eq!(with(origin), Ok(()), "{origin}");
    }
    for origin in [
        "http://evil.example",
        "null",
        "",
        "http://localhost.evil.example",
        "http://127.0.0.1.evil.example",
        "http://192.168.1.2",
        "localhost",
        "http://mesa:3000",
        "file://",
    ] {
        assert_eq!(with(origin), Err(403), "{origin}");
        assert_eq!(checked("/", &[("host", "localhost"), ("origin", origin)], false), Ok(()), "{origin}");
    }
}
