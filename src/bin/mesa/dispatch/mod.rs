//! `mesa dispatch`: one message to some users, and what became of it; or a stream of them.

mod ndjson;

use std::io::Read;

use mesa::{
    dispatcher::{Dispatch, DispatchResult},
    message::{CollapseKey, DispatchId, Message, Options, PAYLOAD_BYTES_MAX, Recipients},
};
use serde_json::value::RawValue;

use crate::{
    args::DispatchArgs,
    endpoint,
    error::Failure,
    output::{self, count, printable},
};

/// Sends it.
pub async fn run(args: &DispatchArgs) -> Result<(), Failure> {
    let dispatcher = endpoint::dispatcher(&args.api)?;
    if let Some(file) = &args.ndjson {
        return ndjson::run(&dispatcher, file, args.json).await;
    }
    let dispatch = dispatch(args)?;
    let result = dispatcher.send(&dispatch).await.map_err(Failure::because)?;
    if args.json {
        output::json(&result)?;
    } else {
        for line in account(&result, dispatch.message.o.sync && dispatch.recipients != Recipients::Everyone) {
            output::line(&line)?;
        }
    }
    if result.rejected.is_empty() { Ok(()) } else { Err(Failure::Told) }
}

fn dispatch(args: &DispatchArgs) -> Result<Dispatch, Failure> {
    let message = message(args)?;
    let recipients = recipients(&args.to)?;
    if recipients == Recipients::Everyone && (args.ttl.is_some() || args.collapse.is_some()) {
        return Err(Failure::usage("what is sent to '*' is never kept, so --ttl and --collapse mean nothing there"));
    }
    let excluding = args.excluding.iter().map(|id| endpoint::user(id)).collect::<Result<Vec<_>, _>>()?;
    let id = args.id.as_deref().map(DispatchId::new).transpose().map_err(Failure::usage)?;
    let mut dispatch = Dispatch::new(message, recipients).excluding(excluding);
    dispatch.id = id;
    Ok(dispatch)
}

fn message(args: &DispatchArgs) -> Result<Message, Failure> {
    let text = if args.data == "-" { standard_input()? } else { args.data.clone() };
    let data = RawValue::from_string(text).map_err(|error| {
        Failure::usage(format!(
            "the data is not JSON ({error}); it should look like '{{\"text\":\"Hello\"}}', in quotes"
        ))
    })?;
    let mut options = Options::default();
    (options.sync, options.ttl, options.collapse) = (!args.no_sync, args.ttl, args.collapse.clone());
    let message = Message { op: args.op, d: Some(data), t: args.kind.clone(), o: options };
    args.collapse.as_deref().map(CollapseKey::new).transpose().map_err(Failure::usage)?;
    // The server would say the same; this saves the way.
    message.payload().map_err(Failure::usage)?;
    Ok(message)
}

fn standard_input() -> Result<String, Failure> {
    let mut text = String::new();
    // One more than fits is enough to know that it does not; white space around the data may come on top.
    let limit = u64::try_from(4 * PAYLOAD_BYTES_MAX).unwrap_or(u64::MAX);
    let read = std::io::stdin().lock().take(limit).read_to_string(&mut text);
    read.map_err(|error| Failure::because(format!("cannot read the data from standard input: {error}")))?;
    let text = text.trim();
    if text.len() > PAYLOAD_BYTES_MAX {
        return Err(Failure::usage(format!("the data has more than the {PAYLOAD_BYTES_MAX} bytes a message may have")));
    }
    Ok(text.to_owned())
}

fn recipients(to: &[String]) -> Result<Recipients, Failure> {
    match to {
        [everyone] if everyone == "*" => Ok(Recipients::Everyone),
        users if users.iter().any(|user| user == "*") => {
            Err(Failure::usage("'*' is everyone who is connected; it cannot stand beside user ids"))
        }
        users => Ok(Recipients::Users(users.iter().map(|id| endpoint::user(id.trim())).collect::<Result<_, _>>()?)),
    }
}

/// What became of it, for people: in all, and for each it was not taken for.
fn account(result: &DispatchResult, to_keep: bool) -> Vec<String> {
    let refused = result.rejected.len() as u64;
    let taken = match result.recipients.saturating_sub(refused) {
        _ if refused == 0 => String::new(),
        0 => ", taken for none".into(),
        taken => format!(", taken for {taken}"),
    };
    let there = if refused > 0 && refused >= result.recipients {
        String::new()
    } else {
        let absent = match (result.offline, result.stored) {
            (0, _) => "",
            (_, 0) if to_keep => " (not stored: sync is off on this server; sync.enabled switches it on)",
            (_, 0) => " (not kept)",
            (_, _) => " (kept until they come)",
        };
        format!(": {} online, {} offline{absent}", result.online, result.offline)
    };
    let again = if result.duplicate { "; it had been sent before, and was not sent again" } else { "" };
    let mut lines = vec![format!("{}{taken}{there}{again}", count(result.recipients, "recipient"))];
    lines.extend(
        result.rejected.iter().map(|no| format!("{}: not taken ({})", printable(&no.user), printable(&no.reason))),
    );
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everyone_cannot_stand_beside_users() {
        let to = |names: &[&str]| recipients(&names.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(to(&["*"]).unwrap(), Recipients::Everyone);
        assert!(matches!(to(&["alice", "bob"]).unwrap(), Recipients::Users(users) if users.len() == 2));
        assert!(matches!(to(&["*", "bob"]), Err(Failure::Usage(_))));
        assert!(matches!(to(&["alice", ""]), Err(Failure::Usage(_))));
    }

    #[test]
    fn an_account_names_each_recipient_it_was_not_taken_for() {
        let result = serde_json::from_str(
            r#"{"recipients":3,"online":1,"offline":1,"stored":2,"rejected":[{"user":"c","reason":"quota"}],
                "duplicate":false}"#,
        );
        assert_eq!(
            account(&result.unwrap(), true),
            ["3 recipients, taken for 2: 1 online, 1 offline (kept until they come)", "c: not taken (quota)"]
        );
    }

    #[test]
    fn an_account_says_whether_anything_was_stored() {
        let result = serde_json::from_str(r#"{"recipients":2,"online":1,"offline":1,"stored":0}"#).unwrap();
        let [line] = &account(&result, true)[..] else { panic!("one line") };
        assert!(line.contains("1 offline (not stored: sync is off"), "{line}");
        assert_eq!(account(&result, false), ["2 recipients: 1 online, 1 offline (not kept)"]);
    }
}
