//! `testnet`: what `bitmesh_testnet` does, on the command line.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::process::CommandExt,
    path::PathBuf,
    process::Command,
    time::Duration,
};

use bitcoin::Amount;
use bitmesh_node::control::{ApiError, ErrorCode};
use bitmesh_testnet::{
    bitcoind::{self, Bitcoind, LocateError},
    chain::ChainError,
    demo::{self, DemoError},
    network::{
        Network, NetworkError, NodeError, NodeState, Plan, State, asked_to_stop, up_detached,
    },
};
use serde_json::{Map, Value, json};

use crate::{
    args::{ExecArgs, FaucetArgs, LogsArgs, MineArgs, TestnetCommand, TestnetName, TestnetUpArgs},
    context::Context,
    failure::Failure,
    progress::while_waiting,
};

/// How often a log that is followed is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);

pub(super) fn run(context: &Context, command: TestnetCommand) -> Result<(), Failure> {
    match command {
        TestnetCommand::Up(args) => up(context, &args),
        TestnetCommand::Down(TestnetName { name }) => {
            State::down(&name)?;
            let down = json!({ "name": name, "stopped": true });
            Ok(context
                .out
                .reply(&down, |_, _| format!("the network {name} has ended\n"))?)
        }
        TestnetCommand::Status(TestnetName { name }) => {
            show_live(context, State::of_running(&name)?)
        }
        TestnetCommand::Demo => demonstrate(context),
        TestnetCommand::Exec(args) => exec(&args),
        TestnetCommand::Env { node, network } => env(context, &node, &network.name),
        TestnetCommand::Faucet(args) => faucet(context, &args),
        TestnetCommand::Mine(args) => mine(context, &args),
        TestnetCommand::Logs(args) => logs(context, &args),
        TestnetCommand::FetchBitcoind => {
            let found = find(context)?;
            let object = json!({
                "exe": found.exe().display().to_string(),
                "version": found.version(),
            });
            Ok(context.out.reply(&object, |_, _| {
                format!(
                    "{found}
"
                )
            })?)
        }
    }
}

fn find(context: &Context) -> Result<Bitcoind, Failure> {
    Ok(bitcoind::locate(&mut |what| context.out.note(what))?)
}

fn this_program() -> Result<PathBuf, Failure> {
    std::env::current_exe().map_err(|error| Failure::system("find this program", &error))
}

fn show(context: &Context, state: &State) -> Result<(), Failure> {
    Ok(context.out.reply(state, |state, _| format!("{state}\n"))?)
}

/// Shows a network as its nodes describe themselves now.
fn show_live(context: &Context, state: State) -> Result<(), Failure> {
    let state = context.block_on(async {
        let look = state.looked_at();
        Ok(while_waiting(&context.out, "asking the nodes", look).await)
    })?;
    show(context, &state)
}

fn up(context: &Context, args: &TestnetUpArgs) -> Result<(), Failure> {
    let name = &args.network.name;
    if args.hold || args.background {
        return hold(context, args);
    }
    let mut words = vec![
        "testnet".to_owned(),
        "up".to_owned(),
        "--background".to_owned(),
    ];
    words.extend(["--name".to_owned(), name.clone()]);
    words.extend(["--nodes".to_owned(), args.nodes.to_string()]);
    // So that its error comes here as it is.
    words.push("--json".to_owned());
    if args.netns {
        words.push("--netns".to_owned());
    }
    let program = this_program()?;
    let state = context.block_on(async {
        let mut progress = |what: &str| context.out.note(what);
        Ok(up_detached(&program, name, words, &mut progress).await?)
    })?;
    show_live(context, state)
}

/// Is the network, until somebody ends it.
fn hold(context: &Context, args: &TestnetUpArgs) -> Result<(), Failure> {
    let bitcoind = find(context)?;
    let plan = Plan::of_size(
        &args.network.name,
        usize::try_from(args.nodes).unwrap_or(usize::MAX),
        this_program()?,
        bitcoind,
    )
    .namespaces(args.netns);
    context.block_on_alone(async {
        let mut stop = std::pin::pin!(asked_to_stop());
        let mut progress = |what: &str| context.out.note(what);
        let network = tokio::select! {
            // What has been started ends with the future that started it.
            asked = &mut stop => return asked.map_err(|error| Failure::system("wait for signals", &error)),
            network = Network::up(plan, &mut progress) => network?,
        };
        if !args.background {
            show(context, &network.state().looked_at().await)?;
        }
        let asked = stop.await;
        context.out.note("ending the network");
        network.down().await;
        asked.map_err(|error| Failure::system("wait for signals", &error))
    })
}

fn demonstrate(context: &Context) -> Result<(), Failure> {
    let bitcoind = find(context)?;
    let program = this_program()?;
    let report = context.block_on(async {
        let mut progress = |what: &str| context.out.note(what);
        Ok(demo::run(program, bitcoind, &mut progress).await?)
    })?;
    context
        .out
        .reply(&report, |report, _| format!("\n{report}\n"))?;
    if report.books_balance {
        Ok(())
    } else {
        Err(Failure::Silent(1))
    }
}

fn exec(args: &ExecArgs) -> Result<(), Failure> {
    let state = State::of_running(&args.network.name)?;
    let node = state.node(&args.node)?;
    let Some((program, rest)) = args.command.split_first() else {
        return Err(Failure::usage(
            "no command is given",
            "testnet exec bob -- bitmesh status",
        ));
    };
    let mut command = match &node.namespace {
        None => Command::new(program),
        Some(namespace) => {
            let mut command = Command::new("ip");
            command.args(["netns", "exec", namespace]).arg(program);
            command
        }
    };
    command.args(rest).envs(environment(&state, node)?);
    // Only returns if it failed.
    let error = command.exec();
    Err(Failure::new(
        ErrorCode::NotFound,
        format!("cannot run {}: {error}", program.display()),
        "check the command",
    ))
}

