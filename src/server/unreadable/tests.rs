use super::*;

const BARE: &str = "HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\ndate: x\r\n\r\n";

#[test]
fn bare_response_of_hyper_is_found_after_other_responses() {
    for before in ["", "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"]
    {
        assert_eq!(find(format!("{before}{BARE}").as_bytes()), Some(before.len()), "{before}");
    }
    let others = [
        "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".to_owned(),
        "HTTP/1.1 400 Bad Request\r\ncontent-length: 10\r\n\r\n".to_owned(),
        format!("{BARE}{{}}"),
        "\r\n\r\n".to_owned(),
        String::new(),
    ];
    for other in others {
        assert_eq!(find(other.as_bytes()), None, "{other}");
    }
}

#[test]
fn bare_response_gets_a_body_of_its_length() {
    for (status, code) in [("400 Bad Request", "bad_request"), ("431 Too Large", "head_too_large")] {
        let bare = BARE.replace("400 Bad Request", status);
        let whole = String::from_utf8(with_body(bare.as_bytes()).unwrap()).unwrap();
        let (head, body) = whole.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("\r\ncontent-length: {}\r\n", body.len())), "{head}");
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(body["error"]["code"], code);
    }
}
