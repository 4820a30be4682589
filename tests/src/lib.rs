//! The harness: a real mesh on one machine, and the words that stories, demo and benches are written in.
//!
//! - [`mesh`]: a `Mesh`: a fabric (namespace with a bridge), a control plane in it, nodes, pods.
//! - [`node`]: a `Node`: namespace, cgroup subtree, bpffs, one mesh-agent.
//! - [`replicas`]: several control planes on an etcd of several members, in the place of the one.
//! - [`pod`]: a `Pod`: namespace and cgroup, real programs inside, enrolled through the agent's socket.
//! - [`api`]: the control plane's API, by curl.
//! - [`agent_socket`]: one request over `agent.sock`, with descriptors.
//! - [`load`]: connections and requests under way while something happens, counted by `mesh-load`.
//! - [`programs`], [`resources`]: nginx, curl and a line server; YAML.
//! - [`udp`]: datagram servers, sockets that a story holds, dnsmasq, dig, QUIC.
//! - [`dns`]: resolvers, and who asks them.
//! - [`metrics`]: Prometheus text, scraped and summed.
//! - [`pins`]: the BPF maps, read without the agent.
//! - [`eventually`]: waiting for something to become true, with a deadline.
//! - [`clock`]: moments that processes can compare.
//! - [`netns`], [`cgroup`], [`process`], [`shell`], [`reaper`]: what these stand on.
//!
//! Invariants: each mesh is a closed network of its own, so meshes run side by side with the same
//! addresses; everything that a mesh made is removed when it is dropped, also after a panic, Ctrl-C or a
//! kill of the test (the [`reaper`] outlives us). Without root or cgroup v2 a story fails with a sentence.
//! The harness panics instead of returning errors: its callers are tests.

#![forbid(unsafe_code)]
// The builders themselves are `must_use`.
#![allow(clippy::return_self_not_must_use)]

pub mod agent_socket;
pub mod api;
pub mod cgroup;
pub mod clock;
pub mod dns;
pub mod eventually;
pub mod load;
pub mod mesh;
pub mod metrics;
pub mod netns;
pub mod node;
pub mod pins;
pub mod pod;
pub mod process;
pub mod programs;
pub mod reaper;
pub mod replicas;
pub mod resources;
pub mod shell;
pub mod tls;
pub mod udp;

pub use eventually::{eventually, within};
pub use mesh::Mesh;
pub use node::Node;
pub use pod::Pod;
