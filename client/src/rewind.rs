//! Setting a branch back ([`Rewind`]) and making one from another ([`Fork`]).

use fencepost::log::v1::fact::Kind;
use fencepost::{Lsn, Token, v1};

use crate::error::{Error, Result};
use crate::history::recorded;
use crate::once::{Done, Once};
use crate::pipeline::Branch;
use crate::rpc::pipelines;

/// Where a branch is set back to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RewindTo {
    /// A checkpoint that is kept, or 0: before the first.
    Sequence(u64),
    /// The checkpoint that this savepoint of the branch names.
    Savepoint(String),
}

/// A rewind that is about to be sent. Begin with [`Branch::rewind_to`].
#[derive(Clone, Debug)]
#[must_use = "nothing is sent before `send`"]
pub struct Rewind {
    branch: Branch,
    request: v1::RewindRequest,
    expected_head: Option<u64>,
}

/// What a rewind did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rewound {
    /// The new head; 0: the branch has none.
    pub sequence: u64,
    /// The head before. Checkpoints above the new head up to this one are abandoned.
    pub from: u64,
    /// The token that it minted, for nobody.
    pub token: Token,
    /// Who had the branch and is fenced now, with the token that is worthless now. `None`: nobody had it.
    pub fenced: Option<(String, Token)>,
}

/// A fork that is about to be sent. Begin with [`Branch::fork_to`].
#[derive(Clone, Debug)]
#[must_use = "nothing is sent before `send`"]
pub struct Fork {
    branch: Branch,
    request: v1::ForkRequest,
}

/// What a fork made.
#[derive(Clone, Debug)]
pub struct Forked {
    /// The new branch. Its checkpoint 1 is the one that was copied.
    pub branch: Branch,
    /// Which checkpoint of the source was copied.
    pub source_sequence: u64,
    /// Where the new branch begins in the log.
    pub lsn: Lsn,
}

recorded!(Rewind, Fork);

impl Branch {
    /// Sets the branch back to an earlier checkpoint and fences whoever has it. What was committed after that checkpoint is
    /// abandoned: nothing leads there any more, and its commit ids are free again. What workers wrote to sinks stays there.
    ///
    /// ```
    /// # use fencepost_client::{Client, Result, RewindTo};
    /// # async fn again(client: Client) -> Result<()> {
    /// let branch = client.pipeline("prod/orders").branch("jfk");
    /// let rewound = branch.rewind_to(RewindTo::Sequence(40)).reason("41 read a broken file").send().await?;
    /// assert_eq!(rewound.sequence, 40);
    /// # Ok(())
    /// # }
    /// ```
    pub fn rewind_to(&self, to: RewindTo) -> Rewind {
        let to = match to {
            RewindTo::Sequence(sequence) => v1::rewind_request::To::Sequence(sequence),
            RewindTo::Savepoint(name) => v1::rewind_request::To::Savepoint(name),
        };
        let request = v1::RewindRequest {
            pipeline: self.pipeline().to_owned(),
            branch: self.name().to_owned(),
            to: Some(to),
            ..Default::default()
        };
        Rewind { branch: self.clone(), request, expected_head: None }
    }

    /// Makes a branch of that name that begins with a copy of a checkpoint of this one, by default of the head. Nobody
    /// holds it, and this branch is not touched.
    ///
    /// ```
    /// # use fencepost_client::{Client, Result};
    /// # async fn rehearse(client: Client) -> Result<()> {
    /// let branch = client.pipeline("prod/orders").branch("jfk");
    /// let forked = branch.fork_to("jfk").pipeline("test/orders").savepoint("before-v2").send().await?;
    /// assert_eq!(forked.branch.head().await?.sequence(), 1);
    /// # Ok(())
    /// # }
    /// ```
    pub fn fork_to(&self, branch: impl Into<String>) -> Fork {
        let request = v1::ForkRequest {
            source_pipeline: self.pipeline().to_owned(),
            source_branch: self.name().to_owned(),
            pipeline: self.pipeline().to_owned(),
            branch: branch.into(),
            ..Default::default()
        };
        Fork { branch: self.clone(), request }
    }
}

impl Rewind {
    /// The head that the decision was made on: if the branch has another one by then, the rewind is refused with
    /// `HEAD_MISMATCH`. Default: the head at the time of sending.
    pub fn expected_head(mut self, sequence: u64) -> Rewind {
        self.expected_head = Some(sequence);
        self
    }

