//! Coins and channels: received, sent, closed, and who waits to hear that the network has taken it.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use bitcoin::{FeeRate, Txid};
use bitmesh_wallet::chain::BroadcastError;
use bitmesh_wallet::channel::ProposalId;
use bitmesh_wallet::channel::closing::Waiting;
use bitmesh_wallet::channel::record::End;
use bitmesh_wallet::channel::split::CloseFailure;
use bitmesh_wallet::channel::tx::LifeCycle;
use bitmesh_wallet::keys::Role;
use bitmesh_wallet::onchain::{HistoryEntry, Payment, SpendError, Status as TxStatus, Value};
use rand::RngExt;
use tracing::debug;

use super::super::Driver;
use super::{Answer, Outcome};
use crate::control::api::{self, Reply};
use crate::control::error::resolve;
use crate::control::{ApiError, ErrorCode};
use crate::payments::{ChannelStage, ChannelView, PaymentsError, Share};

/// How long the chain source may take to say whether it takes a transaction.
const HANDING: Duration = Duration::from_secs(10);

/// What to know when the network does not take a transaction.
const NOTHING_LOST: &str = "nothing is lost: it is written down and offered again with every block; a \
                            higher fee rate may help";

/// Somebody waits to hear whether the network has taken a transaction.
#[derive(Debug)]
pub(in crate::driver) struct Handing {
    /// Those of which nothing is known yet.
    txids: BTreeSet<Txid>,
    answer: Answer,
    until: Instant,
    /// The answer, but for whether it was taken.
    reply: Handed,
}

/// Somebody waits for a channel to be closed together with the peer.
#[derive(Debug)]
pub(in crate::driver) struct Together {
    view: ChannelView,
    feerate: FeeRate,
    answer: Answer,
}

/// How a wish to close a channel goes on.
enum Begun {
    /// It was only asked what would come of it.
    Done(api::ChannelClosed),
    Alone(ChannelView, FeeRate),
    Together(ChannelView, FeeRate),
}

#[derive(Debug)]
pub(in crate::driver) enum Handed {
    Sent(api::Sent),
    Opened(api::ChannelsOpened),
    Closed(api::ChannelClosed),
    RolledOver(api::ChannelRolledOver),
    /// Says itself of each transaction whether it was taken.
    ClosedAll(api::ChannelsClosed),
}

impl Handed {
    fn reply(self, broadcast: bool) -> Reply {
        match self {
            Self::Sent(sent) => api::Sent { broadcast, ..sent }.into(),
            Self::Closed(closed) => api::ChannelClosed {
                broadcast,
                ..closed
            }
            .into(),
            Self::RolledOver(rolled) => api::ChannelRolledOver {
                broadcast,
                ..rolled
            }
            .into(),
            Self::ClosedAll(closed) => closed.into(),
            Self::Opened(opened) => api::ChannelsOpened {
                broadcast,
                ..opened
            }
            .into(),
        }
    }

    /// Notes what became of one transaction; `None` if that settles the whole answer.
    fn note(&mut self, txid: Txid, outcome: &Result<(), BroadcastError>) -> Option<()> {
        let Self::ClosedAll(closed) = self else {
            return None;
        };
        let txid = txid.to_string();
        let mut closes = closed.closes.iter_mut();
        if let Some(close) = closes.find(|close| close.txid.as_ref() == Some(&txid)) {
            close.broadcast = outcome.is_ok();
            if let Err(BroadcastError::Rejected(reason)) = outcome {
                close.problem = Some(api::Reason {
                    code: "refused".to_owned(),
                    message: reason.to_string(),
                    hint: Some(NOTHING_LOST.to_owned()),
                });
            }
        }
        Some(())
    }
}

