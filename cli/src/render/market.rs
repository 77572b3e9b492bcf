//! Selling, offers, purchases, leases, usage.

use std::fmt::Write;

use bitmesh_market::units::{Bytes, Price};
use bitmesh_node::control::api::{
    Cost, Lease, LeaseState, Leases, Mode, Offers, Outcome, PriceRule, Purchase, Quote, Role,
    SellPhase, Selling, Timestamp, Usage, UsageLine,
};

use super::{
    table::{Align, Lines, Table},
    text,
    text::{
        ago, count, feerate, lease_state, millis, mode, moment, msat, outcome, peer, phase, price,
        rate, reason, role, sat, short, size, span, total, until,
    },
};
use crate::output::Style;

/// Above this share of the traffic's cost fees deserve a second look.
const FEES_WORTH_A_WORD_PPM: u64 = 100_000;

/// Nothing below this is relayed, in sat per 1,000 virtual bytes: there is no point in waiting for it.
const LEAST_FEERATE: u64 = 1_000;

/// So much of a peer id is enough to name it.
const TYPED: usize = 16;

/// The longest that a lease is said to last yet.
const LEFT_MAX: u64 = 30 * 86_400;

/// How many places the bar of a lease's quota takes.
const BAR: u64 = 16;

pub(super) fn rule(rule: &PriceRule) -> &'static str {
    match rule {
        PriceRule::Fixed { .. } => "fixed",
    }
}

/// `3 of 8 leases   11.2 Mbit/s of 20 Mbit/s`.
pub(super) fn limits_line(selling: &Selling) -> String {
    let limits = &selling.limits;
    if selling.phase == SellPhase::Stopped {
        return match selling.leases {
            0 => "no leases".to_owned(),
            some => format!("{}: closing, with a last receipt", count(some, "lease")),
        };
    }
    let leases = match limits.leases {
        Some(most) => format!("{} of {}", selling.leases, count(most, "lease")),
        None => count(selling.leases, "lease"),
    };
    let speed = match limits.rate_bytes_per_s {
        Some(most) => format!("{} of {}", rate(selling.rate_bytes_per_s), rate(most)),
        None => rate(selling.rate_bytes_per_s),
    };
    format!("{leases}   {speed}")
}

/// The seller's side.
pub fn selling(selling: &Selling, now: Timestamp, style: Style) -> String {
    let limits = &selling.limits;
    let state = match selling.phase {
        SellPhase::Offering => style.good(phase(selling.phase)),
        SellPhase::Paused => style.warn(phase(selling.phase)),
        SellPhase::Stopped => phase(selling.phase).to_owned(),
    };
    let mut lines = Lines::new();
    lines.row(
        "state",
        match (selling.phase, selling.offer_expires_at) {
            (SellPhase::Offering, Some(at)) => format!(
                "{state}   handed to {}, expires {} unless renewed",
                count(selling.visible_to, "peer"),
                until(at, now)
            ),
            (SellPhase::Paused, _) => format!("{state}   present leases are served to their end"),
            (SellPhase::Offering | SellPhase::Stopped, _) => state,
        },
    );
    lines.row(
        "price",
        format!(
            "{} ({})",
            price(selling.price_msat_per_gb),
            rule(&selling.rule)
        ),
    );
    lines.row("serving", limits_line(selling));
    let known = |value: Option<String>| value.unwrap_or_else(|| "no limit".to_owned());
    lines.row("rate", known(limits.rate_bytes_per_s.map(rate)));
    lines.row("lease rate", known(limits.lease_rate_bytes_per_s.map(rate)));
    lines.row(
        "leases",
        known(limits.leases.map(|leases| leases.to_string())),
    );
    lines.row("lease size", known(limits.lease_bytes.map(size)));
    if let Some(postpaid) = limits.postpaid {
        lines.row(
            "postpaid",
            if postpaid {
                "yes, within one window"
            } else {
                "no"
            },
        );
    }
    lines.text(style)
}

