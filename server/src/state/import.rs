//! What comes from outside of this log: a pipeline from an export file, and a new generation after a restore.

use bytes::Bytes;
use fencepost::log::v1::fact::Kind;
use fencepost::log::v1::{
    Committed, GenerationStarted, ImportFinished, ImportStarted, Imported, PolicySet, SavepointCreated, SchemaDeclared,
};
use fencepost::{Lsn, Reason};

use super::pipeline::Origin;
use super::{Branch, State, entry};
use crate::error::Refusal;

/// How the begin of an import is judged, if it is not refused.
#[derive(Clone, Debug, PartialEq)]
pub enum ImportVerdict {
    /// It has begun once this fact is durable.
    Start(ImportStarted),
    /// The same file was being imported, and this many commits of the pipeline are there: up to that number.
    GoOn(u64),
}

impl State {
    /// Judges the begin of an import, its shape already checked.
    pub fn evaluate_import_start(&self, started: ImportStarted) -> Result<ImportVerdict, Refusal> {
        let Some(known) = self.pipeline(&started.pipeline) else { return Ok(ImportVerdict::Start(started)) };
        let name = &started.pipeline;
        let message = match &known.origin {
            Origin::Importing(digest) if *digest == started.digest => {
                return Ok(ImportVerdict::GoOn(known.window.newest()));
            }
            Origin::Importing(_) => format!(
                "pipeline '{name}' is half imported from another file: import that one again to finish it, or give this one another name"
            ),
            Origin::Imported(digest) if *digest == started.digest => {
                format!("pipeline '{name}' was imported from this very file before: nothing is left to do")
            }
            _ => format!("pipeline '{name}' exists, and an import makes a new one: give it another name"),
        };
        Err(Refusal::new(Reason::Exists, message).with("field", "pipeline").with("value", name))
    }

    /// Judges the next fact of an import. `None`: it is there already. `before` is the one that comes before it in the file:
    /// without that it is refused, because what is missing between two checkpoints would never be asked for again.
    pub fn evaluate_import_step(&self, kind: Kind, before: Option<&Kind>) -> Result<Option<Kind>, Refusal> {
        if before.is_some_and(|before| !self.has_imported(before)) {
            let message = "what comes before it in the file was not taken in: import the file again";
            return Err(Refusal::new(Reason::HeadMismatch, message));
        }
        Ok(match kind {
            Kind::Imported(imported) => self.evaluate_imported(imported)?.map(Kind::Imported),
            Kind::SavepointCreated(created) => self.evaluate_imported_savepoint(created)?.map(Kind::SavepointCreated),
            Kind::PolicySet(set) => self.evaluate_imported_policy(set)?.map(Kind::PolicySet),
            Kind::SchemaDeclared(declared) => {
                self.check_importing(&declared.pipeline)?;
                (!self.has_declared(&declared)).then_some(Kind::SchemaDeclared(declared))
            }
            Kind::ImportFinished(ImportFinished { pipeline, digest }) => {
                self.evaluate_import_finish(&pipeline, &digest)?.map(Kind::ImportFinished)
            }
            // An export has no others.
            _ => None,
        })
    }

    /// Whether a fact of an import is there.
    fn has_imported(&self, kind: &Kind) -> bool {
        match kind {
            Kind::Imported(imported) => imported.commit.iter().all(|commit| self.has_moved(commit)),
            Kind::SavepointCreated(SavepointCreated { pipeline, name, .. }) => {
                self.pipeline(pipeline).is_some_and(|known| known.savepoint(name).is_some())
            }
            Kind::PolicySet(set) => self.pipeline(&set.pipeline).is_some_and(|known| known.policy().is_some()),
            Kind::SchemaDeclared(declared) => self.has_declared(declared),
            _ => true,
        }
    }

    fn has_declared(&self, declared: &SchemaDeclared) -> bool {
        let known = self.pipeline(&declared.pipeline);
        let schema = declared.schema.as_ref();
        known.zip(schema).is_some_and(|(known, schema)| known.schemas.get(&schema.fingerprint).is_some())
    }

