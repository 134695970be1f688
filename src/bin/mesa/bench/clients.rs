//! Connects the users' clients, each with a task that receives its messages.

use std::{sync::Arc, time::Instant};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use mesa::client::{Connection, ConnectionEvent, Transport};
use tokio::task::JoinSet;

use super::{
    deliveries::{Deliveries, Stamp},
    users::Users,
};
use crate::error::Failure;

/// Connected clients. They end when this is dropped.
#[derive(Debug)]
pub struct Clients {
    _tasks: JoinSet<()>,
}

impl Clients {
    /// Connects and authenticates one client for each user, `concurrency` at a time.
    ///
    /// With `record_connects` the time of each is a latency of `deliveries`.
    pub async fn connect(
        (url, transport): (&str, &Transport),
        users: &Arc<Users>,
        deliveries: &Arc<Deliveries>,
        concurrency: usize,
        record_connects: bool,
    ) -> Result<Self, Failure> {
        let connect = |number: usize| async move {
            let start = Instant::now();
            let credentials = users.credentials(number)?;
            let mut connection = Connection::connect_with(url, transport).await.map_err(Failure::because)?;
            connection.authenticate(credentials, true).await.map_err(Failure::because)?;
            if record_connects {
                deliveries.record(number, start.elapsed());
            }
            Ok::<_, Failure>((number, connection))
        };
        let mut tasks = JoinSet::new();
        let mut connected = stream::iter(0..users.count()).map(connect).buffer_unordered(concurrency);
        while let Some((number, connection)) = connected.try_next().await? {
            tasks.spawn(receive(number, connection, deliveries.clone()));
        }
        Ok(Self { _tasks: tasks })
    }
}

/// Receives until the connection ends.
async fn receive(number: usize, mut connection: Connection, deliveries: Arc<Deliveries>) {
    let mut next = 0;
    loop {
        match connection.next().await {
            Ok(ConnectionEvent::Message { data, .. }) => {
                // Another message is not one of this measurement.
                if let Ok(stamp) = serde_json::from_str::<Stamp>(data.get()) {
                    next = deliveries.receive(number, next, &stamp);
                }
            }
            Ok(ConnectionEvent::Resumed { .. }) => {}
            Ok(ConnectionEvent::Closed { .. }) | Err(_) => break deliveries.close(),
        }
    }
}
