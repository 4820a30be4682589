//! Connections that stop being HTTP/1: WebSocket by Python's library at both ends, CONNECT by curl and tinyproxy; on one
//! node and through tunnels.

use std::fs;

use mesh_tests::{
    Mesh, Pod, eventually,
    process::Process,
    programs::{curl, line_server, url, wait_for_ports},
    resources::{Service, at, vip4, vip6},
};

const PYTHON: &str = "/usr/bin/python3";

/// Echoes messages, says its name first, and closes with 4001 when it is told to.
const SERVER: &str = r"
import asyncio, sys, websockets
async def serve(ws):
    told = ws.request_headers.get('x-a')
    await ws.send(f'{sys.argv[1]} {ws.path} {told}')
    async for message in ws:
        if message == 'close':
            return await ws.close(4001, 'as asked')
        await ws.send(message)
async def main():
    async with websockets.serve(serve, None, 8080, max_size=1 << 24, subprotocols=['chat']):
        await asyncio.Future()
asyncio.run(main())
";

const CLIENT: &str = r"
import asyncio, os, sys, websockets
async def main():
    async with websockets.connect(sys.argv[1], host=sys.argv[2], port=80, max_size=1 << 24,
                                  subprotocols=['chat']) as ws:
        assert ws.subprotocol == 'chat', ws.subprotocol
        hello = await ws.recv()
        for size in (0, 1, 125, 126, 65535, 65536, 3000017):
            sent = os.urandom(size)
            await ws.send(sent)
            assert await ws.recv() == sent, size
        await asyncio.wait_for(await ws.ping(), 5)
        many = [str(i) for i in range(2000)]
        async def push():
            for one in many:
                await ws.send(one)
        pushing = asyncio.create_task(push())
        assert [await ws.recv() for _ in many] == many
        await pushing
        await ws.send('close')
        try:
            await ws.recv()
        except websockets.ConnectionClosed as e:
            assert (e.rcvd.code, e.rcvd.reason) == (4001, 'as asked'), e
            print(hello)
try:
    asyncio.run(main())
except websockets.InvalidStatusCode as e:
    print('refused', e.status_code, e.headers.get('x-mesh-reason'))
";

fn chat(mesh: &Mesh, node: u8, name: &str) -> (Pod, Process) {
    let mut pod = mesh.pod(node, name).serves("chat", "http", 8080).outside().up();
    let mut server = pod.start("chat", PYTHON, &["-c", SERVER, name]);
    wait_for_ports(&pod, &mut server, &[8080]);
    pod.enrol();
    (pod, server)
}

#[test]
fn websockets_are_routed_edited_and_then_left_alone() {
    let mesh = Mesh::builder().nodes(2).mtls().up();
    for (name, number) in [("chat", 1), ("front", 2)] {
        mesh.apply(&Service::vip(name, number).http("http", 80).yaml());
    }
    mesh.apply(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: front}\nspec:\n\
         \x20 parentRefs: [{kind: Service, name: front}]\n  hostnames: [chat.example]\n  rules:\n\
         \x20 - matches: [{path: {value: /rooms}}]\n    filters:\n\
         \x20   - {type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /v2}}}\n\
         \x20   - {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-a, value: rule}]}}\n\
         \x20   backendRefs: [{name: chat, port: 80}]\n",
    );
    let (_a, _s1) = chat(&mesh, 1, "chat-a");
    let (_b, _s2) = chat(&mesh, 2, "chat-b");
    let client = mesh.pod(1, "client").up();
    let talk = |to: std::net::SocketAddr, path: &str| {
        let url = format!("ws://chat.example{path}");
        client
            .run(PYTHON, &["-W", "ignore", "-c", CLIENT, &url, &to.ip().to_string()])
            .unwrap_or_default()
            .trim()
            .to_owned()
    };
    for ip in [at(vip4(1), 80), at(vip6(1), 80)] {
        let mut seen = std::collections::BTreeSet::new();
        eventually("both ends talk", || {
            seen.insert(talk(ip, "/x?y"));
            ["chat-a /x?y None", "chat-b /x?y None"].iter().all(|want| seen.contains(*want))
        });
    }
    let front = at(vip4(2), 80);
    eventually("by the route", || talk(front, "/rooms/1").ends_with(" /v2/1 rule"));
    assert_eq!(talk(front, "/other"), "refused 404 no_route");
    let upgraded = |status: &str| mesh.node(1).metrics().count("mesh_requests_total", &[("status", status)]);
    assert!(upgraded("101") >= 5 && upgraded("404") >= 1);
}

#[test]
fn connect_opens_a_way_through_a_proxy_behind_the_mesh() {
    let mesh = Mesh::builder().nodes(2).mtls().up();
    mesh.apply(&Service::vip("proxy", 1).http("http", 80).yaml());
    let target = mesh.pod(2, "target").outside().up();
    let _lines = line_server(&target, 7000);
    let web = mesh_tests::programs::nginx(&target, &[8081]);
    let mut pod = mesh.pod(2, "proxy-a").serves("proxy", "http", 8888).outside().up();
    let config = pod.work().join("tinyproxy.conf");
    let text =
        "Port 8888\nTimeout 30\nMaxClients 50\nConnectPort 8081\nLogLevel Info\nUser root\nGroup root\n";
    fs::write(&config, text).unwrap();
    let mut proxy = pod.start("tinyproxy", "/usr/bin/tinyproxy", &["-d", "-c", &config.to_string_lossy()]);
    wait_for_ports(&pod, &mut proxy, &[8888]);
    pod.enrol();
    let client = mesh.pod(1, "client").up();
    for ip in [url(vip4(1), 80, ""), url(vip6(1), 80, "")] {
        let through = |port: u16| {
            let target = url(target.ip(), port, "/");
            curl(&client, &["--proxytunnel", "--proxy", &ip, &target])
        };
        eventually("by CONNECT", || through(8081).name() == "target");
        // What the proxy refuses is its own answer.
        let refused = through(7000);
        assert!(refused.exit == 56 && refused.error.contains("403"), "{refused:?}");
        // Without a tunnel it is a request with an absolute target.
        let plain = curl(&client, &["--proxy", &ip, &url(target.ip(), 8081, "/")]);
        assert!(plain.status == 200 || plain.status == 403, "{plain:?}");
    }
    assert!(web.hits("GET") > 0 || web.hits("/") > 0);
}
