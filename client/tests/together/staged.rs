//! Two phases: what is staged, what becomes of it, and what is settled when an answer was lost.

use std::time::Duration;

use fencepost::v1;
use fencepost::v1::commit_service_client::CommitServiceClient;
use fencepost_client::{Action, Applied, Checkpoint, Client, Commit, DeadLetter, Error, Loss, Outcome, Reason};
use tokio::time::timeout;

use crate::road::{Fuse, Lost, PATIENCE, PIPELINE, Store, fresh};

#[tokio::test]
async fn what_is_staged_is_no_resume_point_until_it_is_committed() {
    let store = Store::open().await;
    let worker = store.worker("jfk").await;
    let staged = worker.stage("tx-1", Checkpoint::at("10").state("half")).await.unwrap();
    assert_eq!((staged.id(), staged.sequence(), staged.token()), ("tx-1", 1, worker.token()));
    assert_eq!((worker.sequence(), worker.staged()), (0, Some(staged.clone())));
    assert_eq!(store.branch("jfk").head().await.unwrap_err().reason(), Some(Reason::StateMissing));

    let committed = worker.commit_staged().await.unwrap();
    assert_eq!((committed.sequence, committed.outcome), (1, Outcome::Applied));
    assert!(committed.lsn > staged.lsn());
    assert_eq!(worker.staged(), None);
    let (known, stored) = (worker.head().unwrap(), store.branch("jfk").head().await.unwrap());
    assert_eq!((known.lsn(), known.commit_id(), known.token()), (stored.lsn(), stored.commit_id(), stored.token()));
    assert_eq!((known.position(), known.state()), (stored.position(), stored.state()));
    assert_eq!((&*stored.position_str(), &stored.state()[..]), ("10", &b"half"[..]));
    assert_eq!(worker.commit(Checkpoint::at("20")).await.unwrap().sequence, 2);
}

#[tokio::test]
async fn the_next_worker_is_told_what_is_staged_and_can_commit_it() {
    let store = Store::open().await;
    let lost = store.worker("jfk").await;
    lost.commit(Checkpoint::at("5")).await.unwrap();
    let staged = lost.stage("tx-1", Checkpoint::at("10").state("half")).await.unwrap();

    let worker = store.worker("jfk").await;
    let found = worker.staged().unwrap();
    assert_eq!((found.id(), found.sequence(), found.token()), ("tx-1", 2, lost.token()));
    assert_eq!((found.lsn(), found.barrier(), found.staged_at_ms().is_some()), (staged.lsn(), None, true));
    assert_eq!((&*found.checkpoint().position_str(), &found.checkpoint().state()[..]), ("10", &b"half"[..]));
    worker.commit_staged().await.unwrap();
    let head = worker.head().unwrap();
    assert_eq!((head.sequence(), &head.state()[..], head.token()), (2, &b"half"[..], worker.token()));
    head.verify().unwrap();
}

#[tokio::test]
async fn while_something_is_staged_the_branch_takes_nothing_else_until_it_is_discarded() {
    let store = Store::open().await;
    let worker = store.worker("jfk").await;
    worker.stage("tx-1", Checkpoint::at("10")).await.unwrap();
    for refused in [
        worker.commit(Checkpoint::at("20")).await.unwrap_err(),
        worker.stage("tx-2", Checkpoint::at("20")).await.unwrap_err(),
    ] {
        assert_eq!(refused.reason(), Some(Reason::StagedPending), "{refused}");
    }
    let reused = worker.stage("tx-1", Checkpoint::at("20")).await.unwrap_err();
    assert_eq!(reused.reason(), Some(Reason::CommitIdReused), "{reused}");
    assert_eq!(worker.staged().map(|staged| staged.id().to_owned()).as_deref(), Some("tx-1"));

    worker.discard_staged("the sink rolled back").await.unwrap();
    assert_eq!((worker.staged(), worker.sequence()), (None, 0));
    assert_eq!(worker.commit(Checkpoint::at("20")).await.unwrap().sequence, 1);
    let nothing = worker.discard_staged("once more").await.unwrap_err();
    assert!(matches!(nothing, Error::Invalid { field: "staged", .. }), "{nothing}");
    let nothing = worker.commit_staged().await.unwrap_err();
    assert!(matches!(nothing, Error::Invalid { field: "staged", .. }), "{nothing}");
}

