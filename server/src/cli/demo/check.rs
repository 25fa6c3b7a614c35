//! The verdict: is everything as if nothing had happened?
//!
//! It is looked at from three sides. What the branches' heads hold and what the results hold once rows without a commit are
//! left out must both be, row for row, what one uninterrupted pass over the file finds. And the facts of the log must keep
//! the promises that made it so.

use std::collections::{BTreeMap, HashMap, HashSet};

use fencepost_client::{Client, FactKind, Lsn, Tail, Token};

use super::files::{WorkDir, read_results};
use super::flights::{Expected, ORIGINS, Sum, Totals};
use super::script::PIPELINE;
use super::stage::Record;
use crate::cli::error::CliError;
use crate::cli::exit;

/// What was found, with everything that is not as it should be.
#[derive(Debug, Default)]
pub(super) struct Verdict {
    /// Rows that differ and promises that were broken, in words. Empty if all is well.
    pub(super) problems: Vec<String>,
    /// In the order of [`ORIGINS`].
    pub(super) branches: Vec<BranchVerdict>,
}

/// What was found of one branch.
#[derive(Debug)]
pub(super) struct BranchVerdict {
    pub(super) origin: &'static str,
    pub(super) commits: u64,
    /// All tokens that the branch was granted under, oldest first.
    pub(super) tokens: Vec<Token>,
    /// Rows of results that a commit stands behind.
    pub(super) rows: u64,
    /// Rows of results that a reader leaves out.
    pub(super) orphans: u64,
    /// One of them, and why.
    pub(super) example: Option<String>,
}

/// The commits and grants of one branch, as the log has them.
#[derive(Debug, Default)]
struct History {
    tokens: Vec<Token>,
    /// By sequence.
    commits: BTreeMap<u64, (Token, Lsn)>,
}

/// Judges a run that is over. The server at `endpoint` still runs.
pub(super) async fn judge(
    endpoint: &str,
    dir: &WorkDir,
    expected: &Expected,
    acknowledged: &[Acknowledged],
) -> Result<Verdict, CliError> {
    let client = Client::connect(endpoint).await?;
    let mut verdict = Verdict::default();
    let mut histories = verdict.read_log(&client).await?;
    verdict.compare_acknowledged(acknowledged, &histories);
    for (origin, expected) in ORIGINS.into_iter().zip(&expected.totals) {
        let head = client.pipeline(PIPELINE).branch(origin).head().await?;
        let saved: Totals = serde_json::from_slice(head.state()).map_err(|cause| {
            CliError::new(exit::INTEGRITY, format!("the saved sums of {origin} cannot be read: {cause}"))
        })?;
        verdict.compare(origin, "the state of the head", expected, &saved);
        let history = histories.remove(origin).unwrap_or_default();
        verdict.compare_results(origin, dir, expected, history)?;
    }
    Ok(verdict)
}

/// A commit that a worker was told was made.
pub(super) struct Acknowledged {
    origin: &'static str,
    token: Token,
    sequence: u64,
    lsn: Lsn,
}

/// All of them, from what the workers told.
pub(super) fn acknowledged(record: &Record) -> Vec<Acknowledged> {
    let mut all = Vec::new();
    for part in &record.parts {
        let (Some(origin), Some((_, token, _))) = (part.origin, part.resumed()) else { continue };
        let token = Token::from_u64(token);
        all.extend(part.commits().map(|(_, sequence, lsn)| Acknowledged {
            origin,
            token,
            sequence,
            lsn: Lsn::from_u64(lsn),
        }));
    }
    all
}

impl Verdict {
    /// Reads all facts of the pipeline in the order of the log and checks what must hold of any two of them: sequences
    /// without a gap, tokens that only grow, and no commit under a token after a newer one was granted.
    async fn read_log(&mut self, client: &Client) -> Result<HashMap<String, History>, CliError> {
        let mut histories: HashMap<String, History> = HashMap::new();
        let mut newest = None;
        let mut facts = client.tail(Tail::from(Lsn::ZERO).pipeline(PIPELINE).without_state());
        while let Some(fact) = facts.next().await {
            let (lsn, fact) = fact?;
            match fact.kind {
                Some(FactKind::LeaseGranted(granted)) => {
                    let token = Token::from_u64(granted.token);
                    if newest.is_some_and(|newest| token <= newest) {
                        self.problems.push(format!("LSN {lsn}: token {token} was granted after a higher one"));
                    }
                    newest = Some(token);
                    histories.entry(granted.branch).or_default().tokens.push(token);
                }
                Some(FactKind::Committed(committed)) => {
                    for moved in committed.branches {
                        let history = histories.entry(moved.branch.clone()).or_default();
                        let problem = history.add(moved.sequence, Token::from_u64(moved.token), lsn);
                        self.problems.extend(problem.map(|problem| format!("LSN {lsn}: {} {problem}", moved.branch)));
                    }
                }
                _ => {}
            }
        }
        Ok(histories)
    }

