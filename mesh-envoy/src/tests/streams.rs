//! Streams, driven as Envoy and gRPC do.

use super::*;
use crate::session::{Heard, Push};

struct Client {
    variant: Variant,
    session: Session,
    catalog: Catalog,
    registry: Registry,
    now: Instant,
}

impl Client {
    fn new(variant: Variant) -> Self {
        let mut registry = shop();
        apply(&mut registry, vec![gateway()]);
        Self {
            variant,
            session: Session::new(variant),
            catalog: Catalog::default(),
            registry,
            now: Instant::now(),
        }
    }

    fn ask(&mut self, of: Type, ask: Ask) -> Heard {
        let heard = self.session.hear(of, ask);
        self.look(of);
        heard
    }

    fn names(&mut self, of: Type, names: &[&str]) {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        self.ask(of, Ask { names, ..Ask::default() });
    }

    fn look(&mut self, of: Type) {
        if let Some(want) = self.session.want(of).cloned() {
            let set = self.catalog.wanted(&Round::new(&self.registry), "edge", of, &want);
            self.session.set(of, set);
        }
    }

    fn change(&mut self, objects: Vec<Object>) {
        let delta = apply(&mut self.registry, objects);
        self.catalog.changed(&delta);
        for of in Type::ALL {
            self.look(of);
        }
    }

    fn next(&mut self) -> Option<Push> {
        self.session.next(self.now)
    }

    /// Takes a response of this type, and says so; its names.
    #[track_caller]
    fn takes(&mut self, of: Type) -> Vec<String> {
        let push = self.next().unwrap_or_else(|| panic!("no {of:?}"));
        assert_eq!(push.of, of);
        self.ack(&push);
        push.resources.iter().map(|resource| resource.name.to_string()).collect()
    }

    fn ack(&mut self, push: &Push) {
        let names = match (self.session.want(push.of), self.variant) {
            (Some(want), Variant::World) if !want.all => want.names.iter().map(ToString::to_string).collect(),
            _ => Vec::new(),
        };
        let world = push.nonce.clone();
        let heard = self
            .session
            .hear(push.of, Ask { nonce: world, names, version: push.version.to_string(), ..Ask::default() });
        assert_eq!(heard.answer, Some(Ok(())));
    }
}

/// As an Envoy begins.
fn begun(variant: Variant) -> Client {
    let mut client = Client::new(variant);
    client.names(Type::Cluster, &[]);
    assert_eq!(client.takes(Type::Cluster), [WEB]);
    client.names(Type::Endpoints, &[WEB]);
    assert_eq!(client.takes(Type::Endpoints), [WEB]);
    client.names(Type::Listener, &[]);
    assert_eq!(client.takes(Type::Listener), ["shop/edge"]);
    client.names(Type::Route, &["shop/edge"]);
    assert_eq!(client.takes(Type::Route), ["shop/edge"]);
    assert_eq!(client.next(), None);
    client
}

fn to(name: &str) -> Object {
    route(json!([{ "backendRefs": [{ "name": name, "port": 80 }] }]))
}

#[test]
fn routes_wait_for_clusters_and_clusters_leave_after_routes() {
    let mut client = begun(Variant::World);
    client.change(vec![to("v2")]);
    // The new cluster beside the old one, which routes still name.
    let push = client.next().unwrap();
    let names: Vec<_> = push.resources.iter().map(|resource| &*resource.name).collect();
    assert_eq!((push.of, &names[..]), (Type::Cluster, &["v2.shop.mesh:80", WEB][..]));
    assert_eq!(client.next(), None, "routes wait");
    client.ack(&push);
    assert_eq!(client.next(), None, "its endpoints were not asked for yet");
    client.names(Type::Endpoints, &[WEB, "v2.shop.mesh:80"]);
    let push = client.next().unwrap();
    assert_eq!(push.of, Type::Endpoints);
    assert_eq!(client.next(), None, "nor taken");
    client.ack(&push);
    let push = client.next().unwrap();
    assert_eq!(push.of, Type::Route);
    assert_eq!(client.next(), None);
    client.ack(&push);
    assert_eq!(client.takes(Type::Cluster), ["v2.shop.mesh:80"]);
    assert_eq!(client.next(), None);
}

