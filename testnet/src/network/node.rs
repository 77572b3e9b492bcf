//! One node: a real daemon in a process of its own, with a folder of its own.

use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use bitcoin::Amount;
use bitmesh_market::envelope::Network;
use bitmesh_node::{
    control::{
        ApiError, Request,
        api::{GetId, GetStatus},
        client::Client,
    },
    paths::{Environment, Paths},
};
use thiserror::Error;
use toml::{Table, Value};

use super::settings;
use crate::{
    process::{Launch, Process, ProcessError},
    wait::{self, TimedOut},
};

/// How long a daemon may take until it answers. Slow disks and busy machines, not normal starts.
const START: Duration = Duration::from_secs(30);

/// How long a daemon may take to close its sessions and end.
const STOP: Duration = Duration::from_secs(20);

/// What a node is for. Nothing keeps it from being more: this is what the network sets up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Offers from the start, at this price.
    Seller {
        /// Price of 10^9 bytes.
        price_msat_per_gb: u64,
    },
    /// Gets confirmed coins before the network counts as up.
    Buyer {
        /// How much.
        funds: Amount,
    },
    /// Is there.
    Bystander,
}

/// A node to be started.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeSpec {
    pub(crate) name: String,
    pub(crate) role: Role,
    pub(crate) settings: Table,
}

impl NodeSpec {
    /// A node that sells for so many msat per GB, fast enough that waiting shows a fault.
    pub fn seller(name: &str, price_msat_per_gb: u64) -> Self {
        let role = Role::Seller { price_msat_per_gb };
        Self {
            name: name.to_owned(),
            role,
            settings: Table::new(),
        }
        .set("sell.enabled", true)
        .set("sell.price", format!("{price_msat_per_gb} msat/GB"))
        .set("sell.rate", "400 Mbit/s")
        .set("sell.total_rate", "1600 Mbit/s")
    }

    /// A node that has coins to buy with.
    pub fn buyer(name: &str, funds: Amount) -> Self {
        Self {
            name: name.to_owned(),
            role: Role::Buyer { funds },
            settings: Table::new(),
        }
    }

    /// A node that neither offers nor has coins.
    pub fn bystander(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            role: Role::Bystander,
            settings: Table::new(),
        }
    }

    /// Sets a key of its configuration, named with dots: `payments.zero_conf.min_age_s`.
    #[must_use]
    pub fn set(mut self, key: &str, value: impl Into<Value>) -> Self {
        let path: Vec<_> = key.split('.').collect();
        settings::set(&mut self.settings, &path, value);
        self
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it is for.
    pub fn role(&self) -> Role {
        self.role
    }
}

