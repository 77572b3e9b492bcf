//! `up` and `down`: a daemon in the background.

use std::{
    fs::{self, File, OpenOptions},
    io::{Read, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use bitmesh_node::{
    config::Config,
    control::{
        ApiError, ErrorCode,
        api::{GetStatus, Shutdown, Status},
    },
    paths::{Lock, create_private_dir},
    words::{self, Passphrase},
};
use serde::Serialize;

use crate::{
    args::UpArgs, context::Context, failure::Failure, output::Style, passphrase,
    progress::while_waiting, render,
};

/// How often a starting or stopping daemon is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(25);

/// How long a daemon may take to close its leases and end.
const STOP_WITHIN: Duration = Duration::from_secs(60);

/// The log of a background daemon is put aside when it is longer than this at a start.
const LOG_MAX: u64 = 10 * 1024 * 1024;

/// How much of a log is shown when the daemon does not start.
const LAST_WORDS: u64 = 2 * 1024;

#[derive(Serialize)]
struct Started {
    started: bool,
    pid: u32,
    socket: String,
    node: String,
    network: String,
}

pub(super) fn up(context: &Context, args: &UpArgs) -> Result<(), Failure> {
    context.block_on(async {
        match context.client.call(&GetStatus {}).await {
            Ok(status) => return report(context, &status, false),
            Err(error) if error.code == ErrorCode::Unreachable => {}
            Err(error) => return Err(error.into()),
        }
        super::daemon::must_be_initialised(context)?;
        // A daemon would say the same, in a log.
        Config::load(&context.paths.config)?;
        // So is a wrong passphrase told here and not in a log.
        let passphrase = passphrase::to_open(context, args.unlock.passphrase_file.as_deref())?;
        words::load(&context.paths, context.network, passphrase.as_ref())?;
        let (mut child, begin) = launch(context, passphrase)?;
        let ready = wait_until_ready(context, &mut child, begin, args.wait.0);
        let status = while_waiting(&context.out, "starting the daemon", ready).await?;
        report(context, &status, true)
    })
}

fn report(context: &Context, status: &Status, started: bool) -> Result<(), Failure> {
    let outcome = Started {
        started,
        pid: status.pid,
        socket: context.client.socket().display().to_string(),
        node: status.node.clone(),
        network: status.network.clone(),
    };
    if context.out.is_json() {
        return Ok(context.out.json(&outcome)?);
    }
    let what = if started {
        "started"
    } else {
        "running already"
    };
    context
        .out
        .note(&format!("{what} (process {})", outcome.pid));
    Ok(context.out.text(status, render::status)?)
}

/// Starts the daemon. Returns it, and where in the log its words begin.
fn launch(context: &Context, passphrase: Option<Passphrase>) -> Result<(Child, u64), Failure> {
    let log = open_log(&context.paths.log)
        .map_err(|error| Failure::file("write the log", &context.paths.log, &error))?;
    let copy = log
        .try_clone()
        .map_err(|error| Failure::file("write the log", &context.paths.log, &error))?;
    let begin = log.metadata().map_or(0, |log| log.len());
    let program = std::env::current_exe()
        .map_err(|error| Failure::file("find", Path::new("bitmesh"), &error))?;
    let mut command = Command::new(&program);
    command.arg("daemon").arg("--background");
    let global = &context.global;
    command.args(["--network", &context.network.to_string()]);
    command.arg("--config").arg(&context.paths.config);
    command.arg("--api").arg(&context.paths.socket);
    if let Some(datadir) = &global.datadir {
        // Absolute: a daemon does not stay in the folder in which it was started.
        let datadir = std::path::absolute(datadir)
            .map_err(|error| Failure::file("find the data directory", datadir, &error))?;
        command.arg("--datadir").arg(datadir);
    }
    for _ in 0..global.verbose {
        command.arg("-v");
    }
    if passphrase.is_some() {
        // Not in its arguments and not in its environment, which others can read.
        command.arg("--passphrase-file").arg("-");
        command.stdin(Stdio::piped());
    } else {
        command.stdin(Stdio::null());
    }
    let mut child = command
        .stdout(copy)
        .stderr(log)
        .spawn()
        .map_err(|error| Failure::file("start", &program, &error))?;
    if let (Some(passphrase), Some(mut stdin)) = (passphrase, child.stdin.take()) {
        // Fails only if it has ended, which its log explains.
        let _ = stdin.write_all(passphrase.reveal().as_bytes());
    }
    Ok((child, begin))
}

fn open_log(path: &Path) -> std::io::Result<File> {
    if let Some(folder) = path.parent() {
        create_private_dir(folder)?;
    }
    if fs::metadata(path).is_ok_and(|found| found.len() > LOG_MAX) {
        fs::rename(path, path.with_extension("log.1"))?;
    }
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
}

async fn wait_until_ready(
    context: &Context,
    child: &mut Child,
    begin: u64,
    within: Duration,
) -> Result<Status, Failure> {
    let log = &context.paths.log;
    let waiting = async {
        loop {
            match context.client.call(&GetStatus {}).await {
                Ok(status) => return Ok(status),
                Err(error) if error.code == ErrorCode::Unreachable => {}
                Err(error) => return Err(error.into()),
            }
            if let Ok(Some(code)) = child.try_wait() {
                let words = last_words(log, begin);
                let Some((why, hint)) = complaint(&words) else {
                    context.out.note(&words);
                    return Err(Failure::new(
                        ErrorCode::Failure,
                        format!("the daemon did not start ({code})"),
                        format!(
                            "the end of its log is above; all of it is in {}",
                            log.display()
                        ),
                    ));
                };
                let hint = match hint {
                    "" => format!("its log is {}", log.display()),
                    hint => format!("{hint} (its log is {})", log.display()),
                };
                return Err(Failure::new(
                    ErrorCode::Failure,
                    format!("the daemon did not start: {why}"),
                    hint,
                ));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    tokio::time::timeout(within, waiting)
        .await
        .unwrap_or_else(|_| {
            Err(Failure::new(
                ErrorCode::TimedOut,
                format!(
                    "the daemon is not ready after {} s; it goes on starting",
                    within.as_secs()
                ),
                format!("see {}, or wait longer with --wait", log.display()),
            ))
        })
}

/// What a daemon that ended complained of, and its hint: the last thing that it wrote, as
/// [`Failure::report`] writes it.
fn complaint(words: &str) -> Option<(&str, &str)> {
    let (_, said) = words.rsplit_once("error: ")?;
    let (why, hint) = said.split_once("\nhint: ").unwrap_or((said, ""));
    Some((why.trim_end(), hint.trim_end()))
}

/// The end of a log, at most from `begin` on, from the beginning of a line on.
fn last_words(log: &Path, begin: u64) -> String {
    let read = || -> std::io::Result<String> {
        let mut file = File::open(log)?;
        let length = file.metadata()?.len();
        let skipped = length.saturating_sub(LAST_WORDS).max(begin);
        file.seek(SeekFrom::Start(skipped))?;
        let mut bytes = Vec::new();
        file.take(LAST_WORDS).read_to_end(&mut bytes)?;
        let text = String::from_utf8_lossy(&bytes);
        let whole = match text.split_once('\n') {
            Some((_, rest)) if skipped > begin => rest,
            _ => &text,
        };
        Ok(whole.trim_end().to_owned())
    };
    read().unwrap_or_default()
}

#[derive(Serialize)]
struct Stopped {
    stopped: bool,
    pid: u32,
    closed_leases: u32,
}

pub(super) fn down(context: &Context) -> Result<(), Failure> {
    let stopped = context.block_on(async {
        let stopping = context.client.call(&Shutdown {}).await?;
        let lock = Path::new(&stopping.datadir);
        let gone = async {
            while context.paths.socket.exists() || Lock::is_held(lock) {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        let gone = tokio::time::timeout(STOP_WITHIN, gone);
        while_waiting(&context.out, "closing leases", gone)
            .await
            .map_err(|_| {
                ApiError::new(
                    ErrorCode::TimedOut,
                    format!(
                        "process {} has not ended after {} s",
                        stopping.pid,
                        STOP_WITHIN.as_secs()
                    ),
                    format!(
                        "kill {} loses nothing: it goes on where it stood",
                        stopping.pid
                    ),
                )
            })?;
        Ok(Stopped {
            stopped: true,
            pid: stopping.pid,
            closed_leases: stopping.closing_leases,
        })
    })?;
    Ok(context
        .out
        .reply(&stopped, |stopped, _: Style| match stopped.closed_leases {
            0 => "stopped\n".to_owned(),
            1 => "stopped; 1 lease was closed\n".to_owned(),
            some => format!("stopped; {some} leases were closed\n"),
        })?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_complaint_of_a_log_is_found_with_its_hint() {
        let log = "INFO starting\nerror: the port is taken\nby somebody\nhint: take another\n";
        assert_eq!(
            complaint(log),
            Some(("the port is taken\nby somebody", "take another"))
        );
        assert_eq!(complaint("error: no\n"), Some(("no", "")));
        assert_eq!(complaint("INFO starting\n"), None);
    }
}
