//! Facts about what branches do together, and beside their commits: stages, barriers, dead letters, schemas, fences.

use bytes::Bytes;
use fencepost::log::v1::fact::Kind;
use fencepost::log::v1::{
    AbortedParticipant, BarrierAborted, BarrierArrived, BarrierOpened, BarrierRef, DeadLettersDiscarded, GroupFenced,
    SchemaDeclared, Staged, StagedDiscarded,
};
use fencepost::v1::{Checkpoint, DeadLetter, DeadLetterId, Merge, MergeInput, Schema};
use fencepost_server::state::{Branch, State};

use crate::input::Input;

/// How many kinds there are.
pub const KINDS: u8 = 8;
const BARRIERS: [&str; 3] = ["monday", "tuesday", ""];

/// Where something is staged in this branch; 0: nowhere.
pub fn staged_lsn(state: &State, pipeline: &str, branch: &str) -> u64 {
    state.branch(pipeline, branch).and_then(Branch::staged).map_or(0, |staged| staged.lsn.as_u64())
}

/// A barrier, most often one that is open.
pub fn barrier(state: &State, pipeline: &str, input: &mut Input<'_>) -> BarrierRef {
    let name = input.one_of(&BARRIERS).to_owned();
    let open = state.pipeline(pipeline).into_iter().flat_map(fencepost_server::state::Pipeline::open_barriers);
    let opened = open.into_iter().find(|(open, _)| *open == name).map_or(1, |(_, barrier)| barrier.opened.as_u64());
    BarrierRef { name, opened_lsn: input.number(opened) }
}

/// Up to three.
pub fn letters(input: &mut Input<'_>) -> Vec<DeadLetter> {
    let letter = DeadLetter { payload: Bytes::from_static(b"x"), reason: "y".to_owned(), ..DeadLetter::default() };
    vec![letter; usize::from(input.byte() & 3)]
}

/// Up to three, most often open ones.
pub fn letter_ids(state: &State, pipeline: &str, input: &mut Input<'_>) -> Vec<DeadLetterId> {
    let open = state.pipeline(pipeline).into_iter().flat_map(|it| it.dead_letters_from(DeadLetterId::default()));
    let open: Vec<DeadLetterId> = open.map(|(id, ..)| id).take(3).collect();
    (0..input.byte() & 3)
        .map(|place| {
            let id = open.get(usize::from(place)).copied().unwrap_or_default();
            DeadLetterId { lsn: input.number(id.lsn), number: id.number }
        })
        .collect()
}

/// From what a commit was merged, now and then.
pub fn merge(input: &mut Input<'_>, branch: &str, lsn: u64) -> Option<Merge> {
    let shape = input.byte();
    let from = MergeInput { branch: branch.to_owned(), sequence: input.number(1), lsn: input.number(lsn) };
    (shape & 7 == 7).then(|| Merge {
        inputs: vec![from; usize::from(shape >> 6)],
        function: "latest".to_owned(),
        version: "1".to_owned(),
        output_digest: Bytes::from(vec![shape; usize::from(shape >> 5)]),
    })
}

/// One of the kinds.
pub fn kind(choice: u8, state: &State, pipeline: &str, branch: &str, input: &mut Input<'_>) -> Kind {
    let known = state.branch(pipeline, branch);
    let token = known.and_then(Branch::lease).map_or(0, |grant| grant.token.as_u64());
    let sequence = known.and_then(Branch::head).map_or(0, |head| head.sequence).saturating_add(1);
    let staged_lsn = staged_lsn(state, pipeline, branch);
    let stage_id = format!("{}", input.byte() & 3);
    let (in_pipeline, in_branch) = (pipeline.to_owned(), branch.to_owned());
    let (actor, reason) = ("someone".to_owned(), "because".to_owned());
    match choice {
        0 => Kind::Staged(Staged {
            pipeline: in_pipeline,
            branch: in_branch,
            sequence: input.number(sequence),
            token: input.number(token),
            stage_id,
            digest: Bytes::from(vec![input.byte() & 1; if input.byte() == 1 { 15 } else { 16 }]),
            checkpoint: (input.byte() != 1).then(Checkpoint::default),
            dead_letters: letters(input),
            ..Staged::default()
        }),
        1 => Kind::StagedDiscarded(StagedDiscarded {
            pipeline: in_pipeline,
            branch: in_branch,
            token: input.number(token),
            staged_lsn: input.number(staged_lsn),
            stage_id,
            reason,
        }),
        2 => Kind::BarrierOpened(BarrierOpened {
            pipeline: in_pipeline,
            name: input.one_of(&BARRIERS).to_owned(),
            participants: ["ewr", "jfk", "lga"][..usize::from(input.byte() & 3)]
                .iter()
                .map(ToString::to_string)
                .collect(),
            deadline_ms: input.number(0),
            actor,
            reason,
        }),
        3 => Kind::BarrierArrived(BarrierArrived {
            pipeline: in_pipeline,
            barrier: (input.byte() != 1).then(|| barrier(state, pipeline, input)),
            branch: in_branch,
            token: input.number(token),
            staged_lsn: input.number(staged_lsn),
        }),
        4 => {
            let gone = AbortedParticipant { branch: in_branch, staged_lsn, ..AbortedParticipant::default() };
            Kind::BarrierAborted(BarrierAborted {
                pipeline: in_pipeline,
                barrier: (input.byte() != 1).then(|| barrier(state, pipeline, input)),
                actor,
                reason,
                participants: vec![gone; usize::from(input.byte() & 1)],
            })
        }
        5 => Kind::DeadLettersDiscarded(DeadLettersDiscarded {
            pipeline: in_pipeline,
            letters: letter_ids(state, pipeline, input),
            actor,
            reason,
        }),
        6 => {
            let schema = Schema {
                fingerprint: Bytes::from(vec![input.byte() & 3; 2]),
                name: stage_id,
                successor_of: Bytes::from(vec![input.byte() & 3; 2]),
            };
            let schema = (input.byte() != 1).then_some(schema);
            Kind::SchemaDeclared(SchemaDeclared { pipeline: in_pipeline, schema, actor, reason })
        }
        _ => {
            let minted = state.last_token().as_u64().saturating_add(1).max(state.generation().wrapping_shl(48) | 1);
            let (token, leases) = (input.number(minted), input.number(1));
            Kind::GroupFenced(GroupFenced { pipeline: in_pipeline, token, leases, actor, reason })
        }
    }
}
