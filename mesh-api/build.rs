//! Compiles `proto/` without `protoc`: messages always, client and server stubs with feature `grpc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let set = protox::compile(
        ["proto/discovery.proto", "proto/ext_authz.proto", "proto/identity.proto", "proto/nodemesh.proto"],
        ["proto"],
    )?;
    let grpc = std::env::var_os("CARGO_FEATURE_GRPC").is_some();
    tonic_prost_build::configure()
        .build_client(grpc)
        .build_server(grpc)
        .build_transport(false)
        // Sorted maps: the same content encodes to the same bytes, which content hashes rest on.
        .btree_map(".")
        .compile_well_known_types(false)
        .compile_fds(set)?;
    Ok(())
}
