//! Child processes that never outlive the process that started them.
//!
//! Each child is the leader of a process group of its own, and in that group a small shell, the
//! *watcher*, waits on a pipe whose other end only we hold. However we end, `kill -9` included, the
//! kernel closes that pipe, and the watcher kills the group. This needs no privileges, no unsafe
//! code, and nothing of Linux alone; and as the child itself takes the place of the shell that
//! started the watcher, its pid, its exit status and its signals are its own.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use thiserror::Error;

use crate::wait;

/// Starts the watcher and becomes the program. `read` ends when the pipe does; `kill 0` is the group.
const WATCHED: &str = "exec 3<&0 </dev/null\n\
    ( read -r _ <&3; kill -KILL 0 ) >/dev/null 2>&1 &\n\
    exec 3<&-\n\
    exec \"$@\"";

/// Runs a script of clean-up when the pipe ends.
const KEPT: &str = "trap '' HUP INT TERM\nread -r _\nscript=$1\nshift\neval \"$script\"";

/// How long a child that was killed may take to be gone.
const GONE: Duration = Duration::from_secs(10);

/// A child could not be started or watched.
#[derive(Debug, Error)]
#[error("cannot {act} {name}: {source}")]
pub struct ProcessError {
    /// What was attempted.
    pub act: &'static str,
    /// Which child.
    pub name: String,
    /// Why not.
    pub source: io::Error,
}

/// What to start: a program, its arguments and environment, and where its output goes.
#[derive(Clone, Debug)]
pub struct Launch {
    name: String,
    program: OsString,
    args: Vec<OsString>,
    env: Vec<(OsString, Option<OsString>)>,
    log: PathBuf,
}

impl Launch {
    /// A launch of `program`, called `name` in errors, whose output is appended to the file `log`.
    pub fn new(
        name: impl Into<String>,
        program: impl Into<OsString>,
        log: impl Into<PathBuf>,
    ) -> Self {
        Self {
            name: name.into(),
            program: program.into(),
            args: Vec::new(),
            env: Vec::new(),
            log: log.into(),
        }
    }

    /// Adds arguments.
    #[must_use]
    pub fn args(mut self, args: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.push((name.into(), Some(value.into())));
        self
    }

    /// Keeps an environment variable of ours from the child.
    #[must_use]
    pub fn without_env(mut self, name: impl Into<OsString>) -> Self {
        self.env.push((name.into(), None));
        self
    }

    /// Starts the child inside the network namespace `namespace`, which needs root.
    #[must_use]
    pub fn in_namespace(self, namespace: &str) -> Self {
        let Self {
            name,
            program,
            args,
            env,
            log,
        } = self;
        let prefix = ["netns", "exec", namespace].map(OsString::from);
        let args = prefix.into_iter().chain([program]).chain(args).collect();
        Self {
            name,
            program: "ip".into(),
            args,
            env,
            log,
        }
    }

    /// Starts the child.
    ///
    /// # Errors
    ///
    /// Returns an error if the log cannot be opened or the shell does not start. A program that
    /// cannot be executed shows as a child that ended with status 126 or 127.
    pub fn start(&self) -> Result<Process, ProcessError> {
        let failed = |source| ProcessError {
            act: "start",
            name: self.name.clone(),
            source,
        };
        let log = File::options()
            .create(true)
            .append(true)
            .open(&self.log)
            .map_err(failed)?;
        let mut command = Command::new("/bin/sh");
        command
            .arg("-c")
            .arg(WATCHED)
            .arg(&self.name)
            .arg(&self.program)
            .args(&self.args)
            .stdin(Stdio::piped())
            .stdout(log.try_clone().map_err(failed)?)
            .stderr(log)
            .process_group(0);
        for (name, value) in &self.env {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        let child = command.spawn().map_err(failed)?;
        Ok(Process {
            name: self.name.clone(),
            log: self.log.clone(),
            child,
            status: None,
        })
    }
}

/// A running child. Dropping it kills it and everything it started.
#[derive(Debug)]
pub struct Process {
    name: String,
    log: PathBuf,
    // Holds the writing end of the watcher's pipe: `Child::wait` would close it, so it is not used.
    child: Child,
    status: Option<ExitStatus>,
}

impl Process {
    /// The pid of the program itself.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The file its output goes to.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// How it ended, or `None` while it runs.
    ///
    /// # Errors
    ///
    /// Returns an error if the system does not say.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>, ProcessError> {
        if self.status.is_none() {
            self.status = self
                .child
                .try_wait()
                .map_err(|source| self.failed("watch", source))?;
        }
        Ok(self.status)
    }

