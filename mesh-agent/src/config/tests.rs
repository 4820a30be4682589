//! Updates through the task, with maps that only remember what was written.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use mesh_api::proto::v1;
use mesh_core::ids::IdKind;
use mesh_core::locality::Locality;
use mesh_core::plan::{Adopted, Capacities, LocalSlots, MapOp};
use mesh_core::snapshot::{Revision, Snapshot};
use parking_lot::Mutex;
use prost::Message;

use super::resource::{Key, Kind, Raw, Update};
use super::{Handle, Maps, Options, start};
use crate::kernel::{ApplyError, KernelError};

/// Remembers operations.
#[derive(Default)]
struct Fake {
    ops: Mutex<Vec<MapOp>>,
    broken: AtomicBool,
    ejected: Mutex<Vec<u32>>,
}

impl Maps for Fake {
    fn apply(&self, ops: &[MapOp]) -> Result<(), ApplyError> {
        if self.broken.load(Relaxed) && !ops.is_empty() {
            return Err(ApplyError {
                map: mesh_common::maps::SERVICES.name,
                full: true,
                source: "no room".into(),
            });
        }
        self.ops.lock().extend_from_slice(ops);
        Ok(())
    }
    fn held(&self) -> Result<Adopted, KernelError> {
        Ok(Adopted::default())
    }
    fn capacities(&self) -> Capacities {
        Capacities::default()
    }
    fn counters(&self) -> (u32, u32) {
        (1000, 1000)
    }
    fn epoch(&self) -> u64 {
        0
    }
    fn settle(&self, _: IdKind, _: u32) -> u64 {
        0
    }
    fn ejected(&self, _: u32, endpoints: &[u32]) -> Vec<u32> {
        let ejected = self.ejected.lock();
        endpoints.iter().copied().filter(|id| ejected.contains(id)).collect()
    }
    fn counted(&self) -> Vec<(IdKind, u32)> {
        Vec::new()
    }
}

impl Fake {
    fn services(&self) -> usize {
        self.ops.lock().iter().filter(|op| matches!(op, MapOp::PutService { .. })).count()
    }
    fn deleted(&self) -> usize {
        let deleted = |op: &&MapOp| matches!(op, MapOp::DelService { .. } | MapOp::DelWorkload { .. });
        self.ops.lock().iter().filter(deleted).count()
    }
}

struct Rig {
    maps: Arc<Fake>,
    config: Handle,
    state: PathBuf,
}