/// What others offer.
pub fn offers(offers: &Offers, now: Timestamp, style: Style) -> String {
    if offers.offers.is_empty() {
        return match offers.total {
            0 => "no offers yet; \"bitmesh peers\" shows whether anybody is connected\n".to_owned(),
            total => format!("none of {} fits; ask for less\n", count(total, "offer")),
        };
    }
    let mut table = Table::new([
        ("SELLER", Align::Left),
        ("PRICE", Align::Right),
        ("RATE", Align::Right),
        ("UP TO", Align::Right),
        ("PAY", Align::Left),
        ("REGION", Align::Left),
        ("EGRESS", Align::Left),
        ("EXPIRES", Align::Left),
        ("", Align::Left),
    ]);
    for offer in &offers.offers {
        let pay = match offer.modes.as_slice() {
            [] => "-",
            [one] => mode(*one),
            [_, _, ..] => "either",
        };
        let near = match (offer.channel_open, offer.connected) {
            (true, _) => "channel open",
            (false, true) => "connected",
            (false, false) => "",
        };
        table.row([
            peer(&offer.seller),
            price(offer.price_msat_per_gb),
            rate(offer.rate_bytes_per_s),
            size(offer.max_bytes),
            pay.to_owned(),
            offer.region.clone().unwrap_or_else(|| "-".to_owned()),
            offer.egress.clone(),
            until(offer.expires_at, now),
            near.to_owned(),
        ]);
    }
    let mut text = table.text(style);
    let shown = u32::try_from(offers.offers.len()).unwrap_or(u32::MAX);
    if shown < offers.total {
        let rest = format!("{shown} of {}", count(offers.total, "offer"));
        let _ = writeln!(text, "{}", style.dim(&rest));
    }
    text
}

/// What came of a purchase, or would.
pub fn purchase(purchase: &Purchase, style: Style) -> String {
    let mut text = offered(purchase, style);

    let Some(lease) = &purchase.lease else {
        text.push_str("Nothing was bought: this was a dry run.\n");
        return text;
    };
    let _ = writeln!(
        text,
        "Lease {} is {} after {}: {} {}.",
        style.bold(&short(&lease.id)),
        lease_state(lease.state),
        millis(purchase.took_ms),
        size(lease.quota_bytes),
        match (purchase.cost.traffic_msat, purchase.cost.most_msat) {
            (0, _) => "for free".to_owned(),
            (_, 0) => "paid by credit".to_owned(),
            (_, most) => format!("for at most {}", msat(most)),
        }
    );
    if let Some(proxy) = &lease.proxy {
        let _ = writeln!(text, "Proxy  {}   (SOCKS5 and HTTP)", style.bold(proxy));
        let _ = writeln!(
            text,
            "Try    curl --proxy socks5h://{proxy} https://example.org"
        );
    }
    let _ = writeln!(text, "Watch  bitmesh usage --watch");
    let _ = writeln!(text, "Close  bitmesh lease close {}", short(&lease.id));
    text
}

/// What opening a channel costs, before somebody agrees to it. `days` is how long the channel lives.
pub fn opening(purchase: &Purchase, days: u64, style: Style) -> String {
    let cost = &purchase.cost;
    let mut text = offered(purchase, style);
    let _ = writeln!(
        text,
        "This opens a channel: {} leave the wallet now, {} of them to be paid at once.\n\
         What is not paid stays locked until the seller closes the channel, or until it expires in\n\
         about {days} days.",
        sat(cost.capacity_sat.saturating_add(cost.funding_fee_sat)),
        msat(purchase.quote.min_first_msat),
    );
    text
}

