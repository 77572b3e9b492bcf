//! Channels, coins and the chain: what `payments` wants done, and what the chain reports.

use bitcoin::secp256k1::XOnlyPublicKey;
use bitcoin::{Amount, OutPoint, ScriptBuf, Transaction, TxOut};
use bitmesh_market::identity::NodeId;
use bitmesh_market::lease::LeaseId;
use bitmesh_market::session::{CloseReason, seller};
use bitmesh_market::units::Msat;
use bitmesh_wallet::chain::watch::{WatchEvent, Watcher};
use bitmesh_wallet::chain::{BlockId, BroadcastError, ChainEvent, Start, Tip};
use bitmesh_wallet::channel::ProposalId;
use bitmesh_wallet::channel::closing::Close;
use bitmesh_wallet::channel::deadline::BlockHeight;
use bitmesh_wallet::channel::message::Message;
use bitmesh_wallet::channel::record::{Fact, JOURNAL_KIND, Record};
use bitmesh_wallet::onchain::{Applied, SpendError};
use rand::RngExt;
use tracing::{debug, error, info, warn};

use super::{Asked, Driver};
use crate::chain::{ChainCommand, ChainUpdate};
use crate::control::api;
use crate::mesh::{Command, InboundId};
use crate::payments::{ChainFact, Output};
use crate::protocol::{Request, Response};
use crate::records::{Codec, Kind, OpenedRecord};

/// Blocks that are searched for a funding that was told of late: the peer may have been slower than
/// the chain.
const BLOCKS_SEARCHED: u32 = 6;

/// A channel's funding, being watched.
#[derive(Debug)]
pub(super) struct Watched {
    channel: ProposalId,
    funding: Transaction,
    pub(super) confirmations: u32,
    /// Whether it is in the mempool, and what the chain thread finds out about it there is awaited. An
    /// answer that comes after a block has taken the funding up says nothing any more.
    is_weighed: bool,
}

impl Driver {
    /// Performs what the payments room wants done, in order.
    ///
    /// A voucher that came is appended and may wait a moment for the disk, so that several share one
    /// sync. Everything behind it waits in `standing` until then: nothing that relies on a voucher
    /// happens before it is durable. Any other record, and an answer that a peer waits for, syncs at
    /// once.
    pub(super) fn drain_payments(&mut self) {
        while !self.broken {
            if let Some(output) = self.standing.pop(&self.journal) {
                self.perform_payment(output);
                continue;
            }
            if self.answering.is_some() {
                self.standing.hasten();
            }
            if self.standing.is_due(self.clock.now()) {
                self.sync_journal();
                continue;
            }
            match self.payments.poll_output() {
                None => return,
                Some(Output::Persist(record)) if matches!(record.fact, Fact::Held { .. }) => {
                    self.persist_held(&record);
                }
                Some(output) if self.journal.is_synced() => self.perform_payment(output),
                Some(output) => {
                    if matches!(output, Output::Persist(_)) {
                        self.standing.hasten();
                    }
                    self.standing.push(output);
                }
            }
        }
    }

