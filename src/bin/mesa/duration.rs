//! Parses durations of the command line.

use std::time::Duration;

use crate::error::Failure;

/// Parses a duration such as `90s`, `15m`, `1h` or `7d`. `option` names it in an error.
pub fn duration(option: &str, text: &str) -> Result<Duration, Failure> {
    let invalid = || {
        let shown = text.escape_debug();
        Failure::usage(format!("{option} \"{shown}\" must be a number with its unit: 90s, 15m, 1h or 7d"))
    };
    let (unit, seconds) = match text.chars().next_back() {
        Some('s') => (1, text.strip_suffix('s')),
        Some('m') => (60, text.strip_suffix('m')),
        Some('h') => (60 * 60, text.strip_suffix('h')),
        Some('d') => (24 * 60 * 60, text.strip_suffix('d')),
        _ => return Err(invalid()),
    };
    let number: u64 =
        seconds.and_then(|number| number.parse().ok()).filter(|number| *number > 0).ok_or_else(invalid)?;
    number.checked_mul(unit).map(Duration::from_secs).ok_or_else(invalid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duration_needs_a_unit() {
        for (text, seconds) in [("90s", 90), ("15m", 900), ("1h", 3600), ("7d", 604_800)] {
            assert_eq!(duration("--ttl", text).unwrap(), Duration::from_secs(seconds), "{text}");
        }
        for text in
            ["", "1", "h", "0s", "-1h", "1.5h", "1 h", "1w", "1é", "99999999999999999999d", "999999999999999999d"]
        {
            assert!(matches!(duration("--ttl", text), Err(Failure::Usage(_))), "{text:?}");
        }
    }
}
