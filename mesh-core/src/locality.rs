//! Which part of a service's load each of its endpoints takes, by priority and by how near it is.
//!
//! compile ──members──▶ **locality** ──weights──▶ { proxy: `Endpoint::weight`, plan: the tables of the kernel }
//!
//! Endpoints stand in levels: by priority, then by the nearest scope that a policy prefers and that holds them. The
//! first level takes as much as its healthy share of itself, times a factor, can carry; the next takes of the rest
//! what it can, and so on: Envoy's priority load. Whoever gets nothing is a *spare*, of weight 0: it stands in the
//! tables, is not drawn, and is found where all that are drawn do not fit.
//!
//! Invariants: while anybody takes connections, the parts are together [`WHOLE`]; an endpoint that is ejected has a
//! part only in a level that can't carry its own (less than half of it is left, and the levels together are too
//! weak) or where nobody is healthy; the same members give the same weights, in the kernel and in the proxy.
//! Not here: who is healthy (compile, and the kernel's ejections), the way from weights to a choice (alias, maglev,
//! balance, `mesh_common::pick`).

use std::fmt;

/// All of a service's load.
pub const WHOLE: u32 = 1 << 26;
/// Priorities: 0, the first, to 15.
pub const PRIORITIES: u8 = 16;
/// Envoy's factor, percent.
pub const OVERPROVISIONING: u16 = 140;

const SCOPES: usize = 4;
const LEVELS: usize = PRIORITIES as usize * SCOPES;

/// Where a node or a workload is. Empty: nobody has said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Locality {
    /// Of several zones.
    pub region: String,
    /// What fails together, within the region.
    pub zone: String,
}

/// How near a workload is to this node: the narrowest scope that holds both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Nearness {
    /// On it.
    Node,
    /// In its zone.
    Zone,
    /// In its region.
    Region,
    /// Elsewhere, or nobody knows where.
    #[default]
    Elsewhere,
}

impl Nearness {
    /// Its name in output.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Zone => "zone",
            Self::Region => "region",
            Self::Elsewhere => "elsewhere",
        }
    }
}

impl fmt::Display for Nearness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Locality {
    /// How near a workload that is there, on another node, is to who is here. Zones of one name in two regions are
    /// two.
    pub fn nearness(&self, region: &str, zone: &str) -> Nearness {
        if self.region != region {
            Nearness::Elsewhere
        } else if !zone.is_empty() && self.zone == zone {
            Nearness::Zone
        } else if region.is_empty() {
            Nearness::Elsewhere
        } else {
            Nearness::Region
        }
    }
}

/// What a policy says of locality.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preference {
    /// Scopes that come before what is outside them; bit [`Nearness`].
    scopes: u8,
    /// Nobody outside the widest of them is sent to.
    pub strict: bool,
    /// How much more than its share a level can carry, percent; 100 at least.
    pub overprovisioning: u16,
}

impl Default for Preference {
    fn default() -> Self {
        Self { scopes: 0, strict: false, overprovisioning: OVERPROVISIONING }
    }
}

impl Preference {
    /// Of these scopes.
    #[must_use]
    pub fn of(scopes: &[Nearness]) -> Self {
        let scopes = scopes.iter().fold(0, |bits, scope| bits | 1 << *scope as u8);
        Self { scopes, ..Self::default() }
    }

    /// The nearest preferred scope that holds who is so near.
    fn scope(self, near: Nearness) -> Nearness {
        let holds = [Nearness::Node, Nearness::Zone, Nearness::Region];
        let preferred = |scope: &Nearness| *scope >= near && self.scopes & (1 << *scope as u8) != 0;
        holds.into_iter().find(preferred).unwrap_or(Nearness::Elsewhere)
    }

    /// May connections go to who is so near?
    pub fn admits(self, near: Nearness) -> bool {
        !self.strict || self.scope(near) != Nearness::Elsewhere
    }

    /// The level of who is so near, 0 the first.
    pub fn level(self, priority: u8, near: Nearness) -> u8 {
        priority.min(PRIORITIES - 1) * SCOPES as u8 + self.scope(near) as u8
    }
}

