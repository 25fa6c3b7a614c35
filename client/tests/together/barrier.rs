//! Barriers: arriving, waiting, and what becomes of it when answers are lost, workers are replaced and others are missing.

use std::time::Duration;

use fencepost_client::{Applied, BarrierInfo, BarrierState, Checkpoint, Error, Loss, Outcome, Reason, Token, Worker};
use tokio::time::timeout;

use crate::road::{Fuse, Lost, PATIENCE, Store};

const DAY: &str = "2013-01-05";

async fn open(store: &Store) -> BarrierInfo {
    store.pipeline().open_barrier(DAY).participants(["lga", "jfk"]).actor("ada").open().await.unwrap()
}

async fn two_workers(store: &Store) -> (Worker, Worker) {
    open(store).await;
    (store.worker("jfk").await, store.worker("lga").await)
}

fn arrived(barrier: &BarrierInfo) -> Vec<(&str, bool)> {
    barrier.participants.iter().map(|participant| (&*participant.branch, participant.arrived)).collect()
}

fn head_of(worker: &Worker) -> (u64, Option<String>, String) {
    let head = worker.head().unwrap();
    (head.sequence(), head.barrier().map(str::to_owned), head.position_str().into_owned())
}

#[tokio::test]
async fn the_arrival_that_completes_the_set_commits_what_all_have_staged_in_one_fact() {
    let store = Store::open().await;
    let (jfk, lga) = two_workers(&store).await;
    let first = jfk.arrive(DAY, Checkpoint::at("10").state("of jfk")).await.unwrap();
    assert_eq!((first.state(), arrived(&first)), (BarrierState::Open, vec![("jfk", true), ("lga", false)]));
    assert_eq!((jfk.sequence(), jfk.staged().unwrap().barrier()), (0, Some(DAY)));

    let last = lga.arrive(DAY, Checkpoint::at("20")).await.unwrap();
    assert_eq!(last.state(), BarrierState::Committed);
    assert_eq!((head_of(&lga), lga.staged()), ((1, Some(DAY.to_owned()), "20".to_owned()), None));
    let waited = timeout(PATIENCE, jfk.wait_at(DAY)).await.unwrap().unwrap();
    assert_eq!((waited.sequence, waited.lsn.as_u64(), waited.outcome), (1, last.closed_lsn, Outcome::Applied));
    assert_eq!((head_of(&jfk), jfk.staged()), ((1, Some(DAY.to_owned()), "10".to_owned()), None));
    assert_eq!(&jfk.head().unwrap().state()[..], b"of jfk");
    let stored = store.branch("jfk").head().await.unwrap();
    assert_eq!((stored.lsn(), stored.commit_id()), (waited.lsn, jfk.head().unwrap().commit_id()));
    assert_eq!(jfk.commit(Checkpoint::at("11")).await.unwrap().sequence, 2);
}

#[tokio::test]
async fn workers_that_arrive_and_wait_go_on_together() {
    let store = Store::open().await;
    let (jfk, lga) = two_workers(&store).await;
    for (sequence, day) in ["2013-01-06", "2013-01-07"].into_iter().enumerate() {
        store.pipeline().open_barrier(day).participants(["jfk", "lga"]).open().await.unwrap();
        let both = async {
            tokio::join!(jfk.arrive_and_wait(day, Checkpoint::at(day)), lga.arrive_and_wait(day, Checkpoint::at(day)),)
        };
        let (one, other) = timeout(PATIENCE, Box::pin(both)).await.unwrap();
        assert_eq!(one.as_ref().unwrap().lsn, other.unwrap().lsn);
        assert_eq!(one.unwrap().sequence, sequence as u64 + 1);
    }
}

