//! Words for errors of the system, for people who do not know its numbers.

use std::io;

/// Returns what the system says, without its number, to be part of a sentence.
pub fn system_error(error: &io::Error) -> String {
    let text = error.to_string();
    let words = without_number(&text);
    let mut letters = words.chars();
    match letters.next() {
        // A name in capitals stays one.
        Some(first) if letters.as_str().starts_with(char::is_lowercase) => {
            first.to_lowercase().chain(letters).collect()
        }
        _ => words.to_owned(),
    }
}

/// Removes the number that Rust appends to the system's words.
pub(super) fn without_number(text: &str) -> &str {
    match text.rsplit_once(" (os error ") {
        Some((words, number)) if number.ends_with(')') => words,
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_of_the_system_is_told_without_its_number() {
        for (number, expected) in
            [(28, "no space left on device"), (5, "input/output error"), (24, "too many open files")]
        {
            assert_eq!(system_error(&io::Error::from_raw_os_error(number)), expected);
        }
        assert_eq!(system_error(&io::Error::other("EOF (os error)")), "EOF (os error)");
    }
}
