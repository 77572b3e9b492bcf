//! The chain's own thread: the one place that waits for a chain source.
//!
//! A chain source blocks, sometimes for long, and may fail for hours. It runs on a thread of its
//! own, is asked again until it answers, and reports to the driver over a bounded channel: while the
//! driver is busy, the chain waits, so a first sync of many blocks needs the memory of a few.

use std::sync::mpsc as blocking;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use bitcoin::{Amount, FeeRate, OutPoint, ScriptBuf, Transaction, Txid};
use bitmesh_wallet::chain::{
    BlockId, BroadcastError, ChainError, ChainEvent, ChainSource, Sight, Start, Tip,
};
use bitmesh_wallet::channel::ProposalId;
use bitmesh_wallet::channel::payee::Sighting;
use tokio::sync::mpsc;
use tracing::{info, warn};

use crate::clock::Clock;

/// Commands that may wait for the thread. Each is one transaction or one question of the driver's,
/// and the driver asks few at a time.
const COMMANDS: usize = 256;

/// Blocks between now and confirmation that fees are bid for: an hour.
const FEE_TARGET_BLOCKS: u16 = 6;

/// Polls between two looks at the fee rate: it changes with the mempool, slowly.
const POLLS_PER_FEERATE: u32 = 15;

/// How far below the tip a new wallet begins where a reorganisation at its beginning could not be
/// noticed.
const BIRTH_DEPTH: u32 = 6;

/// What the driver asks of the chain.
#[derive(Debug)]
pub(crate) enum ChainCommand {
    /// Follow the chain from here, from now on. Nothing is reported before the first of these but
    /// where the source stands.
    Follow(Start),
    /// Watch these scripts too, and in the blocks from this height on that were told already.
    Watch {
        /// The height.
        from: u32,
        /// The scripts.
        scripts: Vec<ScriptBuf>,
    },
    /// Tell again what the mempool holds about this output, for a listener that has just begun to
    /// watch it.
    LookAgain(OutPoint),
    /// Hand this transaction to the network. Asking twice is harmless.
    Broadcast(Box<Transaction>),
    /// Say what can be said of a funding that is in the mempool.
    Weigh {
        /// Whose funding it is.
        channel: ProposalId,
        /// The funding.
        funding: Box<Transaction>,
    },
}

/// What the chain reports to the driver.
#[derive(Debug)]
pub(crate) enum ChainUpdate {
    /// A block came or went, or the mempool changed.
    Event(ChainEvent),
    /// The source answers for the first time.
    Reached {
        /// The block from which this wallet's history begins, so that none before it is read.
        birth: BlockId,
    },
    /// Everything the source has was reported; where it stands itself.
    Tip(Tip),
    /// The fee rate for confirmation within an hour, in sat per virtual byte, rounded up.
    FeeRate(u64),
    /// What became of a broadcast. A failure says why; the transaction was not handed over.
    Broadcast(Txid, Result<(), BroadcastError>),
    /// What can be said of a funding in the mempool.
    Weighed {
        /// Whose funding it is.
        channel: ProposalId,
        /// What is known.
        sighting: Sighting,
    },
    /// The source does not answer; it is being asked again. Sent once per spell of trouble.
    Trouble(String),
}

/// The driver's end of the chain thread. Dropping it ends the thread at its next wait.
#[derive(Debug)]
pub(crate) struct Chain {
    commands: blocking::SyncSender<ChainCommand>,
    missed: Missed,
}

/// Scripts to watch that the queue had no room for, each with the height to watch from. Nobody would
/// ask for them again, so they are kept; there are no more of them than this node has scripts.
type Missed = Arc<Mutex<Vec<(u32, Vec<ScriptBuf>)>>>;

impl Chain {
    /// Starts the thread. `updates` should hold few: each may carry a block.
    ///
    /// # Errors
    ///
    /// The system's, if it gives no thread.
    pub(crate) fn start(
        source: Box<dyn ChainSource>,
        clock: Clock,
        every: Duration,
        birth_height: Option<u32>,
        updates: mpsc::Sender<ChainUpdate>,
    ) -> std::io::Result<Self> {
        let (commands, inbox) = blocking::sync_channel(COMMANDS);
        let missed = Missed::default();
        let mut watch = Watch {
            missed: Arc::clone(&missed),
            source,
            clock,
            every,
            updates,
            polls: 0,
            reached: false,
            follows: false,
            birth_height,
            in_trouble: false,
        };
        thread::Builder::new()
            .name("chain".to_owned())
            .spawn(move || watch.run(&inbox))?;
        Ok(Self { commands, missed })
    }

