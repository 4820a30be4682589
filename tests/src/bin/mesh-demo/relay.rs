//! Makes addresses inside the mesh's closed network reachable at ports of this host's loopback, so that a
//! browser can look at them. Nothing of the host's network is touched.

use std::{
    io,
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::Arc,
    thread,
    time::Duration,
};

use mesh_tests::Mesh;

/// Listens on a free port of 127.0.0.1; each connection goes on to `to`, opened in the mesh's fabric.
pub fn open(mesh: &Arc<Mesh>, to: SocketAddr) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let mesh = Arc::downgrade(mesh);
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let Some(mesh) = mesh.upgrade() else { return };
            let Ok(server) = mesh.fabric().netns.connect(to, Duration::from_secs(2)) else { continue };
            drop(mesh);
            if let (Ok(client_back), Ok(server_back)) = (client.try_clone(), server.try_clone()) {
                thread::spawn(move || pass(client, server));
                thread::spawn(move || pass(server_back, client_back));
            }
        }
    });
    Ok(address)
}

fn pass(mut from: TcpStream, mut to: TcpStream) {
    // Either end may go at any time; the other is told.
    let _ = io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
}
