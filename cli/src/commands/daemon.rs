//! `daemon`: the node itself, in this process.

use std::{
    io::{self, IsTerminal},
    os::{
        linux::net::SocketAddrExt,
        unix::{
            ffi::OsStrExt,
            net::{SocketAddr, UnixDatagram},
        },
    },
    process::ExitCode,
};

use bitmesh_node::{
    StartError,
    config::Config,
    control::{ErrorCode, server::BindError},
    mesh::StartError as MeshError,
    words::WordsFileError,
};
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use tracing_subscriber::EnvFilter;

use crate::{
    args::{DaemonArgs, LogFormat},
    context::Context,
    failure::Failure,
    output::Output,
    passphrase,
};

/// Threads that carry traffic. More than four cost memory and bring nothing: one proxy saturates a
/// gigabit on two.
const WORKERS_MAX: usize = 4;

pub(super) fn run(context: &Context, args: &DaemonArgs) -> Result<(), Failure> {
    must_be_initialised(context)?;
    let mut config = Config::load(&context.paths.config)?;
    config.network = context.network;
    // Before it leaves the terminal, and before anything is logged.
    let passphrase = passphrase::to_open(context, args.unlock.passphrase_file.as_deref())?;
    if args.background {
        // Fails only for the leader of a process group, which a terminal's hangup does not reach
        // through its parent either.
        let _ = rustix::process::setsid();
    }
    log_to_stderr(args, context)?;
    raise_open_files();

    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cores.min(WORKERS_MAX))
        .enable_all()
        .build()
        .map_err(|error| Failure::system("start", &error))?;
    runtime.block_on(async {
        let shutdown = CancellationToken::new();
        stop_on_signals(&shutdown, args.background, context.out.clone())?;
        let paths = &context.paths;
        info!(
            version = env!("CARGO_PKG_VERSION"),
            network = %config.network,
            datadir = %paths.datadir.display(),
            "starting"
        );
        let ready = || {
            info!(socket = %paths.socket.display(), "ready");
            notify("READY=1");
        };
        let ended = bitmesh_node::run(config, paths, passphrase, shutdown, ready).await;
        notify("STOPPING=1");
        info!("stopped");
        Ok(ended?)
    })
}

/// Refuses to start where `init` has not been.
pub(super) fn must_be_initialised(context: &Context) -> Result<(), Failure> {
    if context.paths.words().exists() {
        return Ok(());
    }
    Err(WordsFileError::Missing(context.paths.datadir.clone()).into())
}

fn log_to_stderr(args: &DaemonArgs, context: &Context) -> Result<(), Failure> {
    let level = match (context.global.quiet, context.global.verbose) {
        (true, _) => "warn",
        (false, 0) => "info,libp2p=warn,sled=warn",
        (false, 1) => "debug,libp2p=info,hyper=info,sled=warn",
        (false, _) => "trace,hyper=debug,sled=info",
    };
    let filter = args.log.as_deref().unwrap_or(level);
    let filter = EnvFilter::try_new(filter).map_err(|error| {
        Failure::usage(
            format!("--log {filter}: {error}"),
            "write it like info or info,bitmesh_node::mesh=debug",
        )
    })?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr);
    // The journal puts its own time before each line.
    let journal = std::env::var_os("JOURNAL_STREAM").is_some();
    match (args.log_format, journal) {
        (LogFormat::Json, _) => builder.json().flatten_event(true).init(),
        (LogFormat::Text, true) => builder.without_time().with_ansi(false).init(),
        (LogFormat::Text, false) => builder.with_ansi(io::stderr().is_terminal()).init(),
    }
    Ok(())
}

/// Each flow of each buyer is a descriptor, and the usual soft limit of 1024 is soon reached.
fn raise_open_files() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        warn!(%error, "the limit on open files stays as it is");
    }
}

