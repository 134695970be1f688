use super::*;
use crate::hub::{Rejected, RejectionReason};

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
        Rejected { user: "a\"b".into(), reason: RejectionReason::Invalid },
        Rejected { user: "c".into(), reason: RejectionReason::Quota },
        Rejected { user: r#""b\ud83d""#.into(), reason: RejectionReason::InvalidUnicode },
    ];
    let outcome = Outcome { recipients: 2, rejected, duplicate: true, ..Outcome::default() };
    let rejected =
        r#"{"user":"a\"b","reason":"invalid"},{"user":"c","reason":"quota"},{"user":"b\ud83d","reason":"invalid"}"#;
    let expected =
        format!(r#"{{"recipients":2,"online":0,"offline":0,"stored":0,"rejected":[{rejected}],"duplicate":true}}"#);
    assert_eq!(text(&outcome), expected);
}
