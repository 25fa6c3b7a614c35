//! Everything that can be asked of a store, and what it answered: the truth that a store is held against after its files
//! were damaged, or after a restart.

use std::collections::BTreeMap;
use std::fmt;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use bytes::Bytes;
use fencepost::v1::checkpoint_service_client::CheckpointServiceClient;
use fencepost::v1::commit_service_client::CommitServiceClient;
use fencepost::v1::dead_letter_service_client::DeadLetterServiceClient;
use fencepost::v1::pipeline_service_client::PipelineServiceClient;
use fencepost::v1::{
    BranchCommit, Checkpoint, CommitRequest, GetCheckpointRequest, GetHeadRequest, GetPolicyRequest, ListAuditRequest,
    ListBranchesRequest, ListCheckpointsRequest, ListDeadLettersRequest, ListPipelinesRequest, ListSavepointsRequest,
    ListSchemasRequest, ResolveCommitRequest, StoredCheckpoint,
};
use tonic::Status;
use tonic::transport::Channel;
use tonic_types::StatusExt as _;

/// Rows of a page, so few that lists have several.
const PAGE: u32 = 7;

/// A question that changes nothing.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Question {
    Pipelines,
    Branches,
    Policy(String),
    Savepoints(String),
    Letters(String),
    Schemas(String),
    /// Of a pipeline, or of one branch of it.
    Audit(String, String),
    Head(String, String),
    History(String, String),
    Checkpoint(String, String, u64),
    /// How a commit ended, by its id and, unless the sequence is 0, by branch and sequence.
    Resolve(String, String, String, u64),
    /// Whether a token is current: a commit under it that cannot be applied, because of its sequence.
    Token(String, String, u64),
    /// What a repeat of a commit hears, by its id.
    Again(String),
}

/// What the server said. A refusal is its reason and its message.
pub(crate) type Answer = Result<String, (String, String)>;

/// All that is known of a store from outside.
#[derive(Clone, Debug, Default)]
pub(crate) struct Known {
    /// By pipeline and branch: the greatest sequence that there ever was.
    pub(crate) branches: BTreeMap<(String, String), u64>,
    /// Commits as they were sent, by their ids.
    pub(crate) commits: BTreeMap<String, CommitRequest>,
    /// Tokens that were granted, with their branches.
    pub(crate) tokens: Vec<(String, String, u64)>,
}

impl Known {
    /// Everything that can be asked.
    pub(crate) fn questions(&self) -> Vec<Question> {
        let mut questions = vec![Question::Pipelines, Question::Branches];
        let mut pipelines: Vec<&String> = self.branches.keys().map(|(pipeline, _)| pipeline).collect();
        pipelines.dedup();
        for pipeline in pipelines {
            questions.push(Question::Policy(pipeline.clone()));
            questions.push(Question::Savepoints(pipeline.clone()));
            questions.push(Question::Letters(pipeline.clone()));
            questions.push(Question::Schemas(pipeline.clone()));
            questions.push(Question::Audit(pipeline.clone(), String::new()));
        }
        for ((pipeline, branch), newest) in &self.branches {
            let (pipeline, branch) = (pipeline.clone(), branch.clone());
            questions.push(Question::Audit(pipeline.clone(), branch.clone()));
            questions.push(Question::Head(pipeline.clone(), branch.clone()));
            questions.push(Question::History(pipeline.clone(), branch.clone()));
            let sequences = 1..=newest + 1;
            questions.extend(sequences.map(|it| Question::Checkpoint(pipeline.clone(), branch.clone(), it)));
        }
        for (id, commit) in &self.commits {
            let moved = &commit.branches[0];
            let (pipeline, branch) = (commit.pipeline.clone(), moved.branch.clone());
            questions.push(Question::Resolve(pipeline.clone(), id.clone(), String::new(), 0));
            questions.push(Question::Resolve(pipeline, id.clone(), branch, moved.sequence));
            questions.push(Question::Again(id.clone()));
        }
        let tokens = self.tokens.iter().cloned();
        questions.extend(tokens.map(|(pipeline, branch, token)| Question::Token(pipeline, branch, token)));
        questions
    }

    /// Asks everything.
    pub(crate) async fn ask(&self, channel: &Channel) -> Truth {
        let mut asking = tokio::task::JoinSet::new();
        let mut answers = BTreeMap::new();
        for question in self.questions() {
            let again = match &question {
                Question::Again(id) => self.commits.get(id).cloned(),
                _ => None,
            };
            let channel = channel.clone();
            asking.spawn(async move {
                let answer = answer(channel, &question, again).await;
                (question, answer.map_err(|status| refusal(&status)))
            });
            if asking.len() >= 32 {
                answers.extend(asking.join_next().await.map(Result::unwrap));
            }
        }
        answers.extend(asking.join_all().await);
        Truth(answers)
    }
}