#[tokio::test]
async fn every_participant_may_open_the_barrier_and_those_that_wait_are_listed() {
    let store = Store::open().await;
    let opened = open(&store).await;
    assert_eq!(open(&store).await, opened, "the same again");
    let other = store.pipeline().open_barrier(DAY).participants(["jfk", "ewr"]).open().await.unwrap_err();
    assert_eq!(other.reason(), Some(Reason::Exists));
    let listed = store.embedded.client().waiting_barriers().all().await.unwrap();
    assert_eq!(listed, store.pipeline().waiting_barriers().all().await.unwrap());
    assert_eq!((listed.len(), &*listed[0].name, arrived(&listed[0])), (1, DAY, vec![("jfk", false), ("lga", false)]));

    let jfk = store.worker("jfk").await;
    assert_eq!(jfk.open_barriers().iter().map(|barrier| &*barrier.name).collect::<Vec<_>>(), [DAY]);
    assert!(store.worker("ewr").await.open_barriers().is_empty());
    store.pipeline().barrier(DAY).abort("ada", "a test").await.unwrap();
    assert!(store.pipeline().waiting_barriers().all().await.unwrap().is_empty());
    assert_eq!(store.pipeline().barriers().all().await.unwrap()[0].state(), BarrierState::Aborted);
    let unknown = store.pipeline().barrier("yesterday").get().await.unwrap_err();
    assert_eq!(unknown.reason(), Some(Reason::StateMissing));
}

#[tokio::test]
async fn a_watch_tells_each_change_once_and_ends_with_the_barrier() {
    let store = Store::open().await;
    let (jfk, lga) = two_workers(&store).await;
    let mut watch = store.pipeline().barrier(DAY).watch();
    let mut next = async || timeout(PATIENCE, watch.next()).await.unwrap().unwrap();
    assert_eq!(arrived(&next().await.unwrap()), [("jfk", false), ("lga", false)]);
    lga.arrive(DAY, Checkpoint::at("20")).await.unwrap();
    assert_eq!(arrived(&next().await.unwrap()), [("jfk", false), ("lga", true)]);
    jfk.arrive(DAY, Checkpoint::at("10")).await.unwrap();
    assert_eq!(next().await.unwrap().state(), BarrierState::Committed);
    assert_eq!(next().await, None);
}

#[tokio::test]
async fn an_arrival_has_one_effect_whatever_is_lost() {
    for lost in [Lost::Request, Lost::Answer] {
        let store = Store::open().await;
        open(&store).await;
        let road = store.road();
        let (jfk, lga) = (road.worker("jfk").await, road.worker("lga").await);
        road.lose("Arrive", lost);
        assert_eq!(jfk.arrive(DAY, Checkpoint::at("10")).await.unwrap().state(), BarrierState::Open);
        // This one commits the barrier. Its answer lost, the repetition finds it closed.
        road.lose("Arrive", lost);
        assert_eq!(lga.arrive(DAY, Checkpoint::at("20")).await.unwrap().state(), BarrierState::Committed);
        assert_eq!(head_of(&lga), (1, Some(DAY.to_owned()), "20".to_owned()));
        timeout(PATIENCE, jfk.wait_at(DAY)).await.unwrap().unwrap();
        assert_eq!(road.count("Arrive"), 4);
        for worker in [&jfk, &lga] {
            assert_eq!(worker.commit(Checkpoint::at("30")).await.unwrap().sequence, 2);
        }
    }
}

#[tokio::test]
async fn a_repeated_arrival_is_no_sign_of_life() {
    let store = Store::open().await;
    open(&store).await;
    let jfk = store.worker("jfk").await;
    jfk.arrive(DAY, Checkpoint::at("10")).await.unwrap();
    // Long enough before the first keepalive, which is one.
    let later = jfk.ttl() * 88 / 100;
    while jfk.validity() > later {
        tokio::task::yield_now().await;
    }
    jfk.arrive(DAY, Checkpoint::at("10")).await.unwrap();
    jfk.arrive_staged(DAY).await.unwrap();
    assert!(jfk.validity() < later, "{:?}", jfk.validity());
}

