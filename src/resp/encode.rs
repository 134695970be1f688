//! Encodes RESP replies.

use bytes::{BufMut as _, BytesMut};

/// Encodes success.
pub(super) fn ok(out: &mut BytesMut) {
    out.put_slice(b"+OK\r\n");
}

/// Encodes a simple string, which must have no line ends.
pub(super) fn simple(out: &mut BytesMut, word: &str) {
    debug_assert!(!word.contains(['\r', '\n']));
    out.put_slice(format!("+{word}\r\n").as_bytes());
}

/// Encodes an error, which begins with a code in capitals. Control characters become spaces, so it stays one line.
pub(super) fn error(out: &mut BytesMut, text: &str) {
    out.put_u8(b'-');
    out.extend(text.bytes().map(|byte| if byte.is_ascii_control() { b' ' } else { byte }));
    out.put_slice(b"\r\n");
}

pub(super) fn integer(out: &mut BytesMut, number: u64) {
    out.put_slice(format!(":{number}\r\n").as_bytes());
}

pub(super) fn bulk(out: &mut BytesMut, bytes: &[u8]) {
    out.reserve(bytes.len() + 16);
    out.put_slice(format!("${}\r\n", bytes.len()).as_bytes());
    out.put_slice(bytes);
    out.put_slice(b"\r\n");
}

/// Encodes an absent value.
pub(super) fn nil(out: &mut BytesMut) {
    out.put_slice(b"$-1\r\n");
}

/// Encodes the head of an array; its `length` elements follow.
pub(super) fn array(out: &mut BytesMut, length: usize) {
    out.put_slice(format!("*{length}\r\n").as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(write: impl FnOnce(&mut BytesMut)) -> String {
        let mut out = BytesMut::new();
        write(&mut out);
        String::from_utf8(out.to_vec()).unwrap()
    }

    #[test]
    fn replies_are_encoded_like_redis() {
        assert_eq!(written(ok), "+OK\r\n");
        assert_eq!(written(|out| simple(out, "PONG")), "+PONG\r\n");
        assert_eq!(written(|out| integer(out, 12)), ":12\r\n");
        assert_eq!(written(|out| bulk(out, b"a\r\nb")), "$4\r\na\r\nb\r\n");
        assert_eq!(written(nil), "$-1\r\n");
        assert_eq!(written(|out| array(out, 2)), "*2\r\n");
        assert_eq!(written(|out| error(out, "ERR a\r\n+OK\u{1b}")), "-ERR a  +OK \r\n", "the error stays one reply");
    }
}
