//! `tap` of `agent.sock`: requests as they end, to who asks for them, until he hangs up.
//!
//! worker ──line, filtered──▶ queue of the reader ──▶ **tap** ──pages──▶ reader
//!
//! Not here: which requests match (mesh-api's `TapQuery`), what a line says (path/see), how it is shown (meshctl).

use std::io;

use mesh_api::local::{TAP_PAGE, TapPage, TapQuery, VERSION};

use super::socket::Connection;
use super::{Admin, send};
use crate::path::see::tap::READERS;

/// Answers until the reader is gone, or reads nothing for too long.
pub async fn serve(admin: &Admin, connection: &Connection, query: TapQuery) -> io::Result<()> {
    if let Err(error) = query.check() {
        return send(connection, &refused(error), None).await;
    }
    let Some(mut reader) = admin.proxy.taps().add(query) else {
        let error = format!("{READERS} readers tap already: end one of them");
        return send(connection, &refused(error), None).await;
    };
    // From now on nothing is missed.
    send(connection, &page(Vec::new(), 0), None).await?;
    loop {
        let mut requests = Vec::with_capacity(TAP_PAGE);
        tokio::select! {
            // Nothing more is asked on this connection: whatever comes is the end.
            _ = connection.recv() => return Ok(()),
            some = reader.lines.recv_many(&mut requests, TAP_PAGE) => if some == 0 { return Ok(()) },
        }
        send(connection, &page(requests, reader.lost()), None).await?;
    }
}

fn page(requests: Vec<mesh_api::local::RequestLine<'static>>, lost: u64) -> TapPage {
    TapPage { v: VERSION, ok: true, error: None, requests, lost }
}

fn refused(error: String) -> TapPage {
    TapPage { v: VERSION, error: Some(error), ..TapPage::default() }
}
