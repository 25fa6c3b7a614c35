//! The command line as people see it: every command's help, output, errors and exit codes, as console sessions in
//! Markdown.
//!
//! `TRYCMD=overwrite cargo test -p fencepost-server --test cli` writes down what is said now; what differs from run to run
//! (times, ports, ids) is then to be replaced by `[..]` again.

// A test that cannot go on ends where it is.
#![allow(clippy::unwrap_used)]
// The sessions are files, and no store's.
#![allow(clippy::disallowed_methods)]

#[allow(dead_code)] // Shared with the tests of processes, which use all of it.
#[path = "../process/support.rs"]
mod support;

use fencepost_client::{Checkpoint, Commit, DeadLetter, Merge, Resume, Takeover, Worker};
use tokio::runtime::Runtime;
use trycmd::TestCases;

use self::support::Server;

/// The sessions run in surroundings that are the same everywhere.
fn sessions() -> TestCases {
    let sessions = TestCases::new();
    sessions.register_bin("fencepost", std::path::Path::new(env!("CARGO_BIN_EXE_fencepost")));
    sessions.env("COLUMNS", "100").env("USER", "ada").env("NO_COLOR", "1");
    sessions
}

/// A server with a little of everything.
struct Seeded {
    server: Server,
    /// Drives the server's process; lives as long as that.
    _runtime: Runtime,
}

impl Seeded {
    fn start() -> Seeded {
        let runtime = Runtime::new().unwrap();
        let server = runtime.block_on(async {
            let server = Server::start().await;
            seed(&server).await;
            server
        });
        Seeded { server, _runtime: runtime }
    }

    fn sessions(&self) -> TestCases {
        let sessions = sessions();
        sessions.env("FENCEPOST_ENDPOINT", self.server.endpoint());
        sessions.env(
            "FENCEPOST_DATA_DIR",
            self.server.data_dir().to_str().expect("a temporary directory has a plain name"),
        );
        sessions
    }
}

/// Two branches of orders move together and one of them on; clicks were begun, given back and taken again; nothing was
/// committed for events yet.
async fn seed(server: &Server) {
    let client = server.client().await;
    let fresh = |holder: &str| Resume::new(holder).ttl(std::time::Duration::from_hours(1)).start_fresh();
    let orders = client.pipeline("prod/orders");
    let jfk = orders.branch("jfk").resume(fresh("loader-1")).await.unwrap();
    let lhr = orders.branch("lhr").resume(fresh("loader-2")).await.unwrap();
    let first =
        Checkpoint::at("offset=100").state("total=7").rows_in(10).rows_out(9).rows_dead(1).schema(vec![0xab; 4]);
    let both = [(&jfk, first), (&lhr, Checkpoint::at("offset=40"))];
    Commit::of(both).id("load-2026-11-20").send().await.unwrap();
    let second = Checkpoint::at("offset=200").state(vec![b'x'; 300]);
    Commit::of([(&jfk, second)]).id("load-2026-11-21").send().await.unwrap();
    let clicks = client.pipeline("test/clicks").branch("main");
    let worker = clicks.resume(fresh("loader-3")).await.unwrap();
    Commit::of([(&worker, Checkpoint::at(vec![0, 1, 254]))]).id("first").send().await.unwrap();
    worker.release().await.unwrap();
    let again = fresh("loader-4").takeover(Takeover::Force).reason("a drill");
    clicks.resume(again).await.unwrap().release().await.unwrap();
    client.pipeline("test/events").branch("main").resume(fresh("loader-5")).await.unwrap();
}

#[test]
fn every_command_explains_itself() {
    sessions().case("../tests/cli/help.md");
}

#[test]
fn what_is_wrong_is_said_with_the_way_out() {
    sessions().case("../tests/cli/errors.md");
}

#[test]
fn a_store_can_be_looked_at_as_tables_and_as_json() {
    let seeded = Seeded::start();
    seeded.sessions().case("../tests/cli/tables.md").case("../tests/cli/json.md");
}

#[test]
fn what_is_not_there_is_said_with_an_exit_code_of_its_own() {
    let seeded = Seeded::start();
    seeded.sessions().case("../tests/cli/not-found.md");
}

#[test]
fn leases_are_given_back_and_taken_by_hand() {
    let seeded = Seeded::start();
    seeded.sessions().case("../tests/cli/leases.md");
}

#[test]
fn history_is_named_set_back_copied_and_audited() {
    let seeded = Seeded::start();
    seeded.sessions().case("../tests/cli/history.md");
}

