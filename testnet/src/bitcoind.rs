//! Finding a bitcoind, or getting one.
//!
//! [`locate`] tries five ways, cheapest first, and stops at the first that works:
//!
//! 1. the program that `BITCOIND_EXE` names: if that is set and does not work, it is an error
//!    rather than a reason to go on, since somebody asked for that program;
//! 2. `bitcoind` on the `PATH`;
//! 3. a copy in the cache, put there by one of the next two;
//! 4. the distribution's package, verified by apt and unpacked into the cache with the libraries it
//!    needs: nothing is installed, and no rights are needed;
//! 5. a build of the Bitcoin Core source that the crate `libbitcoinkernel-sys` carries.

mod cache;
mod package;
mod source;

use std::{
    env, fmt,
    io::ErrorKind,
    path::{Path, PathBuf},
    process::{Command, Output},
    thread,
    time::Duration,
};

use thiserror::Error;

/// The oldest major version that will do: the first that relays version 3 transactions.
pub const OLDEST_MAJOR: u32 = 28;

/// The environment variable that names a bitcoind to use, before any other.
pub const EXE_VARIABLE: &str = "BITCOIND_EXE";

/// A program that was started once and said which bitcoind it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bitcoind {
    exe: PathBuf,
    version: String,
    flavour: Flavour,
    way: Way,
}

impl Bitcoind {
    /// Runs `exe -version` and reads what it answers.
    ///
    /// # Errors
    ///
    /// Returns a sentence if the program does not start, is not a bitcoind, or is older than
    /// [`OLDEST_MAJOR`].
    fn probe(exe: &Path, way: Way) -> Result<Self, String> {
        let output = ask_version(exe)
            .map_err(|error| format!("{} does not start: {error}", exe.display()))?;
        let said = String::from_utf8_lossy(&output.stdout);
        let line = said.lines().next().unwrap_or_default();
        let Some((name, version)) = line.split_once(" daemon version v") else {
            return Err(format!("{} is not a bitcoind", exe.display()));
        };
        let flavour = if name.contains("Knots") {
            Flavour::Knots
        } else {
            Flavour::Core
        };
        let version = version.trim().to_owned();
        let major = numbers(&version).first().copied().unwrap_or_default();
        if major < u64::from(OLDEST_MAJOR) {
            return Err(format!(
                "{} is version {version}; at least {OLDEST_MAJOR} is needed, which relays version 3 transactions",
                exe.display()
            ));
        }
        Ok(Self {
            exe: exe.to_owned(),
            version,
            flavour,
            way,
        })
    }

    /// The program to start.
    pub fn exe(&self) -> &Path {
        &self.exe
    }

    /// The version it reports, without the leading `v`.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Whose bitcoind it is. [`Flavour::Knots`] needs `-corepolicy=1` to relay as Core does.
    pub fn flavour(&self) -> Flavour {
        self.flavour
    }

    /// How it was found.
    pub fn way(&self) -> Way {
        self.way
    }
}

impl fmt::Display for Bitcoind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.flavour {
            Flavour::Core => "Bitcoin Core",
            Flavour::Knots => "Bitcoin Knots",
        };
        write!(f, "{name} {} ({})", self.version, self.exe.display())
    }
}

/// Whose bitcoind it is: they differ in relay policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// Bitcoin Core.
    Core,
    /// Bitcoin Knots.
    Knots,
}

/// A way to come by a bitcoind, in the order they are tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// Named by [`EXE_VARIABLE`].
    Named,
    /// On the `PATH`.
    OnPath,
    /// In the cache from an earlier run.
    Cached,
    /// The distribution's package, unpacked into the cache.
    Package,
    /// Built from source into the cache.
    Built,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Named => EXE_VARIABLE,
            Self::OnPath => "PATH",
            Self::Cached => "cache",
            Self::Package => "distribution package",
            Self::Built => "build from source",
        })
    }
}

/// No way led to a bitcoind. Says for each why, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{}\nto get one: {}", self.tried(), LocateError::HINT)]
pub struct LocateError {
    /// Each way that was tried, in order, and why it failed.
    pub attempts: Vec<(Way, String)>,
}

impl LocateError {
    /// What a person can do about it.
    pub const HINT: &'static str = "install Bitcoin Core 28 or later and put bitcoind on the PATH, \
        or name it: BITCOIND_EXE=/path/to/bitcoind; \
        or install the tools of the build (Debian: apt-get install cmake g++ pkg-config libboost-dev libevent-dev) and try again";

    /// What was tried and why it failed, without what to do about it.
    pub fn tried(&self) -> String {
        format!("no usable bitcoind\n{}", list(&self.attempts))
    }
}

fn list(attempts: &[(Way, String)]) -> String {
    let lines: Vec<_> = attempts
        .iter()
        .map(|(way, why)| format!("  {way}: {}", why.trim_end().replace('\n', "\n    ")))
        .collect();
    lines.join("\n")
}

/// Finds a bitcoind or gets one, trying each [`Way`] in order.
///
/// The last two ways take seconds and minutes. `progress` is told, one sentence at a time, what is
/// being done; it is called on the calling thread, which is blocked meanwhile. Two processes that
/// call this at the same time do the work once: the second waits for the first.
///
/// # Errors
///
/// Returns why each way failed.
pub fn locate(progress: &mut dyn FnMut(&str)) -> Result<Bitcoind, LocateError> {
    Places::of_this_process().locate(progress)
}