impl Rig {
    fn new(name: &str) -> Self {
        let state = std::env::temp_dir().join(format!("mesh-agent-config-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&state).unwrap();
        let _ = std::fs::remove_file(super::disk::path(&state));
        Self::at(state)
    }

    fn at(state: PathBuf) -> Self {
        let maps = Arc::new(Fake::default());
        let options = Options { node: "n1".into(), locality: Locality::default(), state_dir: state.clone() };
        let config = start(options, maps.clone(), Arc::new(ArcSwap::from_pointee(Snapshot::default())));
        Self { maps, config, state }
    }

    async fn apply(&self, number: u64, full: bool, changes: Vec<(Key, Option<Raw>)>) -> usize {
        let revision = Revision { store: "s".into(), number };
        let changes: BTreeMap<_, _> = changes.into_iter().collect();
        self.config.apply(Update { revision, full, changes }).await.unwrap().len()
    }

    fn endpoints(&self) -> usize {
        let snapshot = self.config.snapshot();
        snapshot.services.values().map(|s| s.serving().len()).sum()
    }
}

fn raw(message: &impl Message) -> Raw {
    Raw::new("v", &message.encode_to_vec())
}

fn service(name: &str, vip: &str) -> (Key, Option<Raw>) {
    let port = v1::ServicePort { name: "tcp".into(), port: 80, ..v1::ServicePort::default() };
    let service = v1::Service {
        namespace: "a".into(),
        name: name.into(),
        vips: vec![vip.into()],
        ports: vec![port],
        ..v1::Service::default()
    };
    ((Kind::Service, format!("a/{name}")), Some(raw(&service)))
}

fn workload(name: &str, address: &str, service: &str) -> (Key, Option<Raw>) {
    let member = v1::WorkloadService {
        namespace: "a".into(),
        service: service.into(),
        service_port: 80,
        target_port: 8080,
        weight: 1,
        health: 0,
        udp: false,
    };
    let workload = v1::Workload {
        namespace: "a".into(),
        name: name.into(),
        service_account: "default".into(),
        node: "n1".into(),
        addresses: vec![address.into()],
        services: vec![member],
        ..v1::Workload::default()
    };
    ((Kind::Workload, format!("a/{name}")), Some(raw(&workload)))
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < deadline, "not within 10 s: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn an_update_is_in_the_snapshot_and_the_maps_when_it_is_answered() {
    let rig = Rig::new("update");
    rig.config.begin().await;
    assert!(!rig.config.served());
    let changes = vec![service("web", "240.0.0.1"), workload("w", "10.0.0.1", "web")];
    assert_eq!(rig.apply(3, true, changes).await, 0);
    assert!(rig.config.served());
    assert_eq!((rig.endpoints(), rig.maps.services()), (1, 1));
    assert_eq!(rig.config.snapshot().revision.number, 3);
    let gone = vec![((Kind::Service, "a/web".into()), None)];
    rig.apply(4, false, gone).await;
    assert!(rig.config.snapshot().services.is_empty());
    assert!(rig.maps.deleted() >= 1);
}

#[tokio::test]
async fn nothing_is_written_before_an_earlier_agents_workloads_are_found() {
    let rig = Rig::new("begin");
    rig.apply(1, true, vec![service("web", "240.0.0.1")]).await;
    assert!(rig.maps.ops.lock().is_empty());
    rig.config.begin().await;
    assert_eq!(rig.maps.services(), 1);
}

#[tokio::test]
async fn what_cannot_be_decoded_is_rejected_and_leaves_the_rest_as_it_was() {
    let rig = Rig::new("rejected");
    rig.config.begin().await;
    rig.apply(1, true, vec![service("web", "240.0.0.1")]).await;
    let bad = ((Kind::Service, "a/web".into()), Some(Raw::new("w", &[0xff; 4])));
    assert_eq!(rig.apply(2, false, vec![bad, service("shop", "240.0.0.2")]).await, 1);
    assert_eq!(rig.config.snapshot().services.len(), 2);
    // The version that was refused is not claimed: the control plane sends it again.
    let known = rig.config.known().await.unwrap();
    assert_eq!(known.versions[&Kind::Service]["a/web"], "v");
}

#[tokio::test]
async fn a_full_sync_removes_what_it_does_not_hold() {
    let rig = Rig::new("full");
    rig.config.begin().await;
    rig.apply(1, true, vec![service("web", "240.0.0.1"), service("shop", "240.0.0.2")]).await;
    rig.apply(2, true, vec![service("shop", "240.0.0.2")]).await;
    assert_eq!(rig.config.snapshot().services.len(), 1);
    assert_eq!(rig.config.known().await.unwrap().versions[&Kind::Service].len(), 1);
}

#[tokio::test]
async fn the_snapshot_on_disk_is_served_by_the_next_agent() {
    let rig = Rig::new("disk");
    rig.config.begin().await;
    rig.apply(5, true, vec![service("web", "240.0.0.1"), workload("w", "10.0.0.1", "web")]).await;
    let (epoch, file) = (rig.config.snapshot().epoch, super::disk::path(&rig.state));
    let number = rig.config.snapshot().services.keys().next().unwrap();
    rig.config.save().await;
    assert!(file.exists());
    let next = Rig::at(rig.state.clone());
    assert!(next.config.served());
    assert_eq!(next.endpoints(), 1);
    let snapshot = next.config.snapshot();
    assert_eq!(snapshot.revision.number, 5);
    assert!(snapshot.epoch > epoch && snapshot.services.contains_key(&number));
    next.config.begin().await;
    assert_eq!((next.maps.services(), next.maps.deleted()), (1, 0));
    std::fs::remove_dir_all(&rig.state).unwrap();
}

#[tokio::test]
async fn a_map_write_that_fails_is_a_condition_and_is_repeated() {
    let rig = Rig::new("repeat");
    rig.config.begin().await;
    rig.maps.broken.store(true, Relaxed);
    rig.apply(1, true, vec![service("web", "240.0.0.1")]).await;
    assert!(rig.config.conditions().list()[0].starts_with("map SERVICES"));
    rig.maps.broken.store(false, Relaxed);
    eventually("the write is repeated", || rig.maps.services() == 1).await;
    eventually("the condition ends", || rig.config.conditions().list().iter().all(|l| !l.contains("map")))
        .await;
}

#[tokio::test]
async fn a_workload_that_ended_here_takes_no_connections_while_the_control_plane_is_away() {
    let rig = Rig::new("ended");
    rig.config.begin().await;
    let numbers = rig.config.identify("a", "w", "default").await.unwrap();
    let described = v1::Workload { namespace: "a".into(), name: "w".into(), ..v1::Workload::default() };
    let slots = LocalSlots { listener_slot: 0, heartbeat_slot: 0 };
    rig.config.place(numbers.workload, slots, described).await;
    rig.apply(1, true, vec![service("web", "240.0.0.1"), workload("w", "10.0.0.1", "web")]).await;
    assert_eq!((rig.endpoints(), rig.config.enrolled()), (1, 1));
    rig.config.leave("a", "w", numbers.workload).await;
    assert_eq!((rig.endpoints(), rig.config.enrolled()), (0, 0));
    // It comes back before the control plane has heard of its end.
    let again = rig.config.identify("a", "w", "default").await.unwrap();
    assert_eq!((again.workload, rig.endpoints()), (numbers.workload, 1));
    assert!(rig.config.known().await.unwrap().versions[&Kind::Workload].contains_key("a/w"));
    // A workload of another node is not ours to hide.
    rig.config.leave("a", "elsewhere", 0).await;
}

#[tokio::test]
async fn a_workload_that_lives_here_has_its_policies_whether_the_control_plane_knows_it_or_not() {
    let rig = Rig::new("own");
    rig.config.begin().await;
    let policy = v1::AuthorizationPolicy {
        namespace: "a".into(),
        name: "p".into(),
        selector: [("app".to_owned(), "db".to_owned())].into(),
        ..v1::AuthorizationPolicy::default()
    };
    let policy = ((Kind::AuthorizationPolicy, "a/p".into()), Some(raw(&policy)));
    rig.apply(1, true, vec![policy.clone()]).await;
    let numbers = rig.config.identify("a", "w", "default").await.unwrap();
    let described = v1::Workload {
        namespace: "a".into(),
        name: "w".into(),
        service_account: "default".into(),
        node: "n1".into(),
        addresses: vec!["10.0.0.1".into()],
        labels: [("app".to_owned(), "db".to_owned())].into(),
        ..v1::Workload::default()
    };
    let slots = LocalSlots { listener_slot: 0, heartbeat_slot: 0 };
    rig.config.place(numbers.workload, slots, described).await;
    let set = || rig.config.snapshot().workloads.get(&numbers.workload).map(|w| w.policy_set);
    let first = set().expect("known");
    assert_ne!(first, 0);
    // A control plane that does not know it, and one that says it has gone.
    rig.apply(2, true, vec![policy]).await;
    rig.apply(3, false, vec![((Kind::Workload, "a/w".into()), None)]).await;
    assert_eq!(set(), Some(first));
    // Its word counts where there is one.
    rig.apply(4, false, vec![workload("w", "10.0.0.1", "web")]).await;
    assert_eq!(set(), Some(0));
    rig.config.leave("a", "w", numbers.workload).await;
    assert_eq!(set(), None);
}

#[tokio::test]
async fn what_an_ejected_endpoint_cannot_carry_goes_to_the_next_level_and_comes_back() {
    let rig = Rig::new("ejected");
    rig.config.begin().await;
    let policy = v1::TrafficPolicy {
        namespace: "a".into(),
        name: "near".into(),
        targets: vec![v1::PolicyTarget { service: "web".into(), section_name: String::new() }],
        locality: Some(v1::LocalityPolicy { node: true, ..v1::LocalityPolicy::default() }),
        outlier_ejection: Some(v1::OutlierEjection {
            consecutive_connect_failures: 3,
            base_ejection_ms: 1000,
            max_ejected_percent: 50,
            ..v1::OutlierEjection::default()
        }),
        ..v1::TrafficPolicy::default()
    };
    let mut far = workload("far", "10.0.0.2", "web");
    let mut message = v1::Workload::decode(far.1.as_ref().unwrap().message()).unwrap();
    message.node = "n2".into();
    far.1 = Some(raw(&message));
    let policy = ((Kind::TrafficPolicy, "a/near".to_owned()), Some(raw(&policy)));
    let near = workload("near", "10.0.0.1", "web");
    rig.apply(1, true, vec![service("web", "240.0.0.1"), near, far, policy]).await;
    let local = |snapshot: &Snapshot| -> Vec<(bool, u32)> {
        let service = snapshot.services.values().next().unwrap();
        let mut all: Vec<_> = service.serving().iter().map(|e| (e.local, e.weight)).collect();
        all.sort_unstable();
        all
    };
    assert_eq!(local(&rig.config.snapshot()), [(false, 0), (true, 1)]);
    let snapshot = rig.config.snapshot();
    let id = snapshot.services.values().next().unwrap().serving().iter().find(|e| e.local).unwrap().id;
    rig.maps.ejected.lock().push(id);
    eventually("the other one takes all", || local(&rig.config.snapshot()) == [(false, 1), (true, 0)]).await;
    rig.maps.ejected.lock().clear();
    eventually("it is back", || local(&rig.config.snapshot()) == [(false, 0), (true, 1)]).await;
}
