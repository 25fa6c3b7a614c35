//! The state as records that can be written down, and made again from them.
//!
//! Knows no files: framing and checksums are the log's. What is read is checked for being whole and in order; whatever is
//! not is refused, and the state is made from the log instead.

mod extra;

use std::collections::BTreeMap;
use std::mem;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use fencepost::log::v1::branch_state::Standing as WrittenStanding;
use fencepost::log::v1::state_record::Record;
use fencepost::log::v1::{
    BranchState, PipelineState, SavepointState, StateEnd, StateHeader, StateRecord, TimesState, WindowState,
};
use fencepost::{Lsn, Token};

use super::lease::Standing;
use super::pipeline::Origin;
use super::rewind::Rewinds;
use super::window::WindowEntry;
use super::{Branch, Digest, Grant, Head, Pipeline, PolicyInForce, Savepoint, State};

/// The version of these records. A file of another one is not read but made again from the log.
const FORMAT: u32 = 1;

/// Remembered commits, and times, in one record.
const CHUNK: usize = 1_000;

/// Bytes of a remembered commit.
const WINDOW_ENTRY_BYTES: usize = 48;

/// Why records do not give a state.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadRecord {
    /// One does not fit those before it.
    #[error("record {number} of the hot state {what}: it is made again from the log")]
    Unfit {
        /// Which, counted from 0.
        number: u64,
        /// What is wrong.
        what: String,
    },
    /// Another version wrote them.
    #[error("the hot state has format {found}, and this version reads format {FORMAT}")]
    OtherFormat {
        /// The format that they have.
        found: u32,
    },
}

impl State {
    /// The whole state, record by record, in an order that [`StateLoader`] takes.
    pub fn records(&self) -> impl Iterator<Item = StateRecord> {
        let header = Record::Header(StateHeader {
            format: FORMAT,
            cluster_id: self.cluster_id.clone(),
            generation: self.generation,
            last_token: self.last_token.as_u64(),
            applied_lsn: self.applied.as_u64(),
            generation_lsns: self.generations.iter().map(|lsn| lsn.as_u64()).collect(),
        });
        let mut records = 0;
        let pipelines = self.pipelines.iter().flat_map(|(name, of)| pipeline(name, of));
        let mut body = std::iter::once(header).chain(pipelines).fuse();
        let mut is_over = false;
        std::iter::from_fn(move || {
            if let Some(record) = body.next() {
                records += 1;
                return Some(record);
            }
            (!mem::replace(&mut is_over, true)).then(|| {
                Record::End(StateEnd {
                    records,
                    pipelines: self.pipelines.len() as u64,
                    branches: self.branches,
                    applied_lsn: self.applied.as_u64(),
                })
            })
        })
        .map(|record| StateRecord { record: Some(record) })
    }
}

fn pipeline<'a>(name: &str, pipeline: &'a Pipeline) -> impl Iterator<Item = Record> + use<'a> {
    let (importing, imported) = match &pipeline.origin {
        Origin::Here => (Bytes::new(), Bytes::new()),
        Origin::Importing(digest) => (digest.clone(), Bytes::new()),
        Origin::Imported(digest) => (Bytes::new(), digest.clone()),
    };
    let policy = pipeline.policy();
    let own = Record::Pipeline(PipelineState {
        name: name.to_owned(),
        commits: pipeline.window.newest(),
        last_committed_at_ms: pipeline.last_committed_at_ms,
        last_rewound_lsn: pipeline.last_rewound.as_u64(),
        policy: policy.map(|set| set.policy),
        policy_lsn: policy.map_or(0, |set| set.lsn.as_u64()),
        policy_set_at_ms: policy.map_or(0, |set| set.set_at_ms),
        importing,
        imported,
        last_fenced_lsn: pipeline.last_fenced.as_u64(),
    });
    let mut remembered = pipeline.window.entries();
    let window = std::iter::from_fn(move || {
        let mut commits = BytesMut::new();
        for entry in remembered.by_ref().take(CHUNK) {
            commits.put_slice(&entry.key);
            commits.put_slice(&entry.digest);
            commits.put_u64_le(entry.lsn.as_u64());
            commits.put_u64_le(entry.number);
        }
        (!commits.is_empty()).then(|| Record::Window(WindowState { commits: commits.freeze() }))
    });
    let savepoints = pipeline.savepoints.iter().map(|(name, savepoint)| {
        Record::Savepoint(SavepointState {
            name: name.to_owned(),
            branch: savepoint.branch.clone(),
            sequence: savepoint.sequence,
            lsn: savepoint.lsn.as_u64(),
            committed_at_ms: savepoint.committed_at_ms,
            created_lsn: savepoint.created.as_u64(),
            created_at_ms: savepoint.created_at_ms,
        })
    });
    let branches = pipeline.branches.iter().flat_map(|(name, branch)| {
        let mut times = branch.past.iter().flat_map(|past| past.times.iter()).flat_map(|(at, ms)| [at, ms]);
        let times = std::iter::from_fn(move || {
            let times: Vec<u64> = times.by_ref().take(2 * CHUNK).collect();
            (!times.is_empty()).then_some(Record::Times(TimesState { times }))
        });
        std::iter::once(Record::Branch(written(name, branch))).chain(times)
    });
    std::iter::once(own).chain(window).chain(savepoints).chain(extra::written(pipeline)).chain(branches)
}

