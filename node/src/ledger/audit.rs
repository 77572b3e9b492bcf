//! Comparing everybody who knows: the journal's records, the machines, the meters, the signatures and
//! the chain.
//!
//! Each rule compares two figures that were reached in different ways, so that each can fail. What is
//! found names whose figure it is, both figures and where they come from.

use std::collections::{BTreeMap, BTreeSet};

use bitcoin::{Amount, Txid};
use bitmesh_market::lease::LeaseId;
use bitmesh_market::session::{Reading, Receipt};
use bitmesh_market::units::Msat;
use bitmesh_wallet::channel::ProposalId;
use bitmesh_wallet::channel::params::Tranche;
use bitmesh_wallet::channel::voucher::Voucher;
use bitmesh_wallet::keys::Role;
use bitmesh_wallet::onchain::{HistoryEntry, Status};

use super::{Account, Books, Party};

/// What everybody but the journal says.
#[derive(Clone, Debug, Default)]
pub(crate) struct Evidence {
    pub(crate) leases: Vec<LeaseEvidence>,
    pub(crate) channels: Vec<ChannelEvidence>,
    pub(crate) pairs: Vec<PairEvidence>,
    /// The best voucher of each channel that is open to this node as a seller.
    pub(crate) vouchers: Vec<(ProposalId, Tranche, Voucher)>,
    /// What the chain says; `None` while it has not been read to its end.
    pub(crate) chain: Option<ChainEvidence>,
}

/// A lease as its machine and its meter have it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LeaseEvidence {
    pub(crate) lease: LeaseId,
    pub(crate) receipt: Option<Receipt>,
    /// The meter of an open lease.
    pub(crate) meter: Option<Reading>,
}

/// A channel as its machine has it.
#[derive(Clone, Debug)]
pub(crate) struct ChannelEvidence {
    pub(crate) channel: ProposalId,
    /// Its id, as people see it.
    pub(crate) id: String,
    /// Promised or held.
    pub(crate) total: Amount,
    /// What the pair's account counts of it, in sat.
    pub(crate) counted_sat: u64,
}

/// A pair's account as payments are decided by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PairEvidence {
    pub(crate) party: Party,
    pub(crate) credit: Msat,
    pub(crate) written_off: Msat,
}

/// The wallet's view of the chain.
#[derive(Clone, Debug, Default)]
pub(crate) struct ChainEvidence {
    pub(crate) history: Vec<HistoryEntry>,
    pub(crate) balance: Amount,
}

/// Two figures that should be the same, or keep to a bound, and do not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Disagreement {
    /// The lease, channel, transaction or peer.
    pub(crate) whose: String,
    /// The rule that is broken.
    pub(crate) rule: &'static str,
    /// Where the first figure comes from, and what it is.
    pub(crate) left: (&'static str, i128),
    /// The second.
    pub(crate) right: (&'static str, i128),
    /// What is counted.
    pub(crate) unit: &'static str,
}

/// What came of an audit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Findings {
    /// How many pairs of figures were compared.
    pub(crate) compared: u32,
    pub(crate) disagreements: Vec<Disagreement>,
}

/// Compares the books with everything else that is known.
pub(crate) fn audit(books: &Books, evidence: &Evidence) -> Findings {
    let mut audit = Audit {
        books,
        names: evidence
            .channels
            .iter()
            .map(|it| (it.channel, it.id.as_str()))
            .collect(),
        findings: Findings::default(),
    };
    audit.balances();
    for lease in &evidence.leases {
        audit.lease(lease);
    }
    for lease in books.leases.values() {
        audit.receipt(lease);
    }
    for channel in &evidence.channels {
        audit.channel(channel);
    }
    for (channel, tranche, voucher) in &evidence.vouchers {
        audit.voucher(*channel, tranche, voucher);
    }
    for pair in &evidence.pairs {
        audit.pair(pair, &evidence.channels);
    }
    if let Some(chain) = &evidence.chain {
        audit.chain(chain);
    }
    audit.findings
}

struct Audit<'a> {
    books: &'a Books,
    names: BTreeMap<ProposalId, &'a str>,
    findings: Findings,
}

