//! The proxy tunnel from application to internet, metered and paying, against what it is made of.
//!
//! `cargo bench --bench tunnel [-- [pipes] [opens] [--rounds N] [--seconds S] [--flows N]…]`
//!
//! The pipes are processes, several at once, so this is a program of its own and no measurement of
//! criterion's: it opens flows, reads them as fast as they come, and prints a table. Everything is
//! real: `bitmesh` daemons of the release build, a bitcoind, an open channel, and for `ssh -D` an sshd
//! that is started here. Pipes are measured in turns, and each ratio is the median of those within a
//! round, so that what else the machine does falls on both.
//!
//! A pipe of four processes on two processors is as fast as they are short of work for each byte; so
//! the seconds of processor for a gigabyte are told beside the speed.

mod bare;
mod carried;
mod cpu;
mod delay;
mod opens;
mod part;
mod pipes;
mod sink;
mod source;
mod ssh;
mod transport;

use std::{env, time::Duration};

use transport::Transport;

/// What is asked for.
struct Asked {
    pipes: bool,
    opens: bool,
    rounds: usize,
    during: Duration,
    /// Flows at once, one table for each.
    flows: Vec<usize>,
}

impl Asked {
    fn read(args: impl Iterator<Item = String>) -> Self {
        let mut asked = Self {
            pipes: false,
            opens: false,
            rounds: 7,
            during: Duration::from_secs(2),
            flows: Vec::new(),
        };
        let mut args = args;
        while let Some(arg) = args.next() {
            let mut number = || {
                let next = args.next().and_then(|text| text.parse::<u32>().ok());
                next.filter(|it| *it > 0)
                    .unwrap_or_else(|| panic!("{arg} needs a number"))
            };
            match arg.as_str() {
                // What cargo says to every benchmark.
                "--bench" => {}
                "pipes" => asked.pipes = true,
                "opens" => asked.opens = true,
                "--rounds" => asked.rounds = usize::try_from(number()).expect("it is small"),
                "--flows" => asked
                    .flows
                    .push(usize::try_from(number()).expect("it is small")),
                "--seconds" => asked.during = Duration::from_secs(number().into()),
                _ => panic!("{arg}: there are pipes, opens, --rounds, --seconds and --flows"),
            }
        }
        if asked.flows.is_empty() {
            asked.flows = vec![1, 4, 200];
        }
        if !asked.pipes && !asked.opens {
            (asked.pipes, asked.opens) = (true, true);
        }
        asked
    }
}

#[tokio::main]
async fn main() {
    let args: Vec<_> = env::args().skip(1).collect();
    if let [first, role, with @ ..] = args.as_slice()
        && first == part::ROLE
    {
        return play(role, with).await;
    }
    let asked = Asked::read(args.into_iter());
    let source = source::Source::start();
    if asked.opens {
        opens::run(source.address, asked.rounds).await;
    }
    if asked.pipes {
        pipes::run(source.address, &asked.flows, asked.rounds, asked.during).await;
    }
}

/// What a part of this benchmark does.
async fn play(role: &str, with: &[String]) {
    match with {
        [] if role == source::ROLE => return source::serve().await,
        [exit] if role == bare::ENTRY_ROLE => return bare::entry(exit).await,
        _ => {}
    }
    for transport in Transport::ALL {
        match with {
            [] if role == bare::role(transport) => return bare::serve(transport).await,
            [source] if role == bare::exit_role(transport) => {
                return bare::exit(transport, source).await;
            }
            _ => {}
        }
    }
    panic!("{role} is no role");
}
