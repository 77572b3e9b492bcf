//! One connection to bitcoind that heals itself, and errors sorted by what to do next.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bdk_bitcoind_rpc::bitcoincore_rpc::jsonrpc::simple_http::{self, SimpleHttpTransport};
use bdk_bitcoind_rpc::bitcoincore_rpc::jsonrpc::{self, Client};
use bitcoin::{FeeRate, Network};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::chain::ChainError;

/// How long one call may take. Long enough for a full block from a slow disk; short enough that a
/// hung node is noticed between two blocks.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);

/// bitcoind is loading its block index; every call fails until it is done.
const IN_WARMUP: i32 = -28;

/// A method does not exist; sent by very old nodes and by things that are not bitcoind.
const METHOD_NOT_FOUND: i32 = -32601;

/// How bitcoind is asked to let us in.
#[derive(Clone)]
pub enum Auth {
    /// The cookie file that bitcoind writes at each start. It is read anew at each connection, so
    /// that a restart of bitcoind needs nothing from us.
    Cookie(PathBuf),
    /// A user and a password, as `rpcauth` or `rpcuser`/`rpcpassword` of `bitcoin.conf` set them.
    UserPassword {
        /// The user.
        user: String,
        /// The password; erased when dropped and never shown.
        password: Zeroizing<String>,
    },
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cookie(path) => f.debug_tuple("Cookie").field(path).finish(),
            Self::UserPassword { user, .. } => f
                .debug_struct("UserPassword")
                .field("user", user)
                .finish_non_exhaustive(),
        }
    }
}

/// Which bitcoind, and what is expected of it.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where it listens: `http://127.0.0.1:8332`, or the same without the scheme.
    pub url: String,
    /// How it lets us in.
    pub auth: Auth,
    /// The network it must be on; anything else is an error, never a warning.
    pub network: Network,
    /// What to pay while bitcoind has no estimate. `None` makes that an error.
    pub fallback_feerate: Option<FeeRate>,
}

impl Config {
    /// The configuration with the usual fallback: one sat/vB on regtest, where estimates never
    /// come, and none elsewhere, where a guess could be far too low to confirm.
    pub fn new(url: impl Into<String>, auth: Auth, network: Network) -> Self {
        let fallback_feerate = match network {
            Network::Regtest => Some(FeeRate::BROADCAST_MIN),
            _ => None,
        };
        Self {
            url: url.into(),
            auth,
            network,
            fallback_feerate,
        }
    }
}

/// Why a call failed.
#[derive(Debug)]
pub(super) enum CallError {
    /// The call did not get an answer, or not one that can be used.
    Chain(ChainError),
    /// bitcoind answered that it will not or cannot.
    Answer { code: i32, message: String },
}

impl From<ChainError> for CallError {
    fn from(error: ChainError) -> Self {
        Self::Chain(error)
    }
}

/// A connection that is made on first use, dropped on any doubt, and made anew on the next call.
pub(super) struct Rpc {
    config: Config,
    /// The address as it is shown: without a password that somebody wrote into it.
    node: String,
    client: Mutex<Option<Client>>,
}

impl Rpc {
    pub(super) fn new(config: Config) -> Self {
        let (scheme, rest) = config
            .url
            .split_once("://")
            .unwrap_or(("http", &config.url));
        let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
        Self {
            node: format!("{scheme}://{host}"),
            config,
            client: Mutex::default(),
        }
    }

    /// The node's address, as it is shown.
    pub(super) fn node(&self) -> &str {
        &self.node
    }

    pub(super) fn config(&self) -> &Config {
        &self.config
    }

    /// Makes one call. Idempotent calls only: after a broken connection it may be sent twice.
    pub(super) fn call<T: DeserializeOwned>(
        &self,
        method: &'static str,
        params: &Value,
    ) -> Result<T, CallError> {
        let params = raw(params);
        let response = self
            .exchange(|client| client.send_request(client.build_request(method, Some(&params))))?;
        self.read(method, &response)
    }

    /// Makes one call per element of `params`, in one exchange. The answers are in the same order.
    pub(super) fn batch<T: DeserializeOwned>(
        &self,
        method: &'static str,
        params: &[Value],
    ) -> Result<Vec<Result<T, CallError>>, ChainError> {
        let params: Vec<_> = params.iter().map(raw).collect();
        let responses = self.exchange(|client| {
            let requests: Vec<_> = params
                .iter()
                .map(|params| client.build_request(method, Some(params)))
                .collect();
            client.send_batch(&requests)
        })?;
        Ok(responses
            .into_iter()
            .map(|response| match response {
                Some(response) => self.read(method, &response),
                None => Err(self.protocol(method, "no answer in the batch").into()),
            })
            .collect())
    }

    /// A [`ChainError::Protocol`] about this node.
    pub(super) fn protocol(&self, method: &str, detail: impl ToString) -> ChainError {
        ChainError::Protocol {
            node: self.node.clone(),
            call: method.to_owned(),
            detail: detail.to_string(),
        }
    }

