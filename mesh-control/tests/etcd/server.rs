//! A cluster of etcd in a directory of its own, on free ports of loopback.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

pub struct Etcd {
    members: Vec<Member>,
    dir: TempDir,
}

struct Member {
    client: u16,
    peer: u16,
    child: Option<Child>,
}

impl Etcd {
    pub fn start(members: usize) -> Self {
        let ports: Vec<TcpListener> =
            (0..2 * members).map(|_| TcpListener::bind(("127.0.0.1", 0)).expect("a free port")).collect();
        let port = |i: usize| ports[i].local_addr().expect("its port").port();
        let members = (0..members)
            .map(|i| Member { client: port(2 * i), peer: port(2 * i + 1), child: None })
            .collect();
        let mut etcd = Self { members, dir: tempfile::tempdir().expect("a directory") };
        drop(ports);
        for i in 0..etcd.members.len() {
            etcd.restart(i);
        }
        etcd
    }

    pub fn urls(&self) -> Vec<String> {
        self.members.iter().map(|member| format!("http://127.0.0.1:{}", member.client)).collect()
    }

    pub fn restart(&mut self, number: usize) {
        let peer = |i: usize, member: &Member| format!("m{i}=http://127.0.0.1:{}", member.peer);
        let cluster: Vec<String> =
            self.members.iter().enumerate().map(|(i, member)| peer(i, member)).collect();
        let member = &mut self.members[number];
        let (client, peer) =
            (format!("http://127.0.0.1:{}", member.client), format!("http://127.0.0.1:{}", member.peer));
        let mut command = Command::new("etcd");
        command.arg("--data-dir").arg(self.dir.path().join(format!("m{number}")));
        command.args(["--name", &format!("m{number}"), "--logger", "zap"]);
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &cluster.join(","), "--log-level", "error"]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        member.child = Some(command.spawn().expect("start etcd: apt-get install etcd-server"));
    }

    pub fn kill(&mut self, number: usize) {
        if let Some(mut child) = self.members[number].child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Forgets history up to a revision.
    pub fn forget(&self, revision: u64) {
        let body = format!("{{\"revision\":\"{revision}\"}}");
        let url = format!("{}/v3/kv/compaction", self.urls()[0]);
        let answer = Command::new("curl").args(["-sSf", "-d", &body, &url]).output().expect("curl");
        assert!(answer.status.success(), "{}", String::from_utf8_lossy(&answer.stderr));
    }

    /// Whoever is connected loses its connection; `meanwhile` runs when etcd is up again.
    pub fn stop_for_a_while(&mut self, meanwhile: impl FnOnce(&Self)) {
        self.kill(0);
        self.restart(0);
        meanwhile(self);
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for number in 0..self.members.len() {
            self.kill(number);
        }
    }
}
