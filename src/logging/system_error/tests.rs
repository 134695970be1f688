use super::*;

#[test]
fn system_error_has_no_number() {
    for (number, expected) in [(28, "no space left on device"), (5, "input/output error"), (24, "too many open files")]
    {
        assert_eq!(system_error(&io::Error::from_raw_os_error(number)), expected);
    }
    assert_eq!(system_error(&io::Error::other("EOF (os error)")), "EOF (os error)");
}
