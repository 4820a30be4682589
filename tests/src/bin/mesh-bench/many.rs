//! Does it matter how many there are? connect() with ten thousand services against ten, and a hundred thousand
//! endpoints of one service on their way into the maps.
//!
//! The maps are filled in this process, by the agent's own compiler, planner and kernel module, on a cgroup
//! and bpffs that nobody else uses.

use std::{
    collections::HashMap,
    fmt::Write as _,
    fs,
    ops::Range,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use mesh_agent::kernel::{FlowTelemetry, Kernel, LoadOptions, cleanup};
use mesh_api::proto::v1::{self, Protocol};
use mesh_common::{maps, verdict::Verdict};
use mesh_core::{
    compile::Compiler,
    ids::{IdLimits, IdTable},
    model::{Batch, Resource},
    plan::{Capacities, MapOp, View, plan},
    snapshot::Revision,
};
use mesh_tests::{
    Mesh, Pod,
    load::Load,
    programs::{Nginx, nginx},
    resources::{Service, at, vip4},
    within,
};

use crate::{
    Options,
    l4::connect_median,
    report::{Case, Goal, Proof, Report},
    stats::{abba, percentile},
};

const FEW: usize = 10;
const MANY: usize = 10_000;
const WRITERS: usize = 4;
/// meshctl takes a thousand documents a file.
const SERVICES_A_FILE: usize = 900;
const CONNECT_ROUNDS: usize = 5;
const ENDPOINTS: u32 = 100_000;
const FILLS: usize = 5;

/// The cases that were asked for.
pub fn run(options: &Options, report: &mut Report) -> Result<()> {
    if options.wants("many", "10000 services", "connect") {
        connects(options, report)?;
    }
    if options.wants("many", "100000 endpoints", "maps") { endpoints(report) } else { Ok(()) }
}

/// A mesh with one service that answers and so many that do not.
struct Ground {
    mesh: Mesh,
    client: Pod,
    _server: (Pod, Nginx),
}

impl Ground {
    fn new(services: usize) -> Result<Self> {
        let sizes = ["--map-services", "32768", "--map-workloads", "65536"];
        let mesh = Mesh::builder().volatile_store().agent_args(&sizes).up();
        mesh.apply(&Service::vip("near", 1).tcp("tcp", 80).yaml());
        fill(&mesh, services - 1)?;
        let mut pod = mesh.pod(1, "near-a").serves("near", "tcp", 8080).outside().up();
        let server = nginx(&pod, &[8080]);
        pod.enrol();
        let client = mesh.pod(1, "client").up();
        within(Duration::from_mins(3), "the agent knows every service", || {
            mesh.node(1).metrics().count("mesh_services", &[]) == services as u64
        });
        within(Duration::from_secs(20), "the service answers", || {
            Load::to(at(vip4(1), 80)).count(20).run(&client).failed() == 0
        });
        Ok(Self { mesh, client, _server: (pod, server) })
    }
}

fn fill(mesh: &Mesh, services: usize) -> Result<()> {
    let each = services.div_ceil(WRITERS);
    thread::scope(|scope| {
        let part = |writer: usize| writer * each..services.min((writer + 1) * each);
        let writers: Vec<_> =
            (0..WRITERS).map(|writer| scope.spawn(move || fill_some(mesh, part(writer)))).collect();
        writers
            .into_iter()
            .try_for_each(|writer| writer.join().map_err(|_| anyhow::anyhow!("a writer panicked"))?)
    })
}

fn fill_some(mesh: &Mesh, services: Range<usize>) -> Result<()> {
    let services: Vec<_> = services.collect();
    services.chunks(SERVICES_A_FILE).try_for_each(|services| {
        let mut yaml = String::new();
        for service in services {
            writeln!(
                yaml,
                "---\napiVersion: nodemesh.io/v1\nkind: Service\nmetadata: {{name: s{service}, namespace: default}}\n\
                 spec:\n  ports: [{{name: tcp, port: 80, protocol: tcp}}]"
            )?;
        }
        let path = mesh.place().work.join(format!("fill-{:?}.yaml", thread::current().id()));
        fs::write(&path, yaml)?;
        mesh.try_meshctl(&["apply", "-f", &path.to_string_lossy()], "")?;
        Ok(())
    })
}

fn connects(options: &Options, report: &mut Report) -> Result<()> {
    let (few, many) = (Ground::new(FEW)?, Ground::new(MANY)?);
    let balanced = |ground: &Ground| ground.mesh.node(1).verdict(Verdict::Balanced);
    let before = balanced(&many);
    let pairs = abba(options.rounds * CONNECT_ROUNDS, |ours| {
        connect_median(if ours { &many.client } else { &few.client }, at(vip4(1), 80))
    })?;
    let proof = Proof::from([
        ("services".to_owned(), many.mesh.node(1).metrics().count("mesh_services", &[])),
        ("balanced".to_owned(), balanced(&many) - before),
    ]);
    let (place, goal) = ("10000 services", Goal::RatioAtMost(1.1));
    report.pairs(&Case { place, metric: "connect", unit: "ns", goal, proof: &proof }, "10-services", &pairs);
    Ok(())
}

/// Room in the kernel for one case, given back at its end.
struct Place {
    cgroup: PathBuf,
    bpffs: PathBuf,
}

impl Place {
    fn new() -> Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        let root = mounts
            .lines()
            .find(|line| line.split(' ').nth(2) == Some("cgroup2"))
            .and_then(|line| line.split(' ').nth(1))
            .context("cgroup2 is not mounted")?;
        let name = format!("nm-{}-many", std::process::id());
        let place = Self {
            cgroup: PathBuf::from(root).join(&name),
            bpffs: std::env::temp_dir().join(&name).join("nodemesh"),
        };
        fs::create_dir(&place.cgroup)?;
        Ok(place)
    }

    fn kernel(&self) -> Result<Kernel> {
        let (endpoints, workloads) = (ENDPOINTS + 1000, ENDPOINTS * 2 + 1000);
        let sizes = vec![
            (maps::ENDPOINTS.name, endpoints),
            (maps::LOAD.name, endpoints),
            (maps::WORKLOADS.name, workloads),
        ];
        let (bpffs, cgroup) = (self.bpffs.clone(), self.cgroup.clone());
        let (telemetry, udp_idle) = (FlowTelemetry::default(), Duration::from_mins(1));
        Ok(Kernel::load(&LoadOptions { bpffs, cgroup, sizes, telemetry, udp_idle })?)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = cleanup(&self.bpffs);
        if let Some(parent) = self.bpffs.parent() {
            let _ = fs::remove_dir_all(parent);
        }
        let _ = fs::remove_dir(&self.cgroup);
    }
}

