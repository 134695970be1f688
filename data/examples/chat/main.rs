//! A chat room with its web page. Offline members receive messages later. The token is the name.
//!
//! Start it with `cargo run --example chat`, and open `http://127.0.0.1:4000`. Its arguments are an address and the directory
//! of the store.

use std::{collections::BTreeSet, env, error::Error, sync::Mutex, time::UNIX_EPOCH};

use axum::{Router, http::header::CONTENT_TYPE, routing::get};
use mesa::{
    auth::{AuthError, Identity},
    message::{Message, UserId},
    middleware::RateLimit,
    server::{Handler, Peer, ReceivedMessage, Server, bind},
};
use serde::Deserialize;
use serde_json::{Value, json};

/// Limit of names in a list of members that are online.
const ONLINE_MAX: usize = 1000;

/// All users that have ever connected. A real application would query its database.
#[derive(Default)]
struct Members(Mutex<BTreeSet<UserId>>);

#[derive(Deserialize)]
struct ChatMessage {
    text: String,
}

/// The time in milliseconds of the Unix epoch.
fn now_ms() -> u64 {
    UNIX_EPOCH.elapsed().map_or(0, |since| since.as_millis() as u64)
}

impl Members {
    /// Sends a message of `client` to the other members, and with `synced` also to those who are offline, and to itself.
    async fn send_to_all(&self, client: &Peer, kind: &str, text: &str, synced: bool) {
        let Some(from) = client.user() else { return };
        let members: Vec<UserId> = self.0.lock().unwrap().iter().cloned().collect();
        let excluded = if synced { vec![] } else { vec![from.clone()] };
        let mut message = message(kind, &json!({ "from": from, "text": text, "at": now_ms() }));
        message.o.sync = synced;
        if let Err(error) = client.server().send(&message, members, &excluded).await {
            eprintln!("cannot send the message of {from}: {error}");
        }
    }
}

fn message(kind: &str, data: &Value) -> Message {
    Message::new(kind, data).expect("JSON")
}

impl Handler for Members {
    async fn authentication(&self, client: Peer) {
        self.0.lock().unwrap().extend(client.user());
        let online = client.server().online(None, ONLINE_MAX).await;
        _ = client.send_here(&message("ONLINE", &json!({ "members": online, "at": now_ms() })));
        self.send_to_all(&client, "JOINED", "", false).await;
    }

    async fn message(&self, client: Peer, message: ReceivedMessage) {
        match (message.kind(), message.read::<ChatMessage>()) {
            ("CHAT", Ok(chat)) => self.send_to_all(&client, "CHAT", &chat.text, true).await,
            ("TYPING", _) => self.send_to_all(&client, "TYPING", "", false).await,
            _ => _ = client.disconnect(4000),
        }
    }

    async fn disconnection(&self, client: Peer, _: u16, _: String) {
        self.send_to_all(&client, "LEFT", "", false).await;
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args().skip(1);
    let address = arguments.next().unwrap_or("127.0.0.1:4000".into()).parse()?;
    let listener = bind(address)?;
    let (routes, mesa) = Server::builder()
        .store_path(arguments.next().unwrap_or("data/chat".into()))
        .configure(|config| {
            config.path = "/socket".into();
            (config.sync.enabled, config.reconnect.enabled) = (true, true);
        })
        .authenticate(|data| async move {
            let name = data.get("token").and_then(|token| token.as_str()).unwrap_or_default();
            UserId::new(name).map(Identity::new).map_err(|error| AuthError::Rejected(error.to_string()))
        })
        .middleware(RateLimit::new(5.0, 20))
        .handler(Members::default())
        .attach()
        .await?;
    let file = |content_type, text: &'static str| get(move || async move { ([(CONTENT_TYPE, content_type)], text) });
    let app = Router::new()
        .route("/", file("text/html; charset=utf-8", include_str!("index.html")))
        .route("/chat.css", file("text/css; charset=utf-8", include_str!("chat.css")))
        .route("/chat.mjs", file("text/javascript; charset=utf-8", include_str!("chat.mjs")))
        .merge(routes);
    println!("listening on {}", listener.local_addr()?);
    let serving = tokio::spawn(axum::serve(listener, app).into_future());
    mesa.run(async { _ = tokio::signal::ctrl_c().await }).await?;
    serving.abort();
    Ok(())
}
