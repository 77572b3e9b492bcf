//! What a demonstration found, for people and for programs.

use std::{fmt, time::Duration};

use serde::Serialize;

use crate::books::{Books, Discrepancy};

/// One file that was downloaded and was what it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FileReport {
    /// How long it is.
    pub bytes: u64,
    /// Its SHA-256 in hex, which was compared.
    pub sha256: String,
    /// How long it took, pauses included.
    pub took_ms: u64,
}

/// What a demonstration found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Whether every figure agrees with every other, to the satoshi.
    pub books_balance: bool,
    /// Bytes that the buyer signed for.
    pub bytes_carried: u64,
    /// Their cost.
    pub billed_msat: u64,
    /// Vouchers that the buyer signed.
    pub paid_msat: u64,
    /// What the sellers received on chain.
    pub received_sat: u64,
    /// Fees of all transactions, as the chain says.
    pub fees_sat: u64,
    /// How many leases were carried out.
    pub sessions: usize,
    /// How often the quota was used up, and more was bought.
    pub pauses: u32,
    /// From the purchase to the open lease, a new channel included.
    pub buy_ms: u64,
    /// How long all of it took.
    pub took_ms: u64,
    /// The files.
    pub files: Vec<FileReport>,
    /// The accounts.
    pub books: Books,
    /// What does not agree.
    pub discrepancies: Vec<Discrepancy>,
}

impl Report {
    pub(super) fn new(
        books: Books,
        files: Vec<FileReport>,
        pauses: u32,
        buy: Duration,
        took: Duration,
    ) -> Self {
        let discrepancies = books.check();
        let millis = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        Self {
            books_balance: discrepancies.is_empty(),
            bytes_carried: books.bytes_carried(),
            billed_msat: books.billed_msat(),
            paid_msat: books.paid_msat(),
            received_sat: books.received_sat(),
            fees_sat: books.fees_sat(),
            sessions: books.leases.len(),
            pauses,
            buy_ms: millis(buy),
            took_ms: millis(took),
            files,
            books,
            discrepancies,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for lease in &self.books.leases {
            let (bought, sold) = (&lease.bought, &lease.sold);
            writeln!(
                f,
                "Lease {:.8}: {} buys of {}",
                lease.lease, lease.buyer, lease.seller
            )?;
            row(f, "", &lease.buyer, &lease.seller)?;
            row(
                f,
                "counted",
                &bytes(bought.counted_bytes),
                &bytes(sold.counted_bytes),
            )?;
            row(
                f,
                "signed for",
                &bytes(bought.signed_bytes),
                &bytes(sold.signed_bytes),
            )?;
            row(
                f,
                "cost",
                &msat(bought.billed_msat),
                &msat(sold.billed_msat),
            )?;
            row(f, "paid", &msat(bought.paid_msat), &msat(sold.paid_msat))?;
        }
        for channel in &self.books.channels {
            writeln!(
                f,
                "Channel {:.8}: {} pays {}",
                channel.channel, channel.payer, channel.payee
            )?;
            row(f, "", &channel.payer, &channel.payee)?;
            row(
                f,
                "vouchers",
                &sat(channel.paid_sat),
                &sat(channel.taken_sat),
            )?;
            row(f, "credit left", &msat(channel.credit_msat), "")?;
            row(
                f,
                "on-chain fees",
                &sat(channel.funding_fee_sat),
                &sat(channel.closing_fee_sat),
            )?;
            let returned = channel.capacity_sat.saturating_sub(channel.paid_sat);
            row(
                f,
                "received on chain",
                &sat(returned),
                &sat(channel.received_sat),
            )?;
        }
        writeln!(f, "Wallets")?;
        row(f, "", "before", "after")?;
        for wallet in &self.books.wallets {
            row(
                f,
                &wallet.node,
                &sat(wallet.before_sat),
                &sat(wallet.after_sat),
            )?;
        }
        let (before, after) = self
            .books
            .wallets
            .iter()
            .fold((0, 0), |(before, after), wallet| {
                (before + wallet.before_sat, after + wallet.after_sat)
            });
        row(f, "fees to miners", "", &sat(self.fees_sat))?;
        row(f, "sum", &sat(before), &sat(after + self.fees_sat))?;
        for channel in &self.books.channels {
            if channel.credit_msat > 0 {
                writeln!(
                    f,
                    "{} of the {} that {} paid were not used: they stay as credit with {} for a next lease.",
                    msat(channel.credit_msat),
                    sat(channel.paid_sat),
                    channel.payer,
                    channel.payee
                )?;
            }
        }
        if self.books_balance {
            write!(f, "The books balance to the satoshi.")
        } else {
            write!(f, "The books do not balance:")?;
            self.discrepancies
                .iter()
                .try_for_each(|wrong| write!(f, "\n  {wrong}"))
        }
    }
}

fn row(f: &mut fmt::Formatter<'_>, what: &str, left: &str, right: &str) -> fmt::Result {
    writeln!(f, "  {what:<18}{left:>20}{right:>20}")
}

fn bytes(count: u64) -> String {
    format!("{} B", grouped(count))
}

fn sat(amount: u64) -> String {
    format!("{} sat", grouped(amount))
}

fn msat(amount: u64) -> String {
    format!("{}.{:03} sat", grouped(amount / 1_000), amount % 1_000)
}

/// A number with a space between each three digits.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::books::ChannelBook;

    #[test]
    fn numbers_are_grouped_by_three() {
        let texts = [0, 999, 1_000, 1_234_567].map(grouped);
        assert_eq!(texts, ["0", "999", "1 000", "1 234 567"]);
        assert_eq!(msat(1_234_005), "1 234.005 sat");
    }

    #[test]
    fn credit_that_is_left_is_explained() {
        let channel = ChannelBook {
            channel: "channel".to_owned(),
            payer: "dave".to_owned(),
            payee: "alice".to_owned(),
            capacity_sat: 20_000,
            paid_sat: 2_489,
            taken_sat: 2_489,
            credit_msat: 371_250,
            received_sat: 2_284,
            told_fees_sat: [154, 205],
            funded_sat: 20_000,
            closed_sat: vec![17_511, 2_284],
            funding_fee_sat: 154,
            closing_fee_sat: 205,
        };
        let books = Books {
            channels: vec![channel],
            ..Books::default()
        };
        let report = Report::new(books, Vec::new(), 0, Duration::ZERO, Duration::ZERO);

        let said = "371.250 sat of the 2 489 sat that dave paid were not used: they stay as credit with alice";
        assert!(report.to_string().contains(said), "{report}");
    }

    #[test]
    fn the_report_of_nothing_balances_and_says_so() {
        let report = Report::new(
            Books::default(),
            Vec::new(),
            0,
            Duration::ZERO,
            Duration::ZERO,
        );

        assert!(
            report
                .to_string()
                .ends_with("The books balance to the satoshi.")
        );
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["books_balance"], true);
        assert_eq!(json["sessions"], 0);
    }
}
