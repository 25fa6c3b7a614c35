//! Merges are committed once, whoever makes them again.

use fencepost_client::{Checkpoint, Error, Merge, MergeInput, Reason, Worker, merge};

use crate::road::{Fuse, Lost, Store};

/// Two branches with two checkpoints each.
async fn inputs(store: &Store) {
    for branch in ["ewr", "jfk"] {
        let worker = store.worker(branch).await;
        for position in ["1", "2"] {
            worker.commit(Checkpoint::at(position)).await.unwrap();
        }
    }
}

fn of_the_day(output: &[&str]) -> (Merge, Checkpoint) {
    let merge = Merge::by("latest", "1").inputs([("jfk", 2), ("ewr", 1)]).output_digest(merge::digest(output));
    (merge, Checkpoint::at("2013-01-05").state(output.join("\n")))
}

async fn merged(worker: &Worker, output: &[&str]) -> Result<fencepost_client::Merged, Error> {
    let (merge, checkpoint) = of_the_day(output);
    worker.merge(merge, checkpoint).await
}

#[tokio::test]
async fn the_same_inputs_are_merged_once_and_everybody_is_told_where() {
    let store = Store::open().await;
    inputs(&store).await;
    let (day, other) = (store.worker("day").await, store.worker("other").await);
    let first = merged(&day, &["a", "b"]).await.unwrap();
    assert_eq!((&*first.branch, first.sequence, first.already), ("day", 1, false));
    let head = day.head().unwrap();
    assert_eq!((head.sequence(), head.lsn(), &head.state()[..]), (1, first.lsn, &b"a\nb"[..]));
    assert_eq!(head.merge().unwrap().function, "latest");

    for worker in [&other, &day] {
        let again = merged(worker, &["a", "b"]).await.unwrap();
        assert_eq!((&*again.branch, again.sequence, again.lsn, again.already), ("day", 1, first.lsn, true));
    }
    assert_eq!((day.sequence(), other.sequence()), (1, 0), "nobody moves for it");
    assert_eq!(other.commit(Checkpoint::at("1")).await.unwrap().sequence, 1);

    let stored = store.branch("day").head().await.unwrap();
    let inputs: Vec<(&str, u64, bool)> = stored.merge().unwrap().inputs.iter().map(place).collect();
    assert_eq!(inputs, [("ewr", 1, true), ("jfk", 2, true)], "in order, with their places");
}

fn place(input: &MergeInput) -> (&str, u64, bool) {
    (&input.branch, input.sequence, input.lsn > 0)
}

#[tokio::test]
async fn another_output_of_the_same_inputs_is_refused() {
    let store = Store::open().await;
    inputs(&store).await;
    let day = store.worker("day").await;
    merged(&day, &["a", "b"]).await.unwrap();
    let diverged = merged(&day, &["a", "c"]).await.unwrap_err();
    assert_eq!(diverged.reason(), Some(Reason::MergeDiverged), "{diverged}");
    assert_eq!((day.sequence(), day.commit(Checkpoint::at("on")).await.unwrap().sequence), (1, 2));
    let (merge, checkpoint) = of_the_day(&["a"]);
    let invalid = day.merge(merge, checkpoint.dead_letter(fencepost_client::DeadLetter::new("x", "y"))).await;
    assert!(matches!(invalid, Err(Error::Invalid { field: "dead_letters", .. })), "{invalid:?}");
}

#[tokio::test]
async fn a_merge_has_one_effect_whatever_is_lost() {
    for lost in [Lost::Request, Lost::Answer] {
        let store = Store::open().await;
        inputs(&store).await;
        let road = store.road();
        let day = road.worker("day").await;
        road.lose("Merge", lost);
        let first = merged(&day, &["a", "b"]).await.unwrap();
        assert_eq!((first.sequence, road.count("Merge"), day.sequence()), (1, 2, 1));
        assert_eq!(day.head().unwrap().lsn(), first.lsn);
        assert_eq!(day.commit(Checkpoint::at("on")).await.unwrap().sequence, 2);
    }
}

#[tokio::test]
async fn a_merge_that_was_given_up_half_way_is_settled_before_the_next_operation() {
    // Two steps for the resume; then before the merge was there, and after; and, its answer lost, after the repetition told
    // where it is, and before that was read.
    for (steps, sequence) in [(3, 1), (4, 2), (7, 2)] {
        let store = Store::open().await;
        inputs(&store).await;
        let fuse = Fuse::new(steps);
        let road = store.road_with(&fuse);
        let day = road.worker("day").await;
        if steps == 7 {
            road.lose("Merge", Lost::Answer);
        }
        tokio::select! {
            merged = merged(&day, &["a", "b"]) => panic!("{merged:?}"),
            () = fuse.blown() => {}
        }
        assert_eq!(day.commit(Checkpoint::at("on")).await.unwrap().sequence, sequence);
        let first = store.branch("day").checkpoint(1).await.unwrap();
        assert_eq!(first.merge().is_some(), sequence == 2);
    }
}
