//! What the worker of `file_ingest` refuses, and what it leaves for later.

use std::path::PathBuf;

use crate::program::{Ended, run};
use crate::support::Store;

const HEADER: &str = "year,month,day,dep,sched,delay,arr,sched,arr_delay,carrier,flight,tail,origin,dest\n";
const ROW: &str = "2013,1,1,517,515,2,830,819,11,UA,1545,N14228,EWR,IAH\n";

/// A store, and a file to ingest into another.
struct Files {
    store: Store,
    input: PathBuf,
    output: PathBuf,
}

impl Files {
    /// With an input that has been ingested so far.
    async fn ingested(rows: usize) -> Files {
        let store = Store::open(None).await.unwrap();
        let (input, output) = (store.scratch().join("flights.csv"), store.scratch().join("flights.ndjson"));
        std::fs::write(&input, format!("{HEADER}{}", ROW.repeat(rows))).unwrap();
        let files = Files { store, input, output };
        let first = files.ingest(&["--start-fresh"]);
        assert!(first.status.success(), "{}", first.said);
        assert_eq!(files.lines(), rows);
        files
    }

    fn ingest(&self, more: &[&str]) -> Ended {
        let (input, output) = (self.input.to_str().unwrap(), self.output.to_str().unwrap());
        let endpoint = self.store.endpoint();
        let arguments =
            ["worker", "--endpoint", endpoint, "--pipeline", "test/files", "--input", input, "--output", output];
        run("file_ingest", &[&arguments, more].concat())
    }

    fn refused(&self, expected: &str) {
        let before = std::fs::read(&self.output).unwrap();
        let ended = self.ingest(&[]);
        assert_eq!(ended.status.code(), Some(1), "{}", ended.said);
        assert!(ended.said.contains(expected), "{}", ended.said);
        assert_eq!(std::fs::read(&self.output).unwrap(), before, "nothing was written");
    }

    fn lines(&self) -> usize {
        std::fs::read_to_string(&self.output).unwrap().lines().count()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_appended_later_is_ingested_by_the_next_run_once_its_line_is_whole() {
    let files = Files::ingested(3).await;
    let (half, rest) = ROW.split_at(20);
    std::fs::write(&files.input, format!("{HEADER}{}{half}", ROW.repeat(4))).unwrap();
    assert!(files.ingest(&[]).status.success());
    assert_eq!(files.lines(), 4);
    std::fs::write(&files.input, format!("{HEADER}{}{half}{rest}", ROW.repeat(4))).unwrap();
    assert!(files.ingest(&[]).status.success());
    assert_eq!(files.lines(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_position_is_not_used_in_another_file_of_the_same_name() {
    let files = Files::ingested(3).await;
    std::fs::write(&files.input, format!("{HEADER}{}", ROW.replace("UA", "AA").repeat(9))).unwrap();
    files.refused("is not the file of which");
    std::fs::write(&files.input, HEADER).unwrap();
    files.refused("is not the file of which");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_output_that_lost_what_was_committed_is_not_written_to() {
    let files = Files::ingested(3).await;
    std::fs::File::options().write(true).open(&files.output).unwrap().set_len(10).unwrap();
    files.refused("has 10 bytes, but");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_output_that_another_process_writes_is_not_written_to() {
    let files = Files::ingested(3).await;
    let other = std::fs::File::open(&files.output).unwrap();
    other.lock().unwrap();
    files.refused("another worker writes here");
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_progress_is_not_a_fresh_start() {
    let mut files = Files::ingested(3).await;
    files.input = files.store.scratch().join("never-seen.csv");
    std::fs::write(&files.input, format!("{HEADER}{ROW}")).unwrap();
    files.refused("STATE_MISSING");
}
