//! HTTP is captured and routed request by request: by path, by weights, with honest status codes.

use mesh_tests::{
    Mesh,
    load::Load,
    programs::{body_server, curl, curl_many, url},
    resources::{Service, at, route, vip4, vip6},
};

use crate::words::{flows, share, web};

fn service(name: &str, number: u8) -> String {
    Service::vip(name, number).http("http", 80).yaml()
}

#[test]
fn requests_follow_the_route_by_path_and_weight() {
    let mesh = Mesh::builder().nodes(2).up();
    for (name, number) in [("front", 1), ("cart", 2), ("v1", 3), ("v2", 4)] {
        mesh.apply(&service(name, number));
    }
    mesh.apply(&route("front", &[("/cart", &[("cart", 1)]), ("/", &[("v1", 80), ("v2", 20)])]));
    let (_cart, cart_log) = web(&mesh, 1, "cart-a", "cart", "http", 1);
    let (_v1, _) = web(&mesh, 1, "v1-a", "v1", "http", 1);
    let (_v2, _) = web(&mesh, 2, "v2-a", "v2", "http", 1);
    let client = mesh.pod(1, "client").up();

    let mut logged = 0;
    for vip in [url(vip4(1), 80, ""), url(vip6(1), 80, "")] {
        mesh_tests::eventually("every backend answers", || {
            let names: Vec<_> = curl_many(&client, &format!("{vip}/x"), 40);
            names.iter().all(|reply| reply.status == 200)
                && names.iter().any(|reply| reply.name() == "v2-a")
                && curl(&client, &[&format!("{vip}/cart")]).name() == "cart-a"
        });
        let cart = curl_many(&client, &format!("{vip}/cart/7?x=1"), 20);
        assert!(cart.iter().all(|r| r.name() == "cart-a" && r.field("uri") == "/cart/7?x=1"), "{cart:?}");
        logged += 20;
        mesh_tests::eventually("nginx has logged them", || cart_log.hits("/cart/7") == logged);
        // "/carton" is not under "/cart".
        assert_ne!(curl(&client, &[&format!("{vip}/carton")]).name(), "cart-a");
        let others = curl_many(&client, &format!("{vip}/other"), 200);
        let v2 = others.iter().filter(|reply| reply.name() == "v2-a").count() as u64;
        share(v2, 200, 20.0);
    }
    assert!(flows(mesh.node(1), "opened", "front:80", "proxy") > 0);
    assert_eq!(flows(mesh.node(1), "opened", "front:80", "kernel"), 0);
}

#[test]
fn bodies_pass_whole_both_ways_and_kept_connections_stay() {
    let mesh = Mesh::builder().up();
    mesh.apply(&service("web", 1));
    let (server, _) = web(&mesh, 1, "a", "web", "http", 1);
    let client = mesh.pod(1, "client").up();
    // Not a power of two, longer than any buffer.
    let body: Vec<u8> = (0..3_000_017u32).map(|i| (i % 251) as u8).collect();
    std::fs::write(server.work().join("files/big"), &body).unwrap();

    mesh_tests::eventually("the service answers", || curl(&client, &[&url(vip4(1), 80, "/")]).status == 200);
    let reply = curl(&client, &["-o", "got", &url(vip4(1), 80, "/files/big")]);
    assert_eq!(reply.status, 200, "{reply:?}");
    assert!(std::fs::read(client.work().join("got")).unwrap() == body, "the body came through changed");
    let report = Load::to(at(vip4(1), 80)).keep_alive().threads(4).count(2000).run(&client);
    assert_eq!((report.ok, report.failed()), (2000, 0), "{report:?}");
}

#[test]
fn uploads_arrive_whole_with_length_and_chunked() {
    let mesh = Mesh::builder().up();
    mesh.apply(&service("bodies", 1));
    let mut server = mesh.pod(1, "a").serves("bodies", "http", 8080).outside().up();
    let _bodies = body_server(&server, 8080);
    server.enrol();
    let client = mesh.pod(1, "client").up();
    let body = client.work().join("put");
    std::fs::write(&body, vec![b'm'; 3_000_017]).unwrap();
    let sum = mesh_tests::shell::run(std::process::Command::new("sha256sum").arg(&body), "").unwrap();
    let sum = sum.split(' ').next().unwrap();

    let to = url(vip4(1), 80, "/up");
    let post = ["-X", "POST", "--data-binary", "@put", &to];
    mesh_tests::eventually("the service answers", || curl(&client, &post).status == 200);
    for framing in
        [&["-H", "Expect:"][..], &["-H", "Transfer-Encoding: chunked"], &["-H", "Expect: 100-continue"]]
    {
        let reply = curl(&client, &[framing, &post].concat());
        assert_eq!((reply.status, reply.field("length")), (200, "3000017"), "{framing:?}: {reply:?}");
        assert_eq!(reply.field("sha256"), sum, "{framing:?}");
    }
}

#[test]
fn an_early_answer_reaches_a_client_that_is_still_sending() {
    let mesh = Mesh::builder().up();
    mesh.apply(&service("web", 1));
    let (_server, _) = web(&mesh, 1, "a", "web", "http", 1);
    let client = mesh.pod(1, "client").up();
    std::fs::write(client.work().join("put"), vec![b'm'; 3_000_017]).unwrap();
    mesh_tests::eventually("the service answers", || curl(&client, &[&url(vip4(1), 80, "/")]).status == 200);
    // nginx refuses bodies above 1 MiB as soon as it has seen that much, or before.
    for _ in 0..20 {
        for framing in ["Expect:", "Transfer-Encoding: chunked"] {
            let to = url(vip4(1), 80, "/");
            let reply = curl(&client, &["-H", framing, "-X", "POST", "--data-binary", "@put", &to]);
            assert!([200, 413].contains(&reply.status), "{framing} {reply:?}");
        }
    }
}

#[test]
fn what_is_no_http_gets_400_and_no_route_gets_404() {
    let mesh = Mesh::builder().up();
    mesh.apply(&service("front", 1));
    mesh.apply(&service("cart", 2));
    mesh.apply(&route("front", &[("/cart", &[("cart", 1)])]));
    let (_cart, _) = web(&mesh, 1, "cart-a", "cart", "http", 1);
    let client = mesh.pod(1, "client").up();

    mesh_tests::eventually("the route answers", || {
        curl(&client, &[&url(vip4(1), 80, "/cart")]).status == 200
    });
    let reply = curl(&client, &["-D", "head", &url(vip4(1), 80, "/nowhere")]);
    assert_eq!(reply.status, 404, "{reply:?}");
    let head = std::fs::read_to_string(client.work().join("head")).unwrap();
    assert!(head.to_ascii_lowercase().contains("x-mesh-reason:"), "{head}");
    for request in [
        "GET /cart HTTP/1.1\\r\\nHost: a\\r\\nHost: b\\r\\n\\r\\n",
        "GET /cart HTTP/1.1\\r\\nHost: a\\r\\nContent-Length: 1\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\n",
        "nonsense\\r\\n\\r\\n",
    ] {
        let script = format!(
            "import socket;s=socket.create_connection(('{}',80),5);s.sendall(b'{request}');\
             d=b''.join(iter(lambda:s.recv(65536),b''));print(d.decode())",
            vip4(1)
        );
        let answer = client.run("/usr/bin/python3", &["-c", &script]).unwrap();
        assert!(answer.starts_with("HTTP/1.1 400 "), "{request}: {answer}");
    }
}