/// A node could not be started, asked or ended.
#[derive(Debug, Error)]
pub enum NodeError {
    /// Its folder could not be used.
    #[error("{name}: cannot use {path}: {source}", path = .path.display())]
    Folder {
        /// The node.
        name: String,
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It ended while it started. Says what it wrote last.
    #[error("{name} ended while it started\n{words}")]
    Ended {
        /// The node.
        name: String,
        /// The end of its log.
        words: String,
    },
    /// It did not do something in time. Says what it wrote last.
    #[error("{name}: {late}\n{words}")]
    Late {
        /// The node.
        name: String,
        /// What was waited for.
        late: TimedOut,
        /// The end of its log.
        words: String,
    },
    /// It refused a call.
    #[error("{name}: {source}")]
    Refused {
        /// The node.
        name: String,
        /// What it answered.
        source: ApiError,
    },
    /// Its process could not be started or ended.
    #[error(transparent)]
    Process(#[from] ProcessError),
}

/// A node with its process, running or not. Dropping it kills the process; its folder stays.
#[derive(Debug)]
pub struct Node {
    spec: NodeSpec,
    id: String,
    addresses: Vec<String>,
    folder: PathBuf,
    proxy: SocketAddr,
    namespace: Option<String>,
    launch: Launch,
    process: Process,
    client: Client,
}

/// What is needed to start a node besides its [`NodeSpec`].
#[derive(Debug)]
pub(crate) struct Place<'a> {
    pub(crate) bitmesh: &'a Path,
    pub(crate) folder: PathBuf,
    pub(crate) namespace: Option<String>,
    pub(crate) proxy: SocketAddr,
    pub(crate) settings: Table,
}

impl Node {
    /// Writes the node's configuration, starts its daemon, and waits until that answers.
    pub(crate) async fn start(spec: NodeSpec, place: Place<'_>) -> Result<Self, NodeError> {
        let Place {
            bitmesh,
            folder,
            namespace,
            proxy,
            settings,
        } = place;
        let failed = |source| NodeError::Folder {
            name: spec.name.clone(),
            path: folder.clone(),
            source,
        };
        fs::create_dir_all(&folder).map_err(failed)?;
        let text = toml::to_string(&settings).map_err(|error| failed(io::Error::other(error)))?;
        let paths = Paths::new(Network::Regtest, Some(&folder), &Environment::default())
            .expect("with a folder given no home is needed");
        fs::write(&paths.config, text).map_err(failed)?;

        let command = |arguments: &[&str]| {
            let mut launch = Launch::new(&spec.name, bitmesh, paths.log.clone())
                .args(["--datadir".as_ref(), folder.as_os_str()])
                .args(arguments);
            // What this process was told about its own node is not for that one.
            for (name, _) in std::env::vars_os() {
                if name.to_string_lossy().starts_with("BITMESH_") {
                    launch = launch.without_env(name);
                }
            }
            match &namespace {
                Some(namespace) => launch.in_namespace(namespace),
                None => launch,
            }
        };
        let mut init = command(&["--no-input", "init"]).start()?;
        let code = init.wait(START)?;
        if !code.success() {
            return Err(NodeError::Ended {
                name: spec.name,
                words: init.last_words(),
            });
        }
        let launch = command(&["daemon"]);
        let process = launch.start()?;
        let client = Client::new(&paths.socket);
        let (id, addresses) = (String::new(), Vec::new());
        let mut node = Self {
            spec,
            id,
            addresses,
            folder,
            proxy,
            namespace,
            launch,
            process,
            client,
        };
        node.wait_until_ready().await?;
        Ok(node)
    }

    /// Waits until the daemon answers and listens.
    async fn wait_until_ready(&mut self) -> Result<(), NodeError> {
        let (process, client) = (&mut self.process, &self.client);
        let answered = wait::until_async(START, "its daemon to answer", || {
            let ended = !matches!(process.ended(), Ok(None));
            async move {
                match client.call(&GetId {}).await {
                    _ if ended => Some(None),
                    Ok(identity) if !identity.addresses.is_empty() => Some(Some(identity)),
                    Ok(_) | Err(_) => None,
                }
            }
        });
        match answered.await {
            Ok(Some(identity)) => {
                self.id = identity.node;
                self.addresses = identity.addresses;
                Ok(())
            }
            Ok(None) => Err(NodeError::Ended {
                name: self.name().to_owned(),
                words: self.last_words(),
            }),
            Err(late) => Err(self.late(late)),
        }
    }

    /// Its name in this network.
    pub fn name(&self) -> &str {
        self.spec.name()
    }

    /// What it is for.
    pub fn role(&self) -> Role {
        self.spec.role
    }

    /// Its peer id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The addresses that it listens on, each with its peer id.
    pub fn addresses(&self) -> &[String] {
        &self.addresses
    }

    /// The address of its SOCKS5 and HTTP CONNECT proxy, once it has bought. In a network with
    /// namespaces it is a loopback address of the node's own namespace.
    pub fn proxy(&self) -> SocketAddr {
        self.proxy
    }

