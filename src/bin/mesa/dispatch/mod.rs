//! `mesa dispatch`: dispatches one message, or a stream of them, and prints the results.

mod ndjson;

use std::io::Read;

use mesa::{
    dispatcher::{Dispatch, DispatchResult},
    message::{CollapseKey, DispatchId, EVERYONE, Message, Options, PAYLOAD_BYTES_MAX, Recipients},
};
use serde_json::value::RawValue;

use crate::{
    args::{DispatchArgs, user_id},
    endpoint,
    error::Failure,
    output::{self, count, printable},
};

/// Runs the command.
pub async fn run(args: &DispatchArgs) -> Result<(), Failure> {
    let dispatcher = endpoint::dispatcher(&args.api)?;
    if let Some(file) = &args.ndjson {
        return ndjson::run(&dispatcher, file, args.json).await;
    }
    let dispatch = dispatch(args)?;
    let result = dispatcher.send(&dispatch).await?;
    if args.json {
        output::json(&result)?;
    } else {
        for line in describe(&result, dispatch.message.o.sync && dispatch.recipients != Recipients::Everyone) {
            output::line(&line)?;
        }
    }
    if result.rejected.is_empty() { Ok(()) } else { Err(Failure::Reported) }
}

fn dispatch(args: &DispatchArgs) -> Result<Dispatch, Failure> {
    let message = message(args)?;
    let recipients = recipients(&args.to)?;
    if recipients == Recipients::Everyone && (args.ttl.is_some() || args.collapse.is_some()) {
        return Err(Failure::usage("a message to '*' is never stored; remove --ttl and --collapse"));
    }
    let excluding = args.excluding.iter().map(|id| user_id(id)).collect::<Result<Vec<_>, _>>()?;
    let id = args.id.as_deref().map(DispatchId::new).transpose().map_err(Failure::usage)?;
    let mut dispatch = Dispatch::new(message, recipients).excluding(excluding);
    dispatch.id = id;
    Ok(dispatch)
}

fn message(args: &DispatchArgs) -> Result<Message, Failure> {
    let text = if args.data == "-" { standard_input()? } else { args.data.clone() };
    let data = RawValue::from_string(text).map_err(|error| {
        Failure::usage(format!("the data is not JSON ({error}); write it as in '{{\"text\":\"Hello\"}}', with quotes"))
    })?;
    let mut options = Options::default();
    (options.sync, options.ttl, options.collapse) = (!args.no_sync, args.ttl, args.collapse.clone());
    let message = Message { op: args.op, d: Some(data), t: args.kind.clone(), o: options };
    args.collapse.as_deref().map(CollapseKey::new).transpose().map_err(Failure::usage)?;
    // Reports an invalid message before a request.
    message.payload().map_err(Failure::usage)?;
    Ok(message)
}

fn standard_input() -> Result<String, Failure> {
    let mut text = String::new();
    // Enough to detect data that is too large, also with white space around it.
    let limit = u64::try_from(4 * PAYLOAD_BYTES_MAX).unwrap_or(u64::MAX);
    let read = std::io::stdin().lock().take(limit).read_to_string(&mut text);
    read.map_err(|error| Failure::because(format!("cannot read the data from standard input: {error}")))?;
    let text = text.trim();
    if text.len() > PAYLOAD_BYTES_MAX {
        return Err(Failure::usage(format!(
            "the data has more than the {PAYLOAD_BYTES_MAX} bytes that a message may have; send a reference instead"
        )));
    }
    Ok(text.to_owned())
}

fn recipients(to: &[String]) -> Result<Recipients, Failure> {
    match to {
        [recipient] if recipient == EVERYONE => Ok(Recipients::Everyone),
        users if users.iter().any(|user| user == EVERYONE) => {
            Err(Failure::usage("'*' means every connected client; remove it, or the user ids"))
        }
        users => Ok(Recipients::Users(users.iter().map(|id| user_id(id.trim())).collect::<Result<_, _>>()?)),
    }
}

/// Describes a result: a summary, and one line for each rejected recipient.
fn describe(result: &DispatchResult, synced: bool) -> Vec<String> {
    let rejected = result.rejected.len() as u64;
    let accepted = match result.recipients.saturating_sub(rejected) {
        _ if rejected == 0 => String::new(),
        0 => ", accepted for none".into(),
        accepted => format!(", accepted for {accepted}"),
    };
    let presence = if rejected > 0 && rejected >= result.recipients {
        String::new()
    } else {
        let stored = match (result.offline, result.stored) {
            (0, _) => "",
            (_, 0) if synced => " (not stored: sync is off on this server; set sync.enabled)",
            (_, 0) => " (not stored)",
            (_, _) => " (stored)",
        };
        format!(": {} online, {} offline{stored}", result.online, result.offline)
    };
    let duplicate =
        if result.duplicate { "; duplicate: this is the result of an earlier dispatch with the same id" } else { "" };
    let mut lines = vec![format!("{}{accepted}{presence}{duplicate}", count(result.recipients, "recipient"))];
    lines.extend(
        result.rejected.iter().map(|each| format!("{}: rejected ({})", printable(&each.user), printable(&each.reason))),
    );
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broadcast_next_to_user_ids_is_a_usage_error() {
        let to = |names: &[&str]| recipients(&names.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(to(&["*"]).unwrap(), Recipients::Everyone);
        assert!(matches!(to(&["alice", "bob"]).unwrap(), Recipients::Users(users) if users.len() == 2));
        assert!(matches!(to(&["*", "bob"]), Err(Failure::Usage(_))));
        assert!(matches!(to(&["alice", ""]), Err(Failure::Usage(_))));
    }

    #[test]
    fn description_names_each_rejected_recipient() {
        let result = serde_json::from_str(
            r#"{"recipients":3,"online":1,"offline":1,"stored":2,"rejected":[{"user":"c","reason":"quota"}],
                "duplicate":false}"#,
        );
        assert_eq!(
            describe(&result.unwrap(), true),
            ["3 recipients, accepted for 2: 1 online, 1 offline (stored)", "c: rejected (quota)"]
        );
    }

    #[test]
    fn description_reports_what_was_stored() {
        let result = serde_json::from_str(r#"{"recipients":2,"online":1,"offline":1,"stored":0}"#).unwrap();
        let [line] = &describe(&result, true)[..] else { panic!("one line") };
        assert!(line.contains("1 offline (not stored: sync is off"), "{line}");
        assert_eq!(describe(&result, false), ["2 recipients: 1 online, 1 offline (not stored)"]);
    }
}
