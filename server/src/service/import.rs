//! A pipeline on its way in: all of its file is here and was checked before the first fact of it is appended.

use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use fencepost::log::v1::fact::Kind;
use fencepost::log::v1::{Fact, ImportFinished, ImportStarted, SavepointCreated};
use fencepost::v1::ImportPipelineRequest;
use fencepost::{Lsn, Reason};
use prost::Message as _;
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use super::status::status;
use super::transfer::{PATIENCE, Scratch, bad_file, too_slow};
use super::{Backend, facts, history};
use crate::error::Refusal;
use crate::ops::BadSnapshot;
use crate::ops::transfer::{self, Contents, Export};
use crate::sequencer::{Decided, Decision, Permit};
use crate::state::{ImportVerdict, State, check_asked_by, check_pipeline};

/// What a fact may have beyond the request that it was once: digest, numbers, times.
const FACT_EXTRA_BYTES: usize = 64 << 10;

/// Facts that are read ahead of those that are decided.
const FACTS_AHEAD: usize = 4;

/// Facts that are decided and not durable yet.
const STEPS_MAX: usize = 256;

/// How often room for a fact is asked for, until patience ends.
const PERMIT_TRIES: u32 = 1_200;

/// Takes in a pipeline, and answers its name here and what it has.
pub(super) async fn import(
    backend: &Backend,
    first: ImportPipelineRequest,
    pieces: &mut Streaming<ImportPipelineRequest>,
) -> Result<(String, Contents), Status> {
    check_asked_by(&first.actor, &first.reason).map_err(status)?;
    if !first.pipeline.is_empty() {
        check_pipeline("pipeline", &first.pipeline).map_err(status)?;
    }
    let creating = backend.clone();
    let file = Arc::new(facts::blocking(move || Scratch::create(&creating)).await?);
    let digest = receive(&file, first.data.clone(), pieces).await?;
    let opened = Arc::clone(&file);
    let export = facts::blocking(move || Export::open(&*opened.backend.disk, &opened.path).map_err(bad_file));
    let export = export.await?;
    let fact_bytes_max = backend.config.request_bytes_max + FACT_EXTRA_BYTES;
    if export.fact_bytes > fact_bytes_max {
        let expected = format!("at most {fact_bytes_max} bytes in a fact: raise request_bytes_max of this server");
        let found = format!("a fact of {} bytes", export.fact_bytes);
        return Err(status(Refusal::field(Reason::TooLarge, "data", found, &expected)));
    }
    let name = if first.pipeline.is_empty() { export.contents.pipeline.clone() } else { first.pipeline };
    check_pipeline("pipeline", &name).map_err(status)?;
    let started = ImportStarted {
        pipeline: name.clone(),
        digest,
        actor: first.actor,
        reason: first.reason,
        ..export.started.clone()
    };
    let contents = export.contents.clone();
    take_in(backend, export, started).await?;
    Ok((name, contents))
}

/// Writes what comes to the file, and returns its BLAKE3 digest.
async fn receive(
    file: &Arc<Scratch>,
    first: Bytes,
    pieces: &mut Streaming<ImportPipelineRequest>,
) -> Result<Bytes, Status> {
    let (mut next, mut at, mut hasher) = (Some(first), 0, blake3::Hasher::new());
    while let Some(piece) = next {
        hasher.update(&piece);
        let (file, length) = (Arc::clone(file), piece.len() as u64);
        facts::blocking(move || file.write(&piece, at)).await?;
        at += length;
        let message = tokio::time::timeout(PATIENCE, pieces.message()).await;
        let message = message.map_err(|_| status(too_slow("no piece of the file came", PATIENCE)))??;
        next = message.map(|request| request.data);
    }
    Ok(Bytes::copy_from_slice(hasher.finalize().as_bytes()))
}

