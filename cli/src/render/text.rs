//! Words and figures that many screens share.

use bitmesh_market::units::{Bytes, BytesPerSecond, Msat, Price};
use bitmesh_node::control::api::{
    ChannelRole, ChannelState, LeaseState, Mode, Outcome, Reading, Reason, Role, SellPhase,
    Timestamp, TransactionKind,
};

use crate::output::Style;

pub(super) fn msat(msat: u64) -> String {
    Msat::from_msat(msat).to_string()
}

pub(super) fn sat(sat: u64) -> String {
    Msat::from_sat(sat).map_or_else(|| format!("{sat} sat"), |msat| msat.to_string())
}

/// A gain with its sign: `+1 000 sat`, `-154 sat`.
pub(super) fn signed_sat(delta: i64) -> String {
    let sign = if delta < 0 { '-' } else { '+' };
    format!("{sign}{}", sat(delta.unsigned_abs()))
}

pub(super) fn price(msat_per_gb: u64) -> String {
    Price::from_msat_per_gb(msat_per_gb).to_string()
}

pub(super) fn size(bytes: u64) -> String {
    Bytes::new(bytes).to_string()
}

pub(super) fn rate(bytes_per_s: u64) -> String {
    BytesPerSecond::new(bytes_per_s).to_string()
}

/// Up and down together, which is what is billed.
pub(super) fn total(reading: &Reading) -> u64 {
    reading.up_bytes.saturating_add(reading.down_bytes)
}

/// `2.5 sat/vB`.
pub(super) fn feerate(sat_per_kvb: u64) -> String {
    let text = format!("{}.{:03}", sat_per_kvb / 1_000, sat_per_kvb % 1_000);
    format!(
        "{} sat/vB",
        text.trim_end_matches('0').trim_end_matches('.')
    )
}

/// Parts per million as what they are of something that is named next: `4.2 % of`, `12 times`.
pub(super) fn share(ppm: u64) -> String {
    match ppm {
        0..100_000 => {
            let tenths = (ppm + 500) / 1_000;
            format!("{}.{} % of", tenths / 10, tenths % 10)
        }
        100_000..10_000_000 => format!("{} % of", (ppm + 5_000) / 10_000),
        _ => format!("{} times", ppm.saturating_add(500_000) / 1_000_000),
    }
}

/// `43 ms`, `1.4 s`.
pub(super) fn millis(millis: u64) -> String {
    if millis < 1_000 {
        format!("{millis} ms")
    } else {
        format!("{}.{} s", millis / 1_000, millis % 1_000 / 100)
    }
}

/// `2d 04h`, `2h 05m`, `5m 03s`, `7s`.
pub(super) fn span(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    if days > 0 {
        format!("{days}d {hours:02}h")
    } else if hours > 0 {
        format!("{hours}h {minutes:02}m")
    } else if minutes > 0 {
        format!("{minutes}m {:02}s", seconds % 60)
    } else {
        format!("{seconds}s")
    }
}

pub(super) fn ago(then: Timestamp, now: Timestamp) -> String {
    format!("{} ago", span(now.unix().saturating_sub(then.unix())))
}

/// `in 5m 03s`, or `now` once it has come.
pub(super) fn until(then: Timestamp, now: Timestamp) -> String {
    match then.unix().saturating_sub(now.unix()) {
        0 => "now".to_owned(),
        seconds => format!("in {}", span(seconds)),
    }
}

/// `2026-03-01 12:00:00 UTC`.
pub(super) fn moment(at: Timestamp) -> String {
    at.to_string().replace('T', " ").replace('Z', " UTC")
}

/// The beginning of a lease or channel id: enough to type, and to tell a day's leases apart.
pub(super) fn short(id: &str) -> String {
    cut(id, 8)
}

/// A peer id, short. All begin with `12D3KooW`; what follows can be given to `--from`.
pub(super) fn peer(id: &str) -> String {
    let count = id.chars().count();
    if count <= 20 {
        return id.to_owned();
    }
    let tail: String = id.chars().skip(count - 4).collect();
    format!("{}…{tail}", cut(id, 12))
}

fn cut(text: &str, length: usize) -> String {
    text.chars().take(length).collect()
}