    /// Judges one commit of an import. `None`: it is there already.
    fn evaluate_imported(&self, imported: Imported) -> Result<Option<Imported>, Refusal> {
        let commit = imported.commit.as_ref();
        let commit = commit.ok_or_else(|| Refusal::field(Reason::InvalidField, "commit", "", "a commit"))?;
        self.check_importing(&commit.pipeline)?;
        let is_there = self.has_moved(commit);
        Ok((!is_there).then_some(imported))
    }

    fn has_moved(&self, commit: &Committed) -> bool {
        commit.branches.iter().all(|moved| {
            let head = self.branch(&commit.pipeline, &moved.branch).and_then(Branch::head);
            head.is_some_and(|head| head.sequence >= moved.sequence)
        })
    }

    /// Judges a savepoint of an import. `None`: it is there already.
    fn evaluate_imported_savepoint(&self, created: SavepointCreated) -> Result<Option<SavepointCreated>, Refusal> {
        self.check_importing(&created.pipeline)?;
        let SavepointCreated { pipeline, name, branch, sequence, checkpoint_lsn, .. } = &created;
        if self.pipeline(pipeline).is_some_and(|known| known.savepoint(name).is_some()) {
            return Ok(None);
        }
        // Without its place the checkpoint would be kept by nobody, and a rewind would lead nowhere.
        if *checkpoint_lsn == 0 {
            let message = format!(
                "checkpoint {sequence} of branch '{branch}' of '{pipeline}', which savepoint '{name}' names, was imported \
                 and is not found; run 'fencepost verify'"
            );
            return Err(Refusal::new(Reason::Corrupt, message).with("branch", branch));
        }
        Ok(Some(created))
    }

    /// Judges the policy of an import. `None`: it is there already.
    fn evaluate_imported_policy(&self, set: PolicySet) -> Result<Option<PolicySet>, Refusal> {
        self.check_importing(&set.pipeline)?;
        let is_there = self.pipeline(&set.pipeline).is_some_and(|known| known.policy().is_some());
        Ok((!is_there).then_some(set))
    }

    /// Judges the end of an import. `None`: it was finished before.
    fn evaluate_import_finish(&self, pipeline: &str, digest: &Bytes) -> Result<Option<ImportFinished>, Refusal> {
        if self.pipeline(pipeline).is_some_and(|known| known.origin == Origin::Imported(digest.clone())) {
            return Ok(None);
        }
        self.check_importing(pipeline)?;
        Ok(Some(ImportFinished { pipeline: pipeline.to_owned(), digest: digest.clone() }))
    }

    /// Judges a new generation, which ends every lease. `kept` is the last fact of the history before it.
    pub fn evaluate_generation(
        &self,
        generation: u64,
        kept: Lsn,
        actor: &str,
        reason: &str,
    ) -> Result<GenerationStarted, Refusal> {
        if generation <= self.generation || generation > 0xffff {
            let expected = format!("{} to 65535", self.generation + 1);
            return Err(Refusal::field(Reason::InvalidField, "generation", generation, &expected));
        }
        Ok(GenerationStarted {
            generation,
            kept_lsn: kept.as_u64(),
            actor: actor.to_owned(),
            reason: reason.to_owned(),
        })
    }

    fn check_importing(&self, pipeline: &str) -> Result<(), Refusal> {
        if self.pipeline(pipeline).is_some_and(super::Pipeline::is_importing) {
            return Ok(());
        }
        let message = format!("pipeline '{pipeline}' is not being imported: begin the import first");
        Err(Refusal::new(Reason::StateMissing, message).with("pipeline", pipeline))
    }

    pub(super) fn apply_import_started(&mut self, started: &ImportStarted) -> Result<(), String> {
        if self.pipelines.contains_key(&*started.pipeline) {
            return Err(format!("it makes pipeline '{}', which is already there", started.pipeline));
        }
        entry(&mut self.pipelines, &started.pipeline).origin = Origin::Importing(started.digest.clone());
        Ok(())
    }

    pub(super) fn apply_import_finished(&mut self, finished: &ImportFinished) -> Result<(), String> {
        let pipeline = entry(&mut self.pipelines, &finished.pipeline);
        if pipeline.origin != Origin::Importing(finished.digest.clone()) {
            return Err(format!("pipeline '{}' is not being imported from that file", finished.pipeline));
        }
        pipeline.origin = Origin::Imported(finished.digest.clone());
        Ok(())
    }
}
