//! A regtest chain of our own: a bitcoind, its miner, and a faucet.
//!
//! [`Regtest`] owns the running program. [`Chain`] is only a way to talk to one, so that another
//! process can mine and pay too. The calls block; each takes milliseconds.

mod faucet;

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    time::Duration,
};

use bdk_bitcoind_rpc::bitcoincore_rpc::{self, Auth, Client, RpcApi};
use bitcoin::{Address, Amount, BlockHash, Transaction, Txid, consensus::encode};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use thiserror::Error;

use crate::{
    bitcoind::{Bitcoind, Flavour},
    process::{Launch, Process, ProcessError},
    wait::{self, TimedOut},
};

/// How many blocks a new chain has: a coin that is mined may be spent 100 blocks later, so this
/// leaves the faucet a few dozen coins.
pub const FIRST_BLOCKS: u32 = 140;

/// How long a bitcoind may take until it answers. Slow disks and busy machines, not normal starts.
const START: Duration = Duration::from_secs(60);

/// How long a bitcoind may take to flush its state and end.
const STOP: Duration = Duration::from_secs(60);

/// How often another port is tried when somebody took the free one first.
const PORTS: u32 = 5;

/// Something that a chain was asked for did not happen.
#[derive(Debug, Error)]
pub enum ChainError {
    /// bitcoind did not come up. Says what it wrote last.
    #[error("bitcoind ended while it started\n{0}")]
    Ended(String),
    /// bitcoind does not answer or ends too slowly.
    #[error(transparent)]
    Late(#[from] TimedOut),
    /// bitcoind refused a call or could not be reached.
    #[error("bitcoind, {call}: {source}")]
    Rpc {
        /// The call.
        call: &'static str,
        /// Why.
        source: Box<bitcoincore_rpc::Error>,
    },
    /// The faucet has no coin that is large enough and may be spent now.
    #[error("the faucet has no coin of {0} to spend; mine a block and try again")]
    Dry(Amount),
    /// The folder of the chain cannot be used.
    #[error("cannot use {path}: {source}", path = .path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The program did not start or end.
    #[error(transparent)]
    Process(#[from] ProcessError),
}

/// Who may talk to a bitcoind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reach {
    /// The address its RPC listens on.
    pub address: IpAddr,
    /// Who else than this machine may ask, in CIDR notation.
    pub allow: Option<String>,
}

impl Reach {
    /// This machine alone.
    pub const LOOPBACK: Self = Self {
        address: IpAddr::V4(Ipv4Addr::LOCALHOST),
        allow: None,
    };
}

/// A running regtest bitcoind. Dropping it kills it; its folder stays.
#[derive(Debug)]
pub struct Regtest {
    bitcoind: Bitcoind,
    folder: PathBuf,
    reach: Reach,
    chain: Chain,
    /// Where it serves block filters to peers.
    peer: SocketAddr,
    process: Process,
}

impl Regtest {
    /// Starts `bitcoind` on a new chain in `folder`, and mines [`FIRST_BLOCKS`].
    ///
    /// It takes free ports, and accepts peers on this machine, to serve them block filters; it looks
    /// for none. Whoever can read `folder` can use its cookie.
    ///
    /// # Errors
    ///
    /// Returns an error if it does not answer within a minute.
    pub fn start(bitcoind: &Bitcoind, folder: &Path, reach: Reach) -> Result<Self, ChainError> {
        let failed = |source| ChainError::Folder {
            path: folder.to_owned(),
            source,
        };
        fs::create_dir_all(folder).map_err(failed)?;
        let mut tries = 0;
        let regtest = loop {
            tries += 1;
            let address = free_port(reach.address).map_err(failed)?;
            let peer = free_port(Reach::LOOPBACK.address).map_err(failed)?;
            match launch(bitcoind, folder, &reach, address, peer) {
                Ok((chain, process)) => {
                    let (bitcoind, folder) = (bitcoind.clone(), folder.to_owned());
                    break Self {
                        bitcoind,
                        folder,
                        reach,
                        chain,
                        peer,
                        process,
                    };
                }
                Err(ChainError::Ended(words)) if tries < PORTS && words.contains("bind") => {}
                Err(error) => return Err(error),
            }
        };
        regtest.chain.mine(FIRST_BLOCKS)?;
        Ok(regtest)
    }

    /// How to talk to it. Stays valid over [`start_again`](Self::start_again).
    pub fn chain(&self) -> &Chain {
        &self.chain
    }

    /// Where it serves block filters (BIP-157) to peers. Stays valid over
    /// [`start_again`](Self::start_again).
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// The pid of the program.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Ends it with `SIGKILL`. What it had not written to its disk is lost.
    ///
    /// # Errors
    ///
    /// Returns an error if it is not gone soon after.
    pub fn kill(&mut self) -> Result<(), ChainError> {
        self.process.kill()?;
        Ok(())
    }

