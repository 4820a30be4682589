//! Where in this kernel's `struct tcp_sock` the splicing program finds what it looks at, by the kernel's own
//! description of its types (BTF).
//!
//! Invariant: any bytes give offsets or a reason, never a panic. What is not found, or not where every kernel has
//! it, is a reason.

use std::fs;

/// The kernel's description of its types.
const VMLINUX: &str = "/sys/kernel/btf/vmlinux";
const MAGIC: u16 = 0xeb9f;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
/// Types within types that are looked into.
const DEPTH: u32 = 8;

/// Bytes from the beginning of a `struct tcp_sock`, which is also that of its `struct sock`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Offsets {
    pub write_seq: u32,
    pub copied_seq: u32,
    pub rmem_alloc: u32,
}

impl Offsets {
    /// Of the kernel that runs. Reads some megabytes.
    pub fn of_this_kernel() -> Result<Self, String> {
        let bytes = fs::read(VMLINUX).map_err(|e| format!("{VMLINUX} (CONFIG_DEBUG_INFO_BTF): {e}"))?;
        Self::of(&bytes).map_err(|what| format!("{VMLINUX}: {what}"))
    }

    fn of(bytes: &[u8]) -> Result<Self, String> {
        let types = Types::new(bytes).ok_or("it is not understood")?;
        let tcp = types.named("tcp_sock").ok_or("there is no struct tcp_sock")?;
        let sock = types.named("sock").ok_or("there is no struct sock")?;
        let find = |of: u32, path: &[&str]| {
            let missing = || format!("{} is not found", path.join("."));
            let bytes = types.at(of, path).ok_or_else(missing)?;
            if bytes % 4 == 0 { Ok(bytes) } else { Err(format!("{} is at byte {bytes}", path.join("."))) }
        };
        if find(tcp, &["inet_conn", "icsk_inet", "sk"])? != 0 {
            return Err("struct tcp_sock does not begin with its struct sock".to_owned());
        }
        Ok(Self {
            write_seq: find(tcp, &["write_seq"])?,
            copied_seq: find(tcp, &["copied_seq"])?,
            rmem_alloc: find(sock, &["sk_backlog", "rmem_alloc"])?,
        })
    }
}

/// Types by number, from 1 on.
struct Types<'a> {
    records: &'a [u8],
    strings: &'a [u8],
    /// Where each begins in `records`.
    begin: Vec<u32>,
}

/// A member of a struct or union.
struct Member {
    name: u32,
    of: u32,
    bits: u32,
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

impl<'a> Types<'a> {
    fn new(bytes: &'a [u8]) -> Option<Self> {
        let magic = u16::from_le_bytes(*bytes.first_chunk()?);
        let part = |offset: usize, length: usize| {
            let begin = word(bytes, 4)?.checked_add(word(bytes, offset)?)? as usize;
            bytes.get(begin..begin.checked_add(word(bytes, length)? as usize)?)
        };
        let (types, strings) = (part(8, 12)?, part(16, 20)?);
        if magic != MAGIC {
            return None;
        }
        let mut all = Self { records: types, strings, begin: Vec::new() };
        let mut at = 0;
        while at < types.len() {
            all.begin.push(u32::try_from(at).ok()?);
            at += 12 + all.more(at)?;
        }
        Some(all)
    }

    /// Bytes behind the head of the type at `at`.
    fn more(&self, at: usize) -> Option<usize> {
        let info = word(self.records, at + 4)?;
        let n = (info & 0xffff) as usize;
        Some(match info >> 24 & 0x1f {
            1 | 14 | 17 => 4,
            3 => 12,
            STRUCT | UNION | 15 | 19 => n * 12,
            6 | 13 => n * 8,
            2 | 7..=12 | 16 | 18 => 0,
            _ => return None,
        })
    }

    fn is(&self, name: u32, wanted: &str) -> bool {
        let text = self.strings.get(name as usize..).unwrap_or_default();
        text.strip_prefix(wanted.as_bytes()).is_some_and(|rest| rest.first() == Some(&0))
    }

    /// A struct, by name.
    fn named(&self, wanted: &str) -> Option<u32> {
        let found = self.begin.iter().position(|&at| {
            let (name, info) = (word(self.records, at as usize), word(self.records, at as usize + 4));
            info.is_some_and(|info| info >> 24 & 0x1f == STRUCT && info & 0xffff != 0)
                && name.is_some_and(|name| self.is(name, wanted))
        })?;
        u32::try_from(found + 1).ok()
    }

    fn members(&self, of: u32) -> Option<impl Iterator<Item = Member>> {
        let at = *self.begin.get((of as usize).checked_sub(1)?)? as usize;
        let info = word(self.records, at + 4)?;
        if !matches!(info >> 24 & 0x1f, STRUCT | UNION) {
            return None;
        }
        // With the flag set the upper bits are the width of a bit field.
        let mask = if info >> 31 == 1 { 0xff_ffff } else { u32::MAX };
        let types = self.records;
        Some((0..(info & 0xffff) as usize).filter_map(move |n| {
            let at = at + 12 + n * 12;
            let bits = word(types, at + 8)? & mask;
            Some(Member { name: word(types, at)?, of: word(types, at + 4)?, bits })
        }))
    }

    /// At which byte of a type what a path names begins.
    fn at(&self, of: u32, path: &[&str]) -> Option<u32> {
        let (mut of, mut bytes) = (of, 0);
        for name in path {
            let (next, bits) = self.member(of, name, 0)?;
            (of, bytes) = (next, bytes + bits / 8);
        }
        Some(bytes)
    }

    /// A member's type and first bit; members of what has no name are the outer type's own.
    fn member(&self, of: u32, wanted: &str, depth: u32) -> Option<(u32, u32)> {
        if depth > DEPTH {
            return None;
        }
        self.members(of)?.find_map(|member| {
            if self.is(member.name, wanted) {
                return Some((member.of, member.bits));
            }
            let inner = if member.name == 0 { self.member(member.of, wanted, depth + 1) } else { None };
            inner.map(|(of, bits)| (of, member.bits.saturating_add(bits)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernels_offsets_are_found_and_differ() {
        let offsets = Offsets::of_this_kernel().unwrap();
        let Offsets { write_seq, copied_seq, rmem_alloc } = offsets;
        assert!(rmem_alloc > 0 && write_seq > rmem_alloc && copied_seq > rmem_alloc, "{offsets:?}");
        assert_ne!(write_seq, copied_seq);
    }

    #[test]
    fn what_is_no_description_is_refused() {
        assert!(Offsets::of(b"").is_err() && Offsets::of(&[0xff; 64]).is_err());
        let whole = fs::read(VMLINUX).unwrap();
        for length in [1, 8, 23, 24, 4096, whole.len() / 2, whole.len() - 1] {
            assert_eq!(Offsets::of(&whole[..length]).unwrap_err(), "it is not understood", "{length}");
        }
        let mut other = whole[..4096].to_vec();
        // No types at all, and strings that are there.
        other[12..16].fill(0);
        other[16..20].fill(0);
        other[20..24].copy_from_slice(&64u32.to_le_bytes());
        assert_eq!(Offsets::of(&other).unwrap_err(), "there is no struct tcp_sock");
    }
}