    /// Asks it to end with `SIGTERM` and waits until it has.
    ///
    /// # Errors
    ///
    /// Returns an error if it has not ended `within` that time; it then still runs.
    pub fn terminate(&mut self, within: Duration) -> Result<ExitStatus, ProcessError> {
        if let Some(status) = self.ended()? {
            return Ok(status);
        }
        kill_process(self.raw_pid(), Signal::TERM)
            .map_err(|error| self.failed("terminate", error.into()))?;
        self.wait(within)
    }

    /// Ends it, and everything it started, with `SIGKILL`: no destructor and no handler runs.
    ///
    /// # Errors
    ///
    /// Returns an error if it is not gone soon after.
    pub fn kill(&mut self) -> Result<ExitStatus, ProcessError> {
        if let Some(status) = self.ended()? {
            return Ok(status);
        }
        kill_process_group(self.raw_pid(), Signal::KILL)
            .map_err(|error| self.failed("kill", error.into()))?;
        self.wait(GONE)
    }

    /// Stops it in its tracks with `SIGSTOP`: it keeps its sockets and answers nothing.
    ///
    /// # Errors
    ///
    /// Returns an error if it has ended.
    pub fn freeze(&mut self) -> Result<(), ProcessError> {
        self.signal(Signal::STOP)
    }

    /// Lets it go on after [`freeze`](Self::freeze).
    ///
    /// # Errors
    ///
    /// Returns an error if it has ended.
    pub fn thaw(&mut self) -> Result<(), ProcessError> {
        self.signal(Signal::CONT)
    }

    fn signal(&mut self, signal: Signal) -> Result<(), ProcessError> {
        if self.ended()?.is_some() {
            return Err(self.failed("signal", io::ErrorKind::NotFound.into()));
        }
        kill_process(self.raw_pid(), signal).map_err(|error| self.failed("signal", error.into()))
    }

    /// Waits until it has ended by itself.
    ///
    /// # Errors
    ///
    /// Returns an error if it has not `within` that time.
    pub fn wait(&mut self, within: Duration) -> Result<ExitStatus, ProcessError> {
        let mut ended = || self.ended().transpose();
        let waited = wait::until(within, "it to end", &mut ended);
        waited.map_err(|late| self.failed("end", io::Error::new(io::ErrorKind::TimedOut, late)))?
    }

    /// The end of what it wrote, for an error message.
    pub fn last_words(&self) -> String {
        last_lines(&self.log)
    }

    fn raw_pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    fn failed(&self, act: &'static str, source: io::Error) -> ProcessError {
        ProcessError {
            act,
            name: self.name.clone(),
            source,
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // A child that cannot be killed is left to its watcher, whose pipe is closed next.
        let _ = self.kill();
    }
}

/// The end of a log file, at most a few kilobytes of it; empty if it cannot be read.
pub fn last_lines(log: &Path) -> String {
    const MOST: u64 = 4096;
    let read = || -> io::Result<String> {
        let mut file = File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(MOST)))?;
        let mut bytes = Vec::new();
        file.take(MOST).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    read().unwrap_or_default()
}

/// Clean-up that runs when this is dropped, and also when this process is killed.
#[derive(Debug)]
pub struct Afterwards {
    keeper: Child,
}

impl Afterwards {
    /// Has `script`, in the language of `/bin/sh`, run with `args` as `"$@"` once this value or this
    /// process is gone.
    ///
    /// # Errors
    ///
    /// Returns an error if the shell does not start; the script will then not run.
    pub fn run<A: AsRef<OsStr>>(
        script: &str,
        args: impl IntoIterator<Item = A>,
    ) -> Result<Self, ProcessError> {
        let keeper = Command::new("/bin/sh")
            .arg("-c")
            .arg(KEPT)
            .arg("afterwards")
            .arg(script)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(|source| ProcessError {
                act: "start",
                name: "clean-up".to_owned(),
                source,
            })?;
        Ok(Self { keeper })
    }
}

impl Drop for Afterwards {
    fn drop(&mut self) {
        // Closes the pipe first.
        let _ = self.keeper.wait();
    }
}

/// Whether a process with this pid exists. Says nothing about which program it is.
pub fn exists(pid: u32) -> bool {
    let known = i32::try_from(pid).ok().and_then(Pid::from_raw);
    known.is_some_and(|pid| {
        !matches!(
            rustix::process::test_kill_process(pid),
            Err(rustix::io::Errno::SRCH)
        )
    })
}

