//! What is printed while the demonstration runs: one line for each thing that happened, with the seconds since the start.

use std::io::{self, IsTerminal as _, Write as _};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use fencepost_server::clock::{Clock, Monotonic};
use serde_json::{Map, Value, json};

use crate::cli::error::CliError;
use crate::cli::output::Output;

/// Width of the column that says who.
const WHO: usize = 13;

/// The printed record of one run. It may be written to from several tasks.
pub(super) struct Timeline {
    clock: Clock,
    start: Monotonic,
    style: Style,
    /// The first failure to print. It ends the run at the next wait.
    failure: Mutex<Option<io::Error>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Style {
    Plain,
    Coloured,
    Json,
}

/// What a line is about, which a terminal shows as its colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tone {
    /// All is well and was before.
    Quiet,
    /// Something is done to the pipeline.
    Fault,
    /// The server holds somebody back.
    Refusal,
    /// Work goes on.
    Recovery,
}

impl Timeline {
    pub(super) fn new(output: &Output) -> Timeline {
        let clock = Clock::real();
        let is_coloured = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty());
        let style = match (output.is_json(), is_coloured) {
            (true, _) => Style::Json,
            (false, true) => Style::Coloured,
            (false, false) => Style::Plain,
        };
        Timeline { start: clock.now(), clock, style, failure: Mutex::new(None) }
    }

    /// The time since the start.
    pub(super) fn elapsed(&self) -> Duration {
        self.clock.now().since(self.start)
    }

    /// Prints one line: for people `text`; for programs the name of the event with its facts.
    pub(super) fn say(&self, who: &str, tone: Tone, text: &str, event: &str, facts: Value) {
        let elapsed = self.elapsed();
        let line = match self.style {
            Style::Json => {
                let mut line = Map::new();
                line.insert("event".to_owned(), json!(event));
                line.insert("at_ms".to_owned(), json!(millis(elapsed)));
                line.insert("who".to_owned(), json!(who));
                if let Value::Object(facts) = facts {
                    line.extend(facts);
                }
                Value::Object(line).to_string()
            }
            Style::Plain => format!("{:6.2} s  {who:WHO$}  {text}", elapsed.as_secs_f64()),
            Style::Coloured => {
                let (on, off) = tone.codes();
                format!("{:6.2} s  {who:WHO$}  {on}{text}{off}", elapsed.as_secs_f64())
            }
        };
        self.print(&line);
    }

    /// Prints something for people only.
    pub(super) fn remark(&self, text: &str) {
        if self.style != Style::Json {
            self.print(text);
        }
    }

    /// Prints something for programs only.
    pub(super) fn object(&self, object: &Value) {
        if self.style == Style::Json {
            self.print(&object.to_string());
        }
    }

    /// Fails once something could not be printed.
    pub(super) fn check(&self) -> Result<(), CliError> {
        let failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner).take();
        failure.map_or(Ok(()), |cause| Err(CliError::io("writing to standard output", cause)))
    }

    fn print(&self, line: &str) {
        let mut stdout = io::stdout().lock();
        if let Err(cause) = writeln!(stdout, "{line}").and_then(|()| stdout.flush()) {
            self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(cause);
        }
    }
}

impl Tone {
    /// How a terminal turns the colour on and off.
    fn codes(self) -> (&'static str, &'static str) {
        match self {
            Tone::Quiet => ("", ""),
            Tone::Fault => ("\x1b[31m", "\x1b[0m"),
            Tone::Refusal => ("\x1b[33m", "\x1b[0m"),
            Tone::Recovery => ("\x1b[32m", "\x1b[0m"),
        }
    }
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