    fn perform_payment(&mut self, output: Output) {
        match output {
            Output::Persist(record) => self.persist_channel(&record),
            Output::Send { to, message } => self.send_channel(to, &message),
            Output::Fund {
                channel,
                script,
                amount,
            } => self.fund(channel, script, amount),
            Output::FundTogether { opening } => self.fund_together(opening),
            Output::TopUpDue { seller, lacking } => self.top_up_due(seller, lacking),
            Output::Broadcast(transaction) => self.broadcast(&transaction),
            Output::Watch {
                channel,
                outpoint,
                script,
                funding,
            } => {
                self.watch(channel, outpoint, script, &funding);
            }
            Output::CloseDue { close, payout } => self.close_due(&close, payout),
            Output::RefundDue { channel } => {
                let (feerate, now) = (self.payments.feerate(), self.clock.now());
                if let Err(error) = self.payments.refund(channel, feerate, now) {
                    debug!(%channel, %error, "the refund has to wait");
                }
            }
            Output::CooperationDue { channel, buyer } => self.cooperation_due(channel, buyer),
            Output::CloseWanted { channel } => self.close_wanted(channel),
            Output::SplitDue { channel, next } => self.split_due(channel, next),
            Output::RolloverDue { channel, seller } => self.rollover_due(channel, seller),
            Output::RolloverAgreed { channel } => self.rollover_agreed(channel),
            Output::RolledOver { channel, next } => self.rolled_over(channel, next),
            Output::RolloverFailed { channel, failure } => {
                self.rollover_failed(channel, failure);
            }
            Output::Closing { channel } => self.together_over(channel, Ok(())),
            Output::CloseFailed { channel, failure } => {
                self.together_over(channel, Err(failure));
            }
            Output::Paid { lease, total } => self.session_paid(lease, total),
            Output::Deferred { lease, total } => {
                self.session_funding(lease, seller::Input::Deferred { total });
            }
            Output::PayFailed { lease, failure } => self.session_pay_failed(lease, failure),
            Output::FundingLost { lease } => {
                self.session_funding(lease, seller::Input::FundingLost);
            }
            Output::FundingFound { lease } => {
                self.session_funding(lease, seller::Input::FundingFound);
            }
            Output::ChannelEnding { lease } => {
                self.close_session(lease, CloseReason::ChannelLost);
            }
            Output::Changed(channel) => {
                let view = self.payments.channel(channel);
                let channel = view.map(|view| self.channel_view(&view));
                self.tell(channel.map(|channel| api::Event::ChannelChanged { channel }));
            }
        }
    }

    /// Appends a voucher that came, without a sync. The value at stake is what it raises the total by;
    /// of a channel's first since the start that is not known, and all of it counts.
    fn persist_held(&mut self, record: &Record) {
        let Fact::Held { total, .. } = record.fact else {
            return;
        };
        let before = self.held.insert(record.proposal, total);
        let value = total
            .checked_sub(before.unwrap_or(Amount::ZERO))
            .unwrap_or(total);
        self.persist_deferred(JOURNAL_KIND, &record.to_bytes(), value);
    }

    fn persist_channel(&mut self, record: &Record) {
        self.persist_raw(JOURNAL_KIND, &record.to_bytes());
        if matches!(record.fact, Fact::Settled(_) | Fact::Abandoned) {
            self.held.remove(&record.proposal);
        }
        if matches!(record.fact, Fact::Proposed { .. } | Fact::Agreed { .. }) {
            let (channel, at) = (record.proposal, self.unix());
            self.persist(Kind::Opened, &OpenedRecord::new(channel, at).to_bytes());
            self.payments.restore_opened(channel, at);
        }
    }

    /// Sends a channel message by the way that is open: as the answer to the peer's own request, on
    /// the session's control stream, or as a request.
    fn send_channel(&mut self, to: NodeId, message: &Message) {
        if let Some((peer, inbound)) = self.answering
            && peer == to
        {
            self.answering = None;
            let response = Response::Channel(message.to_bytes());
            self.mesh_do(Command::Respond { inbound, response });
        } else if !self.send_on_session(to, message) {
            let request = Request::Channel(message.to_bytes());
            self.ask_mesh(to, request, Asked::Channel { peer: to });
        }
    }

    /// A peer's channel message came, by whatever way.
    pub(super) fn channel_bytes(&mut self, from: NodeId, bytes: &[u8], inbound: Option<InboundId>) {
        let now = self.clock.now();
        // Outputs of earlier inputs are not answers to this request.
        if inbound.is_some() {
            self.standing.hasten();
        }
        self.drain_payments();
        self.answering = inbound.map(|inbound| (from, inbound));
        match Message::from_bytes(bytes) {
            Ok(message) => {
                if let Err(error) = self.payments.received(from, message, now) {
                    debug!(%from, %error, "a channel message was refused");
                }
            }
            Err(error) if bytes.is_empty() => {
                debug!(%from, %error, "nothing to say on the channel");
            }
            Err(error) => warn!(%from, %error, "bytes that are no channel message"),
        }
        self.drain_payments();
        if let Some((_, inbound)) = self.answering.take() {
            let response = Response::Channel(Vec::new());
            self.mesh_do(Command::Respond { inbound, response });
        }
    }

