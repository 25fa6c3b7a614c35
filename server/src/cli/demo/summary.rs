//! What is said at the end: a table for people, one object for programs, and an error if anything differs.

use serde_json::{Value, json};

use super::check::{BranchVerdict, Verdict};
use super::flights::Expected;
use super::plan::Plan;
use super::script::{Faults, Outage, PIPELINE};
use super::stage::Stage;
use super::timeline::millis;
use crate::cli::error::CliError;
use crate::cli::exit;
use crate::cli::output::{Cell, Output};

/// How many differences an error shows.
const SHOWN: usize = 5;

/// A run that is over, and everything there is to say about it.
pub(super) struct Summary<'r> {
    pub(super) stage: &'r Stage,
    pub(super) plan: &'r Plan,
    pub(super) expected: &'r Expected,
    pub(super) faults: &'r Faults,
    pub(super) verdict: &'r Verdict,
}

impl Summary<'_> {
    /// Prints it. An error if anything differs.
    pub(super) fn print(&self, output: &Output) -> Result<(), CliError> {
        if output.is_json() {
            self.stage.timeline.object(&self.json());
        } else {
            self.stage.timeline.remark("");
            let columns = ["branch", "commits", "tokens", "faults", "work_resumed_after", "rows", "orphans_left_out"];
            output.rows(
                &columns,
                self.verdict.branches.iter().map(|branch| self.row(branch)).collect(),
                "no branch",
            )?;
        }
        self.stage.timeline.check()?;
        if !self.verdict.problems.is_empty() {
            return Err(self.failure());
        }
        self.stage.timeline.remark(&self.conclusion());
        Ok(())
    }

    fn row(&self, branch: &BranchVerdict) -> Vec<Cell> {
        let outages = self.outages(branch.origin);
        let (faults, after): (Vec<_>, Vec<_>) =
            outages.iter().map(|(fault, outage)| (*fault, format!("{} ms", millis(outage.resumed_after)))).unzip();
        let tokens: Vec<String> = branch.tokens.iter().map(ToString::to_string).collect();
        vec![
            Cell::text(branch.origin),
            Cell::count(branch.commits),
            Cell::text(tokens.join(", ")),
            Cell::text(faults.join(", ")),
            Cell::text(after.join(", ")),
            Cell::count(branch.rows),
            Cell::count(branch.orphans),
        ]
    }

    /// What hit a branch, in the order in which it did.
    fn outages(&self, origin: &str) -> Vec<(&'static str, Outage)> {
        let server = self.faults.server.iter().map(|outage| ("server killed", *outage));
        let workers = [("worker killed", self.faults.kill), ("worker frozen", self.faults.freeze)];
        workers.into_iter().chain(server).filter(|(_, outage)| outage.origin == origin).collect()
    }

    fn json(&self) -> Value {
        let branches = self.verdict.branches.iter().map(|branch| {
            let outages = self.outages(branch.origin);
            let outages = outages
                .iter()
                .map(|(fault, outage)| json!({ "fault": fault, "resumed_after_ms": millis(outage.resumed_after) }));
            json!({
                "branch": branch.origin,
                "commits": branch.commits,
                "tokens": branch.tokens.iter().map(ToString::to_string).collect::<Vec<_>>(),
                "faults": outages.collect::<Vec<_>>(),
                "rows": branch.rows,
                "orphan_rows": branch.orphans,
            })
        });
        let count = self.faults.count;
        json!({
            "event": "summary",
            "seed": self.plan.seed,
            "elapsed_ms": millis(self.stage.timeline.elapsed()),
            "kills": count.kills,
            "fenced": count.fenced,
            "refused_by": self.faults.refused_by,
            "server_restarts": count.server_restarts,
            "server_back_after_ms": self.faults.server_ms,
            "flights": self.expected.flights(),
            "sums_compared": self.expected.sums(),
            "equal": self.verdict.problems.is_empty(),
            "problems": self.verdict.problems,
            "branches": branches.collect::<Vec<_>>(),
            "directory": self.stage.dir.is_kept().then(|| self.stage.dir.path().display().to_string()),
        })
    }

    fn conclusion(&self) -> String {
        let (sums, flights) = (self.expected.sums(), self.expected.flights());
        let orphans: u64 = self.verdict.branches.iter().map(|branch| branch.orphans).sum();
        let seconds = self.stage.timeline.elapsed().as_secs_f64();
        let seed = self.plan.seed;
        let look = if self.stage.dir.is_kept() {
            let dir = self.stage.dir.path().display();
            format!(
                "Look at it:           fencepost serve --data-dir {dir}/data   and   fencepost log --pipeline {PIPELINE}"
            )
        } else {
            "Keep the log:         fencepost demo --keep DIR".to_owned()
        };
        let examples = self.verdict.branches.iter().filter_map(|branch| branch.example.as_deref());
        let examples = examples.map(|example| format!("  {example}")).collect::<Vec<_>>().join("\n");
        format!(
            "\nEqual: all {sums} sums over {flights} flights are what one uninterrupted pass over the file gives, both in \
             the saved\nstates and in the results. No sequence is missing, and no old token moved anything.\n\n\
             Rows in the results whose batch somebody else committed: {orphans}. A reader knows them by their token and \
             sequence, which no\ncommit in the log has, and leaves them out. One of each batch, as token,sequence,row:\n\
             {examples}\n\n\
             It took {seconds:.1} s with seed {seed}.\n\n\
             {look}\n\
             Try it:               fencepost serve\n\
             In another terminal:  fencepost run --pipeline prod/hello --start-fresh -- sh -c 'echo \"was at \
             $FENCEPOST_POSITION\"; date +%s'"
        )
    }

    fn failure(&self) -> CliError {
        let problems = &self.verdict.problems;
        let count = problems.len();
        let mut lines = vec![format!("DIFFERENT from an uninterrupted run, in {count} places:")];
        lines.extend(problems.iter().take(SHOWN).cloned());
        if count > SHOWN {
            lines.push(format!("and {} more", count - SHOWN));
        }
        let message = lines.join("\n  ");
        CliError::new(exit::INTEGRITY, message)
    }
}