impl Driver {
    /// A new wallet begins where the chain stands when it is first seen: what was paid to it in
    /// blocks before that would never be found, so until then it has no address.
    pub(super) fn receive_coins(&mut self) -> Outcome {
        if !self.follows_chain && self.wallet.tip().height == 0 {
            let chain = format!("chain.{}", self.config.chain.leads(self.network));
            return Err(ApiError::new(
                ErrorCode::Unhealthy,
                "this wallet is new and has not seen the chain yet, so coins sent to it now could be missed",
                format!("ask again in a moment; if it does not help, \"bitmesh status\" says whether {chain} answers"),
            )
            .retry_after_s(5));
        }
        let address = self
            .wallet
            .receive_address()
            .map_err(|error| ApiError::failure(error.to_string()))?;
        let uri = address.to_qr_uri();
        Ok(api::Address {
            address: address.to_string(),
            uri,
        }
        .into())
    }

    pub(in crate::driver) fn feerate_of(&self, asked: Option<u64>) -> FeeRate {
        match asked {
            Some(sat_per_kvb) => FeeRate::from_sat_per_kwu(sat_per_kvb.div_ceil(4)),
            None => self.payments.feerate(),
        }
    }

    /// Answers once it is known whether the network takes the transaction, if there is one.
    pub(in crate::driver) fn answer_handed(
        &mut self,
        made: Result<(Option<Txid>, Handed), ApiError>,
        answer: Answer,
    ) {
        match made {
            Ok((txid, reply)) => self.await_handing(txid.into_iter().collect(), reply, answer),
            Err(error) => {
                let _ = answer.send(Err(error));
            }
        }
    }

    fn await_handing(&mut self, txids: BTreeSet<Txid>, reply: Handed, answer: Answer) {
        if txids.is_empty() {
            let _ = answer.send(Ok(reply.reply(false)));
            return;
        }
        let now = self.clock.now();
        self.handing.push(Handing {
            txids,
            answer,
            until: now.checked_add(HANDING).unwrap_or(now),
            reply,
        });
    }

    /// The chain source has taken a transaction, or has not.
    pub(in crate::driver) fn handed(&mut self, txid: Txid, outcome: &Result<(), BroadcastError>) {
        let waiting = self.handing.extract_if(.., |it| {
            it.txids.remove(&txid)
                && (it.reply.note(txid, outcome).is_none() || it.txids.is_empty())
        });
        for Handing { answer, reply, .. } in waiting {
            let _ = answer.send(match outcome {
                _ if matches!(reply, Handed::ClosedAll(_)) => Ok(reply.reply(true)),
                Ok(()) => Ok(reply.reply(true)),
                Err(BroadcastError::Chain(_)) => Ok(reply.reply(false)),
                // The channels stand, and their funding is offered again with every block.
                Err(BroadcastError::Rejected(_)) if matches!(reply, Handed::Opened(_)) => {
                    Ok(reply.reply(false))
                }
                Err(BroadcastError::Rejected(reason)) => Err(ApiError::new(
                    ErrorCode::Refused,
                    format!("the network does not take transaction {txid}: {reason}"),
                    NOTHING_LOST,
                )
                .with("txid", txid.to_string())),
            });
        }
    }

    /// Answers those who have waited long enough: it is on its way as far as this node can see to it.
    pub(in crate::driver) fn settle_handing(&mut self, now: Instant) {
        for Handing { answer, reply, .. } in self.handing.extract_if(.., |it| it.until <= now) {
            let _ = answer.send(Ok(reply.reply(false)));
        }
    }

