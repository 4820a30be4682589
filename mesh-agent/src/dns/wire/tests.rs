//! Questions as clients send them, and the answers taken apart again.

use domain::rdata::AllRecordData;
use proptest::prelude::*;

use super::*;
use crate::dns::zone::tests::snapshot;

/// A question as a client sends it; `edns`: its payload size.
fn question(name: &str, kind: Rtype, edns: Option<u16>) -> Vec<u8> {
    let mut builder = MessageBuilder::new_vec();
    builder.header_mut().set_id(0x1234);
    builder.header_mut().set_rd(true);
    let mut builder = builder.question();
    builder.push((Name::<Vec<u8>>::vec_from_str(name).unwrap(), kind, Class::IN)).unwrap();
    let mut builder = builder.additional();
    if let Some(size) = edns {
        builder
            .opt(|opt| {
                opt.set_udp_payload_size(size);
                Ok(())
            })
            .unwrap();
    }
    builder.finish()
}

fn answer_of(bytes: &[u8], udp: bool) -> Message<Vec<u8>> {
    let (answer, _) = Question::read(bytes).expect("the mesh's").answer(&snapshot(), udp).expect("an answer");
    Message::from_octets(answer).unwrap()
}

/// The records of the answer section, as people write them.
fn records(message: &Message<Vec<u8>>) -> Vec<String> {
    let records = message.answer().unwrap().limit_to::<AllRecordData<_, _>>();
    records.map(|record| record.unwrap().data().to_string()).collect()
}

#[track_caller]
fn check(name: &str, kind: Rtype, rcode: Rcode, want: &[&str]) -> Message<Vec<u8>> {
    let answer = answer_of(&question(name, kind, None), true);
    let header = answer.header();
    assert_eq!((header.id(), header.rcode()), (0x1234, rcode), "{name} {kind}");
    assert!(header.qr() && header.aa() && header.rd() && header.ra() && !header.tc());
    assert_eq!(records(&answer), want, "{name} {kind}");
    let counts = answer.header_counts();
    assert_eq!(counts.nscount(), u16::from(want.is_empty()), "{name} {kind}: a SOA where there is nothing");
    answer
}

#[test]
fn names_have_the_records_of_their_kind_and_no_others() {
    check("shop.default.mesh", Rtype::A, Rcode::NOERROR, &["240.240.0.1"]);
    check("shop.default.mesh", Rtype::AAAA, Rcode::NOERROR, &["fd00::1"]);
    check("shop.default.mesh", Rtype::ANY, Rcode::NOERROR, &["240.240.0.1", "fd00::1"]);
    check("shop.default.mesh", Rtype::TXT, Rcode::NOERROR, &[]);
    check("shop.default.mesh", Rtype::HTTPS, Rcode::NOERROR, &[]);
    check("default.mesh", Rtype::A, Rcode::NOERROR, &[]);
    check("gone.default.mesh", Rtype::A, Rcode::NXDOMAIN, &[]);
    let srv =
        check("_http._tcp.shop.default.mesh", Rtype::SRV, Rcode::NOERROR, &["0 1 80 shop.default.mesh"]);
    assert_eq!(srv.header_counts().arcount(), 2, "its addresses");
    let soa = answer_of(&question("mesh", Rtype::SOA, None), true);
    assert!(records(&soa)[0].starts_with("ns.dns.mesh"), "{:?}", records(&soa));
}

#[test]
fn the_question_comes_back_as_it_was() {
    let asked = question("ShOp.dEfAuLt.MeSh", Rtype::A, None);
    let answer = answer_of(&asked, true);
    assert_eq!(records(&answer), ["240.240.0.1"]);
    assert_eq!(answer.as_slice()[12..asked.len()], asked[12..]);
}

#[test]
fn what_is_not_one_question_about_the_mesh_is_left_alone() {
    let mine = question("shop.default.mesh", Rtype::A, None);
    assert!(Question::read(&mine).is_some());
    for name in ["example.com", "mesh.example", "shop.default.meshes", "shop.default", "."] {
        let asked = question(name, Rtype::A, None);
        assert!(Question::read(&asked).is_none_or(|q| q.answer(&snapshot(), true).is_none()), "{name}");
    }
    assert!(Question::read(&question("default.mesh", Rtype::AXFR, None)).is_none());
    let changed = |at: usize, to: u8| {
        let mut bytes = mine.clone();
        bytes[at] = to;
        bytes
    };
    for (what, bytes) in [
        ("an answer", changed(2, 0x81)),
        ("an update", changed(2, 0x28)),
        ("two questions", changed(5, 2)),
        ("none", changed(5, 0)),
        ("an answer section", changed(7, 1)),
        ("class CH", changed(mine.len() - 1, 3)),
        ("cut off", mine[..mine.len() - 1].to_vec()),
        ("a head alone", mine[..12].to_vec()),
        ("nothing", Vec::new()),
    ] {
        assert!(Question::read(&bytes).is_none(), "{what}");
    }
}

