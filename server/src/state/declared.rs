//! What a policy asks of checkpoints beyond being well formed: row counts that add up, and a schema that follows the head's.

use fencepost::Reason;
use fencepost::v1::{Checkpoint, Integrity};

use super::schema::{Schemas, shown_fingerprint};
use super::{Pipeline, with_defaults};
use crate::error::Refusal;

/// A checkpoint on its way in: its branch, what it says, and how many dead letters come with it.
pub(super) type Given<'a> = (&'a str, &'a Checkpoint, usize);

impl Pipeline {
    /// Checks checkpoints by the policy of the pipeline of this name: first the rows of all, then the schemas.
    pub(super) fn check_declared<'a>(
        &self,
        name: &str,
        given: impl Iterator<Item = Given<'a>> + Clone,
    ) -> Result<(), Refusal> {
        let Some(set) = self.policy() else { return Ok(()) };
        let policy = with_defaults(Some(&set.policy));
        if policy.reconcile_rows {
            given.clone().try_for_each(|(branch, checkpoint, dead)| check_rows(name, branch, checkpoint, dead))?;
        }
        if policy.declared_schemas_only {
            given.into_iter().try_for_each(|(branch, checkpoint, _)| self.check_schema(name, branch, checkpoint))?;
        }
        Ok(())
    }

    fn check_schema(&self, name: &str, branch: &str, checkpoint: &Checkpoint) -> Result<(), Refusal> {
        let integrity = checkpoint.integrity.as_ref();
        let declared = integrity.map_or(&[][..], |integrity| &integrity.schema_fingerprint);
        let past = self.branches.get(branch).and_then(|branch| branch.past.as_deref());
        // What was committed before anybody declared schemas binds nobody.
        let head = past.map_or(&[][..], |past| &past.schema);
        let head = if self.schemas.get(head).is_some() { head } else { &[] };
        let what = if declared.is_empty() {
            "the checkpoint says no schema_fingerprint".to_owned()
        } else if self.schemas.get(declared).is_none() {
            format!("schema {} is not declared", shown_fingerprint(declared))
        } else if head.is_empty() || self.schemas.lead(head, declared) {
            return Ok(());
        } else {
            format!(
                "schema {} neither is the head's, {}, nor succeeds it",
                shown_fingerprint(declared),
                shown_fingerprint(head)
            )
        };
        let successor_of = match head {
            [] => String::new(),
            head => format!(" with --successor-of {}", shown_fingerprint(head)),
        };
        let message = format!(
            "branch '{branch}' of '{name}' takes declared schemas only, and {what}: declare it if it is meant (fencepost \
             schema declare{successor_of})"
        );
        Err(Refusal::new(Reason::SchemaMismatch, message)
            .with("branch", branch)
            .with("schema_fingerprint", shown_fingerprint(declared))
            .with("head_schema_fingerprint", shown_fingerprint(head)))
    }
}

impl Schemas {
    /// Whether a branch may go from one schema to the other: they are the same, or the other succeeds the one, directly or
    /// by way of others.
    fn lead(&self, from: &[u8], to: &[u8]) -> bool {
        let mut at = to;
        // A schema succeeds one that was declared before it, so there are no circles; in a log of other software there may be.
        for _ in 0..=self.len() {
            if at == from {
                return true;
            }
            match self.get(at) {
                Some(schema) if !schema.successor_of.is_empty() => at = &schema.successor_of,
                _ => return false,
            }
        }
        false
    }
}

fn check_rows(name: &str, branch: &str, checkpoint: &Checkpoint, dead_letters: usize) -> Result<(), Refusal> {
    let nothing = Integrity::default();
    let Integrity { rows_in, rows_out, rows_filtered, rows_dead, .. } =
        checkpoint.integrity.as_ref().unwrap_or(&nothing);
    let (filtered, dead) = (rows_filtered.unwrap_or(0), rows_dead.unwrap_or(0));
    let went = rows_out.and_then(|out| out.checked_add(filtered)?.checked_add(dead));
    if rows_in.is_some() && went == *rows_in && dead == dead_letters as u64 {
        return Ok(());
    }
    let shown = |rows: &Option<u64>| rows.map_or_else(|| "absent".to_owned(), |rows| rows.to_string());
    let (rows_in, rows_out) = (shown(rows_in), shown(rows_out));
    let message = format!(
        "the row counts of branch '{branch}' of '{name}' do not add up: rows_in is {rows_in}, rows_out {rows_out}, \
         rows_filtered {filtered}, rows_dead {dead}, and {dead_letters} dead letters come with them; the policy \
         (reconcile_rows) wants rows_in = rows_out + rows_filtered + rows_dead, and a dead letter for each dead row"
    );
    Err(Refusal::new(Reason::IntegrityMismatch, message)
        .with("branch", branch)
        .with("rows_in", rows_in)
        .with("rows_out", rows_out)
        .with("rows_filtered", filtered)
        .with("rows_dead", dead)
        .with("dead_letters", dead_letters))
}