    pub(super) fn send_coins(
        &mut self,
        wanted: &api::SendCoins,
    ) -> Result<(Option<Txid>, api::Sent), ApiError> {
        let usage = |message: String| {
            ApiError::new(
                ErrorCode::Usage,
                message,
                "nothing was sent; see \"bitmesh wallet send --help\"",
            )
        };
        let to = self
            .wallet
            .parse_address(&wanted.address)
            .map_err(|error| usage(error.to_string()))?;
        let value = match (wanted.amount_sat, wanted.all) {
            (Some(sat), false) => Value::Exact(bitcoin::Amount::from_sat(sat)),
            (None, true) => Value::Everything,
            (Some(_), true) | (None, false) => {
                return Err(usage("say either an amount or all".to_owned()));
            }
        };
        let feerate = self.feerate_of(wanted.feerate_sat_per_kvb);
        let payment = Payment { to, value, feerate };
        let failed = |error: SpendError| match &error {
            SpendError::InsufficientFunds {
                needed, available, ..
            } => {
                let (needed, available) = (needed.to_sat(), available.to_sat());
                ApiError::new(
                    ErrorCode::InsufficientFunds,
                    error.to_string(),
                    "nothing was sent",
                )
                .with("needed_sat", needed)
                .with("available_sat", available)
            }
            SpendError::BelowDust { .. }
            | SpendError::AboveSupply { .. }
            | SpendError::FeerateTooHigh { .. }
            | SpendError::WrongNetwork
            | SpendError::TooLarge { .. } => usage(error.to_string()),
            SpendError::Build { .. } | SpendError::Sign(_) | SpendError::Changes(_) => {
                ApiError::failure(error.to_string())
            }
        };
        let (txid, preview) = if wanted.dry_run {
            (None, self.wallet.preview_send(&payment).map_err(failed)?)
        } else {
            let now = self.unix().secs();
            let (transaction, preview) = self.wallet.send(&payment, now).map_err(failed)?;
            self.broadcast(&transaction);
            (Some(transaction.compute_txid()), preview)
        };
        let sent = api::Sent {
            txid: txid.map(|txid| txid.to_string()),
            address: wanted.address.clone(),
            amount_sat: preview.value.to_sat(),
            fee_sat: preview.fee.to_sat(),
            feerate_sat_per_kvb: feerate.to_sat_per_kwu().saturating_mul(4),
            broadcast: false,
        };
        Ok((txid, sent))
    }

    pub(super) fn transactions(&self, limit: Option<u32>) -> api::Transactions {
        let channels = self.payments.channels();
        let limit = limit
            .and_then(|limit| usize::try_from(limit).ok())
            .unwrap_or(usize::MAX);
        let entries = self.wallet.history();
        let transactions = entries
            .iter()
            .take(limit)
            .map(|entry| transaction(entry, &channels));
        api::Transactions {
            transactions: transactions.collect(),
        }
    }

    pub(super) fn reveal_words(&self, is_confirmed: bool) -> Outcome {
        if !is_confirmed {
            return Err(ApiError::new(
                ErrorCode::NotAuthorised,
                "whoever reads the twelve words owns this wallet",
                "confirm that nobody looks over your shoulder",
            ));
        }
        if self.words_are_sealed {
            return Err(ApiError::new(
                ErrorCode::NotAuthorised,
                "the words of this node are under a passphrase, which this call does not ask for",
                "\"bitmesh wallet backup\" asks for it",
            ));
        }
        let words = self.keys.words();
        let words = words.split(' ').map(str::to_owned).collect();
        let birth_height = self.wallet.birthday().map_or(0, |block| block.height);
        Ok(api::Words {
            words,
            birth_height,
        }
        .into())
    }

    pub(super) fn list_channels(&self, all: bool) -> api::Channels {
        let is_over = |view: &ChannelView| {
            matches!(view.stage, ChannelStage::Closed | ChannelStage::Abandoned)
        };
        let channels = self.payments.channels();
        let shown = channels.iter().filter(|view| all || !is_over(view));
        api::Channels {
            channels: shown.map(|view| self.channel_view(view)).collect(),
        }
    }

    /// Closes a channel together with the peer, if that is there; else, or at once if that is wanted, as
    /// far as this side can alone.
    pub(super) fn close_channel_asked(&mut self, wanted: &api::CloseChannel, answer: Answer) {
        match self.begin_close(wanted) {
            Ok(Begun::Done(closed)) => {
                let _ = answer.send(Ok(closed.into()));
            }
            Ok(Begun::Alone(view, feerate)) => {
                let closed = self.close_alone(&view, feerate, None);
                self.answer_handed(closed, answer);
            }
            Ok(Begun::Together(view, feerate)) => {
                self.together.push(Together {
                    view,
                    feerate,
                    answer,
                });
                self.drain_payments();
            }
            Err(error) => {
                let _ = answer.send(Err(error));
            }
        }
    }