#[tokio::test]
async fn an_arrival_that_was_given_up_half_way_is_settled_before_the_next_operation() {
    // Two steps for the resume, two for the stage; then before the arrival was there, and after.
    for (steps, was_there) in [(5, false), (6, true)] {
        let store = Store::open().await;
        open(&store).await;
        let lga = store.worker("lga").await;
        lga.arrive(DAY, Checkpoint::at("20")).await.unwrap();
        let fuse = Fuse::new(steps);
        let jfk = store.road_with(&fuse).worker("jfk").await;
        tokio::select! {
            arrived = jfk.arrive(DAY, Checkpoint::at("10")) => panic!("{arrived:?}"),
            () = fuse.blown() => {}
        }
        assert_eq!(jfk.sequence(), 0, "nobody knows");
        if was_there {
            // The barrier is committed, and this is the next checkpoint.
            assert_eq!(jfk.commit(Checkpoint::at("11")).await.unwrap().sequence, 2);
        } else {
            let pending = jfk.commit(Checkpoint::at("11")).await.unwrap_err();
            assert_eq!(pending.reason(), Some(Reason::StagedPending));
        }
        if !was_there {
            // The same again arrives.
            let closed = jfk.arrive(DAY, Checkpoint::at("10")).await.unwrap();
            assert_eq!((closed.state(), jfk.sequence()), (BarrierState::Committed, 1));
            assert_eq!(jfk.arrive(DAY, Checkpoint::at("10")).await.unwrap(), closed, "and again is the same");
            assert_eq!((jfk.sequence(), jfk.staged()), (1, None));
        }
        assert_eq!(lga.wait_at(DAY).await.unwrap().sequence, 1);
    }
}

#[tokio::test]
async fn what_a_barrier_has_committed_is_not_called_discarded() {
    let store = Store::open().await;
    open(&store).await;
    let lga = store.worker("lga").await;
    // Two steps each for the resume, the stage, the arrival and the look at the barrier: the discard is on its way.
    let fuse = Fuse::new(9);
    let jfk = store.road_with(&fuse).worker("jfk").await;
    jfk.arrive(DAY, Checkpoint::at("10").state("of jfk")).await.unwrap();
    let overtake = async {
        fuse.blown().await;
        assert_eq!(lga.arrive(DAY, Checkpoint::at("20")).await.unwrap().state(), BarrierState::Committed);
        fuse.mend();
    };
    let (discarded, ()) = tokio::join!(jfk.discard_staged("not wanted"), overtake);
    let error = discarded.unwrap_err();
    assert_eq!((error.reason(), error.applied()), (Some(Reason::BarrierClosed), Applied::No), "{error}");
    for part in [DAY, "as sequence 1", "before it could be discarded"] {
        assert!(error.to_string().contains(part), "{error}");
    }
    let closed = store.pipeline().barrier(DAY).get().await.unwrap().closed_lsn;
    assert_eq!(error.refusal().unwrap().metadata()["closed_lsn"], closed.to_string());
    assert_eq!((head_of(&jfk), jfk.staged()), ((1, Some(DAY.to_owned()), "10".to_owned()), None));
    assert_eq!(jfk.commit(Checkpoint::at("11")).await.unwrap().sequence, 2);
}

#[tokio::test]
async fn whoever_waits_for_a_barrier_that_is_aborted_is_told_who_was_missing_and_goes_on_at_its_head() {
    let store = Store::open().await;
    let (jfk, _lga) = two_workers(&store).await;
    jfk.commit(Checkpoint::at("5")).await.unwrap();
    jfk.arrive(DAY, Checkpoint::at("10")).await.unwrap();
    let barrier = store.pipeline().barrier(DAY);
    let abort = async {
        let aborted = barrier.abort("ada", "lga is on fire").await.unwrap();
        assert_eq!(barrier.abort("ada", "once more").await.unwrap(), aborted, "that is as it was");
        aborted
    };
    let (waited, aborted) = tokio::join!(timeout(PATIENCE, jfk.wait_at(DAY)), abort);
    let error = waited.unwrap().unwrap_err();
    assert_eq!((error.reason(), error.applied()), (Some(Reason::BarrierAborted), Applied::No));
    let said = error.to_string();
    for part in [DAY, "lga is on fire", "missing: lga (of loader)"] {
        assert!(said.contains(part), "{said}");
    }
    assert!(!said.contains("jfk"), "{said}");
    assert_eq!(error.refusal().unwrap().metadata()["missing"], "lga");
    assert_eq!((jfk.sequence(), jfk.staged(), arrived(&aborted).len()), (1, None, 2));
    assert_eq!(jfk.commit(Checkpoint::at("10")).await.unwrap().sequence, 2);
    let waited = barrier.wait().await.unwrap_err();
    assert_eq!(waited.reason(), Some(Reason::BarrierAborted));
}

