//! `build-ebpf`: mesh-ebpf → `target/ebpf/mesh-ebpf.o`, which mesh-agent's build script embeds.
//!
//! Nothing is built when sources, compiler, linker and flags are those of the last build (a fingerprint
//! beside the object). The object's time changes only when its bytes do, so that the agent is not
//! rebuilt for nothing.

use std::{
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::{
    run::{output, run, say},
    tools,
};

const OBJECT: &str = "target/ebpf/mesh-ebpf.o";
const FINGERPRINT: &str = "target/ebpf/fingerprint";
const BUILD_DIR: &str = "target/ebpf/build";
const TARGET: &str = "bpfel-unknown-none";
/// BTF needs debug information; `--btf` keeps it through the linker.
const FLAGS: &str = "-C debuginfo=2 -C link-arg=--btf";

/// Builds the object if anything that it is made from changed.
pub fn build() -> Result<()> {
    let compiler = tools::bpf_compiler()?;
    let linker = tools::bpf_linker()?;
    let version = output(Command::new(&linker).arg("--version")).unwrap_or_default();
    let fingerprint = fingerprint(&[FLAGS, &compiler.version(), &version])?;
    let known = fs::read_to_string(FINGERPRINT).unwrap_or_default();
    if known == fingerprint && Path::new(OBJECT).exists() {
        say("BPF object is up to date");
        return Ok(());
    }
    let mut command = compiler.cargo_build();
    command.args(["--manifest-path", "mesh-ebpf/Cargo.toml", "--release", "--target", TARGET]);
    command.args(["-Z", "build-std=core", "--target-dir", BUILD_DIR]);
    command.env("RUSTFLAGS", format!("{FLAGS} -C linker={}", linker.display()));
    run("build the BPF object", &mut command)?;
    let built = Path::new(BUILD_DIR).join(TARGET).join("release/mesh-ebpf");
    let bytes = fs::read(&built).with_context(|| format!("no object at {}", built.display()))?;
    if fs::read(OBJECT).ok().as_deref() != Some(&bytes[..]) {
        fs::write(OBJECT, &bytes)?;
    }
    fs::write(FINGERPRINT, fingerprint)?;
    say(format!("{OBJECT}: {} KiB", bytes.len() / 1024));
    Ok(())
}

/// A hash of `words` and of every source file that goes into the object.
fn fingerprint(words: &[&str]) -> Result<String> {
    let mut files = vec![PathBuf::from("mesh-ebpf/Cargo.toml"), "mesh-ebpf/Cargo.lock".into()];
    for folder in ["mesh-ebpf/src", "mesh-ebpf/.cargo", "mesh-common/src"] {
        collect(Path::new(folder), &mut files)?;
    }
    files.push("mesh-common/Cargo.toml".into());
    files.sort();
    let mut hasher = DefaultHasher::new();
    words.hash(&mut hasher);
    for file in files {
        file.hash(&mut hasher);
        fs::read(&file).unwrap_or_default().hash(&mut hasher);
    }
    Ok(format!("{:016x}", hasher.finish()))
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let Ok(entries) = fs::read_dir(folder) else { return Ok(()) };
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() { collect(&path, files)? } else { files.push(path) }
    }
    Ok(())
}
