//! Broadcasts messages from a backend and from the program that embeds the server.
//!
//! `cargo run --example broadcast`

use mesa::{
    client::{Client, Event, Options, token},
    dispatcher::Dispatcher,
    message::{Message, Recipients},
};

/// Runs the example.
#[tokio::main]
pub async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let directory = tempfile::tempdir()?;
    let server = mesa::server::Server::builder()
        .store_path(directory.path())
        .configure(|config| {
            (config.host, config.port) = ("127.0.0.1".into(), 0);
            (config.sync.enabled, config.authentication.insecure) = (true, true);
            config.api.keys.push("a-key-of-16-characters".into());
        })
        .start()
        .await?;
    let (address, handle) = (server.local_addr(), server.handle());
    tokio::spawn(server.run(std::future::pending()));

    // Two connections of one user, and one of another.
    let mut clients = Vec::new();
    for user in ["alice", "alice", "bob"] {
        let mut client = Client::connect(&format!("ws://{address}/")).await?;
        client.authenticate(token(user), Options::default()).await?;
        clients.push(client);
    }
    // One broadcast from a backend and one from the program: every connected client receives both.
    let backend = Dispatcher::new(&format!("http://{address}"), "a-key-of-16-characters")?;
    assert_eq!(backend.dispatch(&Message::new("NEWS", &1)?, &Recipients::Everyone, &[]).await?.online, 3);
    handle.send(&Message::new("NEWS", &2)?, Recipients::Everyone, &[]).await?;
    for client in &mut clients {
        let mut heard = Vec::new();
        while heard.len() < 2 {
            if let Some(Event::Message(message)) = client.next().await {
                heard.push(message.read::<u32>()?);
            }
        }
        assert_eq!(heard, [1, 2]);
    }
    Ok(())
}
