//! A chat room. Who is there hears at once what is said; who is away hears it on coming back. The token is the name.
//!
//! `cargo run --example chat -- 127.0.0.1:4000 data/chat`, and then the page beside this file, or in two terminals
//! `cargo run -- connect --as alice` and `--as bob`, where `{"t":"SAY","d":{"text":"hello"}}` is said to all.

use std::{collections::BTreeSet, env, error::Error, sync::Mutex};

use mesa::{
    auth::{AuthError, Identity},
    message::{Message, UserId},
    middleware::RateLimit,
    server::{Handler, Peer, ReceivedMessage, Server, bind},
};
use serde::Deserialize;
use serde_json::json;

/// Everybody who has ever been here. A real one would ask its database.
#[derive(Default)]
struct Room(Mutex<BTreeSet<UserId>>);

#[derive(Deserialize)]
struct Say {
    text: String,
}

impl Room {
    /// To all members. What is said is kept for those who are away; who comes and goes is not.
    async fn tell(&self, client: &Peer, kind: &str, text: &str, kept: bool) {
        let Some(from) = client.user() else { return };
        let members: Vec<UserId> = self.0.lock().unwrap().iter().cloned().collect();
        let mut message = Message::new(kind, &json!({ "from": from, "text": text })).expect("JSON");
        message.o.sync = kept;
        if let Err(error) = client.server().send(&message, members, &[]).await {
            eprintln!("{from} was not heard: {error}");
        }
    }
}

impl Handler for Room {
    async fn authentication(&self, client: Peer) {
        self.0.lock().unwrap().extend(client.user());
        self.tell(&client, "JOINED", "", false).await;
    }

    async fn message(&self, client: Peer, message: ReceivedMessage) {
        match (message.kind(), message.read::<Say>()) {
            ("SAY", Ok(say)) => self.tell(&client, "SAID", &say.text, true).await,
            _ => _ = client.disconnect(4000),
        }
    }

    async fn disconnection(&self, client: Peer, _: u16, _: String) {
        self.tell(&client, "LEFT", "", false).await;
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
        .handler(Room::default())
        .start()
        .await?;
    println!("listening on {}", server.local_addr());
    Ok(server.run(async { _ = tokio::signal::ctrl_c().await }).await?)
}
