//! What the control plane counts of itself, as Prometheus text.
//!
//! A handful of atomics without label sets from outside, so that nothing grows with what is asked.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use mesh_api::proto::v1::SigningRefusal;

/// Upper bounds of the commit histogram, in microseconds.
const COMMIT_BOUNDS_US: [u64; 10] =
    [250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 100_000, 500_000, 2_500_000];

/// All counters.
#[derive(Default)]
pub struct Metrics {
    /// REST answers below 400.
    pub requests_ok: Counter,
    /// REST answers 400..=499.
    pub requests_refused: Counter,
    /// REST answers from 500 on.
    pub requests_failed: Counter,
    /// Committed writes.
    pub writes: Counter,
    /// xDS responses sent.
    pub pushes: Counter,
    /// Resources in them, removals included.
    pub pushed_resources: Counter,
    /// Responses that agents took.
    pub acks: Counter,
    /// Responses that agents refused.
    pub nacks: Counter,
    /// Responses sent to Envoys and clients of gRPC.
    pub envoy_pushes: Counter,
    /// Resources in them, removals included.
    pub envoy_pushed_resources: Counter,
    /// Responses that they took.
    pub envoy_acks: Counter,
    /// Responses that they refused.
    pub envoy_nacks: Counter,
    /// Workloads that agents asked for in vain.
    pub registrations_refused: Counter,
    /// Reports of agents on the health of workloads.
    pub health_reports: Counter,
    /// Nodes that may not join.
    pub joins_refused: Counter,
    /// Certificates handed out.
    pub certificates_issued: Counter,
    /// Certificates that were asked for in vain.
    pub certificates_refused: Refusals,
    /// Looks for the keys of providers of tokens that failed.
    pub jwks_failures: Counter,
    /// Entries of history that were forgotten for the bound of all of it.
    pub history_dropped: Counter,
    /// Requests with a token that is none.
    pub logins_refused: Counter,
    /// Requests that were not looked at because their address failed too often.
    pub logins_limited: Counter,
    /// Watches and long polls that were refused for their number.
    pub watches_refused: Counter,
    /// Lines that could not be written to the audit log.
    pub audit_lost: Counter,
    /// Time from write to durable, fsync included.
    pub commit: Histogram,
}

/// Only goes up.
#[derive(Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// One more.
    pub fn inc(&self) {
        self.add(1);
    }

    /// `n` more.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    /// How many.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Counts by reason.
#[derive(Default)]
pub struct Refusals([Counter; 6]);

impl Refusals {
    /// One more.
    pub fn inc(&self, why: SigningRefusal) {
        self.0[(why as usize).min(self.0.len() - 1)].inc();
    }

    fn write(&self, out: &mut String) {
        let name = "mesh_control_certificates_refused_total";
        let _ =
            writeln!(out, "# HELP {name} Certificates that nodes asked for in vain.\n# TYPE {name} counter");
        for (number, counter) in self.0.iter().enumerate().skip(1) {
            let why = SigningRefusal::try_from(number as i32).unwrap_or_default();
            let why = why.as_str_name().to_ascii_lowercase();
            let _ = writeln!(out, "{name}{{reason=\"{why}\"}} {}", counter.get());
        }
    }
}

/// Counts by duration.
#[derive(Default)]
pub struct Histogram {
    buckets: [Counter; COMMIT_BOUNDS_US.len() + 1],
    sum_us: Counter,
}

impl Histogram {
    /// Notes one duration.
    pub fn observe(&self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let place = COMMIT_BOUNDS_US.iter().position(|bound| us <= *bound).unwrap_or(COMMIT_BOUNDS_US.len());
        self.buckets[place].inc();
        self.sum_us.add(us);
    }

    fn write(&self, out: &mut String, name: &str, help: &str) {
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} histogram");
        let mut total = 0;
        for (bucket, bound) in self.buckets.iter().zip(COMMIT_BOUNDS_US) {
            total += bucket.get();
            let _ = writeln!(out, "{name}_bucket{{le=\"{}\"}} {total}", bound as f64 / 1e6);
        }
        total += self.buckets[COMMIT_BOUNDS_US.len()].get();
        let _ = writeln!(out, "{name}_bucket{{le=\"+Inf\"}} {total}");
        let _ = writeln!(out, "{name}_sum {}\n{name}_count {total}", self.sum_us.get() as f64 / 1e6);
    }
}