/// `1 lease`, `3 leases`.
pub(super) fn count(number: u32, thing: &str) -> String {
    format!("{number} {thing}{}", if number == 1 { "" } else { "s" })
}

pub(super) fn role(role: Role) -> &'static str {
    match role {
        Role::Buyer => "buyer",
        Role::Seller => "seller",
    }
}

pub(super) fn mode(mode: Mode) -> &'static str {
    match mode {
        Mode::Prepaid => "prepaid",
        Mode::Postpaid => "postpaid",
    }
}

pub(super) fn lease_state(state: LeaseState) -> &'static str {
    match state {
        LeaseState::Opening => "opening",
        LeaseState::Active => "active",
        LeaseState::Paused => "paused",
        LeaseState::Detached => "detached",
        LeaseState::Closing => "closing",
        LeaseState::Closed => "closed",
    }
}

pub(super) fn channel_role(role: ChannelRole) -> &'static str {
    match role {
        ChannelRole::Payer => "payer",
        ChannelRole::Payee => "payee",
    }
}

pub(super) fn channel_state(state: ChannelState) -> &'static str {
    match state {
        ChannelState::Opening => "opening",
        ChannelState::Unconfirmed => "unconfirmed",
        ChannelState::Open => "open",
        ChannelState::Closing => "closing",
        ChannelState::Refunding => "refunding",
        ChannelState::Closed => "closed",
        ChannelState::Conflicted => "conflicted",
    }
}

pub(super) fn phase(phase: SellPhase) -> &'static str {
    match phase {
        SellPhase::Stopped => "not selling",
        SellPhase::Offering => "offering",
        SellPhase::Paused => "paused",
    }
}

pub(super) fn outcome(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Chosen => "chosen",
        Outcome::Quoted => "quoted",
        Outcome::Refused => "refused",
        Outcome::NoAnswer => "no answer",
    }
}

pub(super) fn transaction_kind(kind: TransactionKind) -> &'static str {
    match kind {
        TransactionKind::Received => "received",
        TransactionKind::Sent => "sent",
        TransactionKind::Funding => "funding",
        TransactionKind::Settlement => "settlement",
        TransactionKind::Refund => "refund",
    }
}

/// A reason, and its hint on the next line.
pub(super) fn reason(reason: &Reason, style: Style) -> String {
    match &reason.hint {
        Some(hint) => format!("{}\n  {} {hint}\n", reason.message, style.bold("hint:")),
        None => format!("{}\n", reason.message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_show_their_two_largest_units() {
        let table = [
            (0, "0s"),
            (59, "59s"),
            (303, "5m 03s"),
            (7_500, "2h 05m"),
            (187_200, "2d 04h"),
        ];
        for (seconds, text) in table {
            assert_eq!(span(seconds), text);
        }
    }

    #[test]
    fn shares_are_rounded_to_what_matters() {
        let table = [
            (0, "0.0 % of"),
            (41_549, "4.2 % of"),
            (99_949, "10.0 % of"),
            (100_000, "10 % of"),
            (2_500_000, "250 % of"),
            (12_400_000, "12 times"),
        ];
        for (ppm, text) in table {
            assert_eq!(share(ppm), text);
        }
    }

    #[test]
    fn peers_are_cut_so_that_their_beginning_can_be_typed() {
        let id = "12D3KooWAbCdEfGhIjKlMnOpQrStUvWxYz123456789abcdefghi";
        assert_eq!(peer(id), "12D3KooWAbCd…fghi");
        assert_eq!(peer("12D3KooWshort"), "12D3KooWshort");
    }

    #[test]
    fn fee_rates_lose_their_idle_zeros() {
        assert_eq!(feerate(1_000), "1 sat/vB");
        assert_eq!(feerate(2_500), "2.5 sat/vB");
        assert_eq!(feerate(10_000), "10 sat/vB");
        assert_eq!(feerate(1_001), "1.001 sat/vB");
    }

    #[test]
    fn gains_and_losses_carry_their_sign() {
        assert_eq!(signed_sat(1_000), "+1 000 sat");
        assert_eq!(signed_sat(-154), "-154 sat");
        assert_eq!(signed_sat(i64::MIN), "-9223372036854775808 sat");
    }
}
