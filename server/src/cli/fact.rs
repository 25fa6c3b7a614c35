//! One fact of the log, as a line for a person and as an object for a program.

use fencepost::log::v1::fact::Kind;
use fencepost::log::v1::{Committed, Fact, Forked, LeaseGranted, Rewound};
use fencepost::v1::Policy;
use fencepost::{Lsn, Token};
use serde_json::{Value, json};

use super::actor::because;
use super::duration::exact;
use super::output::{hex, human_duration, readable, time};

/// For a person.
pub(super) fn line(lsn: Lsn, fact: &Fact) -> String {
    let what = match &fact.kind {
        Some(Kind::ClusterCreated(created)) => {
            format!("created    cluster {}, generation {}", created.cluster_id, created.generation)
        }
        Some(Kind::LeaseGranted(granted)) => granted_words(granted),
        Some(Kind::LeaseReleased(released)) => {
            format!("released   {}/{} by {}", released.pipeline, released.branch, token(released.token))
        }
        Some(Kind::Committed(committed)) => format!("committed  {}", moved_words(committed)),
        Some(Kind::PolicySet(set)) => {
            let policy = policy_words(&set.policy.unwrap_or_default());
            format!("policy     {}: {policy}{}", set.pipeline, by(&set.actor, &set.reason))
        }
        Some(Kind::SavepointCreated(created)) => format!(
            "savepoint  {}/{} at {} is '{}'{}",
            created.pipeline,
            created.branch,
            created.sequence,
            created.name,
            by(&created.actor, &created.reason)
        ),
        Some(Kind::SavepointDeleted(deleted)) => format!(
            "savepoint  {}/{} at {} is '{}' no longer{}",
            deleted.pipeline,
            deleted.branch,
            deleted.sequence,
            deleted.name,
            by(&deleted.actor, &deleted.reason)
        ),
        Some(Kind::Rewound(rewound)) => rewound_words(rewound),
        Some(Kind::Forked(forked)) => forked_words(forked),
        Some(Kind::GenerationStarted(started)) => format!(
            "restored   up to {}, generation {}{}",
            Lsn::from_u64(started.kept_lsn),
            started.generation,
            by(&started.actor, &started.reason)
        ),
        Some(Kind::ImportStarted(started)) => format!(
            "importing  {}, which was {} in cluster {} at {}{}",
            started.pipeline,
            started.source_pipeline,
            started.source_cluster_id,
            Lsn::from_u64(started.source_lsn),
            by(&started.actor, &started.reason)
        ),
        Some(Kind::Imported(imported)) => {
            let moved = imported.commit.as_ref().map(moved_words).unwrap_or_default();
            format!("imported   {moved}, committed {}", time(imported.committed_at_ms))
        }
        Some(Kind::ImportFinished(finished)) => format!("imported   all of {}", finished.pipeline),
        Some(_) | None => "unknown    a kind of fact that this version does not know".to_owned(),
    };
    format!("{:<8} {}  {what}", lsn.to_string(), time(fact.at_ms))
}

fn granted_words(granted: &LeaseGranted) -> String {
    let after = match (granted.previous_token, granted.previous_silent_ms) {
        (0, _) => String::new(),
        (previous, None) => format!(", after {} ({} released)", granted.previous_holder, token(previous)),
        (previous, Some(ms)) => {
            let silent = human_duration(ms);
            format!(", from {} ({} silent for {silent})", granted.previous_holder, token(previous))
        }
    };
    format!(
        "granted    {}/{} to {} as {} at sequence {}{after}{}",
        granted.pipeline,
        granted.branch,
        granted.holder,
        token(granted.token),
        granted.resumed_sequence,
        because(&granted.reason)
    )
}

fn moved_words(committed: &Committed) -> String {
    let moved = committed.branches.iter().map(|moved| {
        let saved = moved.checkpoint.as_ref();
        let position = saved.map_or("(no longer kept)".to_owned(), |saved| format!("'{}'", readable(&saved.position)));
        let (branch, sequence) = (&moved.branch, moved.sequence);
        format!("{}/{branch} to {sequence} at {position} by {}", committed.pipeline, token(moved.token))
    });
    moved.collect::<Vec<_>>().join(", ")
}

