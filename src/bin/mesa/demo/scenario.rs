//! What happens, scene by scene. Each line is printed after what it says was checked.

use super::{backend::Backend, client::Alice, flaky_proxy::Network, narrator::Stage, server::Server, tracker::Ledger};
use crate::{
    error::Failure,
    output::{count, line},
};

/// Messages while Alice is away.
const MISSED: u64 = 3;
/// Messages into a connection that is dead without anybody knowing.
const INTO_THE_VOID: u64 = 5;
/// Messages just before the server is killed.
const BEFORE_THE_KILL: u64 = 4;

/// Plays it to the end, or to where a promise is broken.
pub async fn play(stage: &Stage, server: &mut Server, ledger: &mut Ledger) -> Result<(), Failure> {
    line("A user comes and goes, the network fails, the server dies: does every message arrive?")?;
    let reach = server.start().await?;
    let backend = Backend::new(&reach)?;
    stage.tell("Server", &format!("listens on {}, its store in a temporary directory", reach.address)).await?;

    Stage::scene(1, "Alice is there")?;
    let mut alice = Alice::connect(reach.address).await?;
    stage.tell("Alice", "connects").await?;
    backend.send(ledger, 1, true).await?;
    stage.tell("Backend", "sends 1 message; the server answers: kept, 1 online").await?;
    let seen = alice.read(ledger, false).await?;
    saw(stage, &seen).await?;
    alice.stay_until_confirmed(&backend).await?;
    alice.leave(&backend).await?;

    Stage::scene(2, "Alice goes away, and comes back")?;
    stage.tell("Alice", "leaves").await?;
    backend.send(ledger, MISSED, false).await?;
    stage.tell("Backend", &format!("sends {}; the server answers: kept, 1 offline", count(MISSED, "message"))).await?;
    let mut alice = Alice::connect(reach.address).await?;
    stage.tell("Alice", "connects again").await?;
    let seen = alice.read(ledger, true).await?;
    saw(stage, &seen).await?;
    alice.stay_until_confirmed(&backend).await?;
    alice.leave(&backend).await?;

    Stage::scene(3, "Alice loses her network without a word")?;
    let network = Network::to(reach.address).await.map_err(Failure::because)?;
    let mut lost = Alice::connect(network.address()).await?;
    stage.tell("Alice", "connects, through a network that is about to fail").await?;
    backend.send(ledger, 1, true).await?;
    let seen = lost.read(ledger, false).await?;
    saw(stage, &seen).await?;
    lost.stay_until_confirmed(&backend).await?;
    network.die();
    stage.tell("Network", "carries nothing any more, and closes nothing: nobody is told").await?;
    backend.send(ledger, INTO_THE_VOID, true).await?;
    let sent = count(INTO_THE_VOID, "message");
    stage.tell("Backend", &format!("sends {sent}; the server still believes her online, and keeps them")).await?;
    let mut alice = Alice::connect(reach.address).await?;
    stage.tell("Alice", "finds another network and connects; her old connection still hangs there").await?;
    let seen = alice.read(ledger, true).await?;
    saw(stage, &seen).await?;
    alice.stay_until_confirmed(&backend).await?;

    Stage::scene(4, "The server is killed")?;
    backend.send(ledger, BEFORE_THE_KILL, true).await?;
    let sent = count(BEFORE_THE_KILL, "message");
    stage.tell("Backend", &format!("sends {sent}; each is answered, and Alice has not read them yet")).await?;
    server.kill().await?;
    stage.tell("Server", "is killed (SIGKILL), with no time to write anything down").await?;
    // What lies unread in her socket is gone with the connection: it was never hers.
    drop((alice, lost, network));
    let reach = server.start().await?;
    let backend = Backend::new(&reach)?;
    stage.tell("Server", &format!("starts again on the same store, listens on {}", reach.address)).await?;
    let mut alice = Alice::connect(reach.address).await?;
    stage.tell("Alice", "connects").await?;
    let seen = alice.read(ledger, true).await?;
    saw(stage, &seen).await?;
    alice.stay_until_confirmed(&backend).await?;
    alice.leave(&backend).await
}

async fn saw(stage: &Stage, seen: &[String]) -> Result<(), Failure> {
    for message in seen {
        stage.tell("Alice", &format!("gets {message}")).await?;
    }
    Ok(())
}
