//! Formats times as RFC 3339: UTC, with milliseconds.

use std::time::{SystemTime, UNIX_EPOCH};

use time::{
    OffsetDateTime,
    format_description::well_known::{
        Iso8601,
        iso8601::{Config, EncodedConfig, TimePrecision},
    },
};

/// The profile of ISO 8601 that is RFC 3339 with three digits after the second.
const MILLISECONDS: EncodedConfig =
    Config::DEFAULT.set_time_precision(TimePrecision::Second { decimal_digits: std::num::NonZeroU8::new(3) }).encode();

/// Formats a time, as in `2026-11-24T01:02:03.004Z`.
///
/// A time before 1970 becomes the beginning of 1970. A time after the year 9999 becomes the end of 9999, because RFC
/// 3339 has four digits for the year.
#[must_use]
pub fn rfc3339(time: SystemTime) -> String {
    let milliseconds = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    // Whole milliseconds, so that the format rounds nothing.
    let nanoseconds = i128::try_from(milliseconds).unwrap_or(i128::MAX).saturating_mul(1_000_000);
    let formatted = OffsetDateTime::from_unix_timestamp_nanos(nanoseconds)
        .ok()
        .and_then(|time| time.format(&Iso8601::<MILLISECONDS>).ok());
    formatted.unwrap_or_else(|| "9999-12-31T23:59:59.999Z".to_owned())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn time_is_formatted_with_its_calendar_date() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399, "2000-02-28T23:59:59.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (1_709_251_200, "2024-03-01T00:00:00.000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z"),
            (32_503_680_000, "3000-01-01T00:00:00.000Z"),
            (253_402_300_800, "9999-12-31T23:59:59.999Z"),
            (u64::MAX >> 20, "9999-12-31T23:59:59.999Z"),
        ] {
            assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
        assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_millis(1_234)), "1970-01-01T00:00:01.234Z");
        assert_eq!(rfc3339(UNIX_EPOCH - Duration::from_secs(1)), "1970-01-01T00:00:00.000Z");
    }

    #[test]
    fn milliseconds_are_truncated_and_have_three_digits() {
        for ms in 0..1000 {
            let time = UNIX_EPOCH + Duration::from_millis(59_000 + ms) + Duration::from_nanos(999_999);
            assert_eq!(rfc3339(time), format!("1970-01-01T00:00:59.{ms:03}Z"));
        }
    }
}
