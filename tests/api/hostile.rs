//! What the network can do to a server: noise, silence, bytes that mean nothing, callers that do not read. Nothing of it
//! may panic, hang or keep others waiting.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Buf as _, BufMut as _, Bytes};
use fencepost::Reason;
use fencepost::v1::{CommitStreamRequest, SessionCommit};
use fencepost_client::{Checkpoint, Client, Resume, Worker};
use fencepost_server::clock::Clock;
use fencepost_server::config::Config;
use fencepost_server::connections;
use fencepost_server::server::{Server, ServerError};
use prost::Message as _;
use rand::rngs::StdRng;
use rand::{Rng as _, RngCore as _, SeedableRng as _};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use crate::support::{PATIENCE, commit, refusal};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A server on a real socket, in this process.
struct Loopback {
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    serving: JoinHandle<Result<(), ServerError>>,
    _dir: TempDir,
}

impl Loopback {
    async fn start() -> Loopback {
        Loopback::start_with(|_| ()).await
    }

    async fn start_with(set: impl FnOnce(&mut Config)) -> Loopback {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config { data_dir: dir.path().join("data"), segment_bytes: 24 << 20, ..Config::default() };
        set(&mut config);
        let connections_max = config.connections_max;
        let opening = tokio::task::spawn_blocking(move || Server::open(config, Clock::real()));
        let server = opening.await.unwrap().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let connections = connections::accept(listener, connections_max);
        let serving = tokio::spawn(server.serve(connections, async { drop(stopped.await) }));
        Loopback { address, stop, serving, _dir: dir }
    }

    async fn client(&self) -> Client {
        Client::connect(self.address.to_string()).await.unwrap()
    }

    async fn channel(&self) -> Channel {
        Endpoint::from_shared(format!("http://{}", self.address)).unwrap().connect().await.unwrap()
    }

    /// Stops the server, which must be able to: nothing that happened to it hangs it.
    async fn stop(self) {
        self.stop.send(()).expect("the server is still there");
        tokio::time::timeout(PATIENCE, self.serving).await.expect("it stops in time").unwrap().unwrap();
    }
}

async fn worker(client: &Client, branch: &str) -> Worker {
    client.pipeline("prod/orders").branch(branch).resume(Resume::new("loader-1").start_fresh()).await.unwrap()
}

/// Somebody does ordinary work, and it goes on as ever.
async fn work(worker: &Worker, commits: u64) {
    let before = worker.sequence();
    let working = async {
        for sequence in before + 1..=before + commits {
            assert_eq!(worker.commit(Checkpoint::at(sequence.to_string())).await.unwrap().sequence, sequence);
        }
    };
    tokio::time::timeout(PATIENCE, working).await.expect("work goes on while others misbehave");
}

/// A TLS 1.2 ClientHello, as a client that expects TLS sends first.
fn client_hello() -> Vec<u8> {
    let mut hello = vec![0x16, 3, 1, 0, 49, 1, 0, 0, 45, 3, 3];
    hello.extend([7; 32]);
    hello.extend([0, 0, 4, 0xc0, 0x2f, 0, 0x2f, 1, 0, 0, 0]);
    hello
}

#[tokio::test]
async fn noise_on_the_port_ends_its_own_connection_only() {
    let server = Loopback::start().await;
    let client = server.client().await;
    let worker = worker(&client, "main").await;
    let mut random = StdRng::seed_from_u64(1);
    let mut garbage = vec![0; 4096];
    random.fill_bytes(&mut garbage);
    let after_preface = |frame: &[u8]| [PREFACE, frame].concat();
    let noises: Vec<(&str, Vec<u8>)> = vec![
        ("random bytes", garbage.clone()),
        ("zeros", vec![0; 4096]),
        ("a TLS hello", client_hello()),
        ("an HTTP/1 request", b"GET / HTTP/1.1\r\nHost: fencepost\r\n\r\n".to_vec()),
        ("random bytes after the preface", after_preface(&garbage)),
        ("a frame larger than allowed", after_preface(&[0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1])),
        ("data before settings", after_preface(&[0, 0, 1, 0, 0, 0, 0, 0, 1, 42])),
        ("a stream with an even number", after_preface(&[0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 1, 1, 5, 0, 0, 0, 2, 0x82])),
    ];
    for (what, noise) in noises {
        let mut socket = TcpStream::connect(server.address).await.unwrap();
        // A server that has seen enough may close before everything is written.
        let _ = socket.write_all(&noise).await;
        work(&worker, 3).await;
        let mut answer = Vec::new();
        let closed = tokio::time::timeout(PATIENCE, socket.read_to_end(&mut answer)).await;
        assert!(closed.is_ok(), "{what}: the connection is closed");
    }
    worker.release().await.unwrap();
    server.stop().await;
}

