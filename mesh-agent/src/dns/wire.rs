//! Questions and answers as bytes.
//!
//! A message that is one question of class IN about a name in the mesh's domain, or about addresses of a host name that
//! an external service has, is answered; whatever else it is
//! (another name, an update, a transfer, bytes that are no DNS at all) is nobody's business here and is passed on as
//! it came. The answer repeats the question byte for byte, upper and lower case as they are.
//!
//! Bounds: an answer over UDP is no larger than the client takes (512 bytes, or what its EDNS says, at most
//! [`LARGEST`]); what does not fit is left out and the answer says so (TC), and the client asks again over TCP.

use domain::base::iana::{Class, Opcode, OptRcode, Rcode, Rtype};
use domain::base::message_builder::{AdditionalBuilder, AnswerBuilder, PushError};
use domain::base::name::{Name, ToLabelIter};
use domain::base::{Message, MessageBuilder, Serial, TreeCompressor, Ttl};
use domain::rdata::{A, Aaaa, Soa, Srv};
use mesh_core::snapshot::Snapshot;
use std::net::IpAddr;

use super::zone::{self, DOMAIN, Found, Labels};

/// How long an answer may be remembered, whatever it says, in seconds; where nobody says.
const SECONDS: u32 = 5;
/// Most bytes of an answer over UDP.
const LARGEST: u16 = 4096;
/// Bytes of an answer over UDP to a client that names no size.
const PLAIN: u16 = 512;
/// What the mesh answers of host names of external services. HTTPS and SVCB would name other addresses: there are none.
const OF_HOSTS: [Rtype; 5] = [Rtype::A, Rtype::AAAA, Rtype::HTTPS, Rtype::SVCB, Rtype::ANY];
/// Bytes of an OPT record without options.
const OPT: usize = 11;

type Target = TreeCompressor<Vec<u8>>;

/// A question that may be the mesh's to answer.
pub struct Question<'a> {
    message: Message<&'a [u8]>,
    labels: Labels,
    /// A name that is not of the mesh's domain.
    host: Option<String>,
    kind: Rtype,
    /// The payload size and version of the client's EDNS, if it speaks that.
    edns: Option<(u16, u8)>,
}

/// What becomes of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Known,
    Unknown,
    Fails,
}

impl<'a> Question<'a> {
    /// The question in these bytes; `None`: they are not one for the mesh.
    pub fn read(bytes: &'a [u8]) -> Option<Self> {
        let message = Message::from_octets(bytes).ok()?;
        let (header, counts) = (message.header(), message.header_counts());
        if header.qr() || header.opcode() != Opcode::QUERY || counts.ancount() != 0 || counts.nscount() != 0 {
            return None;
        }
        let question = message.sole_question().ok()?;
        if question.qclass() != Class::IN || matches!(question.qtype(), Rtype::AXFR | Rtype::IXFR) {
            return None;
        }
        let mut labels: Labels = Vec::new();
        for label in question.qname().iter_labels().filter(|label| !label.is_root()) {
            labels.push(String::from_utf8_lossy(label.as_slice()).to_ascii_lowercase());
        }
        let kind = question.qtype();
        let host = if labels.last().is_some_and(|label| label == DOMAIN) {
            labels.pop();
            None
        } else {
            // What else there is of a name outside of the mesh others know.
            OF_HOSTS.contains(&kind).then(|| labels.join(".")).map(Some)?
        };
        let edns = message.opt().map(|opt| (opt.udp_payload_size(), opt.version()));
        Some(Self { message, labels, host, kind, edns })
    }

    /// The answer; `false`: the mesh can't say yet, and the answer is a failure. `None`: others know.
    pub fn answer(&self, snapshot: &Snapshot, udp: bool) -> Option<(Vec<u8>, bool)> {
        if let Some(host) = &self.host {
            let found = zone::of_host(snapshot, host)?.or_ttl(snapshot.dns_ttl);
            return Some((self.build(Fate::Known, &found, udp).ok()?, true));
        }
        if self.edns.is_some_and(|(_, version)| version > 0) {
            return Some((self.build(Fate::Known, &Found::default(), udp).ok()?, true));
        }
        // Nobody was told of any service yet: to say that there is none would be remembered.
        if snapshot.epoch == 0 {
            return Some((self.failure()?, false));
        }
        let turn = usize::from(self.message.header().id());
        let answer = match zone::look_up(snapshot, &self.labels, turn) {
            Some(found) => self.build(Fate::Known, &found.or_ttl(snapshot.dns_ttl), udp),
            None => self.build(Fate::Unknown, &Found::default().or_ttl(snapshot.dns_ttl), udp),
        };
        Some((answer.ok()?, true))
    }

    /// An answer that says that there is none.
    fn failure(&self) -> Option<Vec<u8>> {
        self.build(Fate::Fails, &Found::default(), true).ok()
    }

