//! Whom the agent trusts: the one CA of its token, and nobody else.

use super::*;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls_pki_types::PrivatePkcs8KeyDer;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

const HASH: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

#[test]
fn a_token_is_parsed_and_its_secret_is_not_shown() {
    let token = JoinToken::parse(&format!("nm1.abc.s3cret.{HASH}\n")).unwrap();
    assert_eq!(token.pin[..4], [0x00, 0x11, 0x22, 0x33]);
    assert_eq!(format!("{token:?}"), "JoinToken(abc)");
}

#[test]
fn what_is_not_a_token_is_refused() {
    for bad in ["", "nm1.a.b", "nm2.a.b.c", "nm1.a.b.zz", "nm1..b.00", "nm1.a.b.c.d"] {
        assert!(JoinToken::parse(bad).is_err(), "{bad}");
    }
}

#[test]
fn only_https_addresses_are_taken() {
    let credentials = Credentials::pinned([0; 32]);
    for good in [
        "https://10.0.0.1:15012",
        "https://control.mesh",
        "https://[fd00::1]:15012/",
        "https://a:1@z1, https://b@z2",
    ] {
        assert!(ControlPlane::to(good, "", &credentials).is_ok(), "{good}");
    }
    for bad in ["http://10.0.0.1:1", "10.0.0.1:15012", "https://x/y", "", "https://a,", "https://a:1,b:2"] {
        assert!(ControlPlane::to(bad, "", &credentials).is_err(), "{bad}");
    }
}

type Ca = CertifiedIssuer<'static, KeyPair>;

fn ca() -> Ca {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// A token that names this CA.
fn token(ca: &Ca) -> JoinToken {
    let hash = format!("{:x}", Sha256::digest(ca.der()));
    JoinToken::parse(&format!("nm1.id.secret.{hash}")).unwrap()
}

/// A server with a certificate of `signer` for `name`, which also shows `shown`; its port.
async fn server(signer: &Ca, shown: &Ca, name: &str, alpn: &[u8]) -> u16 {
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, signer).unwrap();
    let chain = vec![leaf.der().clone(), shown.der().clone()];
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, PrivatePkcs8KeyDer::from(key.serialize_der()).into())
        .unwrap();
    config.alpn_protocols = vec![alpn.to_vec()];
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let acceptor = TlsAcceptor::from(Arc::new(config));
        while let Ok((stream, _)) = listener.accept().await {
            let _ = acceptor.accept(stream).await;
        }
    });
    port
}

async fn dial(host: &str, port: u16, token: &JoinToken) -> Result<(), String> {
    let credentials = Credentials::pinned(token.pin());
    let address = format!("https://{host}:{port}");
    let control = ControlPlane::to(&address, "", &credentials).unwrap();
    control.dial(replica(&address).unwrap(), true).await.map(drop).map_err(|e| e.to_string())
}

#[tokio::test]
async fn the_control_plane_of_the_token_is_trusted() {
    let ca = ca();
    let port = server(&ca, &ca, "127.0.0.1", b"h2").await;
    dial("127.0.0.1", port, &token(&ca)).await.unwrap();
    let port = server(&ca, &ca, "localhost", b"h2").await;
    dial("localhost", port, &token(&ca)).await.unwrap();
}

#[tokio::test]
async fn nobody_else_is_trusted() {
    let (ours, theirs) = (ca(), ca());
    // A stranger with its own CA.
    let port = server(&theirs, &theirs, "127.0.0.1", b"h2").await;
    let error = dial("127.0.0.1", port, &token(&ours)).await.unwrap_err();
    assert!(error.contains("UnknownIssuer"), "{error}");
    // A stranger who shows our CA beside a certificate that it did not sign.
    let port = server(&theirs, &ours, "127.0.0.1", b"h2").await;
    dial("127.0.0.1", port, &token(&ours)).await.unwrap_err();
    // One of ours under another name.
    let port = server(&ours, &ours, "other.example", b"h2").await;
    let error = dial("127.0.0.1", port, &token(&ours)).await.unwrap_err();
    assert!(error.contains("not valid for"), "{error}");
}

#[tokio::test]
async fn a_server_without_http_2_is_named() {
    let ca = ca();
    let port = server(&ca, &ca, "127.0.0.1", b"http/1.1").await;
    dial("127.0.0.1", port, &token(&ca)).await.unwrap_err();
}

#[tokio::test]
async fn another_replica_is_taken_where_one_is_away() {
    let ca = ca();
    let (one, other) =
        (server(&ca, &ca, "127.0.0.1", b"h2").await, server(&ca, &ca, "127.0.0.1", b"h2").await);
    let credentials = Credentials::pinned(token(&ca).pin());
    let away = "https://127.0.0.1:1";
    let control =
        ControlPlane::to(&format!("{away}@z,https://127.0.0.1:{one}@y"), "z", &credentials).unwrap();
    let (_, number) = control.open(true).await.unwrap();
    assert_eq!(number, 1, "its own zone's is away");
    let all = format!("https://127.0.0.1:{one},https://127.0.0.1:{other}");
    let control = ControlPlane::to(&all, "", &credentials).unwrap();
    let (_, first) = control.open(true).await.unwrap();
    assert_eq!(control.open(true).await.unwrap().1, first, "it stays");
    control.leave(first);
    assert_eq!(control.open(true).await.unwrap().1, 1 - first);
    let none = ControlPlane::to(&format!("{away},https://127.0.0.1:2"), "", &credentials).unwrap();
    let error = none.open(true).await.unwrap_err().to_string();
    assert!(error.contains("127.0.0.1:1") && error.contains("127.0.0.1:2"), "{error}");
}