/// Does an endpoint take connections?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// Yes.
    Healthy,
    /// It is left out, because connections to it failed.
    Ejected,
    /// No: it is ill, or drains. Its level is the weaker for it.
    Resting,
}

/// One endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// See [`Preference::level`].
    pub level: u8,
    /// Does it take connections?
    pub health: Health,
    /// As configured; 0: it counts for nothing.
    pub weight: u16,
}

/// The endpoints of a service port whose load is split, in the order in which the service has them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spread {
    /// As [`Preference::overprovisioning`].
    pub overprovisioning: u16,
    /// All of them.
    pub members: Box<[Member]>,
}

/// Weights of endpoints of one level.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Level {
    /// Of those that are healthy.
    pub healthy: u64,
    /// Of those that are ejected.
    pub ejected: u64,
    /// Of all.
    pub total: u64,
}

/// What a level gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// Of [`WHOLE`].
    pub load: u32,
    /// It goes to those that are ejected, too.
    pub ejected_too: bool,
}

impl Part {
    /// Of the weights of a level those that share its part.
    fn shared_by(self, level: Level) -> u64 {
        level.healthy + if self.ejected_too { level.ejected } else { 0 }
    }
}

/// The parts of the levels, the first first.
pub fn split(levels: &[Level], overprovisioning: u16) -> Vec<Part> {
    // With nobody healthy it is as though nobody was ejected.
    let nobody = levels.iter().all(|level| level.healthy == 0);
    let healthy = |level: &Level| if nobody { level.ejected } else { level.healthy };
    let carries = |level: &Level| -> u64 {
        if healthy(level) == 0 {
            return 0;
        }
        let wanted = u128::from(healthy(level)) * u128::from(overprovisioning) * u128::from(WHOLE);
        let can = wanted / (100 * u128::from(level.total.max(1)));
        (can.clamp(1, WHOLE.into())) as u64
    };
    let strength: u64 = levels.iter().map(carries).sum();
    let weak = strength < u64::from(WHOLE);
    let mut rest = WHOLE;
    let mut parts: Vec<Part> = levels
        .iter()
        .map(|level| {
            let carries = carries(level);
            // Together too weak, each takes by its strength.
            let load = if weak { carries * u64::from(WHOLE) / strength.max(1) } else { carries };
            let load = rest.min(load as u32);
            rest -= load;
            let panics = weak && level.healthy * 2 < level.healthy + level.ejected;
            Part { load, ejected_too: load > 0 && (nobody || panics) }
        })
        .collect();
    // What rounding has left.
    if let Some(first) = parts.iter_mut().find(|part| part.load > 0) {
        first.load += rest;
    }
    parts
}

impl Spread {
    /// The weights of the first `serving` members, of those that `has` knows: the others are not there. 0: a spare.
    pub fn weights(&self, serving: usize, has: impl Fn(usize) -> bool) -> Vec<u32> {
        let mut levels = [Level::default(); LEVELS];
        for (_, member) in self.members.iter().enumerate().filter(|(i, _)| has(*i)) {
            let (level, weight) = (&mut levels[usize::from(member.level) % LEVELS], u64::from(member.weight));
            level.total += weight;
            match member.health {
                Health::Healthy => level.healthy += weight,
                Health::Ejected => level.ejected += weight,
                Health::Resting => {}
            }
        }
        let parts = split(&levels, self.overprovisioning);
        let weight = |(i, member): (usize, &Member)| {
            let at = usize::from(member.level) % LEVELS;
            let part = parts[at];
            let shares = match member.health {
                Health::Healthy => part.load > 0,
                Health::Ejected => part.ejected_too,
                Health::Resting => false,
            };
            if !shares || member.weight == 0 || !has(i) {
                0
            } else if part.load == WHOLE {
                u32::from(member.weight)
            } else {
                let share = u64::from(part.load) * u64::from(member.weight);
                (share / part.shared_by(levels[at]).max(1)).max(1) as u32
            }
        };
        self.members.iter().enumerate().take(serving).map(weight).collect()
    }
}

#[cfg(test)]
mod tests;
