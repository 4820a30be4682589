//! Shares, and what becomes of them when the endpoints change.

use super::*;
use crate::mtls::MtlsMode;
use crate::resilience::sticky::Wanted;
use crate::snapshot::{Balancing, Ejection, OnProxyLoss, Traffic};
use mesh_api::proto::v1::Protocol;
use mesh_common::pick;
use mesh_common::record::Load;
use proptest::prelude::*;

/// A service whose endpoints have these ids and weights; those of weight 0 must come last.
pub(crate) fn service(endpoints: &[(u32, u32)]) -> Service {
    let endpoint = |&(id, weight): &(u32, u32)| Endpoint {
        id,
        workload: id,
        v4: None,
        v6: None,
        port: 80,
        weight,
        local: false,
        policy_set: 0,
        mtls: MtlsMode::Off,
        tunnel: false,
    };
    Service {
        id: 1,
        namespace: "ns".into(),
        name: "s".into(),
        port: 80,
        port_name: "".into(),
        vips: vec![],
        protocol: Protocol::Http,
        why: None,
        on_proxy_loss: OnProxyLoss::Bypass,
        traffic: Traffic::default(),
        resilience: None,
        inbound_proxy: false,
        endpoints: endpoints.iter().map(endpoint).collect(),
        serving: endpoints.iter().take_while(|(_, weight)| *weight > 0).count(),
        routes: None,
        consumers: None,
        fallback: vec![],
        split: false,
        backends: vec![],
        health: None,
        dns_ttl: None,
    }
}

/// Counters by endpoint id.
#[derive(Default)]
struct Counters {
    loads: HashMap<u32, Load>,
    ejected: u64,
    /// By place: requests in flight; `None`: it has no room.
    requests: Vec<Option<u64>>,
    /// Who was let back.
    back: std::cell::RefCell<Vec<u32>>,
}

impl Loads for Counters {
    fn load(&self, endpoint: EndpointId) -> Load {
        self.loads.get(&endpoint).copied().unwrap_or_default()
    }

    fn ejected(&self, _: ServiceId) -> u64 {
        self.ejected
    }

    fn now(&self) -> u64 {
        1000
    }

    fn let_back(&self, _: ServiceId, endpoint: EndpointId, _: u64) {
        self.back.borrow_mut().push(endpoint);
    }

    fn fits(&self, place: usize) -> bool {
        self.requests[place].is_some()
    }

    fn requests(&self, place: usize) -> u64 {
        self.requests[place].unwrap_or(0)
    }

    fn cost(&self, place: usize) -> u64 {
        self.requests(place) * 10
    }
}

fn ejecting(endpoints: &[(u32, u32)], balancing: Balancing) -> Service {
    let ejection = Ejection { failures: 3, base: std::time::Duration::from_secs(1), max_percent: 50 };
    let traffic = Traffic { balancing, ejection: Some(ejection), ..Traffic::default() };
    Service { traffic, ..service(endpoints) }
}

#[test]
fn the_ejected_are_passed_over_whatever_the_policy_until_too_few_are_left() {
    let all = [Balancing::RoundRobin, Balancing::Random, Balancing::LeastConnections, Balancing::Maglev];
    for balancing in all {
        let service = ejecting(&[(1, 1), (2, 1), (3, 1), (4, 1)], balancing);
        let out = Load { ejected_until: 1001, ..Load::default() };
        let mut counters = Counters { loads: [(1, out), (3, out)].into(), ejected: 2, ..Counters::default() };
        let mut balancer = Balancer::default();
        let mut pick = |counters: &Counters, i: u32| {
            let client = pick::client(&[0, 0, 0, i]);
            balancer.pick(&service, (client, Wanted::Any), mix(i.into()), counters).unwrap().id
        };
        let seen: Vec<u32> = (0..400).map(|i| pick(&counters, i)).collect();
        assert!(times(&seen, 2) > 100 && times(&seen, 4) > 100, "{balancing:?}: {seen:?}");
        assert_eq!(times(&seen, 2) + times(&seen, 4), 400, "{balancing:?}");
        // Three of four: panic.
        counters.loads.insert(2, out);
        counters.ejected = 3;
        let seen: Vec<u32> = (0..400).map(|i| pick(&counters, i)).collect();
        assert!((1..=4).all(|id| times(&seen, id) > 0), "{balancing:?}");
        // Their time is over.
        counters.loads.values_mut().for_each(|load| load.ejected_until = 1000);
        counters.ejected = 1;
        let seen: Vec<u32> = (0..400).map(|i| pick(&counters, i)).collect();
        assert!((1..=4).all(|id| times(&seen, id) > 0), "{balancing:?}");
        assert!([1, 2, 3].iter().all(|id| counters.back.borrow().contains(id)), "they are let back");
    }
}

