//! The accounts of a network's trades, and whether they add up.
//!
//! Three witnesses are compared: what the buyers say, what the sellers say, and what the chain says.
//! Nothing here asks anybody or does arithmetic of the product: the price rule is written out once
//! more, on purpose.

mod audit;

use std::fmt;

use serde::Serialize;

pub use self::audit::{AuditError, Opening, audit, open};

/// One side's view of a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Side {
    /// Its own count of bytes, both directions.
    pub counted_bytes: u64,
    /// Bytes of the last receipt, both directions.
    pub signed_bytes: u64,
    /// Their cost according to that receipt.
    pub billed_msat: u64,
    /// What had been paid according to that receipt.
    pub paid_msat: u64,
    /// Whether it holds the other side's signature on that receipt.
    pub cosigned: bool,
}

/// A lease as both sides see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LeaseBook {
    /// Its id.
    pub lease: String,
    /// The channel that paid for it.
    pub channel: String,
    /// Who bought.
    pub buyer: String,
    /// Who sold.
    pub seller: String,
    /// Price of 10^9 bytes.
    pub price_msat_per_gb: u64,
    /// What could be used.
    pub quota_bytes: u64,
    /// How far the counts may be apart.
    pub window_bytes: u64,
    /// What arrived at the programs behind the buyer's proxy. Heads and handshakes come on top.
    pub delivered_bytes: u64,
    /// The buyer's view.
    pub bought: Side,
    /// The seller's view.
    pub sold: Side,
}

/// A closed channel as both sides and the chain see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ChannelBook {
    /// Its id.
    pub channel: String,
    /// Who paid.
    pub payer: String,
    /// Who was paid.
    pub payee: String,
    /// Its size according to the payer.
    pub capacity_sat: u64,
    /// Vouchers according to the payer.
    pub paid_sat: u64,
    /// Vouchers according to the payee.
    pub taken_sat: u64,
    /// Vouchers that no lease has used, according to the payer.
    pub credit_msat: u64,
    /// Received on chain according to the payee.
    pub received_sat: u64,
    /// Fees according to the payer and to the payee.
    pub told_fees_sat: [u64; 2],
    /// Value of the funding output, on chain.
    pub funded_sat: u64,
    /// Values of the outputs of the closing transaction, on chain.
    pub closed_sat: Vec<u64>,
    /// Fee of the funding transaction, on chain.
    pub funding_fee_sat: u64,
    /// Fee of the closing transaction, on chain.
    pub closing_fee_sat: u64,
}

/// What a node's wallet held before and after.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WalletBook {
    /// The node.
    pub node: String,
    /// Before the first trade.
    pub before_sat: u64,
    /// Confirmed, after the last channel was closed.
    pub after_sat: u64,
    /// Anything that is not confirmed, locked or to be claimed afterwards: nothing should be.
    pub open_sat: u64,
}

/// All accounts of a network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Books {
    /// Each lease.
    pub leases: Vec<LeaseBook>,
    /// Each channel.
    pub channels: Vec<ChannelBook>,
    /// Each wallet.
    pub wallets: Vec<WalletBook>,
}

/// Two figures that should agree and do not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Discrepancy {
    /// Whose: a lease, a channel, a node, or all.
    pub whose: String,
    /// What should hold.
    pub rule: &'static str,
    /// One figure.
    pub left: u64,
    /// The other.
    pub right: u64,
}

impl fmt::Display for Discrepancy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            whose,
            rule,
            left,
            right,
        } = self;
        write!(f, "{whose}: {rule}: {left} and {right}")
    }
}

/// The cost of so many bytes in msat, rounded up once.
fn cost(bytes: u64, price_msat_per_gb: u64) -> u64 {
    let exact = u128::from(bytes) * u128::from(price_msat_per_gb);
    u64::try_from(exact.div_ceil(1_000_000_000)).unwrap_or(u64::MAX)
}

impl Books {
    /// Returns every rule that does not hold. The books balance if there is none.
    pub fn check(&self) -> Vec<Discrepancy> {
        let mut found = Vec::new();
        self.leases
            .iter()
            .for_each(|lease| check_lease(lease, &mut found));
        self.channels
            .iter()
            .for_each(|channel| self.check_channel(channel, &mut found));
        self.wallets
            .iter()
            .for_each(|wallet| self.check_wallet(wallet, &mut found));
        let mut all = Rules {
            whose: "all",
            found: &mut found,
        };
        let sum = |figure: fn(&WalletBook) -> u64| self.wallets.iter().map(figure).sum();
        all.equal(
            "coins before are coins after and fees",
            sum(|wallet| wallet.before_sat),
            sum(|wallet| wallet.after_sat) + self.fees_sat(),
        );
        found
    }

    /// Bytes that buyers signed for.
    pub fn bytes_carried(&self) -> u64 {
        self.leases
            .iter()
            .map(|lease| lease.bought.signed_bytes)
            .sum()
    }

    /// The cost of those bytes.
    pub fn billed_msat(&self) -> u64 {
        self.leases
            .iter()
            .map(|lease| lease.bought.billed_msat)
            .sum()
    }