    fn fund(&mut self, channel: ProposalId, script: ScriptBuf, amount: Amount) {
        let (feerate, now) = (self.payments.feerate(), self.clock.now());
        if !self.payments.is_wanted(channel) {
            debug!(%channel, "no lease waits for the channel any more; it is not funded");
            self.payments.funding_failed(channel, now);
            return;
        }
        let made = match self.payments.contract(channel) {
            Some(contract) => self
                .wallet
                .fund_channels(&[contract], feerate)
                .map(|made| (made.transaction, made.preview)),
            None => self.wallet.fund(&script, amount, feerate),
        };
        match made {
            Ok((transaction, preview)) => {
                let funded = self
                    .payments
                    .funded(channel, transaction.clone(), preview.fee, now);
                if let Err(error) = funded {
                    error!(%channel, %error, "the wallet's funding does not fund the channel");
                    self.wallet.release(&transaction);
                }
            }
            Err(error) => {
                warn!(%channel, %error, "the channel cannot be funded");
                self.funding_problem = Some(error);
                self.payments.funding_failed(channel, now);
            }
        }
    }

    /// Hands a transaction to the chain, after the wallet has written down that it is spent.
    pub(super) fn broadcast(&mut self, transaction: &Transaction) {
        let now = self.unix().secs();
        if let Err(error) = self.wallet.record(transaction, now) {
            error!(%error, "a transaction is not broadcast: the wallet could not write it down");
            return;
        }
        self.chain_do(ChainCommand::Broadcast(Box::new(transaction.clone())));
        self.tell_wallet();
    }

    fn watch(
        &mut self,
        channel: ProposalId,
        outpoint: OutPoint,
        script: ScriptBuf,
        funding: &Transaction,
    ) {
        let watched = Watched {
            channel,
            funding: funding.clone(),
            confirmations: 0,
            is_weighed: false,
        };
        self.watched.insert(outpoint, watched);
        let output = usize::try_from(outpoint.vout)
            .ok()
            .and_then(|i| funding.output.get(i));
        if let Some(output) = output
            && let Err(error) = self.wallet.learn_output(outpoint, output.clone())
        {
            debug!(%error, "a closing fee will not be shown");
        }
        match self.watcher.watch(outpoint, script.clone(), funding) {
            // Before that, it is among the scripts to begin with.
            Ok(()) if self.follows_chain => {
                let from = self.wallet.tip().height.saturating_sub(BLOCKS_SEARCHED);
                let scripts = vec![script];
                self.chain_do(ChainCommand::Watch { from, scripts });
                self.chain_do(ChainCommand::LookAgain(outpoint));
            }
            Ok(()) => {}
            Err(error) => error!(%channel, %error, "a channel cannot be watched"),
        }
        self.watcher_events();
    }

    /// Seller: channels whose deadline has come are closed, or more is bid for their close.
    fn close_due(&mut self, close: &Close, payout: Option<ScriptBuf>) {
        let payout = match (payout, close.members.as_slice()) {
            (Some(payout), _) => Ok(payout),
            (None, [channel]) => self.payout(*channel),
            (None, _) => self
                .wallet
                .change_script()
                .map_err(|error| error.to_string()),
        };
        match payout {
            Ok(payout) => {
                let (channels, feerate) = (close.members.len(), close.feerate);
                match close.replaces {
                    None => warn!(channels, feerate, "a deadline has come; closing channels"),
                    Some(txid) => warn!(channels, feerate, %txid, "bidding more for a close"),
                }
                let now = self.clock.now();
                self.payments.close_due(close, payout, now);
            }
            Err(error) => {
                error!(%error, "no address to close to; trying again with the next block");
            }
        }
    }

    /// Seller: asks a buyer that is there to close together before the deadline. One that is not there
    /// is not looked for: closing alone is always possible.
    fn cooperation_due(&mut self, channel: ProposalId, buyer: NodeId) {
        if !self.connected.contains_key(&buyer) {
            return;
        }
        info!(%channel, "the expiry comes near; asking the buyer to close together");
        let now = self.clock.now();
        if let Err(error) = self.payments.cooperate(channel, now) {
            debug!(%channel, %error, "the buyer is not asked to close together");
        }
    }

