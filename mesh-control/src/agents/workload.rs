//! What an agent may register, and how its message becomes an object.
//!
//! The object goes through the same parser as what people write: one set of rules, one form of refusal.

use mesh_api::proto::v1::WorkloadUpsert;
use mesh_api::resource::{Kind, Resource, WorkloadHealth};
use serde_json::{Value, json};

use crate::auth::Principal;

/// The workload of an upsert, or why it is refused.
pub fn admit(who: &Principal, upsert: &WorkloadUpsert) -> Result<Resource, String> {
    let Some(workload) = &upsert.workload else { return Err("the message has no workload".to_owned()) };
    let account = if workload.service_account.is_empty() { "default" } else { &workload.service_account };
    let namespace = &workload.namespace;
    if !who.may_register(namespace, account) {
        let granted: Vec<_> = who.grants.iter().map(ToString::to_string).collect();
        return Err(format!(
            "node {} may not host {namespace}/{account}: it joined with a token for {}; make one that allows it with `meshctl \
             token create --node {} --allow {namespace}/{account}`",
            who.node,
            granted.join(", "),
            who.node
        ));
    }
    let services: Vec<Value> = upsert
        .memberships
        .iter()
        .map(|one| {
            let mut membership = json!({ "service": one.service, "weight": one.weight });
            if !one.port_name.is_empty() {
                membership["portName"] = one.port_name.as_str().into();
            }
            // 0: the service port's own target.
            if one.target_port != 0 {
                membership["targetPort"] = one.target_port.into();
            }
            membership
        })
        .collect();
    let mut object = json!({
        "apiVersion": Kind::Workload.api_version(),
        "kind": Kind::Workload.name(),
        "metadata": { "name": workload.name, "namespace": namespace, "labels": workload.labels },
        "spec": {
            "addresses": workload.addresses,
            "node": who.node,
            "serviceAccount": account,
            "hostNetwork": workload.host_network,
            "hbone": workload.hbone,
            "priority": workload.priority,
            "services": services,
        },
    });
    if let Some(at) = &workload.locality {
        object["spec"]["locality"] = json!({ "region": at.region, "zone": at.zone });
    }
    let mut workload = Resource::parse(&object).map_err(|error| error.message)?;
    workload.status.health =
        upsert.starting.then(|| WorkloadHealth { starting: true, ..WorkloadHealth::default() });
    Ok(workload)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::Role;
    use mesh_api::proto::v1::{Locality, Membership, Workload};

    fn who() -> Principal {
        let grants = vec!["shop/*".parse().unwrap(), "bank/pay".parse().unwrap()];
        Principal { token: "t".into(), name: String::new(), role: Role::Node, node: "n1".into(), grants }
    }

    fn upsert(namespace: &str, account: &str) -> WorkloadUpsert {
        let workload = Workload {
            namespace: namespace.into(),
            name: "cart-1".into(),
            service_account: account.into(),
            node: "another".into(),
            addresses: vec!["10.0.0.1".into()],
            ..Workload::default()
        };
        let membership =
            Membership { service: "cart".into(), target_port: 8080, weight: 2, ..Membership::default() };
        WorkloadUpsert {
            request: 1,
            workload: Some(workload),
            memberships: vec![membership],
            ..WorkloadUpsert::default()
        }
    }

    #[test]
    fn the_node_is_the_tokens_whatever_the_message_says() {
        let object = admit(&who(), &upsert("shop", "cart")).unwrap().to_json();
        assert_eq!(object["spec"]["node"], "n1");
        assert!(object["spec"].get("hostNetwork").is_none());
        assert_eq!(
            object["spec"]["services"][0],
            json!({ "service": "cart", "targetPort": 8080, "weight": 2 })
        );
    }

    #[test]
    fn who_shares_the_hosts_network_says_so() {
        let mut shares = upsert("shop", "cart");
        shares.workload.as_mut().unwrap().host_network = true;
        assert_eq!(admit(&who(), &shares).unwrap().to_json()["spec"]["hostNetwork"], true);
    }

    #[test]
    fn where_it_runs_and_its_priority_are_taken() {
        let mut placed = upsert("shop", "cart");
        let workload = placed.workload.as_mut().unwrap();
        workload.locality = Some(Locality { region: "eu".into(), zone: "a".into() });
        workload.priority = 3;
        let spec = admit(&who(), &placed).unwrap().to_json()["spec"].take();
        assert_eq!(
            (&spec["locality"], &spec["priority"]),
            (&json!({"region": "eu", "zone": "a"}), &json!(3))
        );
        let plain = admit(&who(), &upsert("shop", "cart")).unwrap().to_json()["spec"].take();
        assert!(plain.get("locality").is_none() && plain.get("priority").is_none());
    }

    #[test]
    fn outside_the_grants_is_refused_with_a_remedy() {
        assert!(admit(&who(), &upsert("bank", "pay")).is_ok());
        for (namespace, account) in [("bank", "admin"), ("prod", "cart"), ("", "cart"), ("bank", "")] {
            let refusal = admit(&who(), &upsert(namespace, account)).unwrap_err();
            assert!(refusal.contains("may not host") && refusal.contains("--allow"), "{refusal}");
        }
    }

    #[test]
    fn malformed_workloads_name_the_field() {
        let mut bad = upsert("shop", "cart");
        bad.memberships[0].target_port = 70_000;
        let refusal = admit(&who(), &bad).unwrap_err();
        assert!(refusal.starts_with("spec.services[0].targetPort: 70000"), "{refusal}");
        assert!(admit(&who(), &WorkloadUpsert::default()).is_err());
    }
}