    /// What was acknowledged must be in the log, at the place that was told, whatever died since.
    fn compare_acknowledged(&mut self, acknowledged: &[Acknowledged], histories: &HashMap<String, History>) {
        for Acknowledged { origin, token, sequence, lsn } in acknowledged {
            let logged = histories.get(*origin).and_then(|history| history.commits.get(sequence));
            if logged != Some(&(*token, *lsn)) {
                self.problems.push(format!(
                    "commit {sequence} of {origin} was acknowledged under {token} at LSN {lsn}, but is not in the log there"
                ));
            }
        }
    }

    fn compare(&mut self, origin: &str, found_in: &str, expected: &Totals, found: &Totals) {
        let text = |sum: Option<Sum>| sum.map_or_else(|| "no such row".to_owned(), |sum| sum.to_string());
        let differences = expected.differences(found).map(|(key, expected, found)| {
            format!("{origin} {key}: expected {}; {found_in} has {}", text(expected), text(found))
        });
        self.problems.extend(differences);
    }

    /// Reads the results of a branch as anybody would: a row counts if the log has a commit with its sequence and token.
    fn compare_results(
        &mut self,
        origin: &'static str,
        dir: &WorkDir,
        expected: &Totals,
        history: History,
    ) -> Result<(), CliError> {
        let (mut kept, mut lines, mut orphans, mut example) = (Totals::default(), HashSet::new(), 0, None);
        for (text, row) in read_results(&dir.results(origin))? {
            match row.filter(|row| history.committed_by(row.sequence) == Some(row.token)) {
                Some(row) if lines.insert(row.line) => kept.add(&row.day, &row.carrier, row.arrival_delay),
                Some(row) => self.problems.push(format!("{origin}: the results have line {} twice", row.line)),
                None => {
                    orphans += 1;
                    example.get_or_insert_with(|| history.explain(&text));
                }
            }
        }
        self.compare(origin, "the results together", expected, &kept);
        self.branches.push(BranchVerdict {
            origin,
            commits: history.commits.len() as u64,
            tokens: history.tokens,
            rows: kept.flights(),
            orphans,
            example,
        });
        Ok(())
    }
}

impl History {
    /// Adds a commit; returns what is wrong with it, if anything is.
    fn add(&mut self, sequence: u64, token: Token, lsn: Lsn) -> Option<String> {
        let expected = self.commits.len() as u64 + 1;
        let current = self.tokens.last().copied();
        self.commits.insert(sequence, (token, lsn));
        if sequence != expected {
            return Some(format!("committed sequence {sequence}, expected {expected}"));
        }
        (current != Some(token)).then(|| format!("committed under {token}, which was not its current token"))
    }

    fn committed_by(&self, sequence: u64) -> Option<Token> {
        self.commits.get(&sequence).map(|(token, _)| *token)
    }

    /// Why a reader leaves a line of the results out.
    fn explain(&self, line: &str) -> String {
        let sequence = line.split(',').nth(1).and_then(|sequence| sequence.parse().ok());
        let why = match sequence.map(|sequence| (sequence, self.committed_by(sequence))) {
            Some((sequence, Some(token))) => format!("sequence {sequence} was committed under {token}"),
            Some((sequence, None)) => format!("sequence {sequence} was never committed"),
            None => "it was never finished".to_owned(),
        };
        format!("{line}  ({why})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(epoch: u64) -> Token {
        Token::new(1, epoch).unwrap()
    }

    #[test]
    fn a_gap_and_an_old_token_are_found() {
        let mut history = History { tokens: vec![token(1)], ..History::default() };
        assert_eq!(history.add(1, token(1), Lsn::ZERO), None);
        assert!(history.add(3, token(1), Lsn::ZERO).unwrap().contains("expected 2"));
        history.tokens.push(token(2));
        assert!(history.add(3, token(1), Lsn::ZERO).unwrap().contains("not its current token"));
    }

    #[test]
    fn a_sum_that_differs_or_is_only_on_one_side_is_found() {
        let (mut expected, mut found) = (Totals::default(), Totals::default());
        for totals in [&mut expected, &mut found] {
            totals.add("2013-01-01", "UA", Some(5));
        }
        let mut verdict = Verdict::default();
        verdict.compare("EWR", "the head", &expected, &found);
        assert!(verdict.problems.is_empty());

        expected.add("2013-01-01", "UA", Some(1));
        found.add("2013-01-02", "AA", None);
        verdict.compare("EWR", "the head", &expected, &found);
        assert_eq!(
            verdict.problems,
            [
                "EWR 2013-01-01 UA: expected 2 flights, 6 minutes late, 0 without a delay; the head has 1 flights, \
                 5 minutes late, 0 without a delay",
                "EWR 2013-01-02 AA: expected no such row; the head has 1 flights, 0 minutes late, 1 without a delay",
            ]
        );
    }
}
