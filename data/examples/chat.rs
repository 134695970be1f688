//! A chat room, built on the server of this crate. Offline members receive messages later. The token is the name.
//!
//! Start it with `cargo run --example chat -- 127.0.0.1:4000 data/chat`. Then open `page/index.html`, or run `cargo run
//! -- connect --as alice` and `--as bob` in two terminals. `{"t":"CHAT","d":{"text":"hello"}}` sends a message.

use std::{collections::BTreeSet, env, error::Error, sync::Mutex};

use mesa::{
    auth::{AuthError, Identity},
    message::{Message, UserId},
    middleware::RateLimit,
    server::{Handler, Peer, ReceivedMessage, Server, bind},
};
use serde::Deserialize;
use serde_json::json;

/// All users that have ever connected. A real application would query its database.
#[derive(Default)]
struct Members(Mutex<BTreeSet<UserId>>);

#[derive(Deserialize)]
struct ChatMessage {
    text: String,
}

impl Members {
    /// Sends a message of `client` to all members. With `synced`, offline members receive it later.
    async fn send_to_all(&self, client: &Peer, kind: &str, text: &str, synced: bool) {
        let Some(from) = client.user() else { return };
        let members: Vec<UserId> = self.0.lock().unwrap().iter().cloned().collect();
        let mut message = Message::new(kind, &json!({ "from": from, "text": text })).expect("JSON");
        message.o.sync = synced;
        if let Err(error) = client.server().send(&message, members, &[]).await {
            eprintln!("cannot send the message of {from}: {error}");
        }
    }
}

impl Handler for Members {
    async fn authentication(&self, client: Peer) {
        self.0.lock().unwrap().extend(client.user());
        self.send_to_all(&client, "JOINED", "", false).await;
    }

    async fn message(&self, client: Peer, message: ReceivedMessage) {
        match (message.kind(), message.read::<ChatMessage>()) {
            ("CHAT", Ok(chat)) => self.send_to_all(&client, "CHAT", &chat.text, true).await,
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
    let server = Server::builder()
        .listener(bind(address)?)
        .store_path(arguments.next().unwrap_or("data/chat".into()))
        .configure(|config| (config.sync.enabled, config.reconnect.enabled) = (true, true))
        .authenticate(|data| async move {
            let name = data.get("token").and_then(|token| token.as_str()).unwrap_or_default();
            UserId::new(name).map(Identity::new).map_err(|error| AuthError::Rejected(error.to_string()))
        })
        .middleware(RateLimit::new(5.0, 20))
        .handler(Members::default())
        .start()
        .await?;
    println!("listening on {}", server.local_addr());
    Ok(server.run(async { _ = tokio::signal::ctrl_c().await }).await?)
}
