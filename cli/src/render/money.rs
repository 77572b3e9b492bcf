//! Wallet, channels, earnings.

use std::fmt::Write;

use bitmesh_node::control::api::{
    Address, Audit, Balance, Channel, ChannelClosed, ChannelEnd, ChannelRolledOver, ChannelStep,
    Channels, ChannelsClosed, ChannelsOpened, Earnings, LedgerEntry, Sent, StepKind, Timestamp,
    Totals, Transactions, Words,
};

use super::{
    table::{Align, Lines, Table},
    text,
    text::{
        ago, channel_role, channel_state, count, feerate, lease_state, moment, msat, peer, reason,
        role, sat, short, signed_sat, size, transaction_kind,
    },
};
use crate::output::Style;

/// What the wallet holds.
pub fn balance(balance: &Balance, style: Style) -> String {
    let mut lines = Lines::new();
    lines.row("confirmed", style.bold(&sat(balance.confirmed_sat)));
    lines.row("pending", sat(balance.pending_sat));
    lines.row(
        "locked",
        format!(
            "{}   in channels, not paid; comes back",
            sat(balance.locked_sat)
        ),
    );
    lines.row(
        "to claim",
        format!(
            "{}   paid by buyers, not settled on chain yet",
            sat(balance.claimable_sat)
        ),
    );
    lines.text(style)
}

/// A fresh address, alone on its line so that it can be copied.
pub fn address(address: &Address, _style: Style) -> String {
    format!("{}\n", address.address)
}

/// What was, or would be, sent.
pub fn sent(sent: &Sent, style: Style) -> String {
    let mut lines = Lines::new();
    lines.row("to", &sent.address);
    lines.row("arrives", sat(sent.amount_sat));
    lines.row(
        "fee",
        format!(
            "{} ({})",
            sat(sent.fee_sat),
            feerate(sent.feerate_sat_per_kvb)
        ),
    );
    lines.row("in all", sat(sent.amount_sat.saturating_add(sent.fee_sat)));
    match &sent.txid {
        Some(txid) => lines.row("txid", txid),
        None => lines.row("", "nothing was sent yet"),
    }
    if sent.txid.is_some() && !sent.broadcast {
        lines.row("", NOT_HANDED_OVER);
    }
    lines.text(style)
}

/// What is said of a transaction that the chain source has not taken.
const NOT_HANDED_OVER: &str =
    "the chain source has not taken it yet; it is offered again by itself, nothing is lost";

/// Transactions, newest first.
pub fn transactions(transactions: &Transactions, style: Style) -> String {
    if transactions.transactions.is_empty() {
        return "no transactions yet; \"bitmesh wallet receive\" gives an address\n".to_owned();
    }
    let mut table = Table::new([
        ("WHEN", Align::Left),
        ("KIND", Align::Left),
        ("CHANGE", Align::Right),
        ("FEE", Align::Right),
        ("CONF", Align::Right),
        ("TXID", Align::Left),
    ]);
    for one in &transactions.transactions {
        table.row([
            one.at.map_or_else(|| "-".to_owned(), moment),
            transaction_kind(one.kind).to_owned(),
            signed_sat(one.delta_sat),
            one.fee_sat.map_or_else(|| "-".to_owned(), sat),
            one.confirmations.to_string(),
            one.txid.clone(),
        ]);
    }
    table.text(style)
}

/// The twelve words, numbered down three columns.
pub fn words(words: &Words, style: Style) -> String {
    let mut text = String::new();
    let rows = words.words.len().div_ceil(3).max(1);
    for row in 0..rows {
        let mut line = String::new();
        for (at, word) in words.words.iter().enumerate().skip(row).step_by(rows) {
            let number = format!("{:>2}", at + 1);
            let _ = write!(line, "{} {word:<12}", style.dim(&number));
        }
        let _ = writeln!(text, "{}", line.trim_end());
    }
    if words.birth_height > 0 {
        let height = words.birth_height;
        let _ = writeln!(
            text,
            "\nbirth height {height} (write it down too: restoring is quicker)"
        );
    }
    text
}

