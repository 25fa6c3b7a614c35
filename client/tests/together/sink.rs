//! Writing to a sink exactly once: counted, with the worker killed at every step of the way, once and twice, and replaced at
//! every step while it goes on.

use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex};

use fencepost_client::{
    Checkpoint, DeadLetter, Error, Loss, Pipeline, Reason, Sink, SinkError, Token, TwoPhase, TwoPhaseError,
};
use tokio::time::timeout;

use crate::road::{Fuse, PATIENCE, Road, Store, fresh};

/// Rows of the source, and rows in a batch.
const ROWS: u64 = 4;
const BATCH: u64 = 2;
/// A resume and a fence, then for each batch a stage, an apply and a commit, and a step on both sides of each.
const STEPS: usize = 2 * (2 + 3 * (ROWS / BATCH) as usize);
/// So many steps of a successor are tried: its way back, and some more. Farther on it is where a first worker has been.
const WAY_BACK: usize = 12;

/// What a table and the row of a fence hold. Outlives every worker.
#[derive(Debug, Default)]
struct Table {
    rows: Vec<u64>,
    token: Option<Token>,
    stage_id: Option<String>,
}

/// A connection to the table, which has a step before and after each transaction.
struct TableSink {
    table: Arc<Mutex<Table>>,
    fuse: Arc<Fuse>,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the table is on fire")]
struct OnFire;

impl TableSink {
    /// A transaction that refuses a lower token.
    async fn transact<T>(
        &self,
        token: Token,
        change: impl FnOnce(&mut Table) -> T,
    ) -> Result<T, SinkError<Infallible>> {
        self.fuse.step().await;
        let result = {
            let mut table = self.table.lock().unwrap();
            if let Some(by) = table.token.filter(|by| *by > token) {
                Err(SinkError::Fenced { by })
            } else {
                table.token = Some(token);
                Ok(change(&mut table))
            }
        };
        self.fuse.step().await;
        result
    }
}

impl Sink for TableSink {
    type Batch = [u64];
    type Error = Infallible;

    async fn fence(&mut self, token: Token) -> Result<Option<String>, SinkError<Infallible>> {
        self.transact(token, |table| table.stage_id.clone()).await
    }