    /// The folder that it keeps everything in.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The file that its daemon's output goes to.
    pub fn log(&self) -> &Path {
        self.process.log()
    }

    /// The network namespace that it runs in, if it has one.
    pub fn namespace(&self) -> Option<&str> {
        self.namespace.as_deref()
    }

    /// The pid of its daemon.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// The other end of its control API, for what [`ask`](Self::ask) does not do.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Makes a call of its control API.
    ///
    /// # Errors
    ///
    /// Returns what the daemon refused it with, or that it cannot be reached.
    pub async fn ask<R: Request>(&self, request: R) -> Result<R::Reply, NodeError> {
        let answer = self.client.call(&request).await;
        answer.map_err(|source| NodeError::Refused {
            name: self.name().to_owned(),
            source,
        })
    }

    /// Makes a call again and again until `look` finds what it looks for in the answer.
    ///
    /// # Errors
    ///
    /// Returns an error that names `what` if it has not `within` that time. A call that fails in
    /// between counts as one that did not show it.
    pub async fn until<R: Request + Clone, T>(
        &self,
        within: Duration,
        what: &str,
        request: R,
        mut look: impl FnMut(R::Reply) -> Option<T>,
    ) -> Result<T, NodeError> {
        let deadline = wait::Deadline::after(within);
        loop {
            let last = match self.client.call(&request).await {
                Ok(reply) => match look(reply) {
                    Some(seen) => return Ok(seen),
                    None => None,
                },
                Err(error) => Some(error),
            };
            if deadline.is_over() {
                let why = last
                    .map(|error| format!(" (last answer: {error})"))
                    .unwrap_or_default();
                let what = format!("{what}{why}");
                return Err(self.late(TimedOut { what, within }));
            }
            deadline.pause().await;
        }
    }

    /// Ends its daemon with `SIGKILL`: nothing more is written or sent.
    ///
    /// # Errors
    ///
    /// Returns an error if it is not gone soon after.
    pub fn kill(&mut self) -> Result<(), NodeError> {
        self.process.kill()?;
        Ok(())
    }

    /// Ends its daemon in order, which closes its sessions.
    ///
    /// # Errors
    ///
    /// Returns an error if it takes longer than a minute.
    pub fn stop(&mut self) -> Result<(), NodeError> {
        self.process.terminate(STOP)?;
        Ok(())
    }

    /// Stops its daemon in its tracks; [`thaw`](Self::thaw) lets it go on.
    ///
    /// # Errors
    ///
    /// Returns an error if it does not run.
    pub fn freeze(&mut self) -> Result<(), NodeError> {
        Ok(self.process.freeze()?)
    }

    /// Lets its daemon go on after [`freeze`](Self::freeze).
    ///
    /// # Errors
    ///
    /// Returns an error if it does not run.
    pub fn thaw(&mut self) -> Result<(), NodeError> {
        Ok(self.process.thaw()?)
    }

    /// Starts its daemon again, on the same folder and ports. If it still runs, it is killed first.
    ///
    /// # Errors
    ///
    /// Returns an error if it does not answer in time.
    pub async fn start_again(&mut self) -> Result<(), NodeError> {
        self.process.kill()?;
        self.process = self.launch.start()?;
        self.wait_until_ready().await
    }

    /// Sets an environment variable of its daemon, from the next start on.
    pub fn set_env(&mut self, name: &str, value: &Path) {
        self.launch = self.launch.clone().env(name, value);
    }

    /// The end of its log, for an error message.
    pub fn last_words(&self) -> String {
        self.process.last_words()
    }

    /// Whether its daemon runs and says that it is healthy.
    pub async fn is_healthy(&self) -> bool {
        matches!(self.client.call(&GetStatus {}).await, Ok(status) if status.healthy)
    }

    fn late(&self, late: TimedOut) -> NodeError {
        NodeError::Late {
            name: self.name().to_owned(),
            late,
            words: self.last_words(),
        }
    }
}
