//! `flows` of `agent.sock`: what is open, then, for who goes on looking, what begins and what ends.
//!
//! arrays of the programs, sockets ──▶ open flows ──▶ pages ──▶ reader
//! ring ──▶ telemetry's queue ──▶ ended flows ──▶ pages ──┘
//!
//! A reader who is slow holds nobody up and costs no memory: the queue is shared and bounded, and he is told
//! how many ended flows he has missed. One that reads nothing for half a minute is let go. [`READERS`] at most.
//!
//! Not here: which flows match (mesh-api's `FlowQuery`), how they are shown (meshctl).

use std::collections::{HashSet, VecDeque};
use std::io;
use std::time::Duration;

use mesh_api::local::{FlowLine, FlowPage, FlowQuery, PAGE, VERSION};
use mesh_common::addr;
use mesh_common::record::{Flow, FlowEvent, TotalsKey, flow};
use mesh_common::verdict::Verdict;
use mesh_core::snapshot::Snapshot;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::time::MissedTickBehavior;

use super::socket::Connection;
use super::{Admin, send};
use crate::kernel::{OpenFlow, Standing};
use crate::sys::monotonic_ns;
use crate::telemetry::flows::{destination, endpoint, path, protocol, source};
use crate::telemetry::names::Names;

/// Readers at once: each remembers which open flows it has shown.
pub const READERS: usize = 8;
/// How often flows that have begun are looked for.
const LOOK: Duration = Duration::from_secs(1);
const PATHS: [&str; 3] = ["kernel", "proxy", "none"];

/// Answers until everything was said, or the reader is gone.
pub async fn serve(admin: &Admin, connection: &Connection, query: FlowQuery) -> io::Result<()> {
    if let Err(error) = check(&query) {
        return send(connection, &refused(error), None).await;
    }
    let Ok(_room) = admin.flow_readers.try_acquire() else {
        let error = format!("{READERS} readers look at the flows already: end one of them");
        return send(connection, &refused(error), None).await;
    };
    // Before the first look, so that no end falls between the two.
    let mut ended = query.follow.then(|| admin.ended.look_on());
    let mut reader = Reader { admin, connection, query, shown: HashSet::new(), unrecorded: 0, lost: 0 };
    reader.unrecorded = reader.unrecorded_so_far();
    reader.open().await?;
    let Some(ended) = &mut ended else {
        return reader.page(Vec::new(), true).await;
    };
    // The first look is told to be over, also where it found nothing.
    reader.page(Vec::new(), false).await?;
    reader.follow(ended).await
}

fn refused(error: String) -> FlowPage {
    FlowPage { v: VERSION, error: Some(error), ..FlowPage::default() }
}

fn check(query: &FlowQuery) -> Result<(), String> {
    let verdicts = Verdict::ALL.map(Verdict::name);
    if !query.verdict.is_empty() && !verdicts.contains(&&*query.verdict) {
        return Err(format!("verdict: {:?} is not one of {}", query.verdict, verdicts.join(", ")));
    }
    if !query.path.is_empty() && !PATHS.contains(&&*query.path) {
        return Err(format!("path: {:?} is not one of {}", query.path, PATHS.join(", ")));
    }
    Ok(())
}

struct Reader<'a> {
    admin: &'a Admin,
    connection: &'a Connection,
    query: FlowQuery,
    /// Cookies of the open flows that were shown.
    shown: HashSet<u64>,
    /// What the ring had lost when that was last told.
    unrecorded: u64,
    /// Ended flows missed and not yet told.
    lost: u64,
}