/// What would be cheaper than opening a channel for this purchase alone, where its fees are much.
fn cheaper(cost: &Cost, style: Style) -> String {
    let Some(cheaper) = &cost.cheaper else {
        return String::new();
    };
    let mut text = format!(
        "{} opening and closing a channel is {} the cost of the traffic. Cheaper would be:\n",
        style.warn("warning:"),
        text::share(cost.fee_share_ppm)
    );
    if let Some(channel) = &cheaper.channel {
        let _ = writeln!(
            text,
            "- the channel {} that is open already: --from {}, {}",
            short(&channel.channel),
            channel.seller.chars().take(TYPED).collect::<String>(),
            price(channel.price_msat_per_gb)
        );
    }
    let _ = writeln!(
        text,
        "- to buy more at once, or again from this seller: 5 % at a turnover of {} on the channel",
        sat(cost.turnover_sat)
    );
    if cheaper.feerate_sat_per_kvb >= LEAST_FEERATE {
        let _ = writeln!(
            text,
            "- to wait for fees of {} or less: 10 % for this purchase alone",
            feerate(cheaper.feerate_sat_per_kvb)
        );
    }
    text
}

/// The sellers that were asked, and the terms of the one that was chosen.
fn offered(purchase: &Purchase, style: Style) -> String {
    let asked = purchase.considered.len();
    let mut text = format!(
        "{} fitted, asked {asked}\n",
        count(purchase.fitting, "offer")
    );
    let mut table = Table::new([
        ("SELLER", Align::Left),
        ("PRICE", Align::Right),
        ("RATE", Align::Right),
        ("", Align::Left),
    ]);
    for one in &purchase.considered {
        let mut came = outcome(one.outcome).to_owned();
        if let (Outcome::Refused, Some(detail)) = (one.outcome, &one.detail) {
            let _ = write!(came, ": {detail}");
        }
        table.row([
            peer(&one.seller),
            price(one.price_msat_per_gb),
            rate(one.rate_bytes_per_s),
            came,
        ]);
    }
    let _ = write!(
        text,
        "{}\n{}\n",
        table.text(style),
        terms(&purchase.quote, &purchase.cost, style)
    );
    text += &cheaper(&purchase.cost, style);
    text
}

/// What a purchase costs and when it is paid.
fn terms(quote: &Quote, cost: &Cost, style: Style) -> String {
    let mut lines = Lines::new();
    lines.row(
        "quota",
        format!(
            "{} at {} = {}",
            size(quote.bytes),
            price(quote.price_msat_per_gb),
            msat(cost.traffic_msat)
        ),
    );
    lines.row(
        "rate",
        match quote.assured_bytes_per_s {
            // Nothing was asked for: the wire has no zero.
            0 | 1 => format!("up to {}", rate(quote.rate_bytes_per_s)),
            assured => format!(
                "up to {}; {} assured",
                rate(quote.rate_bytes_per_s),
                rate(assured)
            ),
        },
    );
    if quote.carried_msat > 0 {
        lines.row(
            "credit",
            format!("{} from earlier is used first", msat(quote.carried_msat)),
        );
    }
    let window = Price::from_msat_per_gb(quote.price_msat_per_gb)
        .cost_of(Bytes::new(quote.window_bytes))
        .map_or_else(|| size(quote.window_bytes), |cost| cost.to_string());
    let when = match quote.mode {
        Mode::Prepaid => format!("as it is carried, {window} ahead at most"),
        Mode::Postpaid => format!("after it is carried, {window} behind at most"),
    };
    lines.row(
        "pays",
        format!("{when}; {} in all at most", msat(cost.most_msat)),
    );
    if quote.min_first_msat > 0 {
        let first = msat(quote.min_first_msat);
        lines.row(
            "first",
            format!("{first} at once; that is credit with the seller, not a fee"),
        );
    }
    if cost.opens_channel {
        let capacity = sat(cost.capacity_sat);
        lines.row(
            "channel",
            format!("a new one of {capacity}; what is not paid comes back"),
        );
        lines.row(
            "fees",
            format!(
                "funding {}; closing {}, the seller's; refund if the seller vanishes {}; at {}",
                sat(cost.funding_fee_sat),
                sat(cost.close_fee_sat),
                sat(cost.refund_fee_sat),
                feerate(cost.feerate_sat_per_kvb)
            ),
        );
        if cost.further_channels > 0 {
            let further = count(cost.further_channels, "further channel");
            lines.row(
                "",
                format!("{further} while the lease runs, as one may not hold all of it"),
            );
        }
        let each = cost.funding_fee_sat.saturating_add(cost.close_fee_sat);
        let total = each.saturating_mul(u64::from(cost.further_channels) + 1);
        let share = format!(
            "{}, which is {} the cost of the traffic",
            sat(total),
            text::share(cost.fee_share_ppm)
        );
        let share = if cost.fee_share_ppm > FEES_WORTH_A_WORD_PPM {
            style.warn(&share)
        } else {
            share
        };
        lines.row(
            "",
            format!(
                "{share}; at most 5 % of a turnover from {} on",
                sat(cost.turnover_sat)
            ),
        );
    } else {
        lines.row("channel", "open already: nothing goes on chain");
    }
    lines.row("egress", &quote.egress);
    lines.text(style)
}

