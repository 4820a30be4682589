//! What is counted, for Prometheus: read from the kernel, the proxy and the configuration when somebody asks.
//!
//! { kernel totals, ring, proxy stats, config } ──▶ **telemetry** ──▶ `/metrics`
//!
//! Nothing is counted twice: totals live in the kernel's maps and in the workers; this module names them.
//! Every metric is described in [`metrics`] and nowhere else.
//!
//! Invariant: no family is unbounded; what does not fit has an overflow series. Not here: access logs,
//! traces.

mod ejections;
pub mod ended;
mod family;
pub mod flows;
mod health;
mod http;
mod identities;
pub mod metrics;
pub mod names;
pub mod open;
mod requests;
mod resilience;
mod table;

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Registry, TextEncoder};

use crate::authorise;
use crate::config::Handle as Config;
use crate::config::xds::XdsStats;
use crate::external::ExternalStats;
use crate::identity::Identities;
use crate::kernel::{Fill, Kernel};
use crate::path::Proxy;
use ended::Ended;
use family::Family;
use flows::{Counted, Shown};
pub use http::Readiness;
use metrics as m;
use open::Open;

/// How old the fill of the maps may be: some of them are walked.
const FILL: Duration = Duration::from_secs(10);

/// Where the numbers come from.
#[derive(Clone)]
pub struct Sources {
    /// Totals, verdicts, load.
    pub kernel: Arc<Kernel>,
    /// Flows that have ended.
    pub ended: Arc<Ended>,
    /// Flows that have not.
    pub open: Arc<Open>,
    /// Requests.
    pub proxy: Proxy,
    /// Snapshot and conditions.
    pub config: Config,
    /// Acknowledgements.
    pub xds: Arc<XdsStats>,
    /// Connections that a change of policy has ended.
    pub revoked: Arc<authorise::Ended>,
    /// Certificates of this node.
    pub identities: Identities,
    /// Look-ups of host names.
    pub external: Arc<ExternalStats>,
    /// Health checks.
    pub checks: Arc<crate::health::Stats>,
}

/// Registers everything, reads the ring of ended flows, and serves HTTP on the listener: to be called when
/// the agent serves workloads.
pub fn start(sources: Sources, listener: std::net::TcpListener) -> Result<Readiness, TelemetryError> {
    let readiness = Readiness::new(sources.config.clone());
    tokio::spawn(ejections::watch(sources.kernel.clone(), sources.config.clone()));
    let telemetry = Telemetry::new(sources)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    tokio::spawn(http::serve(listener, telemetry, readiness.clone()));
    Ok(readiness)
}

/// The agent's metrics. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Telemetry {
    sources: Sources,
    registry: Registry,
}

/// Metrics that cannot be set up or shown.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// A metric cannot be described or encoded.
    #[error("metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    /// The listener cannot be used.
    #[error("the listener of /metrics: {0}")]
    Listener(#[from] std::io::Error),
}

impl Telemetry {
    fn new(sources: Sources) -> Result<Self, TelemetryError> {
        tokio::spawn(ended::follow(sources.kernel.clone(), sources.ended.clone()));
        let described = |metric: &m::Metric| {
            let labels = metric.labels.iter().map(|l| (*l).to_owned()).collect();
            Desc::new(metric.name.into(), metric.help.into(), labels, std::collections::HashMap::new())
        };
        let descriptions = m::ALL.iter().map(described).collect::<Result<Vec<_>, _>>()?;
        let registry = Registry::new();
        let epoch = Mutex::new((0, Instant::now()));
        let (shown, fill) = (Mutex::default(), Mutex::default());
        let collector = Mesh { sources: sources.clone(), descriptions, epoch, shown, fill };
        registry.register(Box::new(collector))?;
        Ok(Self { sources, registry })
    }

    /// The text of `/metrics`. Reads whole maps: not for a runtime's thread.
    pub fn scrape(&self, endpoints: bool) -> Result<String, TelemetryError> {
        let mut families = self.registry.gather();
        if endpoints {
            families.extend(self.endpoints());
        }
        Ok(TextEncoder::new().encode_to_string(&families)?)
    }

    /// A series an endpoint: only for who asks for it.
    fn endpoints(&self) -> [MetricFamily; 3] {
        let mut live = Family::new(&m::ENDPOINT_LIVE);
        let mut opened = Family::new(&m::ENDPOINT_OPENED);
        let mut failures = Family::new(&m::ENDPOINT_FAILURES);
        let snapshot = self.sources.config.snapshot();
        // Of UDP no load is known.
        let connects = |service: &&Arc<mesh_core::snapshot::Service>| !service.udp();
        let mut services: Vec<_> = snapshot.services.values().filter(connects).collect();
        services.sort_by_key(|service| service.id);
        for service in services {
            let destination = names::service_name(service);
            for endpoint in service.endpoints.iter() {
                let workload = self.sources.config.names().workload(&snapshot, endpoint.workload);
                let load = self.sources.kernel.load_of(endpoint.id);
                let labels = [destination.as_str(), workload.as_str()];
                live.add(&labels, load.live as f64);
                opened.add(&labels, load.opened as f64);
                failures.add(&labels, load.failures as f64);
            }
        }
        [live.finish(), opened.finish(), failures.finish()]
    }
}

