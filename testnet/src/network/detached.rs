//! Starting a network that outlives the command that starts it.

use std::{
    ffi::OsStr,
    fs::File,
    io::{self, Seek},
    os::unix::{fs::FileExt, process::CommandExt},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use super::{NetworkError, state::State};
use crate::{process::ProcessError, wait};

/// How long a network may take to come up: a bitcoind may have to be built first.
const UP: Duration = Duration::from_secs(3600);

/// Starts `bitmesh` with `args`, which must bring up the network `name` and hold it, as a process of
/// its own, and returns once that network is up.
///
/// What the process writes is passed to `progress`, a line at a time.
///
/// # Errors
///
/// Returns the last line that the process wrote if it ends before the network is up.
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
    let mut child = Command::new(bitmesh)
        .args(args)
        .stdin(Stdio::null())
        .stdout(output.try_clone().map_err(failed)?)
        .stderr(output.try_clone().map_err(failed)?)
        .process_group(0)
        .spawn()
        .map_err(failed)?;
    let mut lines = Lines {
        file: output,
        read: 0,
        partial: String::new(),
    };
    let deadline = wait::Deadline::after(UP);
    let mut last = String::new();
    loop {
        let ended = child.try_wait().map_err(failed)?;
        for line in lines.new_ones().map_err(failed)? {
            progress(&line);
            last = line;
        }
        if ended.is_some() {
            return Err(NetworkError::Ended(last));
        }
        match State::of_running(name) {
            Ok(state) => return Ok(state),
            Err(NetworkError::NotRunning(_)) => {}
            Err(error) => return Err(error),
        }
        if deadline.is_over() {
            // Whoever waits this long has given up on it.
            let _ = child.kill();
            return Err(NetworkError::Ended(last));
        }
        deadline.pause().await;
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
