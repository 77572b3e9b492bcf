//! The programs under test.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use bitmesh_testnet::bitcoind::{self, Bitcoind};

/// Names a `bitmesh` to test in place of the one of this workspace.
const EXE_VARIABLE: &str = "BITMESH_EXE";

/// The program `bitmesh`, built from this workspace in the profile of this test.
///
/// `cargo test` builds the programs of other packages only if it is told to, and then perhaps not
/// before this runs; so this asks cargo, which finds nothing to do if the program is up to date.
///
/// # Panics
///
/// Panics with cargo's messages if the program does not build.
pub fn bitmesh() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| env::var_os(EXE_VARIABLE).map_or_else(build, PathBuf::from))
}

fn build() -> PathBuf {
    // This program is TARGET/PROFILE/deps/NAME-HASH.
    let this = env::current_exe().expect("the system knows what it started");
    let folder = this
        .parent()
        .and_then(Path::parent)
        .expect("cargo puts tests two folders down");
    let profile = match folder.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(profile) => profile,
    };
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .args(["build", "--quiet", "--bin", "bitmesh"])
        .args(["--profile", profile])
        .arg("--manifest-path")
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml"))
        .arg("--target-dir")
        .arg(
            folder
                .parent()
                .expect("a profile's folder is in the target folder"),
        );
    // What cargo says to this test about this test would make build scripts run again.
    for (name, _) in env::vars_os() {
        let name = name.to_string_lossy();
        let own = [
            "CARGO_PKG_",
            "CARGO_MANIFEST_",
            "CARGO_CRATE_",
            "CARGO_BIN_",
            "CARGO_PRIMARY_",
        ];
        if own.iter().any(|prefix| name.starts_with(prefix)) || name == "OUT_DIR" {
            cargo.env_remove(&*name);
        }
    }
    let output = cargo
        .output()
        .expect("cargo runs this test, so it can be run");
    assert!(
        output.status.success(),
        "the program under test does not build:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    folder.join("bitmesh")
}

/// The bitcoind of this machine, or one fetched now.
///
/// # Panics
///
/// Panics with how to get one if there is none.
pub fn bitcoind() -> &'static Bitcoind {
    static FOUND: OnceLock<Bitcoind> = OnceLock::new();
    FOUND.get_or_init(|| {
        bitcoind::locate(&mut |said| eprintln!("{said}")).unwrap_or_else(|error| panic!("{error}"))
    })
}
