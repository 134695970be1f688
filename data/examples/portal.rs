//! Receives client messages through a portal.
//!
//! `cargo run --example portal`

use mesa::{
    client::{Client, Options, token},
    portal::{Event, Portal},
};

/// Runs the example.
#[tokio::main]
pub async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let directory = tempfile::tempdir()?;
    let server = mesa::server::Server::builder()
        .store_path(directory.path())
        .configure(|config| {
            (config.host, config.port) = ("127.0.0.1".into(), 0);
            (config.portal.enabled, config.authentication.insecure) = (true, true);
            config.api.keys.push("a-key-of-16-characters".into());
        })
        .start()
        .await?;
    let address = server.local_addr();
    tokio::spawn(server.run(std::future::pending()));

    let mut portal = Portal::builder(&format!("http://{address}"), "a-key-of-16-characters").connect().await?;

    let mut client = Client::connect(&format!("ws://{address}/")).await?;
    client.authenticate(token("alice"), Options::default()).await?;
    client.send("ORDER", &"tea")?;

    let order = loop {
        match portal.next().await.expect("a portal ends only with an error")? {
            Event::Message { user: Some(user), message, .. } => {
                break format!("{user}: {} {}", message.kind(), message.read::<String>()?);
            }
            Event::Missed { count } => eprintln!("{count:?} events are lost"),
            other => println!("{other:?}"),
        }
    };
    assert_eq!(order, "alice: ORDER tea");
    Ok(())
}
