//! What a `GRPCRoute` does with calls, by gRPC's own Python on both sides: on one node and through tunnels.

use std::fs;

use mesh_tests::{
    Mesh, Pod, eventually,
    process::Process,
    programs::wait_for_ports,
    resources::{Service, at, vip4, vip6},
};

const PYTHON: &str = "/usr/bin/python3";

/// Answers every method of every service, and notes each call: who it is, the method, the header `x-echo`.
const SERVER: &str = r"
import grpc, sys
from concurrent import futures
name, calls = sys.argv[1], open(sys.argv[2], 'a', buffering=1)
class Any(grpc.GenericRpcHandler):
    def service(self, call):
        told = dict(call.invocation_metadata).get('x-echo', '-')
        def total(requests, context):
            size = sum(len(r) for r in requests)
            print(call.method, told, size, file=calls)
            context.set_trailing_metadata((('x-server', name),))
            return f'{name} {call.method} {told} {size}'.encode()
        return grpc.stream_unary_rpc_method_handler(total)
server = grpc.server(futures.ThreadPoolExecutor(8))
server.add_generic_rpc_handlers((Any(),))
server.add_insecure_port('[::]:8080')
server.start()
server.wait_for_termination()
";

/// Calls a method so many times with these headers and 100 000 bytes in five messages; a line for each outcome, sorted.
const CLIENT: &str = r"
import grpc, sys
target, method, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
headers = [tuple(h.split('=')) for h in sys.argv[4:]]
call = grpc.insecure_channel(target).stream_unary(method)
seen = []
for _ in range(count):
    try:
        reply, done = call.with_call((b'x' * 20000 for _ in range(5)), timeout=5, metadata=headers)
        name, path, told, size = reply.decode().split()
        assert (path, size) == (method, '100000'), reply
        assert dict(done.trailing_metadata())['x-server'] == name
        by = dict(done.initial_metadata()).get('x-by')
        seen.append(f'{name} {told} by={by}')
    except grpc.RpcError as e:
        head = dict(e.initial_metadata() or e.trailing_metadata() or ())
        seen.append(' '.join((e.code().name, head.get('x-mesh-reason', '-'))))
print('\n'.join(sorted(seen)))
";

fn serving(mesh: &Mesh, node: u8, name: &str, service: &str) -> (Pod, Process) {
    let mut pod = mesh.pod(node, name).serves(service, "http", 8080).outside().up();
    let calls = pod.work().join("calls");
    let mut server = pod.start("grpc", PYTHON, &["-c", SERVER, name, &calls.to_string_lossy()]);
    wait_for_ports(&pod, &mut server, &[8080]);
    pod.enrol();
    (pod, server)
}

fn calls(pod: &Pod, to: std::net::SocketAddr, method: &str, count: u32, headers: &[&str]) -> Vec<String> {
    let target = if to.is_ipv6() { format!("ipv6:{to}") } else { format!("ipv4:{to}") };
    let count = count.to_string();
    let args = [&["-c", CLIENT, &target, method, &count][..], headers].concat();
    pod.run(PYTHON, &args).unwrap().lines().map(str::to_owned).collect()
}

fn noted(pod: &Pod) -> Vec<String> {
    let text = fs::read_to_string(pod.work().join("calls")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

const ROUTE: &str =
    "---\napiVersion: gateway.networking.k8s.io/v1\nkind: GRPCRoute\nmetadata: {name: front}\nspec:
  parentRefs: [{kind: Service, name: front, port: 80}]
  rules:
  - matches: [{method: {service: shop.Cart}}]
    backendRefs: [{name: v1, port: 80, weight: 9}, {name: v2, port: 80, weight: 1}]
  - matches:
    - {method: {service: shop.Cart, method: Put}}
    - {method: {type: RegularExpression, service: 'shop[.].*', method: 'Set.*'}}
    filters:
    - {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-echo, value: rule}]}}
    - {type: ResponseHeaderModifier, responseHeaderModifier: {add: [{name: x-by, value: route}]}}
    - {type: RequestMirror, requestMirror: {backendRef: {name: dark, port: 80}}}
    backendRefs: [{name: v2, port: 80}]
  - matches: [{method: {method: Ping}, headers: [{name: x-beta, value: 'yes'}]}]
    backendRefs: [{name: v2, port: 80}]
";

