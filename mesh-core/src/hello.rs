//! The name that a client of TLS asks for, from its first bytes, which stay as they are.
//!
//! A `ClientHello` (RFC 8446 section 4.1.2) may be spread over records, and its records over segments: it is read
//! again from the start as more comes, up to [`HELLO_MOST`]. With Encrypted Client Hello the name is the outer one,
//! that of whoever can open it; most that is said to be encrypted is grease, so nothing is refused for it.
//!
//! Invariant: nothing is guessed. Bytes that are no complete, well-formed hello have no name.
//! Not here: where the name leads (route), alerts and deadlines (the agent's path).

use std::borrow::Cow;

use crate::head::Head;

/// Bytes, record headers included, within which a hello must end.
pub const HELLO_MOST: usize = 16 * 1024;
/// Bytes of a record's payload in plaintext (RFC 8446 section 5.1).
const RECORD_MOST: usize = 1 << 14;
/// Longest host name that DNS allows.
const NAME_MOST: usize = 253;

const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: u16 = 0;
const HOST_NAME: u8 = 0;

/// What the first bytes say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hello {
    /// Too little as yet.
    More,
    /// The name, in lower case.
    Name(String),
    /// TLS, without a name.
    Nameless,
    /// Not TLS, or malformed, or too long.
    NotTls,
}

/// Reads what a client has sent so far.
pub fn read(bytes: &[u8]) -> Hello {
    match message(bytes) {
        Ok(message) => extensions(&message).and_then(server_name).unwrap_or(Hello::NotTls),
        Err(hello) => hello,
    }
}

/// The body of the hello, put together.
fn message(bytes: &[u8]) -> Result<Cow<'_, [u8]>, Hello> {
    let more = || if bytes.len() < HELLO_MOST { Hello::More } else { Hello::NotTls };
    let mut whole: Cow<'_, [u8]> = Cow::Borrowed(&[]);
    let mut rest = bytes.get(..HELLO_MOST).unwrap_or(bytes);
    loop {
        // Refused as soon as it can't be: some clients send little and wait.
        let begun = [HANDSHAKE, 3];
        let seen = rest.len().min(begun.len());
        if rest[..seen] != begun[..seen] {
            return Err(Hello::NotTls);
        }
        let Some((head, after)) = rest.split_first_chunk::<5>() else { return Err(more()) };
        let length = usize::from(u16::from_be_bytes([head[3], head[4]]));
        if length == 0 || length > RECORD_MOST {
            return Err(Hello::NotTls);
        }
        let payload = after.get(..length).unwrap_or(after);
        if whole.is_empty() {
            whole = Cow::Borrowed(payload);
        } else {
            whole.to_mut().extend_from_slice(payload);
        }
        if whole.first().is_some_and(|kind| *kind != CLIENT_HELLO) {
            return Err(Hello::NotTls);
        }
        if let Some((head, _)) = whole.split_first_chunk::<4>() {
            let length = usize::from(head[1]) << 16 | usize::from(head[2]) << 8 | usize::from(head[3]);
            if length > HELLO_MOST {
                return Err(Hello::NotTls);
            }
            if whole.len() >= 4 + length {
                return Ok(match whole {
                    Cow::Borrowed(whole) => Cow::Borrowed(&whole[4..4 + length]),
                    Cow::Owned(whole) => Cow::Owned(whole[4..4 + length].to_vec()),
                });
            }
        }
        match after.get(length..) {
            Some(next) => rest = next,
            None => return Err(more()),
        }
    }
}

/// What is left to be read of a message.
struct Rest<'b>(&'b [u8]);

impl<'b> Rest<'b> {
    fn take(&mut self, count: usize) -> Option<&'b [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|one| one[0])
    }

    fn number(&mut self) -> Option<u16> {
        self.take(2).map(|two| u16::from_be_bytes([two[0], two[1]]))
    }

    /// What a length of one byte stands before; `wide`: of two.
    fn vector(&mut self, wide: bool) -> Option<&'b [u8]> {
        let length = if wide { self.number()? } else { self.byte()?.into() };
        self.take(length.into())
    }
}

