//! The access log: JSON lines, to standard output or to a file, written by a thread of its own.
//!
//! worker: [`Lines`] ──a batch, each tick or each [`BATCH`]──▶ queue ([`WAITING`] batches) ──▶ the thread ──▶ output
//!
//! The file is opened anew when it was moved away (logrotate's way, without a signal). What finds no room in the queue,
//! and what cannot be written, is dropped and counted. The thread is begun with the first line.

use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use mesh_api::local::RequestLine;
use parking_lot::Mutex;

/// Bytes of lines that a worker hands on at once, at the latest.
const BATCH: usize = 32 * 1024;
/// Batches that may wait to be written.
const WAITING: usize = 64;
/// Between two complaints.
const QUIET: Duration = Duration::from_mins(1);

/// Where lines go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Target {
    /// To standard output.
    #[default]
    Stdout,
    /// To this file.
    File(PathBuf),
}

/// Lines that go together.
#[derive(Debug, Default)]
struct Batch {
    bytes: Vec<u8>,
    lines: u64,
}

/// The access log of an agent.
#[derive(Default)]
pub struct AccessLog {
    target: Mutex<Target>,
    queue: OnceLock<Option<SyncSender<Batch>>>,
    counts: Arc<LineCounts>,
}

/// What became of lines.
#[derive(Debug, Default)]
pub struct LineCounts {
    /// Written.
    pub written: AtomicU64,
    /// Not: the queue was full, or the output took them not.
    pub dropped: AtomicU64,
    /// On their way, from their workers' hands on.
    waiting: AtomicU64,
}

impl AccessLog {
    /// Lines go there; to be said before the first one. An error: they can't.
    pub fn to(&self, target: Target) -> io::Result<()> {
        if let Target::File(path) = &target {
            open(path)?;
        }
        *self.target.lock() = target;
        Ok(())
    }

    /// What became of lines.
    pub fn counts(&self) -> &LineCounts {
        &self.counts
    }

    fn send(&self, batch: Batch) {
        let lines = batch.lines;
        let queue = self.queue.get_or_init(|| begin(self.target.lock().clone(), self.counts.clone()));
        let sent = queue.as_ref().is_some_and(|queue| queue.try_send(batch).is_ok());
        if !sent {
            self.counts.waiting.fetch_sub(lines, Relaxed);
            self.counts.dropped.fetch_add(lines, Relaxed);
        }
    }

