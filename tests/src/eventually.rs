//! Waiting for something to become true, with a deadline.
//!
//! Stories never sleep for a fixed time: they ask until the answer is right. What was seen last is in the
//! panic, so that a missed deadline explains itself.

use std::{
    fmt::Debug,
    thread,
    time::{Duration, Instant},
};

const PAUSE: Duration = Duration::from_millis(20);

/// Asks `probe` until it says `true`, for ten seconds at most.
#[track_caller]
pub fn eventually(what: &str, probe: impl FnMut() -> bool) {
    within(Duration::from_secs(10), what, probe);
}

/// Asks `probe` until it says `true`, for `deadline` at most.
#[track_caller]
pub fn within(deadline: Duration, what: &str, mut probe: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !probe() {
        assert!(begin.elapsed() < deadline, "not within {deadline:?}: {what}");
        thread::sleep(PAUSE);
    }
}

/// Asks `probe` until `good` likes the answer; the answer.
#[track_caller]
pub fn until<T: Debug>(
    deadline: Duration,
    what: &str,
    mut probe: impl FnMut() -> T,
    good: impl Fn(&T) -> bool,
) -> T {
    let begin = Instant::now();
    loop {
        let seen = probe();
        if good(&seen) {
            return seen;
        }
        assert!(begin.elapsed() < deadline, "not within {deadline:?}: {what}; last seen: {seen:?}");
        thread::sleep(PAUSE);
    }
}
