//! What one changed endpoint costs in a mesh of 1 000 services with ten endpoints each:
//! `cargo run --release -p mesh-core --example one_change`.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use mesh_api::proto::v1::{self, Protocol};
use mesh_core::compile::Compiler;
use mesh_core::ids::{IdLimits, IdTable};
use mesh_core::model::{Batch, Resource};
use mesh_core::plan::{Capacities, View, plan};
use mesh_core::snapshot::Revision;

const SERVICES: u32 = 1000;
const ENDPOINTS: u32 = 10;
const ROUNDS: u32 = 10_000;

fn service(i: u32) -> Resource {
    let protocol = if i.is_multiple_of(2) { Protocol::Http } else { Protocol::Tcp };
    Resource::from(v1::Service {
        namespace: "shop".into(),
        name: format!("service-{i}"),
        vips: vec![format!("240.240.{}.{}", i / 250, i % 250 + 1), format!("fd00:6e6d::{i:x}")],
        ports: vec![v1::ServicePort { port: 80, protocol: protocol.into(), ..Default::default() }],
        ..Default::default()
    })
}

fn workload(i: u32, weight: u32) -> Resource {
    let (service, host) = (i / ENDPOINTS, i % 62_500);
    Resource::from(v1::Workload {
        namespace: "shop".into(),
        name: format!("workload-{i}"),
        service_account: format!("account-{service}"),
        node: format!("node-{}", i % 50),
        addresses: vec![format!("10.0.{}.{}", host / 250, host % 250 + 1), format!("fd00:b::{i:x}")],
        services: vec![v1::WorkloadService {
            namespace: "shop".into(),
            service: format!("service-{service}"),
            service_port: 80,
            target_port: 8080,
            weight,
            ..Default::default()
        }],
        ..Default::default()
    })
}

// It measures: the ban on clocks is for what it measures.
#[allow(clippy::disallowed_methods)]
fn main() {
    let mut compiler = Compiler::new("node-1", IdTable::default(), IdLimits::default());
    let mut view = View::new(Capacities::default());
    let locals = HashMap::new();
    let mut all: Vec<Resource> = (0..SERVICES).map(service).collect();
    all.extend((0..SERVICES * ENDPOINTS).map(|i| workload(i, 1)));

    let start = Instant::now();
    let mut now = Duration::ZERO;
    let out = compiler.apply(Batch { upserts: all, removes: vec![] }, Revision::default());
    let compiled = start.elapsed();
    let start = Instant::now();
    let ops = plan(&mut view, &out.snapshot, &out.dirty, &locals, true, now).ops.len();
    println!("all: compiled in {compiled:?}, planned in {:?}, {ops} operations", start.elapsed());

    let (mut compiling, mut planning, mut worst, mut ops) =
        (Duration::ZERO, Duration::ZERO, Duration::ZERO, 0);
    for round in 0..ROUNDS {
        now += Duration::from_millis(10);
        let i = round.wrapping_mul(7919) % (SERVICES * ENDPOINTS);
        let batch = Batch { upserts: vec![workload(i, 2 + round / (SERVICES * ENDPOINTS))], removes: vec![] };
        let revision = Revision { store: "store".into(), number: u64::from(round) };
        let start = Instant::now();
        let out = compiler.apply(batch, revision);
        let compiled = start.elapsed();
        let start = Instant::now();
        let plan = plan(&mut view, &out.snapshot, &out.dirty, &locals, true, now);
        let planned = start.elapsed();
        compiling += compiled;
        planning += planned;
        worst = worst.max(compiled + planned);
        ops += plan.ops.len();
    }
    println!(
        "one endpoint: compiled in {:?}, planned in {:?}, worst {worst:?}, {:.1} operations",
        compiling / ROUNDS,
        planning / ROUNDS,
        ops as f64 / f64::from(ROUNDS)
    );
}