#[test]
fn requests_choose_between_two_and_who_has_no_room_is_passed_over() {
    let limits = crate::resilience::admission::Limits { per_endpoint: 9, ..Default::default() };
    let asked = crate::resilience::Resilience { limits, ..Default::default() };
    for balancing in [Balancing::LeastRequests, Balancing::PeakEwma] {
        let traffic = Traffic { balancing, ..Traffic::default() };
        let service =
            Service { traffic, resilience: Some(Arc::new(asked.clone())), ..service(&[(1, 1), (2, 1)]) };
        let mut balancer = Balancer::default();
        let mut times_of_2 = |requests: [Option<u64>; 2]| {
            let counters = Counters { requests: requests.into(), ..Counters::default() };
            let picked = (0..400)
                .filter_map(|i| Some(balancer.pick(&service, (0, Wanted::Any), mix(i), &counters)?.id));
            let picked: Vec<u32> = picked.collect();
            (times(&picked, 2), picked.len())
        };
        let (less, all) = times_of_2([Some(5), Some(1)]);
        assert_eq!((less, all), (400, 400), "{balancing:?}");
        assert_eq!(times_of_2([None, Some(8)]), (400, 400), "{balancing:?}");
        assert_eq!(times_of_2([None, None]), (0, 0), "{balancing:?}");
    }
}

#[test]
fn the_less_loaded_of_two_is_chosen_and_a_client_keeps_its_endpoint() {
    let least = ejecting(&[(1, 1), (2, 1)], Balancing::LeastConnections);
    let busy = Load { live: 10, ..Load::default() };
    let counters = Counters { loads: [(1, busy)].into(), ..Counters::default() };
    let mut balancer = Balancer::default();
    let seen: Vec<u32> =
        (0..400).map(|i| balancer.pick(&least, (0, Wanted::Any), mix(i), &counters).unwrap().id).collect();
    assert_eq!(times(&seen, 2), 400);

    let by_client = ejecting(&[(1, 1), (2, 1), (3, 1)], Balancing::Maglev);
    let first = balancer.pick(&by_client, (77, Wanted::Any), 1, &counters).unwrap().id;
    assert!((0..50).all(|i| balancer.pick(&by_client, (77, Wanted::Any), i, &counters).unwrap().id == first));
}

fn picks(balancer: &mut RoundRobin, service: &Service, count: u32, random: u64) -> Vec<u32> {
    (0..count).map(|_| balancer.pick(service, random).unwrap().id).collect()
}

fn times(picks: &[u32], id: u32) -> u32 {
    picks.iter().filter(|&&picked| picked == id).count() as u32
}

#[test]
fn without_endpoints_there_is_nothing_to_pick() {
    let mut balancer = RoundRobin::default();
    assert_eq!(balancer.pick(&service(&[]), 1), None);
    assert_eq!(balancer.pick(&service(&[(1, 0)]), 1), None);
    assert_eq!(picks(&mut balancer, &service(&[(5, 3), (6, 0)]), 3, 1), [5, 5, 5]);
}

#[test]
fn equal_weights_take_plain_turns_from_a_random_start() {
    let service = service(&[(1, 7), (2, 7), (3, 7), (4, 0)]);
    assert_eq!(picks(&mut RoundRobin::default(), &service, 7, 4), [2, 3, 1, 2, 3, 1, 2]);
    assert_eq!(picks(&mut RoundRobin::default(), &service, 3, 0), [1, 2, 3]);
}

