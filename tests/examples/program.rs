//! The programs of the examples, as tests run them.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The program of an example, which is beside the tests' own.
#[track_caller]
fn program(name: &str) -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let program = own.parent().and_then(Path::parent).unwrap().join("examples").join(name);
    let built = |file: &Path| file.metadata().and_then(|metadata| metadata.modified());
    let own = format!("{name}.rs");
    let text = std::fs::read_to_string(root().join("examples").join(&own)).unwrap();
    let used = ["support/flights.rs", "support/postgres.rs"].into_iter().filter(|file| text.contains(file));
    for source in used.chain([&*own, "support/mod.rs"]) {
        let is_new = built(&program).is_ok_and(|time| time >= built(&root().join("examples").join(source)).unwrap());
        assert!(is_new, "{} is not there, or older than {source}: cargo build --examples", program.display());
    }
    program
}

/// How a program ended, and what a terminal would have shown.
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) said: String,
}

/// Runs an example to its end.
#[track_caller]
pub(crate) fn run(name: &str, arguments: &[&str]) -> Ended {
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
