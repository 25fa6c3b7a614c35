//! Who follows the log hears of every fact, or that some are gone.

use fencepost::{Lsn, Reason};
use fencepost_client::Tail;

use crate::support::{PIPELINE, commit_all, open, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tail_from_below_the_floor_is_refused_unless_gaps_are_allowed() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir.path().join("data")).await.unwrap();
    let client = store.client();
    commit_all(&client, 10, 2_500).await;
    let found = until(&store, |it| it.store.as_ref().is_some_and(|it| it.compactions > 0)).await;

    let mut early = client.tail(Tail::from(Lsn::from_u64(5 << 16)));
    let refused = early.next().await.unwrap().unwrap_err();
    assert_eq!(refused.reason(), Some(Reason::Compacted));
    let floor: u64 = refused.refusal().unwrap().metadata()["floor"].parse().unwrap();
    assert!(floor > found.store.unwrap().compacted_lsn, "nothing above the floor was judged");

    let mut strict = client.tail(Tail::from(Lsn::from_u64(floor)));
    let (mut last, mut above) = (0, 0_u64);
    while let Some(fact) = strict.next().await {
        let (lsn, _) = fact.unwrap();
        assert!(lsn.as_u64() >= floor && lsn.as_u64() > last);
        (last, above) = (lsn.as_u64(), above + 1);
    }
    let mut all = client.tail(Tail::from(Lsn::ZERO).pipeline(PIPELINE));
    let (mut below, mut again) = (0, 0);
    while let Some(fact) = all.next().await {
        let (lsn, _) = fact.unwrap();
        if lsn.as_u64() < floor { below += 1 } else { again += 1 }
    }
    assert_eq!(again, above, "from the floor on both are the same");
    assert!(below > 0 && below + again < 25_000, "{below} of the facts below the floor are left");
    store.close().await.unwrap();
}
