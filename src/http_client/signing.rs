//! Signs requests: HMAC-SHA256 with a shared secret, over the time and the body.

use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::hmac;

/// Header with the time of this attempt, in whole seconds since 1970, as decimal digits.
pub const TIMESTAMP_HEADER: &str = "mesa-timestamp";

/// Header with the signature: `v1=` and 64 hexadecimal digits in lower case.
pub const SIGNATURE_HEADER: &str = "mesa-signature";

/// Creates both headers for a body that is sent now.
#[must_use]
pub fn headers(secret: &str, body: &[u8]) -> [(&'static str, String); 2] {
    // A clock before 1970 is wrong, and receivers will reject the timestamp.
    let timestamp = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()).to_string();
    let signature = sign(secret, &timestamp, body);
    [(TIMESTAMP_HEADER, timestamp), (SIGNATURE_HEADER, signature)]
}

/// Signs the timestamp, a full stop, and the body. The timestamp is the text of its header.
#[must_use]
pub fn sign(secret: &str, timestamp: &str, body: &[u8]) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    let mut context = hmac::Context::with_key(&key);
    context.update(timestamp.as_bytes());
    context.update(b".");
    context.update(body);
    let mut text = String::from("v1=");
    for byte in context.sign().as_ref() {
        for digit in [byte >> 4, byte & 15] {
            text.push(char::from(b"0123456789abcdef"[usize::from(digit)]));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compares with `printf '1700000000.{"events":[]}' | openssl dgst -sha256 -hmac 0123456789abcdef`.
    #[test]
    fn signature_equals_that_of_openssl() {
        let expected = "v1=1f1c43683e76ee83b09613ab56fa5bdd3ce55f3ee41db00a92e22eea0376899e";
        assert_eq!(sign("0123456789abcdef", "1700000000", br#"{"events":[]}"#), expected);
        assert_ne!(sign("0123456789abcdee", "1700000000", br#"{"events":[]}"#), expected);
        assert_ne!(sign("0123456789abcdef", "1700000001", br#"{"events":[]}"#), expected);
        assert_ne!(sign("0123456789abcdef", "1700000000", br#"{"events":[ ]}"#), expected);
    }
}
