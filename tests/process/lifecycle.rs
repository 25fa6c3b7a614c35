//! How a server starts, refuses to start, and stops.

use std::time::Duration;

use fencepost_client::{Checkpoint, Reason, Resume, Tail, Worker};
use rustix::process::Signal;
use tokio::time::Instant;

use crate::support::{PATIENCE, SMALL, Server, fencepost, output};

const UNAVAILABLE: i32 = 69;

/// Long before the time after which a server stops without having answered everybody.
const SOON: Duration = Duration::from_secs(8);

async fn worker(server: &Server, branch: &str) -> Worker {
    let branch = server.client().await.pipeline("prod/orders").branch(branch);
    branch.resume(Resume::new("loader-1").start_fresh()).await.unwrap()
}

#[tokio::test]
async fn a_port_that_is_taken_is_named_with_the_way_out() {
    let server = Server::start().await;
    let address = format!("127.0.0.1:{}", server.port());
    let dir = server.scratch().join("other");
    let ended = output(fencepost().args(["serve", "--listen", &address, "--data-dir"]).arg(&dir)).await;
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(UNAVAILABLE), ""));
    for word in [address.as_str(), "another server is there", "--listen"] {
        assert!(ended.stderr.contains(word), "{}", ended.stderr);
    }
    assert!(!dir.exists(), "nothing was made before the port was had");
}

#[tokio::test]
async fn a_data_directory_has_one_server_at_a_time() {
    let mut server = Server::start().await;
    let dir = server.data_dir();
    let second = || {
        let mut command = fencepost();
        command.arg("serve").args(SMALL).args(["--listen", "127.0.0.1:0", "--data-dir"]).arg(&dir);
        command
    };
    let ended = output(&mut second()).await;
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(UNAVAILABLE), ""));
    assert!(ended.stderr.contains("is in use by another process"), "{}", ended.stderr);
    assert!(ended.stderr.contains(dir.to_str().unwrap()), "{}", ended.stderr);
    worker(&server, "main").await.commit(Checkpoint::at("1")).await.unwrap();
    // A server that was killed leaves no lock behind.
    server.kill().await;
    server.restart().await;
}

#[tokio::test]
async fn a_data_directory_that_cannot_be_is_named() {
    let server = Server::start().await;
    let file = server.scratch().join("file");
    std::fs::write(&file, "no directory").unwrap();
    let ended = output(fencepost().args(["serve", "--listen", "127.0.0.1:0", "--data-dir"]).arg(&file)).await;
    assert_eq!(ended.code, Some(UNAVAILABLE), "{}", ended.stderr);
    assert!(ended.stderr.contains(file.to_str().unwrap()), "{}", ended.stderr);
}

#[tokio::test]
async fn a_server_that_is_told_to_stop_answers_what_it_has_in_hand_and_exits_0() {
    for stop in [Signal::TERM, Signal::INT] {
        let mut server = Server::start().await;
        let mut workers = tokio::task::JoinSet::new();
        let (acknowledged, mut acknowledgements) = tokio::sync::mpsc::unbounded_channel();
        for i in 0..4 {
            let branch = format!("shard-{i}");
            let worker = worker(&server, &branch).await;
            let acknowledged = acknowledged.clone();
            workers.spawn(async move {
                while let Ok(committed) = worker.commit(Checkpoint::at("x")).await {
                    let _ = acknowledged.send((branch.clone(), committed.sequence));
                }
            });
        }
        let mut heads = std::collections::BTreeMap::new();
        for _ in 0..200 {
            let (branch, sequence) = acknowledgements.recv().await.unwrap();
            heads.insert(branch, sequence);
        }
        server.signal(stop);
        let status = server.ended().await;
        assert_eq!(status.code(), Some(0), "{stop:?}: {status}");
        workers.shutdown().await;
        while let Ok((branch, sequence)) = acknowledgements.try_recv() {
            heads.insert(branch, sequence);
        }
        server.restart().await;
        let pipeline = server.client().await.pipeline("prod/orders");
        for (branch, acknowledged) in heads {
            let head = pipeline.branch(&branch).head().await.unwrap().sequence();
            // One more may have landed whose answer its worker did not live to see.
            assert!((acknowledged..=acknowledged + 1).contains(&head), "{branch}: {acknowledged} and then {head}");
        }
    }
}

#[tokio::test]
async fn followers_and_idle_connections_do_not_hold_a_stop_up() {
    let mut server = Server::start().await;
    let holder = worker(&server, "main").await;
    let idle = tokio::net::TcpStream::connect(("127.0.0.1", server.port())).await.unwrap();
    let client = server.client().await;
    let mut follower = client.tail(Tail::default().follow());
    follower.next().await.unwrap().unwrap();
    let begun = Instant::now();
    server.signal(Signal::TERM);
    assert_eq!(server.ended().await.code(), Some(0));
    assert!(begun.elapsed() < SOON, "it took {:?}", begun.elapsed());
    drop((holder, idle));
}

#[tokio::test]
async fn who_waits_for_a_branch_hears_that_the_server_stops() {
    use fencepost::v1::lease_service_client::LeaseServiceClient;
    use tonic_types::StatusExt as _;

    let mut server = Server::start().await;
    let _holder = worker(&server, "main").await;
    let mut leases = LeaseServiceClient::new(server.channel().await);
    let request = fencepost::v1::ResumeRequest {
        pipeline: "prod/orders".to_owned(),
        branch: "main".to_owned(),
        holder: "loader-2".to_owned(),
        request_id: "1".to_owned(),
        wait_ms: PATIENCE.as_millis() as u64,
        on_missing: fencepost::v1::OnMissing::StartFresh.into(),
        ..Default::default()
    };
    let mut impatient = leases.clone();
    let waiting = tokio::spawn(async move { leases.resume(request).await });
    // One answer on the same connection later the server has seen the request before it.
    for _ in 0..5 {
        let nothing = fencepost::v1::KeepAliveRequest::default();
        impatient.keep_alive(nothing).await.unwrap_err();
    }
    server.signal(Signal::TERM);
    let status = tokio::time::timeout(SOON, waiting).await.expect("it is answered at once").unwrap().unwrap_err();
    let info = status.get_details_error_info().unwrap_or_else(|| panic!("{status:?}"));
    assert_eq!(info.reason, Reason::ShuttingDown.as_str());
    assert_eq!(server.ended().await.code(), Some(0));
}

#[tokio::test]
async fn a_server_tells_programs_where_it_listens() {
    use tokio::io::{AsyncBufReadExt as _, BufReader};

    let dir = tempfile::tempdir().unwrap();
    let mut command = fencepost();
    command.args(["--output", "json", "serve", "--listen", "127.0.0.1:0", "--log-format", "json", "--data-dir"]);
    command.arg(dir.path().join("data")).args(SMALL);
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::null());
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let line = tokio::time::timeout(PATIENCE, lines.next_line()).await.unwrap().unwrap().unwrap();
    let ready: serde_json::Value = serde_json::from_str(&line).unwrap();
    let client = fencepost_client::Client::connect(ready["endpoint"].as_str().unwrap()).await.unwrap();
    let cluster_id = client.status().await.unwrap().header.unwrap().cluster_id;
    assert_eq!(ready["cluster_id"], cluster_id);
}
