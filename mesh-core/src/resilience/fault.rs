//! What goes wrong on purpose, so that callers can be tried.
//!
//! Invariant: whether a request waits and whether it is answered instead of sent are two draws.

use std::time::Duration;

use crate::head::Head;
use crate::route::Condition;

/// What a policy says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fault {
    /// Of these requests alone.
    pub of: Condition,
    /// So many of a hundred wait, and for how long.
    pub delay: Option<(u32, Duration)>,
    /// So many of a hundred are answered, and with which status.
    pub abort: Option<(u32, u16)>,
}

/// What happens to one request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mishap {
    /// It waits.
    pub delay: Option<Duration>,
    /// It is answered.
    pub abort: Option<u16>,
}

impl Fault {
    /// What happens to this request. `random` is uniform over all values, twice.
    pub fn strikes(&self, head: &impl Head, random: [u64; 2]) -> Mishap {
        if !self.of.holds(head) {
            return Mishap::default();
        }
        let drawn = |percent: u32, random: u64| ((u128::from(random) * 100) >> 64) < u128::from(percent);
        Mishap {
            delay: self.delay.filter(|(percent, _)| drawn(*percent, random[0])).map(|(_, delay)| delay),
            abort: self.abort.filter(|(percent, _)| drawn(*percent, random[1])).map(|(_, status)| status),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http1::{Limits, parse_request};
    use crate::route::{FieldMatch, ValueMatch};

    #[test]
    fn the_requests_that_it_is_for_are_struck_as_often_as_it_says() {
        let name = FieldMatch { name: "x-fault".into(), value: ValueMatch::Exact("yes".into()) };
        let fault = Fault {
            of: Condition { headers: [name].into(), ..Condition::default() },
            delay: Some((25, Duration::from_secs(1))),
            abort: Some((100, 503)),
        };
        let strikes = |head: &str, random| {
            let head = parse_request(head.as_bytes(), &Limits::default()).unwrap();
            fault.strikes(&head, random)
        };
        let chosen = "GET / HTTP/1.1\r\nHost: a\r\nX-Fault: yes\r\n\r\n";
        let quarter = u64::MAX / 4;
        let both = Mishap { delay: Some(Duration::from_secs(1)), abort: Some(503) };
        assert_eq!(strikes(chosen, [quarter - 99, u64::MAX]), both);
        assert_eq!(strikes(chosen, [quarter + 99, 0]).delay, None);
        assert_eq!(strikes("GET / HTTP/1.1\r\nHost: a\r\n\r\n", [0, 0]), Mishap::default());
        let never = Fault { delay: Some((0, Duration::from_secs(1))), ..Fault::default() };
        let head = parse_request(chosen.as_bytes(), &Limits::default()).unwrap();
        assert_eq!(never.strikes(&head, [0, 0]), Mishap::default());
    }
}