/// Leases, one a line, and below them why some are paused.
pub fn leases(leases: &Leases, now: Timestamp, style: Style) -> String {
    if leases.leases.is_empty() {
        return "no leases; \"bitmesh buy 1GB\" makes one, --all shows closed ones\n".to_owned();
    }
    let mut table = Table::new([
        ("LEASE", Align::Left),
        ("ROLE", Align::Left),
        ("PEER", Align::Left),
        ("STATE", Align::Left),
        ("USED", Align::Right),
        ("OF", Align::Right),
        ("BILLED", Align::Right),
        ("PAID", Align::Right),
        ("PRICE", Align::Right),
        ("OPENED", Align::Left),
    ]);
    let mut reasons = String::new();
    for lease in &leases.leases {
        table.row([
            short(&lease.id),
            role(lease.role).to_owned(),
            peer(&lease.peer),
            lease_state(lease.state).to_owned(),
            size(total(&lease.reading)),
            size(lease.quota_bytes),
            msat(lease.billed_msat),
            msat(lease.paid_msat),
            price(lease.price_msat_per_gb),
            ago(lease.opened_at, now),
        ]);
        let waits = matches!(lease.state, LeaseState::Paused | LeaseState::Detached);
        if let Some(why) = lease.reason.as_ref().filter(|_| waits) {
            let mark = style.warn("!");
            let _ = write!(
                reasons,
                "{mark} {} {}",
                short(&lease.id),
                reason(why, style)
            );
        }
    }
    table.text(style) + &reasons
}

/// One lease in full.
pub fn lease(lease: &Lease, now: Timestamp, style: Style) -> String {
    let mut lines = Lines::new();
    let state = lease_state(lease.state);
    lines.row("lease", style.bold(&lease.id));
    lines.row(
        "state",
        match lease.state {
            LeaseState::Active => style.good(state),
            LeaseState::Paused | LeaseState::Detached => style.warn(state),
            LeaseState::Opening | LeaseState::Closing | LeaseState::Closed => state.to_owned(),
        },
    );
    if let Some(why) = &lease.reason {
        lines.row("because", &why.message);
        if let Some(hint) = &why.hint {
            lines.row("next", hint);
        }
    }
    let other = match lease.role {
        Role::Buyer => "seller",
        Role::Seller => "buyer",
    };
    lines.row(other, &lease.peer);
    lines.row(
        "terms",
        format!(
            "{}, {}, {}, window {}",
            price(lease.price_msat_per_gb),
            rate(lease.rate_bytes_per_s),
            mode(lease.mode),
            size(lease.window_bytes)
        ),
    );
    lines.row(
        "used",
        format!(
            "{} of {}   up {}   down {}",
            size(total(&lease.reading)),
            size(lease.quota_bytes),
            size(lease.reading.up_bytes),
            size(lease.reading.down_bytes)
        ),
    );
    if lease.state == LeaseState::Active {
        lines.row("speed", rate(lease.speed_bytes_per_s));
    }
    lines.row("billed", msat(lease.billed_msat));
    lines.row("paid", paid(lease));
    if let Some(receipt) = &lease.receipt {
        lines.row(
            "receipt",
            format!(
                "no. {}   {} for {}   paid {}   {}",
                receipt.seq,
                msat(receipt.billed_msat),
                size(total(&receipt.reading)),
                msat(receipt.paid_msat),
                if receipt.cosigned {
                    "signed by both"
                } else {
                    "not countersigned yet"
                }
            ),
        );
    }
    if let Some(proxy) = &lease.proxy {
        lines.row("proxy", format!("{proxy} (SOCKS5 and HTTP)"));
    }
    if let Some(channel) = &lease.channel {
        lines.row("channel", channel);
    }
    lines.row(
        "opened",
        format!(
            "{} ({})",
            moment(lease.opened_at),
            ago(lease.opened_at, now)
        ),
    );
    match (lease.closed_at, lease.ends_at) {
        (Some(at), _) => lines.row("closed", format!("{} ({})", moment(at), ago(at, now))),
        (None, Some(at)) => lines.row("ends", format!("{} ({})", moment(at), until(at, now))),
        (None, None) => {}
    }
    lines.text(style)
}