/// Appends the facts of an export. What an earlier try of the same file has appended is passed over.
async fn take_in(backend: &Backend, export: Export, started: ImportStarted) -> Result<(), Status> {
    let (name, digest) = (started.pipeline.clone(), started.digest.clone());
    let begin = move |state: &State, _| {
        Ok(match state.evaluate_import_start(started)? {
            ImportVerdict::Start(started) => Decision { fact: Some(Kind::ImportStarted(started)), answer: () },
            ImportVerdict::GoOn(_) => Decision { fact: None, answer: () },
        })
    };
    backend.sequencer.decide(0, begin).await.map_err(status)?;
    let named = export.named.clone();
    let (sender, mut read) = mpsc::channel::<Result<(Lsn, Fact), BadSnapshot>>(FACTS_AHEAD);
    // Ends by itself when the receiver is gone.
    tokio::task::spawn_blocking(move || {
        for fact in export.facts() {
            if sender.blocking_send(fact).is_err() {
                return;
            }
        }
    });
    let (waiting, places) = (VecDeque::new(), BTreeMap::new());
    let mut steps = Steps { backend, named, places, waiting, before: None };
    while let Some(fact) = read.recv().await {
        let (source, fact) = fact.map_err(|error| status(bad_file(error)))?;
        let bytes = fact.encoded_len();
        let kind = match fact.kind {
            Some(Kind::ImportFinished(_)) => {
                Kind::ImportFinished(ImportFinished { pipeline: name.clone(), digest: digest.clone() })
            }
            Some(Kind::SavepointCreated(created)) => {
                let place = steps.place(&name, &created).await.map_err(status)?;
                transfer::renamed(Kind::SavepointCreated(created), &name, |_| place)
            }
            Some(kind @ (Kind::Imported(_) | Kind::PolicySet(_) | Kind::SchemaDeclared(_))) => {
                transfer::renamed(kind, &name, |_| None)
            }
            _ => continue,
        };
        steps.take(source, kind, bytes).await.map_err(status)?;
    }
    steps.finish().await.map_err(status)
}

type Answer = Pin<Box<dyn Future<Output = Result<Decided<Permit>, Refusal>> + Send>>;

/// The facts of an import on their way, several at a time, so that they share their writes.
struct Steps<'a> {
    backend: &'a Backend,
    /// The checkpoints that savepoints name, by their places in the file.
    named: BTreeMap<u64, (String, u64)>,
    /// Where those are here, as far as this try has taken them in.
    places: BTreeMap<u64, Lsn>,
    /// What is not answered yet, in order, by the places in the file.
    waiting: VecDeque<(u64, Answer)>,
    /// The newest of them.
    before: Option<Kind>,
}

impl Steps<'_> {
    /// Sends the next fact on its way.
    async fn take(&mut self, source: Lsn, kind: Kind, bytes: usize) -> Result<(), Refusal> {
        while self.waiting.len() >= STEPS_MAX {
            self.answered().await?;
        }
        let permit = self.permit(bytes).await?;
        // It shares its bytes with the fact itself.
        let before = self.before.replace(kind.clone());
        let judge = move |state: &State, _| {
            Ok(Decision { fact: state.evaluate_import_step(kind, before.as_ref())?, answer: permit })
        };
        let answer = self.backend.sequencer.decide(bytes, judge);
        self.waiting.push_back((source.as_u64(), Box::pin(answer)));
        Ok(())
    }

    /// Waits for the answer to the oldest.
    async fn answered(&mut self) -> Result<(), Refusal> {
        let Some((source, answer)) = self.waiting.pop_front() else { return Ok(()) };
        let Decided { lsn, .. } = answer.await?;
        if self.named.contains_key(&source) {
            self.places.extend(lsn.map(|lsn| (source, lsn)));
        }
        Ok(())
    }

    /// Waits for all answers.
    async fn finish(&mut self) -> Result<(), Refusal> {
        while !self.waiting.is_empty() {
            self.answered().await?;
        }
        Ok(())
    }

    /// Room for a fact among the requests in hand. An import waits for it: its own facts come first, then those of others.
    async fn permit(&mut self, bytes: usize) -> Result<Permit, Refusal> {
        let bytes = bytes.min(self.backend.config.in_flight_bytes_max);
        for _ in 0..PERMIT_TRIES {
            match self.backend.sequencer.permit(bytes) {
                Ok(permit) => return Ok(permit),
                Err(_) if !self.waiting.is_empty() => self.finish().await?,
                Err(_) => tokio::time::sleep(PATIENCE / PERMIT_TRIES).await,
            }
        }
        self.backend.sequencer.permit(bytes)
    }

    /// Where the checkpoint is that a savepoint names.
    async fn place(&mut self, pipeline: &str, created: &SavepointCreated) -> Result<Option<Lsn>, Refusal> {
        if !self.places.contains_key(&created.checkpoint_lsn) {
            self.finish().await?;
        }
        match self.places.get(&created.checkpoint_lsn) {
            Some(lsn) => Ok(Some(*lsn)),
            // From an earlier try.
            None => history::imported_place(self.backend, pipeline, &created.branch, created.sequence).await,
        }
    }
}