    /// The script that a channel is paid out to: one for all ways and attempts to close it.
    fn payout(&mut self, channel: ProposalId) -> Result<ScriptBuf, String> {
        if let Some(payout) = self.payments.payout_of(channel) {
            return Ok(payout);
        }
        let payout = self.wallet.change_script();
        let payout = payout.map_err(|error| error.to_string())?;
        self.payments.set_payout(channel, payout.clone());
        Ok(payout)
    }

    /// Buyer: the seller wants to close together. It could close alone at any time, so that agreeing
    /// loses nothing.
    fn close_wanted(&mut self, channel: ProposalId) {
        let (feerate, seed, now) = (
            self.payments.feerate(),
            rand::rng().random(),
            self.clock.now(),
        );
        if let Err(error) = self.payments.close_together(channel, feerate, seed, now) {
            debug!(%channel, %error, "a close that was asked for is not begun");
        }
    }

    /// Seller: a close together is begun, or a rollover into the channel that has the output `next`.
    fn split_due(&mut self, channel: ProposalId, next: Option<TxOut>) {
        let feerate = self.together_feerate(channel);
        let feerate = feerate.unwrap_or_else(|| self.payments.feerate());
        let (seed, now) = (rand::rng().random(), self.clock.now());
        let chosen = self.payout(channel).and_then(|payout| {
            self.payments
                .split_chosen(channel, payout, feerate, seed, next, now)
                .map_err(|error| error.to_string())
        });
        if let Err(error) = chosen {
            warn!(%channel, %error, "a close together cannot be gone along with");
        }
    }

    /// Seller: closes a channel with its best voucher, to a fresh script of the wallet.
    pub(super) fn close_channel(
        &mut self,
        channel: ProposalId,
        feerate: Option<bitcoin::FeeRate>,
    ) -> Result<(), String> {
        let payout = self.payout(channel)?;
        let feerate = feerate.unwrap_or_else(|| self.payments.feerate());
        let now = self.clock.now();
        self.payments
            .close(channel, payout, feerate, now)
            .map_err(|error| error.to_string())
    }

    pub(super) fn chain_update(&mut self, update: ChainUpdate) {
        match update {
            ChainUpdate::Event(event) => self.chain_event(&event),
            ChainUpdate::Reached { birth } => self.chain_reached(birth),
            ChainUpdate::Tip(tip) => self.chain_tip(tip),
            ChainUpdate::FeeRate(feerate) => {
                self.feerate = Some(feerate);
                self.payments.feerate_changed(feerate);
            }
            ChainUpdate::Weighed { channel, sighting } => {
                let now = self.clock.now();
                let mut watched = self.watched.values_mut();
                let awaited = watched.find(|it| it.channel == channel && it.is_weighed);
                if let Some(watched) = awaited {
                    watched.is_weighed = false;
                    self.payments
                        .on_chain(channel, ChainFact::Seen(sighting), now);
                }
            }
            ChainUpdate::Broadcast(txid, outcome) => {
                match &outcome {
                    Ok(()) => info!(%txid, "handed to the network"),
                    // The watcher tells what became of it; a rejection may only mean it is known.
                    Err(BroadcastError::Rejected(reason)) => {
                        warn!(%txid, %reason, "the chain does not take a transaction");
                    }
                    Err(BroadcastError::Chain(error)) => {
                        warn!(%txid, %error, "a transaction waits for the chain source");
                    }
                }
                self.handed(txid, &outcome);
            }
            ChainUpdate::Trouble(problem) => self.chain_trouble = Some(problem),
        }
    }

    fn chain_event(&mut self, event: &ChainEvent) {
        match self.wallet.apply(event) {
            Ok(Applied::Unchanged) => {}
            Ok(Applied::Changed) => {
                // Before the watcher sees this block, so that it sees in it whatever becomes of them.
                self.adopt_lost_fundings();
                self.tell_wallet();
                // An address was used, so others further on may be used from this block on.
                let from = match event {
                    ChainEvent::Connected { height, .. }
                    | ChainEvent::Disconnected { height, .. } => *height,
                    ChainEvent::Mempool { .. } => self.wallet.tip().height.saturating_add(1),
                };
                let scripts = self.wallet.take_new_scripts();
                if !scripts.is_empty() {
                    self.chain_do(ChainCommand::Watch { from, scripts });
                }
            }
            Err(error) => {
                warn!(%error, "the wallet lost its place in the chain; reading from where it stood");
                self.follow_chain();
                return;
            }
        }
        if let Err(error) = self.watcher.apply(event) {
            warn!(%error, "the watcher lost its place in the chain; reading from where it stood");
            self.follow_chain();
        }
        self.watcher_events();
    }

