//! What workers and operators send in the model.

use fencepost::v1::Takeover;

/// What a worker says of its rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rows {
    pub(crate) read: u64,
    pub(crate) written: u64,
    pub(crate) filtered: u64,
}

/// What a commit gives a branch.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum What {
    /// A checkpoint of its own, which says this.
    Fresh(String),
    /// What is staged under this id.
    Staged(String),
}

/// One branch of a commit, or what is staged.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Part {
    pub(crate) branch: String,
    pub(crate) token: u64,
    pub(crate) sequence: u64,
    pub(crate) what: What,
    pub(crate) rows: Rows,
    /// Skipped records, each with a name that no other has.
    pub(crate) letters: Vec<String>,
    /// Skipped records that were processed after all.
    pub(crate) replayed: Vec<String>,
}

impl Part {
    pub(crate) fn content(&self) -> String {
        match &self.what {
            What::Fresh(content) => content.clone(),
            What::Staged(id) => format!("what was staged as {id}"),
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Request {
    Resume { branch: String, request_id: String, holder: String, takeover: Takeover, is_silent: bool },
    Release { branch: String, token: u64 },
    Commit { id: String, parts: Vec<Part> },
    Stage { part: Part, id: String },
    Discard { branch: String, token: u64, id: String },
    Open { name: String, participants: Vec<String>, timeout_ms: u64 },
    Arrive { barrier: String, branch: String, token: u64, id: String },
    Abort { barrier: String },
    Merge { id: String, part: Part, inputs: Vec<(String, u64)>, digest: String },
    DiscardLetters { letters: Vec<String> },
    Rewind { branch: String, to: u64, expected: u64 },
    Fork { from: String, sequence: u64, to: String },
    Fence,
}

impl Request {
    /// What a commit says, whoever sends it.
    pub(crate) fn content_of(parts: &[Part]) -> String {
        let of = |part: &Part| {
            format!("{}@{}: {} {:?} {:?};", part.branch, part.sequence, part.content(), part.letters, part.replayed)
        };
        parts.iter().map(of).collect()
    }
}

impl Request {
    /// The branch that it is about, or the first of them.
    pub(crate) fn branch(&self) -> &str {
        match self {
            Request::Resume { branch, .. }
            | Request::Release { branch, .. }
            | Request::Discard { branch, .. }
            | Request::Arrive { branch, .. }
            | Request::Rewind { branch, .. } => branch,
            Request::Commit { parts, .. } => &parts[0].branch,
            Request::Stage { part, .. } | Request::Merge { part, .. } => &part.branch,
            Request::Fork { from, .. } => from,
            Request::Open { .. } | Request::Abort { .. } | Request::DiscardLetters { .. } | Request::Fence => "",
        }
    }

    /// What it is, in one word.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Request::Resume { .. } => "resume",
            Request::Release { .. } => "release",
            Request::Commit { parts, .. } if matches!(parts[0].what, What::Staged(_)) => "commit staged",
            Request::Commit { .. } => "commit",
            Request::Stage { .. } => "stage",
            Request::Discard { .. } => "discard",
            Request::Open { .. } => "open",
            Request::Arrive { .. } => "arrive",
            Request::Abort { .. } => "abort",
            Request::Merge { .. } => "merge",
            Request::DiscardLetters { .. } => "discard letters",
            Request::Rewind { .. } => "rewind",
            Request::Fork { .. } => "fork",
            Request::Fence => "fence",
        }
    }
}