fn written(name: &str, branch: &Branch) -> BranchState {
    let rewinds = branch.rewinds().into_iter().flat_map(Rewinds::iter);
    let mut written = BranchState {
        name: name.to_owned(),
        sequence: branch.head.sequence,
        lsn: branch.head.lsn.as_u64(),
        committed_at_ms: branch.head.committed_at_ms,
        retained_from: branch.retained_from,
        granted_before: branch
            .granted_before
            .iter()
            .flat_map(|(request, token)| {
                let (head, tail) = halves(request);
                [head, tail, token.as_u64()]
            })
            .collect(),
        rewinds: rewinds.flat_map(|(lsn, to)| [lsn.as_u64(), to]).collect(),
        staged: branch.staged().map(extra::written_staged),
        schema: branch.past.as_deref().map(|past| past.schema.clone()).unwrap_or_default(),
        scope: branch.past.as_deref().and_then(|past| past.scope).map(extra::written_digest).unwrap_or_default(),
        staged_at_lsn: branch.past.as_deref().map_or(0, |past| past.staged_at.as_u64()),
        ..BranchState::default()
    };
    if let Some(grant) = branch.last_grant() {
        (written.request_head, written.request_tail) = halves(&grant.request);
        written.token = grant.token.as_u64();
        written.holder = grant.holder.to_string();
        written.granted_lsn = grant.lsn.as_u64();
        written.granted_at_ms = grant.granted_at_ms;
        written.ttl_ms = grant.ttl_ms;
        written.lock_delay_ms = grant.lock_delay_ms;
        written.set_standing(match grant.standing {
            Standing::InForce => WrittenStanding::InForce,
            Standing::Released => WrittenStanding::Released,
            Standing::Rewound => WrittenStanding::Rewound,
            Standing::Ended => WrittenStanding::Ended,
            Standing::Fenced => WrittenStanding::Fenced,
        });
    }
    written
}

/// Makes a state from its records.
#[derive(Default)]
pub struct StateLoader {
    records: u64,
    header: Option<StateHeader>,
    pipelines: Vec<(Box<str>, Pipeline)>,
    /// Of the newest pipeline. Maps are made from sorted rows at once: that is several times as fast as row by row.
    branches: Vec<(Box<str>, Branch)>,
    branch_count: u64,
    leases: u64,
    end: Option<StateEnd>,
}

impl StateLoader {
    /// Takes the next record.
    pub fn push(&mut self, record: StateRecord) -> Result<(), BadRecord> {
        let number = self.records;
        if let (Some(Record::Header(header)), None) = (&record.record, &self.header)
            && header.format != FORMAT
        {
            return Err(BadRecord::OtherFormat { found: header.format });
        }
        self.take(record.record).map_err(|what| BadRecord::Unfit { number, what })?;
        self.records += 1;
        Ok(())
    }

    /// The state, if its records were all there.
    pub fn finish(mut self) -> Result<State, BadRecord> {
        let bad = |what: &str| BadRecord::Unfit { number: self.records, what: what.to_owned() };
        let (Some(header), Some(_)) = (self.header.take(), &self.end) else { return Err(bad("is missing")) };
        let deadlines = self.pipelines.iter().flat_map(|(pipeline, of)| {
            let open = of.open_barriers().filter(|(_, barrier)| barrier.deadline_ms != 0);
            open.map(move |(name, barrier)| (barrier.deadline_ms, pipeline.clone(), name.into()))
        });
        Ok(State {
            deadlines: deadlines.collect(),
            cluster_id: header.cluster_id,
            generation: header.generation,
            generations: header.generation_lsns.into_iter().map(Lsn::from_u64).collect(),
            last_token: Token::from_u64(header.last_token),
            applied: Lsn::from_u64(header.applied_lsn),
            pipelines: self.pipelines.into_iter().collect(),
            branches: self.branch_count,
            leases: self.leases,
        })
    }

