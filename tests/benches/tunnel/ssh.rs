//! What people use today: `ssh -D`, with an sshd of this benchmark's own.
//!
//! It listens on a free port of loopback, knows one key that was made for it, and keeps everything in
//! a temporary folder. Ciphers and windows are those that ssh chooses by itself.

use std::{
    env,
    fs::{self, DirBuilder},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use bitmesh_testnet::process::{Launch, Process};
use bitmesh_tests::{PATIENCE, wait};
use tempfile::TempDir;
use tokio::net::TcpStream;

/// Where sshd insists on an empty folder if it is started by root.
const ROOTS_FOLDER: &str = "/run/sshd";

/// How to get what is missing.
const HOW: &str = "get it with: apt-get install openssh-server openssh-client";

/// A running `ssh -D`. Dropping it ends both of its ends.
#[derive(Debug)]
pub(crate) struct Ssh {
    /// Where its SOCKS5 proxy listens.
    pub(crate) proxy: SocketAddr,
    _ssh: Process,
    _sshd: Process,
    _folder: TempDir,
}

impl Ssh {
    pub(crate) async fn start() -> Self {
        let (ssh, sshd, keygen) = (find("ssh"), find("sshd"), find("ssh-keygen"));
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let file = |name: &str| folder.path().join(name);
        for key in ["host", "user"] {
            let made = Command::new(&keygen)
                .args(["-q", "-t", "ed25519", "-N", "", "-f"])
                .arg(file(key))
                .stdin(Stdio::null())
                .status();
            assert!(made.is_ok_and(|it| it.success()), "ssh-keygen makes a key");
        }
        if rustix::process::geteuid().is_root() && !Path::new(ROOTS_FOLDER).exists() {
            let made = DirBuilder::new().mode(0o755).create(ROOTS_FOLDER);
            made.unwrap_or_else(|error| panic!("cannot make {ROOTS_FOLDER}: {error}"));
        }
        let (server, proxy) = (free(), free());
        let settings = format!(
            "ListenAddress {server}\n\
             HostKey {}\n\
             AuthorizedKeysFile {}\n\
             PidFile none\n\
             UsePAM no\n\
             StrictModes no\n\
             PermitRootLogin yes\n\
             PasswordAuthentication no\n",
            file("host").display(),
            file("user.pub").display(),
        );
        fs::write(file("sshd_config"), settings).expect("the folder is ours");
        let start = |name: &str, program: &Path, args: Vec<String>| {
            let launch = Launch::new(name, program, file(name)).args(args);
            launch.start().unwrap_or_else(|error| panic!("{error}"))
        };
        let settings = file("sshd_config").display().to_string();
        let sshd = start(
            "sshd.log",
            &sshd,
            vec!["-D".into(), "-e".into(), "-f".into(), settings],
        );
        answers(server, &sshd).await;

        let mut args: Vec<String> = vec!["-N".into(), "-D".into(), proxy.to_string()];
        for option in [
            "BatchMode=yes",
            "ExitOnForwardFailure=yes",
            "IdentitiesOnly=yes",
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
        ] {
            args.extend(["-o".into(), option.into()]);
        }
        args.extend(["-F".into(), "none".into()]);
        args.extend(["-i".into(), file("user").display().to_string()]);
        args.extend(["-p".into(), server.port().to_string()]);
        args.push(server.ip().to_string());
        let ssh = start("ssh.log", &ssh, args);
        answers(proxy, &ssh).await;
        Self {
            proxy,
            _ssh: ssh,
            _sshd: sshd,
            _folder: folder,
        }
    }
}

/// Where a program is, which for sshd may be a folder that is root's alone.
fn find(name: &str) -> PathBuf {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/local/sbin".into()]);
    let found = folders.map(|it| it.join(name)).find(|it| it.is_file());
    found.unwrap_or_else(|| panic!("there is no {name} on this machine; {HOW}"))
}

/// A port of loopback that nobody listens on now.
fn free() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
    let address = listener.and_then(|it| it.local_addr());
    address.expect("loopback has a free port")
}

async fn answers(address: SocketAddr, process: &Process) {
    let listens = wait::until_async(PATIENCE, format!("{address} to answer"), || async {
        TcpStream::connect(address).await.ok()
    });
    if let Err(late) = listens.await {
        panic!("{late}\n{}", process.last_words());
    }
    // A connection that says nothing is dropped by sshd in its own time.
    tokio::time::sleep(Duration::from_millis(100)).await;
}
