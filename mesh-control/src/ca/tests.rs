//! The authority as those see it who judge its certificates: rustls' own verifier.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use mesh_api::proto::v1::Certificate;
use rcgen::KeyPair;
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use x509_parser::extensions::{GeneralName, ParsedExtension};

use super::authority::{Authority, Given, Live, Lives};
use super::files::{Found, find};
use super::issued::Revoked;
use super::profile::P256;
use super::*;

const NOW: u64 = 1_800_000_000;
const LIVES: Lives = Lives { svid: 3600, node: 7200 };
const ID: &str = "spiffe://mesh.local/ns/shop/sa/cart";

fn open(dir: &Path) -> Authority {
    Authority::open(dir, None, LIVES, NOW).unwrap()
}

fn issue(live: &Live, now: u64) -> Certificate {
    let key = KeyPair::generate().unwrap();
    live.sign(ID, &P256(key.public_key_raw().to_vec()), now, LIVES.svid).unwrap()
}

/// As a server of the mesh would: with these roots and revocations.
fn judge(certificate: &Certificate, roots: &Live, revoked: &[Revoked], now: u64) -> Result<(), String> {
    let mut store = RootCertStore::empty();
    roots.roots.iter().for_each(|root| store.add(root.clone()).unwrap());
    judge_with(certificate, store, roots, revoked, now)
}

fn judge_with(
    certificate: &Certificate,
    store: RootCertStore,
    live: &Live,
    revoked: &[Revoked],
    now: u64,
) -> Result<(), String> {
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(store.into(), provider)
        .with_crls(live.revocations(revoked, now, now).unwrap())
        .allow_unknown_revocation_status()
        .build()
        .unwrap();
    let chain: Vec<_> = certificate.chain.iter().map(|der| CertificateDer::from(der.clone())).collect();
    let time = UnixTime::since_unix_epoch(std::time::Duration::from_secs(now));
    verifier.verify_client_cert(&chain[0], &chain[1..], time).map(drop).map_err(|error| error.to_string())
}

fn revoked(certificate: &Certificate) -> Revoked {
    Revoked {
        serial: certificate.serial.clone(),
        identity: ID.into(),
        node: "n1".into(),
        since: NOW,
        not_after: certificate.not_after,
        generation: certificate.generation,
        by: String::new(),
    }
}

#[test]
fn an_svid_has_the_profile_that_peers_expect() {
    let dir = tempfile::tempdir().unwrap();
    let live = open(dir.path()).live();
    let issued = issue(&live, NOW);
    assert_eq!((issued.not_before, issued.not_after), (NOW - 120, NOW + 3600));
    let (_, leaf) = x509_parser::parse_x509_certificate(&issued.chain[0]).unwrap();
    assert_eq!(leaf.subject().iter().count(), 0);
    assert_eq!(hex(leaf.raw_serial()), issued.serial);
    assert_eq!(leaf.raw_serial().len(), 16);
    let names = leaf.subject_alternative_name().unwrap().unwrap();
    assert!(names.critical);
    assert_eq!(names.value.general_names, [GeneralName::URI(ID)]);
    let usage = leaf.key_usage().unwrap().unwrap().value;
    assert!(usage.digital_signature() && usage.key_encipherment() && !usage.key_cert_sign());
    let extended = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(extended.server_auth && extended.client_auth && !extended.any);
    assert!(!leaf.is_ca());

    let (_, intermediate) = x509_parser::parse_x509_certificate(&issued.chain[1]).unwrap();
    let constraints = intermediate.basic_constraints().unwrap().unwrap();
    assert!(constraints.critical && constraints.value.ca);
    assert_eq!(constraints.value.path_len_constraint, Some(0));
    let key = &intermediate.public_key().algorithm;
    assert_eq!(key.parameters.as_ref().unwrap().as_oid().unwrap(), x509_parser::oid_registry::OID_EC_P256);
    for cert in [&leaf, &intermediate] {
        let has = |e: &x509_parser::extensions::X509Extension<'_>| {
            matches!(e.parsed_extension(), ParsedExtension::AuthorityKeyIdentifier(_))
        };
        assert!(cert.extensions().iter().any(has));
    }
    assert_ne!(issue(&live, NOW).serial, issued.serial);

    judge(&issued, &live, &[], NOW).unwrap();
    assert!(judge(&issued, &live, &[], NOW + 3601).unwrap_err().contains("expired"));
    assert!(judge(&issued, &live, &[], NOW - 121).unwrap_err().contains("not valid yet"));
}

#[test]
fn a_second_start_finds_the_same_authority_and_nobody_else_reads_its_keys() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(dir.path()).live();
    let again = open(dir.path()).live();
    assert_eq!(first.fingerprint(), again.fingerprint());
    assert_eq!(first.intermediate, again.intermediate);
    let mode = |file: &str| std::fs::metadata(dir.path().join(file)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("authority.json"), mode("ca.pem")), (0o600, 0o644));
}

#[test]
fn the_authority_of_before_becomes_the_root() {
    let (dir, old) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    open(old.path());
    let Found::Saved(saved) = find(old.path()).unwrap() else { panic!() };
    std::fs::write(dir.path().join("ca.pem"), &saved.root.cert).unwrap();
    std::fs::write(dir.path().join("ca.key"), &saved.root.key).unwrap();
    assert_eq!(open(dir.path()).live().fingerprint(), open(old.path()).live().fingerprint());
    assert!(!dir.path().join("ca.key").exists());
}

