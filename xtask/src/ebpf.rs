//! `build-ebpf`: mesh-ebpf → `target/ebpf/{mesh-ebpf,splice}.o`, which mesh-agent's build script embeds, and
//! `empty.o`, which the bench compares them with.
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

const FOLDER: &str = "target/ebpf";
const OBJECTS: [&str; 3] = ["mesh-ebpf", "splice", "empty"];
const FINGERPRINT: &str = "target/ebpf/fingerprint";
const BUILD_DIR: &str = "target/ebpf/build";
const TARGET: &str = "bpfel-unknown-none";

/// Builds the object if anything that it is made from changed.
pub fn build() -> Result<()> {
    let compiler = tools::bpf_compiler()?;
    let linker = tools::bpf_linker()?;
    let version = output(Command::new(&linker).arg("--version")).unwrap_or_default();
    let fingerprint = fingerprint(&[&compiler.version(), &version])?;
    let known = fs::read_to_string(FINGERPRINT).unwrap_or_default();
    if known == fingerprint && OBJECTS.iter().all(|name| object(name).exists()) {
        say("BPF object is up to date");
        return Ok(());
    }
    let mut command = compiler.cargo_build();
    // The flags stand in the crate's own `.cargo/config.toml`, which cargo reads from where it is started.
    command.current_dir("mesh-ebpf");
    command.args(["--release", "--target", TARGET, "-Z", "build-std=core"]);
    command.arg("--target-dir").arg(std::env::current_dir()?.join(BUILD_DIR));
    command.env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", linker).env_remove("RUSTFLAGS");
    run("build the BPF objects", &mut command)?;
    for name in OBJECTS {
        let built = Path::new(BUILD_DIR).join(TARGET).join("release").join(name);
        let bytes = fs::read(&built).with_context(|| format!("no object at {}", built.display()))?;
        let object = object(name);
        if fs::read(&object).ok().as_deref() != Some(&bytes[..]) {
            fs::write(&object, &bytes)?;
        }
        say(format!("{}: {} KiB", object.display(), bytes.len() / 1024));
    }
    fs::write(FINGERPRINT, fingerprint)?;
    Ok(())
}

fn object(name: &str) -> PathBuf {
    Path::new(FOLDER).join(name).with_extension("o")
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
