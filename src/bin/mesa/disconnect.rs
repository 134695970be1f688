//! `mesa disconnect`: closes the connections of a user.

use crate::{
    args::{DisconnectArgs, user_id},
    endpoint,
    error::Failure,
    output::{self, count},
};

/// Runs the command.
pub async fn run(args: &DisconnectArgs) -> Result<(), Failure> {
    let user = user_id(&args.user)?;
    let dispatcher = endpoint::dispatcher(&args.api)?;
    let result = match &args.reason {
        Some(reason) => dispatcher.disconnect_with(&user, reason).await?,
        None => dispatcher.disconnect(&user).await?,
    };
    if args.json {
        output::json(&result)?;
        return Ok(());
    }
    let closed = match result.disconnected {
        0 => format!("{user} has no connection"),
        connections => format!("{} of {user} closed", count(connections, "connection")),
    };
    Ok(output::line(&closed)?)
}
