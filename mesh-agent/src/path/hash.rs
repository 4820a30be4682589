//! A quick hash for tables that are looked up once a request and whose keys are the agent's own numbers and
//! configured names: nobody outside chooses them, and every such table is bounded, so it need not resist
//! collisions on purpose.

use std::hash::Hasher;

/// Multiply and rotate, as Firefox and rustc do it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Quick(u64);

const K: u64 = 0x517c_c1b7_2722_0a95;

impl Quick {
    fn add(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(K);
    }
}

impl Hasher for Quick {
    fn write(&mut self, bytes: &[u8]) {
        let mut words = bytes.chunks_exact(8);
        for word in &mut words {
            self.add(u64::from_le_bytes(word.try_into().unwrap_or_default()));
        }
        let mut last = [0; 8];
        let rest = words.remainder();
        last[..rest.len()].copy_from_slice(rest);
        self.add(u64::from_le_bytes(last) ^ (rest.len() as u64) << 56);
    }

    fn write_u8(&mut self, n: u8) {
        self.add(n.into());
    }

    fn write_u16(&mut self, n: u16) {
        self.add(n.into());
    }

    fn write_u32(&mut self, n: u32) {
        self.add(n.into());
    }

    fn write_u64(&mut self, n: u64) {
        self.add(n);
    }

    fn write_usize(&mut self, n: usize) {
        self.add(n as u64);
    }

    fn finish(&self) -> u64 {
        // hashbrown takes its tag from the top bits and its place from the low ones.
        self.0 ^ (self.0 >> 32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use std::hash::{BuildHasher, BuildHasherDefault};

    #[test]
    fn dense_numbers_and_alike_names_spread() {
        let build = BuildHasherDefault::<Quick>::default();
        let mut seen = HashSet::new();
        for n in 0..1000u32 {
            assert!(seen.insert(build.hash_one((n, format!("default/route-{}", n % 7)))));
        }
        let low: HashSet<u64> = (0..1000u32).map(|n| build.hash_one(n) & 0x3ff).collect();
        assert!(low.len() > 500, "{}", low.len());
    }
}
