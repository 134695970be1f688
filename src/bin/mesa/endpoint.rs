//! Finding a server: addresses and keys, from flags and environment.

use mesa::{dispatcher::Dispatcher, message::UserId};

use crate::{args::ApiArgs, env::variable, error::Failure};

const WEBSOCKET_DEFAULT: &str = "ws://127.0.0.1:4000/";
const HTTP_DEFAULT: &str = "http://127.0.0.1:4000";

/// The API that was named, and the key to it.
pub fn dispatcher(args: &ApiArgs) -> Result<Dispatcher, Failure> {
    let Some(key) = typed_or_set(args.key.as_deref(), "MESA_API_KEY")? else {
        return Err(Failure::usage(
            "an API key is needed: set MESA_API_KEY (or give --key) to one of the server's api.keys; `mesa serve --dev` \
             prints one",
        ));
    };
    let url = typed_or_set(args.url.as_deref(), "MESA_URL")?.unwrap_or_else(|| HTTP_DEFAULT.into());
    Dispatcher::new(&http(&url), &key).map_err(Failure::usage)
}

/// Where to connect as a client.
pub fn websocket_url(flag: Option<&str>) -> Result<String, Failure> {
    let url = typed_or_set(flag, "MESA_URL")?;
    Ok(url.map_or_else(|| WEBSOCKET_DEFAULT.into(), |url| websocket(&url)))
}

/// Returns what was typed, or else the value of a variable.
pub fn typed_or_set(typed: Option<&str>, name: &str) -> Result<Option<String>, Failure> {
    typed.map_or_else(|| variable(name), |typed| Ok(Some(typed.to_owned())))
}

/// A user id that was typed.
pub fn user(id: &str) -> Result<UserId, Failure> {
    UserId::new(id).map_err(|error| Failure::usage(format!("\"{}\": {error}", id.escape_debug())))
}

/// WebSocket and API share a port, and one `MESA_URL` names both: a client's address is turned into the API's. The API
/// does not lie under the WebSocket's path.
fn http(url: &str) -> String {
    for (client, api) in [("ws://", "http://"), ("wss://", "https://")] {
        if let Some(rest) = url.strip_prefix(client) {
            let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
            return format!("{api}{}", &rest[..end]);
        }
    }
    url.to_owned()
}

/// And the other way round. `/v1` is where the API is, and no WebSocket.
fn websocket(url: &str) -> String {
    for (api, client) in [("http://", "ws://"), ("https://", "wss://")] {
        if let Some(rest) = url.strip_prefix(api) {
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
    fn one_address_serves_clients_and_backends() {
        assert_eq!(http("ws://127.0.0.1:4000/socket?x=1"), "http://127.0.0.1:4000");
        assert_eq!(http("wss://example.org"), "https://example.org");
        assert_eq!(http("http://example.org/prefix"), "http://example.org/prefix");
        assert_eq!(websocket("http://127.0.0.1:4000"), "ws://127.0.0.1:4000");
        assert_eq!(websocket("http://127.0.0.1:4000/v1"), "ws://127.0.0.1:4000/");
        assert_eq!(websocket("http://127.0.0.1:4000/v1/"), "ws://127.0.0.1:4000/");
        assert_eq!(websocket("https://example.org/socket/v1"), "wss://example.org/socket/v1");
        assert_eq!(websocket("https://example.org/socket"), "wss://example.org/socket");
        assert_eq!(websocket("ws://127.0.0.1:4000/socket"), "ws://127.0.0.1:4000/socket");
    }

    #[test]
    fn a_user_id_that_cannot_be_is_a_mistake_of_typing() {
        assert!(matches!(user(""), Err(Failure::Usage(_))));
        assert_eq!(user("alice").unwrap().as_str(), "alice");
    }
}
