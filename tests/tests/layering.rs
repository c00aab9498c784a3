//! Who may depend on whom: the arrows of ARCHITECTURE.md.
#![expect(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

/// What each crate of the workspace may use of the others, in code, tests and build scripts.
const ALLOWED: &[(&str, &[&str])] = &[
    ("elanus-proto", &[]),
    ("elanus-index", &[]),
    ("elanus-embed", &[]),
    ("elanus-remote", &[]),
    ("elanus-storage", &["elanus-index"]),
    (
        "elanus",
        &["elanus-proto", "elanus-index", "elanus-storage", "elanus-embed", "elanus-remote"],
    ),
    ("elanus-tests", &["elanus-proto", "elanus-index", "elanus-storage", "elanus-embed", "elanus"]),
];

/// What `index` must not know of: it borrows bytes and returns hits. Its parallel iterators run in
/// the caller's pool; `clippy.toml` forbids the calls that would go past it.
const NOT_IN_INDEX: &[&str] = &["tokio", "crossbeam", "memmap2", "fs-err", "arrow-array"];

#[test]
fn each_crate_depends_only_on_the_layers_below_it() {
    let found = dependencies();
    let names: BTreeSet<&str> = found.keys().map(String::as_str).collect();
    let expected: BTreeSet<&str> = ALLOWED.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, expected, "a crate was added or removed: say where it stands");
    for (name, allowed) in ALLOWED {
        for dependency in found[*name].iter().filter(|d| found.contains_key(*d)) {
            assert!(allowed.contains(&dependency.as_str()), "{name} depends on {dependency}");
        }
    }
}

#[test]
fn the_index_knows_no_files_and_no_threads() {
    let found = dependencies();
    for name in NOT_IN_INDEX {
        assert!(!found["elanus-index"].contains(*name), "index depends on {name}");
    }
}

/// The dependencies of each crate of the workspace, of every kind.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let text = |value: &serde_json::Value| value["name"].as_str().unwrap().to_owned();
    metadata["packages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|package| {
            let dependencies = package["dependencies"].as_array().unwrap();
            (text(package), dependencies.iter().map(text).collect())
        })
        .collect()
}
