//! `healthCheck` and `recovery` of a `Service`: how its workloads are asked whether they are well, and what follows
//! where they are not.
//!
//! Commands are named, never given: what runs on a node stands in that node's own configuration.
//! Not here: when a workload counts as unhealthy (mesh-core's health), who asks (mesh-agent).

use std::ops::RangeInclusive;
use std::time::Duration;

use serde::{Serialize, Serializer};

use super::http_filter::Header;
use super::traffic_policy::text;
use crate::error::{ApiError, Reason};
use crate::name::LABEL;
use crate::walk::{At, Fields};

/// Accepted times.
const INTERVAL: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_hours(1);
const TIMEOUT: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_mins(1);
const GRACE: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_hours(1);
/// Checks in a row.
const IN_A_ROW: RangeInclusive<u64> = 1..=1000;
/// Most headers of a request, statuses that are expected, steps of a recovery.
const HEADERS: usize = 16;
const STATUSES: usize = 16;
const STEPS: usize = 8;
/// Longest text of a header's value, a path, a name of gRPC, a URL.
const TEXT: usize = 1024;

/// How a workload is asked whether it is well.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HealthCheck {
    /// What is asked.
    #[serde(flatten)]
    pub probe: Probe,
    /// From one check to the next.
    #[serde(serialize_with = "text")]
    pub interval: Duration,
    /// How long one may take.
    #[serde(serialize_with = "text")]
    pub timeout: Duration,
    /// By how much the interval is drawn apart, so that checks do not come all at once.
    pub jitter_percent: u8,
    /// So many that pass in a row make an unhealthy one healthy.
    pub healthy_threshold: u32,
    /// So many that fail in a row make a healthy one unhealthy.
    pub unhealthy_threshold: u32,
    /// For how long after its start failures do not count, while none has passed yet.
    #[serde(serialize_with = "text")]
    pub startup_grace: Duration,
}

/// What is asked. `port`: of the workload; `None`: where it serves the service's port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Probe {
    /// A GET.
    Http(HttpProbe),
    /// `grpc.health.v1.Health/Check`.
    Grpc(GrpcProbe),
    /// A connection.
    Tcp(TcpProbe),
    /// A command of the node's own configuration.
    Command(CommandRef),
}

/// A GET; any answer of `expected_statuses` passes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpProbe {
    /// Path and query.
    pub path: String,
    /// Where.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Further headers; `Host` in place of the workload's address.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<Header>,
    /// Which answers pass.
    pub expected_statuses: Vec<Statuses>,
}

/// One status of HTTP, or all from one to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Statuses {
    /// The first.
    pub from: u16,
    /// The last.
    pub to: u16,
}

impl Serialize for Statuses {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        if self.from == self.to {
            to.serialize_u16(self.from)
        } else {
            to.collect_str(&format_args!("{}-{}", self.from, self.to))
        }
    }
}

/// A call of gRPC's own health service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GrpcProbe {
    /// Which of the server's services; empty: the server as a whole.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub service: String,
    /// Where.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}

/// A connection that is opened and closed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TcpProbe {
    /// Where.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}

/// A command of the node's own configuration, by its name there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CommandRef {
    /// Its name.
    #[serde(rename = "ref")]
    pub name: String,
}

/// What follows where a workload is unhealthy, and how it comes back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Recovery {
    /// Each once for as long as it is unhealthy, but for restarts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<Step>,
    /// When it comes back; `None`: by the check's `healthyThreshold`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub readmit: Option<Readmit>,
}

/// Something that is done for a workload that does not get well.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    /// After so many checks that failed in a row; never before it is unhealthy.
    pub after: u32,
    /// What.
    #[serde(flatten)]
    pub action: Action,
}

/// What is done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Action {
    /// Nothing new is sent to it by any service that it serves; what is open goes on.
    Drain {},
    /// The same, and what is open to it is reset.
    Eject {},
    /// Somebody is told, once it is so and once it is over.
    Webhook(Webhook),
    /// A command of the node's own configuration is run, which is to start it again.
    Restart(Restart),
}

/// Who is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Webhook {
    /// Where to POST.
    pub url: String,
}

/// How it is started again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Restart {
    /// The command's name.
    #[serde(rename = "ref")]
    pub name: String,
    /// So many times, until it was healthy again.
    pub at_most: u32,
}

/// When it comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Readmit {
    /// After so many checks that passed in a row.
    pub after_passes: u32,
}

