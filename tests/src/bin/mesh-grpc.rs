//! `mesh-grpc PORT`: answers every unary call of gRPC with its own message, as fast as one thread can.
//!
//! What benches put behind proxies: a server in Python would be all that is measured.

#![forbid(unsafe_code)]

use anyhow::{Context, Result};
use bytes::{Bytes, BytesMut};
use h2::server::{self, SendResponse};
use http::{HeaderMap, HeaderValue, Request, Response};
use tokio::net::{TcpListener, TcpStream};

/// Streams of a connection.
const STREAMS: u32 = 1024;
/// Bytes of a window.
const WINDOW: u32 = 1 << 20;

fn main() -> Result<()> {
    let port: u16 = std::env::args().nth(1).context("usage: mesh-grpc PORT")?.parse()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(("::", port)).await?;
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            // A connection that breaks is its client's to notice.
            tokio::spawn(connection(stream));
        }
    })
}

async fn connection(stream: TcpStream) -> Result<()> {
    let mut builder = server::Builder::new();
    builder
        .max_concurrent_streams(STREAMS)
        .initial_window_size(WINDOW)
        .initial_connection_window_size(WINDOW);
    let mut connection = builder.handshake::<_, Bytes>(stream).await?;
    while let Some(call) = connection.accept().await {
        let (request, respond) = call?;
        tokio::spawn(answer(request, respond));
    }
    Ok(())
}

async fn answer(request: Request<h2::RecvStream>, mut respond: SendResponse<Bytes>) -> Result<()> {
    let mut body = request.into_body();
    let mut message = BytesMut::new();
    while let Some(piece) = body.data().await {
        let piece = piece?;
        body.flow_control().release_capacity(piece.len())?;
        message.extend_from_slice(&piece);
    }
    let response = Response::builder().header("content-type", "application/grpc").body(())?;
    let mut down = respond.send_response(response, false)?;
    down.send_data(message.freeze(), false)?;
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    down.send_trailers(trailers)?;
    Ok(())
}
