//! Drawing up the accounts of a network: asking every node and the chain.

use bitcoin::{Amount, OutPoint, Transaction, Txid};
use bitmesh_node::control::api::{
    Channel, ChannelRole, EarningsChannel, GetBalance, GetEarnings, Lease, ListChannels,
    ListLeases, Role,
};
use thiserror::Error;

use super::{Books, ChannelBook, LeaseBook, Side, WalletBook};
use crate::{
    chain::{Chain, ChainError},
    network::{Network, NetworkError, Node, NodeError},
};

/// Accounts could not be drawn up.
#[derive(Debug, Error)]
pub enum AuditError {
    /// A node did not answer.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The chain did not answer.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// A node does not see the chain.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// A node's answer lacks something that it should have.
    #[error("{node} does not say {what} of {of}")]
    Missing {
        /// The node.
        node: String,
        /// What is missing.
        what: &'static str,
        /// Of which lease or channel.
        of: String,
    },
}

/// What every wallet of a network held before the first trade, in the order of the nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opening(Vec<u64>);

/// Notes what every wallet holds.
///
/// # Errors
///
/// Returns an error if a node does not answer.
pub async fn open(network: &Network) -> Result<Opening, AuditError> {
    let mut held = Vec::new();
    for node in network.nodes() {
        held.push(node.ask(GetBalance {}).await?.confirmed_sat);
    }
    Ok(Opening(held))
}

/// Draws up the accounts of every lease and every closed channel of a network.
///
/// `delivered` says for leases how many bytes arrived behind the buyer's proxy. A node that was added
/// after `opening` counts as having held nothing.
///
/// # Errors
///
/// Returns an error if a node or the chain does not answer, or if what one side of a trade knows the
/// other side has never heard of. Figures that do not agree are no error: [`Books::check`] finds them.
pub async fn audit(
    network: &Network,
    opening: &Opening,
    delivered: &[(&str, u64)],
) -> Result<Books, AuditError> {
    let mut views = Vec::new();
    for node in network.nodes() {
        network.until_seen(node).await?;
        views.push(View {
            node,
            leases: node
                .ask(ListLeases {
                    all: true,
                    role: None,
                })
                .await?
                .leases,
            channels: node.ask(ListChannels { all: true }).await?.channels,
            earnings: node.ask(GetEarnings::default()).await?.channels,
        });
    }
    let mut books = Books::default();
    for buyer in &views {
        for lease in buyer
            .leases
            .iter()
            .filter(|lease| lease.role == Role::Buyer)
        {
            let arrived = delivered.iter().find(|(id, _)| *id == lease.id);
            books.leases.push(lease_book(
                &views,
                buyer,
                lease,
                arrived.map_or(0, |it| it.1),
            )?);
        }
        for channel in buyer
            .channels
            .iter()
            .filter(|channel| channel.role == ChannelRole::Payer)
        {
            books
                .channels
                .push(channel_book(&views, buyer, channel, network.chain())?);
        }
    }
    let before = opening.0.iter().copied().chain(std::iter::repeat(0));
    for (node, before_sat) in network.nodes().iter().zip(before) {
        let after = node.ask(GetBalance {}).await?;
        books.wallets.push(WalletBook {
            node: node.name().to_owned(),
            before_sat,
            after_sat: after.confirmed_sat,
            open_sat: after.pending_sat + after.locked_sat + after.claimable_sat,
        });
    }
    Ok(books)
}

/// What one node knows.
struct View<'a> {
    node: &'a Node,
    leases: Vec<Lease>,
    channels: Vec<Channel>,
    earnings: Vec<EarningsChannel>,
}

impl View<'_> {
    fn missing(&self, what: &'static str, of: &str) -> AuditError {
        AuditError::Missing {
            node: self.node.name().to_owned(),
            what,
            of: of.to_owned(),
        }
    }
}

/// The node with the other side of a trade.
fn other<'a, 'b>(
    views: &'a [View<'b>],
    view: &View<'_>,
    id: &str,
) -> Result<&'a View<'b>, AuditError> {
    let found = views.iter().find(|other| other.node.id() == id);
    found.ok_or_else(|| view.missing("with whom it trades, but for a stranger,", id))
}