fn rewound_words(rewound: &Rewound) -> String {
    let savepoint =
        if rewound.savepoint.is_empty() { String::new() } else { format!(" (savepoint '{}')", rewound.savepoint) };
    let from = match rewound.previous_token {
        0 => String::new(),
        previous => format!(", from {} ({})", rewound.previous_holder, token(previous)),
    };
    format!(
        "rewound    {}/{} from {} to {}{savepoint} as {}{from}{}",
        rewound.pipeline,
        rewound.branch,
        rewound.from_sequence,
        rewound.to_sequence,
        token(rewound.token),
        by(&rewound.actor, &rewound.reason)
    )
}

fn forked_words(forked: &Forked) -> String {
    format!(
        "forked     {}/{} from {}/{} at {}{}",
        forked.pipeline,
        forked.branch,
        forked.source_pipeline,
        forked.source_branch,
        forked.source_sequence,
        by(&forked.actor, &forked.reason)
    )
}

fn policy_words(policy: &Policy) -> String {
    let last =
        if policy.keep_last == 0 { "the default number".to_owned() } else { format!("the last {}", policy.keep_last) };
    let younger =
        if policy.keep_for_ms == 0 { String::new() } else { format!(" and those of {}", exact(policy.keep_for_ms)) };
    let audit = if policy.audit_for_ms == 0 { "the default time".to_owned() } else { exact(policy.audit_for_ms) };
    format!("keep {last}{younger}, audit for {audit}")
}

fn by(actor: &str, reason: &str) -> String {
    let actor = if actor.is_empty() { String::new() } else { format!(", by {actor}") };
    format!("{actor}{}", because(reason))
}

fn token(token: u64) -> Token {
    Token::from_u64(token)
}

/// For a program.
pub(super) fn json(lsn: Lsn, fact: &Fact) -> Value {
    let (kind, what) = what(fact);
    let mut line = json!({ "lsn": lsn.to_string(), "at": time(fact.at_ms), "kind": kind });
    if let (Some(line), Value::Object(what)) = (line.as_object_mut(), what) {
        line.extend(what);
    }
    line
}

fn what(fact: &Fact) -> (&'static str, Value) {
    match &fact.kind {
        Some(Kind::ClusterCreated(created)) => {
            ("cluster_created", json!({ "cluster_id": created.cluster_id, "generation": created.generation }))
        }
        Some(Kind::LeaseGranted(granted)) => ("lease_granted", granted_json(granted)),
        Some(Kind::LeaseReleased(released)) => (
            "lease_released",
            json!({
                "pipeline": released.pipeline, "branch": released.branch, "token": token(released.token).to_string(),
            }),
        ),
        Some(Kind::Committed(committed)) => ("committed", committed_json(committed)),
        Some(Kind::PolicySet(set)) => {
            let policy = set.policy.unwrap_or_default();
            let what = json!({
                "pipeline": set.pipeline, "keep_last": policy.keep_last, "keep_for_ms": policy.keep_for_ms,
                "audit_for_ms": policy.audit_for_ms, "actor": set.actor, "reason": set.reason,
            });
            ("policy_set", what)
        }
        Some(Kind::SavepointCreated(created)) => (
            "savepoint_created",
            json!({
                "pipeline": created.pipeline, "name": created.name, "branch": created.branch,
                "sequence": created.sequence, "checkpoint_lsn": some_lsn(created.checkpoint_lsn),
                "actor": created.actor, "reason": created.reason,
            }),
        ),
        Some(Kind::SavepointDeleted(deleted)) => (
            "savepoint_deleted",
            json!({
                "pipeline": deleted.pipeline, "name": deleted.name, "branch": deleted.branch,
                "sequence": deleted.sequence, "created_lsn": some_lsn(deleted.created_lsn),
                "actor": deleted.actor, "reason": deleted.reason,
            }),
        ),
        Some(Kind::Rewound(rewound)) => ("rewound", rewound_json(rewound)),
        Some(Kind::Forked(forked)) => (
            "forked",
            json!({
                "pipeline": forked.pipeline, "branch": forked.branch, "source_pipeline": forked.source_pipeline,
                "source_branch": forked.source_branch, "source_sequence": forked.source_sequence,
                "source_lsn": some_lsn(forked.source_lsn), "actor": forked.actor, "reason": forked.reason,
                "position": forked.checkpoint.as_ref().map(|saved| readable(&saved.position)),
            }),
        ),
        Some(Kind::GenerationStarted(started)) => (
            "generation_started",
            json!({
                "generation": started.generation, "kept_lsn": some_lsn(started.kept_lsn), "actor": started.actor,
                "reason": started.reason,
            }),
        ),
        Some(Kind::ImportStarted(started)) => (
            "import_started",
            json!({
                "pipeline": started.pipeline, "digest": hex(&started.digest),
                "source_cluster_id": started.source_cluster_id, "source_lsn": some_lsn(started.source_lsn),
                "source_pipeline": started.source_pipeline, "actor": started.actor, "reason": started.reason,
            }),
        ),
        Some(Kind::Imported(imported)) => {
            let mut what = committed_json(imported.commit.as_ref().unwrap_or(&Committed::default()));
            what["committed_at"] = json!(time(imported.committed_at_ms));
            ("imported", what)
        }
        Some(Kind::ImportFinished(finished)) => {
            ("import_finished", json!({ "pipeline": finished.pipeline, "digest": hex(&finished.digest) }))
        }
        Some(_) | None => ("unknown", json!({})),
    }
}