#[tokio::test]
async fn a_handshake_that_stops_half_way_holds_nobody_up() {
    let server = Loopback::start().await;
    let client = server.client().await;
    let worker = worker(&client, "main").await;
    let mut sockets = Vec::new();
    for bytes in 0..PREFACE.len() {
        let mut socket = TcpStream::connect(server.address).await.unwrap();
        socket.write_all(&PREFACE[..bytes]).await.unwrap();
        sockets.push(socket);
    }
    work(&worker, 10).await;
    drop(sockets);
    work(&worker, 3).await;
    worker.release().await.unwrap();
    server.stop().await;
}

/// Else a few of them would take all the connections that a server has, for ever. Time does not pass for real here: a
/// paused clock jumps to the next timer once everybody waits.
#[tokio::test]
async fn a_connection_that_stops_talking_is_closed_wherever_it_stops() {
    let server = Loopback::start().await;
    let half_way = [0, 1, 12, PREFACE.len() - 1, PREFACE.len()].map(|bytes| &PREFACE[..bytes]);
    for beginning in half_way.into_iter().chain([&b"X"[..], b"PRI * HTTP/1"]) {
        let mut socket = TcpStream::connect(server.address).await.unwrap();
        socket.write_all(beginning).await.unwrap();
        tokio::time::pause();
        let mut answer = Vec::new();
        let closed = tokio::time::timeout(Duration::from_mins(2), socket.read_to_end(&mut answer)).await;
        tokio::time::resume();
        assert!(closed.is_ok(), "after {beginning:?} the connection stays for ever");
    }
    server.stop().await;
}

/// Makes room for so many open files, or says why it cannot.
fn raise_files(wanted: u64) -> Result<(), String> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= wanted) {
        return Ok(());
    }
    if limit.maximum.is_some_and(|maximum| maximum < wanted) {
        return Err(format!("the system allows {:?} open files, and {wanted} are needed", limit.maximum));
    }
    let raised = Rlimit { current: Some(wanted), maximum: limit.maximum };
    setrlimit(Resource::Nofile, raised).map_err(|error| error.to_string())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_idle_connections_hold_nobody_up() {
    const IDLE: u64 = 1_000;
    if let Err(why) = raise_files(2 * IDLE + 500) {
        eprintln!("SKIPPED: a_thousand_idle_connections_hold_nobody_up: {why}");
        return;
    }
    let server = Loopback::start().await;
    let client = server.client().await;
    let worker = worker(&client, "main").await;
    let mut idle = Vec::new();
    for _ in 0..IDLE {
        idle.push(TcpStream::connect(server.address).await.unwrap());
    }
    work(&worker, 20).await;
    let newcomer = server.client().await;
    newcomer.status().await.unwrap();
    drop(idle);
    worker.release().await.unwrap();
    server.stop().await;
}

#[tokio::test]
async fn a_connection_too_many_waits_for_another_to_end() {
    let server = Loopback::start_with(|config| config.connections_max = 2).await;
    let client = server.client().await;
    let idle = TcpStream::connect(server.address).await.unwrap();
    // So that the idle one was accepted, and not this one in its place.
    client.status().await.unwrap();
    let address = server.address.to_string();
    let mut late = tokio::spawn(async move { Client::builder().connect_timeout(PATIENCE).connect(address).await });
    assert!(tokio::time::timeout(Duration::from_millis(200), &mut late).await.is_err(), "it waits");
    client.status().await.unwrap();
    drop(idle);
    late.await.unwrap().unwrap().status().await.unwrap();
}

