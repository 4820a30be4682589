//! Three replicas of mesh-control on an etcd of three members, each on an address of the fabric; the first replica's is
//! [`crate::mesh::CONTROL`], its data directory the fabric's own.

use std::{
    fs,
    net::Ipv4Addr,
    path::PathBuf,
    process::Command,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::{
    Mesh, eventually,
    process::{self, Process, own_program},
    resources, shell,
};

/// How many there are of each.
pub const COUNT: usize = 3;

/// Where `--control` of agents leads: every replica, each in a zone `z1`…`z3`.
pub fn control_list() -> String {
    (0..COUNT).map(|i| format!("https://{}:15012@z{}", address(i), i + 1)).collect::<Vec<_>>().join(",")
}

/// Of the replica and of the member of etcd with this number, from 0.
pub fn address(number: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 90, 0, number as u8 + 1)
}

/// The replicas, and etcd.
pub struct Replicas<'m> {
    mesh: &'m Mesh,
    etcd: [Mutex<Option<Process>>; COUNT],
    control: [Mutex<Option<Process>>; COUNT],
    args: Vec<String>,
}

/// What an HTTP request came to.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Status; 0: none came.
    pub status: u16,
    /// Body, or why there is none.
    pub body: String,
}

impl Answer {
    /// As JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_default()
    }
}

impl<'m> Replicas<'m> {
    /// Starts all of them in a mesh that was laid, and joins its nodes; `args`: further ones of `mesh-control serve`.
    #[track_caller]
    pub fn up(mesh: &'m Mesh, args: &[&str]) -> Self {
        let args = args.iter().map(|arg| (*arg).to_owned()).collect();
        let this = Self { mesh, etcd: Default::default(), control: Default::default(), args };
        let more = (1..COUNT).map(|i| format!("addr add {}/16 dev br0", address(i)));
        mesh.fabric().netns.ip(&more.collect::<Vec<_>>()).expect("addresses of replicas");
        for number in 0..COUNT {
            this.start_etcd(number);
        }
        for number in 0..COUNT {
            this.start(number);
            this.wait(number);
        }
        this.apply(&resources::mesh_mtls("off"));
        for node in mesh.nodes() {
            let allow = ["token", "create", "--node", node.name(), "--allow", "default/*"];
            fs::write(node.token_file(), this.meshctl(&allow, "").trim()).expect("write the join token");
            node.start_agent();
        }
        for node in mesh.nodes() {
            node.wait_ready();
        }
        this
    }

    fn data(&self, number: usize) -> PathBuf {
        match number {
            0 => self.mesh.fabric().data(),
            _ => self.mesh.place().work.join(format!("replica{number}")),
        }
    }

    fn log(&self, name: &str) -> PathBuf {
        self.mesh.place().work.join(format!("{name}.log"))
    }

    fn lock(of: &Mutex<Option<Process>>) -> MutexGuard<'_, Option<Process>> {
        of.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn spawn(&self, name: &str, program: impl AsRef<std::ffi::OsStr>, args: &[String]) -> Process {
        let fabric = self.mesh.fabric();
        let mut command = process::command(fabric.cgroup(), program);
        command.args(args);
        Process::start(&fabric.netns, command, &self.log(name))
            .unwrap_or_else(|error| panic!("{name}: {error:#}"))
    }

