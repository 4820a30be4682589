//! What is spoken on a connection to a port that does not say (`protocol: auto`).
//!
//! ```text
//! accept ─▶ intercept ─▶ detect ─┬─ HTTP/1, HTTP/2 ─▶ http1, http2: each request is routed and balanced
//!                                └─ all else ───────▶ tcp: to the endpoint that the kernel has chosen
//! ```
//!
//! While the client's first bytes are waited for, [`WAIT`] at most, the endpoint is dialled: a server that speaks first
//! is heard as soon as it does, and the connection is there for whatever is not HTTP. Where HTTP comes it is closed
//! unused, once: a workload that spoke HTTP there is waited for without dialling the next time, and one whose client
//! was silent is not waited for at all, for [`REMEMBER`].
//!
//! Invariants: what is remembered is of one workload and one destination, so nobody decides for others; it is bounded,
//! and forgotten whole rather than grown. Not here: what bytes mean (mesh-core's detect).

use std::cell::RefCell;
use std::collections::HashMap;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use mesh_core::detect::{Beginning, beginning};
use mesh_core::error::ProxyError;
use tokio::time::sleep;

use super::intercept::{Hop, Session, To, carry, open, record_tcp, serve_tcp};
use super::link::Link;
use super::stats::{Counters, one};
use super::{http1, http2};

/// How long a client is waited for.
const WAIT: Duration = Duration::from_millis(100);
/// How long it is remembered, in milliseconds.
const REMEMBER: u64 = 10 * 60 * 1000;
/// Most that a worker remembers.
const MOST: usize = 4096;

/// What a workload's last client at a destination did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Habit {
    /// It waited for its server.
    Silent,
    /// It spoke HTTP.
    Http,
}

/// Workload that calls, service, endpoint (0: any).
type Place = (u32, u32, u32);

/// What is remembered, until when.
#[derive(Default)]
pub struct Silents(RefCell<HashMap<Place, (Habit, u64)>>);

impl Silents {
    fn of(&self, place: Place, now: u64) -> Option<Habit> {
        self.0.borrow().get(&place).filter(|(_, until)| now < *until).map(|(habit, _)| *habit)
    }

    fn note(&self, place: Place, habit: Option<Habit>, now: u64) {
        let mut all = self.0.borrow_mut();
        let Some(habit) = habit else {
            all.remove(&place);
            return;
        };
        if all.len() >= MOST {
            all.retain(|_, (_, until)| now < *until);
        }
        if all.len() >= MOST {
            all.clear();
        }
        all.insert(place, (habit, now + REMEMBER));
    }
}

/// What was found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Http1,
    Http2,
    Tls,
    Opaque,
    ServerFirst,
    Silent,
}

impl Found {
    fn count(self, counters: &Counters) {
        one(match self {
            Self::Http1 => &counters.detected_http1,
            Self::Http2 => &counters.detected_http2,
            Self::Tls => &counters.detected_tls,
            Self::Opaque => &counters.detected_opaque,
            Self::ServerFirst => &counters.detected_server_first,
            Self::Silent => &counters.detected_silent,
        });
    }

    fn is_opaque(self) -> bool {
        !matches!(self, Self::Http1 | Self::Http2)
    }

    fn habit(self) -> Option<Habit> {
        match self {
            Self::Http1 | Self::Http2 => Some(Habit::Http),
            Self::ServerFirst | Self::Silent => Some(Habit::Silent),
            Self::Tls | Self::Opaque => None,
        }
    }
}

/// Serves a connection. `hop`: where it goes if it is opaque.
pub async fn serve(session: Session, hop: Hop) {
    let worker = session.worker.clone();
    let at = if session.to == To::Hop(hop) { hop.endpoint } else { 0 };
    let place = (session.member.workload, hop.service, at);
    let habit = worker.silents.of(place, worker.clock.now());
    if habit == Some(Habit::Silent) {
        one(&worker.shared.counters.detected_remembered);
        return serve_tcp(session, hop).await;
    }
    let begun = Instant::now();
    let Some((found, opened)) = find_out(&session, &hop, habit.is_none()).await else {
        session.client.reset();
        return record_tcp(&session, &hop, "client_gone", begun);
    };
    session.watch.disarm();
    found.count(&worker.shared.counters);
    worker.silents.note(place, found.habit(), worker.clock.now());
    match (found, opened) {
        (Found::Http1, _) => http1::serve(session).await,
        (Found::Http2, _) => http2::serve(session).await,
        (_, Some(opened)) => carry(session, hop, opened, begun).await,
        (_, None) => serve_tcp(session, hop).await,
    }
}

