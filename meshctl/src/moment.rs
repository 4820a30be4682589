//! Moments as text.

use time::OffsetDateTime;

fn at(seconds: u64) -> OffsetDateTime {
    let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
    // What no calendar holds is shown as the beginning.
    OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

/// `2026-01-31` of Unix seconds.
pub fn date(seconds: u64) -> String {
    at(seconds).date().to_string()
}

/// `2026-01-31T12:00:00Z` of Unix milliseconds.
pub fn utc(ms: u64) -> String {
    let at = at(ms / 1000);
    let (hour, minute, second) = at.to_hms();
    format!("{}T{hour:02}:{minute:02}:{second:02}Z", at.date())
}

#[cfg(test)]
mod tests {
    use super::{date, utc};

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(utc(0), "1970-01-01T00:00:00Z");
        assert_eq!(utc(951_782_400_000), "2000-02-29T00:00:00Z");
        assert_eq!(utc(1_700_000_000_999), "2023-11-14T22:13:20Z");
        assert_eq!(utc(4_102_444_799_000), "2099-12-31T23:59:59Z");
        assert_eq!(utc(u64::MAX), "1970-01-01T00:00:00Z");
        assert_eq!(date(1_795_304_029), "2026-11-21");
    }
}
