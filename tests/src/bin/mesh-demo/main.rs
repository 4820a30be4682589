//! `cargo xtask demo [--once]`: a mesh of two nodes with a small shop, shown by its own counters.
//!
//! Every number that is printed comes from a program that counted it: the agents' `/metrics`, nginx' access
//! logs, the TCP server's log, curl. Every claim is checked; with `--once` the exit status is 0 only if all
//! were true. Without it the mesh stays, with URLs to look at, until Ctrl-C.
//!
//! Steps, in order: [`traffic`] (what goes where), [`canary`] (weights of a route), [`death`] (an endpoint
//! dies and comes back), [`encryption`] (tunnels, and who is refused).

#![forbid(unsafe_code)]

mod encryption;
mod relay;
mod shop;
mod table;

use std::{collections::BTreeMap, net::SocketAddr, process::ExitCode, sync::Arc, thread, time::Instant};

use encryption::encryption;
use mesh_tests::{
    Mesh,
    load::Load,
    mesh::CONTROL,
    metrics::Metrics,
    programs::{Lines, Reply, connect_lines, curl, curl_many, url},
    reaper,
};
use shop::{SHOP, STOCK, STOCK_PORT, Shop, Since};
use table::{Claims, percentile, table, us};

const OPENED: &str = "mesh_flow_opened_total";

