//! What becomes of calls that meet damage in the log.

use fencepost::Reason;

use crate::support::{Store, commit, name, refusal, rewind, rewind_to};

#[tokio::test]
async fn a_branch_is_not_set_back_to_what_cannot_be_read() {
    let store = Store::open().await;
    let token = store.with_history("main", 4).await;
    store.create_savepoint(name("before", "main", 2)).await.unwrap();
    store.damage("state at offset 2");
    for damaged in [rewind("main", 4, 2), rewind_to("main", 4, "before")] {
        refusal(&store.rewind(damaged).await.unwrap_err(), Reason::Corrupt);
    }
    store.commit(commit("main", token, 5)).await.expect("nobody was fenced");
    assert_eq!(store.rewind(rewind("main", 5, 3)).await.unwrap().sequence, 3);
}
