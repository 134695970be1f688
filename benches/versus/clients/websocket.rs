//! Clients of the original's protocol, which is also ours.

use std::{io, net::SocketAddr, sync::atomic::Ordering::Relaxed};

use futures_util::{SinkExt as _, StreamExt as _};
use tokio_tungstenite::{
    client_async_with_config,
    tungstenite::{Message, protocol::WebSocketConfig},
};

use super::State;
use crate::contestant::To;

/// Bytes of the read buffer of a client.
const READ_BYTES: usize = 4096;

pub async fn serve(server: SocketAddr, user: To, state: &State) -> io::Result<()> {
    let mut permit = state.connecting.acquire().await.ok();
    let config = WebSocketConfig::default().read_buffer_size(READ_BYTES);
    let stream = super::open(server).await?;
    let opened = client_async_with_config(format!("ws://{server}/"), stream, Some(config)).await;
    let (mut socket, _) = opened.map_err(io::Error::other)?;
    let authentication = format!(r#"{{"op":2,"d":{{"token":"{}","shouldSync":true}}}}"#, user.name());
    while let Some(frame) = socket.next().await {
        let Message::Text(text) = frame.map_err(io::Error::other)? else { continue };
        let answer = match opcode(&text) {
            Some(0) => {
                state.receive(text.as_bytes());
                continue;
            }
            Some(10) => authentication.clone(),
            Some(1) => r#"{"op":11,"d":{}}"#.to_owned(),
            Some(22) => {
                state.ready.fetch_add(1, Relaxed);
                permit.take();
                continue;
            }
            _ => continue,
        };
        socket.send(Message::text(answer)).await.map_err(io::Error::other)?;
    }
    Err(io::Error::other("the server closed the connection"))
}

/// Returns the opcode of a frame. Each server writes it first.
fn opcode(text: &str) -> Option<u8> {
    let (_, rest) = text.split_once("\"op\":")?;
    let end = rest.find(|each: char| !each.is_ascii_digit()).unwrap_or(rest.len());
    rest[..end].parse().ok()
}

/// Checks the parser.
pub fn check() {
    assert_eq!(opcode(r#"{"op":22,"d":{"op":0}}"#), Some(22));
    assert_eq!(opcode(r#"{"op":0}"#), Some(0));
    assert_eq!(opcode("{}"), None);
}
