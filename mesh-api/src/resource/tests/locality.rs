//! Where workloads are, and which come first: what is refused.

use super::*;

#[test]
fn a_place_is_refused_where_it_is_wrong() {
    use Reason::*;
    refuses(&changed(3, "/spec/locality", json!("eu")), WrongType, "spec.locality");
    refuses(&changed(3, "/spec/locality", json!({"zone": "a/b"})), BadFormat, "spec.locality.zone");
    refuses(&changed(3, "/spec/locality", json!({"subzone": "a"})), NotBuiltYet, "spec.locality.subzone");
    refuses(&changed(3, "/spec/priority", json!(16)), OutOfRange, "spec.priority");
    refuses(&changed(3, "/spec/services/0/priority", json!(1)), NotBuiltYet, "spec.services[0].priority");
}

#[test]
fn a_preference_is_refused_where_it_is_wrong() {
    use Reason::*;
    let at = |field: &str| (format!("/spec/locality/{field}"), format!("spec.locality.{field}"));
    refuses(&changed(13, "/spec/locality", json!("zone")), WrongType, "spec.locality");
    let (field, path) = at("prefer");
    refuses(&changed(13, &field, json!(["zone", "node"])), Conflict, &path);
    refuses(&changed(13, &field, json!(["zone", "zone"])), Conflict, &path);
    refuses(&changed(13, &field, json!(["continent"])), BadFormat, "spec.locality.prefer[0]");
    // The example is strict.
    refuses(&changed(13, &field, json!([])), Conflict, "spec.locality.mode");
    let (field, path) = at("overprovisioningPercent");
    refuses(&changed(13, &field, json!(99)), OutOfRange, &path);
    refuses(&changed(13, &field, json!(1.4)), OutOfRange, &path);
    let spec = Resource::parse(&changed(13, "/spec/locality", json!({}))).unwrap().to_json();
    let whole =
        json!({"prefer": ["node", "zone", "region"], "mode": "failover", "overprovisioningPercent": 140});
    assert_eq!(spec["spec"]["locality"], whole);
}
