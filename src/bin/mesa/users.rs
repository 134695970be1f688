//! `mesa users`: who the server knows, page by page; or one of them.

use mesa::dispatcher::{Dispatcher, User};

use crate::{
    args::UsersArgs,
    endpoint,
    error::Failure,
    output::{self, count, printable},
};

/// Prints them all.
pub async fn run(args: &UsersArgs) -> Result<(), Failure> {
    let dispatcher = endpoint::dispatcher(&args.api)?;
    if let Some(id) = &args.user {
        return show(&dispatcher, id, args.json).await;
    }
    let mut cursor = None;
    let mut total = 0;
    loop {
        let page = dispatcher.users(args.online, cursor.as_deref(), None).await.map_err(Failure::because)?;
        for user in &page.users {
            if args.json {
                output::json(user)?;
            } else {
                output::line(&row(user))?;
            }
            total += 1;
        }
        // A cursor that does not move would page for ever.
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
    let user = dispatcher.user(&endpoint::user(id)?).await.map_err(Failure::because)?;
    if json {
        output::json(&user)?;
        return Ok(());
    }
    details(&user).iter().try_for_each(|line| output::line(line))?;
    Ok(())
}

/// One user, with his devices.
fn details(user: &User) -> Vec<String> {
    let mut lines = vec![row(user)];
    let seen = user.last_seen.as_str().map_or_else(|| "never seen".into(), |at| format!("last seen {}", printable(at)));
    lines.push(format!("  last message {}, {seen}", user.last_sequence));
    lines.extend(user.devices.iter().map(|device| {
        let seen = device.last_seen.as_str().map(|at| format!(", last seen {}", printable(at)));
        let waiting = format!("{} waiting", count(device.pending, "message"));
        format!("  {:<22} {waiting}{}", printable(&device.device), seen.unwrap_or_default())
    }));
    lines
}

fn row(user: &User) -> String {
    let presence = match user.connections {
        0 if user.online => "online".into(),
        0 => "away".into(),
        connections => format!("online, {}", count(connections, "connection")),
    };
    let waiting = if user.pending == 0 {
        String::new()
    } else {
        format!(", {} waiting ({} bytes)", count(user.pending, "message"), user.pending_bytes)
    };
    let damaged = if user.damaged { ", damaged: not all of it can be read" } else { "" };
    format!("{:<24} {presence}{waiting}{damaged}", printable(&user.id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_says_who_is_here_and_what_waits() {
        let user = |json| serde_json::from_str(json).unwrap();
        let here = user(r#"{"id":"alice","online":true,"connections":2,"pending":0}"#);
        assert_eq!(row(&here), "alice                    online, 2 connections");
        let away = user(r#"{"id":"bob","online":false,"pending":1,"pendingBytes":30}"#);
        assert_eq!(row(&away), "bob                      away, 1 message waiting (30 bytes)");
    }

    #[test]
    fn one_user_is_shown_with_devices() {
        let user = r#"{"id":"alice","online":false,"pending":2,"pendingBytes":60,"lastSequence":9,
            "lastSeen":"2026-11-24T10:00:00.000Z","devices":[{"device":"phone-1","pending":2,"lastSeen":null}]}"#;
        assert_eq!(
            details(&serde_json::from_str(user).unwrap()),
            [
                "alice                    away, 2 messages waiting (60 bytes)",
                "  last message 9, last seen 2026-11-24T10:00:00.000Z",
                "  phone-1                2 messages waiting",
            ]
        );
    }
}