/// What a process needs to be one of the nodes, this program on the PATH included.
fn environment(state: &State, node: &NodeState) -> Result<Vec<(&'static str, String)>, Failure> {
    let mut variables = node.environment(state.web);
    let program = this_program()?;
    if let Some(folder) = program.parent() {
        let rest = std::env::var("PATH").unwrap_or_default();
        let here = folder.display().to_string();
        let there = rest.split(':').any(|one| one == here);
        if !there {
            variables.push(("PATH", format!("{here}:{rest}")));
        }
    }
    Ok(variables)
}

fn env(context: &Context, node: &str, name: &str) -> Result<(), Failure> {
    let state = State::of_running(name)?;
    let variables = environment(&state, state.node(node)?)?;
    let object: Map<String, Value> = variables
        .iter()
        .map(|(name, value)| ((*name).to_owned(), Value::from(value.as_str())))
        .collect();
    Ok(context.out.reply(&object, |_, _| {
        variables
            .iter()
            .map(|(name, value)| format!("export {name}={}\n", quoted(value)))
            .collect()
    })?)
}

/// A word as any POSIX shell reads it.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

fn faucet(context: &Context, args: &FaucetArgs) -> Result<(), Failure> {
    let amount = Amount::from_sat(args.amount.0);
    let (txid, balance) = context.block_on(async {
        let state = State::of_running(&args.network.name)?;
        let fund = state.fund(&args.node, amount);
        let what = format!("waiting for {} to see the coins", args.node);
        Ok(while_waiting(&context.out, &what, fund).await?)
    })?;
    let paid = json!({
        "node": args.node,
        "amount_sat": amount.to_sat(),
        "txid": txid.to_string(),
        "confirmed_sat": balance.confirmed_sat,
    });
    Ok(context.out.reply(&paid, |_, _| {
        format!(
            "{} got {} sat and has {} sat, confirmed; {txid}\n",
            args.node,
            amount.to_sat(),
            balance.confirmed_sat
        )
    })?)
}

fn mine(context: &Context, args: &MineArgs) -> Result<(), Failure> {
    let chain = State::of_running(&args.network.name)?.chain();
    let blocks = chain.mine(args.blocks)?;
    let height = chain.height()?;
    let mined = json!({
        "height": height,
        "blocks": blocks.iter().map(ToString::to_string).collect::<Vec<_>>(),
    });
    Ok(context.out.reply(&mined, |_, _| {
        format!("the chain is {height} blocks high\n")
    })?)
}

fn logs(context: &Context, args: &LogsArgs) -> Result<(), Failure> {
    let state = State::of_running(&args.network.name)?;
    let path = state.node(&args.node)?.log.clone();
    let read = |error: io::Error| Failure::file("read", &path, &error);
    let mut file = File::open(&path).map_err(read)?;
    let mut news = || -> Result<(), Failure> {
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(read)?;
        Ok(crate::output::write_bytes(&bytes)?)
    };
    news()?;
    if !args.follow {
        return Ok(());
    }
    context.block_on(async {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            news()?;
        }
    })
}

impl From<LocateError> for Failure {
    fn from(error: LocateError) -> Self {
        Self::new(ErrorCode::Failure, error.tried(), LocateError::HINT)
    }
}

impl From<ChainError> for Failure {
    fn from(error: ChainError) -> Self {
        Self::new(
            ErrorCode::Failure,
            error.to_string(),
            "\"bitmesh testnet down\" and \"bitmesh testnet up\" start afresh",
        )
    }
}

impl From<NetworkError> for Failure {
    fn from(error: NetworkError) -> Self {
        let text = error.to_string();
        let (code, hint) = match error {
            NetworkError::Node(NodeError::Refused { name, source }) => {
                return Self::Api(ApiError {
                    message: format!("{name}: {source}"),
                    ..source
                });
            }
            NetworkError::Failed(error) => return Self::Api(error),
            NetworkError::Running(_) => (
                ErrorCode::Conflict,
                "\"bitmesh testnet status\" shows it; --name makes another",
            ),
            NetworkError::NotRunning(_) => {
                (ErrorCode::NotFound, "start one with \"bitmesh testnet up\"")
            }
            NetworkError::NoSuchNode { .. } => {
                (ErrorCode::NotFound, "\"bitmesh testnet status\" lists them")
            }
            NetworkError::BadName { .. } | NetworkError::BadSize(_) => (
                ErrorCode::Usage,
                "\"bitmesh testnet up --help\" shows how it is used",
            ),
            NetworkError::Late(_) => (
                ErrorCode::TimedOut,
                "the machine may be busy; try again, or with fewer nodes",
            ),
            NetworkError::Namespace(_) => (
                ErrorCode::Failure,
                "--netns needs root and the program ip (package iproute2)",
            ),
            _ => (
                ErrorCode::Failure,
                "\"bitmesh testnet logs NODE\" shows what a node says",
            ),
        };
        Self::new(code, text, hint)
    }
}

impl From<DemoError> for Failure {
    fn from(error: DemoError) -> Self {
        match error {
            DemoError::Network(error) => error.into(),
            DemoError::Chain(error) => error.into(),
            DemoError::Late(_) => Self::new(
                ErrorCode::TimedOut,
                error.to_string(),
                "the machine may be busy; try again",
            ),
            _ => Self::new(
                ErrorCode::Failure,
                error.to_string(),
                "run it again with -v, and report it if it stays",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quoted_word_is_one_word_to_a_shell() {
        assert_eq!(quoted("/tmp/a b"), "'/tmp/a b'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
    }
}