fn extensions(body: &[u8]) -> Option<&[u8]> {
    let mut rest = Rest(body);
    // Version, random.
    rest.take(2 + 32)?;
    let session = rest.vector(false)?;
    let suites = rest.vector(true)?;
    let compressions = rest.vector(false)?;
    if session.len() > 32 || suites.len() < 2 || suites.len() % 2 != 0 || compressions.is_empty() {
        return None;
    }
    if rest.0.is_empty() {
        // Older than extensions.
        return Some(&[]);
    }
    let extensions = rest.vector(true)?;
    rest.0.is_empty().then_some(extensions)
}

/// `None`: malformed.
fn server_name(extensions: &[u8]) -> Option<Hello> {
    let mut rest = Rest(extensions);
    let mut found = None;
    while !rest.0.is_empty() {
        let (kind, content) = (rest.number()?, rest.vector(true)?);
        if kind == SERVER_NAME && found.replace(content).is_some() {
            return None;
        }
    }
    let Some(content) = found else { return Some(Hello::Nameless) };
    let mut rest = Rest(content);
    let mut list = Rest(rest.vector(true)?);
    // One name of a kind (RFC 6066 section 3), and there is one kind.
    let (kind, name) = (list.byte()?, list.vector(true)?);
    let holds = |b: &u8| b.is_ascii_alphanumeric() || b"-._".contains(b);
    let whole = list.0.is_empty() && rest.0.is_empty() && kind == HOST_NAME;
    if !whole || name.is_empty() || name.len() > NAME_MOST || !name.iter().all(holds) {
        return None;
    }
    Some(Hello::Name(str::from_utf8(name).ok()?.to_ascii_lowercase()))
}

/// A connection of TLS as routes see it: the name, and nothing else.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'n>(pub &'n str);

