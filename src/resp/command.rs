//! Parses commands, by a table.

use bytes::Bytes;

use super::parser::Arguments;

/// A known command with a valid number of arguments.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Command {
    Ping(Option<Bytes>),
    Echo(Bytes),
    Quit,
    /// Password. A user name before it is ignored, because there is only one user.
    Auth(Bytes),
    Select(Bytes),
    Info,
    Client(Arguments),
    Help(Arguments),
    Keys(Bytes),
    Type(Bytes),
    Get(Bytes),
    SetMembers(Bytes),
    SetCount(Bytes),
    SetHas(Bytes, Bytes),
    SetAdd(Bytes, Arguments),
    SetRemove(Bytes, Arguments),
    HashGet(Bytes, Bytes),
    HashHas(Bytes, Bytes),
    HashKeys(Bytes),
    HashCount(Bytes),
    HashSet(Bytes, Bytes, Bytes),
    HashDelete(Bytes, Arguments),
    Publish(Bytes, Bytes),
    Subscribe(Arguments),
    /// Unsubscribes from all channels if none is named.
    Unsubscribe(Arguments),
}

/// A command: name, minimum and maximum number of arguments, and their parser.
type Row = (&'static str, usize, usize, fn(Args) -> Command);

/// No maximum number of arguments.
const ANY: usize = usize::MAX;

/// The arguments of a command, whose number is valid.
struct Args(std::vec::IntoIter<Bytes>);

impl Args {
    /// Returns the next argument.
    fn next(&mut self) -> Bytes {
        self.0.next().unwrap_or_default()
    }

    /// Returns all further arguments.
    fn remaining(self) -> Arguments {
        self.0.collect()
    }
}

const TABLE: &[Row] = &[
    ("ping", 0, 1, |mut args| Command::Ping(args.0.next())),
    ("echo", 1, 1, |mut args| Command::Echo(args.next())),
    ("quit", 0, ANY, |_| Command::Quit),
    ("auth", 1, 2, |args| Command::Auth(args.0.last().unwrap_or_default())),
    ("select", 1, 1, |mut args| Command::Select(args.next())),
    ("info", 0, ANY, |_| Command::Info),
    ("client", 1, ANY, |args| Command::Client(args.remaining())),
    ("command", 0, ANY, |args| Command::Help(args.remaining())),
    ("keys", 1, 1, |mut args| Command::Keys(args.next())),
    ("type", 1, 1, |mut args| Command::Type(args.next())),
    ("get", 1, 1, |mut args| Command::Get(args.next())),
    ("smembers", 1, 1, |mut args| Command::SetMembers(args.next())),
    ("scard", 1, 1, |mut args| Command::SetCount(args.next())),
    ("sismember", 2, 2, |mut args| Command::SetHas(args.next(), args.next())),
    ("sadd", 2, ANY, |mut args| Command::SetAdd(args.next(), args.remaining())),
    ("srem", 2, ANY, |mut args| Command::SetRemove(args.next(), args.remaining())),
    ("hget", 2, 2, |mut args| Command::HashGet(args.next(), args.next())),
    ("hexists", 2, 2, |mut args| Command::HashHas(args.next(), args.next())),
    ("hkeys", 1, 1, |mut args| Command::HashKeys(args.next())),
    ("hlen", 1, 1, |mut args| Command::HashCount(args.next())),
    ("hset", 3, 3, |mut args| Command::HashSet(args.next(), args.next(), args.next())),
    ("hdel", 2, ANY, |mut args| Command::HashDelete(args.next(), args.remaining())),
    ("publish", 2, 2, |mut args| Command::Publish(args.next(), args.next())),
    ("subscribe", 1, ANY, |args| Command::Subscribe(args.remaining())),
    ("unsubscribe", 0, ANY, |args| Command::Unsubscribe(args.remaining())),
];

/// Number of commands.
pub(super) const COUNT: usize = TABLE.len();

/// Parses a command. The error is its reply.
pub(super) fn parse(words: Arguments) -> Result<Command, String> {
    let mut words = words.into_iter();
    let name = words.next().unwrap_or_default();
    let row = TABLE.iter().find(|(known, ..)| known.as_bytes().eq_ignore_ascii_case(&name));
    let Some((name, min, max, parse)) = row else {
        let name: String = String::from_utf8_lossy(&name).chars().take(64).collect();
        return Err(format!(
            "ERR unknown command '{name}': this server supports only the commands that @cryb/mesa uses"
        ));
    };
    if !(*min..=*max).contains(&words.len()) {
        return Err(format!("ERR wrong number of arguments for '{name}' command"));
    }
    Ok(parse(Args(words)))
}

impl Command {
    /// Tells whether a subscribed connection may send this command.
    pub(super) fn allowed_while_subscribed(&self) -> bool {
        matches!(self, Self::Ping(_) | Self::Quit | Self::Subscribe(_) | Self::Unsubscribe(_))
    }

    /// Tells whether an unauthenticated connection may send this command.
    pub(super) fn allowed_before_auth(&self) -> bool {
        matches!(self, Self::Auth(_) | Self::Quit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_text(text: &str) -> Result<Command, String> {
        parse(text.split(' ').map(|word| Bytes::copy_from_slice(word.as_bytes())).collect())
    }

    #[test]
    fn command_name_is_case_insensitive() {
        assert_eq!(parse_text("PiNg"), Ok(Command::Ping(None)));
        assert_eq!(parse_text("hset k f v"), Ok(Command::HashSet("k".into(), "f".into(), "v".into())));
        assert_eq!(parse_text("SADD k a b"), Ok(Command::SetAdd("k".into(), vec!["a".into(), "b".into()])));
        assert_eq!(parse_text("AUTH default secret"), Ok(Command::Auth("secret".into())));
        assert_eq!(parse_text("AUTH secret"), Ok(Command::Auth("secret".into())));
    }

    #[test]
    fn unknown_command_or_wrong_argument_count_is_rejected() {
        assert!(parse_text("FLUSHALL").unwrap_err().starts_with("ERR unknown command 'FLUSHALL'"));
        assert!(parse_text("").unwrap_err().starts_with("ERR unknown command ''"));
        for text in ["get", "get a b", "hset k f", "hset k f v f v", "publish a", "subscribe", "auth a b c"] {
            assert!(parse_text(text).unwrap_err().starts_with("ERR wrong number of arguments for '"), "{text}");
        }
    }
}
