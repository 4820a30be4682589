//! What is given to HTTP/2 to be sent: a worker's buffer as it is, or a few bytes copied. It counts what has not been
//! sent yet, and goes back to its pool when it has.

use std::cell::Cell;
use std::rc::Rc;

use bytes::Bytes;

use super::super::buffers::Buf;

/// Data of one DATA frame, or of several.
pub struct Piece {
    data: Data,
    /// Bytes of its stream that wait.
    unsent: Option<(Rc<Cell<usize>>, usize)>,
}

enum Data {
    Buf(Buf),
    Bytes(Bytes),
}

impl Piece {
    /// Nothing: the end of a stream.
    pub fn none() -> Self {
        Self { data: Data::Bytes(Bytes::new()), unsent: None }
    }

    /// A whole buffer.
    pub fn buf(buf: Buf, unsent: &Rc<Cell<usize>>) -> Self {
        let len = buf.len();
        Self::counted(Data::Buf(buf), len, unsent)
    }

    /// A copy.
    pub fn copy(bytes: &[u8], unsent: &Rc<Cell<usize>>) -> Self {
        Self::counted(Data::Bytes(Bytes::copy_from_slice(bytes)), bytes.len(), unsent)
    }

    fn counted(data: Data, len: usize, unsent: &Rc<Cell<usize>>) -> Self {
        unsent.set(unsent.get() + len);
        Self { data, unsent: Some((unsent.clone(), len)) }
    }
}

impl bytes::Buf for Piece {
    fn remaining(&self) -> usize {
        match &self.data {
            Data::Buf(buf) => buf.len(),
            Data::Bytes(bytes) => bytes.len(),
        }
    }

    fn chunk(&self) -> &[u8] {
        match &self.data {
            Data::Buf(buf) => buf.data(),
            Data::Bytes(bytes) => bytes,
        }
    }

    fn advance(&mut self, n: usize) {
        match &mut self.data {
            Data::Buf(buf) => buf.consume(n),
            Data::Bytes(bytes) => bytes.advance(n),
        }
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        if let Some((unsent, len)) = self.unsent.take() {
            unsent.set(unsent.get() - len);
        }
    }
}
