//! Reads address and key of a server from options and environment.

use mesa::dispatcher::Dispatcher;

use crate::{args::ApiArgs, env::variable, error::Failure, output::printable};

const WEBSOCKET_DEFAULT: &str = "ws://127.0.0.1:4000/";
const HTTP_DEFAULT: &str = "http://127.0.0.1:4000";

/// Returns a client of the HTTP API, with URL and key from options or environment.
pub fn dispatcher(args: &ApiArgs) -> Result<Dispatcher, Failure> {
    let Some(key) = option_or_variable(args.key.as_deref(), "MESA_API_KEY")? else {
        return Err(Failure::usage(
            "no API key was given: set MESA_API_KEY (or give --key) to one of the server's api.keys; `mesa serve --dev` \
             prints its key",
        ));
    };
    let url = http_url(args)?;
    let Some(ca) = &args.ca else { return Ok(Dispatcher::new(&url, &key)?) };
    let pem = std::fs::read(ca).map_err(|error| {
        Failure::because(format!("--ca {}: {error}; give the path of a readable PEM file", ca.display()))
    })?;
    Ok(Dispatcher::with_ca(&url, &key, &pem)?)
}

/// Returns the address of the server, to print it. It has no user name or password: see [`Dispatcher::new`].
pub fn address(args: &ApiArgs) -> Result<String, Failure> {
    let url = http_url(args)?;
    let without_query = url.split(['?', '#']).next().unwrap_or_default().trim_end_matches('/');
    Ok(printable(without_query.strip_suffix("/v1").unwrap_or(without_query)))
}

fn http_url(args: &ApiArgs) -> Result<String, Failure> {
    let url = option_or_variable(args.url.as_deref(), "MESA_URL")?;
    Ok(url.map_or_else(|| HTTP_DEFAULT.into(), |url| http(&url)))
}

/// Returns the WebSocket URL.
pub fn websocket_url(flag: Option<&str>) -> Result<String, Failure> {
    let url = option_or_variable(flag, "MESA_URL")?;
    Ok(url.map_or_else(|| WEBSOCKET_DEFAULT.into(), |url| websocket(&url)))
}

/// Returns the value of an option, or else of a variable.
pub fn option_or_variable(given: Option<&str>, name: &str) -> Result<Option<String>, Failure> {
    given.map_or_else(|| variable(name), |given| Ok(Some(given.to_owned())))
}

/// Converts the URL of a WebSocket to that of the API.
///
/// Both share a port, so that one `MESA_URL` is enough. The API is not below the WebSocket's path.
fn http(url: &str) -> String {
    for (client, api) in [("ws://", "http://"), ("wss://", "https://")] {
        if let Some(rest) = url.strip_prefix(client) {
            let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
            return format!("{api}{}", &rest[..end]);
        }
    }
    url.to_owned()
}

/// Converts the URL of the API to that of a WebSocket, which is never at `/v1`.
fn websocket(url: &str) -> String {
    for (given, client) in [("http://", "ws://"), ("https://", "wss://"), ("ws://", "ws://"), ("wss://", "wss://")] {
        if let Some(rest) = url.strip_prefix(given) {
            let server = rest.trim_end_matches('/').strip_suffix("/v1").filter(|server| !server.contains('/'));
            return format!("{client}{}", server.map_or_else(|| rest.to_owned(), |server| format!("{server}/")));
        }
    }
    url.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn url_of_one_kind_is_converted_to_the_other() {
        assert_eq!(http("ws://127.0.0.1:4000/socket?x=1"), "http://127.0.0.1:4000");
        assert_eq!(http("wss://example.org"), "https://example.org");
        assert_eq!(http("http://example.org/prefix"), "http://example.org/prefix");
        assert_eq!(websocket("http://127.0.0.1:4000"), "ws://127.0.0.1:4000");
        assert_eq!(websocket("http://127.0.0.1:4000/v1"), "ws://127.0.0.1:4000/");
        assert_eq!(websocket("http://127.0.0.1:4000/v1/"), "ws://127.0.0.1:4000/");
        assert_eq!(websocket("https://example.org/socket/v1"), "wss://example.org/socket/v1");
        assert_eq!(websocket("https://example.org/socket"), "wss://example.org/socket");
        assert_eq!(websocket("ws://127.0.0.1:4000/socket"), "ws://127.0.0.1:4000/socket");
        assert_eq!(websocket("ws://127.0.0.1:4000/v1"), "ws://127.0.0.1:4000/");
        assert_eq!(http("wss://example.org/v1"), "https://example.org");
    }
}
