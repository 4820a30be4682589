//! What goes in at one end comes out at the other, with its ends.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::super::super::Limits;
use super::rig::*;

fn echo(mut socket: TcpStream) {
    let mut bytes = vec![0; 65_536];
    while let Ok(n) = socket.read(&mut bytes) {
        if n == 0 || socket.write_all(&bytes[..n]).is_err() {
            break;
        }
    }
}

#[test]
fn bytes_pass_both_ways_and_half_close_too() {
    let root = authority();
    let called = Called::new(
        &root,
        Limits::default(),
        each(|mut socket| {
            socket.write_all(b"ready ").unwrap();
            let mut all = Vec::new();
            socket.read_to_end(&mut all).unwrap();
            write!(socket, "{} bytes", all.len()).unwrap();
        }),
    );
    Caller::run(FakeKeys::new(&root, PAY), Limits::default(), async |caller| {
        let mut stream = caller.open(called.via(called.application.port())).await.unwrap();
        let mut ready = [0; 6];
        stream.read_exact(&mut ready).await.unwrap();
        assert_eq!(&ready, b"ready ");
        for _ in 0..100 {
            stream.write_all(&[b'x'; 10_000]).await.unwrap();
        }
        stream.shutdown().await.unwrap();
        assert_eq!(rest(&mut stream).await.unwrap(), b"1000000 bytes");
        drop(stream);
        caller.eventually("nothing is left", |counts| counts.streams == [0, 0]).await;
        assert_eq!(caller.counts().tunnels, [1, 0]);
    });
    called.eventually("nothing is left", |counts| counts.streams == [0, 0]);
}

#[test]
fn megabytes_come_back_unchanged_over_one_tunnel() {
    let root = authority();
    let called = Called::new(&root, Limits::default(), each(echo));
    Caller::run(FakeKeys::new(&root, PAY), Limits::default(), async |caller| {
        let sent: Vec<u8> = (0..8 << 20).map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let sent = Arc::new(sent);
        let mut tasks = Vec::new();
        for _ in 0..4 {
            let stream = caller.open(called.via(called.application.port())).await.unwrap();
            let (mut read, mut write) = tokio::io::split(stream);
            let all = sent.clone();
            tasks.push(tokio::task::spawn_local(async move {
                write.write_all(&all).await.unwrap();
                write.shutdown().await.unwrap();
            }));
            let all = sent.clone();
            tasks.push(tokio::task::spawn_local(async move {
                let mut back = Vec::new();
                read.read_to_end(&mut back).await.unwrap();
                assert!(back == *all);
            }));
        }
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(caller.counts().handshakes.len(), 1);
        assert_eq!(caller.counts().tunnels, [1, 0]);
    });
}