/// Bytes as they are, in either direction.
#[derive(Clone, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Raw;
    type Decoder = Raw;

    fn encoder(&mut self) -> Raw {
        Raw
    }

    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}

/// The paths of all methods, with whether the answer is a stream.
fn methods() -> Vec<(String, bool)> {
    let set = prost_types::FileDescriptorSet::decode(fencepost::DESCRIPTORS).unwrap();
    let services = set.file.iter().flat_map(|file| file.service.iter().map(move |service| (file.package(), service)));
    let methods = services.flat_map(|(package, service)| {
        let path = move |name: &str| format!("/{package}.{}/{name}", service.name());
        service.method.iter().map(move |method| (path(method.name()), method.server_streaming()))
    });
    methods.collect()
}

/// Sends one message of these bytes. `Ok`: there was an answer, or, from a stream, none within the time.
async fn send_raw(channel: &Channel, path: &str, streams: bool, bytes: Bytes) -> Result<(), Status> {
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let path = PathAndQuery::try_from(path).unwrap();
    let request = Request::new(tokio_stream::iter([bytes]));
    let patience = if streams { Duration::from_millis(20) } else { PATIENCE };
    let first = async {
        let mut answers = client.streaming(request, path, Raw).await?.into_inner();
        answers.message().await.map(drop)
    };
    let answer = tokio::time::timeout(patience, first).await;
    if streams { answer.unwrap_or(Ok(())) } else { answer.expect("an answer comes in time") }
}

/// What a handler that panics or a connection that breaks looks like from outside.
#[track_caller]
fn check_alive(path: &str, bytes: &[u8], answer: Result<(), Status>) {
    if let Err(status) = answer {
        let is_broken = matches!(status.code(), Code::Unknown | Code::Cancelled | Code::Unavailable);
        assert!(!is_broken, "{path} with {bytes:02x?}: {status:?}");
    }
}