    fn begin_close(&mut self, wanted: &api::CloseChannel) -> Result<Begun, ApiError> {
        let view = self.find_channel(&wanted.channel)?;
        let feerate = self.feerate_of(wanted.feerate_sat_per_kvb);
        if wanted.dry_run {
            return would_close(&view, feerate, wanted.force).map(Begun::Done);
        }
        if wanted.force {
            return Ok(Begun::Alone(view, feerate));
        }
        let (seed, now) = (rand::rng().random(), self.clock.now());
        let begun = self
            .payments
            .close_together(view.proposal, feerate, seed, now);
        Ok(match begun {
            Ok(()) => Begun::Together(view, feerate),
            Err(error) => {
                debug!(channel = view.id, %error, "nothing to close together");
                Begun::Alone(view, feerate)
            }
        })
    }

    /// The fee rate that the operator wants for a close that is being made together.
    pub(in crate::driver) fn together_feerate(&self, channel: ProposalId) -> Option<FeeRate> {
        let wanted = self.together.iter().rev();
        let mut wanted = wanted.filter(|it| it.view.proposal == channel);
        wanted.next().map(|it| it.feerate)
    }

    /// An attempt to close together is over: those who wait for it are told, and if it came to nothing
    /// this side does what it can alone.
    pub(in crate::driver) fn together_over(
        &mut self,
        channel: ProposalId,
        outcome: Result<(), CloseFailure>,
    ) {
        let waiting = self
            .together
            .extract_if(.., |it| it.view.proposal == channel);
        if let Err(failure) = outcome {
            debug!(%channel, %failure, "the channel is not closed together");
        }
        for waits in waiting.collect::<Vec<_>>() {
            let closed = match outcome {
                Ok(()) => self.closed(&waits.view, None),
                Err(failure) => self.close_alone(&waits.view, waits.feerate, Some(failure)),
            };
            self.answer_handed(closed, waits.answer);
        }
    }

    fn close_alone(
        &mut self,
        view: &ChannelView,
        feerate: FeeRate,
        failure: Option<CloseFailure>,
    ) -> Result<(Option<Txid>, Handed), ApiError> {
        match view.role {
            Role::Payer => self.refund_channel(view, feerate, failure)?,
            Role::Payee => self
                .close_channel(view.proposal, Some(feerate))
                .map_err(|error| {
                    ApiError::new(
                        ErrorCode::Conflict,
                        error,
                        "nothing was broadcast; a channel is closed once it has paid more than its \
                         fee",
                    )
                })?,
        }
        self.drain_payments();
        self.closed(view, failure)
    }

    /// Buyer: takes back what a channel holds, as it also happens by itself.
    pub(super) fn refund_channel_asked(
        &mut self,
        wanted: &api::RefundChannel,
    ) -> Result<(Option<Txid>, Handed), ApiError> {
        let view = self.find_channel(&wanted.channel)?;
        let feerate = self.feerate_of(wanted.feerate_sat_per_kvb);
        if view.role == Role::Payee {
            return Err(ApiError::new(
                ErrorCode::Conflict,
                "only the buyer of a channel takes it back; this node is paid on it",
                "take what was paid with \"bitmesh channels close\"; nothing was changed",
            ));
        }
        if wanted.dry_run {
            let refund = would_close(&view, feerate, true)?;
            return Ok((None, Handed::Closed(refund)));
        }
        self.refund_channel(&view, feerate, None)?;
        self.drain_payments();
        self.closed(&view, None)
    }

    /// `failure` is why the channel was not closed together, if that was tried before.
    fn refund_channel(
        &mut self,
        view: &ChannelView,
        feerate: FeeRate,
        failure: Option<CloseFailure>,
    ) -> Result<(), ApiError> {
        let now = self.clock.now();
        let refund = self.payments.refund(view.proposal, feerate, now);
        let height = self.chain_tip.map_or(0, |tip| tip.block.height);
        let left = view.expiry.saturating_sub(height);
        refund.map_err(|error| {
            let tried = failure.map_or_else(String::new, |failure| {
                format!("the channel was not closed together: {failure}; ")
            });
            let message = match left {
                0 => format!("{tried}the refund is not made: {error}"),
                _ => format!(
                    "{tried}the refund is possible from height {}, in {left} blocks; nothing was \
                     broadcast",
                    view.expiry
                ),
            };
            ApiError::new(
                ErrorCode::Conflict,
                message,
                "nothing is lost: \"bitmesh channels close\" ends it while the seller is connected; the \
                 seller can also close alone at any time, and from that height on this node takes \
                 the rest back by itself",
            )
            .with("expiry_height", view.expiry)
            .with("in_blocks", left)
        })
    }