#[cfg(test)]
mod tests {
    use std::{fs, io::BufRead, os::unix::process::ExitStatusExt};

    use tempfile::TempDir;

    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    fn shell(folder: &TempDir, script: &str) -> Process {
        let log = folder.path().join("log");
        Launch::new("shell", "/bin/sh", log)
            .args(["-c", script])
            .start()
            .unwrap()
    }

    /// The pids a child wrote to its log, once it has written `count` of them.
    fn pids(process: &Process, count: usize) -> Vec<u32> {
        wait::until(SOON, "pids in the log", || {
            let text = fs::read_to_string(process.log()).unwrap();
            let pids: Vec<u32> = text.lines().filter_map(|line| line.parse().ok()).collect();
            (pids.len() == count && text.ends_with('\n')).then_some(pids)
        })
        .unwrap()
    }

    fn is_gone(pid: u32) {
        // A zombie counts as gone: it runs no more, and init reaps it in its own time.
        let state = move || {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let after_name = stat.rsplit_once(") ").map(|(_, rest)| rest.to_owned());
            after_name
                .is_none_or(|rest| rest.starts_with('Z'))
                .then_some(())
        };
        wait::until(SOON, format!("process {pid} to be gone"), state).unwrap();
    }

    #[test]
    fn a_child_has_its_own_pid_and_exit_status() {
        let folder = TempDir::new().unwrap();
        let mut child = shell(&folder, "echo $$; exit 7");

        assert_eq!(child.wait(SOON).unwrap().code(), Some(7));
        assert_eq!(pids(&child, 1), [child.pid()]);
    }

    #[test]
    fn a_child_that_is_terminated_may_clean_up_and_one_that_is_killed_may_not() {
        let folder = TempDir::new().unwrap();
        let script = "trap 'echo bye; exit 3' TERM; echo $$; while :; do sleep 0.02; done";

        let mut child = shell(&folder, script);
        pids(&child, 1);
        assert_eq!(child.terminate(SOON).unwrap().code(), Some(3));
        assert!(child.last_words().ends_with("bye\n"));

        fs::remove_file(folder.path().join("log")).unwrap();
        let mut child = shell(&folder, script);
        pids(&child, 1);
        assert_eq!(child.kill().unwrap().signal(), Some(9));
        assert!(!child.last_words().contains("bye"));
    }

    #[test]
    fn dropping_a_child_ends_what_it_started_too() {
        let folder = TempDir::new().unwrap();
        let child = shell(&folder, "sleep 600 & echo $!; echo $$; wait");
        let pids = pids(&child, 2);

        drop(child);

        pids.into_iter().for_each(is_gone);
    }

    #[test]
    fn a_parent_that_is_killed_leaves_no_orphan_and_its_clean_up_runs() {
        // The parent is this test binary once more, which runs `the_parent_of_that_test` alone.
        let folder = TempDir::new().unwrap();
        let mut parent = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--ignored", "--nocapture"])
            .arg("process::tests::the_parent_of_that_test")
            .env("BITMESH_TEST_FOLDER", folder.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let said = io::BufReader::new(parent.stdout.take().unwrap());
        let mut lines = said.lines().map_while(Result::ok);
        let ready = lines.find_map(|line| line.split_once("children: ").map(|it| it.1.to_owned()));
        let pids: Vec<u32> = ready
            .unwrap()
            .split(' ')
            .map(|pid| pid.parse().unwrap())
            .collect();

        parent.kill().unwrap();
        parent.wait().unwrap();

        pids.into_iter().for_each(is_gone);
        let marker = folder.path().join("cleaned");
        wait::until(SOON, "the clean-up", || marker.exists().then_some(())).unwrap();
    }

    #[test]
    #[ignore = "is the parent that another test kills"]
    fn the_parent_of_that_test() {
        let Some(folder) = std::env::var_os("BITMESH_TEST_FOLDER") else {
            return;
        };
        let folder = Path::new(&folder);
        let log = folder.join("log");
        let script = "sleep 600 & echo $!; echo $$; wait";
        let child = Launch::new("shell", "/bin/sh", log)
            .args(["-c", script])
            .start()
            .unwrap();
        let _after = Afterwards::run("touch \"$1\"", [folder.join("cleaned")]).unwrap();
        let pids = pids(&child, 2);
        println!("children: {} {}", pids[0], pids[1]);
        std::thread::park();
    }
}
