//! What one stream has subscribed to, sent and heard: pure bookkeeping, `now` passed in.
//!
//! Rules: a type is served from its first request on; responses of a type wait while [`UNANSWERED`] of them
//! are unanswered; the first change after a quiet [`QUIET`] goes at once, what follows within it is
//! gathered.
//!
//! Invariant: a nonce is answered once; answers to nonces that were never sent are ignored.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::{TYPES, Type};

/// How long changes are gathered after a response.
pub const QUIET: Duration = Duration::from_millis(20);
/// Responses of one type that may be unanswered before further ones wait.
const UNANSWERED: usize = 8;
/// Longest NACK text that is kept.
const NACK_TEXT: usize = 512;

/// The state of one stream.
#[derive(Default)]
pub struct Subscription {
    types: [TypeState; TYPES],
    sent: u64,
    last_sent: Option<Instant>,
}

#[derive(Default)]
struct TypeState {
    subscribed: bool,
    unanswered: VecDeque<(u64, u64)>,
}

/// What an incoming request turned out to be.
#[derive(Debug, PartialEq, Eq)]
pub enum Heard {
    /// The first request of its type: answer with everything the agent lacks.
    Subscribed,
    /// The agent runs what it was sent up to this revision.
    Acked(u64),
    /// The agent refused a response, and says why.
    Nacked(String),
    /// Nothing to do.
    Nothing,
}

impl Subscription {
    /// Takes a request of a known type in.
    pub fn hear(&mut self, kind: impl Into<Type>, nonce: &str, error: Option<String>) -> Heard {
        let state = &mut self.types[kind.into().index()];
        if !std::mem::replace(&mut state.subscribed, true) {
            return Heard::Subscribed;
        }
        let Some(place) = nonce
            .parse::<u64>()
            .ok()
            .and_then(|nonce| state.unanswered.iter().position(|(sent, _)| *sent == nonce))
        else {
            return Heard::Nothing;
        };
        let revision = state.unanswered[place].1;
        // Answers come in order: what was sent before this one is answered too.
        state.unanswered.drain(..=place);
        match error {
            None => Heard::Acked(revision),
            Some(text) => Heard::Nacked(text.chars().take(NACK_TEXT).collect()),
        }
    }

    /// Notes a response and names its nonce.
    pub fn send(&mut self, kind: impl Into<Type>, revision: u64, now: Instant) -> String {
        self.sent += 1;
        self.last_sent = Some(now);
        self.types[kind.into().index()].unanswered.push_back((self.sent, revision));
        self.sent.to_string()
    }

    /// The types that may be sent to now.
    pub fn open(&self) -> impl Iterator<Item = Type> + '_ {
        Type::all().filter(|kind| {
            let state = &self.types[kind.index()];
            state.subscribed && state.unanswered.len() < UNANSWERED
        })
    }

    /// Until when changes are gathered; `None`: send at once.
    pub fn gather_until(&self, now: Instant) -> Option<Instant> {
        self.last_sent.map(|sent| sent + QUIET).filter(|until| *until > now)
    }
}

#[cfg(test)]
mod tests {
    use mesh_api::resource::Kind;

    use super::*;

    #[test]
    fn the_first_request_subscribes_and_answers_settle_nonces() {
        let (mut stream, now) = (Subscription::default(), Instant::now());
        assert_eq!(stream.open().count(), 0);
        assert_eq!(stream.hear(Kind::Service, "", None), Heard::Subscribed);
        assert_eq!(stream.hear(Kind::Service, "", None), Heard::Nothing);
        assert_eq!(stream.hear(Kind::Mesh, "", None), Heard::Subscribed);
        let first = stream.send(Kind::Service, 7, now);
        let second = stream.send(Kind::Service, 8, now);
        assert_eq!(stream.hear(Kind::Service, &second, Some("no".into())), Heard::Nacked("no".into()));
        assert_eq!(stream.hear(Kind::Service, &first, None), Heard::Nothing, "settled by the later answer");
        assert_eq!(stream.hear(Kind::Service, "99", None), Heard::Nothing);
        let third = stream.send(Kind::Service, 9, now);
        assert_eq!(stream.hear(Kind::Mesh, &third, None), Heard::Nothing, "another type's nonce");
        assert_eq!(stream.hear(Kind::Service, &third, None), Heard::Acked(9));
    }

    #[test]
    fn a_silent_agent_is_sent_a_bounded_number() {
        let (mut stream, now) = (Subscription::default(), Instant::now());
        stream.hear(Kind::Mesh, "", None);
        let mut last = String::new();
        while stream.open().next().is_some() {
            last = stream.send(Kind::Mesh, 1, now);
        }
        assert_eq!(last, UNANSWERED.to_string());
        stream.hear(Kind::Mesh, &last, None);
        assert_eq!(stream.open().collect::<Vec<_>>(), [Type::Of(Kind::Mesh)]);
    }

    #[test]
    fn the_first_change_after_quiet_goes_at_once() {
        let (mut stream, now) = (Subscription::default(), Instant::now());
        assert_eq!(stream.gather_until(now), None);
        stream.send(Kind::Mesh, 1, now);
        assert_eq!(stream.gather_until(now + QUIET / 2), Some(now + QUIET));
        assert_eq!(stream.gather_until(now + QUIET), None);
    }
}
