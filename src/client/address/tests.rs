use super::*;

#[test]
fn address_is_shown_without_user_name_and_password() {
    for (url, shown) in [
        ("ws://h:1/p?x=1", "ws://h:1/p?x=1"),
        ("ws://alice:secret@h/", "ws://…@h/"),
        ("ws://alice:se/cr@et@h/", "ws://…@h/"),
        ("alice:secret@h", "…@h"),
        ("https://secret@h", "https://…@h"),
        ("\u{1b}://", "\\u{1b}://"),
    ] {
        assert_eq!(without_userinfo(url), shown);
    }
}
