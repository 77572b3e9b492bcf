//! Status, identity, peers, configuration, events.

use std::{
    fmt::{Display, Write},
    str::FromStr,
};

use bitmesh_market::units::{Bytes, BytesPerSecond, Price};
use bitmesh_node::control::api::{
    ConfigChange, ConfigValues, Event, Identity, Lease, PeerAdded, PeerDirection, Peers, SellPhase,
    Status, Timestamp,
};
use serde_json::Value;

use super::{
    market::{limits_line, rule},
    table::{Align, Lines, Table},
    text::{
        ago, channel_role, channel_state, count, feerate, lease_state, msat, peer, phase, price,
        rate, reason, role, sat, short, size, span, total,
    },
};
use crate::output::Style;

/// One screen: roles, leases, money, and what is wrong.
pub fn status(status: &Status, style: Style) -> String {
    let health = if status.healthy {
        style.good("healthy")
    } else {
        style.bad("needs attention")
    };
    let mut text = format!(
        "{} {}   {}   {}   up {}   {health}\n",
        style.bold("BitMesh"),
        status.version,
        peer(&status.node),
        status.network,
        span(status.uptime_s),
    );

    let mut lines = Lines::new();
    let selling = &status.selling;
    let offer = || {
        let price = price(selling.price_msat_per_gb);
        format!(
            "{price} ({})   {}",
            rule(&selling.rule),
            limits_line(selling)
        )
    };
    lines.row(
        "Selling",
        match selling.phase {
            SellPhase::Stopped => "off   (begin with: bitmesh sell start)".to_owned(),
            SellPhase::Offering => offer(),
            SellPhase::Paused => format!("{}   {}", style.warn("paused"), offer()),
        },
    );
    let mut buying = count(status.leases.buying, "lease");
    if let Some(proxy) = &status.proxy {
        let _ = write!(buying, "   proxy {proxy}");
    }
    lines.row("Buying", buying);
    if status.leases.paused > 0 {
        let paused = format!("{} paused", count(status.leases.paused, "lease"));
        lines.row(
            "",
            format!("{}   (why: bitmesh leases)", style.warn(&paused)),
        );
    }
    lines.row(
        "Traffic",
        format!(
            "earned {}   spent {}   outstanding {}",
            msat(status.earned_msat),
            msat(status.spent_msat),
            msat(status.outstanding_msat)
        ),
    );
    let wallet = &status.wallet;
    lines.row(
        "Wallet",
        format!(
            "{}   pending {}   locked in channels {}   to claim {}",
            sat(wallet.confirmed_sat),
            sat(wallet.pending_sat),
            sat(wallet.locked_sat),
            sat(wallet.claimable_sat)
        ),
    );
    lines.row(
        "Market",
        format!(
            "{}   {} of others",
            count(status.peers, "peer"),
            count(status.offers, "offer")
        ),
    );
    let chain = &status.chain;
    let mut blocks = format!("{}   height {}", chain.source, chain.height);
    if chain.source_height > chain.height {
        let _ = write!(blocks, " of {}", chain.source_height);
    }
    blocks.push_str(match (chain.connected, chain.synced) {
        (false, _) => "   not connected",
        (true, false) => "   catching up",
        (true, true) => "   synced",
    });
    if let Some(rate) = chain.feerate_sat_per_kvb {
        let _ = write!(blocks, "   {}", feerate(rate));
    }
    lines.row("Chain", blocks);
    text.push_str(&lines.text(style));
    for problem in &status.problems {
        let _ = write!(text, "{} {}", style.bad("!"), reason(problem, style));
    }
    text
}

/// Who this node is and where it can be reached.
pub fn identity(identity: &Identity, style: Style) -> String {
    let mut lines = Lines::new();
    lines.row("node", style.bold(&identity.node));
    lines.row("network", &identity.network);
    for (at, address) in identity.addresses.iter().enumerate() {
        lines.row(if at == 0 { "reachable at" } else { "" }, address);
    }
    if identity.addresses.is_empty() {
        lines.row("reachable at", "nowhere: it listens on no address yet");
    }
    lines.text(style)
}

/// Connected peers.
pub fn peers(peers: &Peers, now: Timestamp, style: Style) -> String {
    if peers.peers.is_empty() {
        return "no peers are connected; \"bitmesh peers add ADDRESS\" connects to one\n"
            .to_owned();
    }
    let mut table = Table::new([
        ("PEER", Align::Left),
        ("DIALLED BY", Align::Left),
        ("RTT", Align::Right),
        ("OFFERS", Align::Right),
        ("SINCE", Align::Left),
        ("ADDRESS", Align::Left),
    ]);
    for one in &peers.peers {
        table.row([
            peer(&one.node),
            match one.direction {
                PeerDirection::Inbound => "them".to_owned(),
                PeerDirection::Outbound => "us".to_owned(),
            },
            one.rtt_ms
                .map_or_else(|| "-".to_owned(), |rtt| format!("{rtt} ms")),
            one.offers.to_string(),
            ago(one.since, now),
            bare(&one.address).to_owned(),
        ]);
    }
    table.text(style)
}

