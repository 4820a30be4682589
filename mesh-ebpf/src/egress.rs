//! What a workload with an allow-list opens that is no service and no address that the mesh knows.
//!
//! Asked only where all look-ups have found nothing, and the caller's entry says that it has such a list. What is
//! outside and yet allowed is in the maps already: an external service's virtual addresses as services, its own
//! addresses as ports that are served.
//!
//! Not refused: what stays in the workload's own namespace; an address of the mesh at any port; what the agent itself
//! asks resolvers. Questions go to resolvers through the agent, or not at all.

use mesh_common::addr;
use mesh_common::policy::OUTWARD;
use mesh_common::record::{
    Denial, Enrolled, PROTO_TCP, PROTO_UDP, Service, ServiceKey, Workload, WorkloadKey, app, role,
};
use mesh_common::transport::enrolled;
use mesh_common::verdict::Verdict;

use crate::connect::{ALLOW, Call, DENY, new_flow, refuses as refuses_flow};
use crate::homes;
use crate::maps::{CAPTURED, DENIALS};
use crate::socket::record;
use crate::steady::{look, mesh_workload, room};
use crate::udp::socket;

const NO_WAKEUP: u64 = 1;

/// Is what this call opens, outside of the mesh as it is, refused?
#[inline(always)]
pub fn refuses(call: &Call, me: &Enrolled) -> bool {
    me.flags & enrolled::ALLOW_LIST != 0 && refused(call, me)
}

/// A function of its own, as all here: rare, and what it needs of the stack others need as well.
#[inline(never)]
fn refused(call: &Call, me: &Enrolled) -> bool {
    if addr::is_loopback(&call.dst)
        || addr::same(&call.dst, &me.addr4)
        || addr::same(&call.dst, &me.addr6)
        || addr::same(&call.dst, &addr::UNSPECIFIED)
        || addr::same(&call.dst, &addr::from_v4_be(0))
    {
        return false;
    }
    if let Some(sk) = socket(call.ctx)
        && record(&CAPTURED, sk.cast()).is_some_and(|own| own.role == role::RESOLVES)
    {
        return false;
    }
    if of_mesh(call) || (call.proto == PROTO_UDP && looks_about(call, me)) {
        return false;
    }
    say(call, me);
    true
}

/// Does a workload have the address?
#[inline(never)]
fn of_mesh(call: &Call) -> bool {
    let key = WorkloadKey { addr: call.dst, port_be: 0, proto: PROTO_TCP, network: 0 };
    let mut at: Workload = room();
    look(mesh_workload, &key, &mut at)
}

/// A resolver's library connects a UDP socket to see which of its own addresses would be used. To a virtual address
/// of TCP nothing can be sent.
#[inline(never)]
fn looks_about(call: &Call, me: &Enrolled) -> bool {
    let key =
        ServiceKey { addr: call.dst, scope: me.scope, port_be: call.port_be, proto: PROTO_TCP, network: 0 };
    let mut entry: Service = room();
    homes::service(&key, &mut entry)
}

/// Leaves a record for the log; what the ring has no room for is counted all the same.
#[inline(never)]
fn say(call: &Call, me: &Enrolled) {
    if call.port_be == 0 {
        // A look about as above, to no port at all.
        return;
    }
    if let Some(mut record) = DENIALS.reserve::<Denial>(0) {
        let denial = record.as_mut_ptr();
        // SAFETY: room for one in the ring, ours until it is submitted; every field is written.
        unsafe {
            (*denial).source_addr = call.dst;
            (*denial).source = me.workload;
            (*denial).destination = 0;
            (*denial).port_be = call.port_be;
            (*denial).proto = u16::from(call.proto) | OUTWARD;
        }
        record.submit(NO_WAKEUP);
    }
}

/// A datagram to the outside.
#[inline(always)]
pub fn sends(call: &Call, me: &Enrolled) -> i32 {
    if refuses(call, me) { refuse(call, me) } else { ALLOW }
}

#[inline(never)]
fn refuse(call: &Call, me: &Enrolled) -> i32 {
    let mut flow = new_flow(me, call);
    flow.protocol = app::UDP as u8;
    if refuses_flow(&mut flow, Verdict::EgressDenied) { DENY } else { ALLOW }
}
