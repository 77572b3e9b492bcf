//! That the bounds in `docs/THREATS.md` have the tests it names.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// The crates of the workspace that hold tests.
const MEMBERS: [&str; 6] = ["market", "wallet", "node", "cli", "testnet", "tests"];

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn every_test_that_the_threats_name_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let text = fs::read_to_string(root.join("docs/THREATS.md")).unwrap();
    let (_, table) = text.split_once("## Attacks, bounds, tests").unwrap();
    let (table, _) = table.split_once("## Open").unwrap();
    let mut files = Vec::new();
    for member in MEMBERS {
        sources(&root.join(member), &mut files);
    }
    let code: String = files
        .iter()
        .map(|file| fs::read_to_string(file).unwrap())
        .collect();

    let named: Vec<_> = table.split('`').skip(1).step_by(2).collect();
    assert!(named.len() > 50, "{} tests are named", named.len());
    let missing: Vec<_> = named
        .iter()
        .filter(|name| !code.contains(&format!("fn {name}(")))
        .collect();
    assert!(missing.is_empty(), "no such tests: {missing:#?}");
}
