//! A server that stands still for longer than a lease lasts.

use std::time::Duration;

use fencepost::v1::lease_service_client::LeaseServiceClient;
use fencepost::v1::{KeepAliveRequest, LeaseRef, OnMissing, ResumeRequest};
use rustix::process::Signal;
use tokio::time::Instant;
use tonic::transport::Channel;

use crate::support::{PATIENCE, Server};

const TTL: Duration = Duration::from_secs(2);

async fn leases(server: &Server) -> LeaseServiceClient<Channel> {
    LeaseServiceClient::new(server.channel().await)
}

fn resume(holder: &str, wait: Duration) -> ResumeRequest {
    ResumeRequest {
        pipeline: "prod/orders".to_owned(),
        branch: "main".to_owned(),
        holder: holder.to_owned(),
        request_id: holder.to_owned(),
        ttl_ms: TTL.as_millis() as u64,
        wait_ms: wait.as_millis() as u64,
        on_missing: OnMissing::StartFresh.into(),
        ..ResumeRequest::default()
    }
}

#[tokio::test]
async fn a_stall_of_the_server_costs_no_living_worker_its_lease() {
    let server = Server::start().await;
    let (mut holder, mut waiter) = (leases(&server).await, leases(&server).await);
    let token = holder.resume(resume("holder", Duration::ZERO)).await.unwrap().into_inner().token;
    let mut waiting = tokio::spawn(async move { waiter.resume(resume("waiter", PATIENCE)).await });
    let lease = LeaseRef { pipeline: "prod/orders".to_owned(), branch: "main".to_owned(), token };
    let mut keep_alive = async || {
        let request = KeepAliveRequest { leases: vec![lease.clone()], cluster: None };
        let mut result = holder.keep_alive(request).await.unwrap().into_inner().results.remove(0);
        result.refusal.take()
    };
    assert_eq!(keep_alive().await, None);

    server.signal(Signal::STOP);
    // The stall itself: nothing can be waited for while the server stands still.
    tokio::time::sleep(TTL * 2).await;
    server.signal(Signal::CONT);
    let lively = Instant::now() + TTL * 3 / 2;
    while Instant::now() < lively {
        assert_eq!(keep_alive().await, None, "a worker that is heard of after the stall keeps its lease");
        let early = tokio::time::timeout(TTL / 10, &mut waiting).await;
        assert!(early.is_err(), "the waiter got the branch of a living worker: {early:?}");
    }
    let grant = tokio::time::timeout(PATIENCE, waiting).await.expect("a silent worker is replaced").unwrap().unwrap();
    let predecessor = grant.into_inner().predecessor.unwrap();
    assert_eq!((predecessor.holder.as_str(), predecessor.token), ("holder", token));
}
