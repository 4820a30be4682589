//! The path on plain loopback: real sockets, real workers, a stand-in for the kernel, small servers made of
//! threads. What needs BPF and namespaces is tested by stories.

mod bodies;
mod detect;
mod hedge;
mod http;
mod http2;
mod http2_tries;
mod life;
mod opaque;
mod resilience;
pub(super) mod rig;
mod routes;
mod see;
mod tls;
