use super::*;

fn parsed(body: &[u8]) -> Result<PeerClose, (CloseCode, &'static str)> {
    let mask = [0xff, 1, 2, 3];
    let masked = body.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask);
    let bytes: Vec<u8> = mask.into_iter().chain(masked).collect();
    let mut frame = CloseFrame::new(u8::try_from(body.len()).unwrap());
    for byte in bytes {
        assert!(!frame.is_complete());
        frame.read(&[byte]);
    }
    assert!(frame.is_complete());
    frame.read(b"later bytes");
    frame.parse()
}

#[test]
fn legal_close_code_is_accepted() {
    let with = |code: u16| parsed(&[&code.to_be_bytes()[..], "é".as_bytes()].concat());
    assert_eq!(parsed(&[]), Ok(None));
    for code in 0..=u16::MAX {
        let legal = matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999);
        assert_eq!(with(code).is_ok(), legal, "{code}");
    }
    assert_eq!(with(1000), Ok(Some((1000, "é".to_owned()))));
}

#[test]
fn illegal_close_frame_has_one_reason_for_each_cause() {
    let causes = [&[3][..], &[3, 0xed], &[3, 0xe7], &[3, 0xe8, 0xff]];
    let rejected: Vec<_> = causes.into_iter().map(|body| parsed(body).unwrap_err()).collect();
    let codes: Vec<u16> = rejected.iter().map(|(code, _)| code.code()).collect();
    assert_eq!(codes, [1002, 1002, 1002, 1007]);
    let reasons: std::collections::HashSet<&str> = rejected.iter().map(|(_, reason)| *reason).collect();
    assert_eq!(reasons.len(), causes.len());
    assert!(reasons.iter().all(|reason| reason.len() <= 123));
}