impl Reader<'_> {
    async fn follow(&mut self, ended: &mut Receiver<FlowEvent>) -> io::Result<()> {
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                // Nothing more is asked on this connection: whatever comes is the end.
                _ = self.connection.recv() => return Ok(()),
                event = ended.recv() => match event {
                    Ok(event) => self.ended(event, ended).await?,
                    Err(RecvError::Lagged(missed)) => self.lost += missed,
                    Err(RecvError::Closed) => return Ok(()),
                },
                _ = look.tick() => self.open().await?,
            }
        }
    }

    /// Open flows that were not shown yet.
    async fn open(&mut self) -> io::Result<()> {
        let open = self.admin.open.clone();
        let open = tokio::task::spawn_blocking(move || open.read()).await.map_err(io::Error::other)?;
        let snapshot = self.admin.config.snapshot();
        let (names, now) = (self.admin.config.names(), monotonic_ns());
        let mut shown = HashSet::new();
        let mut lines = VecDeque::new();
        for flow in open.iter() {
            let line = of_open(flow, now, names, &snapshot);
            if self.query.wants(&line) {
                if !self.shown.contains(&flow.cookie) {
                    lines.push_back(line);
                }
                shown.insert(flow.cookie);
            }
        }
        self.shown = shown;
        while !lines.is_empty() {
            let page = lines.drain(..lines.len().min(PAGE)).collect();
            self.page(page, false).await?;
        }
        if self.lost > 0 || self.unrecorded_so_far() > self.unrecorded {
            self.page(Vec::new(), false).await?;
        }
        Ok(())
    }

    /// A page of ended flows: this one, and those that wait behind it.
    async fn ended(&mut self, first: FlowEvent, rest: &mut Receiver<FlowEvent>) -> io::Result<()> {
        let snapshot = self.admin.config.snapshot();
        let mut lines = Vec::new();
        let mut next = Some(first);
        // A page may be looked for among as many as a filter leaves out, but not for ever.
        for _ in 0..PAGE * 16 {
            let Some(event) = next.take() else { break };
            let line = of_ended(&event, self.admin.config.names(), &snapshot);
            if self.query.wants(&line) {
                lines.push(line);
            }
            if lines.len() == PAGE {
                break;
            }
            match rest.try_recv() {
                Ok(event) => next = Some(event),
                // What is missing is told where it is missing.
                Err(TryRecvError::Lagged(missed)) => {
                    if !lines.is_empty() {
                        self.page(std::mem::take(&mut lines), false).await?;
                    }
                    self.lost += missed;
                    next = rest.try_recv().ok();
                }
                Err(_) => {}
            }
        }
        // The loop may have ended with one in hand only by its bound.
        if let Some(event) = next {
            let line = of_ended(&event, self.admin.config.names(), &snapshot);
            if self.query.wants(&line) {
                lines.push(line);
            }
        }
        if lines.is_empty() && self.lost == 0 { Ok(()) } else { self.page(lines, false).await }
    }

    fn unrecorded_so_far(&self) -> u64 {
        self.admin.kernel.verdict(Verdict::EventLost).unwrap_or(self.unrecorded)
    }

    async fn page(&mut self, flows: Vec<FlowLine>, done: bool) -> io::Result<()> {
        let now = self.unrecorded_so_far();
        let before = std::mem::replace(&mut self.unrecorded, now);
        let page = FlowPage {
            v: VERSION,
            ok: true,
            error: None,
            flows,
            lost: std::mem::take(&mut self.lost),
            unrecorded: self.unrecorded.saturating_sub(before),
            done,
        };
        let sent = send(self.connection, &page, None).await;
        if let Err(error) = &sent
            && error.kind() != io::ErrorKind::BrokenPipe
        {
            tracing::info!(%error, "a reader of flows is let go: it reads nothing");
        }
        sent
    }
}

fn of_open(open: &OpenFlow, now: u64, names: &Names, snapshot: &Snapshot) -> FlowLine {
    line("open", &open.flow, now, open.standing, names, snapshot)
}

fn of_ended(event: &FlowEvent, names: &Names, snapshot: &Snapshot) -> FlowLine {
    let FlowEvent { flow, end_ns, sent, received, srtt_us, retransmits } = *event;
    let state = if flow.flags & flow::ESTABLISHED == 0 { "failed" } else { "ended" };
    line(state, &flow, end_ns, Standing { sent, received, srtt_us, retransmits }, names, snapshot)
}

fn line(
    state: &str,
    flow: &Flow,
    until: u64,
    standing: Standing,
    names: &Names,
    snapshot: &Snapshot,
) -> FlowLine {
    let key = TotalsKey::of(flow, true);
    let verdict = Verdict::from_u8(flow.verdict);
    let address = std::net::SocketAddr::new(addr::to_ip(&flow.peer), u16::from_be(flow.peer_port_be));
    FlowLine {
        state: state.to_owned(),
        source: source(names, snapshot, key.kind, key.source),
        destination: destination(names, snapshot, key.kind, key.dest),
        endpoint: endpoint(names, snapshot, key.endpoint),
        address: address.to_string(),
        protocol: protocol(key.protocol).to_owned(),
        path: path(verdict).to_owned(),
        verdict: verdict.map_or("unknown", Verdict::name).to_owned(),
        seconds: Duration::from_nanos(until.saturating_sub(flow.start_ns)).as_secs_f64(),
        sent: standing.sent,
        received: standing.received,
        srtt_us: standing.srtt_us,
        retransmits: standing.retransmits,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_that_nothing_has_are_refused_with_those_that_something_has() {
        let query = |verdict: &str, path: &str| FlowQuery {
            verdict: verdict.into(),
            path: path.into(),
            ..FlowQuery::default()
        };
        assert!(check(&query("balanced", "kernel")).is_ok() && check(&query("", "")).is_ok());
        assert!(check(&query("blanced", "")).unwrap_err().contains("balanced, direct"));
        assert!(check(&query("", "fast")).unwrap_err().contains("kernel, proxy"));
    }
}