#[test]
fn turns_are_spread_within_a_cycle() {
    let service = service(&[(1, 3), (2, 1)]);
    for random in 0..100 {
        let order = picks(&mut RoundRobin::default(), &service, 40, random);
        let gap = order.windows(5).map(|five| times(five, 2)).collect::<Vec<_>>();
        assert!(gap.iter().all(|&n| n == 1 || n == 2), "one of four, never far apart: {order:?}");
    }
}

#[test]
fn a_changed_set_is_followed_at_once() {
    let mut balancer = RoundRobin::default();
    let before = service(&[(1, 2), (2, 1), (3, 1)]);
    picks(&mut balancer, &before, 5, 9);
    let after = service(&[(2, 1), (4, 3), (1, 0)]);
    let order = picks(&mut balancer, &after, 8, 9);
    assert_eq!((times(&order, 2), times(&order, 4)), (2, 6));
    let mut drained = before.clone();
    drained.serving = 2;
    picks(&mut balancer, &before, 5, 9);
    let order = picks(&mut balancer, &drained, 6, 9);
    assert_eq!((times(&order, 1), times(&order, 2)), (4, 2));
}

#[test]
fn a_change_that_leaves_the_endpoints_alone_keeps_the_turns() {
    let endpoints = [(1, 1), (2, 1), (3, 1)];
    let mut balancer = RoundRobin::default();
    let (first, again) = (service(&endpoints), service(&endpoints));
    assert!(!Arc::ptr_eq(&first.endpoints, &again.endpoints));
    let order: Vec<u32> =
        [&first, &again, &again, &first].iter().map(|s| balancer.pick(s, 7).unwrap().id).collect();
    assert_eq!(order, [2, 3, 1, 2]);
}

#[test]
fn a_light_endpoint_has_its_share_although_the_set_keeps_changing() {
    // Each change begins a cycle of 100 picks anew, of which only 5 are taken.
    let sets = [service(&[(1, 99), (2, 1)]), service(&[(1, 99), (2, 1), (3, 0)])];
    let mut balancer = RoundRobin::default();
    let mut light = 0;
    for round in 0..4000u64 {
        let mut set = sets[round as usize % 2].clone();
        set.id = 1 + (round % 2) as u32;
        balancer.turns.clear();
        light += times(&picks(&mut balancer, &set, 5, mix(round)), 2);
    }
    assert!((140..=260).contains(&light), "{light} of about 200");
}

#[test]
fn after_a_failure_another_is_picked_by_weight() {
    let service = service(&[(1, 5), (2, 3), (3, 1), (4, 0)]);
    let others = |tried: &[u32]| -> Vec<u32> {
        let picked = (0..4u64).filter_map(|quarter| pick_other(&service, tried, quarter << 62));
        picked.map(|endpoint| endpoint.id).collect()
    };
    assert_eq!(others(&[1]), [2, 2, 2, 3]);
    assert_eq!(others(&[2, 3]), [1, 1, 1, 1]);
    assert!(others(&[1, 2, 3]).is_empty());
    assert_eq!(pick_other(&service, &[], u64::MAX).unwrap().id, 3);
}

#[test]
fn a_spare_is_found_where_nobody_else_will_do() {
    for balancing in
        [Balancing::RoundRobin, Balancing::Random, Balancing::LeastConnections, Balancing::Maglev]
    {
        let service = Service { serving: 3, ..ejecting(&[(1, 1), (2, 1), (3, 0)], balancing) };
        let out = Load { ejected_until: 1001, ..Load::default() };
        let mut balancer = Balancer::default();
        let mut picks = |counters: &Counters| -> Vec<u32> {
            let mut ids: Vec<u32> = (0..40u32)
                .filter_map(|i| {
                    balancer.pick(
                        &service,
                        (pick::client(&[0, 0, 0, i]), Wanted::Any),
                        mix(i.into()),
                        counters,
                    )
                })
                .map(|endpoint| endpoint.id)
                .collect();
            ids.sort_unstable();
            ids.dedup();
            ids
        };
        assert_eq!(picks(&Counters::default()), [1, 2], "{balancing:?}");
        // Not so many that all are used.
        let counters = Counters { loads: [(1, out), (2, out)].into(), ejected: 1, ..Counters::default() };
        assert_eq!(picks(&counters), [3], "{balancing:?}");
    }
    let service = Service { serving: 3, ..service(&[(1, 1), (2, 0), (3, 0)]) };
    let others: Vec<u32> =
        [0, u64::MAX].iter().filter_map(|r| pick_other(&service, &[1], *r)).map(|e| e.id).collect();
    assert_eq!((others, pick_other(&service, &[], 7).unwrap().id), (vec![2, 3], 1));
}

