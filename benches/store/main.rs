//! What a large and old store costs: starting, memory, commits beside upkeep, room on the disk. It prints ratios within one
//! run, measured in turns, because a shared machine is noisy.
//!
//! `cargo bench --bench store` runs all of it at quick sizes; `-- --full` at those that are aimed at, and takes half an hour and
//! 30 GB. `-- recovery`, `memory`, `growth`, `compaction` or `years` run one, `--branches N` at another size, and
//! `--dir D` keeps the store of `recovery` and `memory` there and uses it again.

#![allow(clippy::disallowed_methods, clippy::print_stdout)]

mod compaction;
mod drive;
mod growth;
mod process;
mod recovery;
mod store;
mod years;

use std::path::PathBuf;

use tokio::runtime::Runtime;

/// How large everything is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Size {
    /// Shows that it runs.
    Test,
    Quick,
    Full,
}

/// What the command line says.
pub(crate) struct Settings {
    pub(crate) size: Size,
    branches: Option<usize>,
    dir: Option<PathBuf>,
    modes: Vec<String>,
}

impl Settings {
    fn from_args() -> Settings {
        let mut settings = Settings { size: Size::Quick, branches: None, dir: None, modes: Vec::new() };
        let mut args = std::env::args().skip(1);
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--bench" => {}
                "--test" => settings.size = Size::Test,
                "--full" => settings.size = Size::Full,
                "--branches" => settings.branches = args.next().and_then(|value| value.parse().ok()),
                "--dir" => settings.dir = args.next().map(PathBuf::from),
                mode => settings.modes.push(mode.to_owned()),
            }
        }
        settings
    }

    /// The number for the size, unless another was asked for.
    pub(crate) fn branches(&self, test: usize, quick: usize, full: usize) -> usize {
        self.branches.unwrap_or(self.pick(test, quick, full))
    }

    /// What goes with the size.
    pub(crate) fn pick<T>(&self, test: T, quick: T, full: T) -> T {
        match self.size {
            Size::Test => test,
            Size::Quick => quick,
            Size::Full => full,
        }
    }

    fn wants(&self, mode: &str) -> bool {
        self.modes.is_empty() || self.modes.iter().any(|wanted| wanted == mode)
    }
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("threads");
    let settings = Settings::from_args();
    if let [child, dir] = &settings.modes[..]
        && child.starts_with("child-")
    {
        runtime.block_on(process::child(child, &PathBuf::from(dir)));
        // What is in memory is not worth freeing, and what was acknowledged is durable.
        std::process::exit(0);
    }
    run(&runtime, &settings);
}

fn run(runtime: &Runtime, settings: &Settings) {
    if settings.wants("recovery") || settings.wants("memory") {
        runtime.block_on(recovery::run(settings));
    }
    if settings.wants("growth") {
        runtime.block_on(growth::run(settings));
    }
    if settings.wants("compaction") {
        runtime.block_on(compaction::run(settings));
    }
    if settings.wants("years") {
        runtime.block_on(years::run(settings));
    }
}