    /// Vouchers that payers signed.
    pub fn paid_msat(&self) -> u64 {
        self.channels
            .iter()
            .map(|channel| channel.paid_sat * 1_000)
            .sum()
    }

    /// What sellers received on chain.
    pub fn received_sat(&self) -> u64 {
        self.channels
            .iter()
            .map(|channel| channel.received_sat)
            .sum()
    }

    /// Fees of all fundings and closings, as the chain says.
    pub fn fees_sat(&self) -> u64 {
        let fees = |channel: &ChannelBook| channel.funding_fee_sat + channel.closing_fee_sat;
        self.channels.iter().map(fees).sum()
    }

    fn check_channel(&self, channel: &ChannelBook, found: &mut Vec<Discrepancy>) {
        let mut rules = Rules {
            whose: &channel.channel,
            found,
        };
        let (paid, capacity) = (channel.paid_sat, channel.capacity_sat);
        rules.equal(
            "payer and payee agree on what was paid",
            paid,
            channel.taken_sat,
        );
        rules.equal(
            "the funding output has the channel's size",
            channel.funded_sat,
            capacity,
        );
        rules.at_most("no more was paid than the channel holds", paid, capacity);
        let billed: u64 = self
            .leases_of(channel)
            .map(|lease| lease.bought.billed_msat)
            .sum();
        rules.equal(
            "what was paid is what its leases cost and the credit that is left",
            paid * 1_000,
            billed + channel.credit_msat,
        );
        let change = capacity.saturating_sub(paid);
        let closed: u64 = channel.closed_sat.iter().sum();
        rules.equal(
            "the closing spends the channel",
            closed + channel.closing_fee_sat,
            capacity,
        );
        // Change below the dust limit cannot be paid out, and is the payee's.
        if change >= DUST_SAT {
            rules.is_among(
                "the closing returns what was not paid",
                change,
                &channel.closed_sat,
            );
        }
        rules.is_among(
            "the closing pays the payee",
            channel.received_sat,
            &channel.closed_sat,
        );
        rules.equal(
            "the payee receives what was paid less the fee",
            channel.received_sat + channel.closing_fee_sat,
            if change >= DUST_SAT { paid } else { capacity },
        );
        let [payers, payees] = channel.told_fees_sat;
        rules.equal(
            "the payer paid for the funding",
            payers,
            channel.funding_fee_sat,
        );
        rules.equal(
            "the payee paid for the closing",
            payees,
            channel.closing_fee_sat,
        );
    }

    fn check_wallet(&self, wallet: &WalletBook, found: &mut Vec<Discrepancy>) {
        let mut rules = Rules {
            whose: &wallet.node,
            found,
        };
        let paying = self
            .channels
            .iter()
            .filter(|channel| channel.payer == wallet.node);
        let spent: u64 = paying
            .map(|channel| {
                let change = channel.capacity_sat.saturating_sub(channel.paid_sat);
                let returned = if change >= DUST_SAT { change } else { 0 };
                channel.capacity_sat - returned + channel.funding_fee_sat
            })
            .sum();
        let paid = self
            .channels
            .iter()
            .filter(|channel| channel.payee == wallet.node);
        let received: u64 = paid.map(|channel| channel.received_sat).sum();
        rules.equal(
            "coins before and received are coins after and spent",
            wallet.before_sat + received,
            wallet.after_sat + spent,
        );
        rules.equal("nothing is left open", wallet.open_sat, 0);
    }

    fn leases_of(&self, channel: &ChannelBook) -> impl Iterator<Item = &LeaseBook> {
        self.leases
            .iter()
            .filter(|lease| lease.channel == channel.channel)
    }
}

/// The least value of an output to a taproot key.
const DUST_SAT: u64 = 330;

fn check_lease(lease: &LeaseBook, found: &mut Vec<Discrepancy>) {
    let mut rules = Rules {
        whose: &lease.lease,
        found,
    };
    let (bought, sold) = (&lease.bought, &lease.sold);
    rules.equal(
        "both signed for the same bytes",
        bought.signed_bytes,
        sold.signed_bytes,
    );
    rules.equal(
        "both signed for the same cost",
        bought.billed_msat,
        sold.billed_msat,
    );
    rules.equal(
        "both signed for the same payment",
        bought.paid_msat,
        sold.paid_msat,
    );
    rules.equal(
        "both hold both signatures",
        (bought.cosigned && sold.cosigned).into(),
        1,
    );
    rules.equal(
        "the cost is that of the bytes",
        bought.billed_msat,
        cost(bought.signed_bytes, lease.price_msat_per_gb),
    );
    rules.equal(
        "the buyer signed for what it counted",
        bought.signed_bytes,
        bought.counted_bytes,
    );
    rules.at_most(
        "the counts are at most a window apart",
        bought.counted_bytes.abs_diff(sold.counted_bytes),
        lease.window_bytes,
    );
    rules.at_most(
        "no more was billed than the quota",
        bought.signed_bytes,
        lease.quota_bytes,
    );
    rules.at_most(
        "what arrived was billed",
        lease.delivered_bytes,
        bought.signed_bytes,
    );
    rules.at_most(
        "what was carried was paid for",
        bought.billed_msat,
        bought.paid_msat,
    );
}

