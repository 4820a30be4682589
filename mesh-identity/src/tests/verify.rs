//! What is refused, by name.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use proptest::prelude::*;
use rcgen::ExtendedKeyUsagePurpose::{ClientAuth, CodeSigning, ServerAuth};
use rustls_pki_types::{CertificateDer, UnixTime};

use crate::Refused;
use crate::maker::{Authority, Leaf};
use crate::verify::{BundleError, Peer, Roots};

const CART: &str = "spiffe://mesh.local/ns/shop/sa/cart";
const PAY: &str = "spiffe://mesh.local/ns/shop/sa/pay";

/// Days after 2026-01-01.
fn day(day: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_767_225_600 + day * 86_400)
}

fn unix(at: SystemTime) -> UnixTime {
    UnixTime::since_unix_epoch(at.duration_since(UNIX_EPOCH).unwrap())
}

/// What a leaf of our own authority comes to, as a server that is expected to be cart.
#[track_caller]
fn check(change: impl FnOnce(&mut Leaf), want: Result<(), Refused>) {
    let authority = Authority::new("root", day(0));
    let mut leaf = Leaf::of(CART, day(10));
    change(&mut leaf);
    let roots = Roots::new(&authority.bundle("mesh.local")).unwrap();
    let chain = [authority.issue(&leaf).der];
    let expected = [PAY.parse().unwrap(), CART.parse().unwrap()];
    assert_eq!(roots.verify(Peer::Server(&expected), &chain, unix(day(10))).map(|_| ()), want);
}

#[test]
fn a_leaf_is_refused_by_name() {
    check(|_| {}, Ok(()));
    check(|leaf| leaf.names.push("cart.shop.mesh".to_owned()), Ok(()));
    check(|leaf| leaf.uses.clear(), Ok(()));
    check(|leaf| leaf.valid.1 = day(10) - Duration::from_secs(1), Err(Refused::Expired));
    check(|leaf| leaf.valid.0 = day(10) + Duration::from_secs(1), Err(Refused::NotYetValid));
    check(|leaf| leaf.ca = true, Err(Refused::IsCa));
    check(|leaf| leaf.uses = vec![ClientAuth], Err(Refused::WrongUse));
    check(|leaf| leaf.uses = vec![CodeSigning], Err(Refused::WrongUse));
    check(|leaf| leaf.uris.clear(), Err(Refused::NoIdentity));
    check(|leaf| leaf.uris = vec!["https://mesh.local/ns/shop/sa/cart".to_owned()], Err(Refused::NoIdentity));
    check(|leaf| leaf.uris = vec![format!("{CART}/more")], Err(Refused::NoIdentity));
    check(|leaf| leaf.uris.push(PAY.to_owned()), Err(Refused::TwoIdentities));
    check(|leaf| leaf.uris.push("https://elsewhere".to_owned()), Err(Refused::TwoIdentities));
    check(|leaf| leaf.uris = vec![CART.replace("mesh", "mash")], Err(Refused::WrongTrustDomain));
    check(|leaf| leaf.uris = vec![CART.replace("cart", "card")], Err(Refused::WrongIdentity));
    check(|leaf| leaf.uris = vec![PAY.to_owned()], Ok(()));
}