fn world() -> Vec<Resource> {
    let service = v1::Service {
        namespace: "shop".into(),
        name: "big".into(),
        vips: vec!["240.240.0.1".into()],
        ports: vec![v1::ServicePort { port: 80, protocol: Protocol::Tcp.into(), ..Default::default() }],
        ..Default::default()
    };
    let workload = |i: u32| v1::Workload {
        namespace: "shop".into(),
        name: format!("w{i}"),
        service_account: "big".into(),
        node: format!("n{}", i % 1000),
        addresses: vec![std::net::Ipv4Addr::from(0x0a00_0001 + i).to_string()],
        services: vec![v1::WorkloadService {
            namespace: "shop".into(),
            service: "big".into(),
            service_port: 80,
            target_port: 8080,
            weight: 1 + i % 3,
            ..Default::default()
        }],
        ..Default::default()
    };
    std::iter::once(service.into()).chain((0..ENDPOINTS).map(|i| workload(i).into())).collect()
}

/// From a compiled snapshot: the slots of the table. From nothing: decoded resources to the last map.
fn endpoints(report: &mut Report) -> Result<()> {
    let (mut slots_ms, mut all_ms, mut held) = (Vec::new(), Vec::new(), 0);
    for _ in 0..FILLS {
        let place = Place::new()?;
        let kernel = place.kernel()?;
        let capacities = Capacities {
            endpoints: kernel.capacity(maps::ENDPOINTS),
            workloads: kernel.capacity(maps::WORKLOADS),
            ..Capacities::default()
        };
        let limits = IdLimits { endpoints: ENDPOINTS + 1, workloads: ENDPOINTS + 1, ..IdLimits::default() };
        let (upserts, removes) = (world(), Vec::new());
        let begin = Instant::now();
        let mut compiler = Compiler::new("n0", IdTable::default(), limits);
        let out = compiler.apply(Batch { upserts, removes }, Revision::default());
        let compiled = begin.elapsed();
        let locals = HashMap::new();
        let mut view = View::new(capacities);
        let ops = plan(&mut view, &out.snapshot, &out.dirty, &locals, true, Duration::ZERO).ops;
        let planned = begin.elapsed();
        kernel.apply(&ops)?;
        let written = begin.elapsed();
        all_ms.push(written.as_secs_f64() * 1e3);
        println!(
            "    compiled in {compiled:.0?}, planned in {:.0?}, written in {:.0?}",
            planned.saturating_sub(compiled),
            written.saturating_sub(planned)
        );

        let slots: Vec<MapOp> = ops.into_iter().filter(|op| matches!(op, MapOp::PutSlots { .. })).collect();
        let begin = Instant::now();
        kernel.apply(&slots)?;
        slots_ms.push(begin.elapsed().as_secs_f64() * 1e3);
        held = view.workloads_len() as u64;
    }
    let proof =
        Proof::from([("endpoints".to_owned(), u64::from(ENDPOINTS)), ("workload_entries".to_owned(), held)]);
    let place = "100000 endpoints";
    for (metric, series, most) in [("table to map", slots_ms, 5.0), ("all from nothing", all_ms, 1000.0)] {
        let value = percentile(&series, 50.0);
        let case = Case { place, metric, unit: "ms", goal: Goal::AtMost(most), proof: &proof };
        report.alone(&case, &series, value);
    }
    Ok(())
}
