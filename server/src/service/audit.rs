//! Facts as records of who did what, when and why.

use fencepost::log::v1::fact::Kind;
use fencepost::log::v1::{Fact, LeaseGranted, Rewound};
use fencepost::v1::audit_record::Action;
use fencepost::v1::{AuditRecord, DeadLetterId, Policy, Schema, Takeover};
use fencepost::{Lsn, Token};

use super::barrier::missing;
use crate::state::{named, shown_fingerprint, with_defaults};

/// The fact as a record; `None` of one that is not listed.
pub(super) fn record(lsn: Lsn, fact: Fact) -> Option<AuditRecord> {
    let mut record = AuditRecord { lsn: lsn.as_u64(), at_ms: fact.at_ms, ..AuditRecord::default() };
    match fact.kind? {
        Kind::LeaseGranted(granted) => {
            record.detail = grant(&granted);
            let is_takeover = granted.previous_silent_ms.is_some();
            record.set_action(if is_takeover { Action::LeaseTakenOver } else { Action::LeaseGranted });
            record.sequence = granted.resumed_sequence;
            record.token = granted.token;
            (record.branch, record.actor, record.reason) = (granted.branch, granted.holder, granted.reason);
        }
        Kind::Rewound(rewound) => {
            record.set_action(Action::Rewound);
            record.detail = rewind(&rewound);
            record.sequence = rewound.to_sequence;
            record.token = rewound.token;
            (record.branch, record.actor, record.reason) = (rewound.branch, rewound.actor, rewound.reason);
        }
        Kind::Forked(forked) => {
            record.set_action(Action::Forked);
            record.detail = format!(
                "from checkpoint {} of branch '{}' of '{}'",
                forked.source_sequence, forked.source_branch, forked.source_pipeline
            );
            record.sequence = forked.source_sequence;
            (record.branch, record.actor, record.reason) = (forked.branch, forked.actor, forked.reason);
        }
        Kind::SavepointCreated(created) => {
            record.set_action(Action::SavepointCreated);
            record.detail = format!("savepoint '{}'", created.name);
            record.sequence = created.sequence;
            (record.branch, record.actor, record.reason) = (created.branch, created.actor, created.reason);
        }
        Kind::SavepointDeleted(deleted) => {
            record.set_action(Action::SavepointDeleted);
            record.detail = format!("savepoint '{}'", deleted.name);
            record.sequence = deleted.sequence;
            (record.branch, record.actor, record.reason) = (deleted.branch, deleted.actor, deleted.reason);
        }
        Kind::PolicySet(set) => {
            record.set_action(Action::PolicySet);
            record.detail = policy(set.policy.as_ref());
            (record.actor, record.reason) = (set.actor, set.reason);
        }
        Kind::ImportStarted(started) => {
            record.set_action(Action::Imported);
            let (pipeline, cluster) = (&started.source_pipeline, &started.source_cluster_id);
            record.detail = format!("from '{pipeline}' of cluster {cluster}");
            (record.actor, record.reason) = (started.actor, started.reason);
        }
        Kind::GenerationStarted(started) => {
            record.set_action(Action::GenerationStarted);
            let kept = Lsn::from_u64(started.kept_lsn);
            record.detail = format!("generation {}; the last fact before it is at LSN {kept}", started.generation);
            (record.actor, record.reason) = (started.actor, started.reason);
        }
        kind => return of_parallel(kind, record),
    }
    Some(record)
}