fn granted_json(granted: &LeaseGranted) -> Value {
    json!({
        "pipeline": granted.pipeline, "branch": granted.branch, "token": token(granted.token).to_string(),
        "holder": granted.holder, "ttl_ms": granted.ttl_ms, "lock_delay_ms": granted.lock_delay_ms,
        "takeover": granted.takeover().as_str_name(), "reason": granted.reason,
        "resumed_sequence": granted.resumed_sequence, "previous_holder": granted.previous_holder,
        "previous_token": some_token(granted.previous_token), "previous_silent_ms": granted.previous_silent_ms,
    })
}

fn committed_json(committed: &Committed) -> Value {
    let branches = committed.branches.iter().map(|moved| {
        let saved = moved.checkpoint.as_ref();
        json!({
            "branch": moved.branch, "sequence": moved.sequence, "token": token(moved.token).to_string(),
            "position": saved.map(|saved| readable(&saved.position)),
        })
    });
    let branches = branches.collect::<Vec<_>>();
    json!({ "pipeline": committed.pipeline, "commit_id": committed.commit_id, "branches": branches })
}

fn rewound_json(rewound: &Rewound) -> Value {
    json!({
        "pipeline": rewound.pipeline, "branch": rewound.branch, "from_sequence": rewound.from_sequence,
        "to_sequence": rewound.to_sequence, "to_lsn": some_lsn(rewound.to_lsn),
        "savepoint": (!rewound.savepoint.is_empty()).then_some(&rewound.savepoint),
        "token": token(rewound.token).to_string(), "previous_holder": rewound.previous_holder,
        "previous_token": some_token(rewound.previous_token), "actor": rewound.actor, "reason": rewound.reason,
    })
}

fn some_token(value: u64) -> Option<String> {
    (value != 0).then(|| token(value).to_string())
}

fn some_lsn(value: u64) -> Option<String> {
    (value != 0).then(|| Lsn::from_u64(value).to_string())
}

#[cfg(test)]
mod tests {
    use fencepost::log::v1::{
        CommittedBranch, GenerationStarted, ImportFinished, ImportStarted, Imported, PolicySet, SavepointCreated,
        SavepointDeleted,
    };

    use super::*;

    /// What is said of a fact after its time, and its JSON.
    fn said(kind: Kind) -> (String, Value) {
        let fact = Fact { at_ms: 1_000, kind: Some(kind) };
        let lsn = Lsn::from_u64(3 << 16);
        let line = line(lsn, &fact);
        let start = "3.0      1970-01-01T00:00:01.000Z  ";
        (line.strip_prefix(start).unwrap_or_else(|| panic!("{line}")).to_owned(), json(lsn, &fact))
    }