    fn take(&mut self, record: Option<Record>) -> Result<(), String> {
        if self.end.is_some() {
            return Err("comes after the end".to_owned());
        }
        match (record, &self.header) {
            (Some(Record::Header(header)), None) => self.header = Some(header),
            (_, None) => return Err("comes before the header".to_owned()),
            (Some(Record::Pipeline(pipeline)), _) => self.pipeline(pipeline)?,
            (Some(Record::Window(window)), _) => self.window(window.commits)?,
            (Some(Record::Savepoint(savepoint)), _) => self.savepoint(savepoint)?,
            (Some(Record::Branch(branch)), _) => self.branch(branch)?,
            (Some(Record::Barrier(barrier)), _) => extra::barrier(open(&mut self.pipelines)?, barrier),
            (Some(Record::Merges(merges)), _) => extra::merges(open(&mut self.pipelines)?, merges)?,
            (Some(Record::DeadLetters(letters)), _) => extra::dead_letters(open(&mut self.pipelines)?, letters),
            (Some(Record::Schemas(schemas)), _) => {
                let of = open(&mut self.pipelines)?;
                schemas.schemas.into_iter().for_each(|schema| of.schemas.insert(schema));
            }
            (Some(Record::Times(TimesState { times })), _) => {
                let (_, branch) = self.branches.last_mut().ok_or("has times of no branch")?;
                let pairs = times.as_chunks().0.iter();
                branch.change_past(|past| pairs.for_each(|[sequence, at_ms]| past.times.push(*sequence, *at_ms)));
            }
            (Some(Record::End(end)), Some(header)) => {
                let applied_lsn = header.applied_lsn;
                self.close_pipeline();
                let (records, pipelines) = (self.records, self.pipelines.len() as u64);
                let counted = StateEnd { records, pipelines, branches: self.branch_count, applied_lsn };
                if end != counted {
                    return Err(format!("says {end:?} where {counted:?} came before"));
                }
                self.end = Some(end);
            }
            (Some(Record::Header(_)), Some(_)) => return Err("is another header".to_owned()),
            (None, _) => return Err("is of an unknown kind".to_owned()),
        }
        Ok(())
    }

    fn pipeline(&mut self, written: PipelineState) -> Result<(), String> {
        self.close_pipeline();
        in_order(&self.pipelines, &written.name)?;
        let policy = written.policy.map(|policy| {
            let (lsn, set_at_ms) = (Lsn::from_u64(written.policy_lsn), written.policy_set_at_ms);
            Box::new(PolicyInForce { policy, lsn, set_at_ms })
        });
        let origin = match (written.importing.is_empty(), written.imported.is_empty()) {
            (true, true) => Origin::Here,
            (false, _) => Origin::Importing(Bytes::copy_from_slice(&written.importing)),
            (true, false) => Origin::Imported(Bytes::copy_from_slice(&written.imported)),
        };
        let mut pipeline = Pipeline {
            last_committed_at_ms: written.last_committed_at_ms,
            last_rewound: Lsn::from_u64(written.last_rewound_lsn),
            last_fenced: Lsn::from_u64(written.last_fenced_lsn),
            policy,
            origin,
            ..Pipeline::default()
        };
        pipeline.window.advance(written.commits);
        self.pipelines.push((written.name.into(), pipeline));
        Ok(())
    }

    fn window(&mut self, mut commits: Bytes) -> Result<(), String> {
        let pipeline = open(&mut self.pipelines)?;
        while commits.len() >= WINDOW_ENTRY_BYTES {
            let (mut key, mut digest) = (Digest::default(), Digest::default());
            commits.copy_to_slice(&mut key);
            commits.copy_to_slice(&mut digest);
            let (lsn, number) = (Lsn::from_u64(commits.get_u64_le()), commits.get_u64_le());
            if number > pipeline.window.newest() {
                return Err(format!("has commit {number} of {}", pipeline.window.newest()));
            }
            pipeline.window.restore(WindowEntry { key, digest, lsn, number });
        }
        Ok(())
    }

