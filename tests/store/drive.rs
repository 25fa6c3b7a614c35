//! Does to a store all that can be done to it, step by step and alone, so that the same steps give the same log; and
//! remembers what can be asked about it afterwards.

use std::collections::BTreeMap;

use bytes::Bytes;
use fencepost::v1::checkpoint_service_client::CheckpointServiceClient;
use fencepost::v1::commit_service_client::CommitServiceClient;
use fencepost::v1::dead_letter_service_client::DeadLetterServiceClient;
use fencepost::v1::lease_service_client::LeaseServiceClient;
use fencepost::v1::pipeline_service_client::PipelineServiceClient;
use fencepost::v1::{
    BranchCommit, Checkpoint, CommitRequest, CreateSavepointRequest, DeadLetter, DeadLetterId, DeclareSchemaRequest,
    DeleteSavepointRequest, DiscardDeadLettersRequest, FenceGroupRequest, ForkRequest, GetHeadRequest, LeaseRef,
    ListDeadLettersRequest, OnMissing, Policy, ReleaseRequest, ResumeMode, ResumeRequest, RewindRequest, Schema,
    SetPolicyRequest, Takeover, fork_request, rewind_request,
};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tonic::Status;
use tonic::transport::Channel;

use crate::ask::Known;

type Name = (String, String);

/// One who does everything.
#[derive(Clone)]
pub(crate) struct Driver {
    channel: Channel,
    pub(crate) known: Known,
    /// Current tokens, and the sequences of heads.
    tokens: BTreeMap<Name, u64>,
    heads: BTreeMap<Name, u64>,
    savepoints: Vec<(Name, String, u64)>,
    /// What the next commit has beside its checkpoints.
    dead_letters: Vec<DeadLetter>,
    replayed: Vec<DeadLetterId>,
    /// Makes names that were never used.
    count: u64,
}

fn name(pipeline: &str, branch: &str) -> Name {
    (pipeline.to_owned(), branch.to_owned())
}

impl Driver {
    pub(crate) fn new(channel: Channel) -> Driver {
        let (known, tokens, heads) = (Known::default(), BTreeMap::new(), BTreeMap::new());
        let (savepoints, dead_letters, replayed) = (Vec::new(), Vec::new(), Vec::new());
        Driver { channel, known, tokens, heads, savepoints, dead_letters, replayed, count: 0 }
    }

    /// Goes on with a store that was opened again.
    pub(crate) fn reconnect(&mut self, channel: Channel) {
        self.channel = channel;
    }

    pub(crate) fn head(&self, pipeline: &str, branch: &str) -> u64 {
        self.heads.get(&name(pipeline, branch)).copied().unwrap_or(0)
    }

    fn fresh(&mut self, what: &str) -> String {
        self.count += 1;
        format!("{what}-{}", self.count)
    }

    fn head_is(&mut self, of: Name, sequence: u64) {
        let newest = self.known.branches.entry(of.clone()).or_default();
        *newest = (*newest).max(sequence);
        self.heads.insert(of, sequence);
    }

    /// Takes a branch from whoever has it.
    pub(crate) async fn take(&mut self, pipeline: &str, branch: &str) {
        self.take_as(pipeline, branch, Takeover::Force).await.unwrap();
    }

    async fn take_as(&mut self, pipeline: &str, branch: &str, takeover: Takeover) -> Result<(), Status> {
        let mut request = ResumeRequest {
            pipeline: pipeline.to_owned(),
            branch: branch.to_owned(),
            holder: self.fresh("holder"),
            request_id: self.fresh("request"),
            ttl_ms: 3_600_000,
            reason: "it is due".to_owned(),
            ..ResumeRequest::default()
        };
        request.set_takeover(takeover);
        request.set_on_missing(OnMissing::StartFresh);
        // The state of the head is asked for elsewhere.
        request.set_mode(ResumeMode::Soft);
        let answer = LeaseServiceClient::new(self.channel.clone()).resume(request).await?.into_inner();
        let of = name(pipeline, branch);
        self.known.tokens.push((pipeline.to_owned(), branch.to_owned(), answer.token));
        self.head_is(of.clone(), answer.head.map_or(0, |head| head.sequence));
        self.tokens.insert(of, answer.token);
        Ok(())
    }

