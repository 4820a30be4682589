//! Durations as the Gateway API writes them (GEP-2257): `30s`, `1m30s`, `500ms`.
//!
//! Not here: what is accepted where (each field says so).

use std::fmt::Write as _;
use std::time::Duration;

/// What is accepted, for errors.
pub const ACCEPTED: &str = "a duration such as 30s, 1m30s or 500ms (units h, m, s, ms; up to 5 digits each)";

const UNITS: [(&str, u64); 4] = [("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

/// Reads `1m30s`; `None` for anything else.
pub fn parse(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut millis = 0_u64;
    for part in 0.. {
        if rest.is_empty() {
            return (part > 0).then(|| Duration::from_millis(millis));
        }
        if part == UNITS.len() {
            return None;
        }
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        if !(1..=5).contains(&digits) {
            return None;
        }
        let (number, after) = rest.split_at(digits);
        let letters = after.bytes().take_while(u8::is_ascii_lowercase).count();
        let (unit, after) = after.split_at(letters);
        let scale = UNITS.iter().find(|(name, _)| *name == unit)?.1;
        // At most 4 × 99999 hours: no overflow.
        millis += number.parse::<u64>().ok()? * scale;
        rest = after;
    }
    None
}

/// Writes it in the fewest parts; below a millisecond is cut.
pub fn format(duration: Duration) -> String {
    let mut millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    if millis == 0 {
        return "0s".to_owned();
    }
    let mut out = String::new();
    for (unit, scale) in UNITS {
        if millis >= scale {
            // Writing to a String can't fail.
            let _ = write!(out, "{}{unit}", millis / scale);
            millis %= scale;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        for text in ["0s", "30s", "1m30s", "500ms", "2h5m1s7ms"] {
            assert_eq!(format(parse(text).unwrap()), text);
        }
        assert_eq!(parse("90s"), parse("1m30s"));
    }

    #[test]
    fn what_the_gateway_api_refuses_is_refused() {
        for text in ["", "30", "s", "-1s", "1.5s", "1 s", "100000s", "1d", "1s1s1s1s1s", "1S", "1sx"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
