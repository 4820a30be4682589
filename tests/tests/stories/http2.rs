//! HTTP/2 and gRPC, with curl, nginx and gRPC's own Python: on one node and through tunnels.

use std::{fs, net::SocketAddr};

use mesh_tests::{
    Mesh, Pod, eventually,
    process::Process,
    programs::{curl, url, wait_for_ports},
    resources::{Service, at, authorization, vip4, vip6},
};

const PYTHON: &str = "/usr/bin/python3";
const KNOWN: &str = "--http2-prior-knowledge";

/// A pod whose nginx speaks HTTP/2, and nothing else, on 8080.
pub(crate) fn web(mesh: &Mesh, node: u8, name: &str, service: &str) -> (Pod, Process) {
    let mut pod = mesh.pod(node, name).serves(service, "http", 8080).outside().up();
    let work = pod.work().to_path_buf();
    let config = format!(
        "daemon off; worker_processes 1; pid {work}/nginx.pid; error_log {work}/error.log;\n\
         events {{ worker_connections 1024; }}\n\
         http {{ access_log off; client_body_temp_path {work}/t1; proxy_temp_path {work}/t2;\n\
           fastcgi_temp_path {work}/t3; uwsgi_temp_path {work}/t4; scgi_temp_path {work}/t5;\n\
           server {{ listen 8080 http2; listen [::]:8080 http2;\n\
             location / {{ return 200 \"name={name} uri=$request_uri spoken=$server_protocol echo=$http_x_echo\\n\"; }}\n\
             location /files/ {{ alias {work}/files/; }}\n\
         }} }}\n",
        work = work.display(),
    );
    fs::write(work.join("nginx.conf"), config).unwrap();
    fs::create_dir_all(work.join("files")).unwrap();
    let (path, log) = (work.join("nginx.conf"), work.join("error.log"));
    let args = ["-c", &path.to_string_lossy(), "-e", &log.to_string_lossy()];
    let mut server = pod.start("nginx", "/usr/sbin/nginx", &args);
    wait_for_ports(&pod, &mut server, &[8080]);
    pod.enrol();
    (pod, server)
}

#[test]
fn requests_of_http2_are_routed_edited_and_balanced() {
    let mesh = Mesh::builder().nodes(2).mtls().up();
    for (name, number) in [("front", 1), ("v2", 2)] {
        mesh.apply(&Service::vip(name, number).http("http", 80).yaml());
    }
    mesh.apply(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: front}\nspec:\n\
         \x20 parentRefs: [{kind: Service, name: front}]\n  rules:\n\
         \x20 - matches: [{path: {value: /v2}, headers: [{name: x-beta, value: 'yes'}]}]\n\
         \x20   filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-echo, value: rule}]}}]\n\
         \x20   backendRefs: [{name: v2, port: 80}]\n\
         \x20 - backendRefs: [{name: front, port: 80}]\n",
    );
    let (a, _a) = web(&mesh, 1, "a", "front");
    let (b, _b) = web(&mesh, 2, "b", "front");
    let (_v2, _v2_server) = web(&mesh, 2, "v2-a", "v2");
    let client = mesh.pod(1, "client").up();
    // Not a power of two, longer than any window.
    let body: Vec<u8> = (0..3_000_017u32).map(|i| (i % 251) as u8).collect();
    for pod in [&a, &b] {
        fs::write(pod.work().join("files/big"), &body).unwrap();
    }
    for front in [url(vip4(1), 80, ""), url(vip6(1), 80, "")] {
        let get = |args: &[&str], path: &str| {
            curl(&client, &[&[KNOWN], args, &[&*format!("{front}{path}")]].concat())
        };
        let mut seen = std::collections::BTreeSet::new();
        eventually("both ends answer, by HTTP/2", || {
            let reply = get(&[], "/x?q=1");
            let fine =
                reply.status == 200 && reply.field("spoken") == "HTTP/2.0" && reply.field("uri") == "/x?q=1";
            if fine {
                seen.insert(reply.name().to_owned());
            }
            seen.len() == 2
        });
        eventually("the route is there", || get(&["-H", "X-Beta: yes"], "/v2/x").name() == "v2-a");
        let reply = get(&["-H", "x-beta: yes", "-H", "x-echo: client"], "/v2/x");
        assert_eq!((reply.name(), reply.field("echo")), ("v2-a", "rule"), "{reply:?}");
        for _ in 0..4 {
            assert_eq!(get(&["-o", "got"], "/files/big").status, 200);
            assert!(fs::read(client.work().join("got")).unwrap() == body, "the body came through changed");
        }
    }
    let asked =
        mesh.node(1).metrics().count("mesh_requests_total", &[("protocol", "http2"), ("status", "200")]);
    assert!(asked >= 12, "{asked}");
}

