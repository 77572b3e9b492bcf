//! Coins and channels: received, sent, closed, and who waits to hear that the network has taken it.

use std::time::{Duration, Instant};

use bitcoin::{FeeRate, Txid};
use bitmesh_wallet::chain::BroadcastError;
use bitmesh_wallet::keys::Role;
use bitmesh_wallet::onchain::{HistoryEntry, Payment, SpendError, Status as TxStatus, Value};

use super::super::Driver;
use super::{Answer, Outcome};
use crate::control::api::{self, Reply};
use crate::control::error::resolve;
use crate::control::{ApiError, ErrorCode};
use crate::payments::{ChannelStage, ChannelView};

/// How long the chain source may take to say whether it takes a transaction.
const HANDING: Duration = Duration::from_secs(10);

/// Somebody waits to hear whether the network has taken a transaction.
#[derive(Debug)]
pub(in crate::driver) struct Handing {
    txid: Txid,
    answer: Answer,
    until: Instant,
    /// The answer, but for whether it was taken.
    reply: Handed,
}

#[derive(Debug)]
pub(super) enum Handed {
    Sent(api::Sent),
    Closed(api::ChannelClosed),
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
        }
    }
}

impl Driver {
    pub(super) fn receive_coins(&mut self) -> Outcome {
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

    pub(super) fn feerate_of(&self, asked: Option<u64>) -> FeeRate {
        match asked {
            Some(sat_per_kvb) => FeeRate::from_sat_per_kwu(sat_per_kvb.div_ceil(4)),
            None => self.payments.feerate(),
        }
    }

    /// Answers once it is known whether the network takes the transaction, if there is one.
    pub(super) fn answer_handed(
        &mut self,
        made: Result<(Option<Txid>, Handed), ApiError>,
        answer: Answer,
    ) {
        match made {
            Ok((Some(txid), reply)) => {
                let now = self.clock.now();
                self.handing.push(Handing {
                    txid,
                    answer,
                    until: now.checked_add(HANDING).unwrap_or(now),
                    reply,
                });
            }
            Ok((None, reply)) => {
                let _ = answer.send(Ok(reply.reply(false)));
            }
            Err(error) => {
                let _ = answer.send(Err(error));
            }
        }
    }

    /// The chain source has taken a transaction, or has not.
    pub(in crate::driver) fn handed(&mut self, txid: Txid, outcome: &Result<(), BroadcastError>) {
        let waiting = self.handing.extract_if(.., |it| it.txid == txid);
        for Handing { answer, reply, .. } in waiting {
            let _ = answer.send(match outcome {
                Ok(()) => Ok(reply.reply(true)),
                Err(BroadcastError::Chain(_)) => Ok(reply.reply(false)),
                Err(BroadcastError::Rejected(reason)) => Err(ApiError::new(
                    ErrorCode::Refused,
                    format!("the network does not take transaction {txid}: {reason}"),
                    "nothing is lost: it is written down and offered again with every block; a \
                     higher fee rate may help",
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

    pub(super) fn close_channel_asked(
        &mut self,
        wanted: &api::CloseChannel,
    ) -> Result<(Option<Txid>, api::ChannelClosed), ApiError> {
        let channels = self.payments.channels();
        let ids = channels.iter().map(|view| view.id.as_str());
        let channel = resolve("channel", ids, &wanted.channel)?.to_owned();
        let view = channels
            .iter()
            .find(|view| view.id == channel)
            .ok_or_else(|| ApiError::not_found("channel", &wanted.channel))?;
        let feerate = self.feerate_of(wanted.feerate_sat_per_kvb);
        if wanted.dry_run {
            return Ok((None, would_close(view, feerate)?));
        }
        let conflict =
            |message: String, hint: &str| ApiError::new(ErrorCode::Conflict, message, hint);
        match view.role {
            Role::Payer => {
                let now = self.clock.now();
                let refund = self.payments.refund(view.proposal, feerate, now);
                refund.map_err(|error| {
                    conflict(
                        format!("the refund is {error}"),
                        "the seller can close it at any time; from the expiry on this node takes \
                         the rest back by itself",
                    )
                    .with("expiry_height", view.expiry)
                })?;
            }
            Role::Payee => self
                .close_channel(view.proposal, Some(feerate))
                .map_err(|error| {
                    conflict(
                        error,
                        "nothing was broadcast; a channel is closed once it has paid more than its \
                         fee",
                    )
                })?,
        }
        self.drain_payments();
        let (txid, received, fee) = self.payments.ending_of(view.proposal).ok_or_else(gone)?;
        let closed = api::ChannelClosed {
            channel,
            txid: Some(txid.to_string()),
            received_sat: received.to_sat(),
            fee_sat: fee.to_sat(),
            broadcast: false,
        };
        Ok((Some(txid), closed))
    }
}

/// What ending a channel alone would bring, by the sizes of its transactions.
fn would_close(view: &ChannelView, feerate: FeeRate) -> Result<api::ChannelClosed, ApiError> {
    let life = bitmesh_wallet::channel::tx::LifeCycle::estimate(feerate).ok_or_else(gone)?;
    let (held, fee) = match view.role {
        Role::Payer => (view.capacity, life.refund),
        Role::Payee => (view.paid, life.close),
    };
    let received = held.checked_sub(fee).unwrap_or(bitcoin::Amount::ZERO);
    Ok(api::ChannelClosed {
        channel: view.id.clone(),
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
    let is_funding = |view: &&ChannelView| view.funding.is_some_and(|o| o.txid == entry.txid);
    let is_ending = |view: &&ChannelView| view.settlement.is_some_and(|s| s.txid == entry.txid);
    let kind = if channels.iter().any(|view| is_funding(&view)) {
        api::TransactionKind::Funding
    } else if let Some(view) = channels.iter().find(is_ending) {
        match view.settlement.map(|settlement| settlement.end) {
            Some(bitmesh_wallet::channel::record::End::Refund) => api::TransactionKind::Refund,
            Some(bitmesh_wallet::channel::record::End::Commitment) | None => {
                api::TransactionKind::Settlement
            }
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
