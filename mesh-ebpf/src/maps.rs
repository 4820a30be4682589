//! The maps of `mesh_common::maps`, as the programs see them. Sizes are defaults; the agent overrides them
//! at first load.

use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC};
use aya_ebpf::macros::{btf_map, map};
use aya_ebpf::maps::{
    Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, PerCpuHashMap, RingBuf, SockHash, SockMap,
};
use mesh_common::going::Agent;
use mesh_common::homes::Home;
use mesh_common::maps as m;
use mesh_common::record::{
    Affinity, AffinityKey, Capture, Endpoint, Enrolled, EnrolledKey, Flow, FlowKey, FlowSource, Load,
    PolicyCidr, PolicyKey, Rules, Service, ServiceKey, SynKey, Totals, TotalsHome, TotalsKey, Workload,
    WorkloadKey,
};
use mesh_common::sender::Sender;
use mesh_common::splice::End;
use mesh_common::transport::{Asked, AskedKey, ExcludeCidr, ExcludeKey};
use mesh_common::udp::{Sticky, StickyKey};

// Not allocated in advance: memory is paid for what is there.
#[map]
pub static ENROLLED: HashMap<EnrolledKey, Enrolled> =
    HashMap::with_max_entries(m::ENROLLED.capacity, BPF_F_NO_PREALLOC);
#[map]
pub static ENROLLED_HOMES: Array<Home<EnrolledKey, Enrolled>> =
    Array::with_max_entries(m::ENROLLED_HOMES.capacity, BPF_F_MMAPABLE);
#[map]
pub static SERVICES: HashMap<ServiceKey, Service> =
    HashMap::with_max_entries(m::SERVICES.capacity, BPF_F_NO_PREALLOC);
#[map]
pub static SERVICE_HOMES: Array<Home<ServiceKey, Service>> =
    Array::with_max_entries(m::SERVICE_HOMES.capacity, BPF_F_MMAPABLE);
#[map]
pub static WORKLOADS: HashMap<WorkloadKey, Workload> =
    HashMap::with_max_entries(m::WORKLOADS.capacity, BPF_F_NO_PREALLOC);
#[map]
pub static ENDPOINTS: Array<Endpoint> = Array::with_max_entries(m::ENDPOINTS.capacity, BPF_F_MMAPABLE);
#[map]
pub static LOAD: Array<Load> = Array::with_max_entries(m::LOAD.capacity, BPF_F_MMAPABLE);
#[map]
pub static SERVICE_LOAD: Array<Load> = Array::with_max_entries(m::SERVICE_LOAD.capacity, BPF_F_MMAPABLE);
#[map]
pub static RULES: Array<Rules> = Array::with_max_entries(m::RULES.capacity, BPF_F_MMAPABLE);
/// The client that has been away for longest makes room.
#[map]
pub static AFFINITY: LruHashMap<AffinityKey, Affinity> =
    LruHashMap::with_max_entries(m::AFFINITY.capacity, 0);
#[map]
pub static FLOW_SRC: HashMap<FlowKey, FlowSource> =
    HashMap::with_max_entries(m::FLOW_SRC.capacity, BPF_F_NO_PREALLOC);
#[map]
pub static CAPTURE_SYN: HashMap<SynKey, Capture> =
    HashMap::with_max_entries(m::CAPTURE_SYN.capacity, BPF_F_NO_PREALLOC);
#[map]
pub static BUDGET: Array<u64> = Array::with_max_entries(m::BUDGET.capacity, 0);
#[map]
pub static LISTENERS: SockMap = SockMap::with_max_entries(m::LISTENERS.capacity, 0);
#[map]
pub static HEARTBEAT: Array<u64> = Array::with_max_entries(m::HEARTBEAT.capacity, BPF_F_MMAPABLE);
#[map]
pub static FLOW_TOTALS: PerCpuHashMap<TotalsKey, Totals> =
    PerCpuHashMap::with_max_entries(m::FLOW_TOTALS.capacity, BPF_F_NO_PREALLOC);