    /// Starts a member of etcd; does not wait.
    #[track_caller]
    pub fn start_etcd(&self, number: usize) {
        let url = |i: usize, port: u16| format!("http://{}:{port}", address(i));
        let cluster: Vec<_> = (0..COUNT).map(|i| format!("e{i}={}", url(i, 2380))).collect();
        let data = self.mesh.place().work.join(format!("etcd{number}"));
        let (client, peer) = (url(number, 2379), url(number, 2380));
        let pairs = [
            ("--name", format!("e{number}")),
            ("--data-dir", data.to_string_lossy().into_owned()),
            ("--listen-client-urls", client.clone()),
            ("--advertise-client-urls", client),
            ("--listen-peer-urls", peer.clone()),
            ("--initial-advertise-peer-urls", peer),
            ("--initial-cluster", cluster.join(",")),
            ("--logger", "zap".to_owned()),
            ("--log-level", "error".to_owned()),
        ];
        let args: Vec<String> =
            pairs.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]).collect();
        *Self::lock(&self.etcd[number]) = Some(self.spawn(&format!("etcd{number}"), "/usr/bin/etcd", &args));
    }

    /// SIGKILL for a member of etcd.
    pub fn kill_etcd(&self, number: usize) {
        *Self::lock(&self.etcd[number]) = None;
    }

    /// Starts a replica; does not wait.
    #[track_caller]
    pub fn start(&self, number: usize) {
        let at = address(number);
        let endpoints: Vec<_> = (0..COUNT).map(|i| format!("http://{}:2379", address(i))).collect();
        let mut pairs = vec![
            ("--data", self.data(number).to_string_lossy().into_owned()),
            ("--api", format!("{at}:15080")),
            ("--agents", format!("{at}:15012")),
            ("--name", at.to_string()),
            ("--store", "etcd".to_owned()),
            ("--etcd-endpoints", endpoints.join(",")),
            ("--replica", format!("c{number}")),
            ("--zone", format!("z{}", number + 1)),
        ];
        if number > 0 {
            pairs.push(("--ca-secret", self.data(0).join("replica.secret").to_string_lossy().into_owned()));
        }
        let pairs = pairs.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]);
        let args: Vec<String> =
            ["serve".to_owned()].into_iter().chain(pairs).chain(self.args.clone()).collect();
        let process = self.spawn(&format!("control{number}"), own_program("mesh-control"), &args);
        *Self::lock(&self.control[number]) = Some(process);
    }

    /// Waits until a replica answers.
    #[track_caller]
    pub fn wait(&self, number: usize) {
        eventually::within(Duration::from_secs(30), &format!("replica {number} answers"), || {
            if let Some(status) = Self::lock(&self.control[number]).as_mut().and_then(Process::ended) {
                panic!("replica {number} ended ({status}):\n{}", self.control_log(number));
            }
            self.data(0).join("admin.token").exists() && self.get(number, "/readyz").status == 200
        });
    }

    /// SIGKILL for a replica.
    pub fn kill(&self, number: usize) {
        *Self::lock(&self.control[number]) = None;
    }

    /// What a replica logged, over all its lives.
    pub fn control_log(&self, number: usize) -> String {
        fs::read_to_string(self.log(&format!("control{number}"))).unwrap_or_default()
    }

    /// Who leads, as a replica says it.
    pub fn leader(&self, asked: usize) -> Option<usize> {
        let status = self.get(asked, "/v1/status").json();
        let leads = status["replicas"].as_array()?.iter().find(|one| one["leads"] == true)?;
        leads["name"].as_str()?.strip_prefix('c')?.parse().ok()
    }

    /// GET of one replica's API.
    pub fn get(&self, number: usize, path: &str) -> Answer {
        self.call(number, path, &[])
    }

    /// PUT of one replica's API.
    pub fn put(&self, number: usize, path: &str, body: &Value) -> Answer {
        self.call(number, path, &["-X", "PUT", "--data", &body.to_string()])
    }

    fn call(&self, number: usize, path: &str, args: &[&str]) -> Answer {
        let called = || -> Result<Answer> {
            let token = fs::read_to_string(self.data(0).join("admin.token")).context("the admin's token")?;
            let mut command = Command::new("curl");
            command.args(["-sS", "--max-time", "9", "-w", "\n%{http_code}", "--cacert"]);
            command.arg(self.data(0).join("ca.pem"));
            command.args(["-H", &format!("Authorization: Bearer {}", token.trim())]).args(args);
            command.arg(format!("https://{}:15080{path}", address(number)));
            let text = self.mesh.fabric().netns.with(|| shell::run(&mut command, ""))?;
            let (body, status) = text.rsplit_once('\n').context("no status")?;
            Ok(Answer { status: status.parse()?, body: body.to_owned() })
        };
        called().unwrap_or_else(|error| Answer { status: 0, body: format!("{error:#}") })
    }

    /// Runs `meshctl` against whichever replica is there; what it printed.
    #[track_caller]
    pub fn meshctl(&self, args: &[&str], stdin: &str) -> String {
        let servers: Vec<_> = (0..COUNT).map(|i| format!("https://{}:15080", address(i))).collect();
        let mut command = Command::new(own_program("meshctl"));
        command.args(["--server", &servers.join(",")]).arg("--ca").arg(self.data(0).join("ca.pem"));
        command.arg("--token-file").arg(self.data(0).join("admin.token")).args(args);
        let done = self.mesh.fabric().netns.with(|| shell::run(&mut command, stdin));
        done.unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// Applies resources.
    #[track_caller]
    pub fn apply(&self, yaml: &str) {
        self.meshctl(&["apply", "-f", "-"], yaml);
    }
}

impl Drop for Replicas<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for number in 0..COUNT {
                let log = self.control_log(number);
                let tail = log.lines().rev().take(30).collect::<Vec<_>>();
                eprintln!("---- replica {number}");
                tail.into_iter().rev().for_each(|line| eprintln!("{line}"));
            }
        }
    }
}