/// Channels, one a line, and below them what wants attention.
pub fn channels(channels: &Channels, style: Style) -> String {
    if channels.channels.is_empty() {
        return "no channels; the first lease with a peer opens one, --all shows closed ones\n"
            .to_owned();
    }
    let mut table = Table::new([
        ("CHANNEL", Align::Left),
        ("ROLE", Align::Left),
        ("PEER", Align::Left),
        ("STATE", Align::Left),
        ("CAPACITY", Align::Right),
        ("PAID", Align::Right),
        ("LEFT", Align::Right),
        ("CREDIT", Align::Right),
        ("CONF", Align::Right),
        ("EXPIRES", Align::Left),
    ]);
    let mut notes = String::new();
    for one in &channels.channels {
        table.row([
            short(&one.id),
            channel_role(one.role).to_owned(),
            peer(&one.peer),
            channel_state(one.state).to_owned(),
            sat(one.capacity_sat),
            sat(one.paid_sat),
            sat(one.remaining_sat),
            msat(one.credit_msat),
            one.confirmations.to_string(),
            match one.expires_in_blocks {
                0 => format!("since {}", one.expiry_height),
                blocks => format!("in {}", count(blocks, "block")),
            },
        ]);
        if let Some(why) = &one.reason {
            let mark = style.warn("!");
            let _ = write!(notes, "{mark} {} {}", short(&one.id), reason(why, style));
        }
        if let Some(step) = next_step(one).filter(|step| step.in_blocks <= SOON_BLOCKS) {
            let _ = writeln!(notes, "{} {}", short(&one.id), step_text(step));
        }
        if let Some(note) = refund_note(one) {
            let _ = writeln!(notes, "{} {note}", short(&one.id));
        }
    }
    table.text(style) + &notes
}

fn refund_note(channel: &Channel) -> Option<String> {
    let refund = channel.refund.as_ref()?;
    let amount = sat(refund.amount_sat);
    match (&refund.txid, refund.due) {
        (Some(txid), _) => Some(format!("{amount} on the way back in {txid}")),
        (None, true) => Some(format!(
            "{amount} can be taken back: bitmesh channels refund {}",
            short(&channel.id)
        )),
        (None, false) => None,
    }
}

/// Steps that are further away than this are no news in a list: three days.
const SOON_BLOCKS: u32 = 432;

/// What people want to know first: when it is closed, or else what comes next.
fn next_step(channel: &Channel) -> Option<&ChannelStep> {
    let closes = |step: &&ChannelStep| step.what == StepKind::Closes;
    channel
        .steps
        .iter()
        .find(closes)
        .or_else(|| channel.steps.first())
}

fn step_text(step: &ChannelStep) -> String {
    let what = match step.what {
        StepKind::Stops => "stops",
        StepKind::CarriesOver => "carries over",
        StepKind::Asks => "asks to close together",
        StepKind::Closes => "closes",
        StepKind::BidsMore => "bids more",
        StepKind::BidsHalf => "bids up to half",
        StepKind::Expires => "expires",
    };
    format!(
        "{what} at block {}, in {}: {}",
        step.height,
        count(step.in_blocks, "block"),
        step.why
    )
}

/// One channel, with all that will happen to it.
pub fn channel(channel: &Channel, style: Style) -> String {
    let mut lines = Lines::new();
    lines.row("channel", &channel.id);
    lines.row("role", channel_role(channel.role));
    lines.row("peer", &channel.peer);
    lines.row("state", channel_state(channel.state));
    if let Some(why) = &channel.reason {
        lines.row("", reason(why, style).trim_end());
    }
    lines.row("capacity", sat(channel.capacity_sat));
    lines.row(
        "paid",
        format!(
            "{}, {} left",
            sat(channel.paid_sat),
            sat(channel.remaining_sat)
        ),
    );
    lines.row("credit", msat(channel.credit_msat));
    if let Some(limit) = channel.exposure_limit_sat {
        lines.row("counts", format!("up to {} at this depth", sat(limit)));
    }
    if let Some(funding) = &channel.funding {
        let deep = count(channel.confirmations, "confirmation");
        lines.row("funding", format!("{funding}, {deep}"));
    }
    lines.row("fees", sat(channel.fees_sat));
    lines.row(
        "expires",
        match channel.expires_in_blocks {
            0 => format!("since block {}", channel.expiry_height),
            blocks => format!(
                "at block {}, in {}",
                channel.expiry_height,
                count(blocks, "block")
            ),
        },
    );
    for step in &channel.steps {
        lines.row("", step_text(step));
    }
    if let Some(note) = refund_note(channel) {
        lines.row("refund", note);
    }
    if let Some(from) = &channel.carried_from {
        lines.row("carried from", from);
    }
    if let Some(into) = &channel.carried_into {
        lines.row("carried into", into);
    }
    if let Some(txid) = &channel.closing_txid {
        lines.row("closed by", txid);
    }
    lines.text(style)
}

