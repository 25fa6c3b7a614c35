//! What happens, in order: the server, three workers, three faults, and everybody at the end of the input.
//!
//! The first two faults hit different workers and are played side by side; the third waits until both are over.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use fencepost_client::Token;
use rustix::process::Signal;
use serde_json::json;

use super::event::Event;
use super::flights::ORIGINS;
use super::plan::{Fault, Plan};
use super::stage::{Part, PartId, Record, Stage, flag};
use super::timeline::{Timeline, Tone, millis};
use crate::cli::error::CliError;
use crate::cli::exit;

/// The pipeline that the workers share.
pub(super) const PIPELINE: &str = "demo/flights";

/// How long a worker may be silent before another may have its branch.
const TTL: Duration = Duration::from_secs(2);
/// How long the batch takes in which a worker is hit. Shorter than it stays frozen, which is a TTL less the third of it
/// that may have passed since its last sign of life: so it wakes with its batch done and its commit due.
const SLOW_BATCH: Duration = Duration::from_millis(1300);
/// How long anything may take that should take a second or two. Generous, because machines can be busy.
const PATIENCE: Duration = Duration::from_mins(1);
/// A worker's progress is told after every so many commits.
const MILESTONE: u64 = 12;

/// What the faults did, for the summary.
pub(super) struct Faults {
    pub(super) kill: Outage,
    pub(super) freeze: Outage,
    /// Of each branch that was at work when the server was killed.
    pub(super) server: Vec<Outage>,
    /// Where the woken worker's commit was refused: by the server itself or by its own client that had heard of it.
    pub(super) refused_by: &'static str,
    pub(super) server_ms: u64,
    pub(super) count: FaultCount,
}

/// How often which fault was seen to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FaultCount {
    pub(super) kills: usize,
    pub(super) fenced: usize,
    pub(super) server_restarts: usize,
}

/// For how long a branch stood still.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outage {
    pub(super) origin: &'static str,
    pub(super) resumed_after: Duration,
}

/// Plays the whole of it.
pub(super) struct Script<'s> {
    pub(super) stage: &'s Stage,
    pub(super) plan: &'s Plan,
    pub(super) input: PathBuf,
}

/// A worker that is about to be started.
struct Cast {
    name: String,
    origin: &'static str,
    holder: String,
    takeover: &'static str,
    slow_batch: Option<u64>,
}