impl Head for Asked<'_> {
    fn method(&self) -> &'static str {
        ""
    }

    fn path(&self) -> &'static str {
        "/"
    }

    fn query(&self) -> Option<&str> {
        None
    }

    fn authority(&self) -> &str {
        self.0
    }

    fn header(&self, _: &str) -> Option<&[u8]> {
        None
    }

    fn any_header(&self, _: &str, _: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sized(bytes: &[u8]) -> Vec<u8> {
        [&(bytes.len() as u16).to_be_bytes(), bytes].concat()
    }

    fn extension(kind: u16, content: &[u8]) -> Vec<u8> {
        [&kind.to_be_bytes()[..], &sized(content)].concat()
    }

    fn sni(name: &[u8]) -> Vec<u8> {
        extension(SERVER_NAME, &sized(&[&[HOST_NAME][..], &sized(name)].concat()))
    }

    fn hello(extensions: Option<&[u8]>) -> Vec<u8> {
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.extend([4, 1, 2, 3, 4]);
        body.extend(sized(&[0x13, 0x01, 0x13, 0x02]));
        body.extend([1, 0]);
        body.extend(extensions.map(sized).unwrap_or_default());
        let length = (body.len() as u32).to_be_bytes();
        [&[CLIENT_HELLO][..], &length[1..], &body].concat()
    }

    /// In records of at most so many bytes.
    fn records(message: &[u8], most: usize) -> Vec<u8> {
        let record = |part: &[u8]| [&[HANDSHAKE, 3, 1][..], &sized(part)].concat();
        message.chunks(most).flat_map(record).collect()
    }

    fn of(extensions: &[u8]) -> Hello {
        read(&records(&hello(Some(extensions)), RECORD_MOST))
    }

    #[test]
    fn the_name_is_read() {
        let name = |text: &str| Hello::Name(text.to_owned());
        assert_eq!(of(&sni(b"Shop.Example")), name("shop.example"));
        let other = extension(0x002b, &[2, 3, 4]);
        assert_eq!(of(&[other.clone(), sni(b"a_b.example"), other.clone()].concat()), name("a_b.example"));
        // Encrypted or grease: the outer name is what there is.
        let ech = extension(0xfe0d, &[0; 64]);
        assert_eq!(of(&[ech.clone(), sni(b"public.example")].concat()), name("public.example"));
        assert_eq!(of(&ech), Hello::Nameless);
        assert_eq!(of(&[]), Hello::Nameless);
        assert_eq!(read(&records(&hello(None), RECORD_MOST)), Hello::Nameless);
    }

    #[test]
    fn what_is_no_hello_has_no_name() {
        let bad: &[&[u8]] =
            &[b"GET / HTTP/1.1\r\n", b"\x16\x02", b"\x17\x03\x03", b"\x16\x03\x01\x00\x00", b"SSH-2.0"];
        for bytes in bad {
            assert_eq!(read(bytes), Hello::NotTls, "{bytes:?}");
        }
        assert_eq!(read(b"\x16\x03\x01\x40\x01"), Hello::NotTls, "a record that is too long");
        assert_eq!(read(b"\x16\x03\x03\x00\x04\x02\x00\x00\x00"), Hello::NotTls, "a ServerHello");
        assert_eq!(read(b"\x16\x03\x03\x00\x04\x01\x00\x50\x00"), Hello::NotTls, "a hello that is too long");
        for name in [&b""[..], b"a b", b"a\0.example", b"\xff", &[b'a'; 254]] {
            assert_eq!(of(&sni(name)), Hello::NotTls, "{name:?}");
        }
        let twice = [sni(b"a.example"), sni(b"b.example")].concat();
        assert_eq!(of(&twice), Hello::NotTls);
        let two = sized(&[&[HOST_NAME][..], &sized(b"a"), &[HOST_NAME], &sized(b"b")].concat());
        assert_eq!(of(&extension(SERVER_NAME, &two)), Hello::NotTls);
        assert_eq!(of(&extension(SERVER_NAME, &sized(&[&[1][..], &sized(b"a")].concat()))), Hello::NotTls);
        assert_eq!(of(&[0, 0, 0]), Hello::NotTls, "an extension that is cut off");
        let mut longer = hello(Some(&sni(b"a")));
        longer.push(0);
        longer[3] += 1;
        assert_eq!(read(&records(&longer, RECORD_MOST)), Hello::NotTls, "bytes behind the extensions");
    }

    #[test]
    fn a_hello_that_does_not_end_is_given_up() {
        let endless = records(&hello(Some(&extension(21, &[0; 16_000]))), 100);
        let first = &endless[..HELLO_MOST - 1];
        assert_eq!((read(first), read(&endless[..HELLO_MOST])), (Hello::More, Hello::NotTls));
    }

    proptest! {
        /// Over however many records, and however many segments.
        #[test]
        fn fragments_are_put_together(most in 1usize..600, cut in 0usize..2000, padding in 0usize..900) {
            let extensions = [extension(21, &vec![0; padding]), sni(b"shop.example")].concat();
            let message = hello(Some(&extensions));
            let bytes = records(&message, most);
            prop_assert_eq!(read(&bytes), Hello::Name("shop.example".to_owned()));
            let with_more = [&bytes[..], b"\x14\x03\x03\x00\x01\x01"].concat();
            prop_assert_eq!(read(&with_more), Hello::Name("shop.example".to_owned()));
            if cut < bytes.len() {
                prop_assert_eq!(read(&bytes[..cut]), Hello::More);
            }
        }

        #[test]
        fn nothing_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&bytes);
            let _ = read(&records(&[&[CLIENT_HELLO, 0, 0, bytes.len() as u8][..], &bytes].concat(), 64));
        }
    }
}