    async fn apply(&mut self, token: Token, stage_id: &str, batch: &[u64]) -> Result<(), SinkError<Infallible>> {
        let write = |table: &mut Table| {
            table.rows.extend(batch);
            table.stage_id = Some(stage_id.to_owned());
        };
        self.transact(token, write).await
    }
}

/// One worker's life, from its resume until the source is at its end.
async fn load(road: &Arc<Road>, pipeline: &str, sink: TableSink) -> Result<(), TwoPhaseError<Infallible>> {
    let branch = road.client().pipeline(pipeline).branch("main");
    let mut loader = TwoPhase::start(branch.resume(fresh()).await?, sink).await?;
    loop {
        let done = loader.worker().head().map_or(0, |head| head.position_str().parse().unwrap());
        if done == ROWS {
            return Ok(());
        }
        let batch: Vec<u64> = (done..done + BATCH).collect();
        loader.write(&batch, Checkpoint::at((done + BATCH).to_string())).await?;
    }
}

/// Everything once, and the branch behind it.
async fn check(pipeline: &Pipeline, table: &Mutex<Table>, context: &str) {
    let mut rows = table.lock().unwrap().rows.clone();
    rows.sort_unstable();
    assert_eq!(rows, (0..ROWS).collect::<Vec<_>>(), "{context}");
    let head = pipeline.branch("main").head().await.unwrap();
    assert_eq!((head.sequence(), &*head.position_str()), (ROWS / BATCH, &*ROWS.to_string()), "{context}");
}

#[tokio::test]
async fn each_row_is_in_the_sink_exactly_once_wherever_the_worker_dies_and_wherever_its_successor_does() {
    let store = Store::open().await;
    let mut first = 0;
    let (mut ended_alive, mut deaths) = (false, 0);
    while !ended_alive {
        first += 1;
        for second in 1..=WAY_BACK {
            let name = format!("test/dies-{first}-{second}");
            let table = Arc::new(Mutex::new(Table::default()));
            for (life, steps) in [first, second, usize::MAX].into_iter().enumerate() {
                let fuse = Fuse::new(steps);
                let road = store.road_with(&fuse);
                let sink = TableSink { table: table.clone(), fuse: fuse.clone() };
                // If it dies the future is dropped where it is.
                let done = until_blown(&fuse, pin!(load(&road, &name, sink))).await;
                let died = done.is_none();
                done.transpose().unwrap();
                deaths += usize::from(died);
                ended_alive |= life == 0 && !died;
            }
            check(&store.embedded.client().pipeline(&name), &table, &name).await;
        }
    }
    assert_eq!(first - 1, STEPS, "every step was the last one once");
    assert!(deaths >= STEPS * WAY_BACK, "{deaths}");
}

#[tokio::test]
async fn each_row_is_in_the_sink_exactly_once_however_a_worker_and_the_one_that_it_replaced_go_on() {
    let store = Store::open().await;
    let mut asleep = 0;
    'steps: for first in 1.. {
        for second in 1..=WAY_BACK {
            let name = format!("test/zombie-{first}-{second}");
            let table = Arc::new(Mutex::new(Table::default()));
            let fuses = [Fuse::new(first), Fuse::new(second)];
            let roads = fuses.each_ref().map(|fuse| store.road_with(fuse));
            let sink = |fuse: &Arc<Fuse>| TableSink { table: table.clone(), fuse: fuse.clone() };
            let mut zombie = pin!(load(&roads[0], &name, sink(&fuses[0])));
            let mut successor = pin!(load(&roads[1], &name, sink(&fuses[1])));

            // It falls asleep, its successor does after it, and it wakes first.
            if let Some(done) = until_blown(&fuses[0], zombie.as_mut()).await {
                done.unwrap();
                break 'steps;
            }
            asleep += 1;
            let early = until_blown(&fuses[1], successor.as_mut()).await;
            fuses[0].mend();
            let woken = timeout(PATIENCE, zombie).await.unwrap();
            fuses[1].mend();
            let last = match early {
                Some(done) => done,
                None => timeout(PATIENCE, successor).await.unwrap(),
            };
            // Asleep in its resume it is its successor's successor.
            assert!(woken.is_ok() || last.is_ok(), "{name}: {woken:?}, {last:?}");
            for stopped in [woken, last].into_iter().filter_map(Result::err) {
                let reason = match &stopped {
                    TwoPhaseError::Fencepost(error) => error.reason(),
                    _ => None,
                };
                assert_eq!(reason, Some(Reason::Fenced), "{name}: {stopped}");
            }
            check(&store.embedded.client().pipeline(&name), &table, &name).await;
        }
    }
    assert_eq!(asleep, STEPS * WAY_BACK, "it fell asleep in every step");
}

/// What the work comes to, unless the fuse blows before that.
async fn until_blown<W: Future>(fuse: &Fuse, work: Pin<&mut W>) -> Option<W::Output> {
    tokio::select! {
        done = timeout(PATIENCE, work) => Some(done.unwrap()),
        () = fuse.blown() => None,
    }
}

#[tokio::test]
async fn a_sink_that_has_seen_a_higher_token_stops_the_worker() {
    let store = Store::open().await;
    let table = Arc::new(Mutex::new(Table::default()));
    let sink = TableSink { table: table.clone(), fuse: Fuse::new(usize::MAX) };
    let worker = store.worker("main").await;
    let lost = worker.lost();
    let mut loader = TwoPhase::start(worker, sink).await.unwrap();
    let higher = Token::from_u64(loader.worker().token().as_u64() + 7);
    table.lock().unwrap().token = Some(higher);
    let refused = loader.write(&[1], Checkpoint::at("1")).await.unwrap_err();
    assert!(
        matches!(&refused, TwoPhaseError::Fencepost(Error::Lost(Loss::Fenced { by, .. })) if *by == Some(higher)),
        "{refused}"
    );
    assert!(matches!(timeout(PATIENCE, lost).await.unwrap(), Loss::Fenced { .. }));
    assert_eq!(table.lock().unwrap().rows, Vec::<u64>::new());
}

/// Fails once, after it has written or before.
struct Failing {
    inner: TableSink,
    fails: Option<Fails>,
}

#[derive(Clone, Copy, Debug)]
enum Fails {
    BeforeIt,
    AfterIt,
}

impl Sink for Failing {
    type Batch = [u64];
    type Error = OnFire;

    async fn fence(&mut self, token: Token) -> Result<Option<String>, SinkError<OnFire>> {
        self.inner.fence(token).await.map_err(|_| SinkError::Failed(OnFire))
    }

