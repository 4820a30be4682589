//! The shop: three services of real programs on two nodes, and a shopper.

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use mesh_tests::{
    Mesh, Pod, eventually,
    eventually::until,
    metrics::Metrics,
    process::Process,
    programs::{Nginx, line_server, nginx},
};

/// The HTTP front of the shop.
pub const SHOP: Ipv4Addr = Ipv4Addr::new(240, 240, 0, 10);
/// The stock keeper, plain TCP.
pub const STOCK: Ipv4Addr = Ipv4Addr::new(240, 240, 0, 20);
/// Its port.
pub const STOCK_PORT: u16 = 7000;
/// How long a log line or a counter may take.
const PATIENCE: Duration = Duration::from_secs(2);

const SERVICES: &str = r"
apiVersion: nodemesh.io/v1
kind: Service
metadata: {name: shop, namespace: default}
spec:
  vips: [240.240.0.10]
  ports: [{name: http, port: 80, protocol: http}]
---
apiVersion: nodemesh.io/v1
kind: Service
metadata: {name: catalog-v1, namespace: default}
spec:
  ports: [{name: http, port: 80, protocol: http}]
---
apiVersion: nodemesh.io/v1
kind: Service
metadata: {name: catalog-v2, namespace: default}
spec:
  ports: [{name: http, port: 80, protocol: http}]
---
apiVersion: nodemesh.io/v1
kind: Service
metadata: {name: cart, namespace: default}
spec:
  ports: [{name: http, port: 80, protocol: http}]
---
apiVersion: nodemesh.io/v1
kind: Service
metadata: {name: stock, namespace: default}
spec:
  vips: [240.240.0.20]
  ports: [{name: tcp, port: 7000, protocol: tcp}]
";

/// Real programs in pods.
pub struct Shop {
    /// Who buys; on node 1.
    pub shopper: Pod,
    /// HTTP servers by pod name, with the pod's address.
    pub web: BTreeMap<String, (Pod, Nginx)>,
    /// TCP servers by pod name.
    pub stock: BTreeMap<String, (Pod, Process)>,
}

/// The route of the shop, its catalogue split between two versions.
pub fn route(v1: u32, v2: u32) -> String {
    format!(
        r"
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: shop, namespace: default}}
spec:
  parentRefs: [{{kind: Service, group: '', name: shop, port: 80}}]
  rules:
  - matches: [{{path: {{type: PathPrefix, value: /cart}}}}]
    backendRefs: [{{name: cart, port: 80}}]
  - matches: [{{path: {{type: PathPrefix, value: /catalog}}}}]
    backendRefs:
    - {{name: catalog-v1, port: 80, weight: {v1}}}
    - {{name: catalog-v2, port: 80, weight: {v2}}}
"
    )
}

/// Starts the programs, enrols the pods, applies services and route.
pub fn open(mesh: &Mesh) -> Shop {
    mesh.apply(SERVICES);
    mesh.apply(&route(90, 10));
    let mut web = BTreeMap::new();
    let wanted = [
        ("catalog-v1-a", 1, "catalog-v1"),
        ("catalog-v1-b", 2, "catalog-v1"),
        ("catalog-v2-a", 2, "catalog-v2"),
        ("cart-a", 2, "cart"),
    ];
    for (name, node, service) in wanted {
        let mut pod = mesh.pod(node, name).serves(service, "http", 8080).outside().up();
        let server = nginx(&pod, &[8080]);
        pod.enrol();
        web.insert(name.to_owned(), (pod, server));
    }
    let mut stock = BTreeMap::new();
    for (name, node) in [("stock-a", 1), ("stock-b", 2)] {
        let mut pod = mesh.pod(node, name).serves("stock", "tcp", STOCK_PORT).outside().up();
        let server = line_server(&pod, STOCK_PORT);
        pod.enrol();
        stock.insert(name.to_owned(), (pod, server));
    }
    let shopper = mesh.pod(1, "shopper").up();
    Shop { shopper, web, stock }
}

impl Shop {
    /// Requests with `word` in their path that each HTTP server logged, by pod; once they are `wanted` in
    /// all, or after two seconds: the line is written after the answer.
    pub fn hits(&self, word: &str, wanted: u64) -> BTreeMap<String, u64> {
        let begin = Instant::now();
        loop {
            let count = |(name, (_, server)): (&String, &(Pod, Nginx))| (name.clone(), server.hits(word));
            let hits: BTreeMap<_, _> = self.web.iter().map(count).collect();
            if hits.values().sum::<u64>() == wanted || begin.elapsed() > PATIENCE {
                return hits;
            }
        }
    }

    /// Connections that each TCP server logged, by pod.
    pub fn connections(&self) -> BTreeMap<String, u64> {
        let count = |server: &Process| server.log().lines().count() as u64;
        self.stock.iter().map(|(name, (_, server))| (name.clone(), count(server))).collect()
    }

    /// A pod's address and node.
    pub fn place(&self, name: &str) -> String {
        let pod = self.web.get(name).map(|(pod, _)| pod).or(self.stock.get(name).map(|(pod, _)| pod));
        pod.map(|pod| format!("{} on {}", pod.ip(), pod.node().name())).unwrap_or_default()
    }

    /// Ends everything in a TCP server's pod.
    pub fn kill_stock(&self, name: &str) {
        self.stock[name].0.kill();
    }

    /// Starts it again: program, then enrolment.
    pub fn revive_stock(&mut self, name: &str) {
        let (pod, server) = self.stock.get_mut(name).expect("a stock pod");
        eventually("the killed pod is empty", || !pod.cgroup().populated());
        pod.restart();
        *server = line_server(pod, STOCK_PORT);
        pod.enrol();
    }
}

/// Counters of one agent, as differences from an earlier scrape.
pub struct Since {
    before: Metrics,
    after: Metrics,
}

impl Since {
    /// How much `name` grew.
    pub fn count(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        self.after.count(name, labels).saturating_sub(self.before.count(name, labels))
    }
}

/// Scrapes node 1's agent until `good` likes the differences from `before`, two seconds at most.
pub fn since(mesh: &Mesh, before: &Metrics, good: impl Fn(&Since) -> bool) -> Since {
    let begin = Instant::now();
    loop {
        let since = Since { before: before.clone(), after: mesh.node(1).metrics() };
        if good(&since) || begin.elapsed() > PATIENCE {
            return since;
        }
    }
}

/// Waits until a first request finds every part in place.
pub fn settle(what: &str, mut probe: impl FnMut() -> bool) {
    until(Duration::from_secs(20), what, &mut probe, |&good| good);
}
