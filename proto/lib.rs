//! The vocabulary that Fencepost's server, client and tests share: the messages of the gRPC API ([`v1`]), what a fact
//! in the log says ([`log::v1`]), positions ([`Lsn`]), fencing tokens ([`Token`]), traces ([`TraceParent`]) and the
//! catalogue of refusals ([`Reason`]).
//!
//! It knows no I/O and decides nothing.

mod checkpoint;
mod dead_letter;
mod fact;
mod lsn;
mod reason;
mod token;
mod trace;

pub use fact::{Made, Payload};
pub use lsn::{LogIndex, Lsn};
pub use reason::{Action, Applied, ERROR_DOMAIN, Reason};
pub use token::Token;
pub use trace::TraceParent;

/// The gRPC API, generated from `proto/fencepost/v1/`.
#[allow(missing_docs, clippy::pedantic, clippy::large_enum_variant)]
pub mod v1 {
    tonic::include_proto!("fencepost.v1");
}

/// What the log holds, generated from `proto/fencepost/log/v1/`.
pub mod log {
    /// Version 1 of the facts.
    #[allow(missing_docs, clippy::pedantic, clippy::large_enum_variant)]
    pub mod v1 {
        tonic::include_proto!("fencepost.log.v1");
    }
}

/// All of the above as an encoded `google.protobuf.FileDescriptorSet`, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// Longest name of a namespace, pipeline, branch, holder, request or commit, in bytes.
pub const NAME_BYTES_MAX: usize = 128;
