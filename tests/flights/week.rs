//! The week: three airports count their flights, a merger merges each day when its barrier is closed, and a mender works
//! through the dead letters. Each is a chain of workers that die.

use std::collections::BTreeSet;
use std::sync::Arc;

use fencepost_client::{Client, Merge, Pipeline, Policy, Reason, Resume, StoredCheckpoint, Takeover, Worker};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use crate::flights::{self, AIRPORTS, Feed, Flight, HeldUp, Report};
use crate::life::{Counts, End, Life, Name, lead};

/// What a seed is about.
pub(crate) struct Week {
    pub(crate) client: Box<dyn Fn() -> Client + Send + Sync>,
    pub(crate) pipeline: String,
    pub(crate) flights: Arc<Vec<Flight>>,
    pub(crate) seed: u64,
    /// Rows of a batch.
    most: usize,
    days: Vec<String>,
    /// What comes from each of [`AIRPORTS`].
    feeds: [Feed; 3],
}

impl Week {
    pub(crate) fn new(
        seed: u64,
        flights: Arc<Vec<Flight>>,
        client: impl Fn() -> Client + Send + Sync + 'static,
    ) -> Week {
        let mut rng = StdRng::seed_from_u64(seed);
        let days = flights::days(&flights);
        let held_up = HeldUp {
            airport: AIRPORTS[rng.random_range(..AIRPORTS.len())],
            day: &days[rng.random_range(..days.len() - 2)],
            rows: rng.random_range(..30),
        };
        let feeds = AIRPORTS.map(|airport| Feed::of(&flights, airport, held_up));
        let most = rng.random_range(120..400);
        Week { client: Box::new(client), pipeline: format!("flights/seed-{seed}"), flights, seed, most, days, feeds }
    }

    /// Has all work done, and checks what came of it.
    pub(crate) async fn pass(self, counts: &Counts) {
        let week = Arc::new(self);
        let pipeline = week.pipeline();
        pipeline.set_policy(Policy::new().reconcile_rows().keep_last(1_000)).actor("tests").send().await.unwrap();
        let mut rng = StdRng::seed_from_u64(week.seed);
        let airports = AIRPORTS.map(|airport| {
            let week = week.clone();
            lead(StdRng::from_rng(&mut rng), counts, move |life, name| week.clone().airport(airport, life, name))
        });
        let merger = {
            let week = week.clone();
            lead(StdRng::from_rng(&mut rng), counts, move |life, name| week.clone().merger(life, name))
        };
        let [newark, kennedy, la_guardia] = airports;
        tokio::join!(newark, kennedy, la_guardia, merger);
        week.check().await;

        let mender = week.clone();
        lead(StdRng::from_rng(&mut rng), counts, move |life, name| mender.clone().mender(life, name)).await;
        assert_eq!(pipeline.dead_letters().count().await.unwrap(), 0);
        let departed = week.flights.iter().filter(|flight| flight.delay.is_none() && flight.has_departed).count();
        let replayed = week.rows("dead-letters").await;
        assert_eq!(replayed, (departed as u64, departed as u64, 0), "each was replayed once");
    }

    fn pipeline(&self) -> Pipeline {
        (self.client)().pipeline(&self.pipeline)
    }

    fn feed(&self, airport: &str) -> &Feed {
        let place = AIRPORTS.iter().position(|it| *it == airport);
        &self.feeds[place.expect("one of the three")]
    }

    fn any_is_late(&self) -> bool {
        self.feeds.iter().any(|feed| !feed.late.is_empty())
    }

    /// Counts the flights of an airport, day by day, and meets the others at the end of each.
    async fn airport(self: Arc<Week>, airport: &'static str, mut life: Life, name: Name) -> Result<(), End> {
        let pipeline = self.pipeline();
        let worker = life.take(pipeline.branch(airport).resume(resume(airport, name))).await?;
        let feed = self.feed(airport);
        if let Some(staged) = worker.staged() {
            if life.coin() {
                let done: usize = staged.checkpoint().position_str().parse().unwrap();
                end_of_day(&mut life, &pipeline, &worker, &feed.rows[done - 1].day).await?;
            } else {
                life.call(worker.discard_staged("the next one counts it again")).await?;
            }
        }
        let (mut done, mut reports) = match worker.head() {
            Some(head) => (head.position_str().parse().unwrap(), reports(&head)),
            None => (0, Vec::new()),
        };
        while let Some(batch) = feed.batch(done, self.most) {
            if reports.first().is_none_or(|report: &Report| report.day != batch.day) {
                reports.clear();
                self.late(airport, feed.late_on(batch.day), &mut life, name).await?;
            }
            done += batch.rows.len();
            flights::count(&mut reports, batch.rows);
            let checkpoint = flights::checkpoint(done, &reports, batch.rows).unwrap();
            if batch.ends_the_day {
                open(&mut life, &pipeline, batch.day).await?;
                if life.coin() {
                    life.call(worker.stage(batch.day, checkpoint)).await?;
                    end_of_day(&mut life, &pipeline, &worker, batch.day).await?;
                } else {
                    life.call(worker.arrive_and_wait(batch.day, checkpoint)).await?;
                }
            } else {
                life.call(worker.commit(checkpoint)).await?;
            }
        }
        life.call(worker.release()).await
    }