impl Script<'_> {
    /// Returns the server's address and what the faults did. The server is left running.
    pub(super) async fn play(&self) -> Result<(String, Faults), CliError> {
        let (server, endpoint) = self.start_server("127.0.0.1:0").await?;
        self.stage.timeline.say(
            "server",
            Tone::Quiet,
            &format!("listening on {endpoint}"),
            "server_started",
            json!({ "endpoint": endpoint }),
        );
        let mut workers = Vec::new();
        for origin in ORIGINS {
            workers.push((origin, self.start_first(&endpoint, origin)?));
        }
        let first = |fault: &Fault| {
            let worker = workers.iter().find(|(origin, _)| *origin == fault.origin);
            worker.expect("each fault hits one of the three branches").1
        };
        let killing = self.kill_worker(&endpoint, first(&self.plan.kill));
        let freezing = self.freeze_worker(&endpoint, first(&self.plan.freeze));
        let (kill, (freeze, standby, refused_by)) = tokio::try_join!(killing, freezing)?;
        let (server_ms, outages) = self.kill_server(server, &endpoint, standby).await?;
        self.until("all workers have read the input to its end", |record| {
            record.parts.iter().all(|part| !part.is_at_work()).then_some(())
        })
        .await?;
        let count = self.stage.look(FaultCount::of);
        Ok((endpoint, Faults { kill, freeze, server: outages, refused_by, server_ms, count }))
    }

    /// Fault 1: dead in the middle of a batch. A successor of the same name need not wait for its ghost.
    async fn kill_worker(&self, endpoint: &str, victim: PartId) -> Result<Outage, CliError> {
        let (fault, timeline) = (self.plan.kill, &self.stage.timeline);
        let origin = fault.origin;
        self.reach_the_middle(victim, fault).await?;
        let (token, place) = self.stage.look(|record| standing(&record.parts[victim]));
        self.stage.kill(victim).await?;
        let killed = timeline.elapsed();
        let text = format!("killed with SIGKILL {place} (token {token})");
        let facts = json!({ "branch": origin, "token": token.to_string(), "sequence": fault.sequence });
        timeline.say(&self.name(victim), Tone::Fault, &text, "killed", facts);

        let successor = self.start_worker(
            endpoint,
            &Cast {
                name: format!("successor {origin}"),
                origin,
                holder: format!("loader-{origin}"),
                takeover: "same-holder",
                slow_batch: None,
            },
        )?;
        let resumed_after = self.taken_over(successor, killed, "the kill").await?;
        Ok(Outage { origin, resumed_after })
    }

    /// Fault 2: frozen until another has the branch, then woken as if nothing had happened.
    async fn freeze_worker(&self, endpoint: &str, victim: PartId) -> Result<(Outage, PartId, &'static str), CliError> {
        let (fault, timeline) = (self.plan.freeze, &self.stage.timeline);
        let origin = fault.origin;
        self.reach_the_middle(victim, fault).await?;
        self.stage.signal(victim, Signal::STOP)?;
        let frozen = timeline.elapsed();
        let (token, place) = self.stage.look(|record| standing(&record.parts[victim]));
        let text = format!("frozen with SIGSTOP {place} (token {token}); it has to be silent for {} s", TTL.as_secs());
        let facts = json!({ "branch": origin, "token": token.to_string(), "sequence": fault.sequence });
        timeline.say(&self.name(victim), Tone::Fault, &text, "frozen", facts);

        let standby = self.start_worker(
            endpoint,
            &Cast {
                name: format!("standby {origin}"),
                origin,
                holder: format!("standby-{origin}"),
                takeover: "wait",
                slow_batch: None,
            },
        )?;
        let resumed_after = self.taken_over(standby, frozen, "the freeze").await?;
        let sequence = self
            .until("the standby has made its first commit", |record| record.parts[standby].commits().next())
            .await?
            .1;
        let text = format!("committed sequence {sequence} while the worker before it is still frozen");
        timeline.say(&self.name(standby), Tone::Recovery, &text, "took_over", json!({ "sequence": sequence }));
        let refused_by = self.wake(victim).await?;
        Ok((Outage { origin, resumed_after }, standby, refused_by))
    }

    /// Wakes the frozen worker and sees that its commit is refused. Returns who refused it.
    async fn wake(&self, zombie: PartId) -> Result<&'static str, CliError> {
        let (timeline, name) = (&self.stage.timeline, self.name(zombie));
        let committed = self.stage.look(|record| record.parts[zombie].commits().count());
        timeline.say(
            &name,
            Tone::Fault,
            "woken with SIGCONT: it does not know that it slept, and commits its batch",
            "woken",
            json!({}),
        );
        self.stage.signal(zombie, Signal::CONT)?;
        let answer = self
            .until("the woken worker's commit is answered", |record| {
                let part = &record.parts[zombie];
                let refused =
                    part.events.iter().map(|(_, event)| event).find(|event| matches!(event, Event::Refused { .. }));
                let accepted = part.commits().nth(committed).map(|(_, sequence, _)| sequence);
                refused.cloned().map(Ok).or(accepted.map(Err))
            })
            .await?;
        let Ok(Event::Refused { sequence, reason, by_server, holder, current_token, .. }) = answer else {
            let problem =
                "a worker that had been replaced woke up, and its commit was ACCEPTED: the fence does not hold";
            return Err(CliError::new(exit::INTEGRITY, problem));
        };
        let by = if by_server { "server" } else { "client" };
        let holder = holder.unwrap_or_else(|| "another worker".to_owned());
        let token = current_token
            .map_or_else(|| "a newer token".to_owned(), |token| format!("token {}", Token::from_u64(token)));
        let text = format!(
            "commit {sequence} refused, {reason}: '{holder}' has the branch under {token}; nothing was applied"
        );
        let facts = json!({ "sequence": sequence, "reason": reason, "refused_by": by, "holder": holder, "current_token": current_token.map(|token| Token::from_u64(token).to_string()) });
        timeline.say(&name, Tone::Refusal, &text, "fenced", facts);
        self.stage.reap(zombie).await?;
        Ok(by)
    }

    /// Fault 3: the server dies and comes back on the same data. Nobody tells the workers anything.
    async fn kill_server(
        &self,
        server: PartId,
        endpoint: &str,
        standby: PartId,
    ) -> Result<(u64, Vec<Outage>), CliError> {
        let (fault, timeline) = (self.plan.server, &self.stage.timeline);
        self.until("the standby has made enough commits for the server to be killed", |record| {
            record.parts[standby].commits().find(|(_, sequence, _)| *sequence >= fault.sequence)
        })
        .await?;
        tokio::time::sleep(fault.delay).await;
        let at_work = self.stage.look(at_work);
        self.stage.kill(server).await?;
        let killed = timeline.elapsed();
        let text = format!("killed with SIGKILL while {} workers are at work", at_work.len());
        timeline.say("server", Tone::Fault, &text, "server_killed", json!({ "workers": at_work.len() }));

        let address = endpoint.trim_start_matches("http://");
        self.start_server(address).await?;
        let back = timeline.elapsed();
        let server_ms = millis(back.saturating_sub(killed));
        let text = format!("started again on the same data: listening {server_ms} ms after the kill");
        timeline.say("server", Tone::Recovery, &text, "server_restarted", json!({ "after_ms": server_ms }));

        let outages = self.commit_again(at_work, killed, back).await?;
        Ok((server_ms, outages))
    }

    /// Tells of each worker when it commits again, in the order in which they do.
    async fn commit_again(
        &self,
        mut waiting: Vec<(PartId, &'static str)>,
        killed: Duration,
        back: Duration,
    ) -> Result<Vec<Outage>, CliError> {
        let mut outages = Vec::new();
        loop {
            // A worker that was at its end has nothing more to commit.
            waiting.retain(|(worker, _)| self.stage.look(|record| !is_done_without(&record.parts[*worker], back)));
            if waiting.is_empty() {
                return Ok(outages);
            }
            let next = self
                .until("every worker commits again after the server's restart", |record| {
                    let commits = waiting.iter().enumerate().filter_map(|(place, (worker, _))| {
                        let (at, sequence) = first_since(&record.parts[*worker], back)?;
                        Some((at, place, sequence))
                    });
                    let is_one_done = waiting.iter().any(|(worker, _)| record.parts[*worker].is_done());
                    commits.min().map(Some).or(is_one_done.then_some(None))
                })
                .await?;
            let Some((at, place, sequence)) = next else { continue };
            let (worker, origin) = waiting.remove(place);
            let resumed_after = at.saturating_sub(killed);
            let after_ms = millis(resumed_after);
            let text = format!("commits again, by itself: sequence {sequence}, {after_ms} ms after the kill");
            let facts = json!({ "sequence": sequence, "after_ms": after_ms });
            self.stage.timeline.say(&self.name(worker), Tone::Recovery, &text, "commits_again", facts);
            outages.push(Outage { origin, resumed_after });
        }
    }

    /// Waits until a worker is in the middle of the batch that was chosen, and a little longer.
    async fn reach_the_middle(&self, worker: PartId, fault: Fault) -> Result<(), CliError> {
        let awaited = format!("the worker of {} is in the middle of batch {}", fault.origin, fault.sequence);
        self.until(&awaited, |record| record.parts[worker].halfway().filter(|sequence| *sequence >= fault.sequence))
            .await?;
        tokio::time::sleep(fault.delay).await;
        Ok(())
    }

    /// Waits until a successor has the branch and tells how long that took. `since` is when the one before was hit.
    async fn taken_over(&self, successor: PartId, since: Duration, fault: &str) -> Result<Duration, CliError> {
        let name = self.name(successor);
        let awaited = format!("the {name} has the branch");
        let (at, token, sequence) = self.until(&awaited, |record| record.parts[successor].resumed()).await?;
        let (after, token) = (at.saturating_sub(since), Token::from_u64(token));
        let after_ms = millis(after);
        let text = format!("goes on after sequence {sequence} with token {token}, {after_ms} ms after {fault}");
        let facts = json!({ "token": token.to_string(), "sequence": sequence, "after_ms": after_ms });
        self.stage.timeline.say(&name, Tone::Recovery, &text, "resumed", facts);
        Ok(after)
    }

    async fn until<T>(&self, awaited: &str, seen: impl FnMut(&Record) -> Option<T>) -> Result<T, CliError> {
        self.stage.until(awaited, PATIENCE, seen).await
    }

    fn name(&self, part: PartId) -> String {
        self.stage.look(|record| record.parts[part].name.clone())
    }

    async fn start_server(&self, listen: &str) -> Result<(PartId, String), CliError> {
        let mut arguments: Vec<OsString> = vec!["serve".into(), "--listen".into(), listen.into()];
        arguments.extend(flag("--data-dir", self.stage.dir.data()));
        let server = self.stage.start("server", None, arguments, |_, _, _| {})?;
        let endpoint =
            self.until("the server listens", |record| record.parts[server].endpoint().map(str::to_owned)).await?;
        Ok((server, endpoint))
    }

    fn start_first(&self, endpoint: &str, origin: &'static str) -> Result<PartId, CliError> {
        let cast = Cast {
            name: format!("worker {origin}"),
            origin,
            holder: format!("loader-{origin}"),
            takeover: "wait",
            slow_batch: self.plan.hit(origin),
        };
        self.start_worker(endpoint, &cast)
    }

    fn start_worker(&self, endpoint: &str, cast: &Cast) -> Result<PartId, CliError> {
        let Cast { name, origin, holder, takeover, slow_batch } = cast;
        let number = |name: &str, value: u64| [name.into(), value.to_string().into()];
        let mut arguments: Vec<OsString> = vec!["__demo-worker".into()];
        arguments.extend(flag("--endpoint", endpoint));
        arguments.extend(flag("--pipeline", PIPELINE));
        arguments.extend(flag("--origin", origin));
        arguments.extend(flag("--holder", holder));
        arguments.extend(flag("--takeover", takeover));
        arguments.extend(number("--ttl-ms", millis(TTL)));
        arguments.extend(flag("--input", &self.input));
        arguments.extend(flag("--results", self.stage.dir.results(origin)));
        arguments.extend(number("--batch-rows", self.plan.batch_rows(origin)));
        arguments.extend(number("--pace-ms", millis(self.plan.pace(origin))));
        if let Some(sequence) = slow_batch {
            arguments.extend(number("--slow-batch", *sequence));
            arguments.extend(number("--slow-ms", millis(SLOW_BATCH)));
        }
        self.stage.start(name, Some(*origin), arguments, announce)
    }
}

