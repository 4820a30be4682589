//! Embeds the BPF object that `cargo xtask build-ebpf` has made.

use std::path::PathBuf;

fn main() {
    let object = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/ebpf/mesh-ebpf.o");
    println!("cargo:rerun-if-changed={}", object.display());
    assert!(object.is_file(), "{} is missing: run `cargo xtask build-ebpf`", object.display());
    println!("cargo:rustc-env=MESH_EBPF_OBJECT={}", object.display());
}
