//! What concerns the cluster as a whole, and imports.

use fencepost::Lsn;
use fencepost::log::v1::{ClusterCreated, Committed, GenerationStarted, ImportFinished, ImportStarted, Imported};
use serde_json::{Value, json};

use super::{Told, by, some_lsn};
use crate::cli::output::{hex, time};

impl Told for ClusterCreated {
    fn words(&self) -> String {
        format!("cluster {}, generation {}", self.cluster_id, self.generation)
    }

    fn json(&self) -> Value {
        json!({ "cluster_id": self.cluster_id, "generation": self.generation })
    }
}

impl Told for GenerationStarted {
    fn words(&self) -> String {
        let kept = Lsn::from_u64(self.kept_lsn);
        format!("up to {kept}, generation {}{}", self.generation, by(&self.actor, &self.reason))
    }

    fn json(&self) -> Value {
        json!({
            "generation": self.generation, "kept_lsn": some_lsn(self.kept_lsn), "actor": self.actor,
            "reason": self.reason,
        })
    }
}

impl Told for ImportStarted {
    fn words(&self) -> String {
        format!(
            "{}, which was {} in cluster {} at {}{}",
            self.pipeline,
            self.source_pipeline,
            self.source_cluster_id,
            Lsn::from_u64(self.source_lsn),
            by(&self.actor, &self.reason)
        )
    }

    fn json(&self) -> Value {
        json!({
            "pipeline": self.pipeline, "digest": hex(&self.digest), "source_cluster_id": self.source_cluster_id,
            "source_lsn": some_lsn(self.source_lsn), "source_pipeline": self.source_pipeline, "actor": self.actor,
            "reason": self.reason,
        })
    }
}

impl Told for Imported {
    fn words(&self) -> String {
        let moved = self.commit.as_ref().map(Told::words).unwrap_or_default();
        format!("{moved}, committed {}", time(self.committed_at_ms))
    }

    fn json(&self) -> Value {
        let mut what = self.commit.as_ref().unwrap_or(&Committed::default()).json();
        what["committed_at"] = json!(time(self.committed_at_ms));
        what
    }
}

impl Told for ImportFinished {
    fn words(&self) -> String {
        format!("all of {}", self.pipeline)
    }

    fn json(&self) -> Value {
        json!({ "pipeline": self.pipeline, "digest": hex(&self.digest) })
    }
}

#[cfg(test)]
mod tests {
    use fencepost::log::v1::CommittedBranch;
    use fencepost::log::v1::fact::Kind;

    use super::super::said;
    use super::*;

    #[test]
    fn what_came_from_elsewhere_says_from_where() {
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