    /// Takes up the channels that this node's coins have funded and its journal knows nothing of: after
    /// a restoration from the words, or from an old backup.
    fn adopt_lost_fundings(&mut self) {
        let (next_index, term) = self.payments.search_space();
        let payments = &self.payments;
        let found = tokio::task::block_in_place(|| {
            let is_known = |outpoint: &OutPoint| payments.has_funded(outpoint);
            self.wallet.lost_fundings(is_known, next_index, term)
        });
        let now = self.clock.now();
        for found in found {
            let (outpoint, expiry) = (found.outpoint(), found.expiry);
            match self.payments.adopt(&found, None, now) {
                Ok(channel) => warn!(
                    %channel, %outpoint, %expiry,
                    "a channel of this node was found that its journal does not know; what its \
                     seller does not claim is taken back after the expiry"
                ),
                Err(error) => error!(%outpoint, %error, "a found channel cannot be taken up"),
            }
        }
        self.drain_payments();
    }

    /// Takes up the channel that `tx` carried `channel` over into, if the journal knows nothing of it.
    fn adopt_lost_next(
        &mut self,
        channel: ProposalId,
        tx: &Transaction,
        height: Option<u32>,
        payee_key: XOnlyPublicKey,
    ) {
        let (next_index, term) = self.payments.search_space();
        let height = height.unwrap_or_else(|| self.wallet.tip().height);
        let found = tokio::task::block_in_place(|| {
            self.wallet
                .lost_next(tx, payee_key, height, next_index, term)
        });
        let Some(found) = found else {
            let txid = tx.compute_txid();
            warn!(%channel, %txid, "a channel was carried over into one that the words do not find");
            return;
        };
        let now = self.clock.now();
        match self.payments.adopt(&found, Some(channel), now) {
            Ok(next) => warn!(
                %next, outpoint = %found.outpoint(), expiry = %found.expiry,
                "a channel of this node was carried over into one that its journal does not know; what \
                 its seller does not claim is taken back after the expiry"
            ),
            Err(error) => error!(%channel, %error, "a found channel cannot be taken up"),
        }
        self.drain_payments();
    }

    fn watcher_events(&mut self) {
        let now = self.clock.now();
        while let Some(event) = self.watcher.poll_event() {
            let (outpoint, fact) = match event {
                WatchEvent::Seen { outpoint } => {
                    // The payee trusts unconfirmed funding by what it spends and pays.
                    if let Some(watched) = self.watched.get_mut(&outpoint) {
                        watched.confirmations = 0;
                        watched.is_weighed = true;
                        let (channel, funding) =
                            (watched.channel, Box::new(watched.funding.clone()));
                        self.chain_do(ChainCommand::Weigh { channel, funding });
                    }
                    continue;
                }
                WatchEvent::Depth {
                    outpoint,
                    confirmations,
                } => {
                    if let Some(watched) = self.watched.get_mut(&outpoint) {
                        watched.confirmations = confirmations;
                    }
                    (outpoint, ChainFact::Confirmed(confirmations))
                }
                WatchEvent::Conflicted {
                    outpoint,
                    confirmations,
                    ..
                } => (outpoint, ChainFact::Conflicted(confirmations)),
                WatchEvent::Dropped { outpoint } => (outpoint, ChainFact::Dropped),
                WatchEvent::Spent {
                    outpoint,
                    transaction,
                    height,
                } => (
                    outpoint,
                    ChainFact::Spent(Box::new((*transaction).clone()), height),
                ),
                WatchEvent::Unspent { outpoint } => (outpoint, ChainFact::Unspent),
            };
            if let Some(watched) = self.watched.get_mut(&outpoint) {
                if !matches!(fact, ChainFact::Spent(..) | ChainFact::Unspent) {
                    watched.is_weighed = false;
                }
                let channel = watched.channel;
                let lost = match &fact {
                    ChainFact::Spent(tx, height) => self
                        .payments
                        .lost_next_of(channel, tx)
                        .map(|payee_key| (tx.clone(), *height, payee_key)),
                    _ => None,
                };
                self.payments.on_chain(channel, fact, now);
                if let Some((tx, height, payee_key)) = lost {
                    self.adopt_lost_next(channel, &tx, height, payee_key);
                }
            }
        }
    }