/// Channels that are closed in batches, and those that are not worth it.
pub fn channels_closed(closed: &ChannelsClosed, style: Style) -> String {
    if closed.closes.is_empty() && closed.left_open.is_empty() {
        return "nothing to close: nobody has paid this node on an open channel\n".to_owned();
    }
    let mut text = String::new();
    for close in &closed.closes {
        let mut table = Table::new([
            ("CHANNEL", Align::Left),
            ("PEER", Align::Left),
            ("ARRIVES", Align::Right),
            ("FEE", Align::Right),
            ("LEASE", Align::Left),
        ]);
        for share in &close.channels {
            table.row([
                short(&share.channel),
                peer(&share.peer),
                sat(share.received_sat),
                sat(share.fee_sat),
                if share.ends_lease { "ends" } else { "" }.to_owned(),
            ]);
        }
        text += &table.text(style);
        let mut lines = Lines::new();
        lines.row(
            "arrives",
            format!(
                "{} after a fee of {} for {} vB",
                sat(close.received_sat),
                sat(close.fee_sat),
                close.vbytes
            ),
        );
        match &close.txid {
            Some(txid) => lines.row("txid", txid),
            None => lines.row("", "nothing was broadcast yet"),
        }
        match &close.problem {
            Some(why) => lines.row("", reason(why, style).trim_end()),
            None if close.txid.is_some() && !close.broadcast => lines.row("", NOT_HANDED_OVER),
            None => {}
        }
        text += &lines.text(style);
    }
    for left in &closed.left_open {
        let _ = writeln!(
            text,
            "{} {} stays open: closing it would cost {} of {}",
            style.warn("!"),
            short(&left.channel),
            sat(left.fee_sat),
            sat(left.paid_sat)
        );
    }
    text
}

/// Channels that one transaction opens, or would.
pub fn channels_opened(opened: &ChannelsOpened, style: Style) -> String {
    let mut table = Table::new([
        ("CHANNEL", Align::Left),
        ("SELLER", Align::Left),
        ("HOLDS", Align::Right),
        ("FEE", Align::Right),
        ("FIRST", Align::Right),
        ("", Align::Left),
    ]);
    for channel in &opened.channels {
        table.row([
            channel.channel.as_deref().map_or("-".to_owned(), short),
            peer(&channel.peer),
            sat(channel.capacity_sat),
            sat(channel.funding_fee_sat),
            channel.first_sat.map_or("-".to_owned(), sat),
            match channel.found_by_words {
                true => String::new(),
                false => style.warn("needs a backup"),
            },
        ]);
    }
    let mut text = table.text(style);
    let mut lines = Lines::new();
    lines.row(
        "locks",
        format!(
            "{}; what is not paid comes back when the channels are closed",
            sat(opened.capacity_sat)
        ),
    );
    lines.row(
        "fees",
        format!(
            "funding {} for {} vB; closing {} each, the seller's; at {}",
            sat(opened.funding_fee_sat),
            opened.vbytes,
            sat(opened.close_fee_sat),
            feerate(opened.feerate_sat_per_kvb)
        ),
    );
    lines.row(
        "",
        format!(
            "{} what the channels hold; at most 5 % of a turnover from {} on",
            text::share(opened.fee_share_ppm),
            sat(opened.turnover_sat)
        ),
    );
    match &opened.txid {
        Some(txid) => lines.row("txid", txid),
        None => {
            let most = sat(opened.max_first_sat);
            lines.row(
                "first",
                format!("at most {most} when a channel is first used, as credit"),
            );
            lines.row("", "nothing was asked or signed yet");
        }
    }
    if opened.txid.is_some() && !opened.broadcast {
        lines.row("", NOT_HANDED_OVER);
    }
    text += &lines.text(style);
    if opened
        .channels
        .iter()
        .any(|channel| !channel.found_by_words)
    {
        let _ = writeln!(
            text,
            "{} the twelve words alone do not find what needs a backup, since the wallet has too few\n\
             coins: \"bitmesh backup create\" once they are open.",
            style.warn("!")
        );
    }
    for left in &opened.left_out {
        let _ = writeln!(
            text,
            "{} no channel with {}: {}",
            style.warn("!"),
            peer(&left.peer),
            reason(&left.reason, style).trim_end()
        );
    }
    text
}

