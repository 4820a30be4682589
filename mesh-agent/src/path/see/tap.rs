//! Those who look at requests as they end: each with a filter and a bounded queue.
//!
//! A reader who is slow loses lines, and is told how many. Nobody taps: one relaxed load a request.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use arc_swap::ArcSwap;
use mesh_api::local::{RequestLine, TapQuery};
use parking_lot::Mutex;
use tokio::sync::mpsc;

/// Lines that wait for a reader.
const QUEUE: usize = 1024;
/// Readers at once.
pub const READERS: usize = 8;

/// Everybody who taps.
#[derive(Default)]
pub struct Taps {
    any: AtomicU32,
    all: ArcSwap<Vec<Arc<Tap>>>,
    change: Mutex<()>,
}

struct Tap {
    query: TapQuery,
    queue: mpsc::Sender<RequestLine<'static>>,
    lost: AtomicU64,
}

/// One who taps, until it is dropped.
pub struct Reader {
    taps: Arc<Taps>,
    tap: Arc<Tap>,
    /// What was asked for.
    pub lines: mpsc::Receiver<RequestLine<'static>>,
}

impl Taps {
    /// Does anybody look?
    pub fn any(&self) -> bool {
        self.any.load(Relaxed) != 0
    }

    /// From now on; `None`: [`READERS`] do already.
    pub fn add(self: &Arc<Self>, query: TapQuery) -> Option<Reader> {
        let (queue, lines) = mpsc::channel(QUEUE);
        let tap = Arc::new(Tap { query, queue, lost: AtomicU64::new(0) });
        let _changing = self.change.lock();
        let mut all = Vec::clone(&self.all.load());
        if all.len() >= READERS {
            return None;
        }
        all.push(tap.clone());
        self.put(all);
        Some(Reader { taps: self.clone(), tap, lines })
    }

    fn put(&self, all: Vec<Arc<Tap>>) {
        let any = all.len() as u32;
        self.all.store(Arc::new(all));
        self.any.store(any, Relaxed);
    }

    /// Shows a line to those who have asked for such.
    pub fn show(&self, line: &RequestLine<'_>) {
        if !self.any() {
            return;
        }
        for tap in self.all.load().iter().filter(|tap| tap.query.wants(line)) {
            if tap.queue.try_send(line.clone().into_owned()).is_err() {
                tap.lost.fetch_add(1, Relaxed);
            }
        }
    }
}

impl Reader {
    /// Lines that it has missed since this was last asked.
    pub fn lost(&self) -> u64 {
        self.tap.lost.swap(0, Relaxed)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let _changing = self.taps.change.lock();
        let left = self.taps.all.load().iter().filter(|tap| !Arc::ptr_eq(tap, &self.tap)).cloned().collect();
        self.taps.put(left);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(path: &str) -> RequestLine<'_> {
        RequestLine { path: path.into(), ..RequestLine::default() }
    }

    #[test]
    fn a_reader_gets_what_it_asked_for_and_hears_what_it_missed() {
        let taps = Arc::new(Taps::default());
        assert!(!taps.any());
        let mut some = taps.add(TapQuery { path: "/api".into(), ..TapQuery::default() }).unwrap();
        assert!(taps.any());
        for path in ["/api/1", "/other", "/api/2"] {
            taps.show(&line(path));
        }
        assert_eq!(
            [some.lines.try_recv().unwrap().path, some.lines.try_recv().unwrap().path],
            ["/api/1", "/api/2"]
        );
        assert!(some.lines.try_recv().is_err());
        for _ in 0..QUEUE + 7 {
            taps.show(&line("/api"));
        }
        assert_eq!((some.lost(), some.lost()), (7, 0));
        drop(some);
        assert!(!taps.any());
    }

    #[test]
    fn readers_are_bounded() {
        let taps = Arc::new(Taps::default());
        let readers: Vec<_> = (0..READERS).map(|_| taps.add(TapQuery::default()).unwrap()).collect();
        assert!(taps.add(TapQuery::default()).is_none());
        drop(readers);
        assert!(taps.add(TapQuery::default()).is_some());
    }
}
