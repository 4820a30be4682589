//! Connections of TLS that are told apart by the name that their client asks for, and not opened.
//!
//! read the hello ─▶ route (the name) ─▶ balance ─▶ authorise ─▶ transport ─▶ copy, the hello first
//!
//! A client that asks for a name which no route has is told so in TLS's own words (`unrecognized_name`), one that
//! speaks no TLS is reset. A connect that fails is tried at up to [`OTHERS`] other endpoints: nothing was sent.
//! Not here: how the name is read (mesh-core's hello), `Mesh` encryption (hbone), TLS of our own (origin).

use std::rc::Rc;
use std::task::Poll;

use mesh_core::error::ProxyError;
use mesh_core::hello::{self, Asked, Hello};

use super::buffers::Buf;
use super::intercept::{Hop, Session, copy, open};
use super::link::Link;
use super::routing::{Account, Caller, Routed, Way};
use super::stats::{Spoken, one};

/// Other endpoints that are tried after a connect has failed.
const OTHERS: usize = 2;
/// A fatal alert, `unrecognized_name` (RFC 6066 section 3), in a record of plaintext.
const UNRECOGNIZED_NAME: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];

/// Serves one connection to its end.
pub async fn serve(session: Session) {
    let mut account = Account::begun_now();
    let opened = match read_name(&session).await {
        Ok(name) => connect(&session, &name, &mut account).await,
        Err(error) => Err(error),
    };
    let reason = match opened {
        Ok((hop, upstream)) => copy(&session, hop, upstream).await,
        Err(error @ (ProxyError::NoRoute | ProxyError::TlsNoName)) => {
            refuse(&session).await;
            error.reason()
        }
        Err(error) => {
            session.client.reset();
            error.reason()
        }
    };
    account.reason = reason;
    account.record(&session.parties(), Spoken::Tls);
}

/// The name that the client asks for. What was read stays in the link.
async fn read_name(session: &Session) -> Result<String, ProxyError> {
    let Session { worker, client, watch, .. } = session;
    worker.clock.arm(watch, worker.limits.head);
    let known = std::future::poll_fn(|cx| {
        loop {
            let said =
                client.input().borrow().as_ref().map_or(Hello::More, |input| hello::read(input.data()));
            match said {
                Hello::Name(name) => return Poll::Ready(Ok(name)),
                Hello::Nameless => return Poll::Ready(Err(ProxyError::TlsNoName)),
                Hello::NotTls => return Poll::Ready(Err(ProxyError::NotTls)),
                Hello::More => {}
            }
            if watch.poll_call(cx).is_ready() {
                let cut = watch.is_cut();
                return Poll::Ready(Err(if cut { ProxyError::Draining } else { ProxyError::HeaderTimeout }));
            }
            match client.poll_input(cx, &worker.buffers) {
                Poll::Ready(Ok(n)) if n > 0 => {}
                // It ended before it had said anything whole.
                Poll::Ready(_) => return Poll::Ready(Err(ProxyError::NotTls)),
                Poll::Pending => return Poll::Pending,
            }
        }
    });
    let known = known.await;
    watch.disarm();
    known
}

/// A connection to an endpoint of the service that the name's route leads to.
async fn connect(
    session: &Session,
    name: &str,
    account: &mut Account,
) -> Result<(Hop, Rc<Link>), ProxyError> {
    let Session { worker, member, to, prefer_v6, watch, .. } = session;
    let caller = Caller { worker, member, to: *to, prefer_v6: *prefer_v6 };
    let (mut hop, backend) =
        worker.with_snapshot(|snapshot| match caller.route(snapshot, &Asked(name), account)? {
            Way::To(Routed { hop, backend, .. }) => Ok((hop, backend)),
            Way::Elsewhere(..) | Way::Answered(_) => Err(ProxyError::NoRoute),
        })?;
    let mut tried = [0; OTHERS + 1];
    let mut failed = 0;
    loop {
        let error = match open(session, &hop).await {
            Ok(stream) => return Ok((hop, Rc::new(Link::new(stream)))),
            Err(error) => error,
        };
        tried[failed] = hop.endpoint;
        failed += 1;
        let other = backend.as_ref().filter(|_| failed <= OTHERS && !watch.is_cut());
        hop = other.and_then(|service| caller.other(service, &tried[..failed])).ok_or(error)?;
        one(&worker.shared.counters.retried);
    }
}

/// Says that nobody here has that name, and ends the connection so that the client hears it.
async fn refuse(session: &Session) {
    let Session { worker, client, watch, .. } = session;
    client.consume(usize::MAX);
    let mut out: Buf = worker.buffers.small();
    out.append(&UNRECOGNIZED_NAME);
    client.set_out(out);
    worker.clock.arm(watch, worker.limits.linger);
    std::future::poll_fn(|cx| {
        if watch.poll_call(cx).is_ready() {
            return Poll::Ready(());
        }
        match client.poll_shutdown(cx) {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(_)) => return Poll::Ready(()),
            Poll::Pending => return Poll::Pending,
        }
        loop {
            client.consume(usize::MAX);
            match client.poll_input(cx, &worker.buffers) {
                Poll::Ready(Ok(n)) if n > 0 => {}
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
    })
    .await;
}