/// Does something as a worker of a branch of `prod/orders`, which it takes and leaves like one that crashed.
async fn as_loader(server: &Server, branch: &str, work: impl AsyncFnOnce(&Worker)) {
    let resume = Resume::new("loader-1").ttl(std::time::Duration::from_hours(1)).takeover(Takeover::Force);
    let orders = server.client().await.pipeline("prod/orders");
    let worker = orders.branch(branch).resume(resume.reason("a test").start_fresh()).await.unwrap();
    work(&worker).await;
}

#[test]
fn whoever_a_barrier_waits_for_is_named() {
    let (seeded, runtime) = (Seeded::start(), Runtime::new().unwrap());
    runtime.block_on(async {
        let orders = seeded.server.client().await.pipeline("prod/orders");
        orders.open_barrier("2013-01-04").participants(["jfk", "lhr"]).open().await.unwrap();
    });
    for branch in ["jfk", "lhr"] {
        let arrive = async |worker: &Worker| {
            worker.arrive("2013-01-04", Checkpoint::at("offset=300")).await.unwrap();
        };
        runtime.block_on(as_loader(&seeded.server, branch, arrive));
    }
    let merge = async |worker: &Worker| {
        let merge = Merge::by("latest", "1").inputs([("lhr", 2), ("jfk", 3)]).output_digest([0xab; 4]);
        worker.merge(merge, Checkpoint::at("2013-01-04")).await.unwrap();
    };
    runtime.block_on(as_loader(&seeded.server, "all", merge));
    let late = async |worker: &Worker| {
        let checkpoint = Checkpoint::at("offset=7").late_for("2013-01-04");
        Commit::of([(worker, checkpoint)]).id("late").send().await.unwrap();
    };
    runtime.block_on(as_loader(&seeded.server, "late", late));
    seeded.sessions().case("../tests/cli/barriers.md");
}

#[test]
fn what_is_staged_is_shown_and_given_up_by_hand() {
    let seeded = Seeded::start();
    let stage = async |worker: &Worker| {
        worker.stage("tx-9", Checkpoint::at("offset=300").state("total=12")).await.unwrap();
    };
    Runtime::new().unwrap().block_on(as_loader(&seeded.server, "jfk", stage));
    seeded.sessions().case("../tests/cli/staged.md");
}

#[test]
fn dead_letters_are_listed_read_and_discarded_once() {
    let seeded = Seeded::start();
    let commit = async |worker: &Worker| {
        let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".parse().unwrap();
        let late = DeadLetter::new("jfk,n/a,17", "no delay").position("line=17").traceparent(trace);
        let binary = DeadLetter::new(vec![0, 159, 146, 150], "not UTF-8");
        let checkpoint = Checkpoint::at("offset=300").dead_letter(late).dead_letter(binary);
        Commit::of([(worker, checkpoint)]).id("load-2026-11-22").send().await.unwrap();
    };
    Runtime::new().unwrap().block_on(as_loader(&seeded.server, "jfk", commit));
    seeded.sessions().case("../tests/cli/dead-letters.md");
}

#[test]
fn schemas_are_declared_and_row_counts_enforced() {
    Seeded::start().sessions().case("../tests/cli/schemas.md");
}

#[test]
fn a_pipeline_is_fenced_as_a_whole_and_tells_how_it_has_fared() {
    let seeded = Seeded::start();
    // In the place of a worker that was lost.
    let commit = async |worker: &Worker| {
        Commit::of([(worker, Checkpoint::at("offset=300"))]).id("load-2026-11-22").send().await.unwrap();
    };
    Runtime::new().unwrap().block_on(as_loader(&seeded.server, "jfk", commit));
    seeded.sessions().case("../tests/cli/fence.md");
}

#[test]
fn work_is_found_by_its_trace_and_compared_by_its_scope() {
    Seeded::start().sessions().case("../tests/cli/scope.md");
}

#[test]
fn what_cannot_be_read_is_marked_in_lists() {
    let seeded = Seeded::start();
    let runtime = Runtime::new().unwrap();
    runtime.block_on(async {
        let orders = seeded.server.client().await.pipeline("prod/orders");
        let named = orders.create_savepoint("before-v2").branch("jfk").sequence(1).reason("schema migration");
        named.send().await.unwrap();
    });
    for bytes in ["total=7", "schema migration", "loader-2"] {
        seeded.server.damage(bytes);
    }
    seeded.sessions().case("../tests/cli/damage.md");
}

/// What operators do with a whole store. The sessions share a directory, and each goes on from the one before.
#[test]
fn a_store_is_copied_checked_restored_and_moved() {
    let seeded = Seeded::start();
    seeded.sessions().case("../tests/cli/operations.md");
}

#[test]
fn the_readme_shows_what_happens() {
    const README: &str = "../README.md";
    if std::fs::read_to_string(README).is_ok_and(|text| text.contains("```console")) {
        Seeded::start().sessions().case(README);
    }
}
