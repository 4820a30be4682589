//! The audit log: one line a write and a refusal, with who, from where, what and what became of it.
//!
//! `audit.log` in the data directory, JSON lines; at [`FILE_MAX`] bytes it becomes `audit.log.1`, that `.2` and so on,
//! [`KEPT`] of them. A line is with the kernel when its request is answered; it is not waited for the disk.
//!
//! Invariant: a line that cannot be written is counted and told in the process' own log; the request goes on.
//! Not here: what is worth a line (REST's guard).

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use serde_json::Value;

/// Largest file.
const FILE_MAX: u64 = 16 << 20;
/// Files beside the one that is written.
const KEPT: u32 = 4;
/// How much of the end of a file is read for the newest lines.
const TAIL: u64 = 1 << 20;
const NAME: &str = "audit.log";

/// Where lines go.
pub struct Audit {
    dir: PathBuf,
    open: Mutex<Open>,
}

struct Open {
    file: Option<File>,
    length: u64,
    /// It could not be written; told once.
    failing: bool,
}

impl Audit {
    /// In a directory. A file that cannot be opened now is tried again with the first line.
    pub fn new(dir: &Path) -> Self {
        let open = Mutex::new(Open { file: None, length: 0, failing: false });
        Self { dir: dir.to_owned(), open }
    }

    /// Writes a line; false: it is lost.
    pub fn write(&self, line: &Value) -> bool {
        let text = format!("{line}\n");
        let mut open = self.open.lock();
        match self.append(&mut open, text.as_bytes()) {
            Ok(()) => {
                open.failing = false;
                true
            }
            Err(error) => {
                if !open.failing {
                    let path = self.dir.join(NAME);
                    tracing::error!(path = %path.display(), %error, "cannot write the audit log; lines are lost and counted");
                }
                open.failing = true;
                open.file = None;
                false
            }
        }
    }

    fn append(&self, open: &mut Open, text: &[u8]) -> io::Result<()> {
        if open.file.is_some() && open.length + text.len() as u64 > FILE_MAX {
            open.file = None;
            self.rotate()?;
        }
        let file = match &mut open.file {
            Some(file) => file,
            none => {
                let mut how = OpenOptions::new();
                let file = how.append(true).create(true).mode(0o600).open(self.dir.join(NAME))?;
                open.length = file.metadata()?.len();
                none.insert(file)
            }
        };
        file.write_all(text)?;
        open.length += text.len() as u64;
        Ok(())
    }

    fn rotate(&self) -> io::Result<()> {
        for number in (1..KEPT).rev() {
            match std::fs::rename(self.old(number), self.old(number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        std::fs::rename(self.dir.join(NAME), self.old(1))
    }

    fn old(&self, number: u32) -> PathBuf {
        self.dir.join(format!("{NAME}.{number}"))
    }

    /// The newest lines, the newest first; of the file that is written and the one before it.
    pub fn newest(&self, most: usize) -> io::Result<Vec<Value>> {
        let mut out = Vec::new();
        for path in [self.dir.join(NAME), self.old(1)] {
            let text = match tail(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                text => text?,
            };
            let lines = text.lines().rev().filter_map(|line| serde_json::from_str(line).ok());
            out.extend(lines.take(most - out.len()));
            if out.len() >= most {
                break;
            }
        }
        Ok(out)
    }
}

fn tail(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
    let mut bytes = Vec::new();
    file.take(TAIL).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn lines_come_back_newest_first_over_a_rotation() {
        let dir = tempfile::tempdir().unwrap();
        let audit = Audit::new(dir.path());
        assert_eq!(audit.newest(5).unwrap(), Vec::<Value>::new());
        assert!(audit.write(&json!({"n": 1})) && audit.write(&json!({"n": 2})));
        audit.open.lock().length = FILE_MAX;
        assert!(audit.write(&json!({"n": 3})));
        assert!(dir.path().join("audit.log.1").exists());
        assert_eq!(audit.newest(2).unwrap(), [json!({"n": 3}), json!({"n": 2})]);
        assert_eq!(audit.newest(9).unwrap().len(), 3);
        for n in 0..7 {
            audit.open.lock().length = FILE_MAX;
            assert!(audit.write(&json!({"n": n})));
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1 + KEPT as usize, "the oldest go");
    }

    #[test]
    fn what_cannot_be_written_is_lost_and_said() {
        let dir = tempfile::tempdir().unwrap();
        let audit = Audit::new(&dir.path().join("gone"));
        assert!(!audit.write(&json!({})));
        std::fs::create_dir(dir.path().join("gone")).unwrap();
        assert!(audit.write(&json!({})), "tried again");
    }
}
