//! Plays the scenario of the demo. Each line is checked before it is printed.

use super::{
    backend::Backend, client::Alice, flaky_proxy::FlakyProxy, narrator::Narrator, server::Server, tracker::Tracker,
};
use crate::{
    error::Failure,
    output::{count, line},
};

/// Messages while Alice is offline.
const MISSED: u64 = 3;
/// Messages to a connection that is dead without a close.
const TO_DEAD_CONNECTION: u64 = 5;
/// Messages just before the server is killed.
const BEFORE_KILL: u64 = 4;

/// Plays the scenario to its end, or to the first broken guarantee.
pub async fn play(narrator: &Narrator, server: &mut Server, tracker: &mut Tracker) -> Result<(), Failure> {
    line("A user goes offline, the network fails, the server is killed: does every message arrive?")?;
    let endpoint = server.start().await?;
    let backend = Backend::new(&endpoint)?;
    narrator.event("Server", &format!("listens on {}, its store in a temporary directory", endpoint.address)).await?;

    Narrator::scene(1, "Alice is online")?;
    let mut alice = Alice::connect(endpoint.address).await?;
    narrator.event("Alice", "connects").await?;
    backend.send(tracker, 1, true).await?;
    narrator.event("Backend", "sends 1 message; the server answers: stored, 1 online").await?;
    let seen = alice.read(tracker, false).await?;
    print_received(narrator, &seen).await?;
    alice.wait_until_acknowledged(&backend).await?;
    alice.disconnect(&backend).await?;

    Narrator::scene(2, "Alice goes offline, and reconnects")?;
    narrator.event("Alice", "disconnects").await?;
    backend.send(tracker, MISSED, false).await?;
    narrator
        .event("Backend", &format!("sends {}; the server answers: stored, 1 offline", count(MISSED, "message")))
        .await?;
    let mut alice = Alice::connect(endpoint.address).await?;
    narrator.event("Alice", "connects again").await?;
    let seen = alice.read(tracker, true).await?;
    print_received(narrator, &seen).await?;
    alice.wait_until_acknowledged(&backend).await?;
    alice.disconnect(&backend).await?;

    Narrator::scene(3, "Alice's network fails without a close")?;
    let network = FlakyProxy::start(endpoint.address).await.map_err(Failure::because)?;
    let mut lost = Alice::connect(network.address()).await?;
    narrator.event("Alice", "connects through a network that is about to fail").await?;
    backend.send(tracker, 1, true).await?;
    let seen = lost.read(tracker, false).await?;
    print_received(narrator, &seen).await?;
    lost.wait_until_acknowledged(&backend).await?;
    network.fail();
    narrator.event("Network", "forwards nothing any more, and closes no connection").await?;
    backend.send(tracker, TO_DEAD_CONNECTION, true).await?;
    let sent = count(TO_DEAD_CONNECTION, "message");
    narrator.event("Backend", &format!("sends {sent}; for the server she is still online, and it stores them")).await?;
    let mut alice = Alice::connect(endpoint.address).await?;
    narrator.event("Alice", "connects through another network; her old connection still exists").await?;
    let seen = alice.read(tracker, true).await?;
    print_received(narrator, &seen).await?;
    alice.wait_until_acknowledged(&backend).await?;

    Narrator::scene(4, "The server is killed")?;
    backend.send(tracker, BEFORE_KILL, true).await?;
    let sent = count(BEFORE_KILL, "message");
    narrator.event("Backend", &format!("sends {sent}; each is answered, and Alice has not received them yet")).await?;
    server.kill().await?;
    narrator.event("Server", "is killed (SIGKILL), without a chance to write anything").await?;
    // Unread bytes in her socket are discarded with the connection.
    drop((alice, lost, network));
    let endpoint = server.start().await?;
    let backend = Backend::new(&endpoint)?;
    narrator.event("Server", &format!("starts again on the same store, listens on {}", endpoint.address)).await?;
    let mut alice = Alice::connect(endpoint.address).await?;
    narrator.event("Alice", "connects").await?;
    let seen = alice.read(tracker, true).await?;
    print_received(narrator, &seen).await?;
    alice.wait_until_acknowledged(&backend).await?;
    alice.disconnect(&backend).await
}

async fn print_received(narrator: &Narrator, seen: &[String]) -> Result<(), Failure> {
    for message in seen {
        narrator.event("Alice", &format!("receives {message}")).await?;
    }
    Ok(())
}
