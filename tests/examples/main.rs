//! The examples, run as people run them: each ends well, and says what its page in docs/cookbook shows.
//!
//! `cargo test` builds the examples; where only this suite is run, `cargo build --examples` has to come first.

// A test that cannot go on ends where it is.
#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::disallowed_methods)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

mod postgres;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The program of an example, which is beside the tests' own.
fn program(name: &str) -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let program = own.parent().and_then(Path::parent).unwrap().join("examples").join(name);
    let built = |file: &Path| file.metadata().and_then(|metadata| metadata.modified());
    let sources = [root().join(format!("examples/{name}.rs")), root().join("examples/support/mod.rs")];
    for source in sources {
        let is_new = built(&program).is_ok_and(|time| time >= built(&source).unwrap());
        assert!(
            is_new,
            "{} is not there or older than {}: cargo build --examples",
            program.display(),
            source.display()
        );
    }
    program
}

/// Runs an example without arguments.
fn run(name: &str) -> Output {
    Command::new(program(name)).env_remove("FENCEPOST_ENDPOINT").output().unwrap()
}

/// Runs an example and holds what it prints against the page: the block that follows the command.
#[track_caller]
fn does_what_its_page_shows(name: &str, page: &str) {
    let page = std::fs::read_to_string(root().join("docs/cookbook").join(page)).unwrap();
    let command = format!("cargo run --example {name}\n```\n");
    let (_, after) = page.split_once(&command).unwrap_or_else(|| panic!("the page has the command: {command}"));
    let shown = after
        .split_once("```text\n")
        .and_then(|(_, block)| block.split_once("```"))
        .expect("the page has the output")
        .0;

    let output = run(name);
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}\n{said}{}", output.status, String::from_utf8_lossy(&output.stderr));
    assert_eq!(said, shown);
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
