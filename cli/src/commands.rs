//! One file for each command.

mod backup;
mod config;
mod daemon;
mod init;
mod journal;
mod lifecycle;
mod manual;
mod market;
mod money;
mod node;
mod passphrase;
mod testnet;
mod watch;

use crate::{args::Command, context::Context, failure::Failure};

/// Does what was typed.
pub(crate) fn run(context: Context, command: Command) -> Result<(), Failure> {
    match command {
        Command::Init(args) => init::run(&context, &args),
        Command::Up(args) => lifecycle::up(&context, &args),
        Command::Down => lifecycle::down(&context),
        Command::Daemon(args) => daemon::run(&context, &args),
        Command::Status(args) => node::status(&context, &args),
        Command::Id => node::id(&context),
        Command::Peers(args) => node::peers(&context, args),
        Command::Sell(args) => market::sell(&context, args.command),
        Command::Offers(args) => market::offers(&context, args),
        Command::Buy(args) => market::buy(&context, args),
        Command::Leases(args) => market::leases(&context, &args),
        Command::Lease(args) => market::lease(&context, args.command),
        Command::Usage(args) => watch::usage(&context, args),
        Command::Wallet(args) => money::wallet(&context, args.command),
        Command::Channels(args) => money::channels(&context, args),
        Command::Earnings(args) => money::earnings(&context, &args),
        Command::Backup(args) => backup::run(&context, args),
        Command::Journal(args) => journal::run(&context, &args),
        Command::Config(args) => config::run(&context, args.command),
        Command::Testnet(args) => testnet::run(&context, args.command),
        Command::Events(args) => watch::events(&context, &args),
        Command::Api(args) => node::api(&context, args),
        Command::Completions { shell } => manual::completions(shell),
        Command::Man(args) => manual::man(&context, &args),
        Command::Help(args) => manual::help(&args),
    }
}
