//! kill -9 of whoever makes a copy: the server, or the program that asked it, during a snapshot; and a restore. Half a copy
//! is never taken for a whole one.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use fencepost_client::Client;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::process::{Child, Command};
use tokio::time::Instant;

use crate::load::{self, BUSY, LEDGER, Load};
use crate::support::{Ended, PATIENCE, Server, fencepost, files, json, moment, offline, output, until};

/// Of each branch with large states so many checkpoints are kept: enough for three segments.
const KEEP: u64 = 24;
const REFUSED: i32 = 1;
const INTEGRITY: i32 = 65;

/// When a process is killed.
#[derive(Clone, Copy, Debug)]
enum When {
    /// When its target has so many files.
    Files(usize),
    /// After a part of the time that it takes if nobody interferes.
    Share(f64),
}

impl When {
    /// Both kinds in turn, to be tried so many times.
    fn all(random: &mut StdRng, count: usize) -> Vec<When> {
        let next = |round| match round % 2 {
            0 => When::Files(round / 2 % 5),
            _ => When::Share(1.2 * random.random::<f64>()),
        };
        (0..count).map(next).collect()
    }

    async fn wait(self, target: &Path, whole: Duration, child: &mut Child) {
        match self {
            When::Files(count) => moment(&format!("{self:?}"), || {
                (target.exists() && files(target).len() >= count) || child.try_wait().unwrap().is_some()
            }),
            When::Share(share) => tokio::time::sleep(whole.mul_f64(share)).await,
        }
    }
}

