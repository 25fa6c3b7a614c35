//! The one binary: `fencepost serve` is the server, everything else is its client.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