/// What a store answered to everything.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Truth(pub(crate) BTreeMap<Question, Answer>);

/// A question that was answered otherwise than before.
pub(crate) struct Difference {
    pub(crate) question: Question,
    pub(crate) expected: Option<Answer>,
    pub(crate) found: Option<Answer>,
}

impl Truth {
    /// Where another store answers otherwise.
    pub(crate) fn differences(&self, found: &Truth) -> Vec<Difference> {
        let questions = self.0.keys().chain(found.0.keys().filter(|question| !self.0.contains_key(question)));
        let pairs = questions.map(|question| Difference {
            question: question.clone(),
            expected: self.0.get(question).cloned(),
            found: found.0.get(question).cloned(),
        });
        pairs.filter(|pair| pair.expected != pair.found).collect()
    }

    /// Fails if another store answers otherwise.
    pub(crate) fn must_be(&self, found: &Truth, what: &str) {
        let differences = self.differences(found);
        let shown: Vec<String> = differences.iter().take(10).map(ToString::to_string).collect();
        assert!(differences.is_empty(), "{what}: {} answers differ:\n{}", differences.len(), shown.join("\n"));
    }

    /// How many answers of a damaged store are others only in saying that they, or rows of them, cannot be read: in words that
    /// `is_told` knows. Every other difference is wrong.
    pub(crate) fn beside_damage(&self, found: &Truth, is_told: &dyn Fn(&str) -> bool) -> Result<usize, String> {
        let is_refused = |it: &Difference| match (&it.expected, &it.found) {
            (_, Some(Err((reason, message)))) => reason == "CORRUPT" && is_told(message),
            // In a list, only the rows that cannot be read differ. Of one branch there may be some that are another's.
            (Some(Ok(expected)), Some(Ok(found))) => {
                let readable: Vec<&str> = found.lines().filter(|row| !is_told(row)).collect();
                let (count, mut rows) = (found.lines().count(), expected.lines());
                let is_whole = count > readable.len() && count >= expected.lines().count();
                is_whole && readable.iter().all(|row| rows.any(|it| it == *row))
            }
            _ => false,
        };
        let differences = self.differences(found);
        let wrong = differences.iter().filter(|it| !is_refused(it)).take(3).map(ToString::to_string);
        let wrong: Vec<String> = wrong.collect();
        if wrong.is_empty() { Ok(differences.len()) } else { Err(wrong.join("\n")) }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |answer: &Option<Answer>| {
            let text = format!("{answer:?}");
            text.chars().take(600).collect::<String>()
        };
        write!(f, "{:?}\n  expected {}\n  found    {}", self.question, shown(&self.expected), shown(&self.found))
    }
}

fn refusal(status: &Status) -> (String, String) {
    let reason = status.get_details_error_info().map_or_else(|| format!("{:?}", status.code()), |info| info.reason);
    // It says what time it is.
    let message = if reason == "NOT_AFTER_PASSED" { "" } else { status.message() };
    (reason, message.to_owned())
}

