//! Parts against a naive reference, and who is sent to whom.

use proptest::prelude::*;

use super::*;

const HALF: f64 = 1e-6;

/// Envoy's priority load, in fractions.
fn naive(levels: &[Level], overprovisioning: u16) -> Vec<f64> {
    let nobody = levels.iter().all(|l| l.healthy == 0);
    let health: Vec<f64> = levels
        .iter()
        .map(|l| {
            let healthy = if nobody { l.ejected } else { l.healthy } as f64;
            let share = if l.total == 0 { 0.0 } else { healthy / l.total as f64 };
            (share * f64::from(overprovisioning) / 100.0).min(1.0)
        })
        .collect();
    let total = health.iter().sum::<f64>().min(1.0);
    let mut left = 1.0f64;
    health
        .iter()
        .map(|h| {
            let load = if total == 0.0 { 0.0 } else { (h / total).min(left) };
            left -= load;
            load
        })
        .collect()
}

fn level() -> impl Strategy<Value = Level> {
    let weights = (0u64..1000, 0u64..1000, 0u64..1000);
    let some = weights.prop_map(|(healthy, ejected, resting)| Level {
        healthy,
        ejected,
        total: healthy + ejected + resting,
    });
    prop_oneof![1 => Just(Level::default()), 3 => some]
}

fn levels() -> impl Strategy<Value = Vec<Level>> {
    prop::collection::vec(level(), 1..8)
}

fn member() -> impl Strategy<Value = Member> {
    let health = prop_oneof![Just(Health::Healthy), Just(Health::Ejected), Just(Health::Resting)];
    (0u8..8, health, 0u16..20).prop_map(|(level, health, weight)| Member { level, health, weight })
}

fn serves(level: Level) -> bool {
    level.healthy + level.ejected > 0
}

proptest! {
    #[test]
    fn parts_are_the_whole_and_those_of_the_naive_reference(levels in levels(), factor in 100u16..2000) {
        let parts = split(&levels, factor);
        let sum: u64 = parts.iter().map(|part| u64::from(part.load)).sum();
        let any = levels.iter().any(|level| serves(*level));
        prop_assert_eq!(sum, if any { WHOLE.into() } else { 0 });
        for (part, want) in parts.iter().zip(naive(&levels, factor)) {
            let part = f64::from(part.load) / f64::from(WHOLE);
            prop_assert!((part - want).abs() < HALF, "{part} instead of {want}");
        }
    }

    #[test]
    fn a_level_that_heals_never_leaves_more_to_those_behind_it(
        levels in levels(), factor in 100u16..2000, which in any::<prop::sample::Index>(), more in 1u64..1000,
    ) {
        let which = which.index(levels.len());
        prop_assume!(levels.iter().any(|level| level.healthy > 0));
        let mut healed = levels.clone();
        let back = more.min(healed[which].ejected);
        healed[which].healthy += back;
        healed[which].ejected -= back;
        let up_to = |levels: &[Level]| -> u64 {
            split(levels, factor)[..=which].iter().map(|part| u64::from(part.load)).sum()
        };
        prop_assert!(up_to(&healed) + 8 >= up_to(&levels), "{levels:?}");
    }

    #[test]
    fn the_ejected_never_have_all_while_somebody_is_healthy(
        members in prop::collection::vec(member(), 1..30), factor in 100u16..2000,
    ) {
        let spread = Spread { overprovisioning: factor, members: members.clone().into() };
        let weights = spread.weights(members.len(), |_| true);
        let sum = |health| -> u64 {
            let of = members.iter().zip(&weights).filter(|(m, _)| m.health == health);
            of.map(|(_, weight)| u64::from(*weight)).sum()
        };
        let there = |health| members.iter().any(|m| m.health == health && m.weight > 0);
        prop_assert_eq!(sum(Health::Resting), 0);
        prop_assert_eq!(sum(Health::Healthy) > 0, there(Health::Healthy));
        if !there(Health::Healthy) {
            prop_assert_eq!(sum(Health::Ejected) > 0, there(Health::Ejected));
        }
    }

    #[test]
    fn weights_of_a_level_are_its_part_shared_by_theirs(
        members in prop::collection::vec(member(), 1..30), factor in 100u16..2000,
    ) {
        let spread = Spread { overprovisioning: factor, members: members.clone().into() };
        let weights = spread.weights(members.len(), |_| true);
        let mut levels = [Level::default(); 8];
        for m in &members {
            let level = &mut levels[usize::from(m.level)];
            level.total += u64::from(m.weight);
            match m.health {
                Health::Healthy => level.healthy += u64::from(m.weight),
                Health::Ejected => level.ejected += u64::from(m.weight),
                Health::Resting => {}
            }
        }
        let total: u64 = weights.iter().map(|w| u64::from(*w)).sum();
        for (i, part) in split(&levels, factor).iter().enumerate() {
            let own = members.iter().zip(&weights).filter(|(m, _)| usize::from(m.level) == i);
            let sum: u64 = own.map(|(_, w)| u64::from(*w)).sum();
            let want = f64::from(part.load) / f64::from(WHOLE);
            let share = if total == 0 { 0.0 } else { sum as f64 / total as f64 };
            // A weight is a whole number: one of 2²⁶ less for each member.
            prop_assert!((share - want).abs() < HALF, "{share} instead of {want}");
        }
    }

    #[test]
    fn who_is_left_out_is_as_though_not_there(members in prop::collection::vec(member(), 1..20), mask: u32) {
        let has = |i: usize| mask & (1 << i) != 0;
        let spread = |members: &[Member]| Spread { overprovisioning: 140, members: members.into() };
        let some: Vec<Member> =
            members.iter().enumerate().filter(|(i, _)| has(*i)).map(|(_, m)| *m).collect();
        let masked = spread(&members).weights(members.len(), has);
        let kept: Vec<u32> = masked.iter().enumerate().filter(|(i, _)| has(*i)).map(|(_, w)| *w).collect();
        prop_assert_eq!(kept, spread(&some).weights(some.len(), |_| true));
    }
}

