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
use mesh_core::model::Resources;
use mesh_core::snapshot::Revision;
use prost::Message;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::resource::{Raw, Update, kind_of, parse_revision, show_revision, type_url};

const FORMAT: &str = "nodemesh-snapshot 2";
const FILE: &str = "snapshot";
/// Bytes of the checksum at the end.
const SUM: usize = 32;

/// What is kept.
#[derive(Debug, Default)]
pub struct Saved {
    /// The resources as received: an update that is everything.
    pub update: Update,
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
                resources = saved.update.changes.len(),
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
pub fn encode(
    out: &mut dyn Write,
    revision: &Revision,
    resources: &Resources,
    ids: &IdTable,
    epoch: u64,
) -> io::Result<()> {
    // Summed in large pieces: the header is written in small ones.
    let mut out = io::BufWriter::new(Summed { out, sum: Sha256::new() });
    writeln!(out, "{FORMAT}")?;
    let revision = show_revision(revision);
    let header = HeaderRef { boot_id: boot_id(), revision, epoch, resources: resources.len(), ids };
    serde_json::to_writer(&mut out, &header)?;
    out.write_all(b"\n")?;
    let mut buffer = Vec::new();
    for (kind, name, raw) in resources.iter() {
        let any = prost_types::Any { type_url: type_url(kind).into(), value: raw.message().to_vec() };
        let version = raw.version().to_owned();
        let resource = Resource { version, name: name.to_owned(), resource: Some(any) };
        buffer.clear();
        resource.encode_length_delimited(&mut buffer).map_err(io::Error::other)?;
        out.write_all(&buffer)?;
    }
    let Summed { out, sum } = out.into_inner().map_err(io::IntoInnerError::into_error)?;
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
    let revision = parse_revision(&header.revision).unwrap_or_default();
    let mut update = Update { revision, full: true, ..Update::default() };
    for _ in 0..header.resources {
        let Resource { version, name, resource } =
            Resource::decode_length_delimited(&mut rest).map_err(|e| e.to_string())?;
        let any = resource.unwrap_or_default();
        let kind = kind_of(&any.type_url).ok_or_else(|| format!("it holds a {}", any.type_url))?;
        let raw = Raw::new(&version, &any.value);
        update.changes.insert((kind, name), Some(raw));
    }
    let (ids, epoch) = (header.ids.clone(), header.epoch);
    Ok((header, Saved { update, ids, epoch }))
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
    use mesh_api::proto::v1;
    use mesh_core::compile::Compiler;
    use mesh_core::ids::{IdKind, IdLimits};
    use mesh_core::model::{self, Batch, Kind};

    fn directory(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("mesh-agent-disk-{name}-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        dir
    }

    fn sample() -> (Revision, Resources, IdTable) {
        let mut compiler = Compiler::new("n1", IdTable::default(), IdLimits::default());
        let service = v1::Service { namespace: "a".into(), name: "b".into(), ..v1::Service::default() };
        let raw = Raw::new("v1", &service.encode_to_vec());
        let service = model::Resource::new(Kind::Service, "a/b", raw).unwrap();
        let revision = Revision { store: "st".into(), number: 7 };
        let upserts = vec![service, v1::Mesh::default().into()];
        compiler.apply(Batch { upserts, removes: vec![] }, revision.clone());
        compiler.enrol("a", "w", "default").unwrap();
        (revision, compiler.model().resources().clone(), compiler.ids().clone())
    }

    #[test]
    fn what_is_written_comes_back() {
        let dir = directory("round");
        let (revision, resources, ids) = sample();
        write_atomically(&path(&dir), |file| encode(file, &revision, &resources, &ids, 9)).unwrap();
        let saved = load(&dir).unwrap();
        assert_eq!((saved.epoch, &saved.update.revision), (9, &revision));
        let known = |(kind, name, raw): (Kind, &str, &Raw)| ((kind, name.to_owned()), Some(raw.clone()));
        assert_eq!(saved.update.changes, resources.iter().map(known).collect());
        assert_eq!(saved.ids.get(IdKind::Workload, "a/w"), Some(1));
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_damaged_or_foreign_file_is_set_aside() {
        let dir = directory("damaged");
        let (revision, resources, ids) = sample();
        let mut good = Vec::new();
        encode(&mut good, &revision, &resources, &ids, 9).unwrap();
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
