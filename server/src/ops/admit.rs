//! What an import takes in. Whoever makes an export file may write into it what he likes, with right CRCs: so each field of
//! each fact is held against the rules that requests are held against, and the facts against one another.

use std::collections::{BTreeMap, BTreeSet};

use fencepost::log::v1::fact::Kind;
use fencepost::log::v1::{
    ClusterCreated, Committed, Fact, ImportFinished, ImportStarted, PolicySet, SavepointCreated, SchemaDeclared,
};
use fencepost::v1::DeclareSchemaRequest;
use fencepost::{LogIndex, Lsn};

use super::transfer::Contents;
use crate::config::limits;
use crate::error::Refusal;
use crate::state::{
    COUNT_END, State, check_asked_by, check_bytes, check_checkpoint, check_dead_letter, check_id, check_name,
    check_pipeline, check_policy, check_schema,
};

/// What an export was found to be.
pub(super) struct Admitted {
    pub contents: Contents,
    /// The first fact.
    pub started: ImportStarted,
    /// Where the file has the checkpoints that savepoints name, by branch and sequence.
    pub named: BTreeMap<u64, (String, u64)>,
}

/// Takes the facts of an export in, one by one.
pub(super) struct Admission {
    /// Of a store that imports nothing else.
    state: State,
    started: Option<ImportStarted>,
    is_finished: bool,
    /// By branch: sequences, which rise, and where they are.
    checkpoints: BTreeMap<String, Vec<(u64, Lsn)>>,
    named: BTreeMap<u64, (String, u64)>,
    contents: Contents,
}

impl Admission {
    pub(super) fn new() -> Admission {
        let mut state = State::default();
        let created = ClusterCreated { cluster_id: "import".to_owned(), generation: 1 };
        let created = Fact { at_ms: 0, kind: Some(Kind::ClusterCreated(created)) };
        // An index is at least 1, so this comes before all that a file can have.
        state.apply(Lsn::new(LogIndex::ZERO, 1), &created).expect("a new cluster fits an empty state");
        Admission {
            state,
            started: None,
            is_finished: false,
            checkpoints: BTreeMap::new(),
            named: BTreeMap::new(),
            contents: Contents::default(),
        }
    }

    /// Takes the next fact in, or says what is wrong with it.
    pub(super) fn take(&mut self, lsn: Lsn, fact: Fact) -> Result<(), String> {
        if self.is_finished {
            return Err("it is behind the end of the import".to_owned());
        }
        let of = self.started.as_ref().map(|started| &*started.pipeline);
        match (of, fact.pipeline()) {
            (None, _) if !matches!(fact.kind, Some(Kind::ImportStarted(_))) => {
                return Err("an export begins with the start of an import".to_owned());
            }
            (Some(of), Some(found)) if of != found => {
                check_pipeline("pipeline", found).map_err(said)?;
                return Err(format!("pipeline is '{found}': expected '{of}'"));
            }
            _ => {}
        }
        let checked = match &fact.kind {
            Some(Kind::ImportStarted(started)) if self.started.is_none() => check_started(started),
            Some(Kind::Imported(imported)) => {
                check_commit(imported.commit.as_ref().ok_or("commit is absent: expected a commit")?)
            }
            Some(Kind::PolicySet(set)) => check_set(set),
            Some(Kind::SavepointCreated(created)) => self.check_savepoint(created),
            Some(Kind::SchemaDeclared(declared)) => self.check_declared(declared),
            Some(Kind::ImportFinished(ImportFinished { digest, .. })) => check_length("digest", digest, &[0, 32]),
            _ => return Err("it is of a kind that an export does not have".to_owned()),
        };
        checked?;
        self.state.apply(lsn, &fact).map_err(|error| error.contradiction)?;
        match fact.kind {
            Some(Kind::ImportStarted(started)) => self.started = Some(started),
            Some(Kind::Imported(imported)) => {
                let moved = imported.commit.into_iter().flat_map(|commit| commit.branches);
                for moved in moved.filter(|moved| moved.checkpoint.is_some()) {
                    self.contents.checkpoints += 1;
                    self.checkpoints.entry(moved.branch).or_default().push((moved.sequence, lsn));
                }
            }
            Some(Kind::SavepointCreated(created)) => {
                self.contents.savepoints += 1;
                self.named.insert(created.checkpoint_lsn, (created.branch, created.sequence));
            }
            Some(Kind::ImportFinished(_)) => self.is_finished = true,
            _ => {}
        }
        Ok(())
    }

