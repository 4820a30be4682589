//! TCP: copied as it is, with its ends.

use std::net::Shutdown;

use super::rig::*;

#[test]
fn bytes_pass_both_ways_and_half_close_too() {
    let backend = server(|mut client| {
        client.send("ready ");
        let all = client.rest();
        client.send(format!("{} bytes", all.len()));
    });
    let rig = Rig::tcp(backend);
    let mut client = rig.connect();
    assert_eq!(client.take(6), b"ready ");
    for _ in 0..100 {
        client.send([b'x'; 10_000]);
    }
    client.socket.shutdown(Shutdown::Write).unwrap();
    assert_eq!(client.rest(), b"1000000 bytes");
}

#[test]
fn a_reset_passes_from_endpoint_to_client() {
    let backend = server(|mut client| {
        client.take(1);
        client.reset();
    });
    let rig = Rig::tcp(backend);
    let mut client = rig.connect();
    client.send("x");
    assert!(client.is_reset());
    eventually("counted", || rig.counted(0, "upstream_reset") == 1);
}

#[test]
fn a_reset_passes_from_client_to_endpoint() {
    let (told, hear) = std::sync::mpsc::channel();
    let told = std::sync::Mutex::new(told);
    let backend = server(move |mut client| {
        client.send("x");
        let _ = told.lock().unwrap().send(client.is_reset());
    });
    let rig = Rig::tcp(backend);
    let mut client = rig.connect();
    client.take(1);
    client.reset();
    assert_eq!(hear.recv_timeout(SOON), Ok(true));
    eventually("counted", || rig.counted(0, "client_reset") == 1);
}

#[test]
fn an_endpoint_that_refuses_is_a_reset() {
    let rig = Rig::tcp(nobody());
    assert!(rig.connect().is_reset());
    eventually("counted", || rig.counted(0, "connect_refused") == 1);
}

#[test]
fn megabytes_come_back_unchanged() {
    let backend = server(|mut client| {
        let mut bytes = vec![0; 65_536];
        while let Ok(n) = std::io::Read::read(&mut client.socket, &mut bytes) {
            if n == 0 {
                break;
            }
            client.send(&bytes[..n]);
        }
    });
    let rig = Rig::tcp(backend);
    let mut client = rig.connect();
    let sent: Vec<u8> = (0..8 << 20).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut writer = client.socket.try_clone().unwrap();
    let copy = sent.clone();
    let sender = std::thread::spawn(move || {
        std::io::Write::write_all(&mut writer, &copy).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    assert!(client.rest() == sent);
    sender.join().unwrap();
}

#[test]
fn a_connection_without_its_record_or_service_is_reset() {
    let rig = Rig::tcp(named("a"));
    rig.record(VIP.into(), 80, 99, 99);
    assert!(rig.connect().is_reset());
    *rig.fake.record.lock() = None;
    assert!(rig.connect().is_reset());
    let counts = rig.proxy.stats().counts;
    assert_eq!((counts.no_destination, counts.record_lost), (1, 1));
}

#[test]
fn a_record_whose_service_has_gone_goes_to_the_endpoint_that_the_kernel_chose() {
    let rig = Rig::tcp(named("still there"));
    rig.record(VIP.into(), 80, 99, 1);
    assert_eq!(rig.connect().get("/"), "still there");
}
