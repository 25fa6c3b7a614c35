//! Turns `proto/` into Rust, with no `protoc` on the machine: protox parses, tonic-prost-build generates.

use std::path::PathBuf;

use prost::Message as _;

/// Files that define a service or a root message; what they import comes along.
const ROOTS: [&str; 11] = [
    "fencepost/v1/barrier.proto",
    "fencepost/v1/checkpoint.proto",
    "fencepost/v1/cluster.proto",
    "fencepost/v1/commit.proto",
    "fencepost/v1/dead_letter.proto",
    "fencepost/v1/lease.proto",
    "fencepost/v1/log.proto",
    "fencepost/v1/maintenance.proto",
    "fencepost/v1/pipeline.proto",
    "fencepost/log/v1/fact.proto",
    "fencepost/log/v1/state.proto",
];

#[allow(clippy::disallowed_methods)] // The door to the file system is the server's, not the build's.
fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(ROOTS, ["proto"])?;

    // Served by gRPC reflection, so that grpcurl and its like need no .proto files.
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;

    tonic_prost_build::configure().bytes(".").build_transport(false).compile_fds(descriptors)?;
    Ok(())
}