/// What a closing transaction brings.
pub fn channel_closed(closed: &ChannelClosed, style: Style) -> String {
    let mut lines = Lines::new();
    lines.row("channel", &closed.channel);
    let how = match closed.how {
        ChannelEnd::Together => "together with the other side",
        ChannelEnd::Alone => "alone, with the last voucher",
        ChannelEnd::Refund => "by taking everything back",
    };
    lines.row("closes", how);
    if let Some(because) = &closed.because {
        lines.row("", format!("not together: {because}"));
    }
    lines.row(
        "arrives",
        format!(
            "{} after a fee of {}",
            sat(closed.received_sat),
            sat(closed.fee_sat)
        ),
    );
    match &closed.txid {
        Some(txid) => lines.row("txid", txid),
        None => lines.row("", "nothing was broadcast yet"),
    }
    if closed.txid.is_some() && !closed.broadcast {
        lines.row("", NOT_HANDED_OVER);
    }
    lines.text(style)
}

/// What carrying a channel over brings.
pub fn channel_rolled_over(rolled: &ChannelRolledOver, style: Style) -> String {
    let mut lines = Lines::new();
    lines.row("channel", &rolled.channel);
    if let Some(next) = &rolled.next {
        lines.row("carried into", next);
    }
    let settled = sat(rolled.settled_sat);
    lines.row("seller gets", format!("{settled}, and pays the fee of it"));
    lines.row("goes on", sat(rolled.capacity_sat));
    if rolled.change_sat > 0 {
        lines.row("comes back", sat(rolled.change_sat));
    }
    if let Some(height) = rolled.expiry_height {
        lines.row("expires", format!("at block {height}"));
    }
    match &rolled.txid {
        Some(txid) => lines.row("txid", txid),
        None => lines.row("", "nothing was broadcast yet"),
    }
    if rolled.txid.is_some() && !rolled.broadcast {
        lines.row("", NOT_HANDED_OVER);
    }
    lines.text(style)
}

/// The accounts: totals, then the lines that they are the sums of.
pub fn earnings(earnings: &Earnings, now: Timestamp, style: Style) -> String {
    let mut totals = Table::new([
        ("", Align::Left),
        ("LEASES", Align::Right),
        ("CARRIED", Align::Right),
        ("BILLED", Align::Right),
        ("PAID", Align::Right),
        ("ON CHAIN", Align::Right),
        ("OPEN", Align::Right),
        ("FEES", Align::Right),
    ]);
    for (name, sums) in [("sold", &earnings.selling), ("bought", &earnings.buying)] {
        totals.row(totals_row(name, sums));
    }
    let mut text = totals.text(style);
    if !earnings.leases.is_empty() {
        let mut table = Table::new([
            ("LEASE", Align::Left),
            ("ROLE", Align::Left),
            ("PEER", Align::Left),
            ("STATE", Align::Left),
            ("CARRIED", Align::Right),
            ("BILLED", Align::Right),
            ("PAID", Align::Right),
            ("OPENED", Align::Left),
        ]);
        for one in &earnings.leases {
            table.row([
                short(&one.lease),
                role(one.role).to_owned(),
                peer(&one.peer),
                lease_state(one.state).to_owned(),
                size(one.bytes),
                msat(one.billed_msat),
                msat(one.paid_msat),
                ago(one.opened_at, now),
            ]);
        }
        let _ = write!(text, "\n{}", table.text(style));
    }
    if !earnings.channels.is_empty() {
        let mut table = Table::new([
            ("CHANNEL", Align::Left),
            ("ROLE", Align::Left),
            ("PEER", Align::Left),
            ("STATE", Align::Left),
            ("CAPACITY", Align::Right),
            ("PAID", Align::Right),
            ("ON CHAIN", Align::Right),
            ("FEES", Align::Right),
        ]);
        for one in &earnings.channels {
            table.row([
                short(&one.channel),
                channel_role(one.role).to_owned(),
                peer(&one.peer),
                channel_state(one.state).to_owned(),
                sat(one.capacity_sat),
                sat(one.paid_sat),
                sat(one.received_sat),
                sat(one.fees_sat),
            ]);
        }
        let _ = write!(text, "\n{}", table.text(style));
    }
    if let Some(audit) = &earnings.audit {
        let _ = write!(text, "\n{}", audited(audit, style));
    }
    text
}

