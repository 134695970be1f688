//! Defines the errors of a configuration. All mistakes are reported at once, with one sentence each.

use std::fmt;

/// All mistakes of a configuration.
///
/// Displays one line per mistake: the origin, the key, its value and the accepted values. Never shows a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    problems: Vec<Problem>,
}

impl ConfigError {
    /// Returns `Err` if there is a problem.
    pub(super) fn from_problems(problems: Vec<Problem>) -> Result<(), Self> {
        if problems.is_empty() { Ok(()) } else { Err(Self { problems }) }
    }

    /// Returns one sentence per problem, in the order in which they were found. Never empty.
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

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Problem {
    /// Known keys that it concerns. The first is the key to change.
    pub about: Vec<&'static str>,
    /// Source that set the value, displayed before the sentence.
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

    pub fn with_origin(mut self, origin: &str) -> Self {
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

/// Longest excerpt of user input in an error, in characters.
const EXCERPT_CHARACTERS_MAX: usize = 60;

/// Truncates user input to 60 characters on one line, with control characters escaped.
pub(super) fn excerpt(text: &str) -> String {
    let mut short: String = text.chars().take(EXCERPT_CHARACTERS_MAX).flat_map(char::escape_debug).collect();
    if text.chars().nth(EXCERPT_CHARACTERS_MAX).is_some() {
        short.push('…');
    }
    short
}
