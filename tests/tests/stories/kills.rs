//! The kernel notes the moment at which the agent's end begins, and gives it nothing after that.
//!
//! Kills under load of outbound connections stand in [`crate::agent_loss`].

use std::{fs, os::unix::fs::FileExt, time::Duration};

use mesh_common::verdict::Verdict;
use mesh_tests::{
    Mesh,
    clock::monotonic_ns,
    load::Load,
    node::Node,
    resources::{Service, at, on_proxy_loss},
    within,
};
use rustix::process::{Pid, Signal, kill_process};

use crate::{
    agent_loss::worker_threads,
    words::{only_what_was_open_is_lost, web},
};

const KILLS: usize = 10;
/// Many, so that some connect in the milliseconds in which a killed agent falls apart.
const THREADS: u32 = 8;

#[test]
fn kills_cost_an_inbound_port_only_what_was_open() {
    let mesh = Mesh::builder().nodes(2).up();
    mesh.apply(&Service::vip("in", 1).port("http", 80, "http", "proxy").yaml());
    mesh.apply(&on_proxy_loss("in", "bypass"));
    let server = web(&mesh, 1, "a", "in", "http", 1);
    // Of no mesh, and on the other node: nothing but the agent of node 1 stands between them.
    let stranger = mesh.pod(2, "stranger").outside().up();
    let node = mesh.node(1);
    let captures = |what: &str| {
        let before = node.verdict(Verdict::InboundCaptured);
        within(Duration::from_secs(10), what, || node.verdict(Verdict::InboundCaptured) > before + 100);
    };
    let load = Load::to(at(server.0.ip(), 8080)).threads(THREADS).rate(1000).start(&stranger);
    captures("the agent takes inbound connections");
    // What an agent learnt in its last two seconds it learns again after a crash. Who comes later is written
    // to disk later, and its name is nowhere else.
    let _later = web(&mesh, 2, "later", "in", "http", 1);
    within(Duration::from_secs(10), "the snapshot on disk knows both", || node.has_on_disk("later"));

    let kills = [(); KILLS].map(|()| {
        let killed = node.kill_agent();
        let bypassed = node.verdict(Verdict::InboundBypassed);
        load.go_on(50);
        assert!(node.verdict(Verdict::InboundBypassed) > bypassed);
        node.start_agent();
        node.wait_ready();
        captures("the agent takes inbound connections again");
        killed
    });
    only_what_was_open_is_lost(&load.stop(), &kills, THREADS);
}

/// A name, and what brings it about.
type Way = (&'static str, fn(&Node));

#[test]
fn every_end_of_the_agent_is_noted_and_forgotten_at_the_next_start() {
    let mesh = Mesh::builder().up();
    let node = mesh.node(1);
    let ways: [Way; 6] = [
        ("SIGKILL", |node| node.signal_agent(Signal::KILL)),
        ("SIGKILL at one thread", |node| {
            kill_process(Pid::from_raw(worker_threads(node)[0] as i32).unwrap(), Signal::KILL).unwrap();
        }),
        ("SIGABRT from outside", |node| node.signal_agent(Signal::ABORT)),
        // Not SIGQUIT: who is started in the background by a shell ignores it.
        ("a signal that nobody handles", |node| node.signal_agent(Signal::USR2)),
        ("a fault", fault),
        ("SIGTERM", |node| node.signal_agent(Signal::TERM)),
    ];
    for (way, end) in ways {
        assert_eq!(node.going_since(), 0, "before {way}");
        node.signal_agent(Signal::CONT);
        node.signal_agent(Signal::URG);
        assert_eq!(node.going_since(), 0, "other signals are none of its business");
        let begin = monotonic_ns();
        end(node);
        node.wait_agent();
        let since = node.going_since();
        assert!((begin..monotonic_ns()).contains(&since), "{way}: {since}, begun at {begin}");
        node.start_agent();
        node.wait_ready();
    }
}

/// `epoll_wait` and `epoll_pwait` of x86-64, `epoll_pwait` of ARM.
const WAITS: [&str; 3] = ["232", "281", "22"];

/// The instruction that a worker comes back to when it has waited for events becomes zeros: no instruction, or
/// an access to an address that is not there. After another system call it might never come by again.
fn fault(node: &Node) {
    let (agent, worker) = (node.agent_pid(), worker_threads(node)[0]);
    let mut address = None;
    within(Duration::from_secs(5), "a worker waits for events", || {
        let text = fs::read_to_string(format!("/proc/{agent}/task/{worker}/syscall")).unwrap_or_default();
        let waits = text.split_whitespace().next().is_some_and(|call| WAITS.contains(&call));
        let word = text.split_whitespace().last().filter(|_| waits).and_then(|word| word.strip_prefix("0x"));
        address = word.and_then(|word| u64::from_str_radix(word, 16).ok());
        address.is_some()
    });
    // The page is the agent's own copy from here on.
    let memory = fs::File::options().write(true).open(format!("/proc/{agent}/mem")).unwrap();
    memory.write_all_at(&[0; 8], address.unwrap()).unwrap();
}
