//! The examples, run as people run them: each ends well, and says what its page in docs/cookbook shows.
//!
//! `cargo test` builds the examples; where only this suite is run, `cargo build --examples` has to come first.

// A test that cannot go on ends where it is.
#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::disallowed_methods)]

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

mod ingest;
mod migrate;
mod postgres;
#[path = "../../examples/support/mod.rs"]
mod support;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The program of an example, which is beside the tests' own.
#[track_caller]
fn program(name: &str) -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let program = own.parent().and_then(Path::parent).unwrap().join("examples").join(name);
    let built = |file: &Path| file.metadata().and_then(|metadata| metadata.modified());
    for source in [format!("examples/{name}.rs"), "examples/support/mod.rs".to_owned()] {
        let is_new = built(&program).is_ok_and(|time| time >= built(&root().join(&source)).unwrap());
        assert!(is_new, "{} is not there, or older than {source}: cargo build --examples", program.display());
    }
    program
}

/// How a program ended, and what a terminal would have shown.
struct Ended {
    status: ExitStatus,
    said: String,
}

/// Runs an example to its end.
#[track_caller]
fn run(name: &str, arguments: &[&str]) -> Ended {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let mut command = Command::new(program(name));
    command.args(arguments).env_remove("FENCEPOST_ENDPOINT").stdout(writer.try_clone().unwrap()).stderr(writer);
    let mut child = command.spawn().unwrap();
    // It holds the pipe open, too.
    drop(command);
    let mut said = String::new();
    reader.read_to_string(&mut said).unwrap();
    Ended { status: child.wait().unwrap(), said }
}

/// Runs an example without arguments and holds what it says against the page: the block that follows the command.
#[track_caller]
fn does_what_its_page_shows(name: &str, page: &str) {
    let page = std::fs::read_to_string(root().join("docs/cookbook").join(page)).unwrap();
    let after = page.split_once(&format!("cargo run --example {name}\n```\n")).expect("the page has the command").1;
    let block = after.split_once("```text\n").and_then(|(_, block)| block.split_once("```")).expect("and the output").0;

    let Ended { status, said } = run(name, &[]);
    assert!(status.success(), "{status}\n{said}");
    // Which of two refusals a worker hears that was replaced depends on whether its keepalive or its commit is first.
    let comparable = |text: &str| -> Vec<String> {
        text.lines()
            .map(|line| if line.starts_with("refused: ") { "refused: ..".into() } else { line.into() })
            .collect()
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

#[tokio::test(flavor = "multi_thread")]
async fn an_example_can_be_run_again_and_again_with_a_server_that_is_there() {
    let store = support::Store::open(None).await.unwrap();
    for name in ["file_ingest", "agent_loop", "migrate_table", "file_ingest"] {
        let ended = run(name, &["--endpoint", store.endpoint()]);
        assert!(ended.status.success(), "{}\n{}", ended.status, ended.said);
    }
    store.close().await.unwrap();
}