fn main() -> ExitCode {
    let once = std::env::args().any(|arg| arg == "--once");
    let begin = Instant::now();
    println!("A mesh of two nodes: control plane, two agents, seven pods, and a stranger.");
    let mesh = Arc::new(Mesh::builder().nodes(2).lay());
    let place = mesh.place().clone();
    on_interrupt(&mesh);
    say(begin, "networks are laid; starting the control plane and the agents");
    mesh.start();
    say(begin, "control plane and both agents are ready; starting the shop's programs");
    let mut shop = shop::open(&mesh);
    shop::settle("the shop answers", || answers(&shop));
    say(begin, "every service answers the shopper");

    let mut claims = Claims::default();
    traffic(&mesh, &shop, &mut claims);
    canary(&mesh, &shop, &mut claims);
    death(&mesh, &mut shop, &mut claims);
    encryption(&mesh, &shop, &mut claims);
    urls(&mesh, &mut claims);

    if !once {
        println!("\nThe shopper goes on shopping, ten requests a second. Ctrl-C ends it and cleans up.");
        let http = SocketAddr::from((SHOP, 80));
        let _browsing = Load::to(http).path("/catalog").host("shop").rate(10).start(&shop.shopper);
        let tcp = Load::to(SocketAddr::from((STOCK, STOCK_PORT))).connect_only().rate(2);
        let _asking = tcp.start(&shop.shopper);
        loop {
            thread::park();
        }
    }
    let reaper = mesh.reaper();
    drop(shop);
    drop(mesh);
    reaper.run();
    let remains = reaper::remains(&place);
    println!("\n7. Cleaning up");
    claims.check(remains.is_empty(), &format!("nothing is left behind {}", remains.join(", ")));
    let false_ones = claims.false_ones();
    println!("\n{} of {} claims were true.", claims.count() - false_ones.len(), claims.count());
    if false_ones.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Ctrl-C: clean up, then end. The main thread may be in the middle of anything; its view no longer counts.
fn on_interrupt(mesh: &Arc<Mesh>) {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let reaper = mesh.reaper();
    let signals = signal_hook::iterator::Signals::new([SIGHUP, SIGINT, SIGTERM]);
    let mut signals = signals.expect("signal handlers");
    thread::spawn(move || {
        if signals.forever().next().is_some() {
            println!("\ncleaning up");
            std::panic::set_hook(Box::new(|_| {
                loop {
                    thread::park();
                }
            }));
            reaper.run();
            std::process::exit(130);
        }
    });
}

fn say(begin: Instant, what: &str) {
    println!("  [{:>5.1} s] {what}", begin.elapsed().as_secs_f64());
}

fn answers(shop: &Shop) -> bool {
    let get = |path: &str| curl(&shop.shopper, &["-H", "Host: shop", &url(SHOP, 80, path)]).status == 200;
    let stock = SocketAddr::from((STOCK, STOCK_PORT));
    get("/cart/") && get("/catalog/") && connect_lines(&shop.shopper, stock, 1).errors.is_empty()
}

/// What goes where: HTTP through the proxy by path, TCP balanced in the kernel.
fn traffic(mesh: &Mesh, shop: &Shop, claims: &mut Claims) {
    println!("\n1. What goes where (the shopper on node1 sends 100 HTTP requests and 60 TCP connections)");
    let (connections, before) = (shop.connections(), mesh.node(1).metrics());
    let cart = curl_many(&shop.shopper, &url(SHOP, 80, "/cart/traffic"), 40);
    let catalog = curl_many(&shop.shopper, &url(SHOP, 80, "/catalog/traffic"), 60);
    let stock = connect_lines(&shop.shopper, SocketAddr::from((STOCK, STOCK_PORT)), 60);
    let flows = shop::since(mesh, &before, |since| opened(since, "stock:7000", "kernel") == 60);

    let mut rows = Vec::new();
    let hits = shop.hits("/traffic", 100);
    let connections = grown(&connections, &shop.connections());
    for (name, count) in hits.iter().filter(|(_, count)| **count > 0) {
        let replies: Vec<_> = cart.iter().chain(&catalog).filter(|reply| reply.name() == name).collect();
        let path = if name.starts_with("cart") { "/cart" } else { "/catalog" };
        rows.push(row(
            &format!("http shop{path}"),
            "proxy",
            &shop.place(name),
            name,
            *count,
            &sorted(&replies),
        ));
    }
    for (name, count) in &connections {
        let took = stock.took_us.get(name).map_or(&[][..], |took| took);
        rows.push(row("tcp stock:7000", "kernel", &shop.place(name), name, *count, took));
    }
    table(&["destination", "path", "endpoint", "address", "served", "p50", "p99"], &rows);
    println!("   served: access logs of nginx and of the TCP server; latency: curl and the TCP client");

    let flow = |path: &str, service: &str| {
        let count = opened(&flows, service, path);
        println!("   agent of node1: {OPENED}{{destination=\"default/{service}\",path=\"{path}\"}} +{count}");
        count
    };
    let proxied = flow("proxy", "shop:80");
    let direct = flow("kernel", "stock:7000");
    let (by_kernel, by_proxy) = (flow("kernel", "shop:80"), flow("proxy", "stock:7000"));
    let ok = cart.iter().chain(&catalog).all(|reply| reply.status == 200);
    claims.check(ok, "all 100 HTTP requests were answered with 200");
    claims.check(total(&hits) == 100, "the web servers logged exactly these 100 requests");
    claims.check(
        cart.iter().all(|reply| reply.name() == "cart-a"),
        "requests for /cart went to the cart, and to nothing else",
    );
    claims.check(proxied > 0 && by_kernel == 0, "HTTP took the proxy path");
    claims.check(stock.errors.is_empty(), "all 60 TCP connections were answered");
    claims
        .check(direct == 60 && by_proxy == 0, "all 60 TCP connections took the kernel path, none the proxy");
    claims.check(
        connections.values().all(|count| *count > 10),
        "the kernel spread them over both endpoints, one on each node",
    );
    let seen = catalog.iter().all(|reply| reply.field("peer").starts_with(&shop.shopper.ip().to_string()));
    claims.check(seen, "the web servers saw the shopper's own address behind the proxy");
}

/// The route's weights decide, and follow a change at once.
fn canary(mesh: &Mesh, shop: &Shop, claims: &mut Claims) {
    println!("\n2. Canary: the route gives catalog-v2 10 %, then 50 %");
    let mut rows = Vec::new();
    for (weight, low, high) in [(10, 10, 35), (50, 80, 120)] {
        mesh.apply(&shop::route(100 - weight, weight));
        let goal = f64::from(weight) / 100.0;
        shop::settle("the route's weights are in force", || {
            let share = v2_share(&curl_many(&shop.shopper, &url(SHOP, 80, "/catalog/"), 40));
            (share - goal).abs() < 0.15
        });
        let path = format!("/catalog/canary-{weight}");
        let replies = curl_many(&shop.shopper, &url(SHOP, 80, &path), 200);
        let hits = shop.hits(&path, 200);
        let v2 = hits["catalog-v2-a"];
        let v1 = hits["catalog-v1-a"] + hits["catalog-v1-b"];
        let took = sorted(&replies.iter().collect::<Vec<_>>());
        rows.push(vec![
            format!("{} / {weight}", 100 - weight),
            v1.to_string(),
            v2.to_string(),
            us(percentile(&took, 50)),
            us(percentile(&took, 99)),
        ]);
        let what =
            format!("at {weight} % catalog-v2 answered {v2} of 200 requests (accepted: {low} to {high})");
        claims.check((low..=high).contains(&v2) && v1 + v2 == 200, &what);
    }
    table(&["weights v1 / v2", "v1 served", "v2 served", "p50", "p99"], &rows);
}

/// An endpoint's process dies: refusals until the agent sees the empty cgroup, then none; and back.
fn death(mesh: &Mesh, shop: &mut Shop, claims: &mut Claims) {
    println!("\n3. An endpoint dies: stock-b on node2");
    let stock = SocketAddr::from((STOCK, STOCK_PORT));
    let load = Load::to(stock).connect_only().rate(1000).start(&shop.shopper);
    let killed = Instant::now();
    shop.kill_stock("stock-b");
    let mut last = load.now();
    // Withdrawn when 100 connections in a row found an endpoint.
    shop::settle("the dead endpoint is withdrawn", || {
        let before = std::mem::replace(&mut last, load.go_on(100));
        last.failed() == before.failed()
    });
    let (took, report) = (killed.elapsed(), load.stop());
    println!(
        "   {} connections were refused until the agent withdrew it, {} were not, {} ms in all: {:?}",
        report.failed(),
        report.ok,
        took.as_millis(),
        report.errors
    );
    let after = connect_lines(&shop.shopper, stock, 60);
    claims.check(
        after.servers.get("stock-a") == Some(&60) && after.errors.is_empty(),
        "withdrawn: the next 60 connections all went to stock-a, none was refused",
    );

    println!("\n4. It comes back");
    let before = mesh.node(1).metrics();
    shop.revive_stock("stock-b");
    let mut lines = Lines::default();
    shop::settle("the endpoint is back", || {
        lines = connect_lines(&shop.shopper, stock, 60);
        lines.servers.len() == 2
    });
    let flows = shop::since(mesh, &before, |since| opened(since, "stock:7000", "kernel") >= 60);
    let share = lines.servers.get("stock-b").copied().unwrap_or(0);
    claims.check(
        share > 10 && lines.errors.is_empty(),
        &format!("stock-b took {share} of 60 connections again"),
    );
    claims.check(opened(&flows, "stock:7000", "kernel") >= 60, "the kernel path's counter went on counting");
}

/// Where to look.
fn urls(mesh: &Arc<Mesh>, claims: &mut Claims) {
    println!("\n6. To look at");
    for node in mesh.nodes() {
        let to = SocketAddr::from((node.address(), 15090));
        let Ok(address) = relay::open(mesh, to) else { continue };
        println!("   http://{address}/metrics   agent of {}", node.name());
        let reached = http_get(address).is_some_and(|text| !Metrics::parse(&text).0.is_empty());
        claims.check(reached, &format!("the agent of {} serves its metrics there", node.name()));
    }
    if let Ok(address) = relay::open(mesh, SocketAddr::from((CONTROL, 15080))) {
        let data = mesh.fabric().data();
        println!("   https://{address}/v1/services   control plane");
        println!(
            "     curl --connect-to ::{address} --cacert {0}/ca.pem -H \"Authorization: Bearer $(cat {0}/admin.token)\" \
             https://{CONTROL}:15080/v1/services",
            data.display()
        );
    }
}

fn http_get(from: SocketAddr) -> Option<String> {
    let mut curl = std::process::Command::new("curl");
    let output = curl.args(["-s", "--max-time", "5", &format!("http://{from}/metrics")]).output().ok()?;
    String::from_utf8(output.stdout).ok()
}

fn opened(since: &Since, service: &str, path: &str) -> u64 {
    since.count(OPENED, &[("destination", &format!("default/{service}")), ("path", path)])
}

fn row(to: &str, path: &str, place: &str, name: &str, served: u64, took: &[u64]) -> Vec<String> {
    let times = [50, 99].map(|percent| us(percentile(took, percent)));
    let cells = [to, path, name, place].map(str::to_owned);
    cells.into_iter().chain([served.to_string()]).chain(times).collect()
}

fn sorted(replies: &[&Reply]) -> Vec<u64> {
    let mut took: Vec<_> = replies.iter().map(|reply| reply.took.as_micros() as u64).collect();
    took.sort_unstable();
    took
}

fn v2_share(replies: &[Reply]) -> f64 {
    let v2 = replies.iter().filter(|reply| reply.name().starts_with("catalog-v2")).count();
    v2 as f64 / replies.len() as f64
}

fn grown(before: &BTreeMap<String, u64>, after: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    after.iter().map(|(name, count)| (name.clone(), count - before.get(name).unwrap_or(&0))).collect()
}

fn total(counts: &BTreeMap<String, u64>) -> u64 {
    counts.values().sum()
}
