//! Barriers, and all leases of a pipeline ended at once.

use fencepost::log::v1::{BarrierAborted, BarrierArrived, BarrierOpened, BarrierRef, GroupFenced};
use serde_json::{Value, json};

use super::{Told, by, some_lsn, some_text, token};
use crate::cli::output::{plural, time};

fn name(barrier: Option<&BarrierRef>) -> &str {
    barrier.map_or("", |barrier| &barrier.name)
}

fn opened_lsn(barrier: Option<&BarrierRef>) -> Option<String> {
    some_lsn(barrier.map_or(0, |barrier| barrier.opened_lsn))
}

impl Told for BarrierOpened {
    fn words(&self) -> String {
        let until = if self.deadline_ms == 0 { String::new() } else { format!(" until {}", time(self.deadline_ms)) };
        let BarrierOpened { pipeline, name, participants, actor, reason, .. } = self;
        format!("barrier '{name}' of {pipeline} for {}{until}{}", participants.join(", "), by(actor, reason))
    }

    fn json(&self) -> Value {
        json!({
            "pipeline": self.pipeline, "barrier": self.name, "participants": self.participants,
            "deadline": (self.deadline_ms != 0).then(|| time(self.deadline_ms)), "actor": self.actor,
            "reason": self.reason,
        })
    }
}

impl Told for BarrierArrived {
    fn words(&self) -> String {
        let barrier = name(self.barrier.as_ref());
        format!("{}/{} at barrier '{barrier}' by {}", self.pipeline, self.branch, token(self.token))
    }

    fn json(&self) -> Value {
        json!({
            "pipeline": self.pipeline, "barrier": name(self.barrier.as_ref()),
            "opened_lsn": opened_lsn(self.barrier.as_ref()), "branch": self.branch,
            "token": token(self.token).to_string(), "staged_lsn": some_lsn(self.staged_lsn),
        })
    }
}

impl Told for BarrierAborted {
    fn words(&self) -> String {
        let missing = self.participants.iter().filter(|it| it.staged_lsn == 0).map(|it| match &*it.holder {
            "" => it.branch.clone(),
            holder => format!("{} ({holder})", it.branch),
        });
        let missing = match missing.collect::<Vec<_>>().join(", ") {
            names if names.is_empty() => names,
            names => format!(", {names} missing"),
        };
        let barrier = name(self.barrier.as_ref());
        format!("barrier '{barrier}' of {}{missing}{}", self.pipeline, by(&self.actor, &self.reason))
    }

    fn json(&self) -> Value {
        let participants = self.participants.iter().map(|it| {
            json!({
                "branch": it.branch, "holder": some_text(&it.holder), "staged_lsn": some_lsn(it.staged_lsn),
                "sequence": it.sequence,
            })
        });
        json!({
            "pipeline": self.pipeline, "barrier": name(self.barrier.as_ref()),
            "opened_lsn": opened_lsn(self.barrier.as_ref()), "participants": participants.collect::<Vec<_>>(),
            "actor": self.actor, "reason": self.reason,
        })
    }
}

impl Told for GroupFenced {
    fn words(&self) -> String {
        let leases = plural(self.leases, "lease");
        let (actor, reason) = (&self.actor, &self.reason);
        format!("{} as {}: {leases} ended{}", self.pipeline, token(self.token), by(actor, reason))
    }

    fn json(&self) -> Value {
        json!({
            "pipeline": self.pipeline, "token": token(self.token).to_string(), "leases": self.leases,
            "actor": self.actor, "reason": self.reason,
        })
    }
}

#[cfg(test)]
mod tests {
    use fencepost::log::v1::AbortedParticipant;
    use fencepost::log::v1::fact::Kind;

    use super::super::said;
    use super::*;

    #[test]
    fn a_barrier_is_opened_arrived_at_and_aborted_by_name() {
        let opened = BarrierOpened {
            pipeline: "prod/orders".into(),
            name: "2013-01-05".into(),
            participants: vec!["jfk".into(), "lhr".into()],
            deadline_ms: 500,
            actor: "ada".into(),
            reason: "end of day".into(),
        };
        let (line, json) = said(Kind::BarrierOpened(opened));
        assert_eq!(
            line,
            "opened     barrier '2013-01-05' of prod/orders for jfk, lhr until 1970-01-01T00:00:00.500Z, by ada, \
             because: end of day"
        );
        assert_eq!((&json["participants"][1], &json["barrier"]), (&json!("lhr"), &json!("2013-01-05")));
        let barrier = Some(BarrierRef { name: "2013-01-05".into(), opened_lsn: 2 << 16 });
        let arrived = BarrierArrived {
            pipeline: "prod/orders".into(),
            barrier: barrier.clone(),
            branch: "jfk".into(),
            token: 1 << 48 | 2,
            staged_lsn: 3 << 16,
        };
        let (line, json) = said(Kind::BarrierArrived(arrived));
        assert_eq!(line, "arrived    prod/orders/jfk at barrier '2013-01-05' by g1.e2");
        assert_eq!((&json["opened_lsn"], &json["staged_lsn"]), (&json!("2.0"), &json!("3.0")));
        let aborted = BarrierAborted {
            pipeline: "prod/orders".into(),
            barrier,
            reason: "the deadline passed".into(),
            participants: vec![
                AbortedParticipant { branch: "jfk".into(), staged_lsn: 3 << 16, sequence: 4, ..Default::default() },
                AbortedParticipant { branch: "lhr".into(), holder: "loader-2".into(), ..Default::default() },
                AbortedParticipant { branch: "sfo".into(), ..Default::default() },
            ],
            ..Default::default()
        };
        let (line, json) = said(Kind::BarrierAborted(aborted));
        let expected =
            "aborted    barrier '2013-01-05' of prod/orders, lhr (loader-2), sfo missing, because: the deadline passed";
        let arrived = json!({ "branch": "jfk", "holder": null, "staged_lsn": "3.0", "sequence": 4 });
        assert_eq!((line.as_str(), &json["participants"][0]), (expected, &arrived));
    }

    #[test]
    fn a_fence_says_how_many_leases_it_ended() {
        let fenced = GroupFenced {
            pipeline: "prod/orders".into(),
            token: 1 << 48 | 9,
            leases: 3,
            actor: "ada".into(),
            reason: "3 branches become 5".into(),
        };
        let (line, json) = said(Kind::GroupFenced(fenced));
        assert_eq!(line, "fenced     prod/orders as g1.e9: 3 leases ended, by ada, because: 3 branches become 5");
        assert_eq!((&json["kind"], &json["leases"]), (&json!("group_fenced"), &json!(3)));
    }
}
