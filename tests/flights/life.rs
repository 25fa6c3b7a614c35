//! How a worker of these tests lives and dies: at one of its calls, in a way that is chosen beforehand.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::Poll;

use fencepost_client::{Error, Reason};
use rand::Rng as _;
use rand::rngs::StdRng;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// What is done to a worker at its last call.
#[derive(Clone, Copy, Debug)]
enum Fate {
    /// It dies before the call is made.
    Before,
    /// It dies where it waits for the so-manyth time within the call, if it waits as often.
    Waiting(u32),
    /// It dies when the call is done, and does not learn how it ended.
    Unanswered,
    /// It stands still before the call until others have its work, and makes it then.
    Frozen,
}

/// Why a worker ended before its work was done.
#[derive(Debug)]
pub(crate) enum End {
    Died(&'static str),
    Failed(Error),
}

/// How often what happened, over all seeds.
#[derive(Clone, Default)]
pub(crate) struct Counts(Arc<Mutex<BTreeMap<&'static str, u64>>>);

impl Counts {
    pub(crate) fn add(&self, what: &'static str) {
        *self.0.lock().unwrap().entry(what).or_default() += 1;
    }

    pub(crate) fn of(&self, what: &str) -> u64 {
        self.0.lock().unwrap().get(what).copied().unwrap_or_default()
    }

    pub(crate) fn show(&self) {
        self.0.lock().unwrap().iter().for_each(|(what, times)| println!("{times:8}  {what}"));
    }
}

/// What a worker asks, and how that ends for it.
pub(crate) trait Call<T>: Future<Output = Result<T, Error>> + Send {}
impl<T, F: Future<Output = Result<T, Error>> + Send> Call<T> for F {}
pub(crate) type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, End>> + Send + 'a>>;

/// One worker's life. All that it asks of the server goes through it.
pub(crate) struct Life {
    rng: StdRng,
    /// What is to happen, and after how many calls.
    fate: Option<(u32, Fate)>,
    /// Told when the worker stands still, with what makes it go on.
    freeze: Option<oneshot::Sender<oneshot::Sender<()>>>,
}

impl Life {
    /// One that lasts until the work is done, or ends in one of its first calls.
    fn new(mut rng: StdRng, mortal: bool) -> (Life, oneshot::Receiver<oneshot::Sender<()>>) {
        let fate = match rng.random_range(0..8) {
            0..2 => Fate::Before,
            2..5 => Fate::Waiting(rng.random_range(1..5)),
            5..7 => Fate::Unanswered,
            _ => Fate::Frozen,
        };
        let fate = mortal.then_some((rng.random_range(0..24), fate));
        let (freeze, frozen) = oneshot::channel();
        (Life { rng, fate, freeze: Some(freeze) }, frozen)
    }

    /// One of two ways.
    pub(crate) fn coin(&mut self) -> bool {
        self.rng.random()
    }

    /// Takes a branch. Nobody is frozen here: two workers that ask for a branch at once wait for one another's lease.
    pub(crate) fn take<'a, T: Send + 'a>(&'a mut self, call: impl Call<T> + 'a) -> Answer<'a, T> {
        if let Some((calls @ 0, Fate::Frozen)) = &mut self.fate {
            *calls = 1;
        }
        self.call(call)
    }

    pub(crate) fn call<'a, T: Send + 'a>(&'a mut self, call: impl Call<T> + 'a) -> Answer<'a, T> {
        Box::pin(self.fated(Box::pin(call)))
    }

    async fn fated<T>(&mut self, mut call: Pin<Box<impl Call<T>>>) -> Result<T, End> {
        let fate = match &mut self.fate {
            Some((0, fate)) => *fate,
            Some((calls, _)) => {
                *calls -= 1;
                return call.await.map_err(End::Failed);
            }
            None => return call.await.map_err(End::Failed),
        };
        self.fate = None;
        match fate {
            Fate::Before => Err(End::Died("died before a call")),
            Fate::Waiting(mut waits) => {
                poll_fn(|context| match call.as_mut().poll(context) {
                    Poll::Ready(_) => Poll::Ready(Err(End::Died("died when a call was done"))),
                    Poll::Pending => {
                        waits -= 1;
                        if waits == 0 { Poll::Ready(Err(End::Died("died within a call"))) } else { Poll::Pending }
                    }
                })
                .await
            }
            Fate::Unanswered => {
                drop(call.await);
                Err(End::Died("died when a call was done"))
            }
            Fate::Frozen => {
                let (thaw, thawed) = oneshot::channel();
                let freeze = self.freeze.take().expect("a worker is frozen once");
                // Whoever leads the work waits for either.
                freeze.send(thaw).expect("whoever leads the work waits for this");
                thawed.await.expect("nobody is left frozen");
                call.await.map_err(End::Failed)
            }
        }
    }
}

/// What a worker is called.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Name {
    pub(crate) number: u32,
    /// Whether the one before was called something else.
    pub(crate) is_new: bool,
}

/// Has a piece of work done, by one worker after the other, however many die over it. `begin` starts one.
pub(crate) async fn lead<W>(mut rng: StdRng, counts: &Counts, mut begin: impl FnMut(Life, Name) -> W)
where
    W: Future<Output = Result<(), End>> + Send + 'static,
{
    let mut zombies: Vec<JoinHandle<W::Output>> = Vec::new();
    let mut frozen: Option<(JoinHandle<W::Output>, oneshot::Sender<()>)> = None;
    let mut deaths = rng.random_range(0..6);
    let mut name = Name { number: 1, is_new: true };
    loop {
        let (life, mut freezes) = Life::new(rand::SeedableRng::from_rng(&mut rng), deaths > 0);
        deaths = u32::saturating_sub(deaths, 1);
        counts.add(if name.is_new { "began under a new name" } else { "began under the name of the one before" });
        let mut worker = tokio::spawn(begin(life, name));
        let ended = tokio::select! {
            biased;
            Ok(thaw) = &mut freezes => Err(thaw),
            ended = &mut worker => Ok(ended.unwrap()),
        };
        // The one before wakes when its successor is gone or stands still itself.
        if let Some((zombie, thaw)) = frozen.take() {
            thaw.send(()).expect("it waits for this");
            zombies.push(zombie);
        }
        name.is_new = rng.random();
        name.number += u32::from(name.is_new);
        match ended {
            Err(thaw) => {
                counts.add("was frozen");
                frozen = Some((worker, thaw));
            }
            Ok(Ok(())) => break,
            Ok(Err(End::Died(how))) => counts.add(how),
            // A zombie that had the name, or a call of a dead one that was still on its way.
            Ok(Err(End::Failed(error))) if is_replaced(&error) => counts.add("was replaced by an earlier one"),
            Ok(Err(End::Failed(error))) => panic!("{error}: {error:?}"),
        }
    }
    for zombie in zombies {
        match zombie.await.unwrap() {
            Ok(()) => counts.add("woke and found all done"),
            Err(End::Failed(error)) if is_replaced(&error) => counts.add("woke and was refused"),
            Err(end) => panic!("a worker that was frozen ended with {end:?}"),
        }
    }
}

fn is_replaced(error: &Error) -> bool {
    error.reason() == Some(Reason::Fenced)
}