    /// Queues a command. If the thread is so far behind that the queue is full, scripts to watch are
    /// kept aside for it, and anything else is dropped with a warning: every transaction that matters is
    /// broadcast again after each block.
    pub(crate) fn ask(&self, command: ChainCommand) {
        match self.commands.try_send(command) {
            Ok(()) => {}
            Err(blocking::TrySendError::Full(ChainCommand::Watch { from, scripts })) => {
                let mut missed = self.missed.lock().unwrap_or_else(PoisonError::into_inner);
                missed.push((from, scripts));
            }
            Err(_) => {
                warn!(
                    "the chain thread is behind; a request to it was dropped and will be repeated"
                );
            }
        }
    }
}

/// The driver has gone.
struct Gone;

struct Watch {
    source: Box<dyn ChainSource>,
    missed: Missed,
    clock: Clock,
    every: Duration,
    updates: mpsc::Sender<ChainUpdate>,
    polls: u32,
    /// Set once the source has answered.
    reached: bool,
    follows: bool,
    /// Where the wallet's history begins; `None` is now.
    birth_height: Option<u32>,
    in_trouble: bool,
}

impl Watch {
    fn run(&mut self, inbox: &blocking::Receiver<ChainCommand>) {
        loop {
            let missed =
                std::mem::take(&mut *self.missed.lock().unwrap_or_else(PoisonError::into_inner));
            for (from, scripts) in missed {
                self.source.watch(from, &scripts);
            }
            let looked = if self.follows {
                self.look()
            } else {
                self.stand()
            };
            if looked.is_err() {
                return;
            }
            // Commands that came while looking are done together, then it is time to look again.
            let mut next = inbox.recv_timeout(self.every);
            loop {
                match next {
                    Ok(command) => {
                        if self.perform(command).is_err() {
                            return;
                        }
                    }
                    Err(blocking::RecvTimeoutError::Timeout) => break,
                    Err(blocking::RecvTimeoutError::Disconnected) => return,
                }
                next = inbox.recv_timeout(Duration::ZERO);
            }
        }
    }

    /// Reports all that is new.
    fn look(&mut self) -> Result<(), Gone> {
        loop {
            let events = match self.source.poll(self.clock.unix().secs()) {
                Ok(events) => events,
                Err(error) => return self.trouble(&error),
            };
            if events.is_empty() {
                break;
            }
            for event in events {
                self.report(ChainUpdate::Event(event))?;
            }
        }
        self.stand()?;
        if self.polls.is_multiple_of(POLLS_PER_FEERATE) {
            // No estimate is not trouble: a young chain has none, and the configured one serves.
            if let Ok(rate) = self.source.feerate(FEE_TARGET_BLOCKS) {
                self.report(ChainUpdate::FeeRate(rate.to_sat_per_vb_ceil()))?;
            }
        }
        self.polls = self.polls.wrapping_add(1);
        Ok(())
    }

    /// Reports where the source stands.
    fn stand(&mut self) -> Result<(), Gone> {
        match self.source.tip() {
            Ok(tip) => {
                if self.in_trouble {
                    info!("the chain source answers again");
                    self.in_trouble = false;
                }
                // Where headers are still being read, this is not yet the end of the chain.
                if !self.reached && tip.block.height >= tip.headers {
                    let birth = match self.birth_height {
                        // A source of blocks alone takes its start on trust: one that stays.
                        None if self.source.sight() == Sight::Blocks => {
                            let deep = tip.block.height.saturating_sub(BIRTH_DEPTH);
                            match self.source.block_at(deep) {
                                Ok(block) => block,
                                Err(error) => return self.trouble(&error),
                            }
                        }
                        None => Some(tip.block),
                        Some(height) => match self.source.block_at(height) {
                            Ok(block) => block,
                            Err(error) => return self.trouble(&error),
                        },
                    };
                    self.reached = true;
                    self.report(ChainUpdate::Reached {
                        birth: birth.unwrap_or(tip.block),
                    })?;
                }
                self.report(ChainUpdate::Tip(tip))
            }
            Err(error) => self.trouble(&error),
        }
    }

    fn perform(&mut self, command: ChainCommand) -> Result<(), Gone> {
        match command {
            ChainCommand::Follow(start) => {
                self.source.restart(start);
                self.follows = true;
                Ok(())
            }
            ChainCommand::Watch { from, scripts } => {
                self.source.watch(from, &scripts);
                Ok(())
            }
            ChainCommand::LookAgain(outpoint) => {
                match self.source.look_again(&[outpoint.txid], &[outpoint]) {
                    Ok(()) => Ok(()),
                    Err(error) => self.trouble(&error),
                }
            }
            ChainCommand::Broadcast(transaction) => {
                let outcome = self.source.broadcast(&transaction).map(|_| ());
                self.report(ChainUpdate::Broadcast(transaction.compute_txid(), outcome))
            }
            ChainCommand::Weigh { channel, funding } => match self.weigh(&funding) {
                Ok(sighting) => self.report(ChainUpdate::Weighed { channel, sighting }),
                Err(error) => self.trouble(&error),
            },
        }
    }