    /// Commits rows that came too late to a branch of their own.
    async fn late(&self, airport: &str, rows: &[Flight], life: &mut Life, name: Name) -> Result<(), End> {
        let Some(first) = rows.first() else { return Ok(()) };
        let (pipeline, day) = (self.pipeline(), &*first.day);
        let worker = life.take(pipeline.branch("late").resume(by_force(resume(airport, name)))).await?;
        if worker.staged().is_some() {
            life.call(worker.discard_staged("its barrier was closed")).await?;
        }
        if worker.head().is_none() {
            let closed = life.call(pipeline.barrier(day).get()).await?;
            let in_time = closed.participants.iter().find(|participant| participant.branch == airport).unwrap();
            let mut reports = reports(&life.call(pipeline.branch(airport).checkpoint(in_time.sequence)).await?);
            flights::count(&mut reports, rows);
            let checkpoint = flights::checkpoint(rows.len(), &reports, rows).unwrap();
            match life.call(worker.arrive_and_wait(day, checkpoint.clone())).await {
                Err(End::Failed(error)) if error.reason() == Some(Reason::BarrierClosed) => {}
                Err(end) => return Err(end),
                Ok(_) => panic!("the barrier of {day} took what came too late"),
            }
            life.call(worker.commit(checkpoint.late_for(day))).await?;
        }
        life.call(worker.release()).await
    }

    /// Merges each day when it is over, and what came late at the end.
    async fn merger(self: Arc<Week>, mut life: Life, name: Name) -> Result<(), End> {
        let pipeline = self.pipeline();
        let worker = life.take(pipeline.branch("merged").resume(resume("merger", name))).await?;
        for day in self.days.iter().skip(worker.sequence() as usize) {
            open(&mut life, &pipeline, day).await?;
            let closed = life.call(pipeline.barrier(day).wait()).await?;
            let mut inputs: Vec<StoredCheckpoint> = worker.head().into_iter().collect();
            for participant in closed.participants {
                inputs.push(life.call(pipeline.branch(participant.branch).checkpoint(participant.sequence)).await?);
            }
            let merged = flights::united(&inputs).unwrap();
            merge(&mut life, &worker, "union", &inputs, day, &merged).await?;
        }
        if self.any_is_late() && worker.sequence() == self.days.len() as u64 {
            let (head, late) = (worker.head().unwrap(), life.call(pipeline.branch("late").head()).await?);
            let amended = flights::amended(&head, &late).unwrap();
            merge(&mut life, &worker, "amended", &[head, late], "amended", &amended).await?;
        }
        life.call(worker.release()).await
    }

    /// Processes the rows that departed after all, and gives the others up.
    async fn mender(self: Arc<Week>, mut life: Life, name: Name) -> Result<(), End> {
        let pipeline = self.pipeline();
        let resume = resume("mender", name);
        let mut replay = life.take(pipeline.replay_dead_letters(resume)).await?;
        let (mut departed, mut others) = (Vec::new(), Vec::new());
        while let Some(letter) = life.call(replay.next()).await? {
            if letter.reason().starts_with("departed") { departed.push(letter.id()) } else { others.push(letter.id()) }
        }
        for some in departed.chunks(5) {
            let rows = some.len() as u64;
            let checkpoint = fencepost_client::Checkpoint::at(some[0].to_string()).rows_in(rows).rows_out(rows);
            life.call(replay.worker().commit(checkpoint.replayed(some.iter().copied()))).await?;
        }
        let discard = pipeline.discard_dead_letters(others.iter().copied()).actor("mender").reason("never departed");
        if !others.is_empty() {
            // Who was frozen here may find that its successor has done it.
            match life.call(discard.send()).await {
                Err(End::Failed(error)) if error.reason() == Some(Reason::DeadLetterHandled) => {}
                result => result?,
            }
        }
        life.call(replay.into_worker().release()).await
    }