    /// What they are, if they are all there.
    pub(super) fn finish(self) -> Result<Admitted, String> {
        let Admission { state, started, is_finished, checkpoints, named, mut contents } = self;
        let cut_short = "it has no beginning or no end: the export was cut short";
        let started = started.filter(|_| is_finished).ok_or(cut_short)?;
        for (name, head) in state.pipeline(&started.pipeline).into_iter().flat_map(|known| known.branches_after("")) {
            let newest = checkpoints.get(name).and_then(|found| found.last()).map_or(0, |(sequence, _)| *sequence);
            if head.head().is_some_and(|head| head.sequence != newest) {
                return Err(format!("the newest commit of branch '{name}' has no checkpoint: expected one"));
            }
        }
        for (name, found) in &checkpoints {
            let oldest = state.oldest_retained(&started.pipeline, name);
            let newest = found.last().map_or(0, |(sequence, _)| *sequence);
            let kept = found.len() - found.partition_point(|(sequence, _)| *sequence < oldest);
            // They rise, so that none is missing if they are as many.
            if oldest > newest || kept as u64 != newest - oldest + 1 {
                return Err(format!(
                    "retained_from of branch '{name}' is {oldest}: expected every checkpoint from there to {newest}, and \
                     {kept} are there"
                ));
            }
        }
        contents.pipeline.clone_from(&started.pipeline);
        contents.branches = checkpoints.len() as u64;
        Ok(Admitted { contents, started, named })
    }

    fn check_savepoint(&self, created: &SavepointCreated) -> Result<(), String> {
        let SavepointCreated { name, branch, sequence, checkpoint_lsn, actor, reason, .. } = created;
        check_name("name", name).map_err(said)?;
        check_name("branch", branch).map_err(said)?;
        check_asked_by(actor, reason).map_err(said)?;
        if self.contents.savepoints >= limits::SAVEPOINTS_MAX as u64 {
            return Err(format!("name is '{name}': expected at most {} savepoints before", limits::SAVEPOINTS_MAX));
        }
        let there = self.checkpoints.get(branch).map_or(&[][..], |it| it);
        let place = there.binary_search_by_key(sequence, |(sequence, _)| *sequence).map(|found| there[found].1);
        let named = Lsn::from_u64(*checkpoint_lsn);
        if place != Ok(named) {
            return Err(format!(
                "checkpoint_lsn is {named}: expected the place of checkpoint {sequence} of branch '{branch}' before it"
            ));
        }
        Ok(())
    }
}

impl Admission {
    fn check_declared(&self, declared: &SchemaDeclared) -> Result<(), String> {
        let SchemaDeclared { pipeline, schema, actor, reason } = declared;
        let schema = schema.as_ref().ok_or("schema is absent: expected a schema")?;
        check_schema(schema).map_err(said)?;
        check_asked_by(actor, reason).map_err(said)?;
        // What a request is held against: what it succeeds, and how many there are.
        let (pipeline, schema) = (pipeline.clone(), Some(schema.clone()));
        let request = DeclareSchemaRequest { pipeline, schema, ..DeclareSchemaRequest::default() };
        match self.state.judge_declared(&request) {
            Ok(Some(_)) => Ok(()),
            Ok(None) => Err("it declares a schema again".to_owned()),
            Err(refusal) => Err(said(refusal)),
        }
    }
}

fn check_started(started: &ImportStarted) -> Result<(), String> {
    let ImportStarted { pipeline, digest, source_cluster_id, source_lsn: _, source_pipeline, actor, reason } = started;
    check_pipeline("pipeline", pipeline).map_err(said)?;
    check_pipeline("source_pipeline", source_pipeline).map_err(said)?;
    check_id("source_cluster_id", source_cluster_id).map_err(said)?;
    check_asked_by(actor, reason).map_err(said)?;
    check_length("digest", digest, &[0, 32])
}

