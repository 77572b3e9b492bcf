//! The same reader and the same source, with one pipe or another between them.

use std::{fmt, net::SocketAddr, time::Duration};

use bitmesh_tests::connect;
use futures::future::join_all;
use tokio::{io::AsyncWriteExt, net::TcpStream, time::timeout};

use crate::{
    bare::{Bare, Piped},
    carried::Carried,
    sink::{Flow, Measured, drain},
    source::SEND,
    ssh::Ssh,
    transport::Transport,
};

/// Before a measurement begins, so that windows have grown.
const WARM_UP: Duration = Duration::from_millis(500);

/// How long all flows of a pipe may take to be opened.
const OPENED: Duration = Duration::from_secs(60);

/// What is between the source and the reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pipe {
    /// Nothing.
    Loopback,
    /// A stream of libp2p for each flow; the source is in its process.
    Bare(Transport),
    /// The same between two ends of TCP, which makes it a proxy.
    Piped(Transport),
    /// The proxy tunnel.
    Tunnel(Transport),
    /// `ssh -D`.
    Ssh,
}

impl Pipe {
    const ALL: [Self; 8] = [
        Self::Loopback,
        Self::Bare(Transport::Quic),
        Self::Piped(Transport::Quic),
        Self::Tunnel(Transport::Quic),
        Self::Bare(Transport::Tcp),
        Self::Piped(Transport::Tcp),
        Self::Tunnel(Transport::Tcp),
        Self::Ssh,
    ];
}

impl fmt::Display for Pipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Loopback => f.pad("plain TCP"),
            Self::Bare(transport) => f.pad(&format!("bare libp2p, {transport}")),
            Self::Piped(transport) => f.pad(&format!("libp2p pipe, {transport}")),
            Self::Tunnel(transport) => f.pad(&format!("tunnel, {transport}")),
            Self::Ssh => f.pad("ssh -D"),
        }
    }
}

/// All pipes, ready to be used.
struct Pipes {
    source: SocketAddr,
    bare: [Bare; 2],
    piped: [Piped; 2],
    carried: Carried,
    ssh: Ssh,
}

impl Pipes {
    async fn open(&self, pipe: Pipe, flows: usize) -> Vec<Flow> {
        let through = |proxy: SocketAddr| async move {
            let one = || async {
                let stream = connect(proxy, &self.source.into()).await;
                stream.unwrap_or_else(|error| panic!("{pipe}: {error}"))
            };
            join_all((0..flows).map(|_| one())).await
        };
        let directly = |address: SocketAddr| async move {
            let one = || async {
                let stream = TcpStream::connect(address).await;
                stream.expect("it listens")
            };
            join_all((0..flows).map(|_| one())).await
        };
        let streams = match pipe {
            Pipe::Loopback => directly(self.source).await,
            Pipe::Bare(transport) => {
                return chosen(&self.bare, transport).open(flows).await;
            }
            Pipe::Piped(transport) => directly(chosen(&self.piped, transport).entry).await,
            Pipe::Tunnel(transport) => through(self.carried.proxy(transport)).await,
            Pipe::Ssh => through(self.ssh.proxy).await,
        };
        let mut flows: Vec<Flow> = Vec::with_capacity(flows);
        for mut stream in streams {
            stream.write_all(&[SEND]).await.expect("it was opened");
            flows.push(Box::new(stream));
        }
        flows
    }

    async fn measure(&self, pipe: Pipe, flows: usize, during: Duration) -> Measured {
        let opened = timeout(OPENED, self.open(pipe, flows)).await;
        let opened = opened.unwrap_or_else(|_| panic!("{pipe}: {flows} flows did not open"));
        let measured = drain(opened, WARM_UP, during).await;
        let broken = measured.broken;
        // What others do under load is told; ours carries every flow to its end.
        assert!(
            broken == 0 || !matches!(pipe, Pipe::Tunnel(_)),
            "{pipe}: {broken} of {flows} flows have broken"
        );
        measured
    }
}

/// The one of each transport's.
fn chosen<T>(each: &[T; 2], transport: Transport) -> &T {
    match transport {
        Transport::Quic => &each[0],
        Transport::Tcp => &each[1],
    }
}

/// Measures every pipe in turns, so that what else the machine does slows all of them, and prints the
/// rates and their ratios.
pub(crate) async fn run(source: SocketAddr, counts: &[usize], rounds: usize, during: Duration) {
    let pipes = Pipes {
        source,
        bare: [
            Bare::connect(Transport::Quic).await,
            Bare::connect(Transport::Tcp).await,
        ],
        piped: Transport::ALL.map(|it| Piped::start(it, source)),
        ssh: Ssh::start().await,
        carried: Carried::start(source).await,
    };
    for &flows in counts {
        let mut measured: Vec<_> = Pipe::ALL.map(|pipe| (pipe, Vec::new())).into();
        for _ in 0..rounds {
            for (pipe, found) in &mut measured {
                found.push(pipes.measure(*pipe, flows, during).await);
            }
        }
        print(flows, &measured);
    }
    println!();
    pipes.carried.account().await;
}

fn print(flows: usize, measured: &[(Pipe, Vec<Measured>)]) {
    println!("\n{flows} flow{}", if flows == 1 { "" } else { "s" });
    println!("                       Gbit/s   CPU s/GB   slowest of median   longest stall");
    for (pipe, found) in measured {
        let rate = middle(found.iter().map(Measured::gbit_per_s));
        let cpu = middle(found.iter().map(Measured::cpu_seconds_per_gb));
        let least = middle(found.iter().map(Measured::least_of_median));
        let stall = middle(found.iter().map(|it| it.longest_stall.as_secs_f64() * 1e3));
        print!("  {pipe:19} {rate:>7.2} {cpu:>10.1} {least:>19.2} {stall:>12.0} ms");
        match found.iter().map(|it| it.broken).sum::<usize>() {
            0 => println!(),
            broken => println!("   ({broken} flows broke)"),
        }
    }
    let of = |wanted: Pipe| {
        let found = measured.iter().find(|(pipe, _)| *pipe == wanted);
        found.map_or(&[][..], |(_, found)| found)
    };
    for transport in Transport::ALL {
        let tunnel = of(Pipe::Tunnel(transport));
        for (reference, goal) in [
            (Pipe::Bare(transport), (flows == 1).then_some("0.80")),
            (Pipe::Piped(transport), None),
            (Pipe::Ssh, Some("2.00")),
            (Pipe::Loopback, None),
        ] {
            let pairs = || tunnel.iter().zip(of(reference));
            let speed = pairs().map(|(ours, theirs)| ours.gbit_per_s() / theirs.gbit_per_s());
            let cpu = pairs()
                .map(|(ours, theirs)| theirs.cpu_seconds_per_gb() / ours.cpu_seconds_per_gb());
            let goal = goal.map_or(String::new(), |goal| format!(" (goal {goal})"));
            println!(
                "  tunnel over {transport} is {:.2} of {reference}{goal}; by CPU {:.2}",
                middle(speed),
                middle(cpu)
            );
        }
    }
}

/// The median.
fn middle(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
