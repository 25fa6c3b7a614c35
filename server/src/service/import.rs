//! A pipeline on its way in: all of its file is here and was checked before the first fact of it is appended.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use fencepost::log::v1::fact::Kind;
use fencepost::log::v1::{Fact, ImportStarted};
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
use crate::sequencer::Decision;
use crate::state::{ImportVerdict, check_asked_by, check_pipeline};

/// What a fact may have beyond the request that it was once: digest, numbers, times.
const FACT_EXTRA_BYTES: usize = 64 << 10;

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
    let file = Arc::new(Scratch::new(backend));
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
    let begin = move |state: &crate::state::State, _| {
        Ok(match state.evaluate_import_start(started)? {
            ImportVerdict::Start(started) => Decision { fact: Some(Kind::ImportStarted(started)), answer: () },
            ImportVerdict::GoOn(_) => Decision { fact: None, answer: () },
        })
    };
    backend.sequencer.decide(0, begin).await.map_err(status)?;
    let named = export.named.clone();
    let mut places = BTreeMap::new();
    let (sender, mut read) = mpsc::channel::<Result<(Lsn, Fact), BadSnapshot>>(64);
    // Ends by itself when the receiver is gone.
    tokio::task::spawn_blocking(move || {
        for fact in export.facts() {
            if sender.blocking_send(fact).is_err() {
                return;
            }
        }
    });
    while let Some(fact) = read.recv().await {
        let (source, fact) = fact.map_err(|error| status(bad_file(error)))?;
        let bytes = fact.encoded_len();
        let Some(kind) = fact.kind else { continue };
        let place = match &kind {
            Kind::SavepointCreated(created) => match places.get(&created.checkpoint_lsn) {
                Some(lsn) => Some(*lsn),
                // From an earlier try.
                None => {
                    history::imported_place(backend, &name, &created.branch, created.sequence).await.map_err(status)?
                }
            },
            _ => None,
        };
        let decided = match transfer::renamed(kind, &name, |_| place) {
            Kind::Imported(imported) => {
                let judge = move |state: &crate::state::State, _| {
                    let fact = state.evaluate_imported(imported)?.map(Kind::Imported);
                    Ok(Decision { fact, answer: () })
                };
                backend.sequencer.decide(bytes, judge).await
            }
            Kind::SavepointCreated(created) => {
                let judge = move |state: &crate::state::State, _| {
                    let fact = state.evaluate_imported_savepoint(created)?.map(Kind::SavepointCreated);
                    Ok(Decision { fact, answer: () })
                };
                backend.sequencer.decide(bytes, judge).await
            }
            Kind::PolicySet(set) => {
                let judge = move |state: &crate::state::State, _| {
                    let fact = state.evaluate_imported_policy(set)?.map(Kind::PolicySet);
                    Ok(Decision { fact, answer: () })
                };
                backend.sequencer.decide(bytes, judge).await
            }
            Kind::ImportFinished(_) => {
                let (name, digest) = (name.clone(), digest.clone());
                let judge = move |state: &crate::state::State, _| {
                    let fact = state.evaluate_import_finish(&name, &digest)?.map(Kind::ImportFinished);
                    Ok(Decision { fact, answer: () })
                };
                backend.sequencer.decide(bytes, judge).await
            }
            _ => continue,
        };
        let decided = decided.map_err(status)?;
        if named.contains_key(&source.as_u64()) {
            places.extend(decided.lsn.map(|lsn| (source.as_u64(), lsn)));
        }
    }
    Ok(())
}
