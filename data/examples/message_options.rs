//! Sends messages with options: not stored, with a TTL, with a collapse key.
//!
//! `cargo run --example message_options`

use mesa::{
    client::{Client, Event, Options, token},
    message::{CollapseKey, Message, UserId},
    server::Server,
};
use std::time::Duration;

/// Runs the example.
#[tokio::main]
pub async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let directory = tempfile::tempdir()?;

    let server = Server::builder()
        .configure(|config| {
            (config.host, config.port) = ("127.0.0.1".into(), 0);
            config.sync.enabled = true;
            config.authentication.insecure = true;
        })
        .store_path(directory.path())
        .start()
        .await?;
    let (url, handle) = (format!("ws://{}/", server.local_addr()), server.handle());
    tokio::spawn(server.run(std::future::pending()));
    let alice = UserId::new("alice")?;
    for n in 1..=3 {
        handle.send(&Message::new("N", &n)?, &alice, &[]).await?;
    }
    // Not stored; stored for an hour; and one that replaces the one before it.
    handle.send(&Message::new("TYPING", &true)?.unsynced(), &alice, &[]).await?;
    handle.send(&Message::new("OFFER", &"tea")?.ttl(Duration::from_secs(3600)), &alice, &[]).await?;
    let score = CollapseKey::new("score")?;
    handle.send(&Message::new("SCORE", &[1, 0])?.collapse(&score), &alice, &[]).await?;
    handle.send(&Message::new("SCORE", &[2, 0])?.collapse(&score), &alice, &[]).await?;
    assert_eq!(handle.user(&alice).await?.pending, 5);

    let mut client = Client::connect(&url).await?;
    client.authenticate(token("alice"), Options::default()).await?;
    let mut got = Vec::new();
    while got.len() < 5 {
        if let Some(Event::Message(message)) = client.next().await {
            got.push(format!("{} {} {}", message.position.unwrap_or(0), message.kind(), message.data));
        }
    }
    assert_eq!(got, ["1 N 1", "2 N 2", "3 N 3", "4 OFFER \"tea\"", "5 SCORE [2,0]"]);
    Ok(())
}