#[tokio::test]
async fn a_stage_a_discard_and_a_commit_by_reference_have_one_effect_whatever_is_lost() {
    for lost in [Lost::Request, Lost::Answer] {
        let store = Store::open().await;
        let road = store.road();
        let worker = road.worker("jfk").await;
        road.lose("Stage", lost);
        worker.stage("tx-1", Checkpoint::at("10")).await.unwrap();
        assert_eq!((road.count("Stage"), worker.staged().unwrap().sequence()), (2, 1));
        road.lose("DiscardStaged", lost);
        worker.discard_staged("not wanted").await.unwrap();
        assert_eq!((road.count("DiscardStaged"), worker.staged()), (2, None));

        worker.stage("tx-2", Checkpoint::at("20")).await.unwrap();
        road.lose("Commit", lost);
        let committed = worker.commit_staged().await.unwrap();
        assert_eq!((committed.sequence, worker.staged()), (1, None));
        assert_eq!(committed.outcome == Outcome::AlreadyApplied, lost == Lost::Answer);
        let stored = store.branch("jfk").head().await.unwrap();
        assert_eq!((stored.sequence(), &*stored.position_str()), (1, "20"));
        assert_eq!(worker.head().unwrap().lsn(), stored.lsn());
    }
}

#[tokio::test]
async fn a_stage_that_was_given_up_half_way_is_settled_before_the_next_operation() {
    // Steps: the resume has two; the stage's request is lost in the third, its answer in the fourth.
    for steps in [3, 4] {
        let store = Store::open().await;
        let fuse = Fuse::new(steps);
        let road = store.road_with(&fuse);
        let worker = road.worker("jfk").await;
        tokio::select! {
            staged = worker.stage("tx-1", Checkpoint::at("10")) => panic!("{staged:?}"),
            () = fuse.blown() => {}
        }
        assert_eq!(worker.staged(), None, "nobody knows");
        assert_eq!(worker.commit_staged().await.unwrap().sequence, 1);
        assert_eq!(worker.head().unwrap().position_str(), "10");
        assert_eq!(road.count("Stage"), 2);
    }
}

#[tokio::test]
async fn a_stage_that_is_in_doubt_at_the_deadline_is_settled_before_the_next_operation() {
    for lost in [Lost::Request, Lost::Answer] {
        let store = Store::open().await;
        let road = store.road();
        let client = road.client_with(Client::builder().commit_deadline(Duration::from_millis(200)));
        let worker = client.pipeline(PIPELINE).branch("jfk").resume(fresh()).await.unwrap();
        for _ in 0..1_000 {
            road.lose("Stage", lost);
        }
        let unknown = worker.stage("tx-1", Checkpoint::at("10")).await.unwrap_err();
        assert_eq!((unknown.applied(), worker.staged()), (Applied::Unknown, None), "{unknown}");
        let unknown = worker.commit(Checkpoint::at("20")).await.unwrap_err();
        assert_eq!(
            (unknown.applied(), road.count("Commit")),
            (Applied::Unknown, 0),
            "it is about the stage: {unknown}"
        );
        road.mend();
        // A slow disk may take longer than the deadline.
        let settled = async {
            loop {
                let error = worker.commit(Checkpoint::at("20")).await.unwrap_err();
                if error.applied() == Applied::No {
                    return error;
                }
            }
        };
        let pending = timeout(PATIENCE, settled).await.unwrap();
        assert_eq!(pending.reason(), Some(Reason::StagedPending));
        assert_eq!(worker.staged().unwrap().id(), "tx-1");
    }
}

