//! The table of commands.

use bytes::Bytes;

use super::parser::Words;

/// A command whose name is known and which has as many arguments as it takes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Command {
    Ping(Option<Bytes>),
    Echo(Bytes),
    Quit,
    /// The password; a user name before it is passed over, as there is but one.
    Auth(Bytes),
    Select(Bytes),
    Info,
    Client(Words),
    Help(Words),
    Keys(Bytes),
    Type(Bytes),
    Get(Bytes),
    SetMembers(Bytes),
    SetCount(Bytes),
    SetHas(Bytes, Bytes),
    SetAdd(Bytes, Words),
    SetRemove(Bytes, Words),
    HashGet(Bytes, Bytes),
    HashHas(Bytes, Bytes),
    HashKeys(Bytes),
    HashCount(Bytes),
    HashSet(Bytes, Bytes, Bytes),
    HashDelete(Bytes, Words),
    Publish(Bytes, Bytes),
    Subscribe(Words),
    /// From all, where none is named.
    Unsubscribe(Words),
}

/// Names of commands, how many arguments they take at least and at most, and how they are read.
type Row = (&'static str, usize, usize, fn(Args) -> Command);

/// More than a command can have.
const ANY: usize = usize::MAX;

/// The arguments of a command, of which there are enough.
struct Args(std::vec::IntoIter<Bytes>);

impl Args {
    fn one(&mut self) -> Bytes {
        self.0.next().unwrap_or_default()
    }

    fn rest(self) -> Words {
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

/// How many commands there are.
pub(super) const COUNT: usize = TABLE.len();

/// Reads a command; the refusal is an answer to it.
pub(super) fn read(words: Words) -> Result<Command, String> {
    let mut words = words.into_iter();
    let name = words.next().unwrap_or_default();
    let row = TABLE.iter().find(|(known, ..)| known.as_bytes().eq_ignore_ascii_case(&name));
    let Some((name, least, most, read)) = row else {
        let name: String = String::from_utf8_lossy(&name).chars().take(64).collect();
        return Err(format!("ERR unknown command '{name}': this is no Redis, but as much of one as @cryb/mesa needs"));
    };
    if !(*least..=*most).contains(&words.len()) {
        return Err(format!("ERR wrong number of arguments for '{name}' command"));
    }
    Ok(read(Args(words)))
}

impl Command {
    /// Whether a connection that has subscribed to something may say it.
    pub(super) fn is_for_subscribers(&self) -> bool {
        matches!(self, Self::Ping(_) | Self::Quit | Self::Subscribe(_) | Self::Unsubscribe(_))
    }

    /// Whether a connection that has not shown the password may say it.
    pub(super) fn is_for_strangers(&self) -> bool {
        matches!(self, Self::Auth(_) | Self::Quit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str) -> Result<Command, String> {
        read(text.split(' ').map(|word| Bytes::copy_from_slice(word.as_bytes())).collect())
    }

    #[test]
    fn a_command_is_known_by_its_name_however_it_is_written() {
        assert_eq!(said("PiNg"), Ok(Command::Ping(None)));
        assert_eq!(said("hset k f v"), Ok(Command::HashSet("k".into(), "f".into(), "v".into())));
        assert_eq!(said("SADD k a b"), Ok(Command::SetAdd("k".into(), vec!["a".into(), "b".into()])));
        assert_eq!(said("AUTH default secret"), Ok(Command::Auth("secret".into())));
        assert_eq!(said("AUTH secret"), Ok(Command::Auth("secret".into())));
    }

    #[test]
    fn what_is_no_command_or_has_not_the_arguments_it_takes_is_refused() {
        assert!(said("FLUSHALL").unwrap_err().starts_with("ERR unknown command 'FLUSHALL'"));
        assert!(said("").unwrap_err().starts_with("ERR unknown command ''"));
        for text in ["get", "get a b", "hset k f", "hset k f v f v", "publish a", "subscribe", "auth a b c"] {
            assert!(said(text).unwrap_err().starts_with("ERR wrong number of arguments for '"), "{text}");
        }
    }
}
