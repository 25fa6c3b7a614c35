//! Durable fenced commits per second, against ceilings measured in the same run: the same messages through tonic with
//! nothing behind it, and the log with no network before it.
//!
//! `cargo bench --bench commit` measures each with criterion and then prints the ratios, measured in turns (A, B, A, B)
//! because a shared machine is noisy. `cargo bench --bench commit -- --ratios` prints only the ratios, and
//! `-- --ratios --aims` only those that have an aim.

#![allow(clippy::disallowed_methods, clippy::print_stdout, clippy::type_complexity)]

mod support;

use std::sync::Arc;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput};
use fencepost_client::{Checkpoint, Client, Resume, Transport, Worker};
use support::echo::Echo;
use support::load::{Load, closed_loop};
use support::log_alone::LogAlone;
use tokio::runtime::Runtime;

const CALLERS: [usize; 4] = [1, 16, 64, 256];
const STATE_BYTES: [usize; 2] = [256, 4096];

/// One thing that is measured: something that a number of callers do over and over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Subject {
    /// The client crate's ordinary road.
    Stream,
    /// One call for each commit.
    Unary,
    /// A tonic server that answers the same unary messages and does nothing.
    EchoUnary,
    /// A tonic server that answers the same streamed messages and does nothing.
    EchoStream,
    /// The log, driven by threads of the same process.
    Log,
}

const SUBJECTS: [Subject; 5] = [Subject::Stream, Subject::Unary, Subject::EchoUnary, Subject::EchoStream, Subject::Log];

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("threads");
    let has = |wanted: &str| std::env::args().any(|argument| argument == wanted);
    if !has("--ratios") {
        let mut criterion = Criterion::default()
            .sample_size(10)
            .warm_up_time(Duration::from_millis(500))
            .measurement_time(Duration::from_secs(2))
            .configure_from_args();
        for bytes in STATE_BYTES {
            for callers in CALLERS {
                measure(&mut criterion, &runtime, callers, bytes);
            }
        }
        criterion.final_summary();
    }
    // `cargo test --benches` only wants to know that all of it runs, and a profile is of one thing.
    if !has("--profile-time") {
        print_ratios(&runtime, if has("--test") { Duration::from_millis(50) } else { Duration::from_secs(1) });
    }
}

fn measure(criterion: &mut Criterion, runtime: &Runtime, callers: usize, bytes: usize) {
    let mut group = criterion.benchmark_group(format!("commit/{bytes}B"));
    group.throughput(Throughput::Elements(1));
    for subject in SUBJECTS {
        let setup = Setup::new(runtime, subject, callers, bytes);
        group.bench_function(BenchmarkId::new(format!("{subject:?}"), callers), |bencher| {
            bencher.iter_custom(|iterations| setup.run(runtime, Load::Operations(iterations)).elapsed);
        });
    }
}

/// What is measured against what, and what the ratio should at least be.
const RATIOS: [(&str, Subject, Subject, usize, usize, Option<f64>); 10] = [
    ("unary / unary echo", Subject::Unary, Subject::EchoUnary, 64, 256, Some(0.6)),
    ("stream / unary echo", Subject::Stream, Subject::EchoUnary, 64, 256, Some(2.5)),
    ("stream / unary echo", Subject::Stream, Subject::EchoUnary, 256, 256, None),
    ("stream / stream echo", Subject::Stream, Subject::EchoStream, 64, 256, None),
    ("stream / stream echo", Subject::Stream, Subject::EchoStream, 256, 4096, None),
    ("stream / log alone", Subject::Stream, Subject::Log, 64, 256, None),
    ("stream / log alone", Subject::Stream, Subject::Log, 256, 4096, None),
    ("unary / unary echo", Subject::Unary, Subject::EchoUnary, 1, 256, None),
    ("stream / unary echo", Subject::Stream, Subject::EchoUnary, 1, 256, None),
    ("unary / unary echo", Subject::Unary, Subject::EchoUnary, 16, 4096, None),
];