/// gRPC without generated code: methods of one service that take and give bytes.
const SERVER: &str = r"
import grpc, sys
from concurrent import futures
name = sys.argv[1].encode()
def echo(request, context):
    context.set_trailing_metadata((('x-server', name.decode()),))
    return name + b'|' + request
def count(request, context):
    for i in range(int(request)):
        yield str(i).encode()
def total(requests, context):
    return str(sum(len(r) for r in requests)).encode()
def fail(request, context):
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, 'not now')
m = {
    'Echo': grpc.unary_unary_rpc_method_handler(echo),
    'Count': grpc.unary_stream_rpc_method_handler(count),
    'Total': grpc.stream_unary_rpc_method_handler(total),
    'Fail': grpc.unary_unary_rpc_method_handler(fail),
}
server = grpc.server(futures.ThreadPoolExecutor(8))
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler('shop.Cart', m),))
server.add_insecure_port('[::]:8080')
server.start()
server.wait_for_termination()
";

/// Calls every method; says who answered the unary calls, and what a refusal looks like.
const CLIENT: &str = r"
import grpc, sys
channel = grpc.insecure_channel(sys.argv[1])
names = set()
echo = channel.unary_unary('/shop.Cart/Echo')
try:
    for i in range(40):
        reply, call = echo.with_call(b'hello', timeout=5)
        name, said = reply.split(b'|')
        assert said == b'hello' and dict(call.trailing_metadata())['x-server'].encode() == name
        names.add(name.decode())
    got = [int(r) for r in channel.unary_stream('/shop.Cart/Count')(b'5000', timeout=20)]
    assert got == list(range(5000)), len(got)
    pieces = (b'x' * 60000 for _ in range(100))
    assert channel.stream_unary('/shop.Cart/Total')(pieces, timeout=20) == b'6000000'
    try:
        channel.unary_unary('/shop.Cart/Fail')(b'', timeout=5)
        raise SystemExit('it did not fail')
    except grpc.RpcError as e:
        assert (e.code(), e.details()) == (grpc.StatusCode.FAILED_PRECONDITION, 'not now'), e
    print('fine', *sorted(names))
except grpc.RpcError as e:
    print('refused', e.code().name, dict(e.initial_metadata() or e.trailing_metadata() or ()).get('x-mesh-reason'))
";

pub fn cart(mesh: &Mesh, node: u8, name: &str) -> (Pod, Process) {
    let mut pod = mesh.pod(node, name).label("app", "cart").serves("cart", "http", 8080).outside().up();
    let mut server = pod.start("grpc", PYTHON, &["-c", SERVER, name]);
    wait_for_ports(&pod, &mut server, &[8080]);
    pod.enrol();
    (pod, server)
}

pub fn called(pod: &Pod, to: SocketAddr) -> String {
    let target = if to.is_ipv6() { format!("ipv6:{to}") } else { format!("ipv4:{to}") };
    pod.run(PYTHON, &["-c", CLIENT, &target]).unwrap().trim().to_owned()
}

#[test]
fn grpc_calls_are_balanced_one_by_one_streamed_and_authorised() {
    let mesh = Mesh::builder().nodes(2).mtls().up();
    mesh.apply(&Service::vip("cart", 1).http("http", 80).yaml());
    let client = mesh.pod(1, "client").account("shop").up();
    let (_a, _a_server) = cart(&mesh, 1, "cart-a");
    let (_b, _b_server) = cart(&mesh, 2, "cart-b");
    for to in [at(vip4(1), 80), at(vip6(1), 80)] {
        eventually("one channel calls both", || called(&client, to) == "fine cart-a cart-b");
    }
    // gRPC's method is the path.
    let rules = "[{to: [{paths: [/shop.Cart/Count]}]}]";
    mesh.apply(&authorization("reads", "cart", "allow", rules));
    for to in [at(vip4(1), 80), at(vip6(1), 80)] {
        eventually("Echo is refused", || called(&client, to) == "refused PERMISSION_DENIED denied_by_policy");
    }
    mesh.apply(&authorization("reads", "cart", "allow", "[{to: [{paths: ['/shop.Cart/*']}]}]"));
    eventually("all are allowed again", || called(&client, at(vip4(1), 80)) == "fine cart-a cart-b");
}
