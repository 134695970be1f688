//! What is wrong with a configuration: all of it at once, a sentence each.

use std::fmt;

/// Everything that is wrong with a configuration. Displays as one problem a line, each naming the key, what it is, what
/// it may be, and where it was set. Secrets are never shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    problems: Vec<Problem>,
}

impl ConfigError {
    /// `Err` with the problems, if there are any.
    pub(super) fn from_problems(problems: Vec<Problem>) -> Result<(), Self> {
        if problems.is_empty() { Ok(()) } else { Err(Self { problems }) }
    }

    /// Each problem as a sentence, in the order in which they were found. Never empty.
    pub fn problems(&self) -> impl ExactSizeIterator<Item = String> + '_ {
        self.problems.iter().map(ToString::to_string)
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            fmt::Display::fmt(problem, f)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Problem {
    /// The known keys it is about, the one to change first. Empty for what is no key at all.
    pub about: Vec<&'static str>,
    /// Where the value was set; put before the sentence.
    pub origin: Option<String>,
    /// The sentence, without a full stop.
    pub text: String,
}

impl Problem {
    pub fn new(text: impl Into<String>) -> Self {
        Self { about: Vec::new(), origin: None, text: text.into() }
    }

    pub fn about(keys: &[&'static str], text: impl Into<String>) -> Self {
        Self { about: keys.to_vec(), origin: None, text: text.into() }
    }

    pub fn from(mut self, origin: &str) -> Self {
        self.origin = Some(origin.to_owned());
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(origin) = &self.origin {
            write!(f, "{origin}: ")?;
        }
        write!(f, "{}.", self.text)
    }
}

/// Longest piece of what was written that is shown again, in characters.
const SHOWN_CHARACTERS_MAX: usize = 60;

/// What was written, fit for a line on a terminal: cut, and without control characters.
pub(super) fn shown(text: &str) -> String {
    let mut short: String = text.chars().take(SHOWN_CHARACTERS_MAX).flat_map(char::escape_debug).collect();
    if text.chars().nth(SHOWN_CHARACTERS_MAX).is_some() {
        short.push('…');
    }
    short
}
