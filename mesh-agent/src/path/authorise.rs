//! May this workload be called? Asked before a connection to a workload of this node is opened or used again;
//! a workload of another node is asked there, by the kernel, or by the agent at the end of a tunnel ([`admits`]).
//!
//! route ──Hop──▶ **authorise** ──▶ pool, transport
//!
//! Cost: nothing where the hop's workload has no policy. Not here: what policies mean (mesh-core's authorise).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use mesh_api::spiffe::SpiffeId;
use mesh_common::policy::Caller;
use mesh_core::authorise::Refusal;
use mesh_core::error::ProxyError;
use mesh_core::snapshot::Snapshot;

use super::intercept::Hop;
use super::member::Member;
use super::worker::Worker;
use crate::authorise::Quota;

/// Refusals of the proxy that are logged.
static LOGGED: Quota = Quota::new();

/// Refuses a hop that the policies of its workload do not allow.
pub fn authorise(worker: &Worker, member: &Member, hop: &Hop) -> Result<(), ProxyError> {
    if hop.policed == 0 || hop.policed == member.workload {
        return Ok(());
    }
    worker.with_snapshot(|snapshot| ask(snapshot, member, hop))
}

/// May a peer that has proved who it is connect to this workload of ours, from that address to this port? `caller` says
/// who it is to policies, where there are any.
pub fn admits(
    snapshot: &Snapshot,
    member: &Member,
    (peer, caller): (&SpiffeId, impl FnOnce(&Snapshot) -> Caller),
    from: IpAddr,
    port: u16,
) -> bool {
    let Some(called) = snapshot.workloads.get(&member.workload) else { return false };
    if called.policy_set == 0 {
        return true;
    }
    let Some(set) = snapshot.policies.get(&called.policy_set) else { return false };
    match set.refuses(caller(snapshot), from, port) {
        None => true,
        Some(refusal) => {
            if LOGGED.take() {
                let source = peer;
                tracing::warn!(%source, destination = %called.full_name, port, %refusal, "refused by policy");
            }
            false
        }
    }
}

fn ask(snapshot: &Snapshot, member: &Member, hop: &Hop) -> Result<(), ProxyError> {
    let Some(called) = snapshot.workloads.get(&hop.policed) else { return Err(ProxyError::DeniedByPolicy) };
    if called.policy_set == 0 {
        return Ok(());
    }
    let Some(set) = snapshot.policies.get(&called.policy_set) else { return Err(ProxyError::DeniedByPolicy) };
    let caller = Caller { identity: member.identity, namespace: member.namespace };
    // What the connection will come from: sockets are made in the workload's own namespace.
    let address = match hop.address {
        std::net::SocketAddr::V4(_) => IpAddr::V4(member.addr4.unwrap_or(Ipv4Addr::UNSPECIFIED)),
        std::net::SocketAddr::V6(_) => IpAddr::V6(member.addr6.unwrap_or(Ipv6Addr::UNSPECIFIED)),
    };
    match set.refuses(caller, address, hop.address.port()) {
        None => Ok(()),
        Some(refusal) => {
            log(snapshot, member, &called.full_name, hop, &refusal);
            Err(ProxyError::DeniedByPolicy)
        }
    }
}

fn log(snapshot: &Snapshot, member: &Member, destination: &str, hop: &Hop, refusal: &Refusal<'_>) {
    if LOGGED.take() {
        let source = snapshot.workloads.get(&member.workload).map_or("", |caller| &*caller.full_name);
        tracing::warn!(source, destination, port = hop.address.port(), %refusal, "refused by policy");
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::rig::workload;
    use super::*;
    use mesh_api::proto::v1::Protocol;
    use mesh_core::authorise::{Policy, PolicySet, Rule, Terms};
    use std::net::SocketAddr;
    use std::sync::Arc;

    const A: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8001);

    fn snapshot(allowed: Caller) -> Snapshot {
        let terms = Terms { identities: [allowed].into(), ..Terms::default() };
        let rule = Rule { from: [terms].into(), ..Rule::default() };
        let policy = Policy { name: "default/p".into(), deny: false, rules: [rule].into() };
        let mut snapshot = Snapshot::default();
        snapshot.policies.insert(4, Arc::new(PolicySet { policies: [Arc::new(policy)].into() }));
        let mut called = workload(9, A, Protocol::Http);
        called.policy_set = 4;
        snapshot.workloads.insert(9, Arc::new(called));
        snapshot
    }

    #[test]
    fn a_hop_to_a_workload_with_policies_asks_them() {
        let member = Member::for_tests();
        let hop = |policed| Hop {
            service: 1,
            endpoint: 1,
            local: true,
            address: A,
            show: None,
            policed,
            tunnel: 0,
        };
        let ours = Caller { identity: member.identity.max(1), namespace: 1 };
        let denied = Err(ProxyError::DeniedByPolicy);
        // The member of tests has identity 0, which is nobody's.
        assert_eq!(ask(&snapshot(ours), &member, &hop(9)), denied);
        assert_eq!(ask(&snapshot(ours), &member, &hop(77)), denied, "gone meanwhile");
        let mut open = snapshot(ours);
        let mut called = workload(9, A, Protocol::Http);
        called.policy_set = 0;
        open.workloads.insert(9, Arc::new(called));
        assert_eq!(ask(&open, &member, &hop(9)), Ok(()));
    }
}
