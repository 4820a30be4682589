//! When a key set is looked for again. Pure: times are arguments, in milliseconds.

/// Where an answer does not say how long it holds.
const UNSAID: u64 = 5 * 60_000;
/// However long it says that it holds.
const LONGEST: u64 = 3_600_000;
/// Between two attempts that fail, at most.
const BACKOFF_MAX: u64 = 60_000;

/// How long an answer with this `Cache-Control` holds; not less than `least`.
pub fn holds(cache_control: Option<&str>, least: u64) -> u64 {
    let said = cache_control.map(|header| {
        let mut age = None;
        for directive in header.split(',').map(str::trim) {
            let (name, value) = directive.split_once('=').unwrap_or((directive, ""));
            match &*name.to_ascii_lowercase() {
                "no-store" | "no-cache" => return Some(0),
                "max-age" => age = value.trim_matches('"').parse::<u64>().ok().or(Some(0)),
                _ => {}
            }
        }
        age
    });
    let said = said.flatten().map_or(UNSAID, |seconds| seconds.saturating_mul(1000));
    said.min(LONGEST).max(least)
}

/// How long to wait after this many failures in a row, with `share` in 0..1 of jitter.
pub fn after_failures(failures: u32, share: f64) -> u64 {
    let longest = 1000_u64.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(BACKOFF_MAX);
    longest / 2 + (longest as f64 / 2.0 * share.clamp(0.0, 1.0)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_holds_as_long_as_it_says_within_bounds() {
        for (said, seconds) in [
            (None, 300),
            (Some("public"), 300),
            (Some("public, max-age=600, must-revalidate"), 600),
            (Some("Max-Age=\"90\""), 90),
            (Some("max-age=1"), 30),
            (Some("max-age=99999999999999999999"), 30),
            (Some("max-age=86400"), 3600),
            (Some("no-store, max-age=600"), 30),
            (Some("max-age=600, no-cache"), 30),
            (Some("max-age=-1"), 30),
        ] {
            assert_eq!(holds(said, 30_000), seconds * 1000, "{said:?}");
        }
        assert_eq!(holds(Some("max-age=0"), 1000), 1000);
    }

    #[test]
    fn failures_are_repeated_ever_more_rarely() {
        let longest = |failures| after_failures(failures, 1.0);
        assert_eq!(
            [longest(1), longest(2), longest(3), longest(7), longest(u32::MAX)],
            [1000, 2000, 4000, 60_000, 60_000]
        );
        assert_eq!(after_failures(3, 0.0), 2000);
    }
}