#[test]
fn halves_strangers_and_damage_are_refused() {
    let refused = |prepare: &dyn Fn(&Path)| {
        let dir = tempfile::tempdir().unwrap();
        open(dir.path());
        let Found::Saved(saved) = find(dir.path()).unwrap() else { panic!() };
        std::fs::remove_file(dir.path().join("authority.json")).unwrap();
        std::fs::write(dir.path().join("ca.key"), &saved.root.key).unwrap();
        prepare(dir.path());
        Authority::open(dir.path(), None, LIVES, NOW).err().expect("it must be refused")
    };
    let other = rcgen::KeyPair::generate().unwrap().serialize_pem();
    assert!(matches!(refused(&|dir| std::fs::write(dir.join("ca.key"), &other).unwrap()), CaError::Pair(_)));
    let half = refused(&|dir| std::fs::remove_file(dir.join("ca.key")).unwrap());
    assert!(matches!(half, CaError::Half(_)));
    let corrupt = |file: &'static str| refused(&move |dir| std::fs::write(dir.join(file), "x").unwrap());
    for file in ["ca.pem", "ca.key", "authority.json"] {
        assert!(matches!(corrupt(file), CaError::Corrupt { .. }), "{file}");
    }
}

#[test]
fn a_new_intermediate_leaves_what_the_old_one_signed_valid_and_revocable() {
    let dir = tempfile::tempdir().unwrap();
    let authority = open(dir.path());
    let before = issue(&authority.live(), NOW);
    authority.renew_intermediate(NOW).unwrap();
    let live = authority.live();
    let after = issue(&live, NOW);
    assert_eq!((before.generation, after.generation), (1, 2));
    for one in [&before, &after] {
        judge(one, &live, &[], NOW).unwrap();
        let list = [revoked(one)];
        assert!(judge(one, &live, &list, NOW).unwrap_err().contains("Revoked"), "{}", one.generation);
    }
    judge(&after, &live, &[revoked(&before)], NOW).unwrap();
    let until = live.retired_until().unwrap();
    assert!(until >= before.not_after);
    authority.forget_retired(until).unwrap();
    assert_eq!(authority.live().retired_until(), None);
}

#[test]
fn roots_follow_one_another_and_nobody_is_refused_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let authority = open(dir.path());
    let (old, before) = (authority.live(), issue(&authority.live(), NOW));
    authority.announce_root(NOW).unwrap();
    assert!(matches!(authority.announce_root(NOW), Err(CaError::Refused(_))), "one at a time");
    let announced = authority.live();
    assert_eq!((announced.roots.len(), announced.fingerprint()), (2, old.fingerprint()));
    judge(&issue(&announced, NOW), &old, &[], NOW).expect("the old root signs");

    authority.switch_root(NOW).unwrap();
    let live = open(dir.path()).live();
    assert_ne!(live.fingerprint(), old.fingerprint());
    let after = issue(&live, NOW);
    judge(&before, &live, &[], NOW).unwrap();
    judge(&after, &announced, &[], NOW).expect("announced before it signs");
    assert!(judge(&after, &old, &[], NOW).is_err(), "who was never told does not believe it");
    // But the server's chain leads to the old root as well, for tokens that name that one.
    let shown = live.server_certificate(&["localhost".into()], NOW).unwrap();
    let mut pinned = RootCertStore::empty();
    pinned.add(old.roots[0].clone()).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = rustls::client::WebPkiServerVerifier::builder_with_provider(pinned.into(), provider);
    let time = UnixTime::since_unix_epoch(std::time::Duration::from_secs(NOW));
    let name = "localhost".try_into().unwrap();
    rustls::client::danger::ServerCertVerifier::verify_server_cert(
        &*verifier.build().unwrap(),
        &shown.cert[0],
        &shown.cert[1..],
        &name,
        &[],
        time,
    )
    .unwrap();

    let until = live.former_until().unwrap();
    assert!(until >= before.not_after.max(NOW + LIVES.node));
    authority.drop_former(until).unwrap();
    let live = authority.live();
    assert_eq!(live.roots.len(), 1);
    assert!(judge(&before, &live, &[], NOW).is_err());
    judge(&after, &live, &[], NOW).unwrap();
}

#[test]
fn a_given_intermediate_signs_and_is_not_rotated() {
    let (own, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    open(own.path());
    let Found::Saved(saved) = find(own.path()).unwrap() else { panic!() };
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let given = Given {
        cert: write("int.pem", &saved.signer.cert),
        key: write("int.key", &saved.signer.key),
        bundle: write("roots.pem", &saved.root.cert),
    };
    let authority = Authority::open(dir.path(), Some(&given), LIVES, NOW).unwrap();
    judge(&issue(&authority.live(), NOW), &open(own.path()).live(), &[], NOW).unwrap();
    assert!(matches!(authority.announce_root(NOW), Err(CaError::Refused(_))));
    assert!(!dir.path().join("authority.json").exists());
    std::fs::write(&given.key, "x").unwrap();
    assert!(matches!(Authority::open(dir.path(), Some(&given), LIVES, NOW), Err(CaError::Given(_))));
}