#[test]
fn a_reset_passes_from_application_to_caller() {
    let root = authority();
    let called = Called::new(
        &root,
        Limits::default(),
        each(|mut socket| {
            socket.read_exact(&mut [0]).unwrap();
            rustix::net::sockopt::set_socket_linger(&socket, Some(Duration::ZERO)).unwrap();
        }),
    );
    Caller::run(FakeKeys::new(&root, PAY), Limits::default(), async |caller| {
        let mut stream = caller.open(called.via(called.application.port())).await.unwrap();
        stream.write_all(b"x").await.unwrap();
        assert_eq!(rest(&mut stream).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    });
}

#[test]
fn a_reset_passes_from_caller_to_application() {
    let root = authority();
    let (told, hear) = channel();
    let told = Mutex::new(told);
    let called = Called::new(
        &root,
        Limits::default(),
        each(move |mut socket| {
            socket.write_all(b"x").unwrap();
            let end = socket.read(&mut [0; 10]).map_err(|e| e.kind());
            let _ = told.lock().send(end);
        }),
    );
    Caller::run(FakeKeys::new(&root, PAY), Limits::default(), async |caller| {
        let mut stream = caller.open(called.via(called.application.port())).await.unwrap();
        stream.read_exact(&mut [0]).await.unwrap();
        stream.reset();
        drop(stream);
        caller.eventually("it has gone", |counts| counts.streams == [0, 0]).await;
        called.soon("there too", |counts| counts.streams == [0, 0]).await;
        assert_eq!(caller.counts().tunnels, [1, 0], "the tunnel stays");
    });
    assert_eq!(hear.recv_timeout(SOON), Ok(Err(ErrorKind::ConnectionReset)));
}

#[test]
fn what_was_written_arrives_though_the_stream_is_dropped_at_once() {
    let root = authority();
    let (told, hear) = channel();
    let told = Mutex::new(told);
    let called = Called::new(
        &root,
        Limits::default(),
        each(move |mut socket| {
            let mut all = Vec::new();
            let read = socket.read_to_end(&mut all).map_err(|e| e.kind());
            let _ = told.lock().send(read);
        }),
    );
    Caller::run(FakeKeys::new(&root, PAY), Limits::default(), async |caller| {
        let mut stream = caller.open(called.via(called.application.port())).await.unwrap();
        stream.write_all(&vec![7; 100_000]).await.unwrap();
        drop(stream);
        caller.eventually("it has gone", |counts| counts.streams == [0, 0]).await;
    });
    assert_eq!(hear.recv_timeout(SOON), Ok(Ok(100_000)));
}

#[test]
fn a_hundred_thousand_writes_of_one_byte_do_not_end_a_tunnel() {
    const WRITES: usize = 100_000;
    let root = authority();
    let (go, wait) = channel();
    let wait = Mutex::new(wait);
    let (told, hear) = channel();
    let told = Mutex::new(told);
    let called = Called::new(
        &root,
        Limits::default(),
        each(move |mut socket| {
            // Not read before all of it was written: frames lie unread at every place that has room for them.
            wait.lock().recv_timeout(SOON).unwrap();
            let mut all = Vec::new();
            let read = socket.read_to_end(&mut all).map_err(|e| e.kind());
            let _ = told.lock().send(read);
            socket.write_all(b"done").unwrap();
        }),
    );
    Caller::run(FakeKeys::new(&root, PAY), Limits::default(), async |caller| {
        let mut stream = caller.open(called.via(called.application.port())).await.unwrap();
        for _ in 0..WRITES {
            stream.write_all(b"x").await.unwrap();
            // A frame of its own.
            tokio::task::yield_now().await;
        }
        go.send(()).unwrap();
        stream.shutdown().await.unwrap();
        assert_eq!(rest(&mut stream).await.unwrap(), b"done");
    });
    assert_eq!(hear.recv_timeout(SOON), Ok(Ok(WRITES)));
    called.eventually("one tunnel for all", |counts| {
        counts.handshakes.iter().map(|(.., n)| n).sum::<u64>() == 1
    });
}

#[test]
fn readers_who_stall_do_not_stop_another_one() {
    const STALLED: usize = 100;
    const ALL: usize = 32 << 20;
    let root = authority();
    let called = Called::new(
        &root,
        Limits::default(),
        each(|mut socket| {
            let mut kind = [0];
            socket.read_exact(&mut kind).unwrap();
            let bytes = vec![kind[0]; 1 << 20];
            for _ in 0..ALL / bytes.len() {
                if socket.write_all(&bytes).is_err() {
                    return;
                }
            }
        }),
    );
    Caller::run(FakeKeys::new(&root, PAY), Limits::default(), async |caller| {
        let mut stalled = Vec::new();
        for _ in 0..STALLED {
            let mut stream = caller.open(called.via(called.application.port())).await.unwrap();
            stream.write_all(b"s").await.unwrap();
            // It has begun, and is not read any more.
            stream.read_exact(&mut [0; 1000]).await.unwrap();
            stalled.push(stream);
        }
        let mut stream = caller.open(called.via(called.application.port())).await.unwrap();
        stream.write_all(b"f").await.unwrap();
        assert_eq!(rest(&mut stream).await.unwrap().len(), ALL);
        assert_eq!(caller.counts().tunnels, [1, 0]);
        // And those go on where they were.
        let mut last = stalled.pop().unwrap();
        assert_eq!(rest(&mut last).await.unwrap().len(), ALL - 1000);
    });
}