/// Gets a bitcoind into the cache if none is there, whatever `BITCOIND_EXE` and the `PATH` hold.
///
/// # Errors
///
/// Returns why neither the package nor the build worked.
pub fn fetch(progress: &mut dyn FnMut(&str)) -> Result<Bitcoind, LocateError> {
    Places {
        named: None,
        path: Vec::new(),
        ..Places::of_this_process()
    }
    .locate(progress)
}

/// Where to look: the part of the environment that [`locate`] reads.
#[derive(Clone, Debug)]
struct Places {
    named: Option<PathBuf>,
    path: Vec<PathBuf>,
    cache: Option<PathBuf>,
    /// The ways that fill the cache, in order. Tests put their own here.
    fetchers: Vec<(Way, Fetcher)>,
}

/// Fills a folder so that it holds a program `bitcoind` that runs from wherever the folder is moved.
type Fetcher = fn(stage: &Path, progress: &mut dyn FnMut(&str)) -> Result<(), String>;

impl Places {
    fn of_this_process() -> Self {
        let path = env::var_os("PATH").unwrap_or_default();
        Self {
            named: env::var_os(EXE_VARIABLE)
                .filter(|exe| !exe.is_empty())
                .map(PathBuf::from),
            path: env::split_paths(&path).collect(),
            cache: cache::root(),
            fetchers: vec![(Way::Package, package::fetch), (Way::Built, source::fetch)],
        }
    }

    fn locate(&self, progress: &mut dyn FnMut(&str)) -> Result<Bitcoind, LocateError> {
        let mut attempts = Vec::new();

        if let Some(exe) = &self.named {
            return Bitcoind::probe(exe, Way::Named).map_err(|why| LocateError {
                attempts: vec![(Way::Named, why)],
            });
        }
        attempts.push((Way::Named, "not set".to_owned()));

        match self.on_path() {
            Ok(found) => return Ok(found),
            Err(why) => attempts.push((Way::OnPath, why)),
        }

        let Some(root) = &self.cache else {
            attempts.push((
                Way::Cached,
                "neither XDG_CACHE_HOME nor HOME is set".to_owned(),
            ));
            return Err(LocateError { attempts });
        };
        if let Some(found) = cache::newest(root) {
            return Ok(found);
        }
        attempts.push((Way::Cached, format!("none in {}", root.display())));

        let _lock = match cache::lock(root, progress) {
            Ok(lock) => lock,
            Err(why) => {
                attempts.push((Way::Cached, why));
                return Err(LocateError { attempts });
            }
        };
        // The process that held the lock may have put one there.
        if let Some(found) = cache::newest(root) {
            return Ok(found);
        }
        for (way, fetcher) in &self.fetchers {
            match cache::fill(root, *way, *fetcher, progress) {
                Ok(found) => return Ok(found),
                Err(why) => attempts.push((*way, why)),
            }
        }
        Err(LocateError { attempts })
    }

    fn on_path(&self) -> Result<Bitcoind, String> {
        let mut why = "no bitcoind there".to_owned();
        for folder in &self.path {
            let exe = folder.join("bitcoind");
            if exe.is_file() {
                match Bitcoind::probe(&exe, Way::OnPath) {
                    Ok(found) => return Ok(found),
                    Err(reason) => why = reason,
                }
            }
        }
        Err(why)
    }
}

/// Runs `exe -version`.
fn ask_version(exe: &Path) -> std::io::Result<Output> {
    /// A program that was just written counts as busy while another thread is between fork and exec.
    const TRIES_WHILE_BUSY: u32 = 100;
    let mut tries = 0;
    loop {
        let output = Command::new(exe)
            .arg("-version")
            .env("LC_ALL", "C")
            .output();
        let busy = matches!(&output, Err(error) if error.kind() == ErrorKind::ExecutableFileBusy);
        tries += 1;
        if !busy || tries == TRIES_WHILE_BUSY {
            return output;
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// The numbers of a version, in order: `29.5.0.knots20260508` is `[29, 5, 0, 20260508]`.
fn numbers(version: &str) -> Vec<u64> {
    version
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|digits| digits.parse().ok())
        .collect()
}

/// Runs `command` to its end and returns what it printed.
///
/// # Errors
///
/// Returns a sentence with the end of what it printed on failure.
fn run(command: &mut Command) -> Result<String, String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .env("LC_ALL", "C")
        .output()
        .map_err(|error| match error.kind() {
            ErrorKind::NotFound => format!("{program} is not installed"),
            _ => format!("{program} does not start: {error}"),
        })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = [&output.stdout[..], &output.stderr[..]].concat();
    Err(format!(
        "{program} failed ({}):\n{}",
        output.status,
        tail(&String::from_utf8_lossy(&said))
    ))
}

/// The last lines of a program's output: enough to see what it complained about.
fn tail(said: &str) -> String {
    const LINES: usize = 12;
    let lines: Vec<_> = said
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}

#[cfg(test)]
mod tests;