impl HealthCheck {
    pub(super) fn read(at: &At<'_>) -> Result<Self, ApiError> {
        let fields = at.object(
            &[
                "http",
                "grpc",
                "tcp",
                "command",
                "interval",
                "timeout",
                "jitterPercent",
                "healthyThreshold",
                "unhealthyThreshold",
                "startupGrace",
            ],
            &["udp", "https"],
        )?;
        let count = |name: &str, default: u32| -> Result<u32, ApiError> {
            Ok(fields.read(name, |at| at.integer(IN_A_ROW))?.map_or(default, |n| n as u32))
        };
        let time = |name: &str, range, default| -> Result<Duration, ApiError> {
            Ok(fields.read(name, |at| at.duration(range))?.unwrap_or(default))
        };
        Ok(Self {
            probe: Probe::read(at, &fields)?,
            interval: time("interval", INTERVAL, Duration::from_secs(10))?,
            timeout: time("timeout", TIMEOUT, Duration::from_secs(2))?,
            jitter_percent: fields.read("jitterPercent", |at| at.integer(0..=100))?.map_or(10, |n| n as u8),
            healthy_threshold: count("healthyThreshold", 2)?,
            unhealthy_threshold: count("unhealthyThreshold", 3)?,
            startup_grace: time("startupGrace", GRACE, Duration::from_secs(30))?,
        })
    }

    /// The port that it names itself.
    pub fn port(&self) -> Option<u16> {
        match &self.probe {
            Probe::Http(probe) => probe.port,
            Probe::Grpc(probe) => probe.port,
            Probe::Tcp(probe) => probe.port,
            Probe::Command(_) => None,
        }
    }

    /// Does it connect to where the service's port is served, so that this must be one of TCP?
    pub fn dials_target(&self) -> bool {
        self.port().is_none() && !matches!(self.probe, Probe::Command(_))
    }
}

impl Probe {
    fn read(at: &At<'_>, fields: &Fields<'_>) -> Result<Self, ApiError> {
        let found = [
            fields.read("http", |at| HttpProbe::read(&at).map(Self::Http))?,
            fields.read("grpc", |at| GrpcProbe::read(&at).map(Self::Grpc))?,
            fields.read("tcp", |at| TcpProbe::read(&at).map(Self::Tcp))?,
            fields.read("command", |at| CommandRef::read(&at).map(Self::Command))?,
        ];
        let mut found = found.into_iter().flatten();
        match (found.next(), found.next()) {
            (Some(probe), None) => Ok(probe),
            _ => Err(at.refuse(Reason::Conflict, "one of http, grpc, tcp, command")),
        }
    }
}