/// Valid messages of all kinds, to be damaged: each is sent to every method.
fn seeds() -> Vec<Vec<u8>> {
    let tail = fencepost::v1::TailRequest { pipeline: "prod/orders".to_owned(), ..Default::default() };
    let keep = fencepost::v1::KeepAliveRequest {
        leases: vec![crate::support::lease("main", (1 << 48) + 1); 3],
        cluster: Some(fencepost::v1::ClusterRef { cluster_id: "id".to_owned(), generation: 1 }),
    };
    let commit = commit("main", (1 << 48) + 1, 1);
    let stream = CommitStreamRequest {
        commits: vec![SessionCommit { session: 1, number: 1, commit: Some(commit.clone()) }],
        closed_sessions: vec![1, 2, 3],
    };
    vec![
        crate::support::resume("main").encode_to_vec(),
        commit.encode_to_vec(),
        stream.encode_to_vec(),
        keep.encode_to_vec(),
        tail.encode_to_vec(),
        crate::support::head("main").encode_to_vec(),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_mean_nothing_are_answered_by_every_method() {
    const ROUNDS: usize = 150;
    let server = Loopback::start().await;
    let client = server.client().await;
    // Of another pipeline: what is a commit for one method is a fence of the whole pipeline for another.
    let bystander = client.pipeline("prod/bystanders").branch("main");
    let worker = bystander.resume(Resume::new("loader-1").start_fresh()).await.unwrap();
    let channel = server.channel().await;
    let methods = methods();
    assert_eq!(methods.len(), 38, "a new method is tested by itself; say how many there are: {methods:?}");
    let seeds = seeds();
    let mut tasks = Vec::new();
    for (number, (path, streams)) in methods.into_iter().enumerate() {
        let (channel, seeds) = (channel.clone(), seeds.clone());
        tasks.push(tokio::spawn(async move {
            let mut random = StdRng::seed_from_u64(number as u64);
            for round in 0..ROUNDS {
                let mut bytes = if round % 2 == 0 {
                    let mut bytes = vec![0; random.random_range(0..200)];
                    random.fill_bytes(&mut bytes);
                    bytes
                } else {
                    seeds[random.random_range(0..seeds.len())].clone()
                };
                for _ in 0..random.random_range(0..4) {
                    if let Some(place) = bytes.len().checked_sub(1).map(|last| random.random_range(0..=last)) {
                        bytes[place] ^= 1 << random.random_range(0..8);
                    }
                }
                // What it would mean to wait for an hour is tested elsewhere.
                let bytes = Bytes::from(bytes);
                let is_wait =
                    fencepost::v1::ResumeRequest::decode(bytes.clone()).is_ok_and(|resume| resume.wait_ms > 0);
                let answer = send_raw(&channel, &path, streams || is_wait, bytes.clone()).await;
                check_alive(&path, &bytes, answer);
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    work(&worker, 5).await;
    worker.release().await.unwrap();
    drop((client, channel));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_whose_answers_nobody_reads_holds_nobody_up() {
    const COMMITS: u64 = 40_000;
    let server = Loopback::start().await;
    let client = server.client().await;
    let bystander = worker(&client, "bystander").await;
    let token = worker(&client, "flooded").await.token().as_u64();

    let messages = (1..=COMMITS).step_by(100).map(move |first| {
        let commits = (first..first + 100).map(|sequence| SessionCommit {
            session: 1,
            number: sequence,
            commit: Some(commit("flooded", token, sequence)),
        });
        CommitStreamRequest { commits: commits.collect(), closed_sessions: vec![] }
    });
    // On a connection of its own; the answers are kept and never read.
    let mut flood = fencepost::v1::commit_service_client::CommitServiceClient::new(server.channel().await);
    let answers = flood.commit_stream(tokio_stream::iter(messages)).await.unwrap().into_inner();
    let flooded = client.pipeline("prod/orders").branch("flooded");
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !flooded.head().await.is_ok_and(|head| head.sequence() >= 5_000) {
        assert!(tokio::time::Instant::now() < deadline, "the flood is being taken in");
        work(&bystander, 5).await;
    }
    work(&bystander, 20).await;
    drop((answers, flood));
    work(&bystander, 5).await;
    bystander.release().await.unwrap();
    drop(client);
    server.stop().await;
}

#[tokio::test]
async fn more_than_the_server_takes_in_hand_is_refused_and_passes() {
    let server = Loopback::start_with(|config| {
        (config.request_bytes_max, config.in_flight_bytes_max) = (2 << 20, 2 << 20);
    })
    .await;
    let client = server.client().await;
    let (mut tokens, mut heads) = (Vec::new(), vec![0_u64; 32]);
    for i in 0..heads.len() {
        tokens.push(worker(&client, &format!("shard-{i}")).await.token().as_u64());
    }
    let commits = fencepost::v1::commit_service_client::CommitServiceClient::new(server.channel().await);
    let large = |i: usize, sequence: u64| {
        let mut request = commit(&format!("shard-{i}"), tokens[i], sequence);
        request.branches[0].checkpoint.as_mut().unwrap().state = vec![1; 900 << 10].into();
        request
    };
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let mut refused = 0;
    while refused == 0 {
        assert!(tokio::time::Instant::now() < deadline, "nothing was ever refused");
        let volley = heads.iter().enumerate().map(|(i, head)| {
            let (mut commits, request) = (commits.clone(), large(i, head + 1));
            tokio::spawn(async move { commits.commit(request).await })
        });
        for (i, answer) in volley.collect::<Vec<_>>().into_iter().enumerate() {
            match answer.await.unwrap() {
                Ok(_) => heads[i] += 1,
                Err(status) => {
                    refusal(&status, Reason::RateLimited);
                    refused += 1;
                }
            }
        }
    }
    // What was refused was not applied, and alone each fits.
    for (i, head) in heads.iter().enumerate() {
        commits.clone().commit(large(i, head + 1)).await.unwrap();
    }
}

#[tokio::test]
async fn a_header_of_a_megabyte_is_refused_and_nothing_else() {
    let server = Loopback::start().await;
    let client = server.client().await;
    let worker = worker(&client, "main").await;
    let mut cluster = fencepost::v1::cluster_service_client::ClusterServiceClient::new(server.channel().await);
    let mut request = Request::new(fencepost::v1::GetStatusRequest {});
    request.metadata_mut().insert("x-large", "a".repeat(1 << 20).parse().unwrap());
    cluster.get_status(request).await.unwrap_err();
    work(&worker, 3).await;
}
