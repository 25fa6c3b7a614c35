//! The repository tests itself: the order of the layers, that modules say what they are, that files can be read in one
//! sitting, and that the documents name files that exist.

#![allow(clippy::disallowed_methods)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The server's modules, each of which may use only those before it.
const LAYERS: [&str; 15] = [
    "clock",
    "error",
    "config",
    "metrics",
    "disk",
    "log",
    "state",
    "index",
    "upkeep",
    "sequencer",
    "ops",
    "service",
    "connections",
    "server",
    "embedded",
];

/// `log` and `state` do not know each other; nobody but its owner names what a layer hides.
const FORBIDDEN: [(&str, &[&str]); 6] = [
    ("disk", &["crate::error", "crate::config", " tonic", " prost", " tokio"]),
    ("log", &["crate::error", "crate::config", " tonic", " prost", "fencepost::log", "fencepost::v1", "std::fs"]),
    ("state", &["crate::log", "crate::disk", "crate::clock", " tokio", " tonic", "std::fs", "std::time::Instant"]),
    ("index", &["crate::log", " tonic", "std::fs"]),
    ("sequencer", &[" tonic", "std::fs"]),
    ("service", &["std::fs"]),
];

/// Longest source file, in lines, tests apart.
const LINES_MAX: usize = 460;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files(folder: &str, ending: &str) -> Vec<PathBuf> {
    let (mut found, mut folders) = (Vec::new(), vec![root().join(folder)]);
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries.map(|entry| entry.expect("a readable folder").path()) {
            if entry.is_dir() {
                // A package of its own, such as benches/compare, builds into its own folder.
                if !entry.ends_with("target") {
                    folders.push(entry);
                }
            } else if entry.to_string_lossy().ends_with(ending) {
                found.push(entry);
            }
        }
    }
    found.sort();
    found
}

fn shown(file: &Path) -> String {
    file.strip_prefix(root()).unwrap_or(file).display().to_string()
}

fn read(file: &Path) -> String {
    fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", shown(file)))
}

/// All source files of ours.
fn sources() -> Vec<PathBuf> {
    ["proto", "server/src", "client/src", "client/tests", "tests", "benches", "examples"]
        .into_iter()
        .flat_map(|folder| files(folder, ".rs"))
        .collect()
}

/// The part of a source file that is shipped: what comes before its inline tests.
fn shipped(text: &str) -> &str {
    text.split("#[cfg(test)]\nmod tests {").next().unwrap_or(text)
}

/// The layer that a file of the server belongs to.
fn layer(file: &Path) -> Option<(usize, &'static str)> {
    let inside = file.strip_prefix(root().join("server/src")).ok()?;
    let first = inside.components().next()?.as_os_str().to_str()?.trim_end_matches(".rs");
    LAYERS.iter().enumerate().find(|(_, name)| **name == first).map(|(i, name)| (i, *name))
}

fn is_test(file: &Path) -> bool {
    let shown = shown(file);
    shown.contains("/tests") || shown.starts_with("tests/")
}

#[test]
fn a_module_uses_only_those_before_it() {
    let mut wrong = Vec::new();
    for file in files("server/src", ".rs").into_iter().filter(|file| !is_test(file)) {
        let Some((own, name)) = layer(&file) else { continue };
        let text = read(&file);
        for line in shipped(&text).lines() {
            for (other, layer) in LAYERS.iter().enumerate() {
                let names_it =
                    line.contains(&format!("crate::{layer}::")) || line.contains(&format!("crate::{layer};"));
                if names_it && other > own && !line.trim_start().starts_with("//") {
                    wrong.push(format!("{} uses {layer}, which comes after {name}: {}", shown(&file), line.trim()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_a_layer_hides_is_named_nowhere_else() {
    let mut wrong = Vec::new();
    for file in files("server/src", ".rs").into_iter().filter(|file| !is_test(file)) {
        let Some((_, name)) = layer(&file) else { continue };
        let Some((_, words)) = FORBIDDEN.iter().find(|(layer, _)| *layer == name) else { continue };
        let text = read(&file);
        for line in shipped(&text).lines().filter(|line| !line.trim_start().starts_with("//")) {
            for word in
                words.iter().filter(|word| line.contains(&format!("{word}::")) || line.contains(&format!("{word};")))
            {
                // The log tells its followers by a watch channel, and the disk has its own door.
                let is_allowed = line.contains("tokio::sync::watch") || shown(&file) == "server/src/disk/real.rs";
                if !is_allowed {
                    wrong.push(format!("{} names {word}: {}", shown(&file), line.trim()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn only_the_services_speak_of_statuses() {
    let wrong: Vec<String> = files("server/src", ".rs")
        .into_iter()
        .filter(|file| !shown(file).starts_with("server/src/service/"))
        .filter(|file| read(file).contains("tonic::Status"))
        .map(|file| shown(&file))
        .collect();
    assert!(wrong.is_empty(), "{wrong:?} name tonic::Status, which belongs to service/");
}

#[test]
fn every_module_opens_by_saying_what_it_is() {
    let wrong: Vec<String> =
        sources().into_iter().filter(|file| !read(file).starts_with("//! ")).map(|file| shown(&file)).collect();
    assert!(wrong.is_empty(), "{wrong:?} do not begin with //!");
}

#[test]
fn no_file_outgrows_one_sitting() {
    let wrong: Vec<String> = sources()
        .into_iter()
        .filter(|file| !is_test(file) && !shown(file).ends_with("disk/sim.rs"))
        .map(|file| (shown(&file), shipped(&read(&file)).lines().count()))
        .filter(|(_, lines)| *lines > LINES_MAX)
        .map(|(file, lines)| format!("{file} has {lines} lines"))
        .collect();
    assert!(wrong.is_empty(), "{}: split them (at most {LINES_MAX})", wrong.join(", "));
}

#[test]
fn the_documents_name_files_that_exist() {
    let mut wrong = BTreeSet::new();
    let documents = ["README.md", "ARCHITECTURE.md", "CHANGELOG.md"].map(|name| root().join(name));
    for document in documents.into_iter().chain(files("docs", ".md")) {
        let folder = document.parent().expect("a file is in a folder");
        for link in read(&document).split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = link.split('#').next().unwrap_or(link);
            if !file.is_empty() && !file.contains("://") && !folder.join(file).exists() {
                wrong.insert(format!("{} links to {link}", shown(&document)));
            }
        }
        // Code spans that look like paths of ours. Odd pieces lie between backticks.
        for span in read(&document).split('`').skip(1).step_by(2) {
            let ours = ["server/", "client/", "tests/", "benches/", "docs/", "proto/", "examples/"];
            let is_path =
                ours.iter().any(|start| span.starts_with(start)) && !span.contains(['*', ' ', '{', '\n', '<']);
            if is_path && !root().join(span).exists() {
                wrong.insert(format!("{} names {span}", shown(&document)));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.into_iter().collect::<Vec<_>>().join("\n"));
}

#[test]
fn nothing_is_left_for_later_in_the_code() {
    let marks = ["TO", "FIX", "XX"].map(|start| {
        format!(
            "{start}{}",
            if start == "TO" {
                "DO"
            } else if start == "FIX" {
                "ME"
            } else {
                "X"
            }
        )
    });
    let wrong: Vec<String> = sources()
        .into_iter()
        .filter(|file| marks.iter().any(|mark| read(file).contains(mark.as_str())))
        .map(|file| shown(&file))
        .collect();
    assert!(wrong.is_empty(), "{wrong:?} have marks for later: do it, or open an issue");
}
