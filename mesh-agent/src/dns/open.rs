//! The sockets that hear a workload's questions, made in its namespace.
//!
//! UDP sockets take the number of the TCP listener beside them and those that follow, as `mesh_common::dns` says.
//! The kernel gives the first number; where one of the row is taken another row is tried.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};

use mesh_common::dns::PLACES;
use socket2::{Domain, Protocol, Socket, Type};

use super::clients::Clients;

/// Rows that are tried.
const TRIES: u32 = 32;

/// What hears the questions of one workload.
#[derive(Debug)]
pub struct Ears {
    /// On loopback of both families.
    pub sockets: Vec<UdpSocket>,
    /// Who asks.
    pub clients: Clients,
}

impl Ears {
    /// `None`: this kernel can't say which socket a datagram came from (it has no `udp_diag`), so what the mesh does
    /// not know could not be passed on. Then nothing is taken.
    pub fn new(sockets: Vec<UdpSocket>) -> io::Result<Option<Self>> {
        let clients = Clients::new()?;
        let seen = match &*sockets {
            [first, second, ..] => clients.at(second.local_addr()?, first.local_addr()?)?.is_some(),
            _ => false,
        };
        if !seen {
            tracing::warn!(
                "names of the mesh are not answered: the kernel lacks udp_diag (CONFIG_INET_UDP_DIAG)"
            );
        }
        Ok(seen.then_some(Self { sockets, clients }))
    }
}

/// Makes a TCP listener and the row of UDP sockets that begins with its number.
pub fn beside(
    ip: IpAddr,
    listen: impl Fn() -> io::Result<TcpListener>,
) -> io::Result<(TcpListener, Vec<UdpSocket>)> {
    let mut taken = io::Error::from(io::ErrorKind::AddrInUse);
    for _ in 0..TRIES {
        let listener = listen()?;
        match row(SocketAddr::new(ip, listener.local_addr()?.port())) {
            Ok(sockets) => return Ok((listener, sockets)),
            Err(error) => taken = error,
        }
    }
    Err(taken)
}

fn row(first: SocketAddr) -> io::Result<Vec<UdpSocket>> {
    let place = |place| {
        let port = first.port().checked_add(place).ok_or(io::ErrorKind::AddrInUse)?;
        let socket = Socket::new(
            Domain::for_address(first),
            Type::DGRAM.cloexec().nonblocking(),
            Some(Protocol::UDP),
        )?;
        if first.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.bind(&SocketAddr::new(first.ip(), port).into())?;
        Ok(socket.into())
    };
    (0..PLACES).map(place).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    #[test]
    fn a_row_begins_with_the_listeners_number() {
        let ip = Ipv4Addr::LOCALHOST.into();
        let (listener, sockets) = beside(ip, || TcpListener::bind((ip, 0))).unwrap();
        let first = listener.local_addr().unwrap().port();
        let ports: Vec<u16> = sockets.iter().map(|s| s.local_addr().unwrap().port()).collect();
        assert_eq!(ports, (first..first + PLACES).collect::<Vec<_>>());
        assert!(Ears::new(sockets).unwrap().is_some(), "this kernel has udp_diag");
    }

    #[test]
    fn a_row_that_is_taken_is_left() {
        let ip = Ipv4Addr::LOCALHOST.into();
        let (_listener, held) = beside(ip, || TcpListener::bind((ip, 0))).unwrap();
        let mut other = held[2].local_addr().unwrap();
        assert!(row(other).is_err());
        other.set_port(65_535);
        assert!(row(other).is_err());
    }
}