    /// Sends it until it is answered. Needs a [`Rewind::reason`].
    ///
    /// After an error whose [`Error::applied`] is unknown, look at the head before anything else is done: the branch may
    /// have been set back.
    pub async fn send(self) -> Result<Rewound> {
        let Rewind { branch, mut request, expected_head } = self;
        if request.reason.is_empty() {
            let problem = "a rewind needs a reason, which is kept in the log: add `.reason(\"..\")`".to_owned();
            return Err(Error::Invalid { field: "reason", problem });
        }
        request.expected_head = match expected_head {
            Some(head) => head,
            None => branch.head_sequence().await?,
        };
        let from = request.expected_head;
        let call = Once::begin(branch.client(), branch.pipeline(), branch.name()).await?;
        let asked = request.clone();
        let done = call
            .send(
                request,
                |channel, request| async move { pipelines(channel).rewind(request).await },
                |kind| did_rewind(kind, &asked),
            )
            .await?;
        let answer = match done {
            Done::Answered(answer) => answer,
            Done::Found(_, answer) => answer,
        };
        let fenced = (!answer.previous_holder.is_empty())
            .then(|| (answer.previous_holder, Token::from_u64(answer.previous_token)));
        Ok(Rewound { sequence: answer.sequence, from, token: Token::from_u64(answer.token), fenced })
    }
}

impl Fork {
    /// Makes the branch in this pipeline, which need not exist. Default: the source's.
    pub fn pipeline(mut self, pipeline: impl Into<String>) -> Fork {
        self.request.pipeline = pipeline.into();
        self
    }

    /// From this checkpoint, which must be kept still.
    pub fn sequence(mut self, sequence: u64) -> Fork {
        self.request.from = Some(v1::fork_request::From::Sequence(sequence));
        self
    }

    /// From the checkpoint that this savepoint of the source branch names.
    pub fn savepoint(mut self, name: impl Into<String>) -> Fork {
        self.request.from = Some(v1::fork_request::From::Savepoint(name.into()));
        self
    }

    /// Sends it until it is answered. A branch of that name that this call did not make is refused with `EXISTS`.
    ///
    /// After an error whose [`Error::applied`] is unknown the branch may be there; [`Branch::audit`] of it tells who made it.
    pub async fn send(self) -> Result<Forked> {
        let Fork { branch: source, request } = self;
        let branch = source.client().pipeline(&request.pipeline).branch(&request.branch);
        let call = Once::begin(branch.client(), branch.pipeline(), branch.name()).await?;
        let asked = request.clone();
        let done = call
            .send(
                request,
                |channel, request| async move { pipelines(channel).fork(request).await },
                |kind| did_fork(kind, &asked),
            )
            .await?;
        let (source_sequence, lsn) = match done {
            Done::Answered(answer) => (answer.source_sequence, answer.lsn),
            Done::Found(lsn, answer) => (answer.source_sequence, lsn.as_u64()),
        };
        Ok(Forked { branch, source_sequence, lsn: Lsn::from_u64(lsn) })
    }
}

/// What the server would have answered, if this fact is what the request asked for.
fn did_rewind(kind: Kind, asked: &v1::RewindRequest) -> Option<v1::RewindResponse> {
    let Kind::Rewound(fact) = kind else { return None };
    let is_target = match &asked.to {
        Some(v1::rewind_request::To::Savepoint(name)) => fact.savepoint == *name,
        Some(v1::rewind_request::To::Sequence(sequence)) => fact.to_sequence == *sequence,
        None => false,
    };
    let is_it = is_target
        && fact.from_sequence == asked.expected_head
        && fact.actor == asked.actor
        && fact.reason == asked.reason;
    is_it.then_some(v1::RewindResponse {
        header: None,
        sequence: fact.to_sequence,
        token: fact.token,
        previous_holder: fact.previous_holder,
        previous_token: fact.previous_token,
    })
}

/// The same for a fork. A fork from a savepoint or from the head may have been from any sequence.
fn did_fork(kind: Kind, asked: &v1::ForkRequest) -> Option<v1::ForkResponse> {
    let Kind::Forked(fact) = kind else { return None };
    let is_source = match asked.from {
        Some(v1::fork_request::From::Sequence(sequence)) if sequence != 0 => fact.source_sequence == sequence,
        _ => true,
    };
    let is_it = is_source
        && fact.source_pipeline == asked.source_pipeline
        && fact.source_branch == asked.source_branch
        && fact.actor == asked.actor
        && fact.reason == asked.reason;
    is_it.then_some(v1::ForkResponse { header: None, source_sequence: fact.source_sequence, lsn: 0 })
}
