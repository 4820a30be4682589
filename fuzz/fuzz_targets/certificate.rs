//! What a peer's chain proves: nothing that was not signed, whatever the bytes; and a bundle that is damaged is named,
//! and does not end anybody.
//!
//! Input: a byte for what the rest is (leaf; leaf and intermediate, each after two bytes of length; revocation list;
//! root). `certificates` holds what is right; its keys are kept nowhere.

#![no_main]

use std::sync::LazyLock;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use mesh_identity::verify::{Peer, Roots, identity_in};
use mesh_identity::{Bundle, Refused};
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime};

const ROOT: &[u8] = include_bytes!("../certificates/root.der");
const MIDDLE: &[u8] = include_bytes!("../certificates/middle.der");
const LEAF: &[u8] = include_bytes!("../certificates/leaf.der");
const LEAF_ID: &str = "spiffe://mesh.local/ns/shop/sa/cart";
/// In the year 2030.
const NOW: Duration = Duration::from_secs(1_900_000_000);

static ROOTS: LazyLock<Roots> = LazyLock::new(|| Roots::new(&bundle(ROOT, None)).expect("the root is one"));

fn bundle(root: &[u8], list: Option<&[u8]>) -> Bundle {
    Bundle {
        trust_domain: "mesh.local".to_owned(),
        roots: vec![CertificateDer::from(root.to_vec())],
        revoked: list.map(|list| CertificateRevocationListDer::from(list.to_vec())).into_iter().collect(),
    }
}

fn verify(roots: &Roots, chain: &[&[u8]]) -> Result<String, Refused> {
    let chain: Vec<CertificateDer<'_>> = chain.iter().map(|der| CertificateDer::from(*der)).collect();
    let now = UnixTime::since_unix_epoch(NOW);
    let client = roots.verify(Peer::Client, &chain, now).map(|id| id.to_string());
    let expected = [LEAF_ID.parse().expect("an identity")];
    let server = roots.verify(Peer::Server(&expected), &chain, now).map(|id| id.to_string());
    assert_eq!(client.is_ok(), server.is_ok(), "{client:?} {server:?}");
    client
}

/// Proved is what was signed, and nothing else is an identity.
fn judge(chain: &[&[u8]]) {
    if let Ok(id) = verify(&ROOTS, chain) {
        assert_eq!(id, LEAF_ID);
    }
    for der in chain {
        let _ = identity_in(&CertificateDer::from(*der));
    }
}

fuzz_target!(|input: &[u8]| {
    let Some((kind, rest)) = input.split_first() else { return };
    match kind % 4 {
        0 => judge(&[rest, MIDDLE]),
        1 => {
            let mut chain = Vec::new();
            let mut rest = rest;
            while let Some((length, more)) = rest.split_first_chunk::<2>() {
                let (der, after) = more.split_at(usize::from(u16::from_be_bytes(*length)).min(more.len()));
                chain.push(der);
                rest = after;
            }
            judge(&chain);
        }
        2 => {
            if let Ok(roots) = Roots::new(&bundle(ROOT, Some(rest))) {
                let proved = verify(&roots, &[LEAF, MIDDLE]);
                assert!(proved.as_ref().map_or(true, |id| id == LEAF_ID), "{proved:?}");
            }
        }
        _ => {
            if let Ok(roots) = Roots::new(&bundle(rest, None)) {
                let _ = verify(&roots, &[LEAF, MIDDLE]);
            }
        }
    }
});