    #[test]
    fn a_rewind_names_both_ends_and_whom_it_fenced() {
        let rewound = Rewound {
            pipeline: "prod/orders".into(),
            branch: "jfk".into(),
            to_sequence: 4,
            from_sequence: 7,
            token: 1 << 48 | 9,
            previous_holder: "loader-1".into(),
            previous_token: 1 << 48 | 8,
            actor: "ada".into(),
            reason: "broken file".into(),
            savepoint: "good".into(),
            ..Default::default()
        };
        let (line, json) = said(Kind::Rewound(rewound));
        let expected = "rewound    prod/orders/jfk from 7 to 4 (savepoint 'good') as g1.e9, from loader-1 (g1.e8), by ada, \
                        because: broken file";
        assert_eq!(line, expected);
        assert_eq!(
            (&json["kind"], &json["to_sequence"], &json["savepoint"]),
            (&json!("rewound"), &json!(4), &json!("good"))
        );
    }

    #[test]
    fn a_policy_is_told_in_words() {
        let policy = Policy { keep_last: 20, keep_for_ms: 604_800_000, audit_for_ms: 0, ..Policy::default() };
        let set = PolicySet { pipeline: "prod/orders".into(), policy: Some(policy), ..Default::default() };
        let (line, json) = said(Kind::PolicySet(set));
        assert_eq!(line, "policy     prod/orders: keep the last 20 and those of 7 d, audit for the default time");
        assert_eq!(json["keep_for_ms"], 604_800_000);
        let set = PolicySet { pipeline: "prod/orders".into(), ..Default::default() };
        assert_eq!(
            said(Kind::PolicySet(set)).0,
            "policy     prod/orders: keep the default number, audit for the default time"
        );
    }

    #[test]
    fn a_savepoint_comes_and_goes() {
        let created = SavepointCreated {
            pipeline: "prod/orders".into(),
            name: "good".into(),
            branch: "jfk".into(),
            sequence: 4,
            ..Default::default()
        };
        assert_eq!(said(Kind::SavepointCreated(created)).0, "savepoint  prod/orders/jfk at 4 is 'good'");
        let deleted = SavepointDeleted {
            pipeline: "prod/orders".into(),
            name: "good".into(),
            branch: "jfk".into(),
            sequence: 4,
            created_lsn: 2 << 16,
            actor: "ada".into(),
            ..Default::default()
        };
        let (line, json) = said(Kind::SavepointDeleted(deleted));
        assert_eq!(line, "savepoint  prod/orders/jfk at 4 is 'good' no longer, by ada");
        assert_eq!(json["created_lsn"], "2.0");
    }

    #[test]
    fn what_came_from_elsewhere_says_from_where() {
        let forked = Forked {
            pipeline: "test/orders".into(),
            branch: "try".into(),
            source_pipeline: "prod/orders".into(),
            source_branch: "jfk".into(),
            source_sequence: 4,
            ..Default::default()
        };
        assert_eq!(said(Kind::Forked(forked)).0, "forked     test/orders/try from prod/orders/jfk at 4");
        let started = ImportStarted {
            pipeline: "test/orders".into(),
            digest: vec![0xab].into(),
            source_cluster_id: "c1".into(),
            source_lsn: 9 << 16,
            source_pipeline: "prod/orders".into(),
            ..Default::default()
        };
        let (line, json) = said(Kind::ImportStarted(started));
        assert_eq!(line, "importing  test/orders, which was prod/orders in cluster c1 at 9.0");
        assert_eq!(json["digest"], "ab");
        let branches =
            vec![CommittedBranch { branch: "jfk".into(), sequence: 4, token: 1 << 48 | 2, ..Default::default() }];
        let commit = Some(Committed { pipeline: "test/orders".into(), branches, ..Default::default() });
        let (line, json) = said(Kind::Imported(Imported { commit, committed_at_ms: 500 }));
        assert_eq!(
            line,
            "imported   test/orders/jfk to 4 at (no longer kept) by g1.e2, committed 1970-01-01T00:00:00.500Z"
        );
        assert_eq!(
            (&json["committed_at"], &json["branches"][0]["position"]),
            (&json!("1970-01-01T00:00:00.500Z"), &Value::Null)
        );
        let finished = ImportFinished { pipeline: "test/orders".into(), ..Default::default() };
        assert_eq!(said(Kind::ImportFinished(finished)).0, "imported   all of test/orders");
        let started = GenerationStarted { generation: 2, kept_lsn: 8 << 16, actor: "ada".into(), ..Default::default() };
        assert_eq!(said(Kind::GenerationStarted(started)).0, "restored   up to 8.0, generation 2, by ada");
    }
}