#[tokio::test]
async fn that_nothing_is_staged_any_more_is_no_loss_of_the_lease() {
    let store = Store::open().await;
    store.pipeline().open_barrier("friday").participants(["jfk", "lga"]).open().await.unwrap();
    // Two steps each for the resume, the stage, the arrival and the look at the barrier: the commit is on its way.
    let fuse = Fuse::new(9);
    let worker = store.road_with(&fuse).worker("jfk").await;
    worker.arrive("friday", Checkpoint::at("10")).await.unwrap();
    let overtake = async {
        fuse.blown().await;
        store.pipeline().barrier("friday").abort("ada", "a test").await.unwrap();
        fuse.mend();
    };
    let (committed, ()) = tokio::join!(worker.commit_staged(), overtake);
    let gone = committed.unwrap_err();
    assert_eq!((gone.reason(), worker.staged()), (Some(Reason::StateMissing), None), "{gone}");
    assert_eq!(worker.commit(Checkpoint::at("20")).await.unwrap().sequence, 1);
}

#[tokio::test]
async fn a_discard_that_was_given_up_half_way_is_settled_before_the_next_operation() {
    // Two steps each for the resume and the stage; then before the discard was there, and after.
    for steps in [5, 6] {
        let store = Store::open().await;
        let fuse = Fuse::new(steps);
        let road = store.road_with(&fuse);
        let worker = road.worker("jfk").await;
        worker.stage("tx-1", Checkpoint::at("10")).await.unwrap();
        tokio::select! {
            discarded = worker.discard_staged("not wanted") => panic!("{discarded:?}"),
            () = fuse.blown() => {}
        }
        let nothing = worker.commit_staged().await.unwrap_err();
        assert!(matches!(nothing, Error::Invalid { field: "staged", .. }), "{nothing}");
        assert_eq!((worker.staged(), road.count("DiscardStaged")), (None, 2));
        assert_eq!(worker.commit(Checkpoint::at("20")).await.unwrap().sequence, 1);
    }
}

#[tokio::test]
async fn a_resync_shows_what_a_late_copy_of_a_stage_has_staged_after_its_discard() {
    let store = Store::open().await;
    store.worker("ewr").await;
    let worker = store.worker("jfk").await;
    let staged = worker.stage("tx-1", Checkpoint::at("10").state("half")).await.unwrap();
    worker.discard_staged("not wanted").await.unwrap();
    assert_eq!((worker.resync().await.unwrap(), worker.staged()), (None, None));

    let stored = staged.checkpoint();
    let checkpoint = v1::Checkpoint {
        position: stored.position().clone(),
        state: stored.state().clone(),
        ..v1::Checkpoint::default()
    };
    let copy = v1::StageRequest {
        pipeline: PIPELINE.to_owned(),
        branch: "jfk".to_owned(),
        token: worker.token().as_u64(),
        sequence: staged.sequence(),
        stage_id: staged.id().to_owned(),
        checkpoint: Some(checkpoint),
        ..v1::StageRequest::default()
    };
    let late = CommitServiceClient::new(store.embedded.channel()).stage(copy).await.unwrap().into_inner().lsn;
    let pending = worker.commit(Checkpoint::at("20")).await.unwrap_err();
    assert_eq!((pending.reason(), pending.action()), (Some(Reason::StagedPending), Action::Resync), "{pending}");
    assert_eq!(worker.staged(), None, "it does not know yet");
    assert_eq!(worker.resync().await.unwrap(), None);
    let found = worker.staged().unwrap();
    assert_eq!((found.id(), found.sequence(), found.lsn().as_u64()), ("tx-1", 1, late));
    assert_eq!((&*found.checkpoint().position_str(), &found.checkpoint().state()[..]), ("10", &b"half"[..]));
    assert_eq!((worker.resync().await.unwrap(), worker.staged()), (None, Some(found)), "the same again");

    assert_eq!(worker.commit_staged().await.unwrap().sequence, 1);
    assert_eq!((&*worker.head().unwrap().position_str(), worker.staged()), ("10", None));
    assert_eq!(worker.resync().await.unwrap(), Some(store.branch("jfk").head().await.unwrap()));
    assert_eq!((worker.staged(), worker.commit(Checkpoint::at("20")).await.unwrap().sequence), (None, 2));
}

