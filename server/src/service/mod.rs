//! The gRPC services: each file translates one of them, checks the shape of what comes in, and decides nothing.
//!
//! The only module that names `tonic::Status`.

mod audit;
mod barrier;
mod checkpoint;
mod cluster;
mod commit;
mod dead_letter;
mod export;
mod facts;
mod fence;
mod history;
mod import;
mod lease;
mod maintenance;
mod merge;
mod oversized;
mod pipeline;
mod schema;
mod shape;
mod staged;
mod status;
mod store_status;
mod tail;
mod trace;
mod transfer;
mod waiter;

use std::sync::Arc;

use fencepost::v1::LeaseRef;
use fencepost::v1::barrier_service_server::BarrierServiceServer;
use fencepost::v1::checkpoint_service_server::CheckpointServiceServer;
use fencepost::v1::cluster_service_server::ClusterServiceServer;
use fencepost::v1::commit_service_server::CommitServiceServer;
use fencepost::v1::dead_letter_service_server::DeadLetterServiceServer;
use fencepost::v1::lease_service_server::LeaseServiceServer;
use fencepost::v1::log_service_server::LogServiceServer;
use fencepost::v1::maintenance_service_server::MaintenanceServiceServer;
use fencepost::v1::pipeline_service_server::PipelineServiceServer;
use tokio::sync::watch;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::clock::{Clock, Monotonic};
use crate::config::Config;
use crate::disk::Disk;
use crate::index::ColdIndex;
use crate::log::Log;
use crate::sequencer::Sequencer;
use crate::upkeep::Upkeep;

use self::transfer::Turns;
pub use oversized::name_oversized;

/// What the services need of a running server.
#[derive(Clone)]
pub struct Backend {
    /// Decides.
    pub sequencer: Sequencer,
    /// Has the files.
    pub disk: Arc<dyn Disk>,
    /// Holds what checkpoints say.
    pub log: Arc<Log>,
    /// Knows where old checkpoints are.
    pub cold: ColdIndex,
    /// Keeps the store small and checked.
    pub upkeep: Arc<Upkeep>,
    /// Settings.
    pub config: Arc<Config>,
    /// The only clock.
    pub clock: Clock,
    /// When the server was ready.
    pub started: Monotonic,
    /// Turns true when the server is about to stop: streams end once what is in hand is answered.
    pub stopping: watch::Receiver<bool>,
}

/// The right that a request claims to have.
fn lease_of(pipeline: &str, branch: &str, token: u64) -> LeaseRef {
    LeaseRef { pipeline: pipeline.to_owned(), branch: branch.to_owned(), token }
}

/// All services on one router, with standard health and reflection. The reporter tells health checks how the server is.
pub async fn routes(backend: Backend) -> (Routes, HealthReporter) {
    let bytes_max = backend.config.request_bytes_max;
    let (health, health_service) = tonic_health::server::health_reporter();
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(fencepost::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .expect("the descriptors were made by our own build");
    for service in SERVICES {
        health.set_service_status(service, ServingStatus::Serving).await;
    }
    let routes = Routes::new(health_service)
        .add_service(reflection)
        .add_service(LeaseServiceServer::new(lease::Service(backend.clone())).max_decoding_message_size(bytes_max))
        .add_service(CommitServiceServer::new(commit::Service(backend.clone())).max_decoding_message_size(bytes_max))
        .add_service(BarrierServiceServer::new(barrier::Service(backend.clone())).max_decoding_message_size(bytes_max))
        .add_service(CheckpointServiceServer::new(checkpoint::Service(backend.clone())))
        .add_service(PipelineServiceServer::new(pipeline::Service(backend.clone())))
        .add_service(DeadLetterServiceServer::new(dead_letter::Service(backend.clone())))
        .add_service(LogServiceServer::new(tail::Service(backend.clone())))
        .add_service(
            MaintenanceServiceServer::new(maintenance::Service(backend.clone(), Turns::new()))
                .max_decoding_message_size(bytes_max),
        )
        .add_service(ClusterServiceServer::new(cluster::Service(backend)));
    (routes, health)
}

/// Their full names, for health checks; the empty one is the server as a whole.
pub const SERVICES: [&str; 10] = [
    "",
    "fencepost.v1.LeaseService",
    "fencepost.v1.CommitService",
    "fencepost.v1.BarrierService",
    "fencepost.v1.CheckpointService",
    "fencepost.v1.PipelineService",
    "fencepost.v1.DeadLetterService",
    "fencepost.v1.LogService",
    "fencepost.v1.MaintenanceService",
    "fencepost.v1.ClusterService",
];
