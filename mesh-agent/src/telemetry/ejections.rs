//! Endpoints that are left out because connections to them failed: as series, and as conditions.
//!
//! The programs eject and let back on their own; here it is only told. And their count of ejected endpoints a
//! service is set right where an endpoint went while it was ejected.

use std::sync::Arc;
use std::time::Duration;

use mesh_api::proto::v1::Ejection;
use mesh_common::pick;
use mesh_core::snapshot::{Service, Snapshot};
use prometheus::proto::MetricFamily;

use super::family::Family;
use super::metrics as m;
use super::names;
use crate::config::Handle as Config;
use crate::config::conditions::Lines;
use crate::kernel::Kernel;
use crate::sys::monotonic_ns;

/// Between two looks.
const EVERY: Duration = Duration::from_millis(500);
/// Most that are told to the control plane.
const TOLD: usize = 512;
/// Group of the conditions.
const GROUP: &str = "ejections";

/// What is known of one service.
struct Ejected {
    /// Ids of workloads, and nanoseconds until each is let back.
    workloads: Vec<(u32, u64)>,
    /// Endpoints whose word is not zero: those whose time is over and that nobody has chosen since, too.
    marked: u64,
}

fn ejected(kernel: &Kernel, service: &Service, now: u64) -> Ejected {
    let mut found = Ejected { workloads: Vec::new(), marked: 0 };
    for endpoint in service.endpoints.iter() {
        let until = kernel.load_of(endpoint.id).ejected_until;
        found.marked += u64::from(until != 0);
        if until > now {
            found.workloads.push((endpoint.workload, until - now));
        }
    }
    found
}

fn watched(snapshot: &Snapshot) -> impl Iterator<Item = &Arc<Service>> {
    snapshot.services.values().filter(|service| service.traffic.ejection.is_some())
}

/// The families.
pub fn families(kernel: &Kernel, snapshot: &Snapshot) -> [MetricFamily; 3] {
    let (mut ejections, mut now_out, mut panic) =
        (Family::new(&m::EJECTIONS), Family::new(&m::EJECTED), Family::new(&m::LB_PANIC));
    let now = monotonic_ns();
    for service in watched(snapshot) {
        let name = names::service_name(service);
        let total = kernel.service_load_of(service.id);
        let out = ejected(kernel, service, now).workloads.len();
        ejections.add(&[&name], total.ejections as f64);
        now_out.add(&[&name], out as f64);
        panic.add(&[&name], if pick::panic(total.ejected, service.serving as u32) { 1.0 } else { 0.0 });
    }
    [ejections.finish(), now_out.finish(), panic.finish()]
}

/// Says who is left out, for as long as the agent runs.
pub async fn watch(kernel: Arc<Kernel>, config: Config) {
    let mut timer = tokio::time::interval(EVERY);
    timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        timer.tick().await;
        let snapshot = config.snapshot();
        let (now, mut lines, mut told) = (monotonic_ns(), Lines::new(), Vec::new());
        for service in watched(&snapshot) {
            let counted = kernel.service_load_of(service.id).ejected;
            let Ejected { workloads, marked } = ejected(&kernel, service, now);
            // Both were read while connections fail and heal: what was only under way is right at the next
            // look, and a count that has moved since is left alone.
            if counted != marked && kernel.service_load_of(service.id).ejected == counted {
                kernel.correct_ejected(service.id, counted, marked);
            }
            if !workloads.is_empty() {
                let names: Vec<String> =
                    workloads.iter().map(|(id, _)| config.names().workload(&snapshot, *id)).collect();
                let ejection = |workload: &String| Ejection {
                    service: format!("{}/{}", service.namespace, service.name),
                    port: service.port.into(),
                    workload: workload.clone(),
                };
                told.extend(names.iter().take(TOLD.saturating_sub(told.len())).map(ejection));
                lines.insert(
                    format!("service {}", names::service_name(service)),
                    format!(
                        "connections or requests to {} of {} endpoints failed, they are left out for a while: {}",
                        workloads.len(),
                        service.serving,
                        names.join(", ")
                    ),
                );
            }
        }
        // Before the lines: their change has both told.
        config.set_ejections(told);
        config.conditions().replace(GROUP, lines);
    }
}
