//! How much a peer may send before it is read: windows that follow the line and the workload's budget.
//!
//! A stream starts at [`START`] and grows to twice what arrives within one round trip, up to [`MOST`]. The
//! connection's window is that of all its streams and one more, so that readers who stall never stop another one;
//! where that is more than the budget, every stream gets less, down to [`LEAST`].
//!
//! Invariants: no clock is read; windows never exceed what HTTP/2 allows. Not here: sending PINGs (drive).

use std::time::Duration;

/// Bytes of a stream's window at first.
pub const START: u32 = 256 * 1024;
/// Bytes that it never exceeds.
pub const MOST: u32 = 16 << 20;
/// Bytes that it keeps, whatever the budget says.
pub const LEAST: u32 = 64 * 1024;
/// The largest window of HTTP/2.
const LIMIT: u64 = (1 << 31) - 1;

/// Between two measurements, at least and at most.
const GAP: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(10));

/// Windows of (a stream, the connection) with so many streams, of which each has grown to `grown`.
pub fn sizes(grown: u32, streams: u32, budget: u64) -> (u32, u32) {
    let shares = u64::from(streams) + 2;
    let mut stream = grown;
    while stream > LEAST && u64::from(stream) * shares > budget {
        stream /= 2;
    }
    let stream = stream.max(LEAST);
    (stream, (u64::from(stream) * shares).min(LIMIT) as u32)
}

/// Measures a line and grows.
#[derive(Debug)]
pub struct Growth {
    window: u32,
    /// When a PING was sent, and what had been read by then.
    sent: Option<(Duration, u64)>,
    /// Not before.
    next: Duration,
    gap: Duration,
    /// Read when the last measurement ended.
    seen: u64,
    /// Highest rate so far, bytes a second.
    best: u64,
}

impl Default for Growth {
    fn default() -> Self {
        Self { window: START, sent: None, next: Duration::ZERO, gap: GAP.0, seen: 0, best: 0 }
    }
}

impl Growth {
    /// A stream's window.
    pub fn window(&self) -> u32 {
        self.window
    }

    /// Is a PING worth it, with so many bytes `read` so far?
    pub fn asks(&self, now: Duration, read: u64) -> bool {
        let news = read - self.seen >= u64::from(self.window / 4);
        self.window < MOST && self.sent.is_none() && now >= self.next && news
    }

    /// One was sent.
    pub fn sent(&mut self, now: Duration, read: u64) {
        self.sent = Some((now, read));
    }

    /// It was answered.
    pub fn answered(&mut self, now: Duration, read: u64) {
        let Some((at, before)) = self.sent.take() else { return };
        let bytes = read - before;
        let micros = (now.saturating_sub(at).as_micros() as u64).max(1);
        let rate = bytes.saturating_mul(1_000_000) / micros;
        self.seen = read;
        // The window may be what holds the peer back, and the line has shown more than ever.
        if bytes >= u64::from(self.window / 2) && rate > self.best {
            self.best = rate;
            let twice = (bytes * 2).next_power_of_two().min(u64::from(MOST)) as u32;
            self.window = self.window.saturating_mul(2).max(twice).min(MOST);
            self.gap = GAP.0;
        } else {
            self.gap = (self.gap * 4).min(GAP.1);
        }
        self.next = now + self.gap;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_connection_has_room_for_all_streams_and_one_more() {
        let mib = 1 << 20;
        assert_eq!(sizes(START, 0, 64 * mib), (START, 2 * START));
        assert_eq!(sizes(START, 100, 64 * mib), (START, 102 * START));
        // Where the budget binds, each stream has less.
        assert_eq!(sizes(MOST, 1, 64 * mib), (MOST, 3 * MOST));
        assert_eq!(sizes(MOST, 6, 64 * mib), (MOST / 2, 4 * MOST));
        assert_eq!(sizes(MOST, 200, mib), (LEAST, 202 * LEAST));
        assert_eq!(sizes(MOST, 1000, u64::MAX), (MOST, LIMIT as u32));
    }

    #[test]
    fn a_window_grows_with_what_arrives_in_a_round_trip() {
        // 100 MB/s over 40 ms: 4 MB on their way at once.
        let (rate, trip) = (100_000_000_u64, Duration::from_millis(40));
        let mut growth = Growth::default();
        let (mut now, mut read) = (Duration::from_secs(1), 1 << 20);
        for _ in 0..40 {
            if growth.asks(now, read) {
                growth.sent(now, read);
                now += trip;
                read += (rate / 25).min(u64::from(growth.window()));
                growth.answered(now, read);
            }
            now += Duration::from_millis(200);
            read += 1 << 20;
        }
        assert!((4 << 20..=MOST).contains(&growth.window()), "{}", growth.window());
    }

    #[test]
    fn a_short_line_stays_as_it_is_and_is_left_alone() {
        let mut growth = Growth::default();
        let (mut now, mut read, mut asked) = (Duration::ZERO, 1 << 20, 0);
        for _ in 0..1000 {
            if growth.asks(now, read) {
                asked += 1;
                growth.sent(now, read);
                now += Duration::from_micros(100);
                read += 50_000;
                growth.answered(now, read);
            }
            now += Duration::from_millis(10);
            read += 1 << 20;
        }
        assert_eq!(growth.window(), START);
        assert!(asked < 8, "{asked}");
    }
}
