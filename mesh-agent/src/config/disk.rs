//! The last-known-good state on disk: what the agent serves before a control plane answers.
//!
//! config ──changes, after a pause──▶ **disk** ──at start──▶ config
//!
//! One file: a line with the format, a line of JSON (revision, epoch, ids, boot id), the resources as
//! received (length-delimited xDS `Resource`s), and the SHA-256 of all that. Written beside and renamed, so
//! that a crash leaves the old one or the new one.
//!
//! Invariant: it never holds cookies, cgroup ids or descriptors; they mean nothing after a reboot. A file
//! that cannot be read is set aside with a clear line in the log, and the agent starts without.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use mesh_api::proto::discovery::Resource;
use mesh_core::ids::IdTable;
use prost::Message;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::resource::{Kind, Raw, kind_of, parse_revision, show_revision, type_url};
use super::store::Store;

const FORMAT: &str = "nodemesh-snapshot 1";
const FILE: &str = "snapshot";
/// Bytes of the checksum at the end.
const SUM: usize = 32;

/// What is kept.
#[derive(Debug, Default)]
pub struct Saved {
    /// Resources as received.
    pub store: Store,
    /// Numbers of names.
    pub ids: IdTable,
    /// Epoch of the snapshot that was in force.
    pub epoch: u64,
}

#[derive(Deserialize)]
struct Header {
    boot_id: String,
    revision: String,
    epoch: u64,
    resources: usize,
    ids: IdTable,
}

/// The same, to be written.
#[derive(Serialize)]
struct HeaderRef<'a> {
    boot_id: String,
    revision: String,
    epoch: u64,
    resources: usize,
    ids: &'a IdTable,
}

/// Where it is below the state directory.
pub fn path(directory: &Path) -> PathBuf {
    directory.join(FILE)
}

/// The saved state; `None`: there is none that can be used.
pub fn load(directory: &Path) -> Option<Saved> {
    let path = path(directory);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "the snapshot on disk cannot be read; starting without");
            return None;
        }
    };
    match decode(&bytes) {
        Ok((header, saved)) => {
            let same_boot = header.boot_id == boot_id();
            tracing::info!(
                epoch = saved.epoch,
                revision = header.revision,
                resources = saved.store.len(),
                same_boot,
                "the snapshot on disk is in force until a control plane answers"
            );
            Some(saved)
        }
        Err(reason) => {
            set_aside(&path, &reason);
            None
        }
    }
}

/// Writes the state, one resource at a time: its size must not show in the agent's memory.
pub fn encode(out: &mut dyn Write, store: &Store, ids: &IdTable, epoch: u64) -> io::Result<()> {
    let mut out = Summed { out, sum: Sha256::new() };
    writeln!(out, "{FORMAT}")?;
    let revision = show_revision(&store.revision);
    let header = HeaderRef { boot_id: boot_id(), revision, epoch, resources: store.len(), ids };
    serde_json::to_writer(&mut out, &header)?;
    out.write_all(b"\n")?;
    for kind in Kind::ALL {
        for (name, raw) in store.of(kind) {
            let any = prost_types::Any { type_url: type_url(kind).into(), value: raw.bytes.clone() };
            let version = raw.version.clone();
            let resource = Resource { version, name: name.to_owned(), resource: Some(any) };
            out.write_all(&resource.encode_length_delimited_to_vec())?;
        }
    }
    let Summed { out, sum } = out;
    out.write_all(&sum.finalize())
}

/// Sums up what passes.
struct Summed<'a> {
    out: &'a mut dyn Write,
    sum: Sha256,
}