    async fn check(&self) {
        let pipeline = self.pipeline();
        let merged = pipeline.branch("merged").head().await.unwrap();
        assert_eq!(reports(&merged), flights::straight(&self.flights), "the merged result is the straight computation");

        let letters = pipeline.dead_letters().list().all().await.unwrap();
        let rows: BTreeSet<&[u8]> = letters.iter().map(|letter| &letter.payload()[..]).collect();
        let lacking = self.flights.iter().filter(|flight| flight.delay.is_none()).map(|flight| flight.text.as_bytes());
        assert_eq!(rows, lacking.collect(), "dead letters are the rows that lack an arrival delay");
        assert_eq!((letters.len(), rows.len()), (56, 56), "none twice");

        let (mut read, mut dead) = (0, 0);
        for airport in AIRPORTS {
            let feed = self.feed(airport);
            let (rows_in, rows_out, rows_dead) = self.rows(airport).await;
            assert_eq!((rows_in, rows_in), (feed.rows.len() as u64, rows_out + rows_dead), "{airport}");
            (read, dead) = (read + rows_in, dead + rows_dead);
        }
        if self.any_is_late() {
            let (rows_in, _, rows_dead) = self.rows("late").await;
            (read, dead) = (read + rows_in, dead + rows_dead);
        }
        assert_eq!((read, dead), (self.flights.len() as u64, 56), "no row was counted twice, or not at all");
    }

    /// Rows that the checkpoints of a branch say came in, went out and were dead.
    async fn rows(&self, branch: &str) -> (u64, u64, u64) {
        let checkpoints = self.pipeline().branch(branch).checkpoints().all().await.unwrap();
        assert_eq!(checkpoints.last().map(StoredCheckpoint::sequence), Some(1), "{branch}: all are retained");
        checkpoints.iter().fold((0, 0, 0), |(rows_in, rows_out, rows_dead), checkpoint| {
            let said = checkpoint.integrity().unwrap();
            let rows = (said.rows_in.unwrap(), said.rows_out.unwrap(), said.rows_dead.unwrap_or(0));
            assert_eq!(u64::from(checkpoint.dead_letters()), rows.2);
            (rows_in + rows.0, rows_out + rows.1, rows_dead + rows.2)
        })
    }
}

fn resume(role: &str, name: Name) -> Resume {
    let resume = Resume::new(format!("{role}-{}", name.number)).start_fresh();
    if name.is_new { by_force(resume) } else { resume.takeover(Takeover::SameHolder) }
}

fn by_force(resume: Resume) -> Resume {
    resume.takeover(Takeover::Force).reason("the one before is dead")
}

fn reports(checkpoint: &StoredCheckpoint) -> Vec<Report> {
    flights::reports(checkpoint).unwrap()
}

async fn open(life: &mut Life, pipeline: &Pipeline, day: &str) -> Result<(), End> {
    life.call(pipeline.open_barrier(day).participants(AIRPORTS).actor("tests").open()).await.map(drop)
}

/// Arrives with what is staged, and waits for the others.
async fn end_of_day(life: &mut Life, pipeline: &Pipeline, worker: &Worker, day: &str) -> Result<(), End> {
    open(life, pipeline, day).await?;
    life.call(worker.arrive_staged(day)).await?;
    life.call(worker.wait_at(day)).await.map(drop)
}

/// Commits what these were merged into; and now and then once more, which makes no difference.
async fn merge(
    life: &mut Life,
    worker: &Worker,
    by: &str,
    inputs: &[StoredCheckpoint],
    position: &str,
    output: &[Report],
) -> Result<(), End> {
    let rows: u64 = inputs.iter().map(|input| reports(input).len() as u64).sum();
    let kept = output.len() as u64;
    let checkpoint = flights::checkpoint(position, output, &[]).unwrap().rows_in(rows).rows_out(kept);
    let checkpoint = checkpoint.rows_filtered(rows - kept);
    let inputs = inputs.iter().map(|input| (input.branch(), input.sequence()));
    let merge = Merge::by(by, "1").inputs(inputs).output_digest(flights::digest(output));
    let first = life.call(worker.merge(merge.clone(), checkpoint.clone())).await?;
    if life.coin() {
        let again = life.call(worker.merge(merge, checkpoint)).await?;
        assert!(again.already, "the same inputs are merged once");
        assert_eq!((&*again.branch, again.sequence, again.lsn), ("merged", first.sequence, first.lsn));
    }
    Ok(())
}
