//! Defines why a driver no longer serves a connection, and ends one whose socket takes no frame.

use std::time::Duration;

use tokio::{sync::oneshot, time::timeout};

use super::{Connection, close_code, error::ClientError};

/// Time limit until the socket takes a frame. A dead server behind a proxy may take none.
pub(super) const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// Describes why a connection is no longer served.
pub(super) enum ServeEnd {
    /// The program has dropped the client, or has called `disconnect` and waits for the sender.
    ByProgram(Option<oneshot::Sender<()>>),
    /// The server closed the connection, or it broke.
    Closed(u16, String),
    /// The connection cannot be used.
    Failed(ClientError),
}

/// Appends a text to the socket's buffer. Ends the connection if the socket takes nothing for [`WRITE_TIMEOUT`].
pub(super) async fn write(connection: &mut Connection, text: String) -> Result<(), ServeEnd> {
    match timeout(WRITE_TIMEOUT, connection.write(text)).await {
        Ok(written) => written.map_err(ServeEnd::Failed),
        Err(_) => Err(blocked()),
    }
}

/// Describes a socket that takes no frame for [`WRITE_TIMEOUT`].
pub(super) fn blocked() -> ServeEnd {
    ServeEnd::Closed(close_code::LOST, "the server does not read".into())
}