fn check_commit(commit: &Committed) -> Result<(), String> {
    // A fork comes without an id.
    if !commit.commit_id.is_empty() {
        check_id("commit_id", &commit.commit_id).map_err(said)?;
    }
    check_length("digest", &commit.digest, &[16])?;
    check_count("number", commit.number)?;
    let branches = commit.branches.len();
    if branches == 0 || branches > limits::BRANCHES_MAX {
        return Err(format!("branches has {branches} of them: expected 1 to {}", limits::BRANCHES_MAX));
    }
    let (mut seen, mut letters, mut letter_bytes) = (BTreeSet::new(), 0, 0);
    for (i, moved) in commit.branches.iter().enumerate() {
        let field = |name: &str| format!("branches[{i}].{name}");
        check_name(&field("branch"), &moved.branch).map_err(said)?;
        if !seen.insert(&moved.branch) {
            return Err(format!("{} is '{}': expected each branch once", field("branch"), moved.branch));
        }
        check_count(&field("sequence"), moved.sequence)?;
        letters += moved.dead_letters.len() + moved.handled_dead_letters as usize;
        letter_bytes += moved.dead_letters.iter().map(|letter| letter.payload.len()).sum::<usize>();
        for (number, letter) in moved.dead_letters.iter().enumerate() {
            check_dead_letter(&format!("{}[{number}]", field("dead_letters")), letter).map_err(said)?;
        }
        if moved.staged_lsn != 0 || !moved.replayed.is_empty() {
            return Err(format!("{} or replayed is there: expected neither in an export", field("staged_lsn")));
        }
        let Some(checkpoint) = &moved.checkpoint else {
            // It is not retained, and its dead letters are open.
            if moved.dead_letters.is_empty() {
                return Err(format!("{} is absent: expected a checkpoint, or dead letters", field("checkpoint")));
            }
            continue;
        };
        check_checkpoint(&field("checkpoint"), checkpoint).map_err(said)?;
        let (declared, actual) = (checkpoint.payload_crc32, checkpoint.computed_crc32());
        if declared != Some(actual) {
            let field = field("checkpoint.payload_crc32");
            let declared = declared.map_or_else(|| "absent".to_owned(), |declared| format!("{declared:08x}"));
            return Err(format!("{field} is {declared}: expected {actual:08x}"));
        }
    }
    if letters > limits::DEAD_LETTERS_MAX {
        return Err(format!("dead_letters has {letters} of them: expected at most {}", limits::DEAD_LETTERS_MAX));
    }
    check_bytes("dead_letters", letter_bytes, limits::DEAD_LETTERS_BYTES_MAX).map_err(said)?;
    if commit.barrier.is_some() || commit.merge.is_some() {
        return Err("barrier or merge is there: expected neither in an export".to_owned());
    }
    Ok(())
}

fn check_set(set: &PolicySet) -> Result<(), String> {
    check_policy(set.policy.as_ref().ok_or("policy is absent: expected a policy")?).map_err(said)?;
    check_asked_by(&set.actor, &set.reason).map_err(said)
}

/// A number that counts checkpoints or commits, from 1.
fn check_count(field: &str, value: u64) -> Result<(), String> {
    if (1..COUNT_END).contains(&value) {
        return Ok(());
    }
    Err(format!("{field} is {value}: expected 1 to {}", COUNT_END - 1))
}

fn check_length(field: &str, bytes: &[u8], expected: &[usize]) -> Result<(), String> {
    if expected.contains(&bytes.len()) {
        return Ok(());
    }
    Err(format!("{field} has {} bytes: expected {expected:?}", bytes.len()))
}

