//! One check: passes, or why not.
//!
//! Invariant: ends in time, whatever the workload does.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use mesh_api::duration;
use mesh_core::health::{Probe, Wanted};
use tokio::net::{TcpSocket, TcpStream};

use super::commands::Commands;
use super::{command, grpc, http};
use crate::kernel::{Kernel, Leg};
use crate::path::sockets::Sockets as _;

/// Where a workload is on this node.
#[derive(Clone, Debug)]
pub struct Place {
    /// Node-local id.
    pub workload: u32,
    /// Node-local id of its identity.
    pub identity: u32,
    /// Its network namespace.
    pub netns: Arc<OwnedFd>,
    /// The cgroup that it lives in.
    pub cgroup: PathBuf,
}

/// Place of a kind of probe among [`super::KINDS`].
pub fn kind(probe: &Probe) -> usize {
    match probe {
        Probe::Http(_) => 0,
        Probe::Grpc(_) => 1,
        Probe::Tcp => 2,
        Probe::Command(_) => 3,
    }
}

/// Asks once.
pub async fn ask(kernel: &Kernel, place: &Place, wanted: &Wanted, commands: &Commands) -> Result<(), String> {
    let check = &wanted.health.check;
    let asked = async {
        match &check.probe {
            Probe::Tcp => dial(kernel, place, wanted.target).await.map(drop),
            Probe::Http(probe) => {
                http::get(dial(kernel, place, wanted.target).await?, wanted.target, probe).await
            }
            Probe::Grpc(service) => {
                grpc::check(dial(kernel, place, wanted.target).await?, wanted.target, service).await
            }
            Probe::Command(name) => {
                let known = commands.find(name).await?;
                command::run(place, &known, check.rules.timeout).await
            }
        }
    };
    match tokio::time::timeout(check.rules.timeout, asked).await {
        Ok(answer) => answer,
        Err(_late) => Err(format!("no answer within {}", duration::format(check.rules.timeout))),
    }
}

/// A connection to the workload, from beside it. The kernel knows it as the agent's, which has asked everything: it is
/// authorised and proved, and counts for nobody.
async fn dial(kernel: &Kernel, place: &Place, to: SocketAddr) -> Result<TcpStream, String> {
    let opened = async {
        let socket = kernel.socket(place.netns.as_fd(), to.is_ipv6())?;
        let leg = Leg {
            workload: place.workload,
            identity: place.identity,
            service: 0,
            endpoint: 0,
            local: true,
            show: None,
        };
        kernel.mark_leg(socket.as_fd(), &leg)?;
        let stream = TcpSocket::from_std_stream(socket.into()).connect(to).await?;
        stream.set_nodelay(true)?;
        io::Result::Ok(stream)
    };
    opened.await.map_err(|error| format!("no connection to {to}: {error}"))
}
