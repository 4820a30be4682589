//! `grpc.health.v1.Health/Check`, as gRPC's own clients ask it.

use std::net::SocketAddr;

use bytes::{BufMut as _, Bytes, BytesMut};
use h2::RecvStream;
use http::header::{CONTENT_TYPE, HeaderMap, TE};
use http::{Method, Request, Uri, Version};
use prost::Message;
use tokio::io::{AsyncRead, AsyncWrite};

/// Most bytes of an answer.
const MOST: usize = 4 << 10;
/// Bytes before a message: whether it is compressed, and its length.
const PREFIX: usize = 5;
/// `ServingStatus.SERVING`.
const SERVING: i32 = 1;

#[derive(Clone, PartialEq, Message)]
struct Question {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, PartialEq, Message)]
struct Answer {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// Asks on a fresh connection.
pub async fn check<S>(stream: S, to: SocketAddr, service: &str) -> Result<(), String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (client, connection) = h2::client::handshake(stream).await.map_err(|e| format!("no HTTP/2: {e}"))?;
    let asked = call(client, to, service);
    tokio::select! {
        biased;
        answer = asked => answer,
        ended = connection => Err(match ended {
            Ok(()) => "the connection ended without an answer".to_owned(),
            Err(error) => format!("no answer: {error}"),
        }),
    }
}

async fn call(client: h2::client::SendRequest<Bytes>, to: SocketAddr, service: &str) -> Result<(), String> {
    let failed = |error: h2::Error| format!("no answer: {error}");
    let mut client = client.ready().await.map_err(failed)?;
    let request = request(to).map_err(|error| error.to_string())?;
    let (response, mut body) = client.send_request(request, false).map_err(failed)?;
    body.send_data(framed(&Question { service: service.to_owned() }), true).map_err(failed)?;
    let (parts, body) = response.await.map_err(failed)?.into_parts();
    if !parts.status.is_success() {
        return Err(format!("it answers {}, which is no gRPC", parts.status.as_u16()));
    }
    if let Some(code) = status(&parts.headers).filter(|code| *code != 0) {
        return Err(refused(code, service));
    }
    match read(body).await.map_err(failed)? {
        (Some(0), message) => judge(&message),
        (Some(code), _) => Err(refused(code, service)),
        (None, _) => Err("its answer has no grpc-status".to_owned()),
    }
}

fn request(to: SocketAddr) -> Result<Request<()>, http::Error> {
    let uri = Uri::builder()
        .scheme("http")
        .authority(to.to_string())
        .path_and_query("/grpc.health.v1.Health/Check");
    Request::builder()
        .method(Method::POST)
        .uri(uri.build()?)
        .version(Version::HTTP_2)
        .header(CONTENT_TYPE, "application/grpc")
        .header(TE, "trailers")
        .header("user-agent", "nodemesh-health")
        .body(())
}

fn framed(question: &Question) -> Bytes {
    let mut out = BytesMut::with_capacity(PREFIX + question.encoded_len());
    out.put_u8(0);
    out.put_u32(question.encoded_len() as u32);
    // A BytesMut grows.
    let _ = question.encode(&mut out);
    out.freeze()
}

/// The status of the trailers, and what came before.
async fn read(mut body: RecvStream) -> Result<(Option<i32>, Vec<u8>), h2::Error> {
    let mut all = Vec::new();
    while let Some(piece) = body.data().await {
        let piece = piece?;
        let _ = body.flow_control().release_capacity(piece.len());
        let room = MOST.saturating_sub(all.len()).min(piece.len());
        all.extend_from_slice(&piece[..room]);
    }
    Ok((body.trailers().await?.as_ref().and_then(status), all))
}

fn judge(framed: &[u8]) -> Result<(), String> {
    let message = match framed.first_chunk::<PREFIX>() {
        Some([0, length @ ..]) if u32::from_be_bytes(*length) as usize == framed.len() - PREFIX => {
            &framed[PREFIX..]
        }
        _ => return Err("its answer is not one message".to_owned()),
    };
    let answer = Answer::decode(message).map_err(|error| format!("its answer is no message: {error}"))?;
    match answer.status {
        SERVING => Ok(()),
        2 => Err("it says NOT_SERVING".to_owned()),
        3 => Err("it says SERVICE_UNKNOWN".to_owned()),
        other => Err(format!("it says status {other}")),
    }
}

fn refused(code: i32, service: &str) -> String {
    match code {
        5 => format!("it knows no health of the service {service:?}"),
        12 => "it does not serve grpc.health.v1".to_owned(),
        code => format!("it answers with grpc-status {code}"),
    }
}

fn status(headers: &HeaderMap) -> Option<i32> {
    headers.get("grpc-status")?.to_str().ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_serving_passes() {
        let said = |status| {
            let body = Answer { status }.encode_to_vec();
            judge(&[&[0, 0, 0, 0, body.len() as u8][..], &body].concat())
        };
        assert_eq!(said(1), Ok(()));
        assert_eq!(said(2), Err("it says NOT_SERVING".to_owned()));
        assert!(said(0).is_err() && judge(b"").is_err() && judge(b"\0\0\0\0\x09a").is_err());
    }

    #[tokio::test]
    async fn a_server_is_asked_for_its_service() {
        let ask = async |grpc_status: &'static str, answer: i32| {
            let (near, far) = tokio::io::duplex(1 << 16);
            let server = tokio::spawn(async move {
                let mut connection = h2::server::handshake(far).await.unwrap();
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
                    let body = http::Response::builder().body(()).unwrap();
                    let mut down = respond.send_response(body, false).unwrap();
                    let said = Answer { status: answer }.encode_to_vec();
                    let said = [&[0, 0, 0, 0, said.len() as u8][..], &said].concat();
                    down.send_data(said.into(), false).unwrap();
                    let mut trailers = HeaderMap::new();
                    trailers.insert("grpc-status", grpc_status.parse().unwrap());
                    down.send_trailers(trailers).unwrap();
                }
            });
            let asked = check(near, "10.0.0.1:50051".parse().unwrap(), "shop.Cart").await;
            server.abort();
            asked
        };
        assert_eq!(ask("0", 1).await, Ok(()));
        assert_eq!(ask("0", 2).await, Err("it says NOT_SERVING".to_owned()));
        assert!(ask("5", 1).await.unwrap_err().contains("shop.Cart"));
        assert!(ask("12", 1).await.unwrap_err().contains("grpc.health.v1"));
    }
}