#[test]
fn a_client_is_whoever_it_proves_to_be() {
    let authority = Authority::new("root", day(0));
    let roots = Roots::new(&authority.bundle("mesh.local")).unwrap();
    let mut leaf = Leaf::of(CART, day(10));
    leaf.uses = vec![ClientAuth];
    let client = |chain: &[CertificateDer<'_>]| roots.verify(Peer::Client, chain, unix(day(10)));
    assert_eq!(client(&[authority.issue(&leaf).der]).unwrap().to_string(), CART);
    leaf.uses = vec![ServerAuth];
    assert_eq!(client(&[authority.issue(&leaf).der]), Err(Refused::WrongUse));
    assert_eq!(client(&[]), Err(Refused::Missing));
    assert_eq!(client(&[b"nonsense".to_vec().into()]), Err(Refused::Malformed));
    let of = |name| Authority::new(name, day(0)).issue(&Leaf::of(CART, day(10))).der;
    assert_eq!(client(&[of("other")]), Err(Refused::UnknownCa));
    // An authority that was made anew under its old name.
    assert_eq!(client(&[of("root")]), Err(Refused::BadSignature));
}

#[test]
fn a_chain_leads_over_what_the_peer_sent() {
    let root = Authority::new("root", day(0));
    let middle = root.intermediate("middle", day(10));
    let roots = Roots::new(&root.bundle("mesh.local")).unwrap();
    let leaf = middle.issue(&Leaf::of(CART, day(10))).der;
    let whole = [leaf.clone(), middle.root.clone()];
    let at = |chain: &[CertificateDer<'_>], now| roots.verify(Peer::Client, chain, unix(now));
    assert!(at(&whole, day(10)).is_ok());
    assert_eq!(at(&[leaf], day(10)), Err(Refused::UnknownCa));
    assert_eq!(at(&whole, day(12)), Err(Refused::Expired));
    // An authority's own certificate is nobody's.
    assert_eq!(at(std::slice::from_ref(&middle.root), day(10)), Err(Refused::IsCa));
}

#[test]
fn what_was_revoked_stays_so_though_its_list_is_old() {
    let root = Authority::new("root", day(0));
    let middle = root.intermediate("middle", day(10));
    let mut bundle = root.bundle("mesh.local");
    let mut leaf = Leaf::of(CART, day(10));
    leaf.valid.1 = day(11);
    leaf.serial = 5;
    let chain = [middle.issue(&leaf).der, middle.root.clone()];
    let at = |bundle: &crate::Bundle, now| {
        Roots::new(bundle).unwrap().verify(Peer::Client, &chain, unix(now)).map(|_| ())
    };
    // Of another number, or by another authority.
    bundle.revoked = vec![middle.revoke(&[4], day(10)), root.revoke(&[5], day(10))];
    assert_eq!(at(&bundle, day(10)), Ok(()));
    bundle.revoked = vec![middle.revoke(&[5], day(10))];
    assert_eq!(at(&bundle, day(10)), Err(Refused::Revoked));
    assert_eq!(at(&bundle, day(10) + Duration::from_hours(20)), Err(Refused::Revoked));
    // The authority in between.
    bundle.revoked = vec![root.revoke(&[77], day(10))];
    assert_eq!(at(&bundle, day(10)), Err(Refused::Revoked));
}

#[test]
fn two_roots_count_while_one_follows_the_other() {
    let (old, new) = (Authority::new("root", day(0)), Authority::new("root", day(9)));
    let mut bundle = old.bundle("mesh.local");
    bundle.roots.push(new.root.clone());
    let roots = Roots::new(&bundle).unwrap();
    for authority in [old, new] {
        let chain = [authority.issue(&Leaf::of(CART, day(10))).der];
        assert!(roots.verify(Peer::Client, &chain, unix(day(10))).is_ok());
    }
}

#[test]
fn a_bundle_that_is_of_no_use_is_named() {
    let authority = Authority::new("root", day(0));
    let mut bundle = authority.bundle("mesh.local");
    bundle.revoked.push(b"nonsense".to_vec().into());
    assert!(matches!(Roots::new(&bundle).err(), Some(BundleError::Revoked { index: 0, .. })));
    bundle.roots.push(b"nonsense".to_vec().into());
    assert!(matches!(Roots::new(&bundle).err(), Some(BundleError::Root { index: 1, .. })));
    bundle.roots.clear();
    assert!(matches!(Roots::new(&bundle).err(), Some(BundleError::NoRoots(_))));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    /// One byte of a certificate changed: refused, or the change was none that counts. Never a panic, never another
    /// identity.
    #[test]
    fn damaged_certificates_prove_nothing(at in any::<prop::sample::Index>(), to in any::<u8>(), cut in any::<bool>()) {
        use std::sync::LazyLock;
        static GOOD: LazyLock<(Roots, Vec<u8>)> = LazyLock::new(|| {
            let authority = Authority::new("root", day(0));
            let roots = Roots::new(&authority.bundle("mesh.local")).unwrap();
            (roots, authority.issue(&Leaf::of(CART, day(10))).der.to_vec())
        });
        let (roots, good) = &*GOOD;
        let mut der = good.clone();
        let at = at.index(der.len());
        if cut { der.truncate(at) } else { der[at] = to }
        let same = der == *good;
        match roots.verify(Peer::Client, &[der.into()], unix(day(10))) {
            Ok(id) => prop_assert!(same && id.to_string() == CART),
            Err(_) => prop_assert!(!same),
        }
    }

    /// Any bytes at all.
    #[test]
    fn noise_is_malformed(der in prop::collection::vec(any::<u8>(), 0..300)) {
        let authority = Authority::new("root", day(0));
        let roots = Roots::new(&authority.bundle("mesh.local")).unwrap();
        prop_assert_eq!(roots.verify(Peer::Client, &[der.into()], unix(day(10))), Err(Refused::Malformed));
    }
}