/// What is not counted but looked up when the page is asked for.
pub struct Gauges {
    /// Agents with a configuration stream.
    pub connected_nodes: usize,
    /// Envoys and clients of gRPC with a stream.
    pub connected_envoys: usize,
    /// Revision of what agents are sent.
    pub revision: u64,
    /// Seconds until a certificate of the authority ends, by what it is.
    pub authority_ends: Vec<(&'static str, u64)>,
    /// Certificates that are valid, and that are revoked.
    pub certificates: (usize, usize),
    /// Providers of tokens (16 at most): name, keys in force, seconds since they were seen to be good.
    pub jwks: Vec<(String, usize, Option<u64>)>,
    /// Services, workloads and so on, by kind.
    pub resources: Vec<(&'static str, usize)>,
    /// Quantiles of the store's recent commits: from the last change to durable.
    pub fsync: [(f64, Duration); 3],
    /// Sum of all commits.
    pub fsync_total: Duration,
    /// How many commits.
    pub commits: u64,
}

impl Metrics {
    /// The page.
    pub fn render(&self, gauges: &Gauges) -> String {
        let mut out = String::with_capacity(4096);
        let name = "mesh_control_requests_total";
        let _ = writeln!(out, "# HELP {name} REST requests by outcome.\n# TYPE {name} counter");
        for (outcome, counter) in [
            ("ok", &self.requests_ok),
            ("refused", &self.requests_refused),
            ("failed", &self.requests_failed),
        ] {
            let _ = writeln!(out, "{name}{{outcome=\"{outcome}\"}} {}", counter.get());
        }
        for (name, help, counter) in [
            ("mesh_control_writes_total", "Writes committed to the store.", &self.writes),
            ("mesh_control_xds_pushes_total", "Responses sent to agents.", &self.pushes),
            (
                "mesh_control_xds_resources_total",
                "Resources in them, removals included.",
                &self.pushed_resources,
            ),
            ("mesh_control_xds_acks_total", "Responses that agents took.", &self.acks),
            ("mesh_control_xds_nacks_total", "Responses that agents refused.", &self.nacks),
            (
                "mesh_control_envoy_pushes_total",
                "Responses sent to Envoys and clients of gRPC.",
                &self.envoy_pushes,
            ),
            (
                "mesh_control_envoy_resources_total",
                "Resources in them, removals included.",
                &self.envoy_pushed_resources,
            ),
            ("mesh_control_envoy_acks_total", "Responses that they took.", &self.envoy_acks),
            ("mesh_control_envoy_nacks_total", "Responses that they refused.", &self.envoy_nacks),
            (
                "mesh_control_registrations_refused_total",
                "Workloads that an agent may not or cannot register.",
                &self.registrations_refused,
            ),
            (
                "mesh_control_health_reports_total",
                "Reports of agents on the health of workloads.",
                &self.health_reports,
            ),
            (
                "mesh_control_joins_refused_total",
                "Nodes that came with a token and may not join.",
                &self.joins_refused,
            ),
            ("mesh_control_certificates_issued_total", "Certificates handed out.", &self.certificates_issued),
            (
                "mesh_control_history_dropped_total",
                "Entries of objects' history that were forgotten for the bound of all of it.",
                &self.history_dropped,
            ),
            (
                "mesh_control_logins_refused_total",
                "Requests with a token that is none.",
                &self.logins_refused,
            ),
            (
                "mesh_control_logins_limited_total",
                "Requests that were not looked at: their address failed too often.",
                &self.logins_limited,
            ),
            (
                "mesh_control_watches_refused_total",
                "Watches and long polls that were refused for their number.",
                &self.watches_refused,
            ),
            (
                "mesh_control_audit_lost_total",
                "Lines that could not be written to the audit log.",
                &self.audit_lost,
            ),
            (
                "mesh_control_jwks_failures_total",
                "Looks for the keys of a provider of tokens that failed.",
                &self.jwks_failures,
            ),
        ] {
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} counter\n{name} {}", counter.get());
        }
        self.certificates_refused.write(&mut out);
        for (name, help, value) in [
            (
                "mesh_control_nodes_connected",
                "Agents with a configuration stream.",
                gauges.connected_nodes as u64,
            ),
            (
                "mesh_control_envoys_connected",
                "Envoys and clients of gRPC with a stream.",
                gauges.connected_envoys as u64,
            ),
            ("mesh_control_revision", "Revision of the configuration.", gauges.revision),
            (
                "mesh_control_certificates_valid",
                "Certificates that were issued and have not ended.",
                gauges.certificates.0 as u64,
            ),
            ("mesh_control_certificates_revoked", "Of those, revoked.", gauges.certificates.1 as u64),
        ] {
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}");
        }
        let name = "mesh_control_authority_ends_seconds";
        let help = "Until the first root, and the intermediate, end.";
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} gauge");
        for (what, left) in &gauges.authority_ends {
            let _ = writeln!(out, "{name}{{certificate=\"{what}\"}} {left}");
        }
        let (keys, age) = ("mesh_control_jwks_keys", "mesh_control_jwks_age_seconds");
        let help = "Keys of a provider of tokens that are in force.";
        let _ = writeln!(out, "# HELP {keys} {help}\n# TYPE {keys} gauge");
        for (provider, count, _) in &gauges.jwks {
            let _ = writeln!(out, "{keys}{{provider=\"{provider}\"}} {count}");
        }
        let help = "Since they were seen to be good, by this process.";
        let _ = writeln!(out, "# HELP {age} {help}\n# TYPE {age} gauge");
        for (provider, seconds) in gauges.jwks.iter().filter_map(|(name, _, age)| Some((name, (*age)?))) {
            let _ = writeln!(out, "{age}{{provider=\"{provider}\"}} {seconds}");
        }
        let name = "mesh_control_resources";
        let _ = writeln!(out, "# HELP {name} Resources that agents are sent, by kind.\n# TYPE {name} gauge");
        for (kind, count) in &gauges.resources {
            let _ = writeln!(out, "{name}{{kind=\"{kind}\"}} {count}");
        }
        let name = "mesh_control_fsync_seconds";
        let _ = writeln!(
            out,
            "# HELP {name} Time that the store takes for a commit: its disk, or etcd.\n# TYPE {name} summary"
        );
        for (share, took) in gauges.fsync {
            let _ = writeln!(out, "{name}{{quantile=\"{share}\"}} {}", took.as_secs_f64());
        }
        let (sum, count) = (gauges.fsync_total.as_secs_f64(), gauges.commits);
        let _ = writeln!(out, "{name}_sum {sum}\n{name}_count {count}");
        let help = "Time that a write took, waiting and fsync included.";
        self.commit.write(&mut out, "mesh_control_commit_seconds", help);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_add_up() {
        let metrics = Metrics::default();
        for us in [1, 250, 251, 9_000_000] {
            metrics.commit.observe(Duration::from_micros(us));
        }
        let page = metrics.render(&Gauges {
            connected_nodes: 2,
            connected_envoys: 1,
            revision: 7,
            authority_ends: vec![("root", 5)],
            certificates: (2, 1),
            jwks: vec![("shop".to_owned(), 2, Some(9)), ("ops".to_owned(), 0, None)],
            resources: vec![("Service", 3)],
            fsync: [(0.5, Duration::ZERO), (0.9, Duration::ZERO), (0.99, Duration::from_millis(3))],
            fsync_total: Duration::ZERO,
            commits: 1,
        });
        for line in [
            "mesh_control_commit_seconds_bucket{le=\"0.00025\"} 2",
            "mesh_control_commit_seconds_bucket{le=\"0.0005\"} 3",
            "mesh_control_commit_seconds_bucket{le=\"+Inf\"} 4",
            "mesh_control_commit_seconds_count 4",
            "mesh_control_revision 7",
            "mesh_control_jwks_keys{provider=\"ops\"} 0",
            "mesh_control_jwks_age_seconds{provider=\"shop\"} 9",
            "mesh_control_fsync_seconds{quantile=\"0.99\"} 0.003",
            "mesh_control_resources{kind=\"Service\"} 3",
        ] {
            assert!(page.lines().any(|have| have == line), "{line} not in\n{page}");
        }
    }
}
