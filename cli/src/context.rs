//! What every command needs: where things are, whom to speak with, how to print.

use std::{future::Future, path::Path};

use bitmesh_market::envelope::Network;
use bitmesh_node::{
    control::{Client, Request, api::Timestamp},
    paths::{Environment, Paths},
    settings,
};

use crate::{
    args::Global, failure::Failure, output::Output, progress::while_waiting, prompt::Consent,
};

/// What every command needs.
pub(crate) struct Context {
    pub(crate) network: Network,
    pub(crate) paths: Paths,
    pub(crate) client: Client,
    pub(crate) out: Output,
    pub(crate) consent: Consent,
    pub(crate) global: Global,
}

impl Context {
    /// Finds the network (flag, then configuration, then mainnet) and from it the paths.
    pub(crate) fn new(global: &Global, out: Output) -> Result<Self, Failure> {
        let environment = Environment::of_process();
        let datadir = match &global.datadir {
            // A daemon in the background must find it from wherever it runs.
            Some(path) => Some(
                std::path::absolute(path)
                    .map_err(|error| Failure::file("find the data directory", path, &error))?,
            ),
            None => None,
        };
        let config = match &global.config {
            Some(path) => Some(
                std::path::absolute(path)
                    .map_err(|error| Failure::file("find the configuration", path, &error))?,
            ),
            None => None,
        };
        let file = match &config {
            Some(path) => Ok(path.clone()),
            None => Paths::config_file(datadir.as_deref(), &environment),
        };
        let network = match (global.network, &file) {
            (Some(network), _) => network,
            (None, Ok(file)) => match settings::network(file) {
                Ok(network) => network.unwrap_or(Network::Mainnet),
                // Whoever needs more of the file than this reads it again, and says what is wrong.
                Err(error) => match written_network(file) {
                    Some(network) => network,
                    // The socket is known all the same.
                    None if datadir.is_some() || global.api.is_some() => Network::Mainnet,
                    None => return Err(error.into()),
                },
            },
            (None, Err(_)) => Network::Mainnet,
        };
        let mut paths = Paths::new(network, datadir.as_deref(), &environment)?;
        if let Some(config) = config {
            paths.config = config;
        }
        if let Some(api) = &global.api {
            paths.socket = api.0.clone();
        }
        Ok(Self {
            network,
            client: Client::new(&paths.socket),
            paths,
            out,
            consent: Consent::of(global),
            global: global.clone(),
        })
    }

    /// Runs `work` to its end, or to Ctrl-C.
    pub(crate) fn block_on<T>(
        &self,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        self.block_on_alone(async {
            tokio::select! {
                biased;
                interrupted = tokio::signal::ctrl_c() => match interrupted {
                    Ok(()) => Err(Failure::Interrupted),
                    Err(_) => std::future::pending().await,
                },
                done = work => done,
            }
        })
    }

    /// Runs `work`, which looks after signals itself, to its end.
    pub(crate) fn block_on_alone<T>(
        &self,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Failure::system("start", &error))?;
        let done = runtime.block_on(work);
        // Threads that still wait for something are not waited for: it ends with this process.
        runtime.shutdown_background();
        done
    }

    /// Makes one call, and shows `message` to a person who waits.
    pub(crate) fn call<R: Request>(&self, request: &R, message: &str) -> Result<R::Reply, Failure> {
        self.block_on(async {
            let call = self.client.call(request);
            Ok(while_waiting(&self.out, message, call).await?)
        })
    }
}

/// The network that a configuration names which is no TOML as a whole, so that its daemon can still be
/// found and stopped: the line that a parser would have read before it came to any section. `None` if
/// there is a line that might be it and cannot be read.
fn written_network(file: &Path) -> Option<Network> {
    let text = settings::read(file).ok()?;
    let top = text
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with('['));
    let mut named = top.filter(|line| line.starts_with("network"));
    match named.next() {
        Some(line) => {
            let quoted = line.split_once('=')?.1.trim().strip_prefix('"')?;
            quoted.split_once('"')?.0.parse().ok()
        }
        None => Some(Network::Mainnet),
    }
}

/// Returns the present moment, for showing how long ago something was.
#[expect(
    clippy::disallowed_methods,
    reason = "what a person reads is told by the wall clock"
)]
pub(crate) fn now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    Timestamp::from_unix(since.map_or(0, |since| since.as_secs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_network_of_a_file_that_is_no_toml_is_found_where_it_can_be() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.toml");
        let table = [
            (
                "# mine\nnetwork = \"signet\" # play\n[sell\n",
                Some(Network::Signet),
            ),
            ("[sell\nprice = 1\n", Some(Network::Mainnet)),
            (
                "[sell]\nnetwork = \"signet\"\n[buy\n",
                Some(Network::Mainnet),
            ),
            ("network = \"sig\n", None),
            ("network = \"moon\"\n", None),
        ];
        for (text, network) in table {
            std::fs::write(&file, text).unwrap();
            assert_eq!(written_network(&file), network, "{text}");
        }
    }
}
