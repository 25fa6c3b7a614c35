//! `fencepost demo` from outside: one run with real processes, and how it refuses what it cannot use.

#![allow(missing_docs, clippy::unwrap_used, clippy::disallowed_methods, reason = "a test")]

use assert_cmd::Command;
use serde_json::Value;

fn demo() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fencepost"));
    command.arg("demo");
    command
}

/// What a run says on standard error that ends with this exit code.
fn failure(command: &mut Command, code: i32) -> String {
    let output = command.assert().code(code).get_output().clone();
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn two_workers_and_the_server_are_hit_and_every_sum_is_as_if_nothing_had_happened() {
    let dir = tempfile::tempdir().unwrap();
    let keep = dir.path().join("kept");
    let output = demo().args(["--seed", "20130101", "-o", "json", "--keep"]).arg(&keep).assert().success();
    let stdout = String::from_utf8(output.get_output().stdout.clone()).unwrap();
    let events: Vec<Value> = stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |kind: &str| events.iter().filter(|event| event["event"] == kind).collect::<Vec<_>>();

    let summary = events.last().unwrap();
    assert_eq!(summary["event"], "summary");
    assert_eq!(summary["equal"], true, "{summary}");
    assert_eq!((&summary["kills"], &summary["fenced"]), (&Value::from(1), &Value::from(1)));
    assert_eq!(summary["server_restarts"], 1);
    assert_eq!(summary["flights"], 6099);
    assert_eq!((of("killed").len(), of("server_killed").len()), (1, 1));

    let (frozen, fenced) = (of("frozen"), of("fenced"));
    assert_eq!(fenced[0]["reason"], "FENCED");
    assert_eq!(fenced[0]["holder"], format!("standby-{}", frozen[0]["branch"].as_str().unwrap()));

    let plan = of("plan")[0];
    let branches = summary["branches"].as_array().unwrap();
    for victim in [&plan["killed"]["branch"], &plan["frozen"]["branch"]] {
        let branch = branches.iter().find(|branch| branch["branch"] == *victim).unwrap();
        assert_eq!(branch["tokens"].as_array().unwrap().len(), 2, "a victim's successor has a token of its own");
        assert!(branch["orphan_rows"].as_u64().unwrap() > 0, "rows of the batch that was hit are left out: {branch}");
    }
    assert!(keep.join("data").is_dir() && keep.join("results-EWR.csv").is_file(), "the directory is kept");
}

#[test]
fn a_directory_that_is_in_use_is_not_written_to() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("mine"), "precious").unwrap();
    let message = failure(demo().arg("--keep").arg(dir.path()), 78);
    assert!(message.contains("not empty; expected an empty directory"), "{message}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn a_bad_input_is_refused_with_its_line_its_column_and_what_was_expected() {
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("flights.csv");
    let header = "year,month,day,arr_delay,carrier,origin";
    for (rows, expected) in [
        ("year,month\n", "line 1: no column 'day'"),
        ("{header}\n2013,1,1,11,UA,EWR\n2013,1,1,soon,UA,EWR\n", "line 3, column 'arr_delay': found 'soon'"),
        ("{header}\n2013,1,1,11,UA,SFO\n", "line 2, column 'origin': found 'SFO', expected EWR, JFK or LGA"),
        ("{header}\n2013,1,1,11,UA\n", "line 2: found 5 columns, expected 6"),
        ("{header}\n2013,1,1,11,UA,EWR\n", "1 flights from EWR; expected at least"),
    ] {
        std::fs::write(&input, rows.replace("{header}", header)).unwrap();
        let message = failure(demo().arg("--input").arg(&input), 65);
        assert!(message.contains(expected), "{message}");
    }
    let missing = failure(demo().args(["--input", "no-such-file.csv"]), 69);
    assert!(missing.contains("no-such-file.csv"), "{missing}");
}
