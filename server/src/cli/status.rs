//! What the server is, holds, and thinks of its disk.

use clap::Args;
use fencepost::v1::{Damage, StoreStatus};
use fencepost_client::{Client, Lsn};
use serde_json::{Value, json};

use super::error::CliError;
use super::health;
use super::output::{Cell, Column, Output, human_bytes, note, time};

/// Show what the server is and holds, or how the branches of one pipeline have fared.
///
/// Of a pipeline each branch has a line: who holds it, how many commits it has, and how old its head is (the recovery
/// point: what a crash now would make a worker do again, by the clock of this machine). Then, measured by the server since
/// it started: how many workers were granted the branch; how many were lost, which is neither released nor rewound; how
/// long it took from when such a worker was last heard to its successor's first commit; and what was refused, by reason.
///
/// Example: `fencepost status prod/orders`
#[derive(Args)]
pub(crate) struct StatusCommand {
    /// NAMESPACE/NAME; without it, the server itself.
    pipeline: Option<String>,
}

impl StatusCommand {
    pub(super) async fn run(self, client: &Client, output: &Output) -> Result<(), CliError> {
        match self.pipeline {
            Some(pipeline) => health::run(pipeline, client, output).await,
            None => server(client, output).await,
        }
    }
}

async fn server(client: &Client, output: &Output) -> Result<(), CliError> {
    let status = client.status().await?;
    let (header, log) = (status.header.unwrap_or_default(), status.log.unwrap_or_default());
    let counters = status.counters.unwrap_or_default();
    let no_space = status.store.as_ref().map_or("", |store| store.no_space.as_str());
    let mut properties = vec![
        ("endpoint", Cell::text(client.endpoint())),
        ("health", Cell::text(fitness(&log.failure, no_space))),
        ("version", Cell::text(status.version)),
        ("cluster", Cell::text(header.cluster_id)),
        ("generation", Cell::count(header.generation)),
        ("uptime_ms", Cell::duration(status.uptime_ms)),
        ("lsn", Cell::lsn(status.durable_lsn)),
        ("log_segments", Cell::count(log.segments)),
        ("log_bytes", Cell::bytes(log.bytes)),
        ("pipelines", Cell::count(status.pipelines)),
        ("branches", Cell::count(status.branches)),
        ("leases", Cell::count(status.leases)),
        ("commits", Cell::count(counters.commits)),
        ("stages", Cell::count(counters.stages)),
        ("barriers", Cell::count(counters.barriers)),
        ("grants", Cell::count(counters.grants)),
        ("keepalives", Cell::count(counters.keepalives)),
        ("refusals", health::refusals(&counters.refusals)),
    ];
    if let Some(store) = &status.store {
        properties.extend(store_properties(store, status.durable_lsn));
    }
    output.record(properties)?;
    if !output.is_json() {
        for damage in status.store.iter().flat_map(|store| &store.damage) {
            note(damage_words(damage));
        }
    }
    Ok(())
}

fn fitness(failure: &str, no_space: &str) -> String {
    match (failure, no_space) {
        ("", "") => "serving".to_owned(),
        ("", no_space) => format!("no room for more than reads, releases and keepalives: {no_space}"),
        (failure, _) => format!("failed: {failure}"),
    }
}

fn store_properties(store: &StoreStatus, newest: u64) -> [(Column, Cell); 9] {
    let damage: Vec<Value> = store.damage.iter().map(damage_json).collect();
    [
        ("state", Cell::text(state_words(store.state_lsn, newest)).with_value(lsn(store.state_lsn))),
        (
            "index",
            Cell::text(index_words(store)).with_value(json!({
                "state": store.index_state, "detail": store.index_detail, "lsn": lsn(store.index_lsn),
            })),
        ),
        (
            "sealed_bytes",
            Cell::text(format!(
                "{}, of which {} needed",
                human_bytes(store.sealed_bytes),
                human_bytes(store.live_bytes)
            ))
            .with_value(json!(store.sealed_bytes)),
        ),
        ("live_bytes", Cell::bytes(store.live_bytes)),
        (
            "compaction",
            Cell::text(compaction_words(store)).with_value(json!({
                "runs": store.compactions, "freed_bytes": store.compacted_bytes, "lsn": lsn(store.compacted_lsn),
            })),
        ),
        (
            "scrub",
            Cell::text(scrub_words(store)).with_value(json!({
                "permille": store.scrub_permille,
                "ended": (store.scrubbed_at_ms != 0).then(|| time(store.scrubbed_at_ms)),
            })),
        ),
        (
            "damage",
            Cell::text(match damage.len() {
                0 => "none found".to_owned(),
                1 => "1 place, see below".to_owned(),
                many => format!("{many} places, see below"),
            })
            .with_value(json!(damage)),
        ),
        ("no_space", text_or_none(&store.no_space)),
        ("trouble", text_or_none(&store.trouble)),
    ]
}

