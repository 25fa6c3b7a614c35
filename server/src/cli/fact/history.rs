//! What owners and operators do to a pipeline: policies, schemas, savepoints, rewinds, forks.

use fencepost::log::v1::{Forked, PolicySet, Rewound, SavepointCreated, SavepointDeleted, SchemaDeclared};
use fencepost::v1::Policy;
use serde_json::{Value, json};

use super::{Told, by, some_lsn, some_text, some_token, token};
use crate::cli::duration::exact;
use crate::cli::output::{hex, readable};

impl Told for PolicySet {
    fn words(&self) -> String {
        let policy = policy_words(&self.policy.unwrap_or_default());
        format!("{}: {policy}{}", self.pipeline, by(&self.actor, &self.reason))
    }

    fn json(&self) -> Value {
        let policy = self.policy.unwrap_or_default();
        json!({
            "pipeline": self.pipeline, "keep_last": policy.keep_last, "keep_for_ms": policy.keep_for_ms,
            "audit_for_ms": policy.audit_for_ms, "reconcile_rows": policy.reconcile_rows,
            "declared_schemas_only": policy.declared_schemas_only, "actor": self.actor, "reason": self.reason,
        })
    }
}

fn policy_words(policy: &Policy) -> String {
    let last =
        if policy.keep_last == 0 { "the default number".to_owned() } else { format!("the last {}", policy.keep_last) };
    let younger =
        if policy.keep_for_ms == 0 { String::new() } else { format!(" and those of {}", exact(policy.keep_for_ms)) };
    let audit = if policy.audit_for_ms == 0 { "the default time".to_owned() } else { exact(policy.audit_for_ms) };
    let rows = if policy.reconcile_rows { ", rows must add up" } else { "" };
    let schemas = if policy.declared_schemas_only { ", declared schemas only" } else { "" };
    format!("keep {last}{younger}, audit for {audit}{rows}{schemas}")
}

impl Told for SchemaDeclared {
    fn words(&self) -> String {
        let schema = self.schema.clone().unwrap_or_default();
        let name = if schema.name.is_empty() { String::new() } else { format!(" '{}'", schema.name) };
        let after = match hex(&schema.successor_of) {
            before if before.is_empty() => before,
            before => format!(" after {before}"),
        };
        let by = by(&self.actor, &self.reason);
        format!("{}{name} of {}{after}{by}", hex(&schema.fingerprint), self.pipeline)
    }

    fn json(&self) -> Value {
        let schema = self.schema.clone().unwrap_or_default();
        json!({
            "pipeline": self.pipeline, "fingerprint": hex(&schema.fingerprint), "name": some_text(&schema.name),
            "successor_of": some_text(&hex(&schema.successor_of)), "actor": self.actor, "reason": self.reason,
        })
    }
}

impl Told for SavepointCreated {
    fn words(&self) -> String {
        let SavepointCreated { pipeline, branch, sequence, name, .. } = self;
        format!("{pipeline}/{branch} at {sequence} is '{name}'{}", by(&self.actor, &self.reason))
    }

    fn json(&self) -> Value {
        json!({
            "pipeline": self.pipeline, "name": self.name, "branch": self.branch, "sequence": self.sequence,
            "checkpoint_lsn": some_lsn(self.checkpoint_lsn), "actor": self.actor, "reason": self.reason,
        })
    }
}

impl Told for SavepointDeleted {
    fn words(&self) -> String {
        let SavepointDeleted { pipeline, branch, sequence, name, .. } = self;
        format!("{pipeline}/{branch} at {sequence} is '{name}' no longer{}", by(&self.actor, &self.reason))
    }

    fn json(&self) -> Value {
        json!({
            "pipeline": self.pipeline, "name": self.name, "branch": self.branch, "sequence": self.sequence,
            "created_lsn": some_lsn(self.created_lsn), "actor": self.actor, "reason": self.reason,
        })
    }
}

impl Told for Rewound {
    fn words(&self) -> String {
        let savepoint =
            if self.savepoint.is_empty() { String::new() } else { format!(" (savepoint '{}')", self.savepoint) };
        let from = match self.previous_token {
            0 => String::new(),
            previous => format!(", from {} ({})", self.previous_holder, token(previous)),
        };
        format!(
            "{}/{} from {} to {}{savepoint} as {}{from}{}",
            self.pipeline,
            self.branch,
            self.from_sequence,
            self.to_sequence,
            token(self.token),
            by(&self.actor, &self.reason)
        )
    }

    fn json(&self) -> Value {
        json!({
            "pipeline": self.pipeline, "branch": self.branch, "from_sequence": self.from_sequence,
            "to_sequence": self.to_sequence, "to_lsn": some_lsn(self.to_lsn), "savepoint": some_text(&self.savepoint),
            "token": token(self.token).to_string(), "previous_holder": self.previous_holder,
            "previous_token": some_token(self.previous_token), "actor": self.actor, "reason": self.reason,
        })
    }
}

impl Told for Forked {
    fn words(&self) -> String {
        format!(
            "{}/{} from {}/{} at {}{}",
            self.pipeline,
            self.branch,
            self.source_pipeline,
            self.source_branch,
            self.source_sequence,
            by(&self.actor, &self.reason)
        )
    }

    fn json(&self) -> Value {
        json!({
            "pipeline": self.pipeline, "branch": self.branch, "source_pipeline": self.source_pipeline,
            "source_branch": self.source_branch, "source_sequence": self.source_sequence,
            "source_lsn": some_lsn(self.source_lsn), "actor": self.actor, "reason": self.reason,
            "position": self.checkpoint.as_ref().map(|saved| readable(&saved.position)),
        })
    }
}

#[cfg(test)]
mod tests {
    use fencepost::log::v1::fact::Kind;
    use fencepost::v1::Schema;

    use super::super::said;
    use super::*;

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
        let policy = Policy { keep_last: 1, reconcile_rows: true, declared_schemas_only: true, ..Policy::default() };
        let set = PolicySet { pipeline: "prod/orders".into(), policy: Some(policy), ..Default::default() };
        let (line, json) = said(Kind::PolicySet(set));
        let expected = "policy     prod/orders: keep the last 1, audit for the default time, rows must add up, declared schemas only";
        assert_eq!((line.as_str(), &json["reconcile_rows"]), (expected, &json!(true)));
    }

    #[test]
    fn a_schema_names_the_one_that_it_succeeds() {
        let schema = Schema { fingerprint: vec![0xcd; 2].into(), name: "v2".into(), successor_of: vec![0xab].into() };
        let declared = |schema| SchemaDeclared {
            pipeline: "prod/orders".into(),
            schema: Some(schema),
            actor: "ada".into(),
            ..Default::default()
        };
        let (line, json) = said(Kind::SchemaDeclared(declared(schema)));
        assert_eq!(line, "schema     cdcd 'v2' of prod/orders after ab, by ada");
        assert_eq!((&json["fingerprint"], &json["successor_of"]), (&json!("cdcd"), &json!("ab")));
        let first = Schema { fingerprint: vec![0xab].into(), ..Default::default() };
        assert_eq!(said(Kind::SchemaDeclared(declared(first))).0, "schema     ab of prod/orders, by ada");
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
    fn a_fork_says_from_where() {
        let forked = Forked {
            pipeline: "test/orders".into(),
            branch: "try".into(),
            source_pipeline: "prod/orders".into(),
            source_branch: "jfk".into(),
            source_sequence: 4,
            ..Default::default()
        };
        assert_eq!(said(Kind::Forked(forked)).0, "forked     test/orders/try from prod/orders/jfk at 4");
    }
}
