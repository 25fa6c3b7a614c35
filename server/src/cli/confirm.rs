//! Asking before something that cannot be taken back.

use std::io::{self, BufRead, IsTerminal as _, Write};

use clap::Args;

use super::error::CliError;
use super::exit;
use super::output::note;

#[derive(Args)]
pub(super) struct Confirm {
    /// Do it without asking.
    #[arg(long, short)]
    yes: bool,
}

impl Confirm {
    /// Shows what would happen and asks whether it shall. `verb` is what the command does, such as "rewind".
    pub(super) fn ask(&self, verb: &str, plan: &str) -> Result<(), CliError> {
        note(plan);
        if self.yes {
            return Ok(());
        }
        let is_terminal = io::stdin().is_terminal() && io::stderr().is_terminal();
        confirm(verb, is_terminal, &mut io::stdin().lock(), &mut io::stderr())
    }
}

/// Asks on the terminal; anything but yes is no.
fn confirm(verb: &str, is_terminal: bool, answers: &mut dyn BufRead, terminal: &mut dyn Write) -> Result<(), CliError> {
    if !is_terminal {
        let message =
            format!("there is no terminal to ask on and nothing was changed: add --yes to {verb} without being asked");
        return Err(CliError::new(exit::USAGE, message));
    }
    let asked = write!(terminal, "Really {verb}? [y/N] ").and_then(|()| terminal.flush());
    asked.map_err(|cause| CliError::io("asking on the terminal", cause))?;
    let mut answer = String::new();
    answers.read_line(&mut answer).map_err(|cause| CliError::io("reading the answer", cause))?;
    match answer.trim().to_lowercase().as_str() {
        "y" | "yes" => Ok(()),
        _ => Err(CliError::new(exit::REFUSED, "not confirmed; nothing was changed")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_yes_is_yes() {
        for (answer, is_yes) in
            [("y\n", true), ("Yes\n", true), ("n\n", false), ("\n", false), ("", false), ("yo\n", false)]
        {
            let mut terminal = Vec::new();
            assert_eq!(confirm("fence", true, &mut answer.as_bytes(), &mut terminal).is_ok(), is_yes, "{answer:?}");
            assert_eq!(terminal, b"Really fence? [y/N] ");
        }
    }

    #[test]
    fn without_a_terminal_nobody_is_asked() {
        let (mut answers, mut terminal) = ("y\n".as_bytes(), Vec::new());
        assert!(confirm("rewind", false, &mut answers, &mut terminal).is_err());
        assert_eq!((answers, terminal.as_slice()), ("y\n".as_bytes(), "".as_bytes()));
    }
}