/// The rest: what there is to do with branches that go side by side.
fn of_parallel(kind: Kind, mut record: AuditRecord) -> Option<AuditRecord> {
    match kind {
        Kind::StagedDiscarded(discarded) => {
            record.set_action(Action::StagedDiscarded);
            record.detail = format!("'{}', staged at LSN {}", discarded.stage_id, Lsn::from_u64(discarded.staged_lsn));
            record.token = discarded.token;
            (record.branch, record.reason) = (discarded.branch, discarded.reason);
        }
        Kind::BarrierOpened(opened) => {
            record.set_action(Action::BarrierOpened);
            let participants = named(opened.participants.iter().map(String::as_str));
            record.detail = format!("barrier '{}' of {participants}", opened.name);
            (record.actor, record.reason) = (opened.actor, opened.reason);
        }
        Kind::BarrierAborted(aborted) => {
            record.set_action(Action::BarrierAborted);
            let name = aborted.barrier.as_ref().map(|barrier| barrier.name.as_str()).unwrap_or_default();
            record.detail = format!("barrier '{name}'; {}", missing(&aborted));
            (record.actor, record.reason) = (aborted.actor, aborted.reason);
        }
        Kind::DeadLettersDiscarded(discarded) => {
            record.set_action(Action::DeadLettersDiscarded);
            record.detail = letters(&discarded.letters);
            (record.actor, record.reason) = (discarded.actor, discarded.reason);
        }
        Kind::SchemaDeclared(declared) => {
            record.set_action(Action::SchemaDeclared);
            record.detail = declared.schema.as_ref().map(schema).unwrap_or_default();
            (record.actor, record.reason) = (declared.actor, declared.reason);
        }
        Kind::GroupFenced(fenced) => {
            record.set_action(Action::GroupFenced);
            record.detail = format!("{} leases ended", fenced.leases);
            record.token = fenced.token;
            (record.actor, record.reason) = (fenced.actor, fenced.reason);
        }
        _ => return None,
    }
    Some(record)
}

fn grant(granted: &LeaseGranted) -> String {
    let LeaseGranted { previous_holder, previous_silent_ms, .. } = granted;
    let token = Token::from_u64(granted.previous_token);
    let mode = if granted.takeover() == Takeover::Force { ", by force" } else { "" };
    let from = match previous_silent_ms {
        Some(ms) => format!("from '{previous_holder}' (token {token}), which had been silent for {ms} ms{mode}"),
        None if previous_holder.is_empty() => String::new(),
        None => format!("after '{previous_holder}' (token {token}), which did not have it any more"),
    };
    let accepted = granted.accepted_scope.join(", ");
    let accepted = if accepted.is_empty() { accepted } else { format!("another scope was meant: {accepted}") };
    [from, accepted].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("; ")
}

fn rewind(rewound: &Rewound) -> String {
    let Rewound { from_sequence, to_sequence, previous_holder, savepoint, .. } = rewound;
    let abandoned = match from_sequence - to_sequence {
        0 => format!("to its head {to_sequence}"),
        1 => format!("checkpoint {from_sequence} was abandoned"),
        _ => format!("checkpoints {} to {from_sequence} were abandoned", to_sequence + 1),
    };
    let token = Token::from_u64(rewound.previous_token);
    let to = (!savepoint.is_empty()).then(|| format!("to savepoint '{savepoint}'"));
    let from = (!previous_holder.is_empty()).then(|| format!("'{previous_holder}' had the branch (token {token})"));
    [Some(abandoned), to, from].into_iter().flatten().collect::<Vec<_>>().join("; ")
}

fn policy(policy: Option<&Policy>) -> String {
    let Policy { keep_last, keep_for_ms, audit_for_ms, reconcile_rows, declared_schemas_only } = with_defaults(policy);
    let rows = if reconcile_rows { ", reconcile_rows" } else { "" };
    let schemas = if declared_schemas_only { ", declared_schemas_only" } else { "" };
    format!("keep_last {keep_last}, keep_for_ms {keep_for_ms}, audit_for_ms {audit_for_ms}{rows}{schemas}")
}

/// Dead letters that a detail names; there may be many.
const LETTERS_NAMED_MAX: usize = 10;

fn letters(ids: &[DeadLetterId]) -> String {
    let named = ids.iter().take(LETTERS_NAMED_MAX);
    let named = named.map(DeadLetterId::to_string).collect::<Vec<_>>().join(", ");
    let rest = ids.len().saturating_sub(LETTERS_NAMED_MAX);
    let more = if rest > 0 { format!(" and {rest} more") } else { String::new() };
    let plural = if ids.len() == 1 { "" } else { "s" };
    format!("{} dead letter{plural}: {named}{more}", ids.len())
}

fn schema(schema: &Schema) -> String {
    let Schema { fingerprint, name, successor_of } = schema;
    let successor = match shown_fingerprint(successor_of) {
        none if none.is_empty() => none,
        before => format!(", successor of {before}"),
    };
    format!("schema {} '{name}'{successor}", shown_fingerprint(fingerprint))
}
