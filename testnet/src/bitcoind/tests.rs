use std::{
    fs,
    os::unix::fs::PermissionsExt,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use tempfile::TempDir;

use super::*;

/// Writes a program that answers like a bitcoind of `version`.
fn pretend(folder: &Path, version: &str) -> PathBuf {
    fs::create_dir_all(folder).unwrap();
    let exe = folder.join("bitcoind");
    fs::write(
        &exe,
        format!("#!/bin/sh\necho 'Bitcoin Core daemon version v{version}'\n"),
    )
    .unwrap();
    fs::set_permissions(&exe, fs::Permissions::from_mode(0o755)).unwrap();
    exe
}

fn nowhere(cache: &TempDir) -> Places {
    Places {
        named: None,
        path: Vec::new(),
        cache: Some(cache.path().to_owned()),
        fetchers: vec![
            (Way::Package, |_, _| {
                Err("apt-get is not installed".to_owned())
            }),
            (Way::Built, |_, _| Err("cmake is not installed".to_owned())),
        ],
    }
}

#[test]
fn a_named_program_that_does_not_work_is_an_error_and_nothing_else_is_tried() {
    let cache = TempDir::new().unwrap();
    let good = pretend(&cache.path().join("bitcoind-29.0.0"), "29.0.0");
    let places = Places {
        named: Some("/nonexistent/bitcoind".into()),
        path: vec![good.parent().unwrap().to_owned()],
        ..nowhere(&cache)
    };

    let error = places.locate(&mut |_| {}).unwrap_err();

    assert_eq!(error.attempts.len(), 1);
    assert_eq!(error.attempts[0].0, Way::Named);
}

#[test]
fn the_version_that_is_asked_for_is_the_one_that_is_needed() {
    assert!(LocateError::HINT.contains(&format!("Core {OLDEST_MAJOR} or later")));
}

#[test]
fn a_program_on_the_path_that_is_too_old_is_passed_over() {
    let (cache, old, new) = (
        TempDir::new().unwrap(),
        TempDir::new().unwrap(),
        TempDir::new().unwrap(),
    );
    pretend(old.path(), "27.2.0");
    let exe = pretend(new.path(), "28.0.0");
    let places = Places {
        path: vec![old.path().into(), new.path().into()],
        ..nowhere(&cache)
    };

    let found = places.locate(&mut |_| {}).unwrap();

    assert_eq!(
        (found.exe(), found.way(), found.version()),
        (&*exe, Way::OnPath, "28.0.0")
    );
}

#[test]
fn the_newest_of_the_cache_is_taken_by_number_and_not_by_name() {
    let cache = TempDir::new().unwrap();
    pretend(&cache.path().join("bitcoind-29.10.0"), "29.10.0");
    pretend(&cache.path().join("bitcoind-29.9.0"), "29.9.0");

    let found = nowhere(&cache).locate(&mut |_| {}).unwrap();

    assert_eq!((found.version(), found.way()), ("29.10.0", Way::Cached));
}

#[test]
fn an_error_names_every_way_and_how_to_get_one() {
    let cache = TempDir::new().unwrap();

    let error = nowhere(&cache).locate(&mut |_| {}).unwrap_err();

    let ways: Vec<_> = error.attempts.iter().map(|(way, _)| *way).collect();
    assert_eq!(
        ways,
        [
            Way::Named,
            Way::OnPath,
            Way::Cached,
            Way::Package,
            Way::Built
        ]
    );
    let text = error.to_string();
    assert!(
        text.contains("distribution package: apt-get is not installed"),
        "{text}"
    );
    assert!(text.contains("BITCOIND_EXE=/path/to/bitcoind"), "{text}");
}

#[test]
fn two_at_once_fetch_once_and_a_failed_fetch_leaves_nothing() {
    static FETCHED: AtomicUsize = AtomicUsize::new(0);
    let cache = TempDir::new().unwrap();
    let places = Places {
        fetchers: vec![
            (Way::Package, |stage, _| {
                fs::write(stage.join("half"), "").map_err(|error| error.to_string())?;
                Err("the mirror is away".to_owned())
            }),
            (Way::Built, |stage, _| {
                FETCHED.fetch_add(1, Ordering::SeqCst);
                pretend(stage, "30.0.0");
                Ok(())
            }),
        ],
        ..nowhere(&cache)
    };

    let found: Vec<_> = thread::scope(|scope| {
        let running: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| places.locate(&mut |_| {}).unwrap()))
            .collect();
        running
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });

    assert_eq!(FETCHED.load(Ordering::SeqCst), 1);
    assert!(
        found
            .iter()
            .all(|found| found.exe() == cache.path().join("bitcoind-30.0.0/bitcoind"))
    );
    let mut left: Vec<_> = fs::read_dir(cache.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    left.sort();
    assert_eq!(left, ["bitcoind-30.0.0", "bitcoind.lock"]);
}
