//! Hides credentials in URLs that are logged or shown.

/// Returns `url` on one line, with `…` in place of user name and password.
///
/// Rejected texts that are not URLs are shown too, so everything up to the last `@` counts as secret.
pub(crate) fn without_userinfo(url: &str) -> String {
    let from = url.find("://").map_or(0, |at| at + "://".len());
    match url[from..].rfind('@') {
        Some(at) => format!("{}…{}", &url[..from], &url[from + at..]),
        None => url.to_owned(),
    }
    .escape_debug()
    .to_string()
}

#[cfg(test)]
mod tests {
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
}
