//! Starting a network that outlives the command that starts it.

use std::{
    ffi::OsStr,
    fs::File,
    io::{self, Seek},
    os::unix::{fs::FileExt, process::CommandExt},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use bitmesh_node::control::error::ErrorBody;
use rustix::process::{Pid, Signal, kill_process_group};

use super::{NetworkError, state::State};
use crate::{process::ProcessError, wait};

/// How long a network may take to come up: a bitcoind may have to be built first.
const UP: Duration = Duration::from_secs(3600);

/// How long a network that is no longer wanted may take to end.
const GONE: Duration = Duration::from_secs(20);

/// Starts `bitmesh` with `args`, which must bring up the network `name` and hold it, as a process of
/// its own, and returns once that network is up.
///
/// What the process writes is passed to `progress`, a line at a time. If this is dropped before the
/// network is up, it is ended, and nothing of it is left.
///
/// # Errors
///
/// Returns [`NetworkError::Failed`] with the error object that the process wrote if it fails before the
/// network is up, and the last line that it wrote if there is no such object.
pub async fn up_detached<A: AsRef<OsStr>>(
    bitmesh: &Path,
    name: &str,
    args: impl IntoIterator<Item = A>,
    progress: &mut dyn FnMut(&str),
) -> Result<State, NetworkError> {
    if let Ok(running) = State::of_running(name) {
        return Err(NetworkError::Running(running.name));
    }
    let failed = |source| {
        NetworkError::Process(ProcessError {
            act: "start",
            name: "bitmesh".to_owned(),
            source,
        })
    };
    // A file without a name: it goes with the last process that has it open.
    let output = tempfile::tempfile().map_err(failed)?;
    let child = Command::new(bitmesh)
        .args(args)
        .stdin(Stdio::null())
        .stdout(output.try_clone().map_err(failed)?)
        .stderr(output.try_clone().map_err(failed)?)
        .process_group(0)
        .spawn()
        .map_err(failed)?;
    let mut starting = Starting {
        child,
        name,
        is_up: false,
    };
    let mut lines = Lines {
        file: output,
        read: 0,
        partial: String::new(),
    };
    let deadline = wait::Deadline::after(UP);
    let mut last = String::new();
    let mut why = None;
    loop {
        let ended = starting.child.try_wait().map_err(failed)?;
        for line in lines.new_ones().map_err(failed)? {
            // What follows the object says the same in words, and whoever is told it says it again.
            why = why.or_else(|| serde_json::from_str::<ErrorBody>(&line).ok());
            if why.is_none() {
                progress(&line);
                last = line;
            }
        }
        if ended.is_some() {
            return Err(match why {
                Some(ErrorBody { error }) => NetworkError::Failed(error),
                None => NetworkError::Ended(last),
            });
        }
        match State::of_running(name) {
            Ok(state) => {
                starting.is_up = true;
                return Ok(state);
            }
            Err(NetworkError::NotRunning(_)) => {}
            Err(error) => return Err(error),
        }
        if deadline.is_over() {
            return Err(NetworkError::Ended(last));
        }
        deadline.pause().await;
    }
}

/// A network that is coming up. Dropped before it is, it is ended.
struct Starting<'a> {
    child: Child,
    name: &'a str,
    is_up: bool,
}

impl Drop for Starting<'_> {
    fn drop(&mut self) {
        if self.is_up || matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        // To its group: it may be waiting for the build of a bitcoind.
        let group = Pid::from_child(&self.child);
        let gone = |child: &mut Child| {
            let ended = || child.try_wait().ok().flatten();
            wait::until(GONE, "it to end", ended).is_ok()
        };
        let _ = kill_process_group(group, Signal::TERM);
        if !gone(&mut self.child) {
            let _ = kill_process_group(group, Signal::KILL);
            gone(&mut self.child);
        }
        // Its keeper cleans up by itself.
        State::wait_for_clean_up(self.name);
    }
}

/// Reads the lines of a file that another process appends to, whose offset that process shares.
struct Lines {
    file: File,
    read: u64,
    partial: String,
}

impl Lines {
    /// The lines that were completed since this was last called.
    fn new_ones(&mut self) -> io::Result<Vec<String>> {
        let mut bytes = Vec::new();
        // The file was opened once, so its offset is where the others write next.
        let end = self.file.stream_position()?;
        if end > self.read {
            bytes.resize(usize::try_from(end - self.read).unwrap_or(usize::MAX), 0);
            self.file.read_exact_at(&mut bytes, self.read)?;
            self.read = end;
        }
        self.partial.push_str(&String::from_utf8_lossy(&bytes));
        let mut lines: Vec<_> = self.partial.split('\n').map(str::to_owned).collect();
        self.partial = lines.pop().unwrap_or_default();
        Ok(lines)
    }
}
