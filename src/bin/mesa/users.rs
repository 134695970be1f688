//! `mesa users`: lists the users of a server, shows one, or erases one.

use mesa::dispatcher::{Dispatcher, User};

use crate::{
    args::{UsersArgs, user_id},
    endpoint,
    error::Failure,
    output::{self, count, printable},
};

/// Runs the command.
pub async fn run(args: &UsersArgs) -> Result<(), Failure> {
    let dispatcher = endpoint::dispatcher(&args.api)?;
    if let Some(id) = &args.erase {
        dispatcher.erase(&user_id(id)?).await?;
        output::line(&format!("{} is erased", printable(id)))?;
        return Ok(());
    }
    if let Some(id) = &args.user {
        return show(&dispatcher, id, args.json).await;
    }
    let mut cursor = None;
    let mut total = 0;
    loop {
        let page = dispatcher.users(args.online, cursor.as_deref(), None).await?;
        for user in &page.users {
            if args.json {
                output::json(user)?;
            } else {
                output::line(&row(user))?;
            }
            total += 1;
        }
        // Without this check, a cursor that does not advance would loop forever.
        if page.cursor.is_none() || page.cursor == cursor {
            break;
        }
        cursor = page.cursor;
    }
    if !args.json {
        let state = if args.online { " online" } else { "" };
        output::remark(&format!("{}{state}", count(total, "user")));
    }
    Ok(())
}

async fn show(dispatcher: &Dispatcher, id: &str, json: bool) -> Result<(), Failure> {
    let user = dispatcher.user(&user_id(id)?).await?;
    if json {
        output::json(&user)?;
        return Ok(());
    }
    details(&user).iter().try_for_each(|line| output::line(line))?;
    Ok(())
}

/// Returns the lines about one user, with devices.
fn details(user: &User) -> Vec<String> {
    let mut lines = vec![row(user)];
    let seen = user.last_seen.as_str().map_or_else(|| "never seen".into(), |at| format!("last seen {}", printable(at)));
    lines.push(format!("  last message {}, {seen}", user.last_sequence));
    lines.extend(user.devices.iter().map(|device| {
        let seen = device.last_seen.as_str().map(|at| format!(", last seen {}", printable(at)));
        let pending = format!("{} pending", count(device.pending, "message"));
        format!("  {:<22} {pending}{}", printable(&device.device), seen.unwrap_or_default())
    }));
    lines
}

fn row(user: &User) -> String {
    let presence = match user.connections {
        0 if user.online => "online".into(),
        0 => "offline".into(),
        connections => format!("online, {}", count(connections, "connection")),
    };
    let pending = if user.pending == 0 {
        String::new()
    } else {
        format!(", {} pending ({} bytes)", count(user.pending, "message"), user.pending_bytes)
    };
    let damaged = if user.damaged { ", damaged: some entries cannot be read" } else { "" };
    format!("{:<24} {presence}{pending}{damaged}", printable(&user.id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_has_presence_and_pending_messages() {
        let user = |json| serde_json::from_str(json).unwrap();
        let online = user(r#"{"id":"alice","online":true,"connections":2,"pending":0}"#);
        assert_eq!(row(&online), "alice                    online, 2 connections");
        let offline = user(r#"{"id":"bob","online":false,"pending":1,"pendingBytes":30}"#);
        assert_eq!(row(&offline), "bob                      offline, 1 message pending (30 bytes)");
    }

    #[test]
    fn details_have_one_line_per_device() {
        let user = r#"{"id":"alice","online":false,"pending":2,"pendingBytes":60,"lastSequence":9,
            "lastSeen":"2026-11-24T10:00:00.000Z","devices":[{"device":"phone-1","pending":2,"lastSeen":null}]}"#;
        assert_eq!(
            details(&serde_json::from_str(user).unwrap()),
            [
                "alice                    offline, 2 messages pending (60 bytes)",
                "  last message 9, last seen 2026-11-24T10:00:00.000Z",
                "  phone-1                2 messages pending",
            ]
        );
    }
}
