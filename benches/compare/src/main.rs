//! The Fencepost log against raft-engine, okaywal and a raw loop: the same payloads, callers as threads, each of which
//! waits until its own append is durable. In turns within one process, so that what the machine does in the meantime
//! meets all of them; only the ratios mean something.
//!
//! `cargo run --release --manifest-path benches/compare/Cargo.toml -- --help`

#![allow(clippy::disallowed_methods, clippy::print_stdout)] // It measures time and the disk itself, and prints.

mod drive;
mod subject;

use std::io::Write;
use std::time::Duration;

use clap::{Parser, ValueEnum};

use drive::Done;
use subject::Kind;

const CALLERS: [usize; 3] = [1, 16, 64];
const PAYLOADS: [usize; 2] = [256, 4096];

/// Compares the append throughput of logs, each append durable before its caller goes on. Works in $TMPDIR.
#[derive(Debug, Parser)]
struct Flags {
    /// Short and few turns: shows that everything runs, and measures little.
    #[arg(long)]
    quick: bool,
    /// How many turns each log gets in each case; 9 if not given, 2 with --quick.
    #[arg(long)]
    turns: Option<usize>,
    /// How long a turn is measured; 2 if not given, 0.2 with --quick. A fifth of it comes before, unmeasured.
    #[arg(long)]
    seconds: Option<f64>,
    /// Wait until others use fewer CPUs than this, and repeat rounds in which they used more. For a shared machine.
    #[arg(long, default_value_t = f64::INFINITY)]
    others_max: f64,
    /// Only these logs. Without `raw` there are no ratios.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Kind>,
    /// Only these numbers of callers.
    #[arg(long, value_delimiter = ',', default_values_t = CALLERS)]
    callers: Vec<usize>,
    /// Only payloads of these lengths, in bytes.
    #[arg(long, value_delimiter = ',', default_values_t = PAYLOADS)]
    bytes: Vec<usize>,
}

fn main() {
    let flags = Flags::parse();
    let (turns, seconds) = if flags.quick { (2, 0.2) } else { (9, 2.0) };
    let turns = flags.turns.unwrap_or(turns).max(1);
    let turn = Duration::from_secs_f64(flags.seconds.unwrap_or(seconds));
    let is_wanted = |kind: &Kind| flags.only.is_empty() || flags.only.contains(kind);
    let kinds: Vec<Kind> = Kind::value_variants().iter().copied().filter(is_wanted).collect();

    println!("Each cell: ratio of appends/s to the raw loop, median (least to most) of {turns} turns of {turn:?};");
    println!("appends/s, median; us of CPU for each append, median.\n");
    let names: Vec<String> = kinds.iter().map(|kind| format!(" {} |", kind.name())).collect();
    println!("| callers, bytes |{}", names.concat());
    println!("|---|{}", "---|".repeat(kinds.len()));
    for bytes in flags.bytes {
        for callers in &flags.callers {
            let round = || quiet_round(&kinds, *callers, bytes, turn, flags.others_max);
            let cells = cells(&std::iter::repeat_with(round).take(turns).collect::<Vec<_>>(), &kinds);
            println!("| {callers}, {bytes} |{}", cells.concat());
        }
    }
}

/// A cell of the table for each log, from what they did in the rounds.
fn cells(rounds: &[Vec<Done>], kinds: &[Kind]) -> Vec<String> {
    let raw = kinds.iter().position(|kind| *kind == Kind::Raw);
    let cell = |at: usize| {
        let ratio = raw.map_or_else(
            || "-".to_owned(),
            |raw| {
                let ratios = sorted(rounds.iter().map(|round| round[at].rate() / round[raw].rate()));
                format!("{:.2} ({:.2} to {:.2})", median(&ratios), ratios[0], ratios[ratios.len() - 1])
            },
        );
        let rate = median(&sorted(rounds.iter().map(|round| round[at].rate())));
        let cpu_us = median(&sorted(rounds.iter().map(|round| round[at].cpu_us())));
        format!(" {ratio}; {rate:.0}; {cpu_us:.1} |")
    };
    (0..kinds.len()).map(cell).collect()
}

/// A round in which others left us the machine.
fn quiet_round(kinds: &[Kind], callers: usize, bytes: usize, turn: Duration, others_max: f64) -> Vec<Done> {
    loop {
        while others_max.is_finite() && drive::idle(Duration::from_secs(1)).others() > others_max {}
        let done = round(kinds, callers, bytes, turn);
        if done.iter().all(|done| done.others() <= others_max) {
            return done;
        }
    }
}

/// One turn for each, on a new log in a new directory. All are removed after the last one: giving back hundreds of
/// megabytes keeps the file system busy, and would be charged to whoever comes next.
fn round(kinds: &[Kind], callers: usize, bytes: usize, turn: Duration) -> Vec<Done> {
    let dir = tempfile::tempdir().expect("a directory can be made");
    let measure = |kind: &Kind| {
        let dir = dir.path().join(kind.name());
        std::fs::create_dir(&dir).expect("a directory can be made");
        drive::closed_loops(&*kind.open(&dir), callers, bytes, turn)
    };
    let done = kinds.iter().map(measure).collect();
    dir.close().expect("the directory can be removed");
    // A sync of anything waits until the removal is in the file system's journal.
    let mut settled = tempfile::tempfile().expect("a file can be made");
    settled.write_all(b"settled").and_then(|()| settled.sync_all()).expect("the disk works");
    done
}

fn sorted(numbers: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut numbers: Vec<f64> = numbers.collect();
    numbers.sort_by(f64::total_cmp);
    numbers
}

/// Of sorted numbers, at least one.
fn median(sorted: &[f64]) -> f64 {
    let middle = sorted.len() / 2;
    if sorted.len().is_multiple_of(2) { f64::midpoint(sorted[middle - 1], sorted[middle]) } else { sorted[middle] }
}