impl Write for Summed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.sum.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn decode(bytes: &[u8]) -> Result<(Header, Saved), String> {
    let (format, _) = split_line(bytes).ok_or("it has no first line")?;
    if format != FORMAT.as_bytes() {
        let format = String::from_utf8_lossy(&format[..format.len().min(64)]);
        return Err(format!("its format is {format:?}, not {FORMAT:?}"));
    }
    let (bytes, sum) = bytes.split_last_chunk::<SUM>().ok_or("it is too short")?;
    if Sha256::digest(bytes).as_slice() != sum {
        return Err("its checksum does not match".into());
    }
    let body = split_line(bytes).map_or(bytes, |(_, body)| body);
    let (header, mut rest) = split_line(body).ok_or("it has no header")?;
    let header: Header = serde_json::from_slice(header).map_err(|e| format!("its header: {e}"))?;
    let mut store = Store::at(parse_revision(&header.revision).unwrap_or_default());
    for _ in 0..header.resources {
        let Resource { version, name, resource } =
            Resource::decode_length_delimited(&mut rest).map_err(|e| e.to_string())?;
        let any = resource.unwrap_or_default();
        let kind = kind_of(&any.type_url).ok_or_else(|| format!("it holds a {}", any.type_url))?;
        store.put((kind, name), Raw { version, bytes: any.value });
    }
    let (ids, epoch) = (header.ids.clone(), header.epoch);
    Ok((header, Saved { store, ids, epoch }))
}

fn split_line(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|b| *b == b'\n')?;
    Some((&bytes[..end], &bytes[end + 1..]))
}

/// Writes beside, then renames.
pub fn write_atomically(path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    let beside = path.with_extension("tmp");
    let file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
    let mut file = io::BufWriter::new(file);
    write(&mut file)?;
    file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
    fs::rename(&beside, path)?;
    if let Some(directory) = path.parent() {
        fs::File::open(directory)?.sync_all()?;
    }
    Ok(())
}

/// Renames a file that cannot be used, so that the next one does not overwrite the evidence.
pub fn set_aside(path: &Path, reason: &str) {
    let aside = path.with_extension("unusable");
    let renamed = fs::rename(path, &aside);
    tracing::error!(
        path = %path.display(),
        reason,
        kept_as = %aside.display(),
        renamed = renamed.is_ok(),
        "this file cannot be used and is set aside; starting without it"
    );
}

/// This boot of the machine.
pub fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_core::ids::IdKind;
    use mesh_core::snapshot::Revision;

    fn directory(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("mesh-agent-disk-{name}-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        dir
    }

    fn sample() -> (Store, IdTable) {
        let mut store = Store::at(Revision { store: "st".into(), number: 7 });
        store.put((Kind::Service, "a/b".into()), Raw { version: "v1".into(), bytes: vec![0, 10, 255] });
        store.put((Kind::Mesh, "mesh".into()), Raw { version: "v2".into(), bytes: vec![] });
        let mut ids = IdTable::default();
        ids.assign(IdKind::Workload, "a/w").unwrap();
        (store, ids)
    }

    #[test]
    fn what_is_written_comes_back() {
        let dir = directory("round");
        let (store, ids) = sample();
        write_atomically(&path(&dir), |file| encode(file, &store, &ids, 9)).unwrap();
        let saved = load(&dir).unwrap();
        assert_eq!(saved.epoch, 9);
        assert_eq!(saved.store, store);
        assert_eq!(saved.ids.get(IdKind::Workload, "a/w"), Some(1));
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_damaged_or_foreign_file_is_set_aside() {
        let dir = directory("damaged");
        let (store, ids) = sample();
        let mut good = Vec::new();
        encode(&mut good, &store, &ids, 9).unwrap();
        let mut flipped = good.clone();
        *flipped.last_mut().unwrap() ^= 1;
        let foreign = [b"nodemesh-snapshot 99\n".as_slice(), &good].concat();
        for bad in [flipped, good[..good.len() / 2].to_vec(), foreign, b"x".to_vec(), vec![]] {
            fs::write(path(&dir), bad).unwrap();
            assert!(load(&dir).is_none());
            assert!(!path(&dir).exists() && dir.join("snapshot.unusable").exists());
        }
        assert!(load(&dir).is_none(), "a missing file is no error");
        fs::remove_dir_all(dir).unwrap();
    }
}