#[tokio::test]
async fn a_barrier_is_aborted_when_its_time_is_over() {
    let store = Store::open().await;
    let jfk = store.worker("jfk").await;
    let soon = Duration::from_millis(20);
    store.pipeline().open_barrier(DAY).participants(["jfk", "lga"]).timeout(soon).open().await.unwrap();
    // It may be over before the arrival, or while the worker waits.
    let error = timeout(PATIENCE, jfk.arrive_and_wait(DAY, Checkpoint::at("10"))).await.unwrap().unwrap_err();
    assert_eq!(error.reason(), Some(Reason::BarrierAborted), "{error}");
    assert!(error.to_string().contains("lga"), "{error}");
    assert_eq!((jfk.sequence(), jfk.staged()), (0, None));
    assert_eq!(jfk.commit(Checkpoint::at("10")).await.unwrap().sequence, 1);
}

#[tokio::test]
async fn what_comes_too_late_is_told_so_and_is_committed_beside() {
    let store = Store::open().await;
    let (jfk, lga) = two_workers(&store).await;
    jfk.arrive(DAY, Checkpoint::at("10")).await.unwrap();
    lga.arrive(DAY, Checkpoint::at("20")).await.unwrap();
    lga.commit(Checkpoint::at("21")).await.unwrap();
    let late = Checkpoint::at("22").state("after midnight");
    let error = lga.arrive_and_wait(DAY, late.clone()).await.unwrap_err();
    assert_eq!((error.reason(), error.applied()), (Some(Reason::BarrierClosed), Applied::No), "{error}");
    assert_eq!((lga.sequence(), lga.staged()), (2, None), "nothing is in the way");

    let beside = store.worker("late").await;
    beside.commit(late.late_for(DAY)).await.unwrap();
    assert_eq!(store.branch("late").head().await.unwrap().late_for(), Some(DAY));
    assert_eq!(lga.commit(Checkpoint::at("23")).await.unwrap().sequence, 3);
}

#[tokio::test]
async fn other_content_for_a_barrier_that_has_just_committed_this_branch_comes_too_late() {
    for is_lost in [false, true] {
        let store = Store::open().await;
        let (jfk, road) = (store.worker("jfk").await, store.road());
        open(&store).await;
        let lga = road.worker("lga").await;
        jfk.arrive(DAY, Checkpoint::at("10")).await.unwrap();
        let day = Checkpoint::at("20").state("the day").rows_in(3);
        let closed = lga.arrive(DAY, day.clone()).await.unwrap();
        for other in [Checkpoint::at("20").state("more of it").rows_in(3), day.clone().rows_in(4), Checkpoint::at("21")]
        {
            if is_lost {
                road.lose("Arrive", Lost::Answer);
            }
            let error = lga.arrive(DAY, other).await.unwrap_err();
            assert_eq!((error.reason(), error.applied()), (Some(Reason::BarrierClosed), Applied::No), "{error}");
            assert_eq!((lga.sequence(), lga.staged()), (1, None), "nothing is in the way");
        }
        assert_eq!(lga.arrive(DAY, day).await.unwrap(), closed, "the same again");
        assert_eq!(lga.commit(Checkpoint::at("22")).await.unwrap().sequence, 2);
    }
}