/// What an audit found: accounts, then what disagrees, figure by figure.
fn audited(audit: &Audit, style: Style) -> String {
    let mut table = Table::new([
        ("ACCOUNT", Align::Left),
        ("ROLE", Align::Left),
        ("PEER", Align::Left),
        ("BALANCE", Align::Right),
    ]);
    for one in &audit.balances {
        table.row([
            one.account.clone(),
            one.role.map_or("-", role).to_owned(),
            one.peer.as_deref().map_or_else(|| "-".to_owned(), peer),
            format!("{} msat", one.balance_msat),
        ]);
    }
    let mut text = table.text(style);
    let _ = writeln!(text);
    for one in &audit.misfits {
        let _ = writeln!(text, "{} {}: {}", style.bad("record"), one.whose, one.why);
    }
    for one in &audit.disagreements {
        let _ = writeln!(
            text,
            "{} {}: {}",
            style.bad("disagrees"),
            one.whose,
            one.rule
        );
        let figures = [
            (one.left.as_str(), one.left_figure),
            (one.right.as_str(), one.right_figure),
            ("difference", one.difference),
        ];
        for (name, figure) in figures {
            let _ = writeln!(text, "  {name:<30} {figure:>20} {}", one.unit);
        }
    }
    let what = format!("{} entries, {} comparisons", audit.entries, audit.compared);
    let found = audit
        .misfits
        .len()
        .saturating_add(audit.disagreements.len());
    let verdict = match found {
        0 => style.good("everything agrees"),
        1 => style.bad("1 thing does not agree"),
        found => style.bad(&format!("{found} things do not agree")),
    };
    let _ = writeln!(text, "{what}: {verdict}");
    if !audit.chain {
        let _ = writeln!(
            text,
            "{} the chain was not compared: it has not been read to its end; ask again when \
             \"bitmesh status\" says so",
            style.warn("note:")
        );
    }
    text
}

/// The entries of the books as CSV (RFC 4180), a header line first.
pub fn entries_csv(entries: &[LedgerEntry]) -> Vec<u8> {
    let mut table = csv::WriterBuilder::new()
        .terminator(csv::Terminator::CRLF)
        .from_writer(Vec::new());
    let optional = |text: &Option<String>| text.clone().unwrap_or_default();
    let header = [
        "at",
        "what",
        "from",
        "to",
        "amount_msat",
        "bytes",
        "role",
        "peer",
        "lease",
        "channel",
        "txid",
    ];
    let _ = table.write_record(header);
    for one in entries {
        let _ = table.write_record([
            one.at.map(|at| at.to_string()).unwrap_or_default(),
            one.what.clone(),
            one.from.clone(),
            one.to.clone(),
            one.amount_msat.to_string(),
            one.bytes.map(|bytes| bytes.to_string()).unwrap_or_default(),
            one.role.map_or("", role).to_owned(),
            optional(&one.peer),
            optional(&one.lease),
            optional(&one.channel),
            optional(&one.txid),
        ]);
    }
    table
        .into_inner()
        .expect("a Vec takes any number of bytes, and all records are of one length")
}

fn totals_row(name: &str, totals: &Totals) -> [String; 8] {
    [
        name.to_owned(),
        totals.leases.to_string(),
        size(totals.bytes),
        msat(totals.billed_msat),
        sat(totals.paid_sat),
        sat(totals.received_sat),
        sat(totals.open_sat),
        sat(totals.fees_sat),
    ]
}