impl FaultCount {
    fn of(record: &Record) -> FaultCount {
        let count = |happened: fn(&Part) -> bool| record.parts.iter().filter(|part| happened(part)).count();
        let servers = count(|part| part.endpoint().is_some());
        FaultCount {
            kills: count(|part| part.origin.is_some() && part.was_killed()),
            fenced: count(Part::was_fenced),
            server_restarts: servers.saturating_sub(1),
        }
    }
}

/// Tells what needs no context: a fresh start, progress, the end.
fn announce(timeline: &Timeline, name: &str, event: &Event) {
    match event {
        Event::Resumed { token, sequence: 0, .. } => {
            let token = Token::from_u64(*token).to_string();
            let text = format!("starts from nothing with token {token}");
            timeline.say(name, Tone::Quiet, &text, "started", json!({ "token": token, "sequence": 0 }));
        }
        Event::Committed { sequence, flights, .. } if sequence % MILESTONE == 0 => {
            let text = format!("committed sequence {sequence}: {flights} flights added up");
            timeline.say(name, Tone::Quiet, &text, "progress", json!({ "sequence": sequence, "flights": flights }));
        }
        Event::Done { sequence } => {
            let text = format!("is at the end of the input after sequence {sequence} and gives the branch back");
            timeline.say(name, Tone::Quiet, &text, "finished", json!({ "sequence": sequence }));
        }
        _ => {}
    }
}

/// A worker's token, and in words how far it is.
fn standing(part: &Part) -> (Token, String) {
    let token = Token::from_u64(part.resumed().map_or(0, |(_, token, _)| token));
    let place = part
        .halfway()
        .map_or_else(|| "between two batches".to_owned(), |sequence| format!("in the middle of batch {sequence}"));
    (token, place)
}

/// The first commit that was told after the new server listened: what was read before can only be an answer of the old one.
fn first_since(part: &Part, back: Duration) -> Option<(Duration, u64)> {
    part.commits().find(|(at, ..)| *at >= back).map(|(at, sequence, _)| (at, sequence))
}

fn is_done_without(part: &Part, back: Duration) -> bool {
    part.is_done() && first_since(part, back).is_none()
}

fn at_work(record: &Record) -> Vec<(PartId, &'static str)> {
    let parts = record.parts.iter().enumerate().filter(|(_, part)| part.is_at_work());
    parts.filter_map(|(id, part)| Some((id, part.origin?))).collect()
}
