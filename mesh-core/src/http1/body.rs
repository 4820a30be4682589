//! Follows a body to its end without changing it.
//!
//! The bytes are forwarded as they came; this only says how many of them belong to the message.

use super::chunked::Chunked;
use super::{Framing, Limits, Side};
use crate::error::ProxyError;

/// How much of an input belongs to the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Advance {
    /// This many bytes of the input are the body's: forward them. The rest is the next message.
    pub consume: usize,
    /// The body is complete.
    pub done: bool,
}

/// Position in one message's body.
#[derive(Clone, Debug)]
pub struct BodyReader {
    side: Side,
    state: State,
}

#[derive(Clone, Debug)]
enum State {
    Length(u64),
    Chunked(Chunked),
    UntilClose,
    Done,
}

impl BodyReader {
    /// At the first byte after the head.
    pub fn new(framing: Framing, side: Side, limits: &Limits) -> Self {
        let state = match framing {
            Framing::None | Framing::Length(0) => State::Done,
            Framing::Length(length) => State::Length(length),
            Framing::Chunked => State::Chunked(Chunked::new(limits)),
            Framing::UntilClose | Framing::Tunnel => State::UntilClose,
        };
        Self { side, state }
    }

    /// Takes the next bytes of the connection. Consumes all of them unless the body ends before.
    /// After an error nothing more of the message may be forwarded: reset the other leg.
    pub fn advance(&mut self, input: &[u8]) -> Result<Advance, ProxyError> {
        let consume = match &mut self.state {
            State::Done => 0,
            State::UntilClose => input.len(),
            State::Length(left) => {
                let consume = usize::try_from(*left).unwrap_or(usize::MAX).min(input.len());
                *left -= consume as u64;
                if *left == 0 {
                    self.state = State::Done;
                }
                consume
            }
            State::Chunked(chunked) => {
                let (consume, done) =
                    chunked.advance(input).map_err(|cause| ProxyError::malformed(self.side, cause))?;
                if done {
                    self.state = State::Done;
                }
                consume
            }
        };
        Ok(Advance { consume, done: self.is_done() })
    }

    /// The body is complete.
    pub fn is_done(&self) -> bool {
        matches!(self.state, State::Done)
    }

    /// The sender may close here without having cut the message.
    pub fn may_end(&self) -> bool {
        matches!(self.state, State::Done | State::UntilClose)
    }
}
