//! Dead letters: none lost, none twice.

use fencepost_client::{Checkpoint, DeadLetter, DeadLetterId, Policy, Reason, StoredDeadLetter, TraceParent};

use crate::road::{Fuse, Lost, Store, fresh};

const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// Three of branch `jfk` and one of `lga`.
async fn four(store: &Store) -> Vec<DeadLetterId> {
    let trace: TraceParent = TRACE.parse().unwrap();
    let first = DeadLetter::new("a,,c", "no delay").position("row 7").traceparent(trace);
    let others = ["b", "c"].map(|row| DeadLetter::new(row, "too short"));
    let jfk = Checkpoint::at("10").rows_in(10).rows_out(7).dead_letter(first).dead_letters(others);
    store.worker("jfk").await.commit(jfk).await.unwrap();
    let lga = Checkpoint::at("20").dead_letter(DeadLetter::new("d", "too short"));
    store.worker("lga").await.commit(lga).await.unwrap();
    open(store).await
}

async fn open(store: &Store) -> Vec<DeadLetterId> {
    store.pipeline().dead_letters().list().all().await.unwrap().iter().map(StoredDeadLetter::id).collect()
}

#[tokio::test]
async fn dead_letters_come_with_the_commit_that_skips_them_and_are_listed_with_all_they_say() {
    let store = Store::open().await;
    store.pipeline().set_policy(Policy::new().reconcile_rows()).send().await.unwrap();
    let jfk = store.worker("jfk").await;
    let wrong = Checkpoint::at("10").rows_in(10).rows_out(10).dead_letter(DeadLetter::new("a", "b"));
    assert_eq!(jfk.commit(wrong).await.unwrap_err().reason(), Some(Reason::IntegrityMismatch));
    store.pipeline().set_policy(Policy::new()).send().await.unwrap();

    let ids = four(&store).await;
    assert_eq!(ids.len(), 4);
    let letters = store.pipeline().dead_letters().branch("jfk").list().all().await.unwrap();
    let first = &letters[0];
    assert_eq!((letters.len(), first.id(), first.branch(), first.sequence()), (3, ids[0], "jfk", 1));
    assert_eq!((&first.payload()[..], first.payload_bytes(), first.reason()), (&b"a,,c"[..], 4, "no delay"));
    assert_eq!((&first.position()[..], first.traceparent()), (&b"row 7"[..], TRACE.parse().ok()));
    assert_eq!((first.unreadable(), first.at_ms() > 0, letters[1].traceparent()), (None, true, None));
    let bare = store.pipeline().dead_letters().without_payload().list().all().await.unwrap();
    assert_eq!((bare[0].payload().len(), bare[0].payload_bytes(), bare[0].reason()), (0, 4, "no delay"));
    assert_eq!(store.pipeline().dead_letters().count().await.unwrap(), 4);
    assert_eq!(store.branch("jfk").head().await.unwrap().dead_letters(), 3);
}

#[tokio::test]
async fn a_replay_takes_each_letter_once_under_a_lease() {
    let store = Store::open().await;
    let ids = four(&store).await;
    let mut replay = store.pipeline().replay_dead_letters(fresh()).await.unwrap();
    let mut seen = Vec::new();
    while let Some(letter) = replay.next().await.unwrap() {
        seen.push(letter.id());
        if seen.len() == 2 {
            replay.done(seen.iter().copied()).await.unwrap();
        }
    }
    assert_eq!(seen, ids);
    let head = replay.worker().head().unwrap();
    assert_eq!((head.branch(), head.sequence(), &*head.position_str()), ("dead-letters", 1, &*ids[1].to_string()));
    assert_eq!(open(&store).await, ids[2..]);
    let twice = replay.done([ids[1], ids[2]]).await.unwrap_err();
    assert_eq!(twice.reason(), Some(Reason::DeadLetterHandled), "{twice}");
    assert_eq!(open(&store).await, ids[2..], "all or none");

    // Replaced, it replays nothing.
    let mut successor = store.pipeline().replay_dead_letters(fresh()).await.unwrap();
    assert_eq!(replay.done([ids[2]]).await.unwrap_err().reason(), Some(Reason::Fenced));
    assert_eq!(successor.next().await.unwrap().map(|letter| letter.id()), Some(ids[2]));
    successor.done([ids[2]]).await.unwrap();
    assert_eq!(open(&store).await, ids[3..]);
}

#[tokio::test]
async fn a_discard_is_once_whatever_is_lost() {
    for lost in [Lost::Request, Lost::Answer] {
        let store = Store::open().await;
        let ids = four(&store).await;
        let road = store.road();
        let pipeline = road.client().pipeline(crate::road::PIPELINE);
        road.lose("DiscardDeadLetters", lost);
        pipeline.discard_dead_letters(ids[..2].to_vec()).actor("ada").reason("beyond repair").send().await.unwrap();
        // If the log has it, it is not sent again.
        let sent = if lost == Lost::Request { 2 } else { 1 };
        assert_eq!((road.count("DiscardDeadLetters"), open(&store).await), (sent, ids[2..].to_vec()));
        let again = pipeline.discard_dead_letters([ids[0], ids[2]]).reason("again").send().await.unwrap_err();
        assert_eq!(again.reason(), Some(Reason::DeadLetterHandled));
        assert_eq!(open(&store).await, ids[2..]);
    }
}

#[tokio::test]
async fn a_discard_that_a_replay_has_overtaken_is_told_so() {
    let store = Store::open().await;
    let ids = four(&store).await;
    // The question where the log is has two steps, and the discard's first is the third: it is lost there.
    let fuse = Fuse::new(3);
    let road = store.road_with(&fuse);
    road.lose("DiscardDeadLetters", Lost::Request);
    let pipeline = road.client().pipeline(crate::road::PIPELINE);
    let overtake = async {
        fuse.blown().await;
        let replay = store.pipeline().replay_dead_letters(fresh()).await.unwrap();
        replay.done([ids[1]]).await.unwrap();
        fuse.mend();
    };
    let discard = pipeline.discard_dead_letters(ids[..2].to_vec()).actor("ada").reason("beyond repair").send();
    let (discarded, ()) = tokio::join!(discard, overtake);
    assert_eq!(discarded.unwrap_err().reason(), Some(Reason::DeadLetterHandled));
    assert_eq!((road.count("DiscardDeadLetters"), open(&store).await), (2, vec![ids[0], ids[2], ids[3]]));
}