#[map]
pub static TOTALS_HOMES: PerCpuArray<TotalsHome> = PerCpuArray::with_max_entries(m::TOTALS_HOMES.capacity, 0);
#[map]
pub static FLOW_EVENTS: RingBuf = RingBuf::with_byte_size(m::FLOW_EVENTS.capacity, 0);
#[map]
pub static FLOW_HOMES: Array<u64> = Array::with_max_entries(m::FLOW_HOMES.capacity, BPF_F_MMAPABLE);
/// Memory-mapped, so that a slot is a cache line: other arrays begin in the middle of one.
#[map]
pub static FLOWS: Array<Flow> = Array::with_max_entries(m::FLOWS.capacity, BPF_F_MMAPABLE);
#[map]
pub static FLOWS_ABROAD: HashMap<u64, Flow> =
    HashMap::with_max_entries(m::FLOWS_ABROAD.capacity, BPF_F_NO_PREALLOC);
#[map]
pub static UDP_STICKY: LruHashMap<StickyKey, Sticky> =
    LruHashMap::with_max_entries(m::UDP_STICKY.capacity, 0);
#[map]
pub static VERDICTS: PerCpuArray<u64> = PerCpuArray::with_max_entries(m::VERDICTS.capacity, 0);
#[map]
pub static POLICY: HashMap<PolicyKey, u32> = HashMap::with_max_entries(m::POLICY.capacity, BPF_F_NO_PREALLOC);
#[map]
pub static POLICY_CIDRS: LpmTrie<PolicyCidr, u32> =
    LpmTrie::with_max_entries(m::POLICY_CIDRS.capacity, BPF_F_NO_PREALLOC);
#[map]
pub static EXCLUDE: HashMap<ExcludeKey, u32> =
    HashMap::with_max_entries(m::EXCLUDE.capacity, BPF_F_NO_PREALLOC);
#[map]
pub static EXCLUDE_CIDRS: LpmTrie<ExcludeCidr, u32> =
    LpmTrie::with_max_entries(m::EXCLUDE_CIDRS.capacity, BPF_F_NO_PREALLOC);
#[map]
pub static UDP_ASKED: LruHashMap<AskedKey, Asked> = LruHashMap::with_max_entries(m::UDP_ASKED.capacity, 0);
#[map]
pub static UDP_SENDERS: LruHashMap<FlowKey, Sender> =
    LruHashMap::with_max_entries(m::UDP_SENDERS.capacity, 0);
#[map]
pub static POLICED: Array<u64> = Array::with_max_entries(m::POLICED.capacity, 0);
#[map]
pub static SPLICE: SockHash<SynKey> = SockHash::with_max_entries(m::SPLICE.capacity, 0);
#[map]
pub static SPLICE_ENDS: HashMap<SynKey, End> =
    HashMap::with_max_entries(m::SPLICE_ENDS.capacity, BPF_F_NO_PREALLOC);
#[map]
pub static DENIALS: RingBuf = RingBuf::with_byte_size(m::DENIALS.capacity, 0);
#[map]
pub static EPOCH: Array<u64> = Array::with_max_entries(m::EPOCH.capacity, 0);
#[map]
pub static AGENT: Array<Agent> = Array::with_max_entries(m::AGENT.capacity, 0);

const SK_STORAGE: usize = 24;
const NO_PREALLOC: usize = 1;
const CLONE: usize = 1 << 9;

/// A socket storage map. aya's own has neither `BPF_F_CLONE` nor getters for other contexts than
/// `sock_addr`. The loader reads this type's BTF; nothing reads its fields.
#[repr(C)]
pub struct SkStorage<T, const FLAGS: usize> {
    r#type: *const [i32; SK_STORAGE],
    key: *const i32,
    value: *const T,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; FLAGS],
}

// SAFETY: the fields are placeholders that the loader replaces; nothing is read or written through them.
unsafe impl<T, const FLAGS: usize> Sync for SkStorage<T, FLAGS> {}

impl<T, const FLAGS: usize> SkStorage<T, FLAGS> {
    const fn new() -> Self {
        Self {
            r#type: core::ptr::null(),
            key: core::ptr::null(),
            value: core::ptr::null(),
            max_entries: core::ptr::null(),
            map_flags: core::ptr::null(),
        }
    }

    /// For helpers.
    #[inline(always)]
    pub fn as_ptr(&self) -> *mut core::ffi::c_void {
        core::ptr::from_ref(self).cast_mut().cast()
    }
}

/// Accepted sockets inherit the record of the agent's listener: that is how they are known.
#[btf_map]
pub static CAPTURED: SkStorage<Capture, { NO_PREALLOC | CLONE }> = SkStorage::new();