/// An address without the peer's id at its end.
fn bare(address: &str) -> &str {
    address
        .split_once("/p2p/")
        .map_or(address, |(bare, _)| bare)
}

/// The dial has begun.
pub fn peer_added(added: &PeerAdded, _style: Style) -> String {
    if added.connected {
        format!("connected to {}\n", added.node)
    } else {
        format!(
            "dialling {}; \"bitmesh peers\" shows when it answers\n",
            added.node
        )
    }
}

/// A value as it is read, not as it is quoted; an amount in the unit that suits it, where that says
/// the same.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => readable::<Price>(text)
            .or_else(|| readable::<BytesPerSecond>(text))
            .or_else(|| readable::<Bytes>(text))
            .unwrap_or_else(|| text.clone()),
        other => other.to_string(),
    }
}

fn readable<T: FromStr + Display + PartialEq>(text: &str) -> Option<String> {
    let amount: T = text.parse().ok()?;
    let shown = amount.to_string();
    (shown.parse::<T>().ok()? == amount).then_some(shown)
}

/// Settings and where each comes from; the bare value if there is only one.
pub fn config_values(values: &ConfigValues, style: Style) -> String {
    if let [one] = values.values.as_slice() {
        return format!("{}\n", plain(&one.value));
    }
    let mut table = Table::new([
        ("SETTING", Align::Left),
        ("VALUE", Align::Left),
        ("FROM", Align::Left),
    ]);
    for one in &values.values {
        let value = match plain(&one.value) {
            empty if empty.is_empty() => "\"\"".to_owned(),
            value => value,
        };
        table.row([one.key.clone(), value, one.origin.clone()]);
    }
    format!("{}{}\n", table.text(style), style.dim(&values.file))
}

/// A setting was changed.
pub fn config_change(change: &ConfigChange, style: Style) -> String {
    let mut text = format!(
        "{} is {} in {}\n",
        change.key,
        plain(&change.value),
        change.file
    );
    if change.restart_needed {
        let note = style.warn("note:");
        let _ = writeln!(
            text,
            "{note} it takes effect after \"bitmesh down\" and \"bitmesh up\""
        );
    }
    text
}

/// One line for one event.
pub fn event(event: &Event, _style: Style) -> String {
    let what = match event {
        Event::OfferSeen { offer } => format!(
            "{}   {}   {}",
            peer(&offer.seller),
            price(offer.price_msat_per_gb),
            rate(offer.rate_bytes_per_s)
        ),
        Event::OfferGone { seller } => peer(seller),
        Event::PeerConnected { node } | Event::PeerDisconnected { node } => peer(node),
        Event::SellingChanged { selling } => {
            format!(
                "{}   {}",
                phase(selling.phase),
                price(selling.price_msat_per_gb)
            )
        }
        Event::LeaseOpened { lease }
        | Event::LeasePaused { lease }
        | Event::LeaseResumed { lease }
        | Event::LeaseClosed { lease } => lease_line(lease),
        Event::Usage { usage } => format!(
            "{}   {} of {}   {}   {}",
            short(&usage.lease),
            size(total(&usage.reading)),
            size(usage.quota_bytes),
            msat(usage.billed_msat),
            rate(usage.speed_bytes_per_s)
        ),
        Event::Payment {
            role: side,
            lease,
            delta_msat,
            paid_msat,
            ..
        } => format!(
            "{}   {}   {} more, {} in all",
            short(lease),
            role(*side),
            msat(*delta_msat),
            msat(*paid_msat)
        ),
        Event::ChannelChanged { channel } => format!(
            "{}   {} {}   {} of {}",
            short(&channel.id),
            channel_role(channel.role),
            channel_state(channel.state),
            sat(channel.paid_sat),
            sat(channel.capacity_sat)
        ),
        Event::WalletChanged { wallet } => {
            format!(
                "{}   pending {}",
                sat(wallet.confirmed_sat),
                sat(wallet.pending_sat)
            )
        }
        Event::BlockConnected { height } => height.to_string(),
        Event::Lagged { missed } => format!("{missed} events were missed: this reader is too slow"),
        Event::Stopping {} => "the daemon is stopping".to_owned(),
        Event::Unknown => "an event of a later version".to_owned(),
    };
    format!("{:<18} {what}\n", event.name())
}

fn lease_line(lease: &Lease) -> String {
    let mut line = format!(
        "{}   {}   {} with {}   {}",
        short(&lease.id),
        lease_state(lease.state),
        role(lease.role),
        peer(&lease.peer),
        size(total(&lease.reading))
    );
    if let Some(why) = &lease.reason {
        let _ = write!(line, "   {}", why.message);
    }
    line
}
