//! Embeds the BPF objects that `cargo xtask build-ebpf` has made.

use std::path::PathBuf;

const OBJECTS: [(&str, &str); 2] = [("mesh-ebpf.o", "MESH_EBPF_OBJECT"), ("splice.o", "MESH_SPLICE_OBJECT")];

fn main() {
    for (name, variable) in OBJECTS {
        let object = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/ebpf").join(name);
        println!("cargo:rerun-if-changed={}", object.display());
        assert!(object.is_file(), "{} is missing: run `cargo xtask build-ebpf`", object.display());
        println!("cargo:rustc-env={variable}={}", object.display());
    }
}