#[allow(clippy::too_many_lines)] // One arm for each kind.
async fn answer(channel: Channel, question: &Question, again: Option<CommitRequest>) -> Result<String, Status> {
    let mut checkpoints = CheckpointServiceClient::new(channel.clone()).max_decoding_message_size(64 << 20);
    let mut pipelines = PipelineServiceClient::new(channel.clone());
    let mut commits = CommitServiceClient::new(channel.clone());
    Ok(match question.clone() {
        Question::Pipelines => {
            let answer = checkpoints.list_pipelines(ListPipelinesRequest::default()).await?.into_inner();
            format!("{:?}", answer.pipelines)
        }
        Question::Branches => {
            let mut answer = checkpoints.list_branches(ListBranchesRequest::default()).await?.into_inner();
            for branch in &mut answer.branches {
                // Both are of this process alone.
                branch.lease.iter_mut().for_each(|lease| lease.remaining_ms = 0);
                branch.health = None;
            }
            format!("{:?}", answer.branches)
        }
        Question::Policy(pipeline) => {
            let answer = pipelines.get_policy(GetPolicyRequest { cluster: None, pipeline }).await?.into_inner();
            format!("{:?} {}", answer.policy, answer.is_set)
        }
        Question::Letters(pipeline) => {
            let mut letters = DeadLetterServiceClient::new(channel).max_decoding_message_size(64 << 20);
            let request = ListDeadLettersRequest { pipeline, page_size: 1_000, ..Default::default() };
            let answer = letters.list_dead_letters(request).await?.into_inner();
            let rows = answer.letters.iter().map(|letter| format!("{letter:?}\n")).collect::<String>();
            format!("{rows}{}", answer.open)
        }
        Question::Schemas(pipeline) => {
            let answer = pipelines.list_schemas(ListSchemasRequest { cluster: None, pipeline }).await?.into_inner();
            format!("{:?}", answer.schemas)
        }
        Question::Savepoints(pipeline) => {
            let (mut found, mut page_token) = (Vec::new(), String::new());
            loop {
                let pipeline = pipeline.clone();
                let request = ListSavepointsRequest { cluster: None, pipeline, page_size: PAGE, page_token };
                let answer = pipelines.list_savepoints(request).await?.into_inner();
                found.extend(answer.savepoints);
                page_token = answer.next_page_token;
                if page_token.is_empty() {
                    break rows(&found);
                }
            }
        }
        Question::Audit(pipeline, branch) => {
            let (mut found, mut before_lsn) = (Vec::new(), 0);
            loop {
                let (pipeline, branch) = (pipeline.clone(), branch.clone());
                let request = ListAuditRequest { cluster: None, pipeline, branch, before_lsn, page_size: PAGE };
                let answer = pipelines.list_audit(request).await?.into_inner();
                found.extend(answer.records);
                before_lsn = answer.next_before_lsn;
                if before_lsn == 0 {
                    break rows(&found);
                }
            }
        }
        Question::Head(pipeline, branch) => {
            let request = GetHeadRequest { cluster: None, pipeline, branch, without_state: false };
            shown(checkpoints.get_head(request).await?.into_inner().head)
        }
        Question::History(pipeline, branch) => {
            let (mut found, mut before_sequence) = (Vec::new(), 0);
            loop {
                let (pipeline, branch) = (pipeline.clone(), branch.clone());
                let page_size = PAGE;
                let request = ListCheckpointsRequest {
                    cluster: None,
                    pipeline,
                    branch,
                    before_sequence,
                    page_size,
                    ..ListCheckpointsRequest::default()
                };
                let answer = checkpoints.list_checkpoints(request).await?.into_inner();
                found.extend(answer.checkpoints.into_iter().map(|it| shown(Some(it))));
                before_sequence = answer.next_before_sequence;
                if before_sequence == 0 {
                    break rows(&found);
                }
            }
        }
        Question::Checkpoint(pipeline, branch, sequence) => {
            let request = GetCheckpointRequest { cluster: None, pipeline, branch, sequence, without_state: false };
            shown(checkpoints.get_checkpoint(request).await?.into_inner().checkpoint)
        }
        Question::Resolve(pipeline, commit_id, branch, sequence) => {
            let request = ResolveCommitRequest { cluster: None, pipeline, commit_id, branch, sequence };
            let answer = commits.resolve_commit(request).await?.into_inner();
            format!("{:?} at {}", answer.outcome(), answer.lsn)
        }
        Question::Token(pipeline, branch, token) => {
            let checkpoint = Some(Checkpoint::default());
            let branches =
                vec![BranchCommit { branch, token, sequence: u64::MAX, checkpoint, ..BranchCommit::default() }];
            let commit_id = "never-applied".to_owned();
            let request = CommitRequest { pipeline, commit_id, branches, ..CommitRequest::default() };
            format!("{:?}", commits.commit(request).await?)
        }
        Question::Again(id) => {
            let request = again.unwrap_or_else(|| panic!("commit {id} is known"));
            // Should the store have lost it, it is not applied now.
            let request = CommitRequest { not_after_ms: 1, ..request };
            let answer = commits.commit(request).await?.into_inner();
            format!("{:?} at {}", answer.outcome(), answer.lsn)
        }
    })
}

/// A list, one row in a line.
fn rows<T: fmt::Debug>(rows: &[T]) -> String {
    rows.iter().map(|row| format!("{row:?}\n")).collect()
}

/// A checkpoint without the length of its state.
fn shown(found: Option<StoredCheckpoint>) -> String {
    let mut found = found.expect("an answer has a checkpoint");
    if let Some(checkpoint) = &mut found.checkpoint
        && checkpoint.state.len() > 64
    {
        let mut hasher = DefaultHasher::new();
        checkpoint.state.hash(&mut hasher);
        checkpoint.state = Bytes::copy_from_slice(&hasher.finish().to_be_bytes());
    }
    format!("{found:?}")
}
