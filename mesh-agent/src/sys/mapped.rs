//! Memory-mapped BPF arrays: read and written without a system call, shared with the programs.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use aya::Pod;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// A mapped array of `len` values. Elements are copied in and out whole; a reader in the kernel may see a
/// value half written, which is why slots carry a generation.
pub struct Mapped<T: Pod> {
    base: NonNull<T>,
    len: u32,
}

// SAFETY: the mapping is shared memory without thread affinity; every access is a volatile copy.
unsafe impl<T: Pod + Send> Send for Mapped<T> {}
// SAFETY: as above. Racing writers of one element would tear it: each element has one writer in user space.
unsafe impl<T: Pod + Sync> Sync for Mapped<T> {}

impl<T: Pod> Mapped<T> {
    /// Maps `len` values of an array made with `BPF_F_MMAPABLE`, whose value size is that of `T`.
    pub fn new(map: BorrowedFd<'_>, len: u32) -> io::Result<Self> {
        let bytes = size_of::<T>() * len as usize;
        // SAFETY: a fresh mapping chosen by the kernel; nothing else refers to it.
        let base = unsafe {
            mmap(std::ptr::null_mut(), bytes, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, map, 0)?
        };
        let base = NonNull::new(base.cast::<T>()).ok_or_else(|| io::Error::other("mmap returned null"))?;
        Ok(Self { base, len })
    }

    /// Elements.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Has it none?
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A copy of an element; `None` beyond the end.
    pub fn get(&self, index: u32) -> Option<T> {
        // SAFETY: inside the mapping, which lives as long as `self`; any bits are a `T`.
        (index < self.len).then(|| unsafe { self.base.add(index as usize).read_volatile() })
    }

    /// Replaces an element; `false` beyond the end.
    #[must_use]
    pub fn set(&self, index: u32, value: T) -> bool {
        if index >= self.len {
            return false;
        }
        // SAFETY: as in `get`.
        unsafe { self.base.add(index as usize).write_volatile(value) };
        true
    }

    /// A word of an element, to be changed beside the programs; `None` beyond the end of array or element.
    pub fn word(&self, index: u32, word: usize) -> Option<&AtomicU64> {
        let aligned = size_of::<T>().is_multiple_of(align_of::<AtomicU64>());
        if !aligned || index >= self.len || word >= size_of::<T>() / size_of::<AtomicU64>() {
            return None;
        }
        // SAFETY: inside the mapping, which lives as long as `self`, and aligned: elements begin at multiples
        // of their size from a page's begin.
        Some(unsafe { AtomicU64::from_ptr(self.base.add(index as usize).cast::<u64>().add(word).as_ptr()) })
    }
}

impl<T: Pod> Drop for Mapped<T> {
    fn drop(&mut self) {
        // SAFETY: the whole of our own mapping, and no reference into it outlives `self`.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), size_of::<T>() * self.len as usize) };
    }
}

/// A value from its bytes; `None` where the size differs.
pub fn read_pod<T: Pod>(bytes: &[u8]) -> Option<T> {
    // SAFETY: as many bytes as a `T` has, any bits are a `T`, and alignment is not asked for.
    (bytes.len() == size_of::<T>()).then(|| unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}