type Opened = Result<Rc<Link>, ProxyError>;

/// What is spoken, and the connection to the endpoint where that is wanted and was dialled. `None`: the client has gone.
async fn find_out(session: &Session, hop: &Hop, dials: bool) -> Option<(Found, Option<Opened>)> {
    let Session { worker, watch, .. } = session;
    let mut dial = pin!(open(session, hop));
    let mut opened: Option<Opened> = None;
    let mut wait = pin!(sleep(WAIT));
    let mut patient = false;
    let found = std::future::poll_fn(|cx| {
        if dials
            && opened.is_none()
            && let Poll::Ready(done) = dial.as_mut().poll(cx)
        {
            opened = Some(done.map(|stream| Rc::new(Link::new(stream))));
        }
        let heard = match hear(session, cx) {
            Ok(Heard::Enough(found)) => return Poll::Ready(Some(found)),
            Ok(Heard::More { likely }) => likely,
            Err(Gone) => return Poll::Ready(None),
        };
        // A word of the server, or its end, before any of the client's.
        if let Some(Ok(upstream)) = &opened
            && upstream.poll_input(cx, &worker.buffers).is_ready()
        {
            return Poll::Ready(Some(Found::ServerFirst));
        }
        watch.register(cx);
        while wait.as_mut().poll(cx).is_ready() {
            match (patient, heard) {
                (true, _) => return Poll::Ready(Some(Found::Http1)),
                (false, Some(true)) => {
                    patient = true;
                    wait.set(sleep(worker.limits.head));
                }
                (false, Some(false)) => return Poll::Ready(Some(Found::Opaque)),
                (false, None) => return Poll::Ready(Some(Found::Silent)),
            }
        }
        Poll::Pending
    });
    let found = found.await?;
    if !found.is_opaque() {
        return Some((found, None));
    }
    if dials && opened.is_none() {
        opened = Some(dial.await.map(|stream| Rc::new(Link::new(stream))));
    }
    Some((found, opened))
}

/// The client broke off, or is to be cut.
struct Gone;

enum Heard {
    Enough(Found),
    /// `None`: nothing at all. Else whether it is likely to become HTTP/1.
    More {
        likely: Option<bool>,
    },
}

/// Reads what the client has sent by now. What was read stays in the link.
fn hear(session: &Session, cx: &mut Context<'_>) -> Result<Heard, Gone> {
    let Session { worker, client, watch, .. } = session;
    loop {
        let begun = client.input().borrow().as_ref().map(|input| beginning(input.data()));
        let likely = match begun {
            None => None,
            Some(Beginning::More { likely }) => Some(likely),
            Some(Beginning::Http1) => return Ok(Heard::Enough(Found::Http1)),
            Some(Beginning::Http2) => return Ok(Heard::Enough(Found::Http2)),
            Some(Beginning::Tls) => return Ok(Heard::Enough(Found::Tls)),
            Some(Beginning::Opaque) => return Ok(Heard::Enough(Found::Opaque)),
        };
        if watch.is_cut() {
            return Err(Gone);
        }
        match client.poll_input(cx, &worker.buffers) {
            Poll::Ready(Ok(0)) => return Ok(Heard::Enough(Found::Opaque)),
            Poll::Ready(Ok(_)) => {}
            Poll::Ready(Err(_)) => return Err(Gone),
            Poll::Pending => return Ok(Heard::More { likely }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_ends_and_is_bounded() {
        let silents = Silents::default();
        let place = (1, 2, 0);
        silents.note(place, Some(Habit::Silent), 5);
        assert_eq!(silents.of(place, 6), Some(Habit::Silent));
        assert_eq!(silents.of((2, 2, 0), 6), None, "another workload's is its own");
        assert_eq!(silents.of(place, 5 + REMEMBER), None);
        silents.note(place, None, 6);
        assert_eq!(silents.of(place, 6), None);
        for n in 0..2 * MOST as u32 {
            silents.note((n, 1, 0), Some(Habit::Http), 10);
            assert!(silents.0.borrow().len() <= MOST);
        }
    }
}
