//! What workers do: take branches, stage and commit, give branches back.

use fencepost::Payload;
use fencepost::log::v1::{
    Committed, CommittedBranch, DeadLettersDiscarded, LeaseGranted, LeaseReleased, Staged, StagedDiscarded,
};
use fencepost::v1::{DeadLetterId, Merge, MergeInput};
use serde_json::{Value, json};

use super::{Told, because, by, some_lsn, some_text, some_token, token};
use crate::cli::output::{hex, human_duration, plural, readable};

impl Told for LeaseGranted {
    fn words(&self) -> String {
        let after = match (self.previous_token, self.previous_silent_ms) {
            (0, _) => String::new(),
            (previous, None) => format!(", after {} ({} released)", self.previous_holder, token(previous)),
            (previous, Some(ms)) => {
                let silent = human_duration(ms);
                format!(", from {} ({} silent for {silent})", self.previous_holder, token(previous))
            }
        };
        let scope = match self.accepted_scope.join(", ") {
            names if names.is_empty() => names,
            names => format!(", whatever its {names}"),
        };
        format!(
            "{}/{} to {} as {} at sequence {}{after}{scope}{}",
            self.pipeline,
            self.branch,
            self.holder,
            token(self.token),
            self.resumed_sequence,
            because(&self.reason)
        )
    }

    fn json(&self) -> Value {
        json!({
            "pipeline": self.pipeline, "branch": self.branch, "token": token(self.token).to_string(),
            "holder": self.holder, "ttl_ms": self.ttl_ms, "lock_delay_ms": self.lock_delay_ms,
            "takeover": self.takeover().as_str_name(), "reason": self.reason,
            "resumed_sequence": self.resumed_sequence, "previous_holder": self.previous_holder,
            "previous_token": some_token(self.previous_token), "previous_silent_ms": self.previous_silent_ms,
            "accepted_scope": self.accepted_scope,
        })
    }
}

impl Told for LeaseReleased {
    fn words(&self) -> String {
        format!("{}/{} by {}", self.pipeline, self.branch, token(self.token))
    }

    fn json(&self) -> Value {
        json!({ "pipeline": self.pipeline, "branch": self.branch, "token": token(self.token).to_string() })
    }
}

impl Told for Committed {
    fn words(&self) -> String {
        let moved = self.branches.iter().map(|moved| moved_words(&self.pipeline, moved)).collect::<Vec<_>>();
        let barrier = self.barrier.as_ref().map(|barrier| format!("; all are at barrier '{}'", barrier.name));
        let merge = self.merge.as_ref().map(|merge| format!("; merged from {}", merge_words(merge)));
        format!("{}{}{}", moved.join(", "), barrier.unwrap_or_default(), merge.unwrap_or_default())
    }

    fn json(&self) -> Value {
        let branches = self.branches.iter().map(moved_json).collect::<Vec<_>>();
        json!({
            "pipeline": self.pipeline, "commit_id": self.commit_id, "branches": branches,
            "barrier": self.barrier.as_ref().map(|barrier| &barrier.name),
            "merge": self.merge.as_ref().map(merge_json),
        })
    }
}

fn moved_words(pipeline: &str, moved: &CommittedBranch) -> String {
    let what = match moved.payload() {
        Payload::Here(saved) => format!("at '{}'", readable(&saved.position)),
        Payload::Staged(lsn) => format!("as staged in {lsn}"),
        Payload::Gone => "at (no longer kept)".to_owned(),
    };
    let skipped = match moved.dead_letters.len() {
        0 => String::new(),
        count => format!(" with {}", plural(count as u64, "dead letter")),
    };
    let replayed = match moved.replayed.len() {
        0 => String::new(),
        count => format!(" having replayed {}", plural(count as u64, "dead letter")),
    };
    let (branch, sequence) = (&moved.branch, moved.sequence);
    format!("{pipeline}/{branch} to {sequence} {what} by {}{skipped}{replayed}", token(moved.token))
}

fn moved_json(moved: &CommittedBranch) -> Value {
    let saved = moved.checkpoint.as_ref();
    json!({
        "branch": moved.branch, "sequence": moved.sequence, "token": token(moved.token).to_string(),
        "position": saved.map(|saved| readable(&saved.position)), "staged_lsn": some_lsn(moved.staged_lsn),
        "dead_letters": moved.dead_letters.len(), "replayed": letters(&moved.replayed),
    })
}