fn print_ratios(runtime: &Runtime, turn: Duration) {
    println!(
        "\n{:<24} {:>7} {:>6} {:>10} {:>10} {:>7} {:>8} {:>8}  aim",
        "ratio", "callers", "bytes", "A ops/s", "B ops/s", "A/B", "A us CPU", "B us CPU"
    );
    let only_aims = std::env::args().any(|argument| argument == "--aims");
    for (name, a, b, callers, bytes, aim) in RATIOS.into_iter().filter(|ratio| !only_aims || ratio.5.is_some()) {
        let (a, b) = (Setup::new(runtime, a, callers, bytes), Setup::new(runtime, b, callers, bytes));
        let (mut rates_a, mut rates_b, mut cpu_a, mut cpu_b) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for _ in 0..5 {
            let (done_a, done_b) = (a.run(runtime, Load::Time(turn)), b.run(runtime, Load::Time(turn)));
            rates_a.push(done_a.rate());
            rates_b.push(done_b.rate());
            cpu_a.push(done_a.cpu_us());
            cpu_b.push(done_b.cpu_us());
        }
        let (rate_a, rate_b, cpu_a, cpu_b) = (median(rates_a), median(rates_b), median(cpu_a), median(cpu_b));
        let aim = aim.map_or_else(String::new, |aim| format!(">= {aim}"));
        let ratio = rate_a / rate_b;
        println!(
            "{name:<24} {callers:>7} {bytes:>6} {rate_a:>10.0} {rate_b:>10.0} {ratio:>7.2} {cpu_a:>8.1} {cpu_b:>8.1}  {aim}"
        );
    }
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

/// A subject with its servers and callers ready.
enum Setup {
    Commits { workers: Vec<Arc<Worker>>, bytes: usize, _server: support::server::TestServer },
    Echo { echo: Echo, subject: Subject, callers: usize, bytes: usize },
    Log { log: LogAlone, callers: usize, bytes: usize },
}

impl Setup {
    fn new(runtime: &Runtime, subject: Subject, callers: usize, bytes: usize) -> Setup {
        runtime.block_on(async {
            match subject {
                Subject::Stream => Setup::commits(Transport::Stream, callers, bytes).await,
                Subject::Unary => Setup::commits(Transport::Unary, callers, bytes).await,
                Subject::EchoUnary | Subject::EchoStream => {
                    Setup::Echo { echo: Echo::start().await, subject, callers, bytes }
                }
                Subject::Log => Setup::Log { log: LogAlone::open(), callers, bytes },
            }
        })
    }

    async fn commits(transport: Transport, callers: usize, bytes: usize) -> Setup {
        let server = support::server::TestServer::start().await;
        let client = Client::builder().transport(transport).connect(server.endpoint()).await.expect("a connection");
        let mut workers = Vec::new();
        for i in 0..callers {
            let branch = client.pipeline("bench/commits").branch(format!("b{i}"));
            let worker = branch.resume(Resume::new("bench").start_fresh()).await.expect("a free branch");
            workers.push(Arc::new(worker));
        }
        Setup::Commits { workers, bytes, _server: server }
    }

    fn run(&self, runtime: &Runtime, load: Load) -> support::load::Done {
        match self {
            Setup::Commits { workers, bytes, .. } => {
                let state = bytes::Bytes::from(vec![7; *bytes]);
                runtime.block_on(closed_loop(load, workers.clone(), move |worker| {
                    let state = state.clone();
                    async move {
                        worker.commit(Checkpoint::at("offset=42").state(state)).await.expect("a commit");
                    }
                }))
            }
            Setup::Echo { echo, subject, callers, bytes } => {
                runtime.block_on(echo.run(load, *callers, *bytes, *subject == Subject::EchoStream))
            }
            Setup::Log { log, callers, bytes } => log.run(load, *callers, *bytes),
        }
    }
}