    /// Ends it in order: chain and mempool are kept.
    ///
    /// # Errors
    ///
    /// Returns an error if it takes longer than a minute.
    pub fn stop(&mut self) -> Result<(), ChainError> {
        self.process.terminate(STOP)?;
        Ok(())
    }

    /// Starts it again on the same chain and the same ports, with a new cookie in the same file.
    ///
    /// If it still runs, it is killed first.
    ///
    /// # Errors
    ///
    /// Returns an error if it does not answer within a minute, or if a port was taken.
    pub fn start_again(&mut self) -> Result<(), ChainError> {
        self.process.kill()?;
        let address = self.chain.address;
        let Self {
            bitcoind,
            folder,
            reach,
            peer,
            ..
        } = &*self;
        (self.chain, self.process) = launch(bitcoind, folder, reach, address, *peer)?;
        Ok(())
    }
}

/// A free port of `address`: free now, which is not a promise.
pub(crate) fn free_port(address: IpAddr) -> io::Result<SocketAddr> {
    TcpListener::bind((address, 0))?.local_addr()
}

fn launch(
    bitcoind: &Bitcoind,
    folder: &Path,
    reach: &Reach,
    address: SocketAddr,
    peer: SocketAddr,
) -> Result<(Chain, Process), ChainError> {
    let cookie = folder.join("regtest/.cookie");
    // A cookie that a killed one left would pass for the new one's.
    if let Err(source) = fs::remove_file(&cookie)
        && source.kind() != io::ErrorKind::NotFound
    {
        return Err(ChainError::Folder {
            path: cookie,
            source,
        });
    }
    let mut args: Vec<String> = [
        "-regtest",
        "-server=1",
        // Relay as on the main network, so that what a test broadcasts would be relayed there.
        "-acceptnonstdtxn=0",
        "-minrelaytxfee=0.00001",
        "-incrementalrelayfee=0.00001",
        "-fallbackfee=0.00001",
        // Nothing that looks for peers; those that come want block filters.
        "-listen=1",
        "-listenonion=0",
        "-natpmp=0",
        "-connect=0",
        "-dnsseed=0",
        "-fixedseeds=0",
        "-discover=0",
        // Fees and spends of old transactions can be asked for; light wallets get their filters.
        "-txindex=1",
        "-blockfilterindex=1",
        "-peerblockfilters=1",
        // Many nodes ask one small chain.
        "-rpcthreads=8",
        "-rpcworkqueue=256",
        "-par=1",
        "-dbcache=16",
        "-printtoconsole=0",
        "-rpcallowip=127.0.0.1",
    ]
    .map(str::to_owned)
    .to_vec();
    args.push(format!("-datadir={}", folder.display()));
    args.push(format!("-bind={peer}"));
    args.push(format!("-rpcbind={}", address.ip()));
    args.push(format!("-rpcport={}", address.port()));
    args.extend(
        reach
            .allow
            .iter()
            .map(|network| format!("-rpcallowip={network}")),
    );
    args.extend((!address.ip().is_loopback()).then(|| format!("-rpcallowip={}", address.ip())));
    if bitcoind.flavour() == Flavour::Knots {
        args.push("-corepolicy=1".to_owned());
    }

    let log = folder.join("stdout.log");
    let mut process = Launch::new("bitcoind", bitcoind.exe(), log)
        .args(args)
        .start()?;
    let chain = Chain { address, cookie };
    let answered = wait::until(START, "bitcoind to answer", || match process.ended() {
        Ok(Some(_)) | Err(_) => Some(Err(ChainError::Ended(last_words(&process, folder)))),
        Ok(None) => chain.height().ok().map(Ok),
    });
    answered??;
    Ok((chain, process))
}

fn last_words(process: &Process, folder: &Path) -> String {
    let log = crate::process::last_lines(&folder.join("regtest/debug.log"));
    format!("{}\n{}", process.last_words().trim_end(), log.trim_end())
}

/// A way to talk to a regtest bitcoind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    address: SocketAddr,
    cookie: PathBuf,
}

impl Chain {
    /// The chain whose bitcoind listens on `address` and keeps its cookie in the file `cookie`.
    pub fn at(address: SocketAddr, cookie: impl Into<PathBuf>) -> Self {
        Self {
            address,
            cookie: cookie.into(),
        }
    }

    /// The address that its RPC listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The address that its RPC listens on, as a URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The file of its cookie, which changes whenever bitcoind starts.
    pub fn cookie(&self) -> &Path {
        &self.cookie
    }

    /// Makes a call of bitcoind's RPC.
    ///
    /// # Errors
    ///
    /// Returns an error if it is refused, not reached, or answers something else than a `T`.
    pub fn call<T: DeserializeOwned>(
        &self,
        call: &'static str,
        args: &[Value],
    ) -> Result<T, ChainError> {
        let failed = |source| ChainError::Rpc {
            call,
            source: Box::new(source),
        };
        // A client reads the cookie once, and the cookie changes when bitcoind is started again.
        let auth = Auth::CookieFile(self.cookie.clone());
        let client = Client::new(&self.url(), auth).map_err(failed)?;
        client.call(call, args).map_err(failed)
    }

