//! Alias tables (Walker's method, built as Vose does): a weighted choice with one random number.
//!
//! weights ──▶ **alias** ──thresholds, aliases──▶ plan ──▶ `ENDPOINTS` ──▶ `mesh_common::decide`
//!
//! Invariant: drawn with [`mesh_common::decide::draw`] and [`mesh_common::decide::aliased`], an item comes
//! up with its share of the weights, within 2⁻³¹ (a threshold has 32 bits). One of weight zero is a spare, which a
//! draw meets once in 2³² that fall on its slot, since a fraction of 0 is at most any threshold: who must never come
//! up is left out by the caller.
//! Integers throughout: the same weights give the same table on every machine.

/// One slot of an alias table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// This slot's own item wins where the fraction drawn is at most this.
    pub threshold: u32,
    /// Else the item of this slot does.
    pub alias: u32,
}

/// The table of `weights`, a slot for each in the same order. Empty where the weights are all zero or none.
pub fn table(weights: &[u64]) -> Vec<Slot> {
    let total: u128 = weights.iter().map(|&w| u128::from(w)).sum();
    if total == 0 {
        return Vec::new();
    }
    // In units of 1 / (n × total): every slot holds `total`, and item i wants `n × weight`.
    let mut wanted: Vec<u128> = weights.iter().map(|&w| u128::from(w) * weights.len() as u128).collect();
    let mut slots: Vec<Slot> =
        (0..weights.len()).map(|i| Slot { threshold: u32::MAX, alias: i as u32 }).collect();
    let (mut under, mut over): (Vec<usize>, Vec<usize>) =
        (0..weights.len()).rev().partition(|&i| wanted[i] < total);
    while let (Some(poor), Some(&rich)) = (under.pop(), over.last()) {
        slots[poor] = Slot { threshold: threshold(wanted[poor], total), alias: rich as u32 };
        wanted[rich] -= total - wanted[poor];
        if wanted[rich] < total {
            over.pop();
            under.push(rich);
        }
    }
    slots
}

/// The threshold under which a fraction falls with probability `part / whole`: of the 2³² fractions,
/// `threshold + 1` do.
fn threshold(part: u128, whole: u128) -> u32 {
    let winning = ((part << 32) + whole / 2) / whole;
    winning.clamp(1, 1 << 32).saturating_sub(1) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FRACTIONS: f64 = 4_294_967_296.0;

    /// The exact probability of each item, summed over slots and fractions.
    fn probabilities(slots: &[Slot]) -> Vec<f64> {
        let mut p = vec![0.0; slots.len()];
        for (i, slot) in slots.iter().enumerate() {
            let own = (f64::from(slot.threshold) + 1.0) / FRACTIONS;
            p[i] += own / slots.len() as f64;
            p[slot.alias as usize] += (1.0 - own) / slots.len() as f64;
        }
        p
    }

    #[track_caller]
    fn check(weights: &[u64]) {
        let slots = table(weights);
        assert_eq!(slots.len(), weights.len());
        let total: u128 = weights.iter().map(|&w| u128::from(w)).sum();
        for (p, &w) in probabilities(&slots).iter().zip(weights) {
            let want = w as f64 / total as f64;
            assert!((p - want).abs() <= 2.0 / FRACTIONS + 1e-12, "{weights:?}: {p} instead of {want}");
        }
    }

    #[test]
    fn equal_weights_never_need_the_alias() {
        assert!(
            table(&[7; 5]).iter().enumerate().all(|(i, s)| s.threshold == u32::MAX && s.alias == i as u32)
        );
        assert_eq!(table(&[3]), [Slot { threshold: u32::MAX, alias: 0 }]);
        assert!(table(&[]).is_empty());
        assert!(table(&[0, 0]).is_empty());
    }

    #[test]
    fn three_to_one_is_exact() {
        assert_eq!(
            table(&[3, 1]),
            [Slot { threshold: u32::MAX, alias: 0 }, Slot { threshold: (1 << 31) - 1, alias: 0 }]
        );
    }

    #[test]
    fn the_extremes_of_weights() {
        check(&[1, u64::from(u32::MAX)]);
        check(&[1 << 52, 1, 1 << 52, 1]);
        check(&[65_535; 1000]);
    }

    #[test]
    fn a_spare_has_a_slot_that_leads_elsewhere() {
        let slots = table(&[0, 3, 0, 1]);
        check(&[0, 3, 0, 1]);
        for spare in [0, 2] {
            assert_eq!(slots[spare].threshold, 0);
            assert!([1, 3].contains(&slots[spare].alias));
        }
    }

    proptest! {
        #[test]
        fn every_item_has_its_share(weights in prop::collection::vec(1u64..1 << 52, 1..60)) {
            check(&weights);
        }

        #[test]
        fn small_weights_have_their_share(weights in prop::collection::vec(1u64..=100, 1..300)) {
            check(&weights);
        }
    }
}