    /// Turns an answer that this caller has no use for into an error of the chain.
    pub(super) fn unexpected(&self, method: &str, error: CallError) -> ChainError {
        match error {
            CallError::Chain(error) => error,
            CallError::Answer { code, message } => {
                self.protocol(method, format!("{message} (code {code})"))
            }
        }
    }

    fn unavailable(&self, detail: impl ToString) -> ChainError {
        ChainError::Unavailable {
            node: self.node.clone(),
            detail: detail.to_string(),
        }
    }

    /// Runs one exchange; on a refused credential with a cookie, once more with the new cookie.
    fn exchange<T>(
        &self,
        send: impl Fn(&Client) -> Result<T, jsonrpc::Error>,
    ) -> Result<T, ChainError> {
        // A panic while the lock is held leaves no client, so the next call makes one.
        let mut client = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        let reused = client.is_some();
        match self.attempt(&mut client, &send) {
            Err(ChainError::Unauthorized { .. })
                if reused && matches!(self.config.auth, Auth::Cookie(_)) =>
            {
                self.attempt(&mut client, &send)
            }
            other => other,
        }
    }

    /// Takes the client and gives it back only after an answer.
    fn attempt<T>(
        &self,
        slot: &mut Option<Client>,
        send: impl Fn(&Client) -> Result<T, jsonrpc::Error>,
    ) -> Result<T, ChainError> {
        let client = match slot.take() {
            Some(client) => client,
            None => self.connect()?,
        };
        let answer = send(&client).map_err(|error| self.sort(error))?;
        *slot = Some(client);
        Ok(answer)
    }

    fn connect(&self) -> Result<Client, ChainError> {
        if self.node.starts_with("https://") {
            // The transport would speak plain HTTP to it, password and all.
            return Err(self.protocol("connect", "https is not spoken; use a tunnel to the node"));
        }
        let builder = SimpleHttpTransport::builder().timeout(CALL_TIMEOUT);
        let builder = builder
            .url(&self.config.url)
            .map_err(|error| self.unavailable(error))?;
        let builder = match &self.config.auth {
            Auth::Cookie(path) => {
                let cookie = std::fs::read_to_string(path).map_err(|error| {
                    let path = path.display();
                    match error.kind() {
                        io::ErrorKind::NotFound => self.unavailable(format!(
                            "there is no cookie file {path}; is bitcoind running?"
                        )),
                        io::ErrorKind::PermissionDenied => ChainError::Unauthorized {
                            node: self.node.clone(),
                        },
                        _ => self.unavailable(format!("{path}: {error}")),
                    }
                })?;
                builder.cookie_auth(cookie.trim_end())
            }
            Auth::UserPassword { user, password } => {
                builder.auth(user.as_str(), Some(password.as_str()))
            }
        };
        let client = Client::with_transport(builder.build());
        self.check_network(&client)?;
        Ok(client)
    }

    /// Refuses a node of another network before anything is learned from it.
    fn check_network(&self, client: &Client) -> Result<(), ChainError> {
        #[derive(Deserialize)]
        struct Info {
            chain: String,
        }
        const METHOD: &str = "getblockchaininfo";
        let response = client
            .send_request(client.build_request(METHOD, None))
            .map_err(|error| self.sort(error))?;
        let info: Info = self
            .read(METHOD, &response)
            .map_err(|error| self.unexpected(METHOD, error))?;
        if info.chain == self.config.network.to_core_arg() {
            return Ok(());
        }
        Err(ChainError::WrongNetwork {
            node: self.node.clone(),
            expected: self.config.network,
            found: info.chain,
        })
    }

    fn read<T: DeserializeOwned>(
        &self,
        method: &str,
        response: &jsonrpc::Response,
    ) -> Result<T, CallError> {
        match response.result() {
            Ok(value) => Ok(value),
            Err(jsonrpc::Error::Rpc(answer)) if answer.code == IN_WARMUP => {
                Err(self.unavailable(answer.message).into())
            }
            Err(jsonrpc::Error::Rpc(answer)) if answer.code == METHOD_NOT_FOUND => {
                Err(self.protocol(method, answer.message).into())
            }
            Err(jsonrpc::Error::Rpc(answer)) => Err(CallError::Answer {
                code: answer.code,
                message: answer.message,
            }),
            Err(error) => Err(self.protocol(method, error).into()),
        }
    }

    /// Sorts what went wrong below the level of calls.
    fn sort(&self, error: jsonrpc::Error) -> ChainError {
        match error {
            jsonrpc::Error::Transport(error) => {
                match error.downcast_ref::<simple_http::Error>() {
                    Some(simple_http::Error::HttpErrorCode(401 | 403)) => {
                        ChainError::Unauthorized {
                            node: self.node.clone(),
                        }
                    }
                    // Whatever else breaks below HTTP, a half answer of a dying node included, is
                    // cured by asking again.
                    _ => self.unavailable(error),
                }
            }
            error => self.unavailable(error),
        }
    }
}

fn raw(params: &Value) -> Box<RawValue> {
    to_raw_value(params)
        .unwrap_or_else(|_| to_raw_value(&json!([])).expect("an empty list is JSON"))
}