fn members(text: &[(u8, Health, u16)]) -> Spread {
    let members = text.iter().map(|&(level, health, weight)| Member { level, health, weight });
    Spread { overprovisioning: 140, members: members.collect() }
}

/// Percent of each.
fn percents(spread: &Spread) -> Vec<u32> {
    let weights = spread.weights(spread.members.len(), |_| true);
    let sum: u32 = weights.iter().sum();
    weights.iter().map(|w| (f64::from(*w) * 100.0 / f64::from(sum)).round() as u32).collect()
}

#[test]
fn a_level_that_is_well_takes_all_with_the_weights_that_are_configured() {
    use Health::Healthy;
    let spread = members(&[(1, Healthy, 3), (0, Healthy, 5), (0, Healthy, 7)]);
    assert_eq!(spread.weights(3, |_| true), [0, 5, 7]);
    assert_eq!(spread.weights(3, |i| i != 2), [0, 5, 0]);
}

#[test]
fn half_of_a_level_takes_seven_tenths() {
    use Health::{Ejected, Healthy, Resting};
    assert_eq!(percents(&members(&[(0, Healthy, 1), (0, Ejected, 1), (4, Healthy, 1)])), [70, 0, 30]);
    assert_eq!(percents(&members(&[(0, Healthy, 1), (0, Resting, 1), (4, Healthy, 1)])), [70, 0, 30]);
    // Five of seven carry all.
    assert_eq!(percents(&members(&[(0, Healthy, 5), (0, Ejected, 2), (4, Healthy, 1)])), [100, 0, 0]);
    assert_eq!(percents(&members(&[(0, Ejected, 1), (1, Ejected, 1), (2, Healthy, 1)])), [0, 0, 100]);
}

#[test]
fn levels_that_are_together_too_weak_share_by_strength_and_use_the_ejected() {
    use Health::{Ejected, Healthy};
    let weak = members(&[(0, Healthy, 1), (0, Ejected, 3), (1, Healthy, 1), (1, Ejected, 3)]);
    assert_eq!(percents(&weak), [13, 38, 13, 38]);
    assert_eq!(percents(&members(&[(0, Ejected, 1), (0, Ejected, 1), (1, Ejected, 2)])), [50, 50, 0]);
}

#[test]
fn how_near_somebody_is() {
    let here = Locality { region: "eu".into(), zone: "a".into() };
    for (region, zone, near) in [
        ("eu", "a", Nearness::Zone),
        ("eu", "b", Nearness::Region),
        ("eu", "", Nearness::Region),
        ("us", "a", Nearness::Elsewhere),
        ("", "", Nearness::Elsewhere),
    ] {
        assert_eq!(here.nearness(region, zone), near, "{region}/{zone}");
    }
    let unknown = Locality::default();
    assert_eq!(unknown.nearness("", ""), Nearness::Elsewhere);
    assert_eq!(Locality { zone: "a".into(), ..unknown }.nearness("", "a"), Nearness::Zone);
}

#[test]
fn priority_comes_before_nearness_and_scopes_that_nobody_prefers_are_one() {
    use Nearness::{Elsewhere, Node, Region, Zone};
    let all = Preference::of(&[Node, Zone, Region]);
    let order = [Node, Zone, Region, Elsewhere].map(|near| all.level(0, near));
    assert!(order.is_sorted_by(|a, b| a < b) && all.level(1, Node) > all.level(0, Elsewhere));
    let zone = Preference::of(&[Zone]);
    assert_eq!(zone.level(0, Node), zone.level(0, Zone));
    assert_eq!(zone.level(0, Region), zone.level(0, Elsewhere));
    let strict = Preference { strict: true, ..zone };
    assert_eq!([Node, Zone, Region, Elsewhere].map(|n| strict.admits(n)), [true, true, false, false]);
    assert!(zone.admits(Elsewhere));
    assert!(usize::from(all.level(u8::MAX, Elsewhere)) < LEVELS);
}
