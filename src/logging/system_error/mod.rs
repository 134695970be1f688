//! Rewords errors of the operating system, without their numbers.

use std::io;

/// Returns the text of a system error without its number, in lower case, as part of a sentence.
pub fn system_error(error: &io::Error) -> String {
    let text = error.to_string();
    let words = without_number(&text);
    let mut letters = words.chars();
    match letters.next() {
        // A name in capitals is unchanged.
        Some(first) if letters.as_str().starts_with(char::is_lowercase) => {
            first.to_lowercase().chain(letters).collect()
        }
        _ => words.to_owned(),
    }
}

/// Removes the number that Rust appends to the text of the system.
pub(super) fn without_number(text: &str) -> &str {
    match text.rsplit_once(" (os error ") {
        Some((words, number)) if number.ends_with(')') => words,
        _ => text,
    }
}

#[cfg(test)]
mod tests;
