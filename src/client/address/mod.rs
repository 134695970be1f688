//! Writes addresses, and hides credentials in URLs that are logged or shown.

/// Returns `url` on one line, with `…` in place of user name and password.
///
/// Also used for texts that are not URLs, so everything up to the last `@` counts as secret.
pub(crate) fn without_userinfo(url: &str) -> String {
    let from = url.find("://").map_or(0, |at| at + "://".len());
    match url[from..].rfind('@') {
        Some(at) => format!("{}…{}", &url[..from], &url[from + at..]),
        None => url.to_owned(),
    }
    .escape_debug()
    .to_string()
}

/// Joins a host, without brackets, and a port.
pub(super) fn host_and_port(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

#[cfg(test)]
mod tests;