    fn build(&self, fate: Fate, found: &Found, udp: bool) -> Result<Vec<u8>, PushError> {
        let mut builder = MessageBuilder::from_target(Target::new(Vec::with_capacity(512)))?;
        builder.set_push_limit(self.room(udp));
        let rcode = match fate {
            Fate::Known => Rcode::NOERROR,
            Fate::Unknown => Rcode::NXDOMAIN,
            Fate::Fails => Rcode::SERVFAIL,
        };
        let mut answer = builder.start_answer(&self.message, rcode)?;
        answer.header_mut().set_ra(true);
        answer.header_mut().set_aa(fate != Fate::Fails);
        let bad_version = self.edns.is_some_and(|(_, version)| version > 0);
        let mut additional =
            if fate == Fate::Fails || bad_version { answer.additional() } else { self.fill(answer, found)? };
        additional.clear_push_limit();
        if self.edns.is_some() {
            additional.opt(|opt| {
                opt.set_udp_payload_size(LARGEST);
                if bad_version {
                    opt.set_rcode(OptRcode::BADVERS);
                }
                Ok(())
            })?;
        }
        Ok(additional.finish().into_target())
    }

    /// Records: as many as there is room for.
    fn fill(
        &self,
        mut answer: AnswerBuilder<Target>,
        found: &Found,
    ) -> Result<AdditionalBuilder<Target>, PushError> {
        let question = self.message.sole_question().map_err(|_| PushError::ShortBuf)?;
        let ttl = Ttl::from_secs(found.ttl.unwrap_or(SECONDS));
        let owner = question.qname();
        let mut full = false;
        for ip in &found.addresses {
            full = full || !fits(self.push_ip(&mut answer, owner, *ip, ttl))?;
        }
        if matches!(self.kind, Rtype::SRV | Rtype::ANY) {
            for place in &found.places {
                let srv = Srv::new(0, place.weight, place.port, name(&place.host)?);
                full = full || !fits(answer.push((&owner, Class::IN, ttl, srv)))?;
            }
        }
        if self.labels.is_empty() && matches!(self.kind, Rtype::SOA | Rtype::ANY) {
            full = full || !fits(answer.push((name(&[])?, Class::IN, ttl, soa(ttl)?)))?;
        }
        if full {
            answer.header_mut().set_tc(true);
            return Ok(answer.additional());
        }
        let empty = answer.counts().ancount() == 0;
        let mut authority = answer.authority();
        if empty && self.host.is_none() {
            // How long the nothing may be remembered.
            fits(authority.push((name(&[])?, Class::IN, ttl, soa(ttl)?)))?;
        }
        let mut additional = authority.additional();
        if !empty {
            for (host, ip) in &found.hosts {
                let host = name(host)?;
                // Nobody is told of what is left out here: it can be asked for.
                let pushed = match ip {
                    IpAddr::V4(v4) => additional.push((host, Class::IN, ttl, A::new(*v4))),
                    IpAddr::V6(v6) => additional.push((host, Class::IN, ttl, Aaaa::new(*v6))),
                };
                if !fits(pushed)? {
                    break;
                }
            }
        }
        Ok(additional)
    }

    fn push_ip(
        &self,
        answer: &mut AnswerBuilder<Target>,
        owner: impl domain::base::name::ToName,
        ip: IpAddr,
        ttl: Ttl,
    ) -> Result<(), PushError> {
        match (ip, self.kind) {
            (IpAddr::V4(v4), Rtype::A | Rtype::ANY) => answer.push((owner, Class::IN, ttl, A::new(v4))),
            (IpAddr::V6(v6), Rtype::AAAA | Rtype::ANY) => answer.push((owner, Class::IN, ttl, Aaaa::new(v6))),
            _ => Ok(()),
        }
    }

    /// Bytes that records may take.
    fn room(&self, udp: bool) -> usize {
        let whole = match self.edns {
            _ if !udp => u16::MAX,
            Some((size, _)) => size.clamp(PLAIN, LARGEST),
            None => PLAIN,
        };
        usize::from(whole) - if self.edns.is_some() { OPT } else { 0 }
    }
}

/// An answer to any question at all that says that nobody could be asked; `None`: it is no question.
pub fn failure(bytes: &[u8]) -> Option<Vec<u8>> {
    let message = Message::from_octets(bytes).ok()?;
    if message.header().qr() {
        return None;
    }
    let builder = MessageBuilder::from_target(Target::new(Vec::new())).ok()?;
    let mut answer = builder.start_answer(&message, Rcode::SERVFAIL).ok()?;
    answer.header_mut().set_ra(true);
    Some(answer.finish().into_target())
}

/// `false`: there is no room.
fn fits(pushed: Result<(), PushError>) -> Result<bool, PushError> {
    match pushed {
        Ok(()) => Ok(true),
        Err(PushError::LimitExceeded) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The full name of labels below the domain.
fn name(labels: &[String]) -> Result<Name<Vec<u8>>, PushError> {
    let mut wire = Vec::with_capacity(64);
    for label in labels.iter().map(String::as_str).chain([DOMAIN]) {
        wire.push(u8::try_from(label.len()).map_err(|_| PushError::ShortBuf)?);
        wire.extend_from_slice(label.as_bytes());
    }
    wire.push(0);
    Name::from_octets(wire).map_err(|_| PushError::ShortBuf)
}

fn soa(ttl: Ttl) -> Result<Soa<Name<Vec<u8>>>, PushError> {
    let day = Ttl::from_secs(86_400);
    let server = name(&["ns".to_owned(), "dns".to_owned()])?;
    let person = name(&["hostmaster".to_owned()])?;
    Ok(Soa::new(server, person, Serial(1), day, day, day, ttl))
}

#[cfg(test)]
mod tests;