    /// The height of the best block.
    ///
    /// # Errors
    ///
    /// Returns an error if bitcoind cannot be reached.
    pub fn height(&self) -> Result<u32, ChainError> {
        self.call("getblockcount", &[])
    }

    /// The hash of the best block.
    ///
    /// # Errors
    ///
    /// Returns an error if bitcoind cannot be reached.
    pub fn best_block(&self) -> Result<BlockHash, ChainError> {
        self.call("getbestblockhash", &[])
    }

    /// Mines blocks, the first of which takes up what is in the mempool. The faucet gets the coins.
    ///
    /// # Errors
    ///
    /// Returns an error if bitcoind cannot be reached.
    pub fn mine(&self, blocks: u32) -> Result<Vec<BlockHash>, ChainError> {
        self.call(
            "generatetoaddress",
            &[json!(blocks), json!(faucet::address().to_string())],
        )
    }

    /// Mines one block that holds `transactions`, and nothing else of the mempool.
    ///
    /// # Errors
    ///
    /// Returns an error if a transaction is not valid on the best block.
    pub fn mine_only(&self, transactions: &[Transaction]) -> Result<BlockHash, ChainError> {
        #[derive(serde::Deserialize)]
        struct Generated {
            hash: BlockHash,
        }
        let transactions: Vec<_> = transactions.iter().map(encode::serialize_hex).collect();
        let args = [json!(faucet::address().to_string()), json!(transactions)];
        self.call("generateblock", &args)
            .map(|Generated { hash }| hash)
    }

    /// Pays from the faucet into the mempool; [`mine`](Self::mine) confirms it.
    ///
    /// # Errors
    ///
    /// Returns [`ChainError::Dry`] if every coin of the faucet is spent in the mempool already.
    pub fn pay(&self, to: &Address, amount: Amount) -> Result<Txid, ChainError> {
        self.pay_all(&[(to.clone(), amount)])
    }

    /// Pays several with one transaction, as [`pay`](Self::pay) does.
    ///
    /// # Errors
    ///
    /// As [`pay`](Self::pay).
    pub fn pay_all(&self, to: &[(Address, Amount)]) -> Result<Txid, ChainError> {
        faucet::pay(self, to)
    }

    /// Takes a block and all that stand on it out of the chain: a reorganisation, once other blocks
    /// are mined in their place.
    ///
    /// # Errors
    ///
    /// Returns an error if there is no such block.
    pub fn invalidate(&self, block: BlockHash) -> Result<(), ChainError> {
        self.call("invalidateblock", &[json!(block)])
    }

    /// Takes [`invalidate`](Self::invalidate) back.
    ///
    /// # Errors
    ///
    /// Returns an error if there is no such block.
    pub fn reconsider(&self, block: BlockHash) -> Result<(), ChainError> {
        self.call("reconsiderblock", &[json!(block)])
    }

    /// The transactions in the mempool.
    ///
    /// # Errors
    ///
    /// Returns an error if bitcoind cannot be reached.
    pub fn mempool(&self) -> Result<Vec<Txid>, ChainError> {
        self.call("getrawmempool", &[])
    }

    /// Hands a transaction to the mempool.
    ///
    /// # Errors
    ///
    /// Returns why the mempool refuses it.
    pub fn broadcast(&self, transaction: &Transaction) -> Result<Txid, ChainError> {
        self.call(
            "sendrawtransaction",
            &[json!(encode::serialize_hex(transaction))],
        )
    }

    /// A transaction of the chain or the mempool.
    ///
    /// # Errors
    ///
    /// Returns an error if there is no such transaction.
    pub fn transaction(&self, txid: Txid) -> Result<Transaction, ChainError> {
        let hex: String = self.call("getrawtransaction", &[json!(txid)])?;
        encode::deserialize_hex(&hex).map_err(|error| {
            let source = Box::new(bitcoincore_rpc::Error::UnexpectedStructure);
            tracing::error!(%error, %txid, "bitcoind sent a transaction that does not parse");
            ChainError::Rpc {
                call: "getrawtransaction",
                source,
            }
        })
    }

    /// What a transaction pays to the miner: the value of what it spends less that of its outputs.
    ///
    /// # Errors
    ///
    /// Returns an error if it or one that it spends is unknown, or if it is a coinbase.
    pub fn fee(&self, txid: Txid) -> Result<Amount, ChainError> {
        let transaction = self.transaction(txid)?;
        let mut spent = Amount::ZERO;
        for input in &transaction.input {
            let funding = self.transaction(input.previous_output.txid)?;
            let output = usize::try_from(input.previous_output.vout).ok();
            let output = output.and_then(|index| funding.output.get(index));
            spent += output.map_or(Amount::ZERO, |output| output.value);
        }
        let kept: Amount = transaction.output.iter().map(|output| output.value).sum();
        Ok(spent.checked_sub(kept).unwrap_or(Amount::ZERO))
    }
}

#[cfg(test)]
mod tests;
