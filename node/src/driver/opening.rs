//! Making channels: for a lease, further ones while it runs, and ahead of any, several in one funding.

use std::collections::BTreeSet;

use bitcoin::{Amount, FeeRate, Txid};
use bitmesh_market::identity::NodeId;
use bitmesh_market::lease::Lease;
use bitmesh_market::units::Msat;
use bitmesh_wallet::channel::ProposalId;
use bitmesh_wallet::channel::tx::LifeCycle;
use bitmesh_wallet::onchain::Preview;
use rand::RngExt;
use tracing::{debug, error, info, warn};

use super::Driver;
use super::commands::{Answer, Handed};
use crate::control::api;
use crate::control::error::resolve;
use crate::control::{ApiError, ErrorCode};
use crate::mesh::Command;
use crate::payments::{LeftOut, MAX_TOGETHER, PaymentsError, Terms};
use crate::viability::{self, LOW_PPM};

/// How many times its own estimate of a first payment a buyer is ready to pay: views of the fee rate
/// differ, and it moves between two looks.
const FIRST_TOLERANCE: u64 = 2;

/// Channels that somebody at a prompt waits for.
#[derive(Debug)]
pub(super) struct Opening {
    id: u64,
    capacity: Amount,
    feerate: FeeRate,
    answer: Answer,
}

/// What somebody at a prompt wants.
struct Wanted {
    sellers: BTreeSet<NodeId>,
    capacity: Amount,
    feerate: FeeRate,
    max_first: Amount,
    dry_run: bool,
}

impl Driver {
    // For a lease.