#[tokio::test]
async fn what_comes_too_late_is_told_so_also_under_the_id_of_what_was_there() {
    let store = Store::open().await;
    let (jfk, lga) = two_workers(&store).await;
    jfk.arrive(DAY, Checkpoint::at("10")).await.unwrap();
    lga.stage("tx-1", Checkpoint::at("20")).await.unwrap();
    assert_eq!(lga.arrive_staged(DAY).await.unwrap().state(), BarrierState::Committed);
    lga.commit(Checkpoint::at("21")).await.unwrap();
    lga.stage("tx-1", Checkpoint::at("22")).await.unwrap();
    let error = lga.arrive_staged(DAY).await.unwrap_err();
    assert_eq!((error.reason(), lga.staged().unwrap().sequence()), (Some(Reason::BarrierClosed), 3), "{error}");
}

#[tokio::test]
async fn what_a_barrier_does_not_await_is_not_staged_any_more_and_what_was_staged_before_is() {
    let store = Store::open().await;
    open(&store).await;
    let ewr = store.worker("ewr").await;
    let error = ewr.arrive(DAY, Checkpoint::at("1")).await.unwrap_err();
    assert_eq!((error.applied(), ewr.staged()), (Applied::No, None), "{error}");
    let error = ewr.arrive("yesterday", Checkpoint::at("1")).await.unwrap_err();
    assert_eq!((error.reason(), ewr.staged()), (Some(Reason::StateMissing), None), "{error}");
    ewr.stage("tx-1", Checkpoint::at("1")).await.unwrap();
    ewr.arrive_staged(DAY).await.unwrap_err();
    assert_eq!(ewr.staged().unwrap().barrier(), None);
    assert_eq!(ewr.commit_staged().await.unwrap().sequence, 1);
    let nowhere = ewr.wait_at(DAY).await.unwrap_err();
    assert!(nowhere.to_string().contains("branch 'ewr' has not arrived at barrier '2013-01-05'"), "{nowhere}");
}

#[tokio::test]
async fn the_successor_of_a_participant_arrives_again_with_what_it_finds_staged() {
    let store = Store::open().await;
    let (old, lga) = two_workers(&store).await;
    old.arrive(DAY, Checkpoint::at("10").state("of jfk")).await.unwrap();
    let waits = tokio::spawn(async move { old.wait_at(DAY).await });
    let new = store.worker("jfk").await;
    assert_eq!(new.open_barriers()[0].name, DAY);
    assert_eq!(arrived(&store.pipeline().barrier(DAY).get().await.unwrap()), [("jfk", false), ("lga", false)]);
    assert_eq!(new.staged().unwrap().barrier(), None);
    lga.arrive(DAY, Checkpoint::at("20")).await.unwrap();

    new.arrive_staged(DAY).await.unwrap();
    assert_eq!(head_of(&new), (1, Some(DAY.to_owned()), "10".to_owned()));
    assert_eq!(new.head().unwrap().token(), new.token());
    // The one that was replaced does not take its successor's arrival for its own.
    let error = timeout(PATIENCE, waits).await.unwrap().unwrap().unwrap_err();
    let by: Option<Token> = error.current_token();
    assert!(matches!(error, Error::Lost(Loss::Fenced { .. })), "{error}");
    assert_eq!(by, Some(new.token()));
}

#[tokio::test]
async fn waiting_goes_on_across_a_restart_of_the_server() {
    let store = Store::open().await;
    open(&store).await;
    let road = store.road();
    let (jfk, lga) = (road.worker("jfk").await, road.worker("lga").await);
    jfk.arrive(DAY, Checkpoint::at("10")).await.unwrap();
    let waits = tokio::spawn(async move { jfk.wait_at(DAY).await });
    while road.count("AwaitBarrier") == 0 {
        tokio::task::yield_now().await;
    }
    let store = store.restart().await;
    road.lead_to(&store);
    timeout(PATIENCE, lga.arrive(DAY, Checkpoint::at("20"))).await.unwrap().unwrap();
    assert_eq!(timeout(PATIENCE, waits).await.unwrap().unwrap().unwrap().sequence, 1);
}
