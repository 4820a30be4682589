//! A GET over HTTP/1.1: the status decides, and nothing else of the answer.

use std::net::SocketAddr;
use std::time::Duration;

use mesh_core::health::Http;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// Most bytes of heads that are read, interim ones included.
const HEADS: usize = 16 << 10;
/// How much of a body is waited for, so that its sender sees an orderly end.
const BODY: u64 = 64 << 10;
const BODY_TIME: Duration = Duration::from_millis(100);

/// Asks on a fresh connection.
pub async fn get<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    to: SocketAddr,
    probe: &Http,
) -> Result<(), String> {
    let broken = |error: std::io::Error| format!("GET {}: {error}", probe.path);
    stream.write_all(request(to, probe).as_bytes()).await.map_err(broken)?;
    let mut heads = Vec::with_capacity(1024);
    let status = loop {
        match answer(&heads) {
            Ok(Some(status)) => break status,
            Ok(None) if heads.len() >= HEADS => {
                return Err(format!("GET {}: its head is longer than {HEADS} bytes", probe.path));
            }
            Ok(None) => {}
            Err(why) => return Err(format!("GET {}: {why}", probe.path)),
        }
        if stream.read_buf(&mut heads).await.map_err(broken)? == 0 {
            return Err(format!("GET {}: the connection ended without an answer", probe.path));
        }
    };
    let rest = async { tokio::io::copy(&mut (&mut stream).take(BODY), &mut tokio::io::sink()).await };
    let _ = tokio::time::timeout(BODY_TIME, rest).await;
    if probe.statuses.iter().any(|(from, to)| (*from..=*to).contains(&status)) {
        return Ok(());
    }
    Err(format!("GET {}: {status}", probe.path))
}

fn request(to: SocketAddr, probe: &Http) -> String {
    let given = |name: &str| probe.headers.iter().any(|(given, _)| given.eq_ignore_ascii_case(name));
    let mut out = format!("GET {} HTTP/1.1\r\n", probe.path);
    for (name, value) in
        [("Host", to.to_string()), ("User-Agent", "nodemesh-health".into()), ("Accept", "*/*".into())]
    {
        if !given(name) {
            out.extend([name, ": ", &value, "\r\n"]);
        }
    }
    for (name, value) in &probe.headers {
        out.extend([name.as_str(), ": ", value, "\r\n"]);
    }
    out + "Connection: close\r\n\r\n"
}

/// The status of the first head that is not an interim one; `None`: it is not there yet.
fn answer(mut heads: &[u8]) -> Result<Option<u32>, &'static str> {
    loop {
        let Some(end) = heads.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(None) };
        let line = heads.strip_prefix(b"HTTP/1.").and_then(|rest| rest.get(1..5));
        let digits =
            line.and_then(|line| line.strip_prefix(b" ")).and_then(|digits| std::str::from_utf8(digits).ok());
        let status: u32 = digits.and_then(|digits| digits.parse().ok()).ok_or("its answer is no HTTP/1")?;
        if !(100..200).contains(&status) || status == 101 {
            return Ok(Some(status));
        }
        heads = &heads[end + 4..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probe(headers: &[(&str, &str)]) -> Http {
        let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Http { path: "/health?x".into(), headers, statuses: vec![(200, 399), (418, 418)] }
    }

    #[test]
    fn a_host_of_one_s_own_is_the_only_one() {
        let to = "[fd00::1]:8080".parse().unwrap();
        let plain = request(to, &probe(&[]));
        assert!(plain.starts_with("GET /health?x HTTP/1.1\r\nHost: [fd00::1]:8080\r\n"), "{plain}");
        let own = request(to, &probe(&[("host", "shop"), ("X-A", "b")]));
        assert!(own.contains("host: shop\r\nX-A: b\r\n") && !own.contains("fd00"), "{own}");
        assert!(own.ends_with("Connection: close\r\n\r\n"));
    }

    #[test]
    fn interim_answers_are_passed_over() {
        assert_eq!(answer(b"HTTP/1.1 200 OK\r\nA: b\r\n"), Ok(None));
        assert_eq!(answer(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 503 No\r\n\r\nbody"), Ok(Some(503)));
        assert_eq!(answer(b"HTTP/1.0 204\r\n\r\n"), Ok(Some(204)));
        for bad in [&b"SSH-2.0-x\r\n\r\n"[..], b"HTTP/1.1 abc\r\n\r\n", b"\r\n\r\n", b"HTTP/2 200\r\n\r\n"] {
            assert!(answer(bad).is_err(), "{bad:?}");
        }
    }

    #[tokio::test]
    async fn the_status_decides() {
        let ask = async |said: &'static [u8]| {
            let (near, mut far) = tokio::io::duplex(4096);
            let server = tokio::spawn(async move {
                let mut seen = [0; 1024];
                let _ = far.read(&mut seen).await;
                let _ = far.write_all(said).await;
            });
            let asked = get(near, "10.0.0.1:80".parse().unwrap(), &probe(&[])).await;
            server.await.unwrap();
            asked
        };
        assert_eq!(ask(b"HTTP/1.1 200 OK\r\n\r\nfine").await, Ok(()));
        assert_eq!(ask(b"HTTP/1.1 418 Teapot\r\n\r\n").await, Ok(()));
        assert_eq!(ask(b"HTTP/1.1 500 No\r\n\r\n").await, Err("GET /health?x: 500".to_owned()));
        assert!(ask(b"").await.unwrap_err().contains("without an answer"));
    }
}