    fn closed(
        &self,
        view: &ChannelView,
        failure: Option<CloseFailure>,
    ) -> Result<(Option<Txid>, Handed), ApiError> {
        let ending = self.payments.ending_of(view.proposal).ok_or_else(gone)?;
        let how = match (ending.is_together, view.role) {
            (true, _) => api::ChannelEnd::Together,
            (false, Role::Payee) => api::ChannelEnd::Alone,
            (false, Role::Payer) => api::ChannelEnd::Refund,
        };
        let closed = api::ChannelClosed {
            channel: view.id.clone(),
            how,
            because: failure.map(|failure| failure.to_string()),
            txid: Some(ending.txid.to_string()),
            received_sat: ending.received.to_sat(),
            fee_sat: ending.fee.to_sat(),
            broadcast: false,
        };
        Ok((Some(ending.txid), Handed::Closed(closed)))
    }

    pub(super) fn find_channel(&self, wanted: &str) -> Result<ChannelView, ApiError> {
        let channels = self.payments.channels();
        let ids = channels.iter().map(|view| view.id.as_str());
        let channel = resolve("channel", ids, wanted)?.to_owned();
        let mut channels = channels.into_iter();
        channels
            .find(|view| view.id == channel)
            .ok_or_else(|| ApiError::not_found("channel", wanted))
    }

    /// Seller: closes all channels that are worth it, as many as fit in one transaction.
    pub(super) fn close_all_channels(&mut self, wanted: &api::CloseAllChannels, answer: Answer) {
        let feerate = self.feerate_of(wanted.feerate_sat_per_kvb);
        let plan = self.payments.plan_to_close_all(feerate);
        let mut closed = api::ChannelsClosed {
            closes: Vec::new(),
            left_open: plan.waiting.iter().map(|it| self.left_open(it)).collect(),
        };
        let mut txids = BTreeSet::new();
        for close in &plan.closes {
            match self.close_some(&close.members, feerate, wanted.dry_run) {
                Ok((txid, close)) => {
                    txids.extend(txid);
                    closed.closes.push(close);
                }
                // Closes that were made before stand: say what was done.
                Err(error) if !closed.closes.is_empty() => {
                    tracing::error!(%error, "some channels were not closed with the others");
                    break;
                }
                Err(error) => {
                    let _ = answer.send(Err(error));
                    return;
                }
            }
        }
        self.await_handing(txids, Handed::ClosedAll(closed), answer);
        self.drain_payments();
    }

    fn close_some(
        &mut self,
        members: &[ProposalId],
        feerate: FeeRate,
        dry_run: bool,
    ) -> Result<(Option<Txid>, api::BatchClose), ApiError> {
        // As long as it is not signed for, any script of the kind that the wallet gives out will do.
        let payout = match dry_run {
            true => bitcoin::ScriptBuf::from_bytes([&[0x51, 0x20][..], &[0; 32]].concat()),
            false => self
                .wallet
                .change_script()
                .map_err(|error| ApiError::failure(error.to_string()))?,
        };
        let failed = |error: PaymentsError| {
            ApiError::new(
                ErrorCode::Conflict,
                error.to_string(),
                "nothing was broadcast; close channels one by one to see which is in the way",
            )
        };
        let (tx, shares) = self
            .payments
            .draft_close(members, &payout, feerate)
            .map_err(failed)?;
        let channels: Vec<_> = shares
            .iter()
            .map(|share| self.closed_share(share))
            .collect();
        let close = api::BatchClose {
            txid: (!dry_run).then(|| tx.compute_txid().to_string()),
            vbytes: tx.weight().to_vbytes_ceil(),
            received_sat: channels.iter().map(|share| share.received_sat).sum(),
            fee_sat: channels.iter().map(|share| share.fee_sat).sum(),
            broadcast: false,
            problem: None,
            channels,
        };
        if dry_run {
            return Ok((None, close));
        }
        let now = self.clock.now();
        self.payments
            .close_in_batch(members, payout, feerate, now)
            .map_err(failed)?;
        Ok((Some(tx.compute_txid()), close))
    }