impl HttpProbe {
    fn read(at: &At<'_>) -> Result<Self, ApiError> {
        let fields = at.object(&["path", "port", "headers", "expectedStatuses"], &["scheme", "host"])?;
        let accepted = "a path of printable ASCII that begins with / and has no blank, up to 1024 bytes";
        let path = fields.read("path", |at| {
            at.parsed(accepted, |text| {
                let fits = text.starts_with('/') && text.len() <= TEXT;
                (fits && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#'))
                    .then(|| text.to_owned())
            })
        })?;
        let statuses = match fields.get("expectedStatuses") {
            Some(at) => at.list(1..=STATUSES)?.iter().map(Statuses::read).collect::<Result<_, _>>()?,
            None => vec![Statuses { from: 200, to: 399 }],
        };
        Ok(Self {
            path: path.unwrap_or_else(|| "/health".to_owned()),
            port: fields.read("port", |at| at.port())?,
            headers: fields.each("headers", 0..=HEADERS, |at| header(&at))?,
            expected_statuses: statuses,
        })
    }
}

fn header(at: &At<'_>) -> Result<Header, ApiError> {
    let fields = at.object(&["name", "value"], &[])?;
    let name = fields.need("name", "a header's name")?.header_name()?;
    let own = ["connection", "content-length", "transfer-encoding", "upgrade"];
    if own.iter().any(|taken| name.eq_ignore_ascii_case(taken)) {
        return Err(at.refuse(Reason::Conflict, "a header that does not frame the request"));
    }
    let accepted = "printable ASCII, up to 1024 bytes";
    let value = fields.need("value", accepted)?.parsed(accepted, |text| {
        let fits = text.len() <= TEXT && text.bytes().all(|b| b.is_ascii_graphic() || b == b' ');
        fits.then(|| text.to_owned())
    })?;
    Ok(Header { name, value })
}

impl Statuses {
    fn read(at: &At<'_>) -> Result<Self, ApiError> {
        let accepted = "a status in 100..=599, or a range of them as \"200-299\"";
        if let Ok(status) = at.integer(100..=599) {
            return Ok(Self { from: status as u16, to: status as u16 });
        }
        if at.is_number() {
            return Err(at.refuse(Reason::OutOfRange, accepted));
        }
        at.parsed(accepted, |text| {
            let (from, to) = text.split_once('-')?;
            let of = |text: &str| (text.len() == 3).then(|| text.parse::<u16>().ok()).flatten();
            let (from, to) = (of(from)?, of(to)?);
            (100 <= from && from <= to && to <= 599).then_some(Self { from, to })
        })
    }
}

impl GrpcProbe {
    fn read(at: &At<'_>) -> Result<Self, ApiError> {
        let fields = at.object(&["service", "port"], &[])?;
        let accepted = "the name of a gRPC service, as shop.Cart";
        let service = fields.read("service", |at| {
            at.parsed(accepted, |text| {
                let fits = text.len() <= 256 && text.bytes().all(|b| b.is_ascii_graphic());
                fits.then(|| text.to_owned())
            })
        })?;
        Ok(Self { service: service.unwrap_or_default(), port: fields.read("port", |at| at.port())? })
    }
}

impl TcpProbe {
    fn read(at: &At<'_>) -> Result<Self, ApiError> {
        let fields = at.object(&["port"], &["send", "receive"])?;
        Ok(Self { port: fields.read("port", |at| at.port())? })
    }
}

impl CommandRef {
    fn read(at: &At<'_>) -> Result<Self, ApiError> {
        let fields = at.object(&["ref"], &[])?;
        Ok(Self { name: reference(&fields)? })
    }
}

/// The name of a command that nodes have.
fn reference(fields: &Fields<'_>) -> Result<String, ApiError> {
    fields
        .need("ref", "the name of a command in the nodes' own files (mesh-agent --commands)")?
        .checked(&LABEL)
}

impl Recovery {
    pub(super) fn read(at: &At<'_>) -> Result<Self, ApiError> {
        let fields = at.object(&["steps", "readmit"], &[])?;
        let readmit = fields.read("readmit", |at| {
            let fields = at.object(&["afterPasses"], &[])?;
            let passes = fields.need("afterPasses", "1..=1000")?.integer(IN_A_ROW)?;
            Ok(Readmit { after_passes: passes as u32 })
        })?;
        Ok(Self { steps: fields.each("steps", 0..=STEPS, |at| Step::read(&at))?, readmit })
    }
}

impl Step {
    fn read(at: &At<'_>) -> Result<Self, ApiError> {
        let fields =
            at.object(&["after", "drain", "eject", "webhook", "restart"], &["command", "readmit"])?;
        let nothing = |at: At<'_>, action| at.object(&[], &[]).map(|_| action);
        let found = [
            fields.read("drain", |at| nothing(at, Action::Drain {}))?,
            fields.read("eject", |at| nothing(at, Action::Eject {}))?,
            fields.read("webhook", |at| Webhook::read(&at).map(Action::Webhook))?,
            fields.read("restart", |at| Restart::read(&at).map(Action::Restart))?,
        ];
        let mut found = found.into_iter().flatten();
        let (Some(action), None) = (found.next(), found.next()) else {
            return Err(at.refuse(Reason::Conflict, "one of drain, eject, webhook, restart"));
        };
        let after = fields.read("after", |at| at.integer(IN_A_ROW))?.unwrap_or(1);
        Ok(Self { after: after as u32, action })
    }
}

impl Webhook {
    fn read(at: &At<'_>) -> Result<Self, ApiError> {
        let fields = at.object(&["url"], &["headers", "secret"])?;
        let accepted =
            "a URL that begins with https:// (http:// for loopback of the control plane), up to 1024 bytes";
        let url = fields.need("url", accepted)?.parsed(accepted, |text| {
            let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"))?;
            let host = !rest.is_empty() && !rest.starts_with(['/', ':', '?']);
            let fits = text.len() <= TEXT && text.bytes().all(|byte| byte.is_ascii_graphic());
            (host && fits && !rest.contains('@')).then(|| text.to_owned())
        })?;
        Ok(Self { url })
    }
}

impl Restart {
    fn read(at: &At<'_>) -> Result<Self, ApiError> {
        let fields = at.object(&["ref", "atMost"], &[])?;
        let at_most = fields.read("atMost", |at| at.integer(1..=100))?.unwrap_or(3);
        Ok(Self { name: reference(&fields)?, at_most: at_most as u32 })
    }
}