/// From what, and by what.
pub(in crate::cli) fn merge_words(merge: &Merge) -> String {
    let inputs = merge.inputs.iter().map(|input| format!("{} at {}", input.branch, input.sequence));
    format!("{} by {} {}", inputs.collect::<Vec<_>>().join(", "), merge.function, merge.version)
}

pub(in crate::cli) fn merge_json(merge: &Merge) -> Value {
    let input =
        |input: &MergeInput| json!({ "branch": input.branch, "sequence": input.sequence, "lsn": some_lsn(input.lsn) });
    json!({
        "inputs": merge.inputs.iter().map(input).collect::<Vec<_>>(), "function": merge.function,
        "version": merge.version, "output_digest": hex(&merge.output_digest),
    })
}

impl Told for Staged {
    fn words(&self) -> String {
        let saved = self.checkpoint.as_ref();
        let position = saved.map_or("(no longer kept)".to_owned(), |saved| format!("'{}'", readable(&saved.position)));
        let skipped = match self.dead_letters.len() {
            0 => String::new(),
            count => format!(" with {}", plural(count as u64, "dead letter")),
        };
        let (pipeline, branch, sequence) = (&self.pipeline, &self.branch, self.sequence);
        let id = &self.stage_id;
        format!("{pipeline}/{branch} {sequence} as '{id}' at {position} by {}{skipped}", token(self.token))
    }

    fn json(&self) -> Value {
        json!({
            "pipeline": self.pipeline, "branch": self.branch, "sequence": self.sequence,
            "token": token(self.token).to_string(), "stage_id": self.stage_id,
            "position": self.checkpoint.as_ref().map(|saved| readable(&saved.position)),
            "dead_letters": self.dead_letters.len(),
        })
    }
}

impl Told for StagedDiscarded {
    fn words(&self) -> String {
        let StagedDiscarded { pipeline, branch, stage_id, reason, .. } = self;
        format!("what {pipeline}/{branch} had staged as '{stage_id}', by {}{}", token(self.token), because(reason))
    }

    fn json(&self) -> Value {
        json!({
            "pipeline": self.pipeline, "branch": self.branch, "token": token(self.token).to_string(),
            "staged_lsn": some_lsn(self.staged_lsn), "stage_id": some_text(&self.stage_id), "reason": self.reason,
        })
    }
}

/// How many dead letters a person is shown by name.
const LETTERS_SHOWN_MAX: usize = 5;

impl Told for DeadLettersDiscarded {
    fn words(&self) -> String {
        let count = plural(self.letters.len() as u64, "dead letter");
        let named = letters(&self.letters[..self.letters.len().min(LETTERS_SHOWN_MAX)]).join(", ");
        let more = if self.letters.len() > LETTERS_SHOWN_MAX { ", .." } else { "" };
        format!("{count} of {}: {named}{more}{}", self.pipeline, by(&self.actor, &self.reason))
    }

    fn json(&self) -> Value {
        json!({
            "pipeline": self.pipeline, "letters": letters(&self.letters), "actor": self.actor, "reason": self.reason,
        })
    }
}

fn letters(ids: &[DeadLetterId]) -> Vec<String> {
    ids.iter().map(DeadLetterId::to_string).collect()
}

#[cfg(test)]
mod tests {
    use fencepost::log::v1::BarrierRef;
    use fencepost::log::v1::fact::Kind;
    use fencepost::v1::{Checkpoint, DeadLetter};

    use super::super::said;
    use super::*;

    fn letter_id(number: u32) -> DeadLetterId {
        DeadLetterId { lsn: 4 << 16, number }
    }

    #[test]
    fn a_grant_names_the_scope_that_was_let_through() {
        let granted = LeaseGranted {
            pipeline: "prod/orders".into(),
            branch: "jfk".into(),
            token: 1 << 48 | 2,
            holder: "loader-1".into(),
            resumed_sequence: 4,
            accepted_scope: vec!["code".into(), "config".into()],
            reason: "v2".into(),
            ..Default::default()
        };
        let (line, json) = said(Kind::LeaseGranted(granted));
        let expected =
            "granted    prod/orders/jfk to loader-1 as g1.e2 at sequence 4, whatever its code, config, because: v2";
        assert_eq!((line.as_str(), &json["accepted_scope"]), (expected, &json!(["code", "config"])));
    }