#[test]
fn a_host_name_outside_of_the_mesh_is_where_its_external_service_is() {
    let mut snapshot = snapshot();
    snapshot.hosts.insert("api.example".into(), "default/shop".into());
    let said = |name: &str, kind| {
        let bytes = question(name, kind, None);
        let (answer, _) = Question::read(&bytes)?.answer(&snapshot, true)?;
        Some(records(&Message::from_octets(answer).unwrap()))
    };
    // Its endpoints have IPv4 addresses alone: who was told of both would try the other one first.
    assert_eq!(said("API.example", Rtype::A).unwrap(), ["240.240.0.1"]);
    for none in [Rtype::AAAA, Rtype::HTTPS] {
        assert_eq!(said("api.example", none).unwrap(), Vec::<String>::new());
    }
    for (name, kind) in [("api.example", Rtype::MX), ("www.api.example", Rtype::A), ("example", Rtype::A)] {
        assert_eq!(said(name, kind), None, "{name} {kind}: others know");
    }
}

#[test]
fn an_answer_is_no_larger_than_the_client_takes() {
    let mut snapshot = snapshot();
    let mut log = mesh_core::snapshot::Service::clone(snapshot.services.get(&2).unwrap());
    let endpoints = (0..200u8).map(|i| mesh_core::snapshot::Endpoint {
        v4: Some([10, 0, 1, i].into()),
        ..log.endpoints[0].clone()
    });
    log.endpoints = endpoints.collect();
    log.serving = log.endpoints.len();
    snapshot.services.insert(2, std::sync::Arc::new(log));
    let answer = |edns, udp| {
        let bytes = question("log.default.mesh", Rtype::A, edns);
        let (answer, _) = Question::read(&bytes).unwrap().answer(&snapshot, udp).unwrap();
        Message::from_octets(answer).unwrap()
    };
    for (edns, limit) in [(None, 512), (Some(100), 512), (Some(1232), 1232)] {
        let message = answer(edns, true);
        assert!(message.header().tc() && message.as_slice().len() <= limit, "{edns:?}");
        assert!(message.as_slice().len() > limit - 20, "{edns:?}: no smaller than it must be");
        assert_eq!(message.opt().is_some(), edns.is_some());
    }
    for (edns, udp) in [(Some(4096), true), (None, false)] {
        let message = answer(edns, udp);
        assert_eq!((message.header().tc(), records(&message).len()), (false, 200));
    }
}

#[test]
fn who_speaks_a_later_edns_is_told_the_version() {
    let mut bytes = question("shop.default.mesh", Rtype::A, Some(1232));
    let version = bytes.len() - 5;
    bytes[version] = 1;
    let answer = answer_of(&bytes, true);
    assert_eq!(answer.opt_rcode(), OptRcode::BADVERS);
    assert_eq!(answer.header_counts().ancount(), 0);
}

#[test]
fn before_the_first_configuration_nothing_is_denied() {
    let bytes = question("shop.default.mesh", Rtype::A, None);
    let (answer, can_say) = Question::read(&bytes).unwrap().answer(&Snapshot::default(), true).unwrap();
    assert!(!can_say);
    assert_eq!(Message::from_octets(answer).unwrap().header().rcode(), Rcode::SERVFAIL);
}

#[test]
fn anything_that_is_a_question_can_be_refused() {
    let asked = question("example.com", Rtype::A, Some(1232));
    let refused = Message::from_octets(failure(&asked).unwrap()).unwrap();
    assert_eq!((refused.header().id(), refused.header().rcode()), (0x1234, Rcode::SERVFAIL));
    assert!(refused.is_answer(&Message::from_octets(&asked).unwrap()));
    assert_eq!(failure(&failure(&asked).unwrap()), None, "an answer is no question");
    assert_eq!(failure(&[1, 2, 3]), None);
}

/// Bytes near a question: one that is whole, some of its bytes others, cut or with more behind it.
fn damaged() -> impl Strategy<Value = Vec<u8>> {
    let names =
        ["shop.default.mesh", "_http._tcp.shop.default.mesh", "gone.default.mesh", "example.org", "mesh"];
    let kinds = [Rtype::A, Rtype::AAAA, Rtype::SRV, Rtype::ANY, Rtype::SOA];
    let whole =
        (prop::sample::select(names.to_vec()), prop::sample::select(kinds.to_vec()), any::<Option<u16>>())
            .prop_map(|(name, kind, edns)| question(name, kind, edns));
    let edits = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4);
    let tail = prop::collection::vec(any::<u8>(), 0..24);
    (whole, edits, any::<prop::sample::Index>(), any::<bool>(), tail).prop_map(
        |(mut bytes, edits, at, cut, tail)| {
            for (place, value) in edits {
                let place = place.index(bytes.len());
                bytes[place] = value;
            }
            if cut {
                bytes.truncate(at.index(bytes.len() + 1));
            }
            bytes.extend(tail);
            bytes
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn whatever_comes_is_answered_whole_and_within_bounds_or_passed_on(bytes in damaged(), udp: bool) {
        let Some(asked) = Question::read(&bytes) else { return Ok(()) };
        let Some((answer, _)) = asked.answer(&snapshot(), udp) else { return Ok(()) };
        let room = usize::from(if udp { LARGEST } else { u16::MAX });
        prop_assert!(answer.len() <= room);
        let message = Message::from_octets(&answer[..]).expect("a message");
        prop_assert!(message.header().qr());
        prop_assert_eq!(&answer[..2], &bytes[..2], "its number");
        // The question as it was asked, which follows the header of twelve bytes.
        let end = message.answer().expect("its sections").pos();
        prop_assert_eq!(&answer[12..end], &bytes[12..end]);
        prop_assert!(message.iter().all(|record| record.is_ok()), "records that can be read");
    }
}
