//! Embeds a server that authenticates clients with a closure.
//!
//! `cargo run --example closure`

use mesa::{
    auth::{AuthError, Identity},
    client::{Client, ClientError, Options, token},
    message::UserId,
    server::Server,
};
use serde_json::json;

/// Runs the example.
#[tokio::main]
pub async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let directory = tempfile::tempdir()?;

    let server = Server::builder()
        .store_path(directory.path())
        .configure(|config| (config.host, config.port) = ("127.0.0.1".into(), 0))
        // The original's `client.authenticate((data, done) => …)`: `data` is what the client passed.
        .authenticate(|data| async move {
            // An application would query its database here.
            if data.get("token") != Some(&json!("open sesame")) {
                return Err(AuthError::Rejected("no such token".into()));
            }
            let mut identity = Identity::new(UserId::new("ali").expect("a user id"));
            identity.user.insert("name".into(), "Ali Baba".into());
            Ok(identity)
        })
        .start()
        .await?;
    let url = format!("ws://{}/", server.local_addr());
    tokio::spawn(server.run(std::future::pending()));

    let mut ali = Client::connect(&url).await?;
    let user = ali.authenticate(token("open sesame"), Options::default()).await?;
    assert_eq!(user["name"], "Ali Baba");

    let mut thief = Client::connect(&url).await?;
    let refused = thief.authenticate(token("open barley"), Options::default()).await;
    assert!(matches!(refused, Err(ClientError::Closed { code: 1008, .. })));
    Ok(())
}