    pub(super) fn open_channel(&mut self, lease: &Lease, cost: &api::Cost) -> Result<(), ApiError> {
        let max_first = Amount::from_sat(lease.min_first().sat_ceil());
        let capacity = Amount::from_sat(cost.capacity_sat);
        match self.propose_channel(lease.seller(), capacity, max_first) {
            // One that is being made already serves as well. If it is too small, it is topped up.
            Ok(_) | Err(OpenError::Payments(PaymentsError::Opening)) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn propose_channel(
        &mut self,
        seller: NodeId,
        capacity: Amount,
        max_first: Amount,
    ) -> Result<ProposalId, OpenError> {
        let terms = self.terms_of_channel(seller, capacity, max_first)?;
        let now = self.clock.now();
        Ok(self.payments.open(terms, now)?)
    }

    fn terms_of_channel(
        &mut self,
        seller: NodeId,
        capacity: Amount,
        max_first: Amount,
    ) -> Result<Terms, OpenError> {
        let change_script = self.wallet.change_script();
        Ok(Terms {
            seller,
            capacity,
            max_first,
            change_script: change_script.map_err(|error| OpenError::Wallet(error.to_string()))?,
            nonce: rand::rng().random(),
        })
    }

    /// The highest first payment, where nobody has said one.
    pub(super) fn usual_max_first(&self) -> Msat {
        let own = self.payments.first_payment().msat();
        Msat::from_msat(own.saturating_mul(FIRST_TOLERANCE))
    }

    /// The lease with this seller costs more than its channels hold: opens a further one.
    pub(super) fn top_up_due(&mut self, seller: NodeId, lacking: Amount) {
        let now = self.clock.now();
        let max_first = Amount::from_sat(self.usual_max_first().sat_ceil());
        let opened = match self.affordable(lacking, lacking) {
            Ok((capacity, _)) => self
                .propose_channel(seller, capacity, max_first)
                .map(|_| capacity)
                .map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        match opened {
            Ok(capacity) => {
                info!(%seller, %capacity, "the channel is half used up; opening the next")
            }
            Err(error) => {
                warn!(%seller, error, "no further channel can be opened for the lease");
                self.payments.top_up_failed(seller, now);
            }
        }
    }

    // Ahead of any lease.

    pub(super) fn open_channels(&mut self, wanted: &api::OpenChannels, answer: Answer) {
        let wanted = self.sellers_named(&wanted.peers).and_then(|sellers| {
            let capacity = wanted
                .capacity_sat
                .unwrap_or(self.config.payments.capacity_sat);
            Ok(Wanted {
                sellers,
                capacity: self.checked_capacity(capacity)?,
                feerate: self.feerate_of(wanted.feerate_sat_per_kvb),
                max_first: self.max_first_of(wanted.max_first_msat),
                dry_run: wanted.dry_run,
            })
        });
        self.begin_opening(wanted, answer);
    }

    pub(super) fn top_up_channel(&mut self, wanted: &api::TopUpChannel, answer: Answer) {
        let peers = std::slice::from_ref(&wanted.peer);
        let wanted = self.sellers_named(peers).and_then(|sellers| {
            let has_channel = |seller: &NodeId| self.payments.has_channel(*seller);
            if !sellers.iter().all(has_channel) {
                return Err(ApiError::new(
                    ErrorCode::Conflict,
                    "there is no channel with this seller to add to",
                    "nothing was opened; \"bitmesh channels open\" opens a first one",
                ));
            }
            Ok(Wanted {
                sellers,
                capacity: self.checked_capacity(wanted.amount_sat)?,
                feerate: self.feerate_of(wanted.feerate_sat_per_kvb),
                max_first: self.max_first_of(wanted.max_first_msat),
                dry_run: wanted.dry_run,
            })
        });
        self.begin_opening(wanted, answer);
    }

    fn max_first_of(&self, asked_msat: Option<u64>) -> Amount {
        let most = asked_msat.map_or_else(|| self.usual_max_first(), Msat::from_msat);
        Amount::from_sat(most.sat_ceil())
    }

    fn checked_capacity(&self, sat: u64) -> Result<Amount, ApiError> {
        let least = super::buying::smallest_channel().to_sat();
        let most = self.config.payments.max_capacity_sat;
        if (least..=most).contains(&sat) {
            return Ok(Amount::from_sat(sat));
        }
        Err(ApiError::new(
            ErrorCode::Usage,
            format!("a channel of {sat} sat: it has to hold {least} to {most} sat"),
            "nothing was opened; payments.max_capacity_sat is the upper limit",
        ))
    }

    /// The sellers that somebody named, by their ids or the beginnings of ids that this node knows.
    fn sellers_named(&self, names: &[String]) -> Result<BTreeSet<NodeId>, ApiError> {
        let known: BTreeSet<NodeId> = self
            .book
            .asks()
            .map(|ask| ask.seller())
            .chain(self.payments.sellers())
            .chain(self.connected.keys().copied())
            .filter(|node| *node != self.node)
            .collect();
        let ids: Vec<_> = known.iter().map(ToString::to_string).collect();
        let mut sellers = BTreeSet::new();
        for name in names {
            let id = match name.parse::<NodeId>() {
                Ok(id) => id,
                Err(_) => resolve("peer", ids.iter().map(String::as_str), name)?
                    .parse()
                    .map_err(|_| ApiError::not_found("peer", name))?,
            };
            if id == self.node {
                return Err(ApiError::new(
                    ErrorCode::Usage,
                    "a node opens no channel to itself",
                    "nothing was opened; name sellers that \"bitmesh offers\" lists",
                ));
            }
            sellers.insert(id);
        }
        match sellers.len() {
            0 => Err(ApiError::new(
                ErrorCode::Usage,
                "no seller is named",
                "name sellers that \"bitmesh offers\" lists",
            )),
            named if named > MAX_TOGETHER => Err(ApiError::new(
                ErrorCode::Usage,
                format!(
                    "{named} sellers: one transaction opens channels to {MAX_TOGETHER} at most"
                ),
                "nothing was opened; open some of them first, the others afterwards",
            )),
            _ => Ok(sellers),
        }
    }

    fn begin_opening(&mut self, wanted: Result<Wanted, ApiError>, answer: Answer) {
        let begun = wanted.and_then(|wanted| {
            let preview = self.preview_opening(&wanted)?;
            if wanted.dry_run {
                let plan = self.planned(&wanted, preview);
                return Ok((wanted, Err(plan)));
            }
            let id = self.propose_together(&wanted)?;
            Ok((wanted, Ok(id)))
        });
        match begun {
            Ok((wanted, Ok(id))) => self.openings.push(Opening {
                id,
                capacity: wanted.capacity,
                feerate: wanted.feerate,
                answer,
            }),
            Ok((_, Err(plan))) => {
                let _ = answer.send(Ok(plan.into()));
            }
            Err(error) => {
                let _ = answer.send(Err(error));
            }
        }
        self.drain_payments();
    }

    fn preview_opening(&mut self, wanted: &Wanted) -> Result<Preview, ApiError> {
        for seller in &wanted.sellers {
            self.payments
                .may_open(*seller)
                .map_err(|error| open_failed(&error))?;
        }
        let capacities = vec![wanted.capacity; wanted.sellers.len()];
        let preview = self.wallet.preview_channels(&capacities, wanted.feerate);
        preview.map_err(|error| {
            let all = capacities.iter().copied().sum();
            self.cannot_fund(&error, all)
        })
    }

    fn propose_together(&mut self, wanted: &Wanted) -> Result<u64, ApiError> {
        if !self.payments.knows_height() {
            return Err(open_failed(&PaymentsError::NoTip));
        }
        for seller in &wanted.sellers {
            if self.connected.contains_key(seller) {
                continue;
            }
            let mut asks = self.book.asks().filter(|ask| ask.seller() == *seller);
            let addresses = asks.find_map(|ask| ask.terms().addresses.clone());
            match addresses {
                Some(addresses) => self.dial_seller(*seller, Some(addresses)),
                None => self.mesh_do(Command::Connect(*seller)),
            }
        }
        let mut terms = Vec::new();
        for seller in &wanted.sellers {
            let one = self.terms_of_channel(*seller, wanted.capacity, wanted.max_first);
            terms.push(one.map_err(ApiError::from)?);
        }
        let now = self.clock.now();
        let opened = self.payments.open_together(terms, now);
        opened.map_err(|error| open_failed(&error))
    }

    /// All sellers of an opening have answered, or have not in time: one transaction for those that
    /// agreed.
    pub(super) fn fund_together(&mut self, id: u64) {
        let now = self.clock.now();
        let members = self.payments.take_opening(id);
        let place = self.openings.iter().position(|it| it.id == id);
        let opening = place.map(|place| self.openings.swap_remove(place));
        let agreed: Vec<_> = members
            .iter()
            .filter(|(_, _, left_out)| left_out.is_none())
            .map(|(channel, seller, _)| (*channel, *seller))
            .collect();
        let left_out: Vec<_> = members
            .iter()
            .filter_map(|(_, seller, why)| Some(left_out_view(*seller, (*why)?)))
            .collect();
        // Whoever has gone away before anything was signed is not made to pay.
        let opening = opening.filter(|opening| !opening.answer.is_closed());
        let funded = match &opening {
            Some(opening) => self.make_funding(&agreed, opening, left_out),
            None => Err(ApiError::failure(
                "nobody waits for these channels any more",
            )),
        };
        if let Err(error) = &funded {
            debug!(%error, "channels are not opened");
            for (channel, _) in &agreed {
                self.payments.funding_failed(*channel, now);
            }
        }
        if let Some(opening) = opening {
            let funded = funded.map(|(txid, opened)| (Some(txid), Handed::Opened(opened)));
            self.answer_handed(funded, opening.answer);
        }
    }

    fn make_funding(
        &mut self,
        agreed: &[(ProposalId, NodeId)],
        opening: &Opening,
        left_out: Vec<api::NotOpened>,
    ) -> Result<(Txid, api::ChannelsOpened), ApiError> {
        if agreed.is_empty() {
            return Err(nobody_agreed(&left_out));
        }
        let now = self.clock.now();
        let contracts: Option<Vec<_>> = agreed
            .iter()
            .map(|(channel, _)| self.payments.contract(*channel))
            .collect();
        let contracts = contracts.ok_or_else(|| ApiError::failure("a channel is gone"))?;
        let firsts: Vec<_> = contracts.iter().map(|it| it.accept().min_first).collect();
        let made = self.wallet.fund_channels(&contracts, opening.feerate);
        let made = made.map_err(|error| {
            let all = agreed.iter().map(|_| opening.capacity).sum();
            self.cannot_fund(&error, all)
        })?;
        let channels: Vec<_> = agreed.iter().map(|(channel, _)| *channel).collect();
        let (tx, fee) = (&made.transaction, made.preview.fee);
        if let Err(error) = self.payments.funded_together(&channels, tx, fee, now) {
            error!(%error, "the wallet's funding does not fund the channels");
            self.wallet.release(tx);
            return Err(ApiError::failure(error.to_string()));
        }
        let mut opened = self.figures(
            opening.capacity,
            opening.feerate,
            made.preview,
            agreed.len(),
        );
        opened.txid = Some(tx.compute_txid().to_string());
        opened.left_out = left_out;
        for (((channel, seller), first), traced) in agreed.iter().zip(firsts).zip(&made.traced) {
            let view = self.payments.channel(*channel);
            opened.channels.push(api::OpenedChannel {
                peer: seller.to_string(),
                channel: view.as_ref().map(|view| view.id.clone()),
                capacity_sat: opening.capacity.to_sat(),
                funding_fee_sat: view.map_or(0, |view| view.fees.to_sat()),
                first_sat: Some(first.to_sat()),
                found_by_words: *traced,
            });
        }
        Ok((tx.compute_txid(), opened))
    }

    /// What opening would come to.
    fn planned(&self, wanted: &Wanted, preview: Preview) -> api::ChannelsOpened {
        let count = wanted.sellers.len();
        let mut opened = self.figures(wanted.capacity, wanted.feerate, preview, count);
        let shares = u64::try_from(count).unwrap_or(u64::MAX).max(1);
        let channels = wanted.sellers.iter().enumerate();
        opened.channels = channels
            .map(|(index, seller)| api::OpenedChannel {
                peer: seller.to_string(),
                channel: None,
                capacity_sat: wanted.capacity.to_sat(),
                funding_fee_sat: preview.fee.to_sat().div_ceil(shares),
                first_sat: None,
                found_by_words: index < preview.inputs,
            })
            .collect();
        opened
    }

    fn figures(
        &self,
        capacity: Amount,
        feerate: FeeRate,
        preview: Preview,
        count: usize,
    ) -> api::ChannelsOpened {
        let count = u64::try_from(count).unwrap_or(u64::MAX);
        let close = LifeCycle::estimate(feerate).map_or(Amount::ZERO, |life| life.close);
        let closes = close.checked_mul(count).unwrap_or(Amount::MAX_MONEY);
        let fees = preview.fee.checked_add(closes).unwrap_or(Amount::MAX_MONEY);
        let capacity_sat = capacity.to_sat().saturating_mul(count);
        let all = Msat::from_sat(capacity_sat).unwrap_or(Msat::MAX);
        api::ChannelsOpened {
            txid: None,
            vbytes: preview.vbytes,
            capacity_sat,
            funding_fee_sat: preview.fee.to_sat(),
            close_fee_sat: close.to_sat(),
            max_first_sat: self.usual_max_first().sat_ceil(),
            feerate_sat_per_kvb: feerate.to_sat_per_kwu().saturating_mul(4),
            fee_share_ppm: viability::share_ppm(fees, all),
            turnover_sat: viability::turnover(fees, LOW_PPM),
            broadcast: false,
            channels: Vec::new(),
            left_out: Vec::new(),
        }
    }
}

/// Why a channel is not proposed.
#[derive(Debug, thiserror::Error)]
enum OpenError {
    #[error("{0}")]
    Wallet(String),
    #[error(transparent)]
    Payments(#[from] PaymentsError),
}

impl From<OpenError> for ApiError {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Wallet(error) => Self::failure(error),
            OpenError::Payments(error) => open_failed(&error),
        }
    }
}

fn open_failed(error: &PaymentsError) -> ApiError {
    ApiError::new(
        ErrorCode::Conflict,
        format!("no channel can be opened: {error}"),
        match error {
            PaymentsError::Opening => {
                "nothing was opened; wait a moment, \"bitmesh channels\" shows it"
            }
            PaymentsError::TooMany => {
                "nothing was opened; close what is used up with \"bitmesh channels close\""
            }
            _ => "nothing was opened; \"bitmesh status\" says how far the chain is",
        },
    )
}

fn left_out_view(seller: NodeId, why: LeftOut) -> api::NotOpened {
    let (code, message, hint) = match why {
        LeftOut::Refused(code) => (
            "refused",
            format!("it refused: {code}"),
            "see what it offers with \"bitmesh offers\", or try again later",
        ),
        LeftOut::First(first) => (
            "first_payment",
            format!("it asks for a first payment of {} sat", first.to_sat()),
            "it is credit, not a fee; --max-first says how much you agree to",
        ),
        LeftOut::Silent => (
            "no_answer",
            "it did not answer within 15 s".to_owned(),
            "see whether it is there with \"bitmesh peers\"",
        ),
        LeftOut::Nonsense => (
            "bad_answer",
            "its answer does not fit".to_owned(),
            "it may run another version",
        ),
    };
    api::NotOpened {
        peer: seller.to_string(),
        reason: api::Reason {
            code: code.to_owned(),
            message,
            hint: Some(hint.to_owned()),
        },
    }
}

fn nobody_agreed(left_out: &[api::NotOpened]) -> ApiError {
    let why: Vec<_> = left_out
        .iter()
        .map(|it| format!("{}: {}", it.peer, it.reason.message))
        .collect();
    let hint = left_out.iter().find_map(|it| it.reason.hint.clone());
    ApiError::new(
        ErrorCode::Refused,
        format!("no channel was opened: {}", why.join("; ")),
        format!("nothing was spent; {}", hint.unwrap_or_default()),
    )
}