#[test]
fn who_asks_for_no_endpoints_has_its_routes_later() {
    let mut client = begun(Variant::Delta);
    client.change(vec![to("v2")]);
    assert_eq!(client.takes(Type::Cluster), ["v2.shop.mesh:80"]);
    assert_eq!(client.next(), None);
    assert_eq!(client.session.wait(client.now), Some(client.now + WARM));
    client.now += WARM + Duration::from_millis(1);
    assert_eq!(client.takes(Type::Route), ["shop/edge"]);
}

#[test]
fn who_comes_back_is_sent_what_differs() {
    let mut first = Client::new(Variant::World);
    first.names(Type::Cluster, &[]);
    let version = first.next().unwrap().version.to_string();
    let mut again = Client::new(Variant::World);
    again.ask(Type::Cluster, Ask { version: version.clone(), ..Ask::default() });
    assert_eq!(again.next(), None);
    again.change(vec![to("v2")]);
    let push = again.next().unwrap();
    assert_eq!((push.of, push.version == version.into()), (Type::Cluster, false));

    let mut delta = Client::new(Variant::Delta);
    delta.names(Type::Cluster, &[]);
    let held = delta.next().unwrap().resources[0].clone();
    let has = |version: &str| {
        let has = [(WEB.to_owned(), version.to_owned()), ("gone".to_owned(), "1".to_owned())].into();
        Ask { has, ..Ask::default() }
    };
    let mut again = Client::new(Variant::Delta);
    again.ask(Type::Cluster, has(&held.version));
    let push = again.next().unwrap();
    assert_eq!((push.resources.len(), &push.removed[..]), (0, &[Arc::from("gone")][..]));
    let mut again = Client::new(Variant::Delta);
    again.ask(Type::Cluster, has("older"));
    assert_eq!(again.next().unwrap().resources.len(), 1);
}

#[test]
fn what_was_refused_is_not_sent_again_until_it_changes() {
    for variant in [Variant::World, Variant::Delta] {
        let mut client = begun(variant);
        client.change(vec![to("v2")]);
        let push = client.next().unwrap();
        let ask = Ask { nonce: push.nonce, error: Some("no\n  room".into()), ..Ask::default() };
        assert_eq!(client.ask(Type::Cluster, ask).answer, Some(Err("no room".into())));
        client.now += WARM;
        assert_eq!(client.next().unwrap().of, Type::Route, "the rest goes on");
        client.change(vec![workload("w1", "web", "10.0.0.9", json!({}))]);
        assert_eq!(client.next().unwrap().of, Type::Endpoints);
    }
}

#[test]
fn a_stale_answer_settles_nothing() {
    let mut client = begun(Variant::World);
    client.change(vec![workload("w1", "web", "10.0.0.9", json!({}))]);
    let push = client.next().unwrap();
    let stale = Ask { nonce: "1".into(), names: vec![], ..Ask::default() };
    assert_eq!(client.ask(Type::Endpoints, stale), Heard::default());
    client.ack(&push);
    assert_eq!(client.next(), None);
}

#[test]
fn names_that_are_not_there_are_said_to_be_so_once() {
    let mut client = Client::new(Variant::Delta);
    client.names(Type::Endpoints, &["no.shop.mesh:80"]);
    let push = client.next().unwrap();
    assert_eq!((push.resources.len(), &*push.removed[0]), (0, "no.shop.mesh:80"));
    client.ack(&push);
    assert_eq!(client.next(), None);
    let again = Ask { names: vec!["no.shop.mesh:80".into()], ..Ask::default() };
    assert!(client.ask(Type::Endpoints, again).wants);
    assert_eq!(client.next().unwrap().removed.len(), 1, "asked again, told again");
}

#[test]
fn an_updated_cluster_has_its_endpoints_again() {
    for variant in [Variant::World, Variant::Delta] {
        let mut client = begun(variant);
        let policy = json!({ "targetRefs": [{ "kind": "Service", "name": "web" }], "connectTimeout": "1s" });
        client.change(vec![object("TrafficPolicy", "p", policy)]);
        assert_eq!(client.takes(Type::Cluster), [WEB]);
        assert_eq!(client.takes(Type::Endpoints), [WEB]);
        assert_eq!(client.next(), None);
    }
}
