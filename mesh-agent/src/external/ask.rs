//! One look-up of a host name: the node's `hosts` file, then its resolvers, A and AAAA at once.
//!
//! A resolver that does not answer, or says that it can't, is followed by the next; one that says that there is
//! nothing is believed. What does not fit a datagram is asked for again over TCP.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use domain::base::iana::{Class, Rcode, Rtype};
use domain::base::{Message, MessageBuilder, Name, Ttl};
use domain::rdata::AllRecordData;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};

/// How long a resolver may take, each time.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often one is asked over UDP.
const TIMES: usize = 2;
/// Resolvers that are asked, as C libraries do.
const SERVERS: usize = 3;
/// What the `hosts` file says holds for so long.
const OF_FILE: Duration = Duration::from_mins(1);
/// Names that never leave the node.
const HOSTS: &str = "/etc/hosts";

/// What a name resolves to.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    /// At least one.
    pub addresses: Vec<IpAddr>,
    /// How long that holds.
    pub ttl: Duration,
}

/// Looks a name up.
pub async fn look_up(resolv_conf: &Path, host: &str) -> Result<Answer, String> {
    let told = tokio::fs::read_to_string(HOSTS).await.unwrap_or_default();
    let found: Vec<IpAddr> = of_file(&told, host).filter(reachable).collect();
    if !found.is_empty() {
        return Ok(Answer { addresses: found, ttl: OF_FILE });
    }
    let conf = tokio::fs::read_to_string(resolv_conf).await;
    let conf = conf.map_err(|error| format!("{}: {error}", resolv_conf.display()))?;
    let mut failed = String::new();
    for server in servers(&conf) {
        let (v4, v6) = tokio::join!(ask(server, host, Rtype::A), ask(server, host, Rtype::AAAA));
        let (mut addresses, mut ttl, mut silent) = (Vec::new(), Duration::MAX, None);
        for answer in [v4, v6] {
            match answer {
                Ok(answer) => {
                    addresses.extend(answer.addresses.into_iter().filter(reachable));
                    ttl = ttl.min(answer.ttl);
                }
                Err(error) => silent = Some(error),
            }
        }
        match silent {
            _ if !addresses.is_empty() => return Ok(Answer { addresses, ttl }),
            None => return Err(format!("resolver {} knows no address of it", server.ip())),
            Some(error) => failed = format!("resolver {}: {error}", server.ip()),
        }
    }
    Err(failed)
}

fn reachable(ip: &IpAddr) -> bool {
    !(ip.is_unspecified() || ip.is_loopback() || ip.is_multicast())
}

fn of_file<'a>(text: &'a str, host: &'a str) -> impl Iterator<Item = IpAddr> + 'a {
    text.lines().filter_map(move |line| {
        let mut words = line.split('#').next()?.split_whitespace();
        let ip = words.next()?.parse().ok()?;
        words.any(|word| word.eq_ignore_ascii_case(host)).then_some(ip)
    })
}

fn servers(conf: &str) -> Vec<SocketAddr> {
    let named = conf.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let ip: IpAddr = words.next().filter(|word| *word == "nameserver").and(words.next())?.parse().ok()?;
        Some(SocketAddr::new(ip, 53))
    });
    let mut all: Vec<SocketAddr> = named.take(SERVERS).collect();
    if all.is_empty() {
        all.push((Ipv4Addr::LOCALHOST, 53).into());
    }
    all
}

