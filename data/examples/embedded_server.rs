//! Embeds a server, handles events of clients, and sends messages.
//!
//! `cargo run --example embedded_server`

use mesa::{
    client::{Client, Event, Options, token},
    message::{Message, Recipients, UserId},
    server::Server,
};

/// Runs the example.
#[tokio::main]
pub async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let directory = tempfile::tempdir()?;

    let server = Server::builder()
        .configure(|config| {
            config.host = "127.0.0.1".into();
            config.port = 0; // the system chooses a free port
            config.sync.enabled = true;
            config.authentication.insecure = true; // a token is a user id: for development
        })
        .store_path(directory.path())
        .on_connection(|client| async move { println!("{:?} connects", client.address()) })
        .on_message(|client, message| async move {
            if message.kind() == "PING" {
                let pong = Message::new("PONG", &message.data).expect("it was JSON");
                _ = client.send(&pong).await;
            }
        })
        .on_disconnection(|client, code, _| async move { println!("{:?} goes with {code}", client.user()) })
        .start()
        .await?;

    let (address, handle) = (server.local_addr(), server.handle());
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let running = tokio::spawn(server.run(async { _ = stopped.await }));

    // The original's `mesa.send(message, recipients, excluding)`.
    let news = Message::new("NEWS", &"hello")?;
    handle.send(&news, UserId::new("alice")?, &[]).await?; // stored until she connects
    handle.send(&news, Recipients::Everyone, &[UserId::new("bob")?]).await?; // every connected client except Bob's

    let mut alice = Client::connect(&format!("ws://{address}/")).await?;
    alice.authenticate(token("alice"), Options::default()).await?;
    alice.send("PING", &1)?;
    let mut kinds = Vec::new();
    while kinds.len() < 2 {
        if let Some(Event::Message(message)) = alice.next().await {
            kinds.push(message.kind().to_owned());
        }
    }
    assert_eq!(kinds, ["NEWS", "PONG"]);

    _ = stop.send(());
    running.await??;
    Ok(())
}