    pub(crate) async fn release(&mut self, pipeline: &str, branch: &str) {
        let Some(token) = self.tokens.remove(&name(pipeline, branch)) else { return };
        let lease = LeaseRef { pipeline: pipeline.to_owned(), branch: branch.to_owned(), token };
        let request = ReleaseRequest { cluster: None, lease: Some(lease) };
        LeaseServiceClient::new(self.channel.clone()).release(request).await.unwrap();
    }

    /// Commits a state of so many bytes on some branches at once, which are taken first if need be.
    pub(crate) async fn commit(&mut self, pipeline: &str, branches: &[&str], state_bytes: usize) {
        self.try_commit(pipeline, branches, state_bytes).await.unwrap();
    }

    pub(crate) async fn try_commit(
        &mut self,
        pipeline: &str,
        branches: &[&str],
        state_bytes: usize,
    ) -> Result<(), Status> {
        let mut moved = Vec::new();
        for branch in branches {
            let of = name(pipeline, branch);
            if !self.tokens.contains_key(&of) {
                self.take_as(pipeline, branch, Takeover::Wait).await?;
            }
            let sequence = self.heads[&of] + 1;
            let text = format!("{pipeline}/{branch}@{sequence}#{};", self.count);
            let state: Bytes = text.bytes().cycle().take(state_bytes).collect();
            let checkpoint = Some(Checkpoint { position: text.clone().into(), state, ..Checkpoint::default() });
            moved.push(BranchCommit {
                branch: (*branch).to_owned(),
                token: self.tokens[&of],
                sequence,
                checkpoint,
                dead_letters: std::mem::take(&mut self.dead_letters),
                replayed: std::mem::take(&mut self.replayed),
                ..BranchCommit::default()
            });
        }
        let commit_id = self.fresh("commit");
        let (pipeline, branches) = (pipeline.to_owned(), moved);
        let mut request = CommitRequest { pipeline, commit_id, branches, ..CommitRequest::default() };
        let done = CommitServiceClient::new(self.channel.clone()).commit(request.clone()).await;
        if done.is_err() {
            return done.map(drop);
        }
        for moved in &request.branches {
            self.head_is(name(&request.pipeline, &moved.branch), moved.sequence);
        }
        // Large ones are not kept, only what finds them.
        if state_bytes < 10_000 {
            self.known.commits.insert(request.commit_id.clone(), request);
        } else {
            request.branches.iter_mut().for_each(|moved| moved.checkpoint = Some(Checkpoint::default()));
            self.known.commits.insert(request.commit_id.clone(), request);
        }
        Ok(())
    }

    pub(crate) async fn policy(&mut self, pipeline: &str, keep_last: u64, keep_for_ms: u64) {
        let request = SetPolicyRequest {
            pipeline: pipeline.to_owned(),
            policy: Some(Policy { keep_last, keep_for_ms, audit_for_ms: 0, ..Policy::default() }),
            actor: "ada".to_owned(),
            reason: self.fresh("reason"),
            ..SetPolicyRequest::default()
        };
        PipelineServiceClient::new(self.channel.clone()).set_policy(request).await.unwrap();
    }

    /// Commits with so many dead letters, and replays so many open ones.
    pub(crate) async fn skip(&mut self, pipeline: &str, branch: &str, letters: usize, replays: usize) {
        let letter = |number| DeadLetter {
            payload: format!("letter {number} of {pipeline}/{branch}#{}", self.count).into_bytes().into(),
            reason: "no arrival delay".to_owned(),
            ..DeadLetter::default()
        };
        self.dead_letters = (0..letters).map(letter).collect();
        self.replayed = self.open_letters(pipeline, replays).await;
        self.commit(pipeline, &[branch], 20).await;
    }

    /// Gives up so many open letters.
    pub(crate) async fn discard(&mut self, pipeline: &str, count: usize) {
        let letters = self.open_letters(pipeline, count).await;
        if letters.is_empty() {
            return;
        }
        let request = DiscardDeadLettersRequest {
            pipeline: pipeline.to_owned(),
            letters,
            actor: "ada".to_owned(),
            reason: self.fresh("hopeless"),
            ..DiscardDeadLettersRequest::default()
        };
        DeadLetterServiceClient::new(self.channel.clone()).discard_dead_letters(request).await.unwrap();
    }