    /// Finds out whether a funding spends confirmed coins, and what it pays.
    fn weigh(&self, funding: &Transaction) -> Result<Sighting, ChainError> {
        let mut spent = Some(Amount::ZERO);
        for input in &funding.input {
            let output = self.source.confirmed_output(&input.previous_output)?;
            spent = match (spent, output) {
                (Some(sum), Some(output)) => sum.checked_add(output.value),
                (_, None) | (None, _) => None,
            };
        }
        let made = funding
            .output
            .iter()
            .try_fold(Amount::ZERO, |sum, o| sum.checked_add(o.value));
        let fee = spent
            .zip(made)
            .and_then(|(spent, made)| spent.checked_sub(made));
        let feerate = fee.and_then(|fee| {
            let weight = funding.weight();
            fee.to_sat()
                .checked_mul(1_000)
                .map(|fee| FeeRate::from_sat_per_kwu(fee / weight.to_wu().max(1)))
        });
        let wanted = self
            .source
            .feerate(FEE_TARGET_BLOCKS)
            .unwrap_or(FeeRate::BROADCAST_MIN);
        Ok(Sighting {
            has_confirmed_inputs: spent.is_some(),
            feerate: feerate.unwrap_or(FeeRate::ZERO),
            wanted_feerate: wanted,
        })
    }

    fn trouble(&mut self, error: &ChainError) -> Result<(), Gone> {
        if self.in_trouble {
            return Ok(());
        }
        self.in_trouble = true;
        warn!(%error, "the chain source does not answer; asking again");
        self.report(ChainUpdate::Trouble(error.to_string()))
    }

    fn report(&self, update: ChainUpdate) -> Result<(), Gone> {
        self.updates.blocking_send(update).map_err(|_| Gone)
    }
}

#[cfg(test)]
mod tests {
    use bitmesh_wallet::chain::{Accepted, ConfirmedOutput, Verdict};

    use super::*;

    /// A source whose first answer takes until it is let go, and that tells which scripts it is to
    /// watch.
    struct Slow {
        gate: blocking::Receiver<()>,
        watched: blocking::SyncSender<ScriptBuf>,
    }

    const DOWN: &str = "not asked in this test";

    impl ChainSource for Slow {
        fn name(&self) -> String {
            "slow".to_owned()
        }

        fn sight(&self) -> Sight {
            Sight::Everything
        }

        fn poll(&mut self, _now: u64) -> Result<Vec<ChainEvent>, ChainError> {
            Ok(Vec::new())
        }

        fn restart(&mut self, _start: Start) {}

        fn watch(&mut self, _from: u32, scripts: &[ScriptBuf]) {
            for script in scripts {
                self.watched.send(script.clone()).unwrap();
            }
        }

        fn look_again(&mut self, _: &[Txid], _: &[OutPoint]) -> Result<(), ChainError> {
            Ok(())
        }

        fn broadcast(&self, _: &Transaction) -> Result<Accepted, BroadcastError> {
            unreachable!("{DOWN}")
        }

        fn broadcast_package(&self, _: &[Transaction]) -> Result<(), BroadcastError> {
            unreachable!("{DOWN}")
        }

        fn test_accept(&self, _: &Transaction) -> Result<Verdict, ChainError> {
            unreachable!("{DOWN}")
        }

        fn feerate(&self, _: u16) -> Result<FeeRate, ChainError> {
            unreachable!("{DOWN}")
        }

        fn tip(&self) -> Result<Tip, ChainError> {
            let _ = self.gate.recv();
            Err(ChainError::Blind {
                node: self.name(),
                what: "where it stands",
            })
        }

        fn block_at(&self, _: u32) -> Result<Option<BlockId>, ChainError> {
            unreachable!("{DOWN}")
        }

        fn confirmed_output(&self, _: &OutPoint) -> Result<Option<ConfirmedOutput>, ChainError> {
            unreachable!("{DOWN}")
        }
    }

    #[test]
    fn no_script_to_watch_is_lost_while_the_source_is_slow() {
        let (open, gate) = blocking::sync_channel(0);
        let (watched, seen) = blocking::sync_channel(2 * COMMANDS);
        let (updates, _listener) = mpsc::channel(8);
        let source = Box::new(Slow { gate, watched });
        let every = Duration::from_millis(1);
        let chain = Chain::start(source, Clock, every, None, updates).unwrap();
        let scripts: Vec<_> = (0..2 * COMMANDS)
            .map(|index| ScriptBuf::from_bytes(index.to_be_bytes().to_vec()))
            .collect();
        for script in &scripts {
            let scripts = vec![script.clone()];
            chain.ask(ChainCommand::Watch { from: 0, scripts });
        }
        drop(open);

        let patience = Duration::from_secs(10);
        let mut found: Vec<_> = (0..scripts.len())
            .map(|_| seen.recv_timeout(patience).expect("a script was lost"))
            .collect();
        found.sort();
        assert_eq!(found, scripts);
    }
}
