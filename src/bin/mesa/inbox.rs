//! `mesa inbox`: shows or clears the pending messages of a user.

use mesa::{
    dispatcher::{Dispatcher, PendingMessage},
    message::UserId,
};

use crate::{
    args::{InboxArgs, user_id},
    endpoint,
    error::Failure,
    output::{self, count, printable},
};

/// Messages per request.
const PAGE_MESSAGES: usize = 100;

/// Runs the command.
pub async fn run(args: &InboxArgs) -> Result<(), Failure> {
    let user = user_id(&args.user)?;
    let dispatcher = endpoint::dispatcher(&args.api)?;
    if args.clear { clear(args, &dispatcher, &user).await } else { show(args, &dispatcher, &user).await }
}

async fn clear(args: &InboxArgs, dispatcher: &Dispatcher, user: &UserId) -> Result<(), Failure> {
    let cleared = dispatcher.clear(user).await?;
    if args.json {
        output::json(&cleared)?;
    } else {
        output::line(&format!("{} of {user} cleared", count(cleared.cleared, "message")))?;
    }
    Ok(())
}

async fn show(args: &InboxArgs, dispatcher: &Dispatcher, user: &UserId) -> Result<(), Failure> {
    let mut after = args.after;
    let mut remaining = args.limit;
    while remaining > 0 {
        let page = dispatcher.messages(user, after, Some(remaining.min(PAGE_MESSAGES))).await?;
        for message in page.messages.iter().take(remaining) {
            if args.json {
                output::json(message)?;
            } else {
                output::line(&row(message))?;
            }
        }
        remaining = remaining.saturating_sub(page.messages.len());
        match page.messages.last() {
            // Without this check, a page that does not advance would be requested forever.
            Some(last) if last.s > after => after = last.s,
            _ => break,
        }
    }
    if !args.json {
        output::remark(&summary(dispatcher, user, args.limit - remaining, after).await?);
    }
    Ok(())
}

/// Returns how many of the pending messages were shown.
async fn summary(dispatcher: &Dispatcher, user: &UserId, shown: usize, after: u64) -> Result<String, Failure> {
    let shown = u64::try_from(shown).unwrap_or(u64::MAX);
    let pending = dispatcher.user(user).await?.pending;
    Ok(match (shown, pending) {
        (0, 0) => format!("no pending messages of {user}"),
        (shown, pending) if shown >= pending => format!("{} pending", count(pending, "message")),
        (shown, pending) => {
            format!("{shown} of {} pending; continue with --after {after}", count(pending, "message"))
        }
    })
}

fn row(message: &PendingMessage) -> String {
    let kind = message.t.as_deref().map(printable).unwrap_or_default();
    let data = message.d.as_deref().map_or_else(String::new, |data| printable(data.get()));
    format!("{:>6}  {kind} {data}", message.s)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_of_any_message_is_one_line() {
        let message = serde_json::from_str("{\"s\":7,\"op\":0,\"d\":{\n},\"t\":\"A\\u001b\"}").unwrap();
        assert_eq!(row(&message), "     7  A\\u{1b} {\\u{a}}");
    }
}