    /// Waits, not for ever, until what was told is written: workers hand on at their next tick.
    pub async fn settle(&self, within: Duration) {
        let end = Instant::now() + within;
        while self.counts.waiting.load(Relaxed) > 0 && Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// The lines of one worker that were not handed on yet.
#[derive(Default)]
pub struct Lines(RefCell<Batch>);

impl Lines {
    /// One more. `now`: it is not to wait for others.
    pub fn write(&self, line: &RequestLine<'_>, log: &AccessLog, now: bool) {
        let mut batch = self.0.borrow_mut();
        let before = batch.bytes.len();
        if serde_json::to_writer(&mut batch.bytes, line).is_err() {
            batch.bytes.truncate(before);
            log.counts.dropped.fetch_add(1, Relaxed);
            return;
        }
        batch.bytes.push(b'\n');
        batch.lines += 1;
        log.counts.waiting.fetch_add(1, Relaxed);
        if now || batch.bytes.len() >= BATCH {
            log.send(std::mem::take(&mut batch));
        }
    }

    /// Hands on what is there.
    pub fn flush(&self, log: &AccessLog) {
        if self.0.borrow().lines > 0 {
            log.send(self.0.take());
        }
    }
}

/// Starts the thread; `None`: it can't be.
fn begin(target: Target, counts: Arc<LineCounts>) -> Option<SyncSender<Batch>> {
    let (queue, batches) = sync_channel(WAITING);
    let thread = std::thread::Builder::new().name("access-log".into());
    match thread.spawn(move || run(target, &batches, &counts)) {
        Ok(_) => Some(queue),
        Err(error) => {
            tracing::error!(%error, "no access log is written: its thread cannot be started");
            None
        }
    }
}

fn run(target: Target, batches: &Receiver<Batch>, counts: &LineCounts) {
    let mut output = Output { target, file: None };
    let mut complained: Option<Instant> = None;
    for batch in batches {
        let count = match output.write(&batch.bytes) {
            Ok(()) => &counts.written,
            Err(error) => {
                if complained.is_none_or(|at| at.elapsed() > QUIET) {
                    complained = Some(Instant::now());
                    tracing::error!(%error, target = ?output.target, "lines of the access log are lost");
                }
                &counts.dropped
            }
        };
        count.fetch_add(batch.lines, Relaxed);
        counts.waiting.fetch_sub(batch.lines, Relaxed);
    }
}

struct Output {
    target: Target,
    /// With what it is to the file system.
    file: Option<(File, u64, u64)>,
}

impl Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Target::File(path) = &self.target else {
            let mut out = io::stdout().lock();
            return out.write_all(bytes).and_then(|()| out.flush());
        };
        // Moved or removed: whoever rotates it expects a new one.
        let there = std::fs::metadata(path).ok().map(|now| (now.dev(), now.ino()));
        let same = self.file.as_ref().is_some_and(|(_, dev, ino)| there == Some((*dev, *ino)));
        if !same {
            let file = open(path)?;
            let is = file.metadata()?;
            self.file = Some((file, is.dev(), is.ino()));
        }
        self.file.as_mut().map_or(Ok(()), |(file, ..)| file.write_all(bytes))
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o640).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(path: &str) -> RequestLine<'_> {
        RequestLine { path: path.into(), status: 200, ..RequestLine::default() }
    }

    fn settled(log: &AccessLog) {
        let end = Instant::now() + Duration::from_secs(10);
        while log.counts.waiting.load(Relaxed) > 0 {
            assert!(Instant::now() < end, "never written");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_file_that_was_moved_is_begun_anew() {
        let directory = tempfile::tempdir().unwrap();
        let (path, old) = (directory.path().join("access.log"), directory.path().join("access.log.1"));
        let (log, lines) = (AccessLog::default(), Lines::default());
        log.to(Target::File(path.clone())).unwrap();
        lines.write(&line("/1"), &log, false);
        lines.write(&line("/2"), &log, false);
        assert!(!log.queue.get().is_some_and(Option::is_some), "they wait for each other");
        lines.flush(&log);
        settled(&log);
        std::fs::rename(&path, &old).unwrap();
        lines.write(&line("/3"), &log, true);
        settled(&log);
        let text = |path: &Path| std::fs::read_to_string(path).unwrap();
        assert_eq!((text(&old).lines().count(), text(&path).lines().count()), (2, 1));
        let read: serde_json::Value = serde_json::from_str(&text(&path)).unwrap();
        assert_eq!((&read["path"], &read["status"]), (&"/3".into(), &200.into()));
        assert_eq!(log.counts.written.load(Relaxed), 3);
    }

    #[test]
    fn what_cannot_be_written_is_counted_and_nobody_waits() {
        assert!(AccessLog::default().to(Target::File("/nonexistent/access.log".into())).is_err());
        let (log, lines) = (AccessLog::default(), Lines::default());
        // Takes nothing.
        *log.target.lock() = Target::File("/dev/full".into());
        lines.write(&line("/1"), &log, true);
        settled(&log);
        assert_eq!(log.counts.dropped.load(Relaxed), 1);
    }

    #[test]
    fn a_full_queue_drops() {
        let log = AccessLog::default();
        let (queue, batches) = sync_channel(1);
        log.queue.set(Some(queue)).unwrap();
        let lines = Lines::default();
        for _ in 0..5 {
            lines.write(&line("/"), &log, true);
        }
        assert_eq!(log.counts.dropped.load(Relaxed), 4);
        drop(batches);
    }
}