async fn ask(server: SocketAddr, host: &str, kind: Rtype) -> io::Result<Answer> {
    let id = fastrand::u16(..);
    let question = question(id, host, kind)?;
    let mut last = io::Error::from(io::ErrorKind::TimedOut);
    for _ in 0..TIMES {
        match tokio::time::timeout(PATIENCE, over_udp(server, &question)).await {
            Ok(Ok(Some(answer))) => return Ok(answer),
            Ok(Ok(None)) => {
                let answer = tokio::time::timeout(PATIENCE, over_tcp(server, &question)).await;
                return answer.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?;
            }
            Ok(Err(error)) => last = error,
            Err(_late) => last = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(last)
}

/// `None`: the answer is cut off.
async fn over_udp(server: SocketAddr, question: &[u8]) -> io::Result<Option<Answer>> {
    let any: IpAddr = if server.is_ipv6() { [0u16; 8].into() } else { [0u8; 4].into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(question).await?;
    let mut buffer = vec![0; 4096];
    loop {
        let len = socket.recv(&mut buffer).await?;
        let Some(message) = answers(&buffer[..len], question) else { continue };
        if message.header().tc() {
            return Ok(None);
        }
        return read(message).map(Some);
    }
}

async fn over_tcp(server: SocketAddr, question: &[u8]) -> io::Result<Answer> {
    let mut stream = TcpStream::connect(server).await?;
    stream.write_all(&[&(question.len() as u16).to_be_bytes()[..], question].concat()).await?;
    let mut buffer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut buffer).await?;
    read(answers(&buffer, question).ok_or(io::ErrorKind::InvalidData)?)
}

fn question(id: u16, host: &str, kind: Rtype) -> io::Result<Vec<u8>> {
    let unusable = || io::Error::from(io::ErrorKind::InvalidInput);
    let mut wire = Vec::with_capacity(host.len() + 2);
    for label in host.split('.') {
        wire.push(u8::try_from(label.len()).map_err(|_| unusable())?);
        wire.extend_from_slice(label.as_bytes());
    }
    wire.push(0);
    let name = Name::from_octets(wire).map_err(|_| unusable())?;
    let mut builder = MessageBuilder::new_vec();
    builder.header_mut().set_id(id);
    builder.header_mut().set_rd(true);
    let mut builder = builder.question();
    builder.push((name, kind, Class::IN)).map_err(|_| unusable())?;
    Ok(builder.finish())
}

/// The message, if it is an answer to this question.
fn answers<'a>(bytes: &'a [u8], question: &[u8]) -> Option<Message<&'a [u8]>> {
    let (message, asked) = (Message::from_octets(bytes).ok()?, Message::from_octets(question).ok()?);
    let same = message.header().qr()
        && message.header().id() == asked.header().id()
        && message.sole_question().ok()? == asked.sole_question().ok()?;
    same.then_some(message)
}

/// The addresses in an answer, perhaps none; aliases on the way count with their time.
fn read(message: Message<&[u8]>) -> io::Result<Answer> {
    match message.header().rcode() {
        Rcode::NOERROR | Rcode::NXDOMAIN => {}
        other => return Err(io::Error::other(format!("it says {other}"))),
    }
    let damaged = |_| io::Error::from(io::ErrorKind::InvalidData);
    let (mut addresses, mut ttl) = (Vec::new(), Ttl::MAX);
    for record in message.answer().map_err(damaged)?.limit_to_in::<AllRecordData<_, _>>() {
        let record = record.map_err(damaged)?;
        match record.data() {
            AllRecordData::A(a) => addresses.push(IpAddr::V4(a.addr())),
            AllRecordData::Aaaa(aaaa) => addresses.push(IpAddr::V6(aaaa.addr())),
            AllRecordData::Cname(_) => {}
            _ => continue,
        }
        ttl = ttl.min(record.ttl());
    }
    Ok(Answer { addresses, ttl: Duration::from_secs(ttl.as_secs().into()) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use domain::base::iana::Rcode;
    use domain::rdata::{A, Cname};

    #[test]
    fn files_are_read_as_the_c_library_reads_them() {
        let hosts =
            "192.0.2.1 Api.Example api # 192.0.2.9 api.example\n# 192.0.2.2 api.example\n::2 api.example\n";
        let found: Vec<String> = of_file(hosts, "api.example").map(|ip| ip.to_string()).collect();
        assert_eq!(found, ["192.0.2.1", "::2"]);
        let conf =
            "search a\nnameserver 192.0.2.53\n#nameserver 192.0.2.1\nnameserver 2001:db8::53\noptions a\n";
        let found: Vec<String> = servers(conf).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["192.0.2.53:53", "[2001:db8::53]:53"]);
        assert_eq!(servers("search a\n"), [SocketAddr::from(([127, 0, 0, 1], 53))]);
    }

    #[test]
    fn an_answer_is_to_its_question_and_holds_as_long_as_its_weakest_part() {
        let asked = question(7, "api.example", Rtype::A).unwrap();
        let asked_message = Message::from_octets(&asked[..]).unwrap();
        let mut answer = MessageBuilder::new_vec().start_answer(&asked_message, Rcode::NOERROR).unwrap();
        let owner = asked_message.sole_question().unwrap().qname().to_owned();
        let alias: Name<Vec<u8>> = Name::from_octets(b"\x01b\x00".to_vec()).unwrap();
        answer.push((&owner, Class::IN, Ttl::from_secs(9), Cname::new(alias.clone()))).unwrap();
        answer.push((&alias, Class::IN, Ttl::from_secs(30), A::new([192, 0, 2, 7].into()))).unwrap();
        let bytes = answer.finish();
        let found = read(answers(&bytes, &asked).unwrap()).unwrap();
        assert_eq!(found, Answer { addresses: vec![[192, 0, 2, 7].into()], ttl: Duration::from_secs(9) });
        assert!(answers(&bytes, &question(8, "api.example", Rtype::A).unwrap()).is_none(), "another number");
        assert!(answers(&bytes, &question(7, "api.exampl", Rtype::A).unwrap()).is_none(), "another name");
        assert!(answers(&asked, &asked).is_none(), "a question");
    }
}
