//! The examples, run as people run them: each ends well, and says what its page in docs/cookbook shows.
//!
//! `cargo test` builds the examples; where only this suite is run, `cargo build --examples` has to come first.

// A test that cannot go on ends where it is.
#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::disallowed_methods)]

use postgres::server::{ABSENT, Postgres};
use program::{Ended, root, run};

mod ingest;
mod migrate;
mod postgres;
mod program;
#[path = "../../examples/support/mod.rs"]
mod support;

/// Runs an example without arguments and holds what it says against the page: the block that follows the command.
#[track_caller]
fn does_what_its_page_shows(name: &str, page: &str) {
    let page = std::fs::read_to_string(root().join("docs/cookbook").join(page)).unwrap();
    let after = page.split_once(&format!("cargo run --example {name}\n```\n")).expect("the page has the command").1;
    let block = after.split_once("```text\n").and_then(|(_, block)| block.split_once("```")).expect("and the output").0;

    let Ended { status, said } = run(name, &[]);
    assert!(status.success(), "{status}\n{said}");
    // Which of two refusals a worker hears that was replaced depends on whether its keepalive or its commit is first; and how
    // a database's end of a transaction is told, on how much of it has come by then.
    let varies = ["refused: ", "error: the sink failed"];
    let comparable = |text: &str| -> Vec<String> {
        let told =
            |line: &str| varies.iter().find(|start| line.starts_with(*start)).map_or(line, |start| start).to_owned();
        text.lines().map(told).collect()
    };
    assert_eq!(comparable(&said), comparable(block), "the page shows what the example says");
}

#[test]
fn a_file_is_ingested_once_although_the_worker_is_killed_three_times() {
    does_what_its_page_shows("file_ingest", "file-ingest.md");
}

#[test]
fn an_agent_acts_once_although_it_is_killed_and_replaced() {
    does_what_its_page_shows("agent_loop", "agent-loop.md");
}

#[test]
fn a_table_is_migrated_once_and_what_differs_is_left_alone() {
    does_what_its_page_shows("migrate_table", "migrate.md");
}

#[test]
fn rows_are_in_the_table_once_although_workers_are_killed_at_each_step_and_replaced_while_frozen() {
    if Postgres::programs().is_none() {
        let ended = run("two_phase_postgres", &[]);
        assert!(ended.status.success(), "{}\n{}", ended.status, ended.said);
        assert_eq!(ended.said.trim_end(), format!("two_phase_postgres: skipped. {ABSENT}"));
        eprintln!("SKIPPED rows_are_in_the_table_once: {ABSENT}");
        return;
    }
    does_what_its_page_shows("two_phase_postgres", "postgres-sink.md");
}

#[test]
fn days_are_merged_once_although_every_worker_is_killed_three_times_and_rows_come_late() {
    does_what_its_page_shows("nightly_merge", "nightly-merge.md");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_example_can_be_run_again_and_again_with_a_server_that_is_there() {
    let store = support::Store::open(None).await.unwrap();
    for name in ["file_ingest", "agent_loop", "migrate_table", "nightly_merge", "two_phase_postgres", "file_ingest"] {
        let ended = run(name, &["--endpoint", store.endpoint()]);
        assert!(ended.status.success(), "{}\n{}", ended.status, ended.said);
    }
    store.close().await.unwrap();
}
