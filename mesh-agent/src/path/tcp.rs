//! Opaque bytes, both ways: TCP services, and what follows an upgrade.
//!
//! Half-close is passed on as half-close, a reset as a reset.
//! Not here: who is connected to whom (intercept, http1), back-pressure (pump).

use std::rc::Rc;
use std::task::{Context, Poll, ready};

use mesh_core::http1::Side;

use super::clock::{Call, Watched};
use super::link::Link;
use super::member::Held;
use super::pump::{Broken, Pump};
use super::stats::one;
use super::worker::Worker;

/// How a copy ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Both sides ended.
    Clean,
    /// The client reset the connection.
    ClientReset,
    /// The endpoint reset the connection.
    UpstreamReset,
    /// Nothing moved for too long.
    Idle,
    /// The agent cut it.
    Cut,
    /// The workload's budget of buffered bytes.
    Budget,
}

impl End {
    /// Text for the `reason` label: `ProxyError`'s where it has one.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Clean => "",
            Self::ClientReset => "client_reset",
            Self::UpstreamReset => "upstream_reset",
            Self::Idle => "idle",
            Self::Cut => "draining",
            Self::Budget => "budget_bytes",
        }
    }
}

/// Copies until both sides have ended, and passes a bad end on.
pub async fn copy(
    worker: &Rc<Worker>,
    watch: &Watched,
    client: &Rc<Link>,
    upstream: &Rc<Link>,
    held: &Held,
) -> End {
    let mut up = Half { pump: Pump::opaque(Side::Client), ended: false, done: false };
    let mut down = Half { pump: Pump::opaque(Side::Upstream), ended: false, done: false };
    worker.clock.arm(watch, worker.limits.tcp_idle);
    let end = std::future::poll_fn(|cx| {
        if let Poll::Ready(call) = watch.poll_call(cx) {
            return Poll::Ready(if call == Call::Cut { End::Cut } else { End::Idle });
        }
        let sent = up.poll(worker, client, upstream, cx);
        let received = down.poll(worker, upstream, client, cx);
        if up.pump.moved() | down.pump.moved() {
            worker.clock.arm(watch, worker.limits.tcp_idle);
        }
        if !held.set(upstream.held() + client.held()) {
            return Poll::Ready(End::Budget);
        }
        match (sent, received) {
            (Poll::Ready(Err(Broken::From(_))), _) | (_, Poll::Ready(Err(Broken::To(_)))) => {
                Poll::Ready(End::ClientReset)
            }
            (Poll::Ready(Err(_)), _) | (_, Poll::Ready(Err(_))) => Poll::Ready(End::UpstreamReset),
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => Poll::Ready(End::Clean),
            _ => Poll::Pending,
        }
    })
    .await;
    watch.disarm();
    let counters = &worker.shared.counters;
    match end {
        End::Clean => return end,
        End::ClientReset | End::UpstreamReset => one(&counters.resets),
        End::Idle | End::Cut => one(&counters.cut),
        End::Budget => one(&counters.budget_bytes),
    }
    client.reset();
    upstream.reset();
    end
}

/// One direction.
struct Half {
    pump: Pump,
    /// The sender has ended its side.
    ended: bool,
    /// And so has been told the receiver.
    done: bool,
}

impl Half {
    fn poll(
        &mut self,
        worker: &Worker,
        from: &Rc<Link>,
        to: &Rc<Link>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Broken>> {
        if !self.ended {
            ready!(self.pump.poll(worker, from, to, cx))?;
            self.ended = true;
        }
        if !self.done {
            ready!(to.poll_shutdown(cx)).map_err(|e| Broken::To(e.kind()))?;
            self.done = true;
        }
        Poll::Ready(Ok(()))
    }
}