    #[test]
    fn a_commit_says_where_its_checkpoints_are_and_what_came_with_them() {
        let moved = |branch: &str| CommittedBranch {
            branch: branch.into(),
            sequence: 3,
            token: 1 << 48 | 2,
            ..Default::default()
        };
        let branches = vec![
            CommittedBranch {
                checkpoint: Some(Checkpoint { position: "300".into(), ..Default::default() }),
                dead_letters: vec![DeadLetter::default()],
                replayed: vec![letter_id(0), letter_id(7)],
                ..moved("jfk")
            },
            CommittedBranch { staged_lsn: 2 << 16, ..moved("lhr") },
        ];
        let inputs = vec![MergeInput { branch: "jfk".into(), sequence: 2, lsn: 1 << 16 }];
        let merge = Merge { inputs, function: "latest".into(), version: "1".into(), output_digest: vec![0xab].into() };
        let committed = Committed {
            pipeline: "prod/orders".into(),
            branches,
            barrier: Some(BarrierRef { name: "2013-01-05".into(), opened_lsn: 1 << 16 }),
            merge: Some(merge),
            ..Default::default()
        };
        let (line, json) = said(Kind::Committed(committed));
        assert_eq!(
            line,
            "committed  prod/orders/jfk to 3 at '300' by g1.e2 with 1 dead letter having replayed 2 dead letters, \
             prod/orders/lhr to 3 as staged in 2.0 by g1.e2; all are at barrier '2013-01-05'; merged from jfk at 2 by latest 1"
        );
        assert_eq!((&json["barrier"], &json["merge"]["output_digest"]), (&json!("2013-01-05"), &json!("ab")));
        assert_eq!(json["branches"][0]["replayed"], json!(["4.0/0", "4.0/7"]));
        assert_eq!(
            (&json["branches"][1]["staged_lsn"], &json["branches"][1]["position"]),
            (&json!("2.0"), &Value::Null)
        );
    }

    #[test]
    fn what_is_staged_is_named_until_it_is_committed_or_given_up() {
        let staged = Staged {
            pipeline: "prod/orders".into(),
            branch: "jfk".into(),
            sequence: 3,
            token: 1 << 48 | 2,
            stage_id: "tx-9".into(),
            checkpoint: Some(Checkpoint { position: "300".into(), ..Default::default() }),
            dead_letters: vec![DeadLetter::default(); 2],
            ..Default::default()
        };
        let (line, json) = said(Kind::Staged(staged));
        assert_eq!(line, "staged     prod/orders/jfk 3 as 'tx-9' at '300' by g1.e2 with 2 dead letters");
        assert_eq!((&json["stage_id"], &json["dead_letters"]), (&json!("tx-9"), &json!(2)));
        let discarded = StagedDiscarded {
            pipeline: "prod/orders".into(),
            branch: "jfk".into(),
            token: 1 << 48 | 2,
            staged_lsn: 2 << 16,
            stage_id: "tx-9".into(),
            reason: "the sink rolled back".into(),
        };
        let (line, json) = said(Kind::StagedDiscarded(discarded));
        let expected = "discarded  what prod/orders/jfk had staged as 'tx-9', by g1.e2, because: the sink rolled back";
        assert_eq!((line.as_str(), &json["staged_lsn"]), (expected, &json!("2.0")));
    }

    #[test]
    fn many_dead_letters_are_counted_and_a_few_named() {
        let discarded = |count| DeadLettersDiscarded {
            pipeline: "prod/orders".into(),
            letters: (0..count).map(letter_id).collect(),
            actor: "ada".into(),
            reason: "test data".into(),
        };
        let (line, _) = said(Kind::DeadLettersDiscarded(discarded(1)));
        assert_eq!(line, "discarded  1 dead letter of prod/orders: 4.0/0, by ada, because: test data");
        let (line, json) = said(Kind::DeadLettersDiscarded(discarded(6)));
        let expected = "discarded  6 dead letters of prod/orders: 4.0/0, 4.0/1, 4.0/2, 4.0/3, 4.0/4, .., by ada, \
                        because: test data";
        assert_eq!((line.as_str(), json["letters"].as_array().map(Vec::len)), (expected, Some(6)));
    }
}
