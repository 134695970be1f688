//! `mesa users`: who the server knows, page by page.

use mesa::dispatcher::User;

use crate::{
    api,
    args::UsersArgs,
    failure::Failure,
    output::{self, count, printable},
};

/// Prints them all.
pub async fn run(args: &UsersArgs) -> Result<(), Failure> {
    let dispatcher = api::dispatcher(&args.api)?;
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
    format!("{:<24} {presence}{waiting}", printable(&user.id))
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
}
