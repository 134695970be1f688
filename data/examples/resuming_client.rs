//! Connects a client that resumes, also after a restart of its program.
//!
//! `cargo run --example resuming_client`

use mesa::{
    client::{Client, Event, FilePositions, Options, token},
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

    // The position in alice's log on this device. It is in a file, so the next start of the program resumes from it.
    let positions = directory.path().join("alice-phone-1");
    for (text, is_first_start) in [("HELLO", true), ("HELLO_AGAIN", false)] {
        let mut client = Client::builder(&url)
            .reconnect_interval(Duration::from_millis(50)) // overrides the interval that the server announces
            .positions(FilePositions::new(&positions))
            .connect()
            .await?;
        let options = Options::default().device(DeviceId::new("phone-1")?);
        client.authenticate(token("alice"), options).await?;

        handle.send(&Message::new(text, &"alice")?, UserId::new("alice")?, &[]).await?;
        while let Some(event) = client.next().await {
            match event {
                Event::Message(message) => {
                    println!("{} {} at {:?}", message.kind(), message.data, message.position);
                    assert_eq!(message.position, Some(if is_first_start { 1 } else { 2 }));
                    // The next event acknowledges this one, and so does this call. Until then it would be delivered again.
                    client.acknowledge().await?;
                    break;
                }
                Event::Disconnected { will_reconnect, reason, .. } => println!("{reason}; back: {will_reconnect}"),
                _ => {}
            }
        }
        client.send("THANKS", &())?; // queued while the client is offline
        client.disconnect().await;
    }
    Ok(())
}