    /// The source has told all it knows, or has just been reached for the first time.
    fn chain_tip(&mut self, tip: Tip) {
        self.chain_tip = Some(tip);
        self.chain_trouble = None;
        if !self.is_synced() || self.told_tip == Some(tip.block) {
            return;
        }
        self.told_tip = Some(tip.block);
        let now = self.clock.now();
        self.payments
            .tip_changed(BlockHeight::new(tip.block.height), now);
        self.begin_early_purchases();
        if let Err(error) = self.wallet.persist() {
            warn!(%error, "the wallet's cache was not written; blocks will be read again");
        }
        self.cache.keep_watcher(&self.watcher.snapshot());
        for transaction in self.wallet.outgoing() {
            let transaction = Box::new((*transaction).clone());
            self.chain_do(ChainCommand::Broadcast(transaction));
        }
        self.tell(Some(api::Event::BlockConnected {
            height: tip.block.height,
        }));
    }

    /// Begins to follow the chain. A wallet that has read nothing yet begins where its history does.
    fn chain_reached(&mut self, birth: BlockId) {
        if self.wallet.tip().height == 0 && birth.height > 0 {
            match self.wallet.start_at(birth) {
                Ok(()) if self.watched.is_empty() => self.watcher = Watcher::new(birth),
                Ok(()) => {}
                Err(error) => warn!(%error, "the wallet reads the chain from its beginning"),
            }
        }
        self.follow_chain();
    }

    /// Follows the chain from the lower of the two places that wallet and watcher know.
    fn follow_chain(&mut self) {
        let (wallet, watcher) = (self.wallet.start(), self.watcher.start());
        let lower = if self.wallet.tip().height <= self.watcher.height() {
            &wallet
        } else {
            &watcher
        };
        let mut start = Start {
            locator: lower.locator.clone(),
            floor: lower.floor,
            unconfirmed: Vec::new(),
            scripts: Vec::new(),
        };
        start.unconfirmed.extend(wallet.unconfirmed);
        start.unconfirmed.extend(watcher.unconfirmed);
        start.scripts.extend(wallet.scripts);
        start.scripts.extend(watcher.scripts);
        self.follows_chain = true;
        // All of the wallet's are among them.
        let _ = self.wallet.take_new_scripts();
        self.chain_do(ChainCommand::Follow(start));
    }

    /// Whether the wallet has applied every block that the source knows.
    pub(super) fn is_synced(&self) -> bool {
        self.chain_tip
            .is_some_and(|tip| !tip.syncing && self.wallet.tip() == tip.block)
    }

    pub(super) fn tell_wallet(&self) {
        self.tell(Some(api::Event::WalletChanged {
            wallet: self.balance_view(),
        }));
    }

    pub(super) fn tell_payment(&self, id: LeaseId, delta: Msat, total: Msat) {
        let Some(session) = self.sessions.get(&id) else {
            return;
        };
        let role = session.role();
        let channel = self.payments.channel_in_use(role, session.peer);
        self.tell(Some(api::Event::Payment {
            role: super::words::role(role),
            lease: id.to_string(),
            channel: channel.map(|channel| channel.id).unwrap_or_default(),
            delta_msat: delta.msat(),
            paid_msat: total.msat(),
        }));
    }

    /// What opening a channel of `capacity` would cost now.
    pub(super) fn funding_fee(&mut self, capacity: Amount) -> Result<Amount, SpendError> {
        let feerate = self.payments.feerate();
        self.wallet
            .preview_channels(&[capacity], feerate)
            .map(|preview| preview.fee)
    }
}