    /// The newest open letters.
    async fn open_letters(&self, pipeline: &str, count: usize) -> Vec<DeadLetterId> {
        let request = ListDeadLettersRequest { pipeline: pipeline.to_owned(), page_size: 1_000, ..Default::default() };
        let found = DeadLetterServiceClient::new(self.channel.clone()).list_dead_letters(request).await;
        let found = found.map(|it| it.into_inner().letters).unwrap_or_default();
        found.into_iter().rev().take(count).filter_map(|it| it.id).collect()
    }

    pub(crate) async fn declare(&mut self, pipeline: &str, name: &str, successor_of: &str) {
        let fingerprint = |name: &str| name.as_bytes().to_vec().into();
        let (fingerprint, successor_of) = (fingerprint(name), fingerprint(successor_of));
        let schema = Some(Schema { fingerprint, name: name.to_owned(), successor_of });
        let (pipeline, actor) = (pipeline.to_owned(), "ada".to_owned());
        let request = DeclareSchemaRequest { pipeline, schema, actor, ..DeclareSchemaRequest::default() };
        PipelineServiceClient::new(self.channel.clone()).declare_schema(request).await.unwrap();
    }

    /// Takes every branch of a pipeline from whoever has it.
    pub(crate) async fn fence(&mut self, pipeline: &str) {
        let (pipeline, reason) = (pipeline.to_owned(), self.fresh("because"));
        self.tokens.retain(|(of, _), _| *of != pipeline);
        let request = FenceGroupRequest { pipeline, reason, ..FenceGroupRequest::default() };
        // One that does not exist yet has nobody to be fenced.
        drop(PipelineServiceClient::new(self.channel.clone()).fence_group(request).await);
    }

    /// Names a checkpoint, if it is kept.
    pub(crate) async fn savepoint(&mut self, pipeline: &str, branch: &str, sequence: u64) -> Result<String, Status> {
        let savepoint = self.fresh("savepoint");
        let request = CreateSavepointRequest {
            pipeline: pipeline.to_owned(),
            branch: branch.to_owned(),
            name: savepoint.clone(),
            sequence,
            actor: "ada".to_owned(),
            reason: "keep this".to_owned(),
            ..CreateSavepointRequest::default()
        };
        PipelineServiceClient::new(self.channel.clone()).create_savepoint(request).await?;
        self.savepoints.push((name(pipeline, branch), savepoint.clone(), sequence));
        Ok(savepoint)
    }

    pub(crate) async fn delete_savepoint(&mut self, pipeline: &str, savepoint: &str) {
        let request = DeleteSavepointRequest {
            pipeline: pipeline.to_owned(),
            name: savepoint.to_owned(),
            actor: "ada".to_owned(),
            reason: "it is not needed".to_owned(),
            ..DeleteSavepointRequest::default()
        };
        PipelineServiceClient::new(self.channel.clone()).delete_savepoint(request).await.unwrap();
        self.savepoints.retain(|(_, known, _)| known != savepoint);
    }

    /// Sets a branch back, if what it is to be set back to is kept.
    pub(crate) async fn rewind(&mut self, pipeline: &str, branch: &str, to: rewind_request::To) -> Result<(), Status> {
        let of = name(pipeline, branch);
        let request = RewindRequest {
            pipeline: pipeline.to_owned(),
            branch: branch.to_owned(),
            to: Some(to),
            expected_head: self.head(pipeline, branch),
            actor: "ada".to_owned(),
            reason: self.fresh("because"),
            ..RewindRequest::default()
        };
        let answer = PipelineServiceClient::new(self.channel.clone()).rewind(request).await?.into_inner();
        self.tokens.remove(&of);
        self.known.tokens.push((of.0.clone(), of.1.clone(), answer.token));
        self.head_is(of, answer.sequence);
        Ok(())
    }