#[tokio::test]
async fn a_commit_by_reference_that_was_given_up_half_way_is_made_once_when_it_is_asked_for_again() {
    // The sixth step is after the commit was applied, the fifth before it arrived.
    for (steps, outcome) in [(5, Outcome::Applied), (6, Outcome::AlreadyApplied)] {
        let store = Store::open().await;
        let fuse = Fuse::new(steps);
        let worker = store.road_with(&fuse).worker("jfk").await;
        worker.stage("tx-1", Checkpoint::at("10").state("s")).await.unwrap();
        tokio::select! {
            committed = worker.commit_staged() => panic!("{committed:?}"),
            () = fuse.blown() => {}
        }
        let committed = worker.commit_staged().await.unwrap();
        assert_eq!((committed.sequence, committed.outcome), (1, outcome));
        assert_eq!((worker.sequence(), worker.staged()), (1, None));
        assert_eq!(&worker.head().unwrap().state()[..], b"s");
        assert_eq!(worker.commit(Checkpoint::at("20")).await.unwrap().sequence, 2);
    }
}

#[tokio::test]
async fn what_several_workers_have_staged_is_committed_all_or_none() {
    let store = Store::open().await;
    let client = store.embedded.client();
    let resume = async |branch| client.pipeline(PIPELINE).branch(branch).resume(fresh()).await;
    let (jfk, lga) = (resume("jfk").await.unwrap(), resume("lga").await.unwrap());
    jfk.stage("tx-1", Checkpoint::at("10")).await.unwrap();
    let none = Commit::staged([&jfk, &lga]).send().await.unwrap_err();
    assert!(none.to_string().contains("branch 'lga' has nothing staged"), "{none}");
    assert_eq!((jfk.sequence(), jfk.staged().is_some()), (0, true));

    lga.stage("tx-1", Checkpoint::at("11")).await.unwrap();
    let committed = Commit::staged([&jfk, &lga]).send().await.unwrap();
    for (worker, position) in [(&jfk, "10"), (&lga, "11")] {
        let head = worker.head().unwrap();
        assert_eq!((head.lsn(), &*head.position_str(), worker.staged()), (committed.lsn, position, None));
    }
}

#[tokio::test]
async fn a_worker_that_was_replaced_stages_nothing_and_is_told() {
    let store = Store::open().await;
    let old = store.worker("jfk").await;
    old.stage("tx-1", Checkpoint::at("10")).await.unwrap();
    let new = store.worker("jfk").await;
    let refused = old.commit_staged().await.unwrap_err();
    assert_eq!((refused.reason(), refused.current_token()), (Some(Reason::Fenced), Some(new.token())));
    let loss = timeout(PATIENCE, old.lost()).await.unwrap();
    assert!(matches!(loss, Loss::Fenced { .. }), "{loss:?}");
    let refused = old.discard_staged("in vain").await.unwrap_err();
    assert!(matches!(refused, Error::Lost(_)), "{refused}");
    assert_eq!(new.staged().unwrap().id(), "tx-1");
}

#[tokio::test]
async fn dead_letters_that_are_staged_are_open_once_it_is_committed() {
    let store = Store::open().await;
    let worker = store.worker("jfk").await;
    let letter = DeadLetter::new("a,b,", "no third field");
    let staged = worker.stage("tx-1", Checkpoint::at("10").rows_in(1).rows_out(0).dead_letter(letter)).await.unwrap();
    assert_eq!(staged.checkpoint().integrity().unwrap().rows_dead, Some(1));
    assert_eq!(store.pipeline().dead_letters().count().await.unwrap(), 0);
    worker.commit_staged().await.unwrap();
    let open = store.pipeline().dead_letters().list().all().await.unwrap();
    assert_eq!((open.len(), open[0].reason(), &open[0].payload()[..]), (1, "no third field", &b"a,b,"[..]));
    assert_eq!((open[0].sequence(), worker.head().unwrap().dead_letters()), (1, 1));

    let refused = worker.stage("tx-2", Checkpoint::at("20").replayed([open[0].id()])).await.unwrap_err();
    assert!(matches!(refused, Error::Invalid { field: "replayed", .. }), "{refused}");
}

#[tokio::test]
async fn time_does_not_remove_what_is_staged() {
    let store = Store::open().await;
    let worker = store.branch("jfk").resume(fresh().ttl(Duration::from_secs(1))).await.unwrap();
    worker.stage("tx-1", Checkpoint::at("10")).await.unwrap();
    drop(worker);
    let store = store.restart().await;
    assert_eq!(store.worker("jfk").await.staged().unwrap().id(), "tx-1");
}