struct Rules<'a> {
    whose: &'a str,
    found: &'a mut Vec<Discrepancy>,
}

impl Rules<'_> {
    fn equal(&mut self, rule: &'static str, left: u64, right: u64) {
        self.hold(left == right, rule, left, right);
    }

    fn at_most(&mut self, rule: &'static str, left: u64, right: u64) {
        self.hold(left <= right, rule, left, right);
    }

    fn is_among(&mut self, rule: &'static str, value: u64, values: &[u64]) {
        self.hold(
            values.contains(&value),
            rule,
            value,
            values.iter().copied().max().unwrap_or(0),
        );
    }

    fn hold(&mut self, holds: bool, rule: &'static str, left: u64, right: u64) {
        if !holds {
            self.found.push(Discrepancy {
                whose: self.whose.to_owned(),
                rule,
                left,
                right,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One lease of 150,000,001 bytes at 20,000 sat/GB: 3,000.00002 sat, rounded up to the msat.
    fn balanced() -> Books {
        let side = Side {
            counted_bytes: 150_000_001,
            signed_bytes: 150_000_001,
            billed_msat: 3_000_001,
            paid_msat: 3_400_000,
            cosigned: true,
        };
        let lease = LeaseBook {
            lease: "lease".to_owned(),
            channel: "channel".to_owned(),
            buyer: "dave".to_owned(),
            seller: "alice".to_owned(),
            price_msat_per_gb: 20_000_000,
            quota_bytes: 170_000_000,
            window_bytes: 20_000_000,
            delivered_bytes: 149_999_000,
            bought: side,
            sold: Side {
                counted_bytes: 150_000_500,
                ..side
            },
        };
        let channel = ChannelBook {
            channel: "channel".to_owned(),
            payer: "dave".to_owned(),
            payee: "alice".to_owned(),
            capacity_sat: 20_000,
            paid_sat: 3_400,
            taken_sat: 3_400,
            credit_msat: 399_999,
            received_sat: 3_195,
            told_fees_sat: [154, 205],
            funded_sat: 20_000,
            closed_sat: vec![16_600, 3_195],
            funding_fee_sat: 154,
            closing_fee_sat: 205,
        };
        let wallet = |node: &str, before_sat, after_sat| WalletBook {
            node: node.to_owned(),
            before_sat,
            after_sat,
            open_sat: 0,
        };
        Books {
            leases: vec![lease],
            channels: vec![channel],
            wallets: vec![
                wallet("dave", 1_000_000, 1_000_000 - 3_400 - 154),
                wallet("alice", 0, 3_195),
                wallet("bob", 0, 0),
            ],
        }
    }

    #[test]
    fn books_that_add_up_have_no_discrepancy() {
        let books = balanced();

        assert_eq!(books.check(), []);
        assert_eq!(books.bytes_carried(), 150_000_001);
        assert_eq!(
            (books.paid_msat(), books.received_sat(), books.fees_sat()),
            (3_400_000, 3_195, 359)
        );
    }

    #[test]
    fn a_single_unit_that_is_missing_anywhere_is_found() {
        type Change = fn(&mut Books);
        let changes: [(&str, Change); 14] = [
            ("bytes signed", |books| {
                books.leases[0].sold.signed_bytes -= 1
            }),
            ("cost signed", |books| books.leases[0].sold.billed_msat += 1),
            ("payment signed", |books| {
                books.leases[0].sold.paid_msat -= 1
            }),
            ("price", |books| {
                books.leases[0].bought.billed_msat += 1;
                books.leases[0].sold.billed_msat += 1;
                books.channels[0].credit_msat -= 1;
            }),
            ("count", |books| {
                books.leases[0].sold.counted_bytes += 20_000_000
            }),
            ("delivered", |books| {
                books.leases[0].delivered_bytes += 2_000
            }),
            ("signature", |books| books.leases[0].sold.cosigned = false),
            ("vouchers", |books| books.channels[0].taken_sat -= 1),
            ("credit", |books| books.channels[0].credit_msat += 1),
            ("received", |books| books.channels[0].received_sat -= 1),
            ("change", |books| books.channels[0].closed_sat[0] -= 1),
            ("fee told", |books| books.channels[0].told_fees_sat[1] -= 1),
            ("buyer's coins", |books| books.wallets[0].after_sat -= 1),
            ("bystander's coins", |books| books.wallets[2].after_sat += 1),
        ];
        for (name, change) in changes {
            let mut books = balanced();
            change(&mut books);
            assert_ne!(books.check(), [], "{name}");
        }
    }

    #[test]
    fn change_below_dust_goes_to_the_payee() {
        let mut books = balanced();
        let channel = &mut books.channels[0];
        (channel.capacity_sat, channel.funded_sat) = (3_600, 3_600);
        channel.received_sat = 3_600 - 205;
        channel.closed_sat = vec![3_600 - 205];
        books.wallets[0].after_sat -= 200;
        books.wallets[1].after_sat += 200;

        assert_eq!(books.check(), []);
    }
}
