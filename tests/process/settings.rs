//! Settings: which of flag, environment and file counts, and what is said about a wrong one.

use std::path::PathBuf;

use serde_json::Value;

use crate::support::{Ended, fencepost, output};

const CONFIG: i32 = 78;
const USAGE: i32 = 2;

/// `serve --print-config` with this file, environment and flags.
async fn print(file: Option<&str>, environment: &[(&str, &str)], flags: &[&str]) -> Ended {
    let dir = tempfile::tempdir().unwrap();
    let mut command = fencepost();
    command.args(["serve", "--print-config"]).envs(environment.iter().copied()).args(flags);
    if let Some(text) = file {
        let path: PathBuf = dir.path().join("fencepost.toml");
        std::fs::write(&path, text).unwrap();
        command.arg("--config").arg(path);
    }
    output(&mut command).await
}

async fn settings(file: Option<&str>, environment: &[(&str, &str)], flags: &[&str]) -> Value {
    let ended = print(file, environment, flags).await;
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
    serde_json::from_str(&ended.stdout).unwrap()
}

#[tokio::test]
async fn a_flag_beats_the_environment_which_beats_the_file_which_beats_the_default() {
    let file = Some("lease_ttl_default_ms = 2000\nconnections_max = 7");
    let environment = [("FENCEPOST_LEASE_TTL_DEFAULT_MS", "3000"), ("FENCEPOST_LISTEN", "127.0.0.1:9")];
    let ttl = async |file, environment: &[(&str, &str)], flags: &[&str]| {
        settings(file, environment, flags).await["lease_ttl_default_ms"].as_u64().unwrap()
    };
    assert_eq!(ttl(None, &[], &[]).await, 30_000);
    assert_eq!(ttl(file, &[], &[]).await, 2_000);
    assert_eq!(ttl(file, &environment, &[]).await, 3_000);
    assert_eq!(ttl(file, &environment, &["--lease-ttl-default-ms", "4000"]).await, 4_000);

    let all = settings(file, &environment, &["--data-dir", "elsewhere"]).await;
    assert_eq!(all["connections_max"], 7, "what nothing beats stays");
    assert_eq!(all["listen"], "127.0.0.1:9");
    assert_eq!(all["data_dir"], "elsewhere");
    assert_eq!(all["segment_bytes"], 64 << 20);
}

#[tokio::test]
async fn every_setting_has_its_flag_its_variable_and_its_key() {
    let settings_of = [
        ("listen", "127.0.0.1:1", "\"127.0.0.1:1\""),
        ("data_dir", "x/y", "\"x/y\""),
        ("segment_bytes", "33554432", "33554432"),
        ("batch_bytes_max", "524288", "524288"),
        ("in_flight_bytes_max", "134217728", "134217728"),
        ("request_bytes_max", "4194304", "4194304"),
        ("connections_max", "17", "17"),
        ("lease_ttl_default_ms", "5000", "5000"),
        ("compaction_bytes_per_second", "1048576", "1048576"),
        ("scrub_bytes_per_second", "1024", "1024"),
        ("scrub_every_ms", "60000", "60000"),
    ];
    let defaults = settings(None, &[], &[]).await;
    let known: Vec<&String> = defaults.as_object().unwrap().keys().collect();
    assert_eq!(known.len(), settings_of.len(), "a new setting is tested here, too: {known:?}");
    for (key, text, value) in settings_of {
        let expected: Value = serde_json::from_str(value).unwrap();
        assert_ne!(defaults[key], expected);
        let flag = format!("--{}", key.replace('_', "-"));
        let variable = format!("FENCEPOST_{}", key.to_uppercase());
        assert_eq!(settings(None, &[], &[&flag, text]).await[key], expected, "{flag}");
        assert_eq!(settings(None, &[(&variable, text)], &[]).await[key], expected, "{variable}");
        assert_eq!(settings(Some(&format!("{key} = {value}")), &[], &[]).await[key], expected, "{key} in the file");
    }
}

#[tokio::test]
async fn a_wrong_setting_is_refused_by_name_with_what_would_be_right() {
    let cases: [(&str, &[&str]); 12] = [
        ("lease_ttl_default_ms = 999", &["lease_ttl_default_ms is 999", "1000 to 3600000"]),
        ("lease_ttl_default_ms = 3600001", &["lease_ttl_default_ms", "1000 to 3600000"]),
        ("request_bytes_max = 2097151", &["request_bytes_max is 2097151", "2097152 to 67108864"]),
        ("request_bytes_max = 67108865", &["request_bytes_max", "2097152 to 67108864"]),
        ("batch_bytes_max = 4095", &["batch_bytes_max is 4095", "4096 to 16777216"]),
        ("segment_bytes = 1000", &["segment_bytes is 1000", "20971520 to"]),
        ("in_flight_bytes_max = 1000", &["in_flight_bytes_max is 1000", "8388608 to"]),
        ("connections_max = 0", &["connections_max is 0", "1 to 1000000"]),
        ("lisen = \"127.0.0.1:1\"", &["fencepost.toml", "lisen", "`listen`"]),
        ("listen = \"nowhere\"", &["fencepost.toml", "listen"]),
        ("connections_max = \"many\"", &["fencepost.toml", "connections_max"]),
        ("listen = ", &["fencepost.toml"]),
    ];
    for (file, words) in cases {
        let ended = print(Some(file), &[], &[]).await;
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(CONFIG), ""), "{file}: {}", ended.stderr);
        for word in words {
            assert!(ended.stderr.contains(word), "{file}: '{word}' is not in: {}", ended.stderr);
        }
    }
}

#[tokio::test]
async fn bounds_hold_for_flags_and_variables_too() {
    let flag = print(None, &[], &["--lease-ttl-default-ms", "1"]).await;
    let variable = print(None, &[("FENCEPOST_LEASE_TTL_DEFAULT_MS", "1")], &[]).await;
    for ended in [flag, variable] {
        assert_eq!(ended.code, Some(CONFIG));
        assert!(ended.stderr.contains("lease_ttl_default_ms is 1"), "{}", ended.stderr);
    }
}

#[tokio::test]
async fn a_file_that_is_not_there_is_an_error() {
    let ended = print(None, &[], &["--config", "/nowhere/fencepost.toml"]).await;
    assert_eq!(ended.code, Some(CONFIG));
    assert!(ended.stderr.contains("/nowhere/fencepost.toml"), "{}", ended.stderr);
    let ended = print(None, &[("FENCEPOST_CONFIG", "/nowhere/else.toml")], &[]).await;
    assert!(ended.stderr.contains("/nowhere/else.toml"), "{}", ended.stderr);
}

#[tokio::test]
async fn a_wrong_command_line_says_which_part() {
    let cases: [(&[&str], &str); 6] = [
        (&["serve", "--lisen", "127.0.0.1:1"], "--lisen"),
        (&["serve", "--listen", "nowhere"], "nowhere"),
        (&["serve", "--connections-max", "many"], "many"),
        (&["frobnicate"], "frobnicate"),
        (&["run", "--pipeline", "prod/orders"], "COMMAND"),
        (&["lease", "release", "prod/orders", "main", "--token", "e42"], "expected a form such as g1.e42"),
    ];
    for (arguments, word) in cases {
        let ended = output(fencepost().args(arguments)).await;
        assert_eq!(ended.code, Some(USAGE), "{arguments:?}: {}", ended.stderr);
        assert!(ended.stderr.contains(word), "{arguments:?}: '{word}' is not in: {}", ended.stderr);
    }
}