    fn savepoint(&mut self, written: SavepointState) -> Result<(), String> {
        let savepoint = Savepoint {
            branch: written.branch,
            sequence: written.sequence,
            lsn: Lsn::from_u64(written.lsn),
            committed_at_ms: written.committed_at_ms,
            created: Lsn::from_u64(written.created_lsn),
            created_at_ms: written.created_at_ms,
        };
        open(&mut self.pipelines)?.savepoints.insert(&written.name, savepoint);
        Ok(())
    }

    fn branch(&mut self, written: BranchState) -> Result<(), String> {
        open(&mut self.pipelines)?;
        in_order(&self.branches, &written.name)?;
        let (standing, request) = (written.standing(), whole(written.request_head, written.request_tail));
        let standing = match standing {
            WrittenStanding::Unspecified | WrittenStanding::InForce => Standing::InForce,
            WrittenStanding::Released => Standing::Released,
            WrittenStanding::Rewound => Standing::Rewound,
            WrittenStanding::Ended => Standing::Ended,
            WrittenStanding::Fenced => Standing::Fenced,
        };
        let grant = (written.token != 0).then(|| {
            Box::new(Grant {
                token: Token::from_u64(written.token),
                holder: written.holder.into(),
                lsn: Lsn::from_u64(written.granted_lsn),
                granted_at_ms: written.granted_at_ms,
                ttl_ms: written.ttl_ms,
                lock_delay_ms: written.lock_delay_ms,
                request,
                standing,
            })
        });
        let before = written.granted_before.as_chunks().0.iter();
        let mut branch = Branch {
            head: Head {
                sequence: written.sequence,
                lsn: Lsn::from_u64(written.lsn),
                committed_at_ms: written.committed_at_ms,
            },
            retained_from: written.retained_from,
            grant,
            granted_before: before.map(|[head, tail, token]| (whole(*head, *tail), Token::from_u64(*token))).collect(),
            past: None,
        };
        if !written.rewinds.is_empty() {
            let rewinds = written.rewinds.as_chunks().0.iter();
            branch.change_past(|past| rewinds.for_each(|[lsn, to]| past.rewinds.push(Lsn::from_u64(*lsn), *to)));
        }
        if !written.schema.is_empty() || written.staged.is_some() {
            let staged = written.staged.map(extra::read_staged).transpose()?.map(Box::new);
            let schema = Bytes::copy_from_slice(&written.schema);
            branch.change_past(|past| (past.staged, past.schema) = (staged, schema));
        }
        branch.describe_head(extra::read_digest(&written.scope)?, Lsn::from_u64(written.staged_at_lsn));
        self.branches.push((written.name.into(), branch));
        Ok(())
    }

    fn close_pipeline(&mut self) {
        let Some((_, pipeline)) = self.pipelines.last_mut() else { return };
        let branches = mem::take(&mut self.branches);
        pipeline.leases = branches.iter().filter(|(_, branch)| branch.lease().is_some()).count() as u64;
        self.leases += pipeline.leases;
        self.branch_count += branches.len() as u64;
        let staged = branches.iter().filter_map(|(_, branch)| branch.staged());
        pipeline.dead.staged = staged.map(|staged| u64::from(staged.dead_letters)).sum();
        pipeline.branches = BTreeMap::from_iter(branches);
    }
}

/// The pipeline that records of a pipeline belong to.
fn open(pipelines: &mut [(Box<str>, Pipeline)]) -> Result<&mut Pipeline, String> {
    pipelines.last_mut().map(|(_, pipeline)| pipeline).ok_or_else(|| "belongs to no pipeline".to_owned())
}

fn in_order<T>(rows: &[(Box<str>, T)], name: &str) -> Result<(), String> {
    match rows.last() {
        Some((last, _)) if **last >= *name => Err(format!("is of '{name}', which does not come after '{last}'")),
        _ => Ok(()),
    }
}

fn halves(digest: &Digest) -> (u64, u64) {
    let whole = u128::from_be_bytes(*digest);
    ((whole >> 64) as u64, whole as u64)
}

fn whole(head: u64, tail: u64) -> Digest {
    (u128::from(head) << 64 | u128::from(tail)).to_be_bytes()
}