#[test]
fn calls_go_by_service_method_and_headers() {
    let mesh = Mesh::builder().nodes(2).mtls().up();
    for (name, number) in [("front", 1), ("v1", 2), ("v2", 3), ("dark", 4)] {
        mesh.apply(&Service::vip(name, number).http("http", 80).yaml());
    }
    mesh.apply(ROUTE);
    let (_v1, _s1) = serving(&mesh, 1, "v1-a", "v1");
    let (_v2, _s2) = serving(&mesh, 2, "v2-a", "v2");
    let (dark, _s3) = serving(&mesh, 2, "dark-a", "dark");
    let client = mesh.pod(1, "client").up();
    for front in [at(vip4(1), 80), at(vip6(1), 80)] {
        let call = |method: &str, headers: &[&str]| calls(&client, front, method, 1, headers).remove(0);
        eventually("both answer", || {
            let seen = calls(&client, front, "/shop.Cart/Get", 20, &[]);
            seen[0] == "v1-a - by=None" && seen[19] == "v2-a - by=None"
        });
        let before = noted(&dark).len();
        assert_eq!(call("/shop.Cart/Put", &["x-echo=client"]), "v2-a rule by=route");
        assert_eq!(call("/shop.Pay/SetAll", &[]), "v2-a rule by=route");
        // A service by name comes before an expression.
        assert!(call("/shop.Cart/SetAll", &["x-echo=client"]).ends_with(" client by=None"));
        assert_eq!(call("/bank.Pay/Ping", &["x-beta=yes"]), "v2-a - by=None");
        assert_eq!(call("/bank.Pay/Ping", &[]), "UNIMPLEMENTED no_route");
        assert_eq!(call("/shop.Pay/Get", &[]), "UNIMPLEMENTED no_route");
        eventually("copies of two calls came, bodies and edits with them", || {
            noted(&dark)[before..] == ["/shop.Cart/Put rule 100000", "/shop.Pay/SetAll rule 100000"]
        });
    }
    let mut seen = calls(&client, at(vip4(1), 80), "/shop.Cart/Get", 200, &[]);
    seen.retain(|line| line.starts_with("v2-a"));
    assert!((6..=40).contains(&seen.len()), "a tenth of 200: {}", seen.len());
    let counted = |labels: &[(&str, &str)]| mesh.node(1).metrics().count("mesh_requests_total", labels);
    assert!(counted(&[("protocol", "grpc"), ("route", "default/front/0"), ("status", "200")]) >= 200);
    assert!(counted(&[("protocol", "grpc"), ("reason", "no_route")]) >= 4);
}

#[test]
fn a_port_with_a_route_of_grpc_has_none_of_http() {
    let mesh = Mesh::builder().up();
    for (name, number) in [("front", 1), ("v1", 2)] {
        mesh.apply(&Service::vip(name, number).http("http", 80).yaml());
    }
    let (_v1, _s1) = serving(&mesh, 1, "v1-a", "v1");
    let client = mesh.pod(1, "client").up();
    let route = |kind: &str, rule: &str| {
        format!(
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{name: front}}\nspec:\n\
             \x20 parentRefs: [{{kind: Service, name: front}}]\n  rules:\n  - {rule}\n"
        )
    };
    let front = at(vip4(1), 80);
    mesh.apply(&route("HTTPRoute", "backendRefs: [{name: v1, port: 80}]"));
    let one = || calls(&client, front, "/shop.Cart/Get", 1, &[]).remove(0);
    eventually("HTTP's route takes calls", || one() == "v1-a - by=None");
    mesh.apply(&route(
        "GRPCRoute",
        "{matches: [{method: {service: shop.Pay}}], backendRefs: [{name: v1, port: 80}, {name: gone, port: 80, weight: 0}]}",
    ));
    eventually("and not any more", || one() == "UNIMPLEMENTED no_route");
    let told = mesh.meshctl(&["get", "httproutes"], "");
    assert!(told.contains("port 80 of Service default/front has GRPCRoute default/front"), "{told}");
    let told = mesh.meshctl(&["get", "grpcroutes"], "");
    assert!(told.contains("backend Service default/gone does not exist"), "{told}");
    mesh.meshctl(&["delete", "grpcroute", "front"], "");
    eventually("until it goes", || one() == "v1-a - by=None");
    assert!(!mesh.meshctl(&["get", "httproutes"], "").contains("has GRPCRoute"));
    // A backend that is not there is no answer.
    let gone = "{matches: [{method: {service: shop.Cart}}], backendRefs: [{name: gone, port: 80}]}";
    mesh.apply(&route("GRPCRoute", &format!("{gone}\n  - backendRefs: [{{name: v1, port: 80}}]")));
    eventually("it is unavailable", || one() == "UNAVAILABLE no_backend");
}