impl Audit<'_> {
    /// Every entry balances, and nothing holds less than nothing.
    fn balances(&mut self) {
        let sum = self.books.balances().map(|(_, _, balance)| balance).sum();
        self.equal(
            "ledger",
            "all accounts together are zero",
            ("sum of the accounts", sum),
            ("nothing", 0),
            "msat",
        );
        for (account, party, balance) in self.books.balances() {
            if matches!(
                account,
                Account::Locked | Account::Claims | Account::Fees | Account::Lost
            ) {
                let whose = party.map_or_else(|| "wallet".to_owned(), |it| it.peer.to_string());
                self.at_most(
                    &whose,
                    "an account holds no less than nothing",
                    ("nothing", 0),
                    (account.name(), balance),
                    "msat",
                );
            }
        }
    }

    fn receipt(&mut self, book: &super::LeaseBook) {
        let whose = format!("lease {}", book.lease.id());
        let Some(receipt) = book.receipt else {
            return;
        };
        let signed = receipt.reading.total();
        let cost = book.lease.price().cost_of(signed).unwrap_or(Msat::MAX);
        self.equal(
            &whose,
            "a receipt bills what its bytes cost at the lease's price",
            ("receipt", receipt.billed.msat().into()),
            ("bytes times price", cost.msat().into()),
            "msat",
        );
        if let Some(own) = book.own {
            self.ahead(book, own, "meter when the receipt came");
        }
    }

    /// The seller's count is at most a window beyond what the buyer has signed for. The other way round
    /// nothing is at stake: the buyer's count bills.
    fn ahead(&mut self, book: &super::LeaseBook, meter: Reading, name: &'static str) {
        let signed = book.bytes();
        let window = book.lease.window().get();
        let most = signed.saturating_add(window);
        self.at_most(
            &format!("lease {}", book.lease.id()),
            "no more is carried than one window beyond the receipt",
            (name, meter.total().get().into()),
            ("receipt and window", most.into()),
            "bytes",
        );
    }

    fn lease(&mut self, evidence: &LeaseEvidence) {
        let whose = format!("lease {}", evidence.lease);
        let Some(book) = self.books.leases.get(&evidence.lease) else {
            let billed = evidence.receipt.map_or(Msat::ZERO, |it| it.billed);
            self.find(
                &whose,
                "a lease is in the journal",
                ("journal", 0),
                ("session, msat billed", billed.msat().into()),
                "msat",
            );
            return;
        };
        let billed = evidence.receipt.map_or(Msat::ZERO, |it| it.billed);
        self.equal(
            &whose,
            "the session bills what the journal has",
            ("journal", book.billed().msat().into()),
            ("session", billed.msat().into()),
            "msat",
        );
        let Some(meter) = evidence.meter else {
            return;
        };
        match book.party.role() {
            Role::Payer => self.at_most(
                &whose,
                "the buyer signs for no more than its meter counts",
                ("receipt", book.bytes().into()),
                ("meter", meter.total().get().into()),
                "bytes",
            ),
            Role::Payee => self.ahead(book, meter, "meter"),
        }
    }

    fn channel(&mut self, evidence: &ChannelEvidence) {
        let whose = format!("channel {}", evidence.id);
        let Some(book) = self.books.channels.get(&evidence.channel) else {
            self.find(
                &whose,
                "a channel is in the journal",
                ("journal", 0),
                ("channel", sat(evidence.total)),
                "sat",
            );
            return;
        };
        self.equal(
            &whose,
            "the channel's vouchers are those of the journal",
            ("journal", sat(book.total)),
            ("channel", sat(evidence.total)),
            "sat",
        );
        self.at_most(
            &whose,
            "no more is paid than the channel holds",
            ("vouchers", sat(book.total)),
            ("capacity", sat(book.capacity)),
            "sat",
        );
        self.at_most(
            &whose,
            "no more counts as paid than vouchers say",
            ("account", evidence.counted_sat.into()),
            ("vouchers", sat(book.total)),
            "sat",
        );
        if let Some(settlement) = book.settlement
            && book.party.role() == Role::Payer
        {
            self.at_most(
                &whose,
                "the close takes no more than was signed for",
                ("chain", sat(settlement.paid())),
                ("vouchers", sat(book.total)),
                "sat",
            );
        }
    }

    fn voucher(&mut self, channel: ProposalId, tranche: &Tranche, voucher: &Voucher) {
        let whose = self.channel_name(channel);
        let total = self
            .books
            .channels
            .get(&channel)
            .map_or(Amount::ZERO, |it| it.total);
        self.equal(
            &whose,
            "the voucher held is the best of the journal",
            ("journal", sat(total)),
            ("voucher", sat(voucher.total)),
            "sat",
        );
        let is_good = tranche.verify(voucher).is_ok();
        self.equal(
            &whose,
            "the voucher held bears the buyer's signature",
            ("voucher", sat(voucher.total)),
            ("good for", if is_good { sat(voucher.total) } else { 0 }),
            "sat",
        );
    }

    /// What has been paid is what was billed, what was written off, and the credit that is left.
    fn pair(&mut self, evidence: &PairEvidence, channels: &[ChannelEvidence]) {
        let party = evidence.party;
        let whose = format!(
            "{} {}",
            match party.role() {
                Role::Payer => "seller",
                Role::Payee => "buyer",
            },
            party.peer
        );
        let ours = |id: &ProposalId| {
            self.books
                .channels
                .get(id)
                .filter(|book| book.party == party)
        };
        // What is held and does not count yet: the funding is young.
        let deferred: i128 = channels
            .iter()
            .filter_map(|it| {
                ours(&it.channel).map(|book| sat(book.total) - i128::from(it.counted_sat))
            })
            .sum::<i128>()
            * 1_000;
        // A lease bills the pair's account when it is over.
        let running: i128 = self
            .books
            .leases
            .values()
            .filter(|lease| lease.party == party && !lease.is_closed)
            .map(|lease| i128::from(lease.billed().msat()))
            .sum();
        let credit = self.books.balance(Account::Credit, Some(party));
        let credit = match party.role() {
            Role::Payer => credit,
            Role::Payee => -credit,
        };
        self.equal(
            &whose,
            "credit is what was paid and not billed",
            ("ledger", (credit + running - deferred).max(0)),
            ("account", evidence.credit.msat().into()),
            "msat",
        );
        if party.role() == Role::Payer {
            let written_off = self.books.written_off.get(&party.peer);
            self.equal(
                &whose,
                "what is written off is what the journal has",
                ("journal", written_off.map_or(0, |it| it.msat().into())),
                ("account", evidence.written_off.msat().into()),
                "msat",
            );
        }
    }

    fn chain(&mut self, chain: &ChainEvidence) {
        let seen: BTreeMap<Txid, &HistoryEntry> =
            chain.history.iter().map(|it| (it.txid, it)).collect();
        // One transaction may fund or end several channels, so they are compared together.
        let mut expected: BTreeMap<Txid, i128> = BTreeMap::new();
        let mut fees: BTreeMap<Txid, i128> = BTreeMap::new();
        let mut buried = BTreeSet::new();
        for book in self.books.channels.values() {
            let is_payer = book.party.role() == Role::Payer;
            if let Some((txid, fee)) = book.funding
                && self.books.has_spent_coins(book)
            {
                *expected.entry(txid).or_default() -= sat(book.capacity) + sat(fee);
                // The fee of a rollover is its payee's, and told by how it ended the channel before.
                if !book.is_carried() {
                    *fees.entry(txid).or_default() += sat(fee);
                }
            }
            if let Some(settlement) = book.settlement {
                let ours = if is_payer {
                    settlement.returned
                } else {
                    settlement.received
                };
                *expected.entry(settlement.txid).or_default() += sat(ours);
                if ours > Amount::ZERO {
                    buried.insert(settlement.txid);
                }
            }
        }
        // A rollover may leave the wallet's coins as they are; then the wallet knows nothing of it.
        buried.retain(|txid| expected.get(txid).is_some_and(|net| *net != 0));
        for (txid, ledger) in &expected {
            let whose = format!("transaction {txid}");
            let net = seen.get(txid).map_or(0, |it| it.net_sat().into());
            self.equal(
                &whose,
                "the wallet's coins changed by what the channels say",
                ("ledger", *ledger),
                ("chain", net),
                "sat",
            );
            if let Some(fee) = fees.get(txid)
                && let Some(paid) = seen.get(txid).and_then(|it| it.fee)
            {
                self.equal(
                    &whose,
                    "a funding costs the fee that was written down",
                    ("ledger", *fee),
                    ("chain", sat(paid)),
                    "sat",
                );
            }
        }
        for txid in &buried {
            let status = seen.get(txid).map(|it| it.status);
            let confirmations = match status {
                Some(Status::Confirmed { confirmations, .. }) => confirmations,
                Some(Status::Pending { .. }) | None => 0,
            };
            self.at_most(
                &format!("transaction {txid}"),
                "what ended a channel is in a block",
                ("needed", 1),
                ("chain", confirmations.into()),
                "confirmations",
            );
        }
        self.equal(
            "wallet",
            "the ledger's coins are the wallet's",
            ("ledger", self.books.balance(Account::Coins, None)),
            ("wallet", sat(chain.balance) * 1_000),
            "msat",
        );
        let net: i128 = chain
            .history
            .iter()
            .map(|it| i128::from(it.net_sat()))
            .sum();
        self.equal(
            "wallet",
            "the wallet's coins are what its transactions left",
            ("transactions", net),
            ("wallet", sat(chain.balance)),
            "sat",
        );
    }

    fn channel_name(&self, channel: ProposalId) -> String {
        match self.names.get(&channel) {
            Some(id) => format!("channel {id}"),
            None => format!("channel {channel}"),
        }
    }

    fn equal(
        &mut self,
        whose: &str,
        rule: &'static str,
        left: (&'static str, i128),
        right: (&'static str, i128),
        unit: &'static str,
    ) {
        self.findings.compared = self.findings.compared.saturating_add(1);
        if left.1 != right.1 {
            self.note(whose, rule, left, right, unit);
        }
    }

    fn at_most(
        &mut self,
        whose: &str,
        rule: &'static str,
        left: (&'static str, i128),
        right: (&'static str, i128),
        unit: &'static str,
    ) {
        self.findings.compared = self.findings.compared.saturating_add(1);
        if left.1 > right.1 {
            self.note(whose, rule, left, right, unit);
        }
    }

    fn find(
        &mut self,
        whose: &str,
        rule: &'static str,
        left: (&'static str, i128),
        right: (&'static str, i128),
        unit: &'static str,
    ) {
        self.findings.compared = self.findings.compared.saturating_add(1);
        self.note(whose, rule, left, right, unit);
    }

    fn note(
        &mut self,
        whose: &str,
        rule: &'static str,
        left: (&'static str, i128),
        right: (&'static str, i128),
        unit: &'static str,
    ) {
        let whose = whose.to_owned();
        self.findings.disagreements.push(Disagreement {
            whose,
            rule,
            left,
            right,
            unit,
        });
    }
}

fn sat(amount: Amount) -> i128 {
    amount.to_sat().into()
}
