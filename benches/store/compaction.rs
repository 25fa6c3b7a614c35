//! What commits feel of compaction: the same load on a store whose upkeep works all the time, and on one that has none.

use std::sync::Arc;
use std::time::Duration;

use fencepost::v1::pipeline_service_client::PipelineServiceClient;
use fencepost::v1::{Policy, SetPolicyRequest};
use fencepost_server::config::Config;
use tempfile::TempDir;

use super::Settings;
use super::drive::{commit_at_random, median};
use super::store::{Branches, Store, config, pipelines, small_segments};

const BRANCHES: usize = 1_024;

struct Subject {
    name: &'static str,
    store: Store,
    branches: Arc<Branches>,
    _dir: TempDir,
}

pub(crate) async fn run(settings: &Settings) {
    let (turns, time) =
        settings.pick((1, Duration::from_millis(200)), (5, Duration::from_secs(2)), (9, Duration::from_secs(4)));
    let paced = Config::default().compaction_bytes_per_second;
    let subjects = [
        subject("no upkeep", paced, false).await,
        subject("paced", paced, true).await,
        subject("unpaced", 0, true).await,
    ];
    let mut rows = [const { [const { Vec::new() }; 3] }; 3];
    for _ in 0..turns {
        for (subject, row) in subjects.iter().zip(&mut rows) {
            let mut seen = commit_at_random(&subject.store.channel, &subject.branches, time).await;
            for (column, value) in row.iter_mut().zip([seen.rate(), seen.permille(500), seen.permille(990)]) {
                column.push(value);
            }
        }
    }
    let rows = rows.map(|row| row.map(median));
    let without = rows[0];
    for (subject, [rate, p50, p99]) in subjects.iter().zip(rows) {
        let compactions = subject.store.backend.upkeep.status().compactions;
        println!(
            "compaction: {:<9} {rate:>7.0} commits/s, p50 {p50:>6.0} us, p99 {p99:>6.0} us; throughput x {:.2} (aim 0.8), p99 x \
             {:.2} (aim 2); {compactions} compactions",
            subject.name,
            rate / without[0],
            p99 / without[2]
        );
    }
    for subject in subjects {
        subject.store.close().await;
    }
}

async fn subject(name: &'static str, compaction_bytes_per_second: u64, has_upkeep: bool) -> Subject {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let config = Config { compaction_bytes_per_second, ..small_segments(config(dir.path(), BRANCHES)) };
    let store = Store::open(config).await;
    let branches = Branches::take(&store.backend.sequencer, BRANCHES).await;
    for pipeline in pipelines() {
        keep_only_the_newest(&store, pipeline).await;
    }
    if !has_upkeep {
        store.backend.upkeep.stop();
    }
    Subject { name, store, branches: Arc::new(branches), _dir: dir }
}

async fn keep_only_the_newest(store: &Store, pipeline: String) {
    let request = SetPolicyRequest {
        pipeline,
        policy: Some(Policy { keep_last: 1, ..Policy::default() }),
        actor: "bench".to_owned(),
        reason: "much to compact".to_owned(),
        ..SetPolicyRequest::default()
    };
    PipelineServiceClient::new(store.channel.clone()).set_policy(request).await.expect("a policy");
}