    async fn apply(&mut self, token: Token, stage_id: &str, batch: &[u64]) -> Result<(), SinkError<OnFire>> {
        let fails = self.fails.take();
        if matches!(fails, Some(Fails::BeforeIt)) {
            return Err(OnFire)?;
        }
        self.inner.apply(token, stage_id, batch).await.map_err(|_| SinkError::Failed(OnFire))?;
        if fails.is_some() { Err(OnFire)? } else { Ok(()) }
    }
}

#[tokio::test]
async fn after_a_failure_of_the_sink_nothing_is_written_before_the_branch_was_resumed() {
    for fails in [Fails::BeforeIt, Fails::AfterIt] {
        let store = Store::open().await;
        let table = Arc::new(Mutex::new(Table::default()));
        let connect = |fails| Failing { inner: TableSink { table: table.clone(), fuse: Fuse::new(usize::MAX) }, fails };
        let mut loader = TwoPhase::start(store.worker("main").await, connect(Some(fails))).await.unwrap();
        let failed = loader.write(&[1, 2], Checkpoint::at("2")).await.unwrap_err();
        assert!(matches!(failed, TwoPhaseError::Sink(OnFire)), "{failed}");
        let unsettled = loader.write(&[1, 2], Checkpoint::at("2")).await.unwrap_err();
        assert!(matches!(unsettled, TwoPhaseError::Unsettled { .. }), "{unsettled}");
        assert!(unsettled.to_string().contains("resume the branch again"), "{unsettled}");

        let mut loader = TwoPhase::start(store.worker("main").await, connect(None)).await.unwrap();
        let has_it = matches!(fails, Fails::AfterIt);
        assert_eq!(loader.worker().sequence(), u64::from(has_it), "the head is what the sink has");
        assert_eq!(loader.worker().staged(), None);
        if !has_it {
            loader.write(&[1, 2], Checkpoint::at("2")).await.unwrap();
        }
        loader.write(&[3], Checkpoint::at("3")).await.unwrap();
        assert_eq!(table.lock().unwrap().rows, [1, 2, 3]);
    }
}

#[tokio::test]
async fn a_batch_that_was_given_up_half_way_is_not_written_again_before_the_branch_was_resumed() {
    // Two steps for the resume; then before and after the stage, and before and after the commit.
    for steps in 3..=6 {
        let store = Store::open().await;
        let table = Arc::new(Mutex::new(Table::default()));
        let fuse = Fuse::new(steps);
        let sink = || TableSink { table: table.clone(), fuse: Fuse::new(usize::MAX) };
        let mut loader = TwoPhase::start(store.road_with(&fuse).worker("main").await, sink()).await.unwrap();
        let given_up = until_blown(&fuse, pin!(loader.write(&[1, 2], Checkpoint::at("2")))).await;
        assert!(given_up.is_none(), "{steps}");
        for _ in 0..2 {
            let again = loader.write(&[1, 2], Checkpoint::at("2")).await.unwrap_err();
            assert!(matches!(again, TwoPhaseError::Unsettled { .. }), "{steps}: {again}");
        }
        let mut loader = TwoPhase::start(store.worker("main").await, sink()).await.unwrap();
        if loader.worker().sequence() == 0 {
            loader.write(&[1, 2], Checkpoint::at("2")).await.unwrap();
        }
        assert_eq!((&table.lock().unwrap().rows[..], loader.worker().sequence()), (&[1, 2][..], 1), "{steps}");
    }
}

#[tokio::test]
async fn a_batch_that_fencepost_refuses_is_not_written_and_the_next_one_is() {
    let store = Store::open().await;
    let table = Arc::new(Mutex::new(Table::default()));
    let sink = TableSink { table: table.clone(), fuse: Fuse::new(usize::MAX) };
    let mut loader = TwoPhase::start(store.worker("main").await, sink).await.unwrap();
    let nameless = DeadLetter::new("x", "");
    let refused = loader.write(&[1], Checkpoint::at("1").dead_letter(nameless)).await.unwrap_err();
    assert!(
        matches!(&refused, TwoPhaseError::Fencepost(error) if error.reason() == Some(Reason::InvalidField)),
        "{refused}"
    );
    assert_eq!(loader.write(&[1], Checkpoint::at("1")).await.unwrap().sequence, 1);
    assert_eq!(table.lock().unwrap().rows, [1]);
}
