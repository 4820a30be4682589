//! What stands under which key of etcd, and how a value says which lease it goes with.
//!
//! | key | value |
//! |---|---|
//! | `<prefix>/id` | the store's random id |
//! | `<prefix>/head` | who wrote last; its revision is the store's |
//! | `<prefix>/kv<key>` | length of the lease's name, its name, the value |
//! | `<prefix>/lease/<name>` | duration in ms |
//! | `<prefix>/here/…` | what holds while a replica lives ([`crate::replicas`]): under its lease of etcd |
//!
//! Every transaction that changes something writes `head`, so that the store's revision is the same number on every
//! replica, whatever else is written into this etcd.

use std::time::Duration;

/// The keys of one store.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    prefix: String,
}

/// What a key of etcd stands for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Stands<'a> {
    Id,
    Head,
    Key(&'a str),
    Lease(&'a str),
    Here(&'a str),
}

impl Layout {
    pub(super) fn new(prefix: &str) -> Self {
        Self { prefix: prefix.trim_end_matches('/').to_owned() }
    }

    pub(super) fn all(&self) -> (Vec<u8>, Vec<u8>) {
        let begin = format!("{}/", self.prefix).into_bytes();
        let mut end = begin.clone();
        // The next key after all that begin so: '0' comes after '/'.
        if let Some(last) = end.last_mut() {
            *last += 1;
        }
        (begin, end)
    }

    pub(super) fn id(&self) -> Vec<u8> {
        format!("{}/id", self.prefix).into_bytes()
    }

    pub(super) fn head(&self) -> Vec<u8> {
        format!("{}/head", self.prefix).into_bytes()
    }

    pub(super) fn key(&self, key: &str) -> Vec<u8> {
        format!("{}/kv{key}", self.prefix).into_bytes()
    }

    pub(super) fn lease(&self, name: &str) -> Vec<u8> {
        format!("{}/lease/{name}", self.prefix).into_bytes()
    }

    pub(super) fn here(&self, name: &str) -> Vec<u8> {
        format!("{}/here/{name}", self.prefix).into_bytes()
    }

    /// `None`: of somebody else, or of a later version.
    pub(super) fn read<'a>(&self, key: &'a [u8]) -> Option<Stands<'a>> {
        let rest = std::str::from_utf8(key).ok()?.strip_prefix(self.prefix.as_str())?;
        match rest {
            "/id" => Some(Stands::Id),
            "/head" => Some(Stands::Head),
            _ => (rest.strip_prefix("/lease/").map(Stands::Lease))
                .or_else(|| rest.strip_prefix("/here/").map(Stands::Here))
                .or_else(|| rest.strip_prefix("/kv").map(Stands::Key)),
        }
    }
}

/// A value with its lease.
pub(super) fn write_value(value: &[u8], lease: Option<&str>) -> Vec<u8> {
    let lease = lease.unwrap_or_default();
    let mut out = Vec::with_capacity(2 + lease.len() + value.len());
    // Names are at most 1024 bytes.
    out.extend_from_slice(&(lease.len() as u16).to_be_bytes());
    out.extend_from_slice(lease.as_bytes());
    out.extend_from_slice(value);
    out
}

/// The value and its lease; `None`: not written by a mesh-control.
pub(super) fn read_value(stored: &[u8]) -> Option<(Vec<u8>, Option<String>)> {
    let (length, rest) = stored.split_first_chunk::<2>()?;
    let (lease, value) = rest.split_at_checked(u16::from_be_bytes(*length).into())?;
    let lease = (!lease.is_empty()).then(|| String::from_utf8(lease.to_vec())).transpose().ok()?;
    Some((value.to_vec(), lease))
}

pub(super) fn write_ttl(ttl: Duration) -> Vec<u8> {
    ttl.as_millis().to_string().into_bytes()
}

pub(super) fn read_ttl(stored: &[u8]) -> Option<Duration> {
    std::str::from_utf8(stored).ok()?.parse().ok().map(Duration::from_millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_values_are_read_as_they_are_written() {
        let layout = Layout::new("/mesh/a/");
        for (key, want) in [
            (layout.id(), Stands::Id),
            (layout.head(), Stands::Head),
            (layout.key("/intent/x"), Stands::Key("/intent/x")),
            (layout.key("plain"), Stands::Key("plain")),
            (layout.lease("node:n1"), Stands::Lease("node:n1")),
            (layout.here("leader"), Stands::Here("leader")),
        ] {
            assert_eq!(layout.read(&key), Some(want));
            let (begin, end) = layout.all();
            assert!(begin <= key && key < end);
        }
        assert_eq!(layout.read(b"/mesh/ab/id"), None);
        for lease in [None, Some("node:n1")] {
            let stored = write_value(b"x", lease);
            assert_eq!(read_value(&stored), Some((b"x".to_vec(), lease.map(str::to_owned))));
        }
        assert_eq!(read_value(b"\0\x05ab"), None);
        assert_eq!(read_ttl(&write_ttl(Duration::from_millis(1500))), Some(Duration::from_millis(1500)));
    }
}
