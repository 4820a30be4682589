//! When intermediates and roots follow one another. Pure: `now` is an argument.
//!
//! ```text
//! steady ──rotate──▶ announced: both roots are believed, the old one signs
//!                       │ every connected agent has taken the bundle
//!                       ▼
//!                    overlap: the new one signs, certificates of the old one are renewed
//!                       │ the last certificate of the old one has ended
//!                       ▼
//!                    steady
//! ```
//! An intermediate needs no announcement: it comes with each certificate.

/// How long a root is announced at least, seconds: longer than an agent that has lost its connection waits before it
/// is back, so that none is passed over when the control plane starts anew meanwhile.
pub const ANNOUNCED_AT_LEAST: u64 = 10;

/// What is known when it is asked what to do.
#[derive(Clone, Copy, Debug, Default)]
pub struct Facts {
    /// When the next root was announced; `None`: there is none.
    pub announced: Option<u64>,
    /// Every connected agent has taken the newest bundle.
    pub taken: bool,
    /// When the first of the former roots may go; `None`: there is none.
    pub former_until: Option<u64>,
    /// When the intermediate was made and when it ends.
    pub signer: (u64, u64),
    /// When the first of the retired intermediates may be forgotten.
    pub retired_until: Option<u64>,
    /// The intermediate is the mesh's own: it can be replaced.
    pub own: bool,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The next root signs from now on.
    Switch,
    /// A former root is believed no longer.
    DropFormer,
    /// A new intermediate.
    Renew,
    /// A retired intermediate is forgotten.
    Forget,
}

/// At `now`, Unix seconds; `None`: nothing.
pub fn next(facts: &Facts, now: u64) -> Option<Step> {
    let passed = |until: Option<u64>| until.is_some_and(|until| until <= now);
    if facts.announced.is_some_and(|since| since + ANNOUNCED_AT_LEAST <= now) && facts.taken {
        return Some(Step::Switch);
    }
    let (from, to) = facts.signer;
    // At half of its life: every certificate that it signs may still have its whole time.
    if facts.own && now >= from + to.saturating_sub(from) / 2 {
        return Some(Step::Renew);
    }
    if passed(facts.former_until) {
        return Some(Step::DropFormer);
    }
    passed(facts.retired_until).then_some(Step::Forget)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEADY: Facts = Facts {
        announced: None,
        taken: true,
        former_until: None,
        signer: (1000, 3000),
        retired_until: None,
        own: true,
    };

    #[test]
    fn an_intermediate_is_renewed_at_half_its_life() {
        assert_eq!(next(&STEADY, 1999), None);
        assert_eq!(next(&STEADY, 2000), Some(Step::Renew));
        assert_eq!(next(&Facts { own: false, ..STEADY }, 2999), None);
    }

    #[test]
    fn a_root_signs_when_every_agent_believes_it() {
        let announced = Facts { announced: Some(1200), taken: false, ..STEADY };
        assert_eq!(next(&announced, 1900), None);
        let (early, late) = (1200 + ANNOUNCED_AT_LEAST - 1, 1200 + ANNOUNCED_AT_LEAST);
        assert_eq!(next(&Facts { taken: true, ..announced }, early), None, "an agent may be on its way");
        assert_eq!(next(&Facts { taken: true, ..announced }, late), Some(Step::Switch));
    }

    #[test]
    fn the_old_ones_go_when_nothing_of_theirs_is_valid() {
        let overlap = Facts { former_until: Some(1500), retired_until: Some(1500), ..STEADY };
        assert_eq!(next(&overlap, 1499), None);
        assert_eq!(next(&overlap, 1500), Some(Step::DropFormer));
        assert_eq!(next(&Facts { former_until: None, ..overlap }, 1500), Some(Step::Forget));
    }
}