fn text_or_none(text: &str) -> Cell {
    if text.is_empty() { Cell::none(false) } else { Cell::text(text) }
}

fn state_words(state_lsn: u64, newest: u64) -> String {
    match Lsn::from_u64(state_lsn) {
        Lsn::ZERO => "no file yet: the next start reads the whole log".to_owned(),
        lsn if lsn.as_u64() >= newest => format!("in a file up to {lsn}, which is all"),
        lsn => format!("in a file up to {lsn}; the next start reads what came after"),
    }
}

fn index_words(store: &StoreStatus) -> String {
    let detail = if store.index_detail.is_empty() { String::new() } else { format!(": {}", store.index_detail) };
    match store.index_state.as_str() {
        "" => "-".to_owned(),
        "READY" => format!("ready, up to {}", Lsn::from_u64(store.index_lsn)),
        "REBUILDING" => format!("being made again; old checkpoints wait for it{detail}"),
        "FAILED" => format!("failed; old checkpoints cannot be read{detail}"),
        other => format!("{other}{detail}"),
    }
}

fn compaction_words(store: &StoreStatus) -> String {
    if store.compactions == 0 {
        return "none since the start".to_owned();
    }
    format!("{} since the start, which freed {}", store.compactions, human_bytes(store.compacted_bytes))
}

fn scrub_words(store: &StoreStatus) -> String {
    let present = match store.scrub_permille {
        0 => String::new(),
        permille => format!("at {}.{} % of the present pass", permille / 10, permille % 10),
    };
    match (store.scrubbed_at_ms, present.as_str()) {
        (0, "") => "no pass begun".to_owned(),
        (0, _) => format!("{present}, the first"),
        (at_ms, "") => format!("all read by {}", time(at_ms)),
        (at_ms, _) => format!("all read by {}; {present}", time(at_ms)),
    }
}

fn damage_words(damage: &Damage) -> String {
    let facts = match (damage.first_lsn, damage.last_lsn) {
        (0, 0) => String::new(),
        (first, last) => format!(", facts {} to {}", Lsn::from_u64(first), Lsn::from_u64(last)),
    };
    let lost = if damage.checkpoints.is_empty() {
        String::new()
    } else {
        format!("; cannot be read: {}", damage.checkpoints.join(", "))
    };
    format!("damaged: {} at byte {}: {}{facts}{lost}", damage.file, damage.offset, damage.what)
}

fn damage_json(damage: &Damage) -> Value {
    json!({
        "file": damage.file, "offset": damage.offset, "what": damage.what, "first_lsn": lsn(damage.first_lsn),
        "last_lsn": lsn(damage.last_lsn), "checkpoints": damage.checkpoints,
    })
}

fn lsn(lsn: u64) -> Value {
    if lsn == 0 { Value::Null } else { json!(Lsn::from_u64(lsn).to_string()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_is_told_in_words() {
        let mut store =
            StoreStatus { state_lsn: 7 << 16, index_state: "READY".into(), index_lsn: 9 << 16, ..Default::default() };
        assert_eq!(state_words(0, 9 << 16), "no file yet: the next start reads the whole log");
        assert_eq!(state_words(store.state_lsn, 9 << 16), "in a file up to 7.0; the next start reads what came after");
        assert_eq!(state_words(store.state_lsn, 7 << 16), "in a file up to 7.0, which is all");
        assert_eq!(index_words(&store), "ready, up to 9.0");
        (store.index_state, store.index_detail) = ("REBUILDING".into(), "its file did not open".into());
        assert_eq!(index_words(&store), "being made again; old checkpoints wait for it: its file did not open");
        assert_eq!(compaction_words(&store), "none since the start");
        (store.compactions, store.compacted_bytes) = (3, 3 << 20);
        assert_eq!(compaction_words(&store), "3 since the start, which freed 3.0 MiB");
        assert_eq!(scrub_words(&store), "no pass begun");
        store.scrub_permille = 125;
        assert_eq!(scrub_words(&store), "at 12.5 % of the present pass, the first");
        store.scrubbed_at_ms = 1_000;
        assert_eq!(scrub_words(&store), "all read by 1970-01-01T00:00:01.000Z; at 12.5 % of the present pass");
        assert_eq!(fitness("", "x"), "no room for more than reads, releases and keepalives: x");
        assert_eq!(fitness("the disk is gone", "x"), "failed: the disk is gone");
    }

    #[test]
    fn damage_names_the_place_and_what_is_lost() {
        let damage = Damage {
            file: "log/1.seg".into(),
            offset: 4096,
            what: "bad CRC".into(),
            first_lsn: 5 << 16,
            last_lsn: 6 << 16,
            checkpoints: vec!["prod/orders/jfk@3".into()],
        };
        assert_eq!(
            damage_words(&damage),
            "damaged: log/1.seg at byte 4096: bad CRC, facts 5.0 to 6.0; cannot be read: prod/orders/jfk@3"
        );
    }
}
