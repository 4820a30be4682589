//! Buffers of a worker: two sizes, pooled, given back when they drop.
//!
//! A connection that waits holds none: a buffer is taken when there is something to read and given back when
//! all of it has been written. So the memory of a worker follows what its readers leave behind, and not how
//! many connections it has.
//!
//! Invariant: a buffer that grew beyond its size is not pooled again.

use std::cell::RefCell;
use std::rc::Rc;

/// Bytes of a small buffer: a head that waits for its answer.
pub const SMALL: usize = 2 * 1024;
/// Bytes of a large buffer: one read. The largest head is a little less.
pub const LARGE: usize = 32 * 1024;
/// Free bytes of each size that a worker keeps.
const KEEP: usize = 2 << 20;

/// The free buffers of one worker.
#[derive(Default)]
pub struct Pool {
    small: RefCell<Vec<Vec<u8>>>,
    large: RefCell<Vec<Vec<u8>>>,
}

impl Pool {
    /// A small buffer.
    pub fn small(self: &Rc<Self>) -> Buf {
        let bytes = self.small.borrow_mut().pop().unwrap_or_else(|| Vec::with_capacity(SMALL));
        Buf { bytes, start: 0, pool: self.clone() }
    }

    /// A large buffer.
    pub fn large(self: &Rc<Self>) -> Buf {
        let bytes = self.large.borrow_mut().pop().unwrap_or_else(|| Vec::with_capacity(LARGE));
        Buf { bytes, start: 0, pool: self.clone() }
    }

    /// The smaller one that holds `len` bytes, else a large one.
    pub fn fitting(self: &Rc<Self>, len: usize) -> Buf {
        if len <= SMALL { self.small() } else { self.large() }
    }

    fn give_back(&self, mut bytes: Vec<u8>) {
        // One that had to grow is not kept.
        let list = match bytes.capacity() {
            SMALL => &self.small,
            LARGE => &self.large,
            _ => return,
        };
        let mut list = list.borrow_mut();
        if (list.len() + 1) * bytes.capacity() <= KEEP {
            bytes.clear();
            list.push(bytes);
        }
    }
}

/// A buffer: `[used before | data | room]`.
pub struct Buf {
    bytes: Vec<u8>,
    start: usize,
    pool: Rc<Pool>,
}

impl Buf {
    /// The bytes in it.
    pub fn data(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    /// How many bytes are in it.
    pub fn len(&self) -> usize {
        self.bytes.len() - self.start
    }

    /// Nothing in it?
    pub fn is_empty(&self) -> bool {
        self.start == self.bytes.len()
    }

    /// How many bytes go in behind the data.
    pub fn room(&self) -> usize {
        self.bytes.capacity() - self.bytes.len()
    }

    /// Where the next bytes go. Writers keep to [`Buf::room`], or the buffer grows and is not pooled again.
    pub fn bytes(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// The first `n` bytes are done with.
    pub fn consume(&mut self, n: usize) {
        self.start = (self.start + n).min(self.bytes.len());
    }

    /// Forgets the last bytes so that `len` are left.
    pub fn truncate(&mut self, len: usize) {
        self.bytes.truncate(self.start + len);
    }

    /// All that was ever in it is unused again.
    pub fn rewind(&mut self) {
        self.start = 0;
    }

    /// Moves the data to the front, so that all of the room is behind it.
    pub fn compact(&mut self) {
        self.bytes.drain(..self.start);
        self.start = 0;
    }

    /// Appends as much of `bytes` as there is room for; how many that was.
    pub fn append(&mut self, bytes: &[u8]) -> usize {
        let n = bytes.len().min(self.room());
        self.bytes.extend_from_slice(&bytes[..n]);
        n
    }
}

impl Drop for Buf {
    fn drop(&mut self) {
        self.pool.give_back(std::mem::take(&mut self.bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_takes_gives_and_comes_back() {
        let pool = Rc::new(Pool::default());
        let mut buf = pool.small();
        assert_eq!(buf.append(b"hello world"), 11);
        buf.consume(6);
        assert_eq!(buf.data(), b"world");
        buf.compact();
        assert_eq!((buf.data(), buf.room()), (&b"world"[..], SMALL - 5));
        buf.truncate(2);
        buf.consume(2);
        buf.rewind();
        assert_eq!(buf.data(), b"wo");
        assert_eq!(buf.append(&vec![0; LARGE]), SMALL - 2, "an append never makes it grow");
        drop(buf);
        assert_eq!(pool.small.borrow().len(), 1);
        assert!(pool.small().is_empty(), "a reused buffer starts empty");
    }
}