fn said(refusal: Refusal) -> String {
    refusal.message
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use bytes::Bytes;
    use fencepost::log::v1::{CommittedBranch, Imported};
    use fencepost::v1::{Checkpoint, DeadLetter, DeadLetterId, Integrity, Merge, Policy, Schema};
    use prost::Message as _;
    use uuid::Uuid;

    use super::super::transfer::Export;
    use super::*;
    use crate::disk::Disk;
    use crate::disk::sim::SimDisk;
    use crate::log::{Content, SegmentFileWriter, SegmentLabel};

    fn lsn(place: usize) -> Lsn {
        Lsn::new(LogIndex(place as u64 + 1), 0)
    }

    fn imported(number: u64, sequence: u64) -> Kind {
        let mut checkpoint = Checkpoint { position: "at".into(), state: "so far".into(), ..Checkpoint::default() };
        checkpoint.payload_crc32 = Some(checkpoint.computed_crc32());
        let branch = CommittedBranch {
            branch: "main".to_owned(),
            sequence,
            checkpoint: Some(checkpoint),
            retained_from: 8,
            ..CommittedBranch::default()
        };
        let commit = Committed {
            pipeline: "prod/orders".to_owned(),
            commit_id: format!("commit-{number}"),
            digest: vec![1; 16].into(),
            branches: vec![branch],
            number,
            ..Committed::default()
        };
        Kind::Imported(Imported { commit: Some(commit), committed_at_ms: 1_000 })
    }

    /// Open dead letters of a checkpoint that is not retained.
    fn letters() -> Kind {
        let mut kind = imported(4, 1);
        let letter = DeadLetter { payload: "row".into(), reason: "no delay".to_owned(), ..DeadLetter::default() };
        branch(|it| {
            (it.branch, it.checkpoint) = ("late".to_owned(), None);
            it.dead_letters = vec![letter.clone(), letter];
        })(&mut kind);
        kind
    }

    /// An export: checkpoint 3 with a savepoint, and the retained ones, 8 and 9; another branch, of which dead letters of
    /// checkpoint 1 are open and 2 is retained; and a schema.
    fn good() -> Vec<Kind> {
        let (pipeline, source_cluster_id) = ("prod/orders".to_owned(), Uuid::nil().to_string());
        let started =
            ImportStarted { source_pipeline: pipeline.clone(), source_cluster_id, ..ImportStarted::default() };
        let savepoint = SavepointCreated {
            pipeline: pipeline.clone(),
            name: "kept".to_owned(),
            branch: "main".to_owned(),
            sequence: 3,
            checkpoint_lsn: lsn(1).as_u64(),
            ..SavepointCreated::default()
        };
        let policy = Some(Policy { keep_last: 2, ..Policy::default() });
        let set = PolicySet { pipeline: pipeline.clone(), policy, ..PolicySet::default() };
        let mut late = imported(5, 2);
        branch(|it| (it.branch, it.retained_from) = ("late".to_owned(), 2))(&mut late);
        let fingerprint = Bytes::from_static(b"digest");
        let schema = Some(Schema { fingerprint, name: "v1".to_owned(), ..Schema::default() });
        vec![
            Kind::ImportStarted(ImportStarted { pipeline: pipeline.clone(), ..started }),
            imported(1, 3),
            Kind::SavepointCreated(savepoint),
            Kind::PolicySet(set),
            imported(2, 8),
            imported(3, 9),
            letters(),
            late,
            Kind::SchemaDeclared(SchemaDeclared { pipeline: pipeline.clone(), schema, ..SchemaDeclared::default() }),
            Kind::ImportFinished(ImportFinished { pipeline, ..ImportFinished::default() }),
        ]
    }

    fn file(kinds: Vec<Kind>) -> Arc<dyn Disk> {
        let disk: Arc<dyn Disk> = Arc::new(SimDisk::new());
        let label = SegmentLabel {
            content: Content::Export,
            log_id: Uuid::nil(),
            numbers: 1..=1,
            first_index: LogIndex(1),
            judged_at: Lsn::ZERO,
        };
        let mut writer = SegmentFileWriter::create(&*disk, Path::new("/export"), &label).unwrap();
        let last = lsn(kinds.len() - 1).index();
        for (place, kind) in kinds.into_iter().enumerate() {
            let payload = Fact { at_ms: 1, kind: Some(kind) }.encode_to_vec();
            writer.push(lsn(place).index(), LogIndex::ZERO, 0, &[(0, &payload[..])]).unwrap();
        }
        writer.finish(last).unwrap();
        disk
    }

    fn opened(kinds: Vec<Kind>) -> Result<Export, String> {
        Export::open(&*file(kinds), Path::new("/export")).map_err(|error| error.to_string())
    }

    #[test]
    fn a_good_export_is_taken_in() {
        let export = opened(good()).unwrap();
        let contents = Contents { pipeline: "prod/orders".to_owned(), branches: 2, checkpoints: 4, savepoints: 1 };
        assert_eq!(export.contents, contents);
        assert_eq!(export.named, BTreeMap::from([(lsn(1).as_u64(), ("main".to_owned(), 3))]));
        assert!(export.fact_bytes > 40);
    }

    /// Changes one fact of a good export, and expects that the refusal says file, field and value.
    #[track_caller]
    fn refused(place: usize, change: impl FnOnce(&mut Kind), field: &str, value: &str) {
        let mut kinds = good();
        change(&mut kinds[place]);
        let refused = opened(kinds).map(|export| export.contents).unwrap_err();
        for part in ["/export: ", field, value] {
            assert!(refused.contains(part), "no '{part}' in: {refused}");
        }
    }

    fn commit(change: impl FnOnce(&mut Committed)) -> impl FnOnce(&mut Kind) {
        |kind| match kind {
            Kind::Imported(Imported { commit: Some(commit), .. }) => change(commit),
            other => panic!("{other:?}"),
        }
    }

    fn branch(change: impl FnOnce(&mut CommittedBranch)) -> impl FnOnce(&mut Kind) {
        commit(|commit| change(&mut commit.branches[0]))
    }

    fn checkpoint(change: impl FnOnce(&mut Checkpoint)) -> impl FnOnce(&mut Kind) {
        branch(|branch| change(branch.checkpoint.as_mut().unwrap()))
    }

    fn savepoint(change: impl FnOnce(&mut SavepointCreated)) -> impl FnOnce(&mut Kind) {
        |kind| match kind {
            Kind::SavepointCreated(created) => change(created),
            other => panic!("{other:?}"),
        }
    }

    fn started(change: impl FnOnce(&mut ImportStarted)) -> impl FnOnce(&mut Kind) {
        |kind| match kind {
            Kind::ImportStarted(started) => change(started),
            other => panic!("{other:?}"),
        }
    }

    fn policy(change: impl FnOnce(&mut PolicySet)) -> impl FnOnce(&mut Kind) {
        |kind| match kind {
            Kind::PolicySet(set) => change(set),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_export_with_numbers_that_none_can_follow_is_refused() {
        for number in [0, COUNT_END, u64::MAX] {
            let shown = format!("is {number}: expected 1 to");
            refused(5, commit(|it| it.number = number), "number", &shown);
            refused(5, branch(|it| it.sequence = number), "branches[0].sequence", &shown);
            refused(2, savepoint(|it| it.sequence = number), "checkpoint_lsn", &number.to_string());
        }
        refused(5, commit(|it| it.number = 1), "commit 1 of", "after commit 2");
        refused(5, branch(|it| it.sequence = 8), "branch 'main'", "from 8 to 8");
        refused(5, branch(|it| it.sequence = 10), "retained_from of branch 'main' is 8", "to 10, and 2 are there");
        refused(5, branch(|it| it.retained_from = u64::MAX), "retained_from", &u64::MAX.to_string());
        refused(5, branch(|it| it.retained_from = 1), "retained_from", "every checkpoint from there to 9");
    }

    #[test]
    fn an_export_with_names_that_no_request_could_have_is_refused() {
        refused(1, branch(|it| it.branch = "a\0b".to_owned()), "branches[0].branch", "a\\u{0}b");
        refused(1, commit(|it| it.pipeline = "x\0/y".to_owned()), "pipeline", "x\\u{0}/y");
        refused(1, commit(|it| it.pipeline = "prod/other".to_owned()), "pipeline", "prod/other");
        refused(1, commit(|it| it.commit_id = "x".repeat(129)), "commit_id", "xxx");
        refused(2, savepoint(|it| it.name = "\0".to_owned()), "name", "\\u{0}");
        refused(2, savepoint(|it| it.branch = "\0".to_owned()), "branch", "\\u{0}");
        refused(2, savepoint(|it| it.actor = "x".repeat(129)), "actor", "xxx");
        refused(2, savepoint(|it| it.reason = "x".repeat(1025)), "reason", "1025 bytes");
        refused(3, policy(|it| it.actor = "\n".to_owned()), "actor", "\\n");
        refused(0, started(|it| it.pipeline = "orders".to_owned()), "pipeline", "orders");
        refused(0, started(|it| it.source_pipeline = "\0".to_owned()), "source_pipeline", "\\u{0}");
        refused(0, started(|it| it.source_cluster_id = "x".repeat(129)), "source_cluster_id", "xxx");
    }

    #[test]
    fn an_export_with_what_no_request_could_carry_is_refused() {
        refused(1, commit(|it| it.digest = Bytes::from_static(b"short")), "digest", "5 bytes");
        refused(1, commit(|it| it.branches.clear()), "branches", "0 of them");
        refused(1, commit(|it| it.branches = vec![it.branches[0].clone(); 129]), "branches", "129 of them");
        refused(1, commit(|it| it.branches = vec![it.branches[0].clone(); 2]), "branches[1].branch", "'main'");
        refused(1, branch(|it| it.checkpoint = None), "branches[0].checkpoint", "absent");
        let position = |it: &mut Checkpoint| it.position = vec![0; limits::POSITION_BYTES_MAX + 1].into();
        refused(1, checkpoint(position), "branches[0].checkpoint.position", "65537 bytes");
        let state = |it: &mut Checkpoint| it.state = vec![0; limits::STATE_BYTES_MAX + 1].into();
        refused(1, checkpoint(state), "branches[0].checkpoint.state", "4194305 bytes");
        let fingerprint = Integrity { schema_fingerprint: vec![0; 65].into(), ..Integrity::default() };
        refused(1, checkpoint(|it| it.integrity = Some(fingerprint)), "schema_fingerprint", "65 bytes");
        refused(1, checkpoint(|it| it.payload_crc32 = Some(7)), "payload_crc32", "00000007");
        refused(1, checkpoint(|it| it.payload_crc32 = None), "payload_crc32", "absent");
        refused(1, |it| *it = Kind::Imported(Imported::default()), "commit", "absent");
        refused(3, policy(|it| it.policy = None), "policy", "absent");
        let keep_last = Policy { keep_last: u64::MAX, ..Policy::default() };
        refused(3, policy(|it| it.policy = Some(keep_last)), "policy.keep_last", &u64::MAX.to_string());
        let keep_for_ms = Policy { keep_for_ms: u64::MAX, ..Policy::default() };
        refused(3, policy(|it| it.policy = Some(keep_for_ms)), "policy.keep_for_ms", &u64::MAX.to_string());
        refused(0, started(|it| it.digest = Bytes::from_static(b"short")), "digest", "5 bytes");
    }

    fn schema(change: impl FnOnce(&mut Schema)) -> impl FnOnce(&mut Kind) {
        |kind| match kind {
            Kind::SchemaDeclared(SchemaDeclared { schema: Some(schema), .. }) => change(schema),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_export_with_dead_letters_that_no_commit_could_have_is_refused() {
        refused(6, branch(|it| it.dead_letters.clear()), "branches[0].checkpoint", "absent");
        refused(6, branch(|it| it.dead_letters[1].reason.clear()), "branches[0].dead_letters[1].reason", "a few words");
        let position = |it: &mut CommittedBranch| it.dead_letters[0].source_position = vec![0; 1025].into();
        refused(6, branch(position), "branches[0].dead_letters[0].source_position", "1025 bytes");
        let traceparent = |it: &mut CommittedBranch| it.dead_letters[0].traceparent = "trace".to_owned();
        refused(6, branch(traceparent), "branches[0].dead_letters[0].traceparent", "'trace'");
        refused(6, branch(|it| it.handled_dead_letters = 999), "dead_letters has 1001", "at most 1000");
        let long = |it: &mut CommittedBranch| it.dead_letters[0].payload = vec![0; 4 << 20].into();
        refused(6, branch(long), "dead_letters", "4194307 bytes");
        refused(6, branch(|it| it.staged_lsn = 7), "branches[0].staged_lsn", "neither");
        refused(6, branch(|it| it.replayed = vec![DeadLetterId::default()]), "replayed", "neither");
        refused(6, commit(|it| it.merge = Some(Merge::default())), "merge", "neither");
        // They belong to a checkpoint before the newest one, which is there.
        refused(6, branch(|it| it.branch = "main".to_owned()), "branch 'main'", "from 9 to 1");
        refused(6, branch(|it| it.branch = "ghost".to_owned()), "branch 'ghost'", "has no checkpoint");
    }

    #[test]
    fn an_export_with_schemas_that_nobody_could_declare_is_refused() {
        refused(8, schema(|it| it.fingerprint = Bytes::new()), "schema.fingerprint", "1 to 64 bytes");
        refused(8, schema(|it| it.fingerprint = vec![0; 65].into()), "schema.fingerprint", "65 bytes");
        refused(8, schema(|it| it.name = "version 1".to_owned()), "schema.name", "version 1");
        refused(8, schema(|it| it.successor_of = "v0".into()), "schema.successor_of", "7630");
        refused(
            8,
            |it| {
                *it = Kind::SchemaDeclared(SchemaDeclared {
                    pipeline: "prod/orders".to_owned(),
                    ..SchemaDeclared::default()
                });
            },
            "schema",
            "absent",
        );
        let mut kinds = good();
        kinds.insert(8, kinds[8].clone());
        assert!(opened(kinds).unwrap_err().contains("declares a schema again"));
    }

    #[test]
    fn an_export_whose_savepoints_name_nothing_in_it_is_refused() {
        refused(2, savepoint(|it| it.sequence = 4), "checkpoint_lsn", "2.0");
        refused(2, savepoint(|it| it.branch = "other".to_owned()), "checkpoint_lsn", "'other'");
        refused(2, savepoint(|it| it.checkpoint_lsn = lsn(4).as_u64()), "checkpoint_lsn", "5.0");
        let mut kinds = good();
        kinds.swap(0, 2);
        assert!(opened(kinds).unwrap_err().contains("begins with the start"));
    }
}
