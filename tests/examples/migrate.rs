//! What `migrate_table` takes, and what it refuses before anything is moved.

use std::path::Path;

use tokio_stream::StreamExt as _;

use crate::postgres::server::{ABSENT, Postgres};
use crate::program::{root, run};
use crate::support::Store;

/// From the page.
const COPY: &str = "COPY (SELECT job, part, last_offset, updated_at FROM checkpoints) TO STDOUT (FORMAT csv, HEADER)";

/// Migrates two dumps, and returns what was said about it and how many pipelines there are then.
async fn refused(postgres: &str, redis: &str) -> (String, usize) {
    let store = Store::open(None).await.unwrap();
    let (table, hash) = (store.scratch().join("table.csv"), store.scratch().join("hash.redis"));
    std::fs::write(&table, postgres).unwrap();
    std::fs::write(&hash, redis).unwrap();
    let shown = |path: &Path| path.to_str().unwrap().to_owned();
    let arguments = ["migrate", "--endpoint", store.endpoint(), "--namespace", "moved"];
    let ended =
        run("migrate_table", &[&arguments[..], &["--postgres", &shown(&table), "--redis", &shown(&hash)]].concat());
    assert_eq!(ended.status.code(), Some(1), "{}", ended.said);
    let pipelines = store.client().await.unwrap().pipelines("").all().await.unwrap().len();
    (ended.said, pipelines)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_real_postgres_copies_out_is_migrated() {
    assert!(std::fs::read_to_string(root().join("docs/cookbook/migrate.md")).unwrap().contains(COPY));
    if Postgres::programs().is_none() {
        eprintln!("SKIPPED what_a_real_postgres_copies_out_is_migrated: {ABSENT}");
        return;
    }
    let postgres = Postgres::start().await.unwrap();
    let client = postgres.connect().await.unwrap();
    let table = "CREATE TABLE checkpoints (job text, part text, last_offset bigint, updated_at timestamptz);
                 INSERT INTO checkpoints VALUES ('orders', '0', 4096, now()), ('clicks', 'eu-west-1', 918273, now())";
    client.batch_execute(table).await.unwrap();
    let mut copied = Vec::new();
    let mut rows = std::pin::pin!(client.copy_out(COPY).await.unwrap());
    while let Some(part) = rows.next().await {
        copied.extend_from_slice(&part.unwrap());
    }

    let store = Store::open(None).await.unwrap();
    let (dump, hash) = (store.scratch().join("table.csv"), store.scratch().join("hash.redis"));
    std::fs::write(&dump, copied).unwrap();
    std::fs::write(&hash, "").unwrap();
    let files = ["--postgres", dump.to_str().unwrap(), "--redis", hash.to_str().unwrap()];
    let ended = run(
        "migrate_table",
        &[&["migrate", "--endpoint", store.endpoint(), "--namespace", "prod"], &files[..]].concat(),
    );
    assert!(ended.status.success(), "{}", ended.said);
    let moved = store.client().await.unwrap().pipeline("prod/clicks").branch("eu-west-1").head().await.unwrap();
    assert_eq!((moved.sequence(), &*moved.position_str()), (1, "918273"));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_rows_that_would_be_one_branch_are_refused_before_anything_is_moved() {
    let table = std::fs::read_to_string(root().join("examples/data/checkpoints.csv")).unwrap();
    let (said, pipelines) = refused(&table, "# ckpt:orders\n3\n17\n").await;
    assert!(said.contains("are both moved/orders, branch '3': keep one"), "{said}");
    assert_eq!(pipelines, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dump_that_cannot_be_read_is_named_with_its_line_and_what_was_expected() {
    let header = "job,part,last_offset,updated_at";
    for (table, hash, expected) in [
        ("job,part\n", "", "line 1: found 'job,part', expected 'job,part,last_offset,updated_at'"),
        ("{header}\norders,0,1,now\norders,\"1\n", "", "line 3: found 'orders,\"1', expected 4 columns"),
        ("{header}\n", "0\n17\n", "line 1: found '0', expected '# ckpt:JOB'"),
        ("{header}\n", "# lock:orders\n", "line 1: found key 'lock:orders', expected 'ckpt:JOB'"),
        ("{header}\n", "# ckpt:orders\n0\n", "line 2: '0' has no value after it"),
    ] {
        let (said, pipelines) = refused(&table.replace("{header}", header), hash).await;
        assert!(said.contains(expected), "{said}");
        assert_eq!(pipelines, 0);
    }
}