    pub(crate) async fn fork(&mut self, from: (&str, &str), sequence: u64, to: (&str, &str)) -> Result<(), Status> {
        let request = ForkRequest {
            source_pipeline: from.0.to_owned(),
            source_branch: from.1.to_owned(),
            from: Some(fork_request::From::Sequence(sequence)),
            pipeline: to.0.to_owned(),
            branch: to.1.to_owned(),
            actor: "ada".to_owned(),
            reason: "to try something".to_owned(),
            ..ForkRequest::default()
        };
        PipelineServiceClient::new(self.channel.clone()).fork(request).await?;
        self.head_is(name(to.0, to.1), 1);
        Ok(())
    }

    /// What every branch has as its head must be what was acknowledged last.
    pub(crate) async fn check_heads(&self) {
        let mut checkpoints = CheckpointServiceClient::new(self.channel.clone());
        for ((pipeline, branch), sequence) in &self.heads {
            let (pipeline, branch) = (pipeline.clone(), branch.clone());
            let request = GetHeadRequest { cluster: None, pipeline, branch, without_state: true };
            let found =
                checkpoints.get_head(request.clone()).await.map_or(0, |it| it.into_inner().head.unwrap().sequence);
            assert_eq!(found, *sequence, "{request:?}");
        }
    }

    /// Branches that somebody holds.
    pub(crate) fn held(&self) -> Vec<Name> {
        self.tokens.keys().cloned().collect()
    }
}

/// Steps at random, the same for the same seed.
pub(crate) struct Random {
    random: StdRng,
}

const PIPELINES: [&str; 2] = ["prod/orders", "test/orders"];
const BRANCHES: [&str; 4] = ["eu", "main", "us-1", "us-2"];

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        Random { random: StdRng::seed_from_u64(seed) }
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.random.random_range(0..bound)
    }

    /// Does one thing. What cannot be done just now, because what it would be done to is not kept, is passed over.
    pub(crate) async fn step(&mut self, driver: &mut Driver) {
        let pipeline = PIPELINES[self.below(5) as usize / 4];
        let branch = BRANCHES[self.below(4) as usize];
        let head = driver.head(pipeline, branch);
        let recent = head.saturating_sub(self.below(5));
        match self.below(100) {
            0..45 => driver.commit(pipeline, &[branch], 20).await,
            45..47 => driver.skip(pipeline, branch, self.below(4) as usize, self.below(3) as usize).await,
            47..48 => driver.discard(pipeline, 1 + self.below(2) as usize).await,
            48..49 => driver.fence(pipeline).await,
            49..55 => driver.commit(pipeline, &BRANCHES[..=self.below(4) as usize], 20).await,
            // Much of this dies at once, so that there is something to compact.
            55..67 => driver.commit("prod/bulk", &["main"], 600_000).await,
            67..70 => driver.commit(pipeline, &[branch], 200_000).await,
            70..76 => driver.take(pipeline, branch).await,
            76..80 => driver.release(pipeline, branch).await,
            80..84 if recent > 0 => drop(driver.savepoint(pipeline, branch, recent).await),
            84..86 => {
                if let Some((of, savepoint, _)) = driver.savepoints.first().cloned() {
                    driver.delete_savepoint(&of.0, &savepoint).await;
                }
            }
            86..91 if head > 0 => {
                drop(driver.rewind(pipeline, branch, rewind_request::To::Sequence(recent)).await);
            }
            91..93 => {
                let savepoints = driver.savepoints.len() as u64;
                if savepoints > 0 {
                    let (of, savepoint, _) = driver.savepoints[self.below(savepoints) as usize].clone();
                    drop(driver.rewind(&of.0, &of.1, rewind_request::To::Savepoint(savepoint)).await);
                }
            }
            93..96 if recent > 0 => {
                let to = driver.fresh("fork");
                drop(driver.fork((pipeline, branch), recent, (pipeline, &to)).await);
            }
            96..98 => driver.policy(pipeline, 1 + self.below(8), 0).await,
            98..100 => driver.policy(pipeline, 1 + self.below(3), [0, 200, 3_600_000][self.below(3) as usize]).await,
            _ => driver.commit(pipeline, &[branch], 20).await,
        }
    }
}
