//! `mesa inbox`: what waits for a user.

use mesa::{
    dispatcher::{Dispatcher, PendingMessage},
    message::UserId,
};

use crate::{
    args::InboxArgs,
    endpoint,
    error::Failure,
    output::{self, count, printable},
};

/// Messages asked for at a time.
const PAGE: usize = 100;

/// Shows or clears it.
pub async fn run(args: &InboxArgs) -> Result<(), Failure> {
    let user = endpoint::user(&args.user)?;
    let dispatcher = endpoint::dispatcher(&args.api)?;
    if args.clear { clear(args, &dispatcher, &user).await } else { show(args, &dispatcher, &user).await }
}

async fn clear(args: &InboxArgs, dispatcher: &Dispatcher, user: &UserId) -> Result<(), Failure> {
    let cleared = dispatcher.clear(user).await.map_err(Failure::because)?;
    if args.json {
        output::json(&cleared)?;
    } else {
        output::line(&format!("{} of {user} cleared", count(cleared.cleared, "message")))?;
    }
    Ok(())
}

async fn show(args: &InboxArgs, dispatcher: &Dispatcher, user: &UserId) -> Result<(), Failure> {
    let mut after = args.after;
    let mut left = args.limit;
    while left > 0 {
        let page = dispatcher.messages(user, after, Some(left.min(PAGE))).await.map_err(Failure::because)?;
        for message in page.messages.iter().take(left) {
            if args.json {
                output::json(message)?;
            } else {
                output::line(&row(message))?;
            }
        }
        left = left.saturating_sub(page.messages.len());
        match page.messages.last() {
            // A page that does not lead on would be asked for again and again.
            Some(last) if last.s > after => after = last.s,
            _ => break,
        }
    }
    if !args.json {
        output::remark(&rest(dispatcher, user, args.limit - left, after).await?);
    }
    Ok(())
}

/// Whether that was all.
async fn rest(dispatcher: &Dispatcher, user: &UserId, shown: usize, after: u64) -> Result<String, Failure> {
    let shown = u64::try_from(shown).unwrap_or(u64::MAX);
    let pending = dispatcher.user(user).await.map_err(Failure::because)?.pending;
    Ok(match (shown, pending) {
        (0, 0) => format!("nothing waits for {user}"),
        (shown, pending) if shown >= pending => format!("{} waiting", count(pending, "message")),
        (shown, pending) => {
            format!("{shown} of {} waiting; go on with --after {after}", count(pending, "message"))
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
    fn a_row_is_one_line_whatever_the_message_says() {
        let message = serde_json::from_str("{\"s\":7,\"op\":0,\"d\":{\n},\"t\":\"A\\u001b\"}").unwrap();
        assert_eq!(row(&message), "     7  A\\u{1b} {\\u{a}}");
    }
}