/// What was paid, and how that stands to what was billed.
fn paid(lease: &Lease) -> String {
    let mut text = msat(lease.paid_msat);
    if lease.carried_msat > 0 {
        let _ = write!(
            text,
            ", of which {} was credit from earlier",
            msat(lease.carried_msat)
        );
    }
    let (paid, billed) = (lease.paid_msat, lease.billed_msat);
    if paid > billed {
        let _ = write!(text, "   ({} ahead)", msat(paid - billed));
    } else if billed > paid {
        let _ = write!(text, "   ({} behind)", msat(billed - paid));
    }
    text
}

/// What open leases have carried and cost.
pub fn usage(usage: &Usage, style: Style) -> String {
    if usage.leases.is_empty() {
        return "no open leases; \"bitmesh buy 1GB\" makes one\n".to_owned();
    }
    let mut table = Table::new([
        ("LEASE", Align::Left),
        ("ROLE", Align::Left),
        ("PEER", Align::Left),
        ("USED", Align::Right),
        ("OF", Align::Right),
        ("", Align::Left),
        ("BILLED", Align::Right),
        ("PAID", Align::Right),
        ("SPEED", Align::Right),
        ("LEFT", Align::Left),
    ]);
    for line in &usage.leases {
        let used = total(&line.reading);
        table.row([
            short(&line.lease),
            role(line.role).to_owned(),
            peer(&line.peer),
            size(used),
            size(line.quota_bytes),
            bar(used, line.quota_bytes),
            msat(line.billed_msat),
            msat(line.paid_msat),
            match line.state {
                LeaseState::Active => rate(line.speed_bytes_per_s),
                other => lease_state(other).to_owned(),
            },
            left(line),
        ]);
    }
    table.text(style)
}

/// `[██████████░░░░░░]  62 %`.
fn bar(used: u64, quota: u64) -> String {
    let filled = share(used, quota, BAR);
    let blocks = |number: u64, block: &str| (0..number).map(|_| block).collect::<String>();
    let (full, empty) = (blocks(filled, "█"), blocks(BAR - filled, "░"));
    format!("[{full}{empty}] {:>3} %", share(used, quota, 100))
}

/// `used / quota` in `parts`, rounded down and never more than all of them.
fn share(used: u64, quota: u64, parts: u64) -> u64 {
    let share = u128::from(used) * u128::from(parts) / u128::from(quota.max(1));
    u64::try_from(share).map_or(parts, |share| share.min(parts))
}

fn left(line: &UsageLine) -> String {
    let bytes = line.quota_bytes.saturating_sub(total(&line.reading));
    match bytes.checked_div(line.speed_bytes_per_s) {
        // Further ahead the present speed says nothing.
        Some(seconds) if line.state == LeaseState::Active && seconds <= LEFT_MAX => {
            format!("≈ {}", span(seconds))
        }
        Some(_) | None => "-".to_owned(),
    }
}