    fn closed_share(&self, share: &Share) -> api::ClosedShare {
        let view = self.payments.channel(share.channel);
        api::ClosedShare {
            ends_lease: self.payments.ends_lease(share.channel),
            channel: view.as_ref().map(|it| it.id.clone()).unwrap_or_default(),
            peer: view.map(|it| it.peer.to_string()).unwrap_or_default(),
            received_sat: share.received.to_sat(),
            fee_sat: share.fee.to_sat(),
        }
    }

    fn left_open(&self, waiting: &Waiting) -> api::LeftOpen {
        let view = self.payments.channel(waiting.channel);
        api::LeftOpen {
            channel: view.map(|view| view.id).unwrap_or_default(),
            paid_sat: waiting.total.to_sat(),
            fee_sat: waiting.fee.to_sat(),
        }
    }
}

/// What ending a channel would bring, by the sizes of its transactions: together with the peer, or
/// alone if that is wanted.
fn would_close(
    view: &ChannelView,
    feerate: FeeRate,
    alone: bool,
) -> Result<api::ChannelClosed, ApiError> {
    let life = LifeCycle::estimate(feerate).ok_or_else(gone)?;
    let zero = bitcoin::Amount::ZERO;
    let is_unpaid = view.paid == zero;
    let rest = view.capacity.checked_sub(view.paid).unwrap_or(zero);
    let (how, held, fee) = match (view.role, alone) {
        (Role::Payer, true) => (api::ChannelEnd::Refund, view.capacity, life.refund),
        (Role::Payer, false) => {
            let fee = if is_unpaid {
                life.together_unpaid
            } else {
                zero
            };
            (api::ChannelEnd::Together, rest, fee)
        }
        (Role::Payee, true) => (api::ChannelEnd::Alone, view.paid, life.close),
        (Role::Payee, false) => {
            let fee = if is_unpaid { zero } else { life.together };
            (api::ChannelEnd::Together, view.paid, fee)
        }
    };
    let received = held.checked_sub(fee).unwrap_or(zero);
    Ok(api::ChannelClosed {
        channel: view.id.clone(),
        how,
        because: None,
        txid: None,
        received_sat: received.to_sat(),
        fee_sat: fee.to_sat(),
        broadcast: false,
    })
}

fn gone() -> ApiError {
    ApiError::failure("the channel has nothing to end with")
}

fn transaction(entry: &HistoryEntry, channels: &[ChannelView]) -> api::Transaction {
    // A rollover pays out and funds: to the seller it is the one, to the buyer the other.
    let is_funding = |view: &&ChannelView| {
        view.role == Role::Payer && view.funding.is_some_and(|o| o.txid == entry.txid)
    };
    let is_ending = |view: &&ChannelView| view.settlement.is_some_and(|s| s.txid == entry.txid);
    let kind = if channels.iter().any(|view| is_funding(&view)) {
        api::TransactionKind::Funding
    } else if let Some(view) = channels.iter().find(is_ending) {
        match view.settlement.map(|settlement| settlement.end) {
            Some(End::Refund) => api::TransactionKind::Refund,
            Some(End::Commitment | End::Together) | None => api::TransactionKind::Settlement,
        }
    } else if entry.net_sat() >= 0 {
        api::TransactionKind::Received
    } else {
        api::TransactionKind::Sent
    };
    let (confirmations, height, at) = match entry.status {
        TxStatus::Confirmed {
            height,
            time,
            confirmations,
        } => (confirmations, Some(height), Some(time)),
        TxStatus::Pending { since } => (0, None, since),
    };
    api::Transaction {
        txid: entry.txid.to_string(),
        kind,
        delta_sat: entry.net_sat(),
        fee_sat: entry.fee.map(bitcoin::Amount::to_sat),
        confirmations,
        height,
        at: at.map(api::Timestamp::from_unix),
    }
}
