//! When this node's certificates end: one series an identity, and there are as many as accounts of enrolled
//! workloads.

use prometheus::proto::MetricFamily;

use super::family::Family;
use super::metrics as m;
use crate::identity::Identities;

/// The families.
pub fn families(identities: &Identities) -> [MetricFamily; 6] {
    let (mut expires, mut missing) = (Family::new(&m::IDENTITY_EXPIRES), 0);
    for shown in identities.show() {
        match shown.left() {
            Some(left) => expires.add(&[&shown.identity], left as f64),
            None => missing += 1,
        }
    }
    let (renewed, failed) = identities.counts();
    let (adopted, unkept) = identities.kept();
    [
        expires.finish(),
        Family::single(&m::IDENTITY_MISSING, f64::from(missing)),
        Family::single(&m::IDENTITY_RENEWED, renewed as f64),
        Family::single(&m::IDENTITY_FAILED, failed as f64),
        Family::single(&m::IDENTITY_ADOPTED, adopted as f64),
        Family::single(&m::IDENTITY_UNKEPT, unkept as f64),
    ]
}
