use proptest::prelude::*;

use super::*;

/// Returns the commands in an input that arrives in `chunks`, the violation, and whether the input ends in a command.
fn split<'a>(
    bytes_max: usize,
    chunks: impl IntoIterator<Item = &'a [u8]>,
) -> (Vec<Vec<String>>, Option<Violation>, bool) {
    let (mut parser, mut buffer, mut found) = (Parser::new(bytes_max), BytesMut::new(), Vec::new());
    for chunk in chunks {
        buffer.extend_from_slice(chunk);
        loop {
            match parser.next(&mut buffer) {
                Ok(Some(words)) => {
                    found.push(words.iter().map(|word| String::from_utf8_lossy(word).into_owned()).collect());
                }
                Ok(None) => break,
                Err(violation) => return (found, Some(violation), true),
            }
        }
    }
    let is_in_command = parser.is_in_command(&buffer);
    (found, None, is_in_command)
}

fn words(commands: &[&[&str]]) -> Vec<Vec<String>> {
    commands.iter().map(|words| words.iter().map(|word| (*word).to_owned()).collect()).collect()
}

fn encode(commands: &[Vec<String>]) -> Vec<u8> {
    let mut out = Vec::new();
    for words in commands {
        out.extend(format!("*{}\r\n", words.len()).bytes());
        words.iter().for_each(|word| out.extend(format!("${}\r\n{word}\r\n", word.len()).bytes()));
    }
    out
}

#[test]
fn arrays_of_bulk_strings_are_parsed_in_order() {
    let text = b"*1\r\n$4\r\nPING\r\n*2\r\n$4\r\nECHO\r\n$0\r\n\r\n*0\r\n*-1\r\n*2\r\n$1\r\na\r\n$4\r\n\r\n\r\n\r\n";
    assert_eq!(split(100, [&text[..]]), (words(&[&["PING"], &["ECHO", ""], &["a", "\r\n\r\n"]]), None, false));
    assert_eq!(split(100, [&text[..10]]), (vec![], None, true));
    assert_eq!(split(100, [&b"*"[..]]), (vec![], None, true));
    assert_eq!(split(100, [&b""[..]]), (vec![], None, false));
}

#[test]
fn invalid_input_is_rejected_at_its_first_wrong_byte() {
    use Violation::*;
    for (text, violation) in [
        ("GET / HTTP/1.1\r\n", NoArray('G')),
        ("PING\r\n", NoArray('P')),
        ("\r\n", NoArray('?')),
        ("$4\r\nPING\r\n", NoArray('$')),
        ("*a\r\n", NoNumber),
        ("*\r\n", NoNumber),
        ("*+1\r\n", NoNumber),
        ("*1\n", NoNumber),
        ("*-2\r\n", NoNumber),
        ("*99999999999999999999999999\r\n", NoNumber),
        (&format!("*{}", "1".repeat(40)), NoNumber),
        ("*1025\r\n", TooManyArguments),
        ("*18446744073709551615\r\n", TooManyArguments),
        ("*1\r\n:4\r\n", NoBulk(':')),
        ("*1\r\n\u{1b}", NoBulk('?')),
        ("*1\r\n$-1\r\n", NoNumber),
        ("*1\r\n$18446744073709551615\r\n", TooLong(100)),
        ("*1\r\n$101\r\n", TooLong(100)),
        ("*2\r\n$60\r\n", NoEnd),
        ("*1\r\n$1\r\nab\r\n", NoEnd),
        ("*1\r\n$1\r\na\n\n", NoEnd),
    ] {
        let text = if text.starts_with("*2\r\n$60") { format!("{text}{}xx", "x".repeat(60)) } else { text.to_owned() };
        assert_eq!(split(100, [text.as_bytes()]), (vec![], Some(violation), true), "{text:?}");
    }
    let both = format!("*2\r\n$60\r\n{}\r\n$41\r\n", "x".repeat(60));
    assert_eq!(split(100, [both.as_bytes()]).1, Some(TooLong(100)), "the limit applies to all arguments together");
}

#[test]
fn announced_sizes_allocate_nothing() {
    let mut parser = Parser::new(usize::MAX / 2);
    let mut buffer = BytesMut::from(&b"*1024\r\n$4000000000000000000\r\nab"[..]);
    assert_eq!(parser.next(&mut buffer), Ok(None));
    assert!(buffer.capacity() < 1024 && parser.arguments.capacity() < 8);
}

proptest! {
    /// Checks that the commands do not depend on how the input is split.
    #[test]
    fn chunk_boundaries_do_not_change_commands(
        commands in prop::collection::vec(prop::collection::vec("[a-c\\r\\n*$0-9]{0,12}", 1..5), 0..6),
        cuts in prop::collection::vec(0_usize..9, 0..60),
    ) {
        let text = encode(&commands);
        let (mut chunks, mut rest) = (Vec::new(), &text[..]);
        for at in cuts {
            let (chunk, after) = rest.split_at(at.min(rest.len()));
            chunks.push(chunk);
            rest = after;
        }
        chunks.push(rest);
        prop_assert_eq!(split(100, chunks), (commands, None, false));
    }

    /// Checks that parsing random input terminates without a panic.
    #[test]
    fn random_input_is_parsed_or_rejected(noise in prop::collection::vec(prop::sample::select(&b"*$-1029\r\nab\xff"[..]), 0..200)) {
        let (found, violation, _) = split(50, [&noise[..]]);
        prop_assert!(found.len() < 50);
        prop_assert!(violation.is_none_or(|violation| violation.to_string().starts_with("Protocol error: ")));
    }
}