#[test]
fn services_that_are_gone_are_forgotten() {
    let mut balancer = RoundRobin::default();
    let service = service(&[(1, 1), (2, 1)]);
    picks(&mut balancer, &service, 1, 0);
    let mut snapshot = Snapshot::default();
    snapshot.services.insert(1, Arc::new(service));
    balancer.retain(&snapshot);
    assert_eq!(balancer.turns.len(), 1);
    balancer.retain(&Snapshot::default());
    assert!(balancer.turns.is_empty());
}

proptest! {
    #[test]
    fn shares_are_exact_over_every_cycle(
        weights in prop::collection::vec(1..60u32, 1..12),
        random: u64,
    ) {
        let endpoints: Vec<_> = weights.iter().enumerate().map(|(n, &weight)| (n as u32 + 1, weight)).collect();
        let service = service(&endpoints);
        let mut balancer = RoundRobin::default();
        let total = weights.iter().sum();
        for _ in 0..3 {
            let order = picks(&mut balancer, &service, total, random);
            for &(id, weight) in &endpoints {
                prop_assert_eq!(times(&order, id), weight, "{:?}", order);
            }
        }
    }

    #[test]
    fn only_serving_endpoints_are_picked(
        sets in prop::collection::vec(prop::collection::vec((1..9u32, 0..4u32), 1..6), 1..8),
        random: u64,
    ) {
        let mut balancer = RoundRobin::default();
        for mut endpoints in sets {
            endpoints.sort_by_key(|(_, weight)| Reverse(*weight));
            let service = service(&endpoints);
            for _ in 0..7 {
                match balancer.pick(&service, random) {
                    Some(picked) => prop_assert!(service.serving().iter().any(|e| std::ptr::eq(e, picked))),
                    None => prop_assert!(service.serving().is_empty()),
                }
            }
        }
    }
}

#[test]
fn who_is_wanted_is_taken_until_that_one_is_ejected_or_full() {
    let mut wants = service(&[(1, 1), (2, 1), (3, 1)]);
    wants.traffic.ejection =
        Some(Ejection { failures: 1, base: std::time::Duration::from_secs(1), max_percent: 50 });
    let mut balancer = Balancer::default();
    let mut counters = Counters::default();
    let mut picked = |counters: &Counters, wanted| {
        let ids = (0..60).map(|i| balancer.pick(&wants, (9, wanted), mix(i), counters).unwrap().id);
        ids.collect::<std::collections::BTreeSet<_>>()
    };
    assert_eq!(picked(&counters, Wanted::Place(1)), [2].into());
    let keyed = picked(&counters, Wanted::Key(77));
    assert_eq!(keyed.len(), 1, "a key has one endpoint");
    assert_eq!(picked(&counters, Wanted::Any), [1, 2, 3].into());
    let keyed = *keyed.first().unwrap();
    counters.ejected = 1;
    counters.loads.insert(keyed, Load { ejected_until: 2000, ..Load::default() });
    let elsewhere = picked(&counters, Wanted::Key(77));
    assert!(elsewhere.len() == 1 && !elsewhere.contains(&keyed), "another one, and the same each time");
    let place = keyed as usize - 1;
    assert!(!picked(&counters, Wanted::Place(place)).contains(&keyed));
}

#[test]
fn of_two_endpoints_both_are_compared_each_time() {
    let mut least = service(&[(1, 1), (2, 5)]);
    least.traffic.balancing = Balancing::LeastConnections;
    let busy = Load { live: 100, ..Load::default() };
    let counters = Counters { loads: [(2, busy)].into(), ..Counters::default() };
    let mut balancer = Balancer::default();
    let mut picked =
        |random: u64| balancer.pick(&least, (0, Wanted::Any), mix(random), &counters).unwrap().id;
    assert!((0..1000).all(|random| picked(random) == 1));
}