/// Everything, collected when asked.
struct Mesh {
    sources: Sources,
    descriptions: Vec<Desc>,
    /// The epoch last seen, and since when.
    epoch: Mutex<(u64, Instant)>,
    /// Bytes that the flow series have shown.
    shown: Mutex<Shown>,
    /// How full the maps were, and when.
    fill: Mutex<Option<(Instant, Vec<Fill>)>>,
}

impl Collector for Mesh {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let Sources { kernel, proxy, config, open, ended, .. } = &self.sources;
        let snapshot = config.snapshot();
        let names = config.names();
        // Held from the reading on: a scrape that began earlier must not show its numbers later.
        let mut shown = self.shown.lock();
        let mut families = match open.with_totals() {
            Ok((totals, open)) => {
                let by_endpoint = kernel.flow_telemetry().by_endpoint;
                let counted = Counted { totals: &totals, open: &open, by_endpoint };
                flows::totals(&counted, &mut shown, names, &snapshot)
            }
            Err(error) => {
                tracing::warn!(%error, "flow totals cannot be read");
                Vec::new()
            }
        };
        if let Ok(counts) = kernel.verdicts() {
            families.extend(flows::verdicts(&counts));
        }
        drop(shown);
        families.extend(ended.families(names, &snapshot));
        families.extend(ejections::families(kernel, &snapshot));
        families.extend(resilience::families(&proxy.resilience(), &snapshot));
        families.extend(self.fill());
        families.extend(requests::families(&proxy.stats(), names, &snapshot));
        families.extend(self.state());
        families.extend(identities::families(&self.sources.identities));
        families.extend(external(&self.sources.external));
        families.extend(health::families(&self.sources.checks));
        families
    }
}

impl Mesh {
    fn fill(&self) -> [MetricFamily; 2] {
        let (mut entries, mut capacity) = (Family::new(&m::MAP_ENTRIES), Family::new(&m::MAP_CAPACITY));
        let mut last = self.fill.lock();
        let fresh = last.as_ref().is_some_and(|(at, _)| at.elapsed() < FILL);
        if !fresh {
            *last = Some((Instant::now(), self.sources.kernel.fill()));
        }
        for Fill { map, entries: held, capacity: room } in last.iter().flat_map(|(_, fill)| fill) {
            if let Some(held) = held {
                entries.add(&[map], *held as f64);
                capacity.add(&[map], *room as f64);
            }
        }
        [entries.finish(), capacity.finish()]
    }

    fn state(&self) -> Vec<MetricFamily> {
        let Sources { config, xds, .. } = &self.sources;
        let snapshot = config.snapshot();
        let age = {
            let mut seen = self.epoch.lock();
            if seen.0 != snapshot.epoch {
                *seen = (snapshot.epoch, config.since());
            }
            seen.1.elapsed()
        };
        let values = [
            (&m::SNAPSHOT_EPOCH, snapshot.epoch as f64),
            (&m::SNAPSHOT_AGE, age.as_secs_f64()),
            (&m::CONFIG_ACKS, xds.acks.load(Relaxed) as f64),
            (&m::CONFIG_NACKS, xds.nacks.load(Relaxed) as f64),
            (&m::CONTROL_CONNECTED, if xds.connected.load(Relaxed) { 1.0 } else { 0.0 }),
            (&m::WORKLOADS, config.enrolled() as f64),
            (&m::SERVICES, snapshot.services.len() as f64),
            (&m::POLICY_ENDED, self.sources.revoked.policy.load(Relaxed) as f64),
            (&m::PLAINTEXT_ENDED, self.sources.revoked.plaintext.load(Relaxed) as f64),
            (&m::CONDITIONS, config.conditions().count() as f64),
        ];
        values.into_iter().map(|(metric, value)| Family::single(metric, value)).collect()
    }
}

/// Look-ups of host names outside of the mesh.
fn external(stats: &ExternalStats) -> [MetricFamily; 2] {
    let mut lookups = Family::new(&m::EXTERNAL_LOOKUPS);
    lookups.add(&["ok"], stats.ok.load(Relaxed) as f64);
    lookups.add(&["failed"], stats.failed.load(Relaxed) as f64);
    [lookups.finish(), Family::single(&m::EXTERNAL_FAILING, stats.failing.load(Relaxed) as f64)]
}
