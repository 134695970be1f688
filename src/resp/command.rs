//! Defines the table of commands.

use bytes::Bytes;

use super::parser::Arguments;

/// Holds a known command with a valid number of arguments.
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

/// Describes a command: name, fewest and most arguments, and how they are read.
type Row = (&'static str, usize, usize, fn(Args) -> Command);

/// Stands for any number of arguments.
const ANY: usize = usize::MAX;

/// Iterates over the arguments of a command, whose number is checked already.
struct Args(std::vec::IntoIter<Bytes>);

impl Args {
    fn one(&mut self) -> Bytes {
        self.0.next().unwrap_or_default()
    }

    fn rest(self) -> Arguments {
        self.0.collect()
    }
}

const TABLE: &[Row] = &[
    ("ping", 0, 1, |mut args| Command::Ping(args.0.next())),
    ("echo", 1, 1, |mut args| Command::Echo(args.one())),
    ("quit", 0, ANY, |_| Command::Quit),
    ("auth", 1, 2, |args| Command::Auth(args.0.last().unwrap_or_default())),
    ("select", 1, 1, |mut args| Command::Select(args.one())),
    ("info", 0, ANY, |_| Command::Info),
    ("client", 1, ANY, |args| Command::Client(args.rest())),
    ("command", 0, ANY, |args| Command::Help(args.rest())),
    ("keys", 1, 1, |mut args| Command::Keys(args.one())),
    ("type", 1, 1, |mut args| Command::Type(args.one())),
    ("get", 1, 1, |mut args| Command::Get(args.one())),
    ("smembers", 1, 1, |mut args| Command::SetMembers(args.one())),
    ("scard", 1, 1, |mut args| Command::SetCount(args.one())),
    ("sismember", 2, 2, |mut args| Command::SetHas(args.one(), args.one())),
    ("sadd", 2, ANY, |mut args| Command::SetAdd(args.one(), args.rest())),
    ("srem", 2, ANY, |mut args| Command::SetRemove(args.one(), args.rest())),
    ("hget", 2, 2, |mut args| Command::HashGet(args.one(), args.one())),
    ("hexists", 2, 2, |mut args| Command::HashHas(args.one(), args.one())),
    ("hkeys", 1, 1, |mut args| Command::HashKeys(args.one())),
    ("hlen", 1, 1, |mut args| Command::HashCount(args.one())),
    ("hset", 3, 3, |mut args| Command::HashSet(args.one(), args.one(), args.one())),
    ("hdel", 2, ANY, |mut args| Command::HashDelete(args.one(), args.rest())),
    ("publish", 2, 2, |mut args| Command::Publish(args.one(), args.one())),
    ("subscribe", 1, ANY, |args| Command::Subscribe(args.rest())),
    ("unsubscribe", 0, ANY, |args| Command::Unsubscribe(args.rest())),
];

/// Number of commands.
pub(super) const COUNT: usize = TABLE.len();

/// Parses a command. The error is its reply.
pub(super) fn read(words: Arguments) -> Result<Command, String> {
    let mut words = words.into_iter();
    let name = words.next().unwrap_or_default();
    let row = TABLE.iter().find(|(known, ..)| known.as_bytes().eq_ignore_ascii_case(&name));
    let Some((name, least, most, read)) = row else {
        let name: String = String::from_utf8_lossy(&name).chars().take(64).collect();
        return Err(format!(
            "ERR unknown command '{name}': this server supports only the commands that @cryb/mesa uses"
        ));
    };
    if !(*least..=*most).contains(&words.len()) {
        return Err(format!("ERR wrong number of arguments for '{name}' command"));
    }
    Ok(read(Args(words)))
}

impl Command {
    /// Tests that a subscribed connection may send this command.
    pub(super) fn allowed_while_subscribed(&self) -> bool {
        matches!(self, Self::Ping(_) | Self::Quit | Self::Subscribe(_) | Self::Unsubscribe(_))
    }

    /// Tests that an unauthenticated connection may send this command.
    pub(super) fn allowed_before_auth(&self) -> bool {
        matches!(self, Self::Auth(_) | Self::Quit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Command, String> {
        read(text.split(' ').map(|word| Bytes::copy_from_slice(word.as_bytes())).collect())
    }

    #[test]
    fn command_name_is_case_insensitive() {
        assert_eq!(parse("PiNg"), Ok(Command::Ping(None)));
        assert_eq!(parse("hset k f v"), Ok(Command::HashSet("k".into(), "f".into(), "v".into())));
        assert_eq!(parse("SADD k a b"), Ok(Command::SetAdd("k".into(), vec!["a".into(), "b".into()])));
        assert_eq!(parse("AUTH default secret"), Ok(Command::Auth("secret".into())));
        assert_eq!(parse("AUTH secret"), Ok(Command::Auth("secret".into())));
    }

    #[test]
    fn unknown_command_or_wrong_argument_count_is_rejected() {
        assert!(parse("FLUSHALL").unwrap_err().starts_with("ERR unknown command 'FLUSHALL'"));
        assert!(parse("").unwrap_err().starts_with("ERR unknown command ''"));
        for text in ["get", "get a b", "hset k f", "hset k f v f v", "publish a", "subscribe", "auth a b c"] {
            assert!(parse(text).unwrap_err().starts_with("ERR wrong number of arguments for '"), "{text}");
        }
    }
}
