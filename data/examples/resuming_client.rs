//! Connects a client that resumes.
//!
//! `cargo run --example resuming_client`

use mesa::{
    client::{Client, Event, Options, token},
    message::{DeviceId, Message, UserId},
};
use std::time::Duration;

/// Runs the example.
#[tokio::main]
pub async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let directory = tempfile::tempdir()?;
    let server = mesa::server::Server::builder()
        .store_path(directory.path())
        .configure(|config| {
            (config.host, config.port) = ("127.0.0.1".into(), 0);
            (config.sync.enabled, config.authentication.insecure) = (true, true);
        })
        .start()
        .await?;
    let (url, handle) = (format!("ws://{}/", server.local_addr()), server.handle());
    tokio::spawn(server.run(std::future::pending()));

    let mut client = Client::builder(&url)
        .reconnect_interval(Duration::from_millis(50)) // overrides the interval that the server announces
        .connect()
        .await?;
    // The sequence of the last message this program has processed on this device: 0, because it is new.
    let options = Options::default().after(0).device(DeviceId::new("phone-1")?);
    client.authenticate(token("alice"), options).await?;

    handle.send(&Message::new("HELLO", &"alice")?, UserId::new("alice")?, &[]).await?;
    loop {
        match client.next().await.expect("the client reconnects") {
            Event::Connected { is_initial_connection, .. } => println!("connected, first: {is_initial_connection}"),
            Event::Message(message) => {
                println!("{} {} at {:?}", message.kind(), message.data, message.position);
                // Asking for the next event acknowledges this one. Until then it would be delivered again.
                break;
            }
            Event::Disconnected { will_reconnect, reason, .. } => println!("{reason}; back again: {will_reconnect}"),
            _ => {}
        }
    }
    client.send("THANKS", &())?; // queued while the client is offline
    client.disconnect().await;
    Ok(())
}
