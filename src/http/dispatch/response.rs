//! Encodes the result of a dispatch as JSON.

use std::io::Write as _;

use crate::hub::Outcome;

/// Size in bytes of a usual result, in which no recipient is rejected.
pub(super) const USUAL_BYTES: usize = 128;

/// Appends a result, without a line end.
pub(super) fn write(outcome: &Outcome, out: &mut Vec<u8>) {
    let Outcome { recipients, online, offline, stored, .. } = outcome;
    // Writing to a Vec cannot fail, and a string always has a JSON form.
    let infallible = "writing to a Vec cannot fail";
    let begun = write!(
        out,
        r#"{{"recipients":{recipients},"online":{online},"offline":{offline},"stored":{stored},"rejected":["#
    );
    begun.expect(infallible);
    for (at, one) in outcome.rejected.iter().enumerate() {
        out.extend_from_slice(if at == 0 { br#"{"user":"# } else { br#",{"user":"# });
        one.write_user(out);
        write!(out, r#","reason":"{}"}}"#, one.reason.as_str()).expect(infallible);
    }
    write!(out, r#"],"duplicate":{}}}"#, outcome.duplicate).expect(infallible);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::{Reason, Rejected};

    fn text(outcome: &Outcome) -> String {
        let mut out = Vec::new();
        write(outcome, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn result_lists_each_rejected_recipient_with_reason() {
        let outcome = Outcome { recipients: 2, online: 1, offline: 1, stored: 2, ..Outcome::default() };
        let usual = r#"{"recipients":2,"online":1,"offline":1,"stored":2,"rejected":[],"duplicate":false}"#;
        assert_eq!(text(&outcome), usual);
        assert!(usual.len() < USUAL_BYTES);
        let rejected = vec![
            Rejected { user: "a\"b".into(), reason: Reason::Invalid },
            Rejected { user: "c".into(), reason: Reason::Quota },
            Rejected { user: r#""b\ud83d""#.into(), reason: Reason::Cut },
        ];
        let outcome = Outcome { recipients: 2, rejected, duplicate: true, ..Outcome::default() };
        let rejected =
            r#"{"user":"a\"b","reason":"invalid"},{"user":"c","reason":"quota"},{"user":"b\ud83d","reason":"invalid"}"#;
        let expected =
            format!(r#"{{"recipients":2,"online":0,"offline":0,"stored":0,"rejected":[{rejected}],"duplicate":true}}"#);
        assert_eq!(text(&outcome), expected);
    }
}
