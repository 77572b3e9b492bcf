//! A build of the Bitcoin Core source that the crate `libbitcoinkernel-sys` carries.
//!
//! cargo fetches the crate and verifies its checksum; the crate itself is not built. The build takes
//! about 23 minutes of processor time and needs cmake, a C++ compiler, pkg-config, and the headers
//! of Boost and libevent.

use std::{
    env, fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
};

use serde::Deserialize;

use super::{run, tail};

/// Fetched by cargo for its `bitcoin` folder.
const CRATE: &str = "libbitcoinkernel-sys";

/// Exactly this version: a later one may need other options.
const CRATE_VERSION: &str = "=0.4.1";

/// The daemon and its client, no wallet, and nothing else. The crate lacks the ASMap data file.
const OPTIONS: [&str; 15] = [
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_DAEMON=ON",
    "-DBUILD_CLI=ON",
    "-DENABLE_WALLET=OFF",
    "-DENABLE_IPC=OFF",
    "-DBUILD_TESTS=OFF",
    "-DBUILD_TX=OFF",
    "-DBUILD_UTIL=OFF",
    "-DBUILD_BENCH=OFF",
    "-DBUILD_FUZZ_BINARY=OFF",
    "-DBUILD_KERNEL_LIB=OFF",
    "-DBUILD_BITCOIN_BIN=OFF",
    "-DINSTALL_MAN=OFF",
    "-DWITH_EMBEDDED_ASMAP=OFF",
    "-DWITH_CCACHE=OFF",
];

/// Builds a bitcoind into `stage`.
pub(super) fn fetch(stage: &Path, progress: &mut dyn FnMut(&str)) -> Result<(), String> {
    run(Command::new("cmake").arg("--version"))?;
    let told = |error: std::io::Error| format!("cannot write to {}: {error}", stage.display());
    let work = stage.with_file_name("build");
    fs::create_dir_all(&work).map_err(told)?;

    progress("fetching the source of Bitcoin Core");
    let source = source(&work)?;
    let build = work.join("cmake");
    run(Command::new("cmake")
        .arg("-S")
        .arg(source)
        .arg("-B")
        .arg(&build)
        .args(OPTIONS))?;

    progress("building Bitcoin Core; this takes 10 to 30 minutes, once");
    let jobs = thread::available_parallelism().map_or(1, usize::from);
    follow(
        Command::new("cmake")
            .arg("--build")
            .arg(&build)
            .args(["--parallel", &jobs.to_string()])
            .args(["--target", "bitcoind", "bitcoin-cli"]),
        progress,
    )?;
    for program in ["bitcoind", "bitcoin-cli"] {
        fs::copy(build.join("bin").join(program), stage.join(program)).map_err(told)?;
        // Smaller is all it would be.
        let _ = run(Command::new("strip").arg(stage.join(program)));
    }
    Ok(())
}

/// The folder of the source, once cargo has fetched it.
fn source(work: &Path) -> Result<PathBuf, String> {
    let told = |error: std::io::Error| format!("cannot write to {}: {error}", work.display());
    let package = work.join("fetch");
    fs::create_dir_all(package.join("src")).map_err(told)?;
    fs::write(package.join("src/lib.rs"), "").map_err(told)?;
    let manifest = package.join("Cargo.toml");
    let text = format!(
        "[package]\nname = \"fetch\"\nversion = \"0.0.0\"\nedition = \"2021\"\n\n\
         [workspace]\n\n[dependencies]\n{CRATE} = \"{CRATE_VERSION}\"\n"
    );
    fs::write(&manifest, text).map_err(told)?;

    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let answer = run(Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--manifest-path"])
        .arg(&manifest))?;
    let metadata: Metadata = serde_json::from_str(&answer)
        .map_err(|error| format!("cannot read the answer of cargo metadata: {error}"))?;
    let package = metadata
        .packages
        .into_iter()
        .find(|package| package.name == CRATE);
    package
        .and_then(|package| Some(package.manifest_path.parent()?.join("bitcoin")))
        .filter(|source| source.join("CMakeLists.txt").is_file())
        .ok_or_else(|| format!("{CRATE} {CRATE_VERSION} does not carry the source"))
}

/// The part of `cargo metadata` that is read here.
#[derive(Debug, Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Debug, Deserialize)]
struct Package {
    name: String,
    manifest_path: PathBuf,
}

/// Runs a build and passes its percentages on.
fn follow(command: &mut Command, progress: &mut dyn FnMut(&str)) -> Result<(), String> {
    let told = |error: std::io::Error| format!("cmake does not start: {error}");
    let (reader, writer) = std::io::pipe().map_err(told)?;
    command
        .stdin(Stdio::null())
        .stdout(writer.try_clone().map_err(told)?)
        .stderr(writer);
    let mut child = command.spawn().map_err(told)?;
    // The command holds the writing ends; without them the reader comes to an end.
    command.stdout(Stdio::null()).stderr(Stdio::null());

    let mut said = String::new();
    let mut percent = String::new();
    for line in BufReader::new(reader).lines().map_while(Result::ok) {
        if let Some(now) = percentage(&line).filter(|now| *now != percent) {
            now.clone_into(&mut percent);
            progress(&format!("building Bitcoin Core: {percent}"));
        }
        said.push_str(&line);
        said.push('\n');
    }
    let status = child.wait().map_err(told)?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("the build failed ({status}):\n{}", tail(&said)))
    }
}

/// The percentage that make writes before a step: `[ 42%] Building CXX object …`.
fn percentage(line: &str) -> Option<&str> {
    let (number, _) = line.strip_prefix('[')?.split_once(']')?;
    Some(number.trim()).filter(|number| number.ends_with('%'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[ignore = "takes some 25 minutes of processor time"]
    fn the_source_builds_and_the_result_runs() {
        let folder = tempfile::TempDir::new().unwrap();
        let stage = folder.path().join("content");
        fs::create_dir(&stage).unwrap();

        fetch(&stage, &mut |said| eprintln!("{said}")).unwrap();

        let built =
            super::super::Bitcoind::probe(&stage.join("bitcoind"), super::super::Way::Built);
        eprintln!("{}", built.unwrap());
        // For whoever wants to keep what took so long.
        if let Some(kept) = env::var_os("BITMESH_KEEP_BITCOIND") {
            fs::copy(stage.join("bitcoind"), kept).unwrap();
        }
    }

    #[test]
    fn the_percentage_of_a_step_is_read() {
        assert_eq!(percentage("[ 42%] Building CXX object x.o"), Some("42%"));
        assert_eq!(percentage("[100%] Built target bitcoind"), Some("100%"));
        assert_eq!(percentage("warning: [x] y"), None);
    }
}