fn lease_book(
    views: &[View<'_>],
    buyer: &View<'_>,
    bought: &Lease,
    delivered_bytes: u64,
) -> Result<LeaseBook, AuditError> {
    let seller = other(views, buyer, &bought.peer)?;
    let sold = seller.leases.iter().find(|lease| lease.id == bought.id);
    let sold = sold.ok_or_else(|| seller.missing("anything", &bought.id))?;
    Ok(LeaseBook {
        lease: bought.id.clone(),
        channel: bought.channel.clone().unwrap_or_default(),
        buyer: buyer.node.name().to_owned(),
        seller: seller.node.name().to_owned(),
        price_msat_per_gb: bought.price_msat_per_gb,
        quota_bytes: bought.quota_bytes,
        window_bytes: bought.window_bytes,
        delivered_bytes,
        bought: side(buyer, bought)?,
        sold: side(seller, sold)?,
    })
}

fn side(view: &View<'_>, lease: &Lease) -> Result<Side, AuditError> {
    let receipt = lease
        .receipt
        .ok_or_else(|| view.missing("the last receipt", &lease.id))?;
    Ok(Side {
        counted_bytes: lease.reading.up_bytes + lease.reading.down_bytes,
        signed_bytes: receipt.reading.up_bytes + receipt.reading.down_bytes,
        billed_msat: receipt.billed_msat,
        paid_msat: receipt.paid_msat,
        cosigned: receipt.cosigned,
    })
}

fn channel_book(
    views: &[View<'_>],
    payer: &View<'_>,
    paying: &Channel,
    chain: &Chain,
) -> Result<ChannelBook, AuditError> {
    let id = &paying.id;
    let payee = other(views, payer, &paying.peer)?;
    let paid = payee.channels.iter().find(|channel| channel.id == *id);
    let paid = paid.ok_or_else(|| payee.missing("anything", id))?;
    let earned = payee.earnings.iter().find(|channel| channel.channel == *id);
    let earned = earned.ok_or_else(|| payee.missing("the earnings", id))?;

    let funding = paying
        .funding
        .as_deref()
        .and_then(|text| text.parse::<OutPoint>().ok());
    let funding = funding.ok_or_else(|| payer.missing("the funding", id))?;
    let outputs = chain.transaction(funding.txid)?.output;
    let funded = usize::try_from(funding.vout)
        .ok()
        .and_then(|index| outputs.get(index));
    let closing = paying
        .closing_txid
        .as_deref()
        .or(paid.closing_txid.as_deref());
    let closing = closing.and_then(|text| text.parse::<Txid>().ok());
    let closing = closing.ok_or_else(|| payer.missing("the closing", id))?;
    let closed = chain.transaction(closing)?;
    let (closed_sat, closing_fee_sat) = part_of(
        &closed,
        funding,
        paying.capacity_sat,
        chain.fee(closing)?.to_sat(),
    );

    Ok(ChannelBook {
        channel: id.clone(),
        payer: payer.node.name().to_owned(),
        payee: payee.node.name().to_owned(),
        capacity_sat: paying.capacity_sat,
        paid_sat: paying.paid_sat,
        taken_sat: paid.paid_sat,
        credit_msat: paying.credit_msat,
        received_sat: earned.received_sat,
        told_fees_sat: [paying.fees_sat, earned.fees_sat],
        funded_sat: funded.map_or(Amount::ZERO, |output| output.value).to_sat(),
        closed_sat,
        funding_fee_sat: chain.fee(funding.txid)?.to_sat(),
        closing_fee_sat,
    })
}

/// What a channel funded by `funding` has of the transaction that closes it: what it pays out for this
/// channel, and this channel's part of the fee.
///
/// A transaction that closes several has one payout for all. Its fee is split by weight, 603 units for
/// a channel with change and 431 for one without, and the first input bears what does not divide. That
/// is reckoned here and not asked of the product. That the payout itself is what these parts add up to is
/// seen in the payee's wallet.
fn part_of(closing: &Transaction, funding: OutPoint, capacity: u64, fee: u64) -> (Vec<u64>, u64) {
    let values = closing.output.iter().map(|output| output.value.to_sat());
    let mut inputs = closing.input.iter();
    let place = inputs.position(|input| input.previous_output == funding);
    let (Some(place), 2..) = (place, closing.input.len()) else {
        return (values.collect(), fee);
    };
    let changes = closing.output.len().saturating_sub(1);
    let weight = |at: usize| if at < changes { 603 } else { 431 };
    let whole: u64 = (0..closing.input.len()).map(weight).sum();
    let share = |at: usize| fee * weight(at) / whole;
    let share = match place {
        0 => fee - (1..closing.input.len()).map(share).sum::<u64>(),
        other => share(other),
    };
    let change = values.take(changes).nth(place);
    let payout = capacity - change.unwrap_or(0) - share;
    (change.into_iter().chain([payout]).collect(), share)
}