/// The first SIGTERM, SIGINT or SIGHUP stops the node in order, the second at once. In the background
/// a hangup is ignored: that node does not live on a terminal.
fn stop_on_signals(
    shutdown: &CancellationToken,
    background: bool,
    out: Output,
) -> Result<(), Failure> {
    let on = |kind| signal(kind).map_err(|error| Failure::system("wait for signals", &error));
    let mut terminate = on(SignalKind::terminate())?;
    let mut interrupt = on(SignalKind::interrupt())?;
    let mut hangup = on(SignalKind::hangup())?;
    let shutdown = shutdown.clone();
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
                _ = hangup.recv() => if background { continue },
            }
            if shutdown.is_cancelled() {
                let _: ExitCode = Failure::Interrupted.report(&out);
                std::process::exit(i32::from(Failure::Interrupted.exit_code()));
            }
            info!("stopping; once more stops at once");
            shutdown.cancel();
        }
    });
    Ok(())
}

/// Tells systemd, where it asked to be told (`Type=notify`).
fn notify(state: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    let address = match path.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        name => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(name)),
    };
    let sent = address.and_then(|address| {
        UnixDatagram::unbound()?
            .send_to_addr(state.as_bytes(), &address)
            .map(|_| ())
    });
    if let Err(error) = sent {
        warn!(%error, "the service manager could not be told");
    }
}

impl From<WordsFileError> for Failure {
    fn from(error: WordsFileError) -> Self {
        if let Some(failure) = passphrase::failure(&error) {
            return failure;
        }
        let (code, hint) = match &error {
            WordsFileError::Missing(_) => (
                ErrorCode::NotFound,
                "make one with \"bitmesh init\", or check --datadir and --network",
            ),
            WordsFileError::Exists(_) => (
                ErrorCode::Conflict,
                "\"bitmesh up\" starts it; a second node needs a --datadir of its own",
            ),
            WordsFileError::Words { .. } => (
                ErrorCode::Usage,
                "twelve English words are needed, in their order",
            ),
            WordsFileError::Sealed(_)
            | WordsFileError::NotSealed(_)
            | WordsFileError::Unseal { .. }
            | WordsFileError::File(_)
            | WordsFileError::Folder { .. }
            | WordsFileError::BirthHeight(_) => (
                ErrorCode::Failure,
                "check the data directory; the words must be yours alone",
            ),
        };
        Self::new(code, error.to_string(), hint)
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        let text = error.to_string();
        match error {
            StartError::Lock(error) => error.into(),
            StartError::Words(error) => error.into(),
            StartError::Socket(error) => {
                let hint = match &error {
                    BindError::InUse(_) => "\"bitmesh down\" stops the daemon that has it",
                    BindError::NotASocket(_) => "move that file away",
                    BindError::TooLong(_) => "choose a shorter --datadir, or a socket with --api",
                    BindError::Io { .. } => "check that the folder is yours",
                };
                Self::new(ErrorCode::Conflict, text, hint)
            }
            StartError::Setting { .. } => Self::new(
                ErrorCode::Usage,
                text,
                "change it with \"bitmesh config set\"",
            ),
            StartError::Mesh(MeshError::Listen { .. }) => Self::new(
                ErrorCode::Conflict,
                text,
                "\"ss -lntup\" shows who has the port; end that, or listen elsewhere: bitmesh config \
                 set mesh.listen /ip4/0.0.0.0/udp/PORT/quic-v1,/ip4/0.0.0.0/tcp/PORT",
            ),
            StartError::Mesh(_) => Self::new(
                ErrorCode::Usage,
                text,
                "\"bitmesh config get mesh\" shows the settings of the mesh",
            ),
            StartError::Journal(_) | StartError::Records(_) => Self::new(
                ErrorCode::Failure,
                text,
                "money stands on it, so nothing is guessed: copy the whole data directory first, then \
                 \"bitmesh journal check\" says what is lost and what can be done",
            ),
            StartError::JournalRefuses => Self::new(
                ErrorCode::Failure,
                text,
                "make room on the disk of the data directory, then start again: nothing is lost",
            ),
            StartError::Wallet(_) => Self::new(
                ErrorCode::Failure,
                text,
                "move the folder \"wallet\" of the data directory aside: it is built again from the \
                 words and the chain",
            ),
            StartError::Io { .. } => Self::new(
                ErrorCode::Failure,
                text,
                "check that the data directory is yours, and the limits (ulimit -a)",
            ),
        }
    }
}
