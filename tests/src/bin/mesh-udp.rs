//! Asks and answers datagrams, one at a time, as fast as it goes: the bench's UDP pair.
//!
//! `mesh-udp serve PORT` sends back what it gets, until it is killed. `mesh-udp ask ADDRESS:PORT SECONDS
//! [--connected]` prints how many answers came a second, each from where it had asked. A datagram that is
//! not answered within two seconds ends it with an error.

#![forbid(unsafe_code)]

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

const TIMEOUT: Duration = Duration::from_secs(2);
/// Questions between two looks at the clock.
const BATCH: u64 = 64;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["serve", port] => serve(port.parse().context("PORT")?),
        ["ask", to, seconds] => ask(to.parse()?, seconds.parse()?, false),
        ["ask", to, seconds, "--connected"] => ask(to.parse()?, seconds.parse()?, true),
        _ => bail!("mesh-udp serve PORT | mesh-udp ask ADDRESS:PORT SECONDS [--connected]"),
    }
}

fn serve(port: u16) -> Result<()> {
    let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port))?;
    let mut buffer = [0; 2048];
    loop {
        let (length, peer) = socket.recv_from(&mut buffer)?;
        socket.send_to(&buffer[..length], peer)?;
    }
}

fn ask(to: SocketAddr, seconds: f64, connected: bool) -> Result<()> {
    let own: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((own, 0))?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    if connected {
        socket.connect(to)?;
    }
    let (mut buffer, mut answers) = ([0; 2048], 0u64);
    let begin = Instant::now();
    while begin.elapsed().as_secs_f64() < seconds {
        for _ in 0..BATCH {
            answers += 1;
            let question = answers.to_be_bytes();
            let length = if connected {
                socket.send(&question)?;
                socket.recv(&mut buffer).context("no answer")?
            } else {
                socket.send_to(&question, to)?;
                let (length, from) = socket.recv_from(&mut buffer).context("no answer")?;
                ensure!(from == to, "{from} answers for {to}");
                length
            };
            ensure!(buffer[..length] == question, "another answer");
        }
    }
    println!("{}", answers as f64 / begin.elapsed().as_secs_f64());
    Ok(())
}
