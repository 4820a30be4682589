//! One agent takes over from another on the same node without a connection being refused: an upgrade.
//!
//! ```text
//! successor                                   predecessor
//! checks, tries its programs
//! handOver ─────────────────────────────────▶ writes its state, ends all but the proxy
//!   ◀──────────── done, the socket of /metrics
//! adopts maps, updates links, takes state from disk,
//! puts listeners of its own over the old ones
//! taken ────────────────────────────────────▶ drains its connections, ends
//! ```
//!
//! Until a workload's slots are overwritten its connections come to the predecessor's listeners, after that to
//! the successor's. Both accept meanwhile: what `connect()` has sent to the old port just before arrives.
//! Listeners are not passed along: new ones in the same slots leave each agent with sockets that are its own. Nor are
//! keys: the successor finds those that the predecessor has kept (identity's keep), as after a crash.
//!
//! Invariant: from its answer on, the predecessor writes no map, no file and nothing to the control plane.
//! Not here: what is adopted (kernel, config, enrol).

use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use mesh_api::local::{Answer, Request, VERSION};

use crate::admin::socket::Connection;
use crate::path::Proxy;

/// Asks the agent that runs to hand over.
pub const HAND_OVER: &str = "handOver";
/// Tells it that everything was taken.
pub const TAKEN: &str = "taken";

/// How long the predecessor may take to write its state and to end its tasks.
const STEP: Duration = Duration::from_secs(15);
/// How long the successor may take to serve.
const TAKE: Duration = Duration::from_mins(1);

/// The agent that hands over, as its successor sees it.
pub struct Predecessor {
    connection: Connection,
    pid: i32,
}

/// Asks the agent behind `socket` to hand over; with it comes the socket of `/metrics`. `None`: none runs.
pub async fn ask(socket: &Path) -> anyhow::Result<Option<(Predecessor, TcpListener)>> {
    let Some(connection) = Connection::to(socket)? else { return Ok(None) };
    let pid = connection.peer()?.pid;
    connection.send(&message(HAND_OVER)?, &[]).await?;
    let answer = tokio::time::timeout(STEP, connection.recv()).await;
    let Ok(Some((bytes, fds))) = answer.context("it does not answer: end it by hand")? else {
        bail!("it ended instead of handing over: start this agent again");
    };
    let answer: Answer = serde_json::from_slice(&bytes).context("its answer is not one of ours")?;
    if let Some(error) = answer.error {
        bail!("it refuses: {error}");
    }
    let metrics = fds.into_iter().next().context("it passed no socket for /metrics")?;
    tracing::info!(pid, "taking over: the agent that ran here serves connections until this one does");
    Ok(Some((Predecessor { connection, pid }, metrics.into())))
}

impl Predecessor {
    /// Everything was taken: it may drain and go.
    pub async fn release(self) {
        let told = match message(TAKEN) {
            Ok(message) => self.connection.send(&message, &[]).await,
            Err(error) => Err(error),
        };
        match told {
            Ok(()) => tracing::info!(pid = self.pid, "took over"),
            Err(error) => tracing::warn!(pid = self.pid, %error, "the agent that ran here is gone already"),
        }
    }
}

/// What a predecessor keeps when its tasks have ended.
pub struct Leaving {
    /// To its successor.
    pub successor: OwnedFd,
    /// Passed on.
    pub metrics: TcpListener,
    /// Serves until the successor does.
    pub proxy: Proxy,
    /// How long its connections may go on.
    pub drain: Duration,
}

/// The predecessor's last act. To be called when nothing of it but the proxy runs.
pub async fn leave(leaving: Leaving) -> anyhow::Result<()> {
    let Leaving { successor, metrics, proxy, drain } = leaving;
    let successor = Connection::new(successor)?;
    let pid = successor.peer()?.pid;
    let answer = serde_json::to_vec(&Answer::ok())?;
    successor.send(&answer, &[metrics.as_fd()]).await.context("hand-over")?;
    drop(metrics);
    let taken = tokio::time::timeout(TAKE, successor.recv()).await;
    let taken = taken.is_ok_and(|packet| matches!(packet, Ok(Some((bytes, _))) if is(TAKEN, &bytes)));
    if !taken {
        bail!(
            "the successor (pid {pid}) ended before it served: start an agent; the kernel path goes on \
             meanwhile, and what needs the proxy does what onProxyLoss says"
        );
    }
    tracing::info!(pid, "handed over: open connections may go on for {} s", drain.as_secs());
    proxy.drain(drain).await;
    Ok(())
}

fn message(op: &str) -> io::Result<Vec<u8>> {
    Ok(serde_json::to_vec(&Request { v: VERSION, op: op.to_owned(), ..Request::default() })?)
}

fn is(op: &str, bytes: &[u8]) -> bool {
    serde_json::from_slice::<Request>(bytes).is_ok_and(|request| request.op == op)
}
