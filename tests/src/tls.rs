//! TLS of programs in pods: authorities and certificates by openssl, nginx with TLS.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{pod::Pod, process::Process, programs::wait_for_ports, shell};

/// An authority that is nobody's but the story's.
pub struct Authority {
    dir: PathBuf,
}

/// A certificate and its key, as paths.
pub struct Issued {
    /// The certificate.
    pub cert: String,
    /// The key.
    pub key: String,
}

const CURVE: [&str; 5] = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];

#[track_caller]
fn openssl(args: &[&str]) {
    shell::run(Command::new("openssl").args(args), "").unwrap_or_else(|error| panic!("{error:#}"));
}

impl Authority {
    /// A new one, in a directory of its own below `dir`.
    #[track_caller]
    pub fn new(dir: &Path, name: &str) -> Self {
        let dir = dir.join(format!("ca-{name}"));
        fs::create_dir_all(&dir).expect("make a directory");
        let made = Self { dir };
        let (key, cert, subject) = (made.path("ca.key"), made.path("ca.pem"), format!("/CN={name}"));
        let own = ["-x509", "-keyout", &key, "-out", &cert, "-days", "30", "-subj", &subject];
        let is_ca = ["-addext", "keyUsage=critical,keyCertSign,cRLSign"];
        openssl(&[&["req"], &CURVE[..], &own, &is_ca].concat());
        made
    }

    fn path(&self, name: &str) -> String {
        self.dir.join(name).to_string_lossy().into_owned()
    }

    /// The path of its certificate.
    pub fn file(&self) -> String {
        self.path("ca.pem")
    }

    /// Its certificate in PEM, each line with `indent` before it.
    #[track_caller]
    pub fn pem(&self, indent: &str) -> String {
        let text = fs::read_to_string(self.file()).expect("read ca.pem");
        text.lines().flat_map(|line| [indent, line, "\n"]).collect()
    }

    /// Issues a certificate for names as openssl writes them (`DNS:a.example,IP:192.0.2.1`), for so many days.
    #[track_caller]
    pub fn issue(&self, name: &str, names: &str, days: i32) -> Issued {
        let file = |kind: &str| self.path(&format!("{name}.{kind}"));
        let (key, request, cert, extensions) = (file("key"), file("csr"), file("pem"), file("ext"));
        fs::write(&extensions, format!("subjectAltName={names}\n")).expect("write extensions");
        let subject = format!("/CN={name}");
        openssl(&[&["req"], &CURVE[..], &["-keyout", &key, "-out", &request, "-subj", &subject]].concat());
        let (ca, ca_key, days) = (self.file(), self.path("ca.key"), days.to_string());
        let signed_by = ["-CA", &ca, "-CAkey", &ca_key, "-CAcreateserial", "-days", &days];
        let files = ["-in", &request, "-extfile", &extensions, "-out", &cert];
        openssl(&[&["x509", "-req"], &signed_by[..], &files].concat());
        Issued { cert, key }
    }
}

/// Starts nginx with TLS on `port`; with `clients` it asks for certificates of that authority. A request is answered
/// with `name=<pod> tls=<version> sni=<name> client=<subject> http=<version>`.
#[track_caller]
pub fn tls_nginx(pod: &Pod, port: u16, own: &Issued, clients: Option<&Authority>) -> Process {
    let work = pod.work().display();
    let verify = clients.map_or_else(String::new, |ca| {
        format!("ssl_client_certificate {}; ssl_verify_client on;", ca.file())
    });
    let config = format!(
        "daemon off; worker_processes 1; pid {work}/tls-{port}.pid; error_log {work}/tls-{port}.err;\n\
         events {{ worker_connections 1024; }}\n\
         http {{\n\
           log_format line '$remote_addr $connection $request_uri $status';\n\
           access_log {work}/tls-{port}.access line; keepalive_requests 1000000; default_type text/plain;\n\
           client_body_temp_path {work}/u1; proxy_temp_path {work}/u2; fastcgi_temp_path {work}/u3;\n\
           uwsgi_temp_path {work}/u4; scgi_temp_path {work}/u5;\n\
           server {{ listen 0.0.0.0:{port} ssl; listen [::]:{port} ssl;\n\
             ssl_protocols TLSv1.2 TLSv1.3; ssl_certificate {cert}; ssl_certificate_key {key}; {verify}\n\
             location / {{ return 200 \"name={name} tls=$ssl_protocol sni=$ssl_server_name client=$ssl_client_s_dn \
             http=$server_protocol\\n\"; }}\n\
             location /files/ {{ alias {work}/files/; }}\n\
           }}\n\
         }}\n",
        cert = own.cert,
        key = own.key,
        name = pod.name(),
    );
    let path = pod.work().join(format!("tls-{port}.conf"));
    fs::write(&path, config).expect("write nginx's configuration");
    fs::create_dir_all(pod.work().join("files")).expect("make files/");
    let errors = pod.work().join(format!("tls-{port}.err"));
    let args = ["-c", &path.to_string_lossy(), "-e", &errors.to_string_lossy()];
    let mut process = pod.start(&format!("tls-{port}"), "/usr/sbin/nginx", &args);
    wait_for_ports(pod, &mut process, &[port]);
    process
}

/// Starts `openssl s_server` on `port`, which sends each line back reversed.
#[track_caller]
pub fn reverser(pod: &Pod, port: u16, own: &Issued, args: &[&str]) -> Process {
    let at = port.to_string();
    let fixed = ["s_server", "-accept", &at, "-cert", &own.cert, "-key", &own.key, "-rev"];
    let mut process = pod.start(&format!("reverser-{port}"), "openssl", &[&fixed[..], args].concat());
    wait_for_ports(pod, &mut process, &[port]);
    process
}