/// How many kills of each kind: `FENCEPOST_KILL_ROUNDS=1000` tries many more.
fn rounds(default: usize) -> usize {
    std::env::var("FENCEPOST_KILL_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

async fn loaded() -> (Server, Client, Load) {
    let server = Server::start_with(&BUSY).await;
    let client = server.client().await;
    let load = Load::start(&client, KEEP).await;
    load.more(3 * KEEP).await;
    (server, client, load)
}

fn spawn(command: &mut Command) -> Child {
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

fn creating(server: &Server, dir: &Path) -> Command {
    let mut command = server.command(&["-o", "json", "snapshot", "create"]);
    command.arg(dir);
    command
}

fn restoring(snapshot: &Path, to: &Path, more: &[&str]) -> Command {
    let mut command = fencepost();
    command.args(["-o", "json", "restore", "--segment-bytes", BUSY[1]]).args(more);
    command.arg(snapshot).arg("--data-dir").arg(to);
    command
}

#[track_caller]
fn refused(ended: &Ended, code: i32, words: &[&str]) {
    assert_eq!(ended.code, Some(code), "{ended:?}");
    for word in words {
        assert!(ended.stderr.contains(word), "'{word}': {ended:?}");
    }
}

/// Nobody takes the directory for a store; and whoever tries leaves it as it is.
async fn is_no_store(dir: &Path, words: &[&str]) {
    let before = files(dir);
    for arguments in [&["serve", "--listen", "127.0.0.1:0"][..], &["verify"], &["compact"], &["index", "rebuild"]] {
        refused(&offline(arguments, &[("--data-dir", dir)]).await, INTEGRITY, words);
    }
    assert_eq!(files(dir), before);
}

/// Checks a snapshot, and answers its last fact.
async fn verified(snapshot: &Path) -> String {
    let verified = json(&offline(&["-o", "json", "snapshot", "verify"], &[("", snapshot)]).await);
    assert_eq!(verified["damage"].as_array().map(Vec::len), Some(0), "{verified}");
    verified["lsn"].as_str().unwrap().to_owned()
}

/// What is left of a snapshot: whole, or told from one by everybody. Answers whether it was begun and not finished.
async fn is_cut_short(dir: &Path, elsewhere: &Path) -> bool {
    if dir.join("MANIFEST.json").exists() {
        verified(dir).await;
        return false;
    }
    if files(dir).is_empty() {
        return false;
    }
    let path = dir.to_str().unwrap();
    let words = [path, "there is no manifest, so this is no snapshot, or an unfinished one"];
    refused(&offline(&["snapshot", "verify"], &[("", dir)]).await, INTEGRITY, &words);
    refused(&output(&mut restoring(dir, elsewhere, &[])).await, INTEGRITY, &words);
    assert!(!elsewhere.exists());
    is_no_store(dir, &["a snapshot into", path, "was cut short", "remove that directory"]).await;
    true
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_whose_server_or_caller_was_killed_is_whole_or_none() {
    let (mut server, client, load) = loaded().await;
    let elsewhere = server.scratch().join("elsewhere");
    let begun = Instant::now();
    let made = output(&mut creating(&server, &server.scratch().join("snapshot"))).await;
    assert_eq!(made.code, Some(0), "{made:?}");
    let (whole, mut cut_short) = (begun.elapsed(), 0);
    let moments = When::all(&mut StdRng::seed_from_u64(2), rounds(6));
    for (round, when) in moments.iter().enumerate() {
        let dir = server.scratch().join(format!("killed-{round}"));
        let mut caller = spawn(&mut creating(&server, &dir));
        when.wait(&dir, whole, &mut caller).await;
        server.kill().await;
        let ended = tokio::time::timeout(PATIENCE, caller.wait()).await.expect("it ends in time").unwrap();
        assert!(!ended.success() || dir.join("MANIFEST.json").exists(), "{when:?}: success was told too early");
        let is_cut_short = is_cut_short(&dir, &elsewhere).await;
        server.restart().await;
        let pause = load.pause().await;
        load.check(&client, 16, &format!("{when:?}")).await;
        drop(pause);
        if is_cut_short {
            cut_short += 1;
            refused(
                &output(&mut creating(&server, &dir)).await,
                REFUSED,
                &[dir.to_str().unwrap(), "has files already"],
            );
        }
        std::fs::remove_dir_all(&dir).unwrap_or_default();
    }
    assert!(cut_short >= moments.len() / 5, "{cut_short} of {} snapshots were cut short", moments.len());

    // Only the caller: the server finishes what it was asked for.
    for round in 0..3 {
        let dir = server.scratch().join(format!("left-{round}"));
        let mut caller = spawn(&mut creating(&server, &dir));
        When::Files(round).wait(&dir, whole, &mut caller).await;
        caller.kill().await.unwrap();
        until("the snapshot is finished", async || dir.join("MANIFEST.json").exists()).await;
        verified(&dir).await;
        std::fs::remove_dir_all(&dir).unwrap();
    }
    // And both.
    let dir = server.scratch().join("both");
    let mut caller = spawn(&mut creating(&server, &dir));
    When::Files(1).wait(&dir, whole, &mut caller).await;
    caller.kill().await.unwrap();
    server.kill().await;
    is_cut_short(&dir, &elsewhere).await;
    server.restart().await;

    let pause = load.pause().await;
    let last = server.scratch().join("last");
    let made = output(&mut creating(&server, &last)).await;
    assert_eq!(made.code, Some(0), "{made:?}");
    verified(&last).await;
    let acknowledged = load.acknowledged();
    drop(pause);
    load.stop().await;
    server.kill().await;
    let restored = output(&mut restoring(&last, &elsewhere, &[])).await;
    assert_eq!(restored.code, Some(0), "{restored:?}");
    server.restart_on(&elsewhere).await;
    load::check(&server.client().await, &acknowledged, KEEP, 1, "restored").await;
    println!("{} servers were killed during a snapshot, {cut_short} of them in the middle", moments.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_was_killed_is_done_again_in_an_empty_directory() {
    let (mut server, _, load) = loaded().await;
    let acknowledged = load.stop().await;
    let snapshot = server.scratch().join("snapshot");
    let made = output(&mut creating(&server, &snapshot)).await;
    assert_eq!(made.code, Some(0), "{made:?}");
    server.kill().await;
    let lsn = verified(&snapshot).await;
    let (to, begun) = (server.scratch().join("restored"), Instant::now());
    json(&output(&mut restoring(&snapshot, &to, &[])).await);
    let whole = begun.elapsed();
    let words = ["a restore into", to.to_str().unwrap(), "remove that directory and restore again"];
    let (mut cut_short, mut finished) = (0, 0);
    let moments = When::all(&mut StdRng::seed_from_u64(3), rounds(8));
    for (round, when) in moments.iter().enumerate() {
        std::fs::remove_dir_all(&to).unwrap();
        // A whole snapshot is copied, one up to a fact is written anew.
        let more = if round % 4 < 2 { &[][..] } else { &["--to-lsn", &lsn] };
        let mut child = spawn(&mut restoring(&snapshot, &to, more));
        when.wait(&to, whole, &mut child).await;
        child.kill().await.unwrap();
        if to.join("RESTORING").exists() {
            cut_short += 1;
            is_no_store(&to, &words).await;
            let left = files(&to);
            refused(&output(&mut restoring(&snapshot, &to, more)).await, REFUSED, &words);
            assert_eq!(files(&to), left);
            std::fs::remove_dir_all(&to).unwrap();
            json(&output(&mut restoring(&snapshot, &to, more)).await);
        } else if files(&to).is_empty() {
            // It had not begun.
            json(&output(&mut restoring(&snapshot, &to, more)).await);
        } else {
            finished += 1;
        }
        json(&offline(&["-o", "json", "verify"], &[("--data-dir", &to)]).await);
        server.restart_on(&to).await;
        let client = server.client().await;
        load::check(&client, &acknowledged, KEEP, 16, &format!("{when:?}")).await;
        let old = client.pipeline(LEDGER).branch("east").head().await.unwrap().token();
        let resumed = client.pipeline(LEDGER).branch("east").resume("loader").await.unwrap();
        assert!(resumed.token().generation() == 2 && old.generation() == 1, "{old}, {}", resumed.token());
        server.kill().await;
    }
    assert!(cut_short >= moments.len() / 3, "{cut_short} of {} restores were cut short", moments.len());
    verified(&snapshot).await;
    println!("{} restores were killed, {cut_short} in the middle, {finished} too late", moments.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_whose_server_was_killed_leaves_nothing_behind() {
    let (mut server, client, load) = loaded().await;
    let file = server.scratch().join("export");
    let partial = |dir: &Path| files(dir).iter().any(|it| it.extension().is_some_and(|it| it == "transfer"));
    let data_dir = server.data_dir();
    let mut caller = spawn(server.command(&["export", load::BULK]).arg(&file));
    moment("the export is under way", || partial(&data_dir));
    server.kill().await;
    let ended = tokio::time::timeout(PATIENCE, caller.wait()).await.expect("it ends in time").unwrap();
    assert!(!ended.success() && !file.exists() && partial(&data_dir), "{ended:?}");
    server.restart().await;
    assert!(!partial(&data_dir));
    let pause = load.pause().await;
    load.check(&client, 16, "after the export").await;
    drop(pause);
    let ended = output(server.command(&["export", load::BULK]).arg(&file)).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(offline(&["verify"], &[("", &file)]).await.code, Some(0));
    assert!(!partial(&data_dir));
    load.stop().await;
}
