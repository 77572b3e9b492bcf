//! A daemon that knows its answers by heart, and those answers.

use std::path::{Path, PathBuf};

use bitmesh_node::control::{
    ApiError, CALL_QUEUE, Call, Command, EVENT_BACKLOG, ErrorCode, Event, Reply,
    api::{
        AccountBalance, Address, Audit, Balance, BatchClose, Chain, Channel, ChannelClosed,
        ChannelEnd, ChannelRole, ChannelRolledOver, ChannelState, ChannelStep, Channels,
        ChannelsClosed, ChannelsOpened, Cheaper, CheaperChannel, ClosedShare, ConfigChange,
        ConfigValue, ConfigValues, Considered, Cost, Disagreement, Earnings, EarningsChannel,
        EarningsLease, Identity, Lease, LeaseCounts, LeaseState, Leases, LedgerEntry, LeftOpen,
        Mode, NotOpened, Offer, Offers, OpenedChannel, Outcome, Peer, PeerAdded, PeerDirection,
        Peers, PriceRule, Purchase, Quote, Reading, Reason, Receipt, Refund, Role, SellLimits,
        SellPhase, Selling, Sent, Status, StepKind, Stopping, Timestamp, Totals, Transaction,
        TransactionKind, Transactions, Usage, UsageLine, Words,
    },
    server::{Socket, serve},
};
use tokio::sync::{broadcast, mpsc};
use tokio_util::sync::CancellationToken;

/// 2026-03-01T12:00:00Z, when every test takes place.
pub(crate) const NOW: u64 = 1_772_366_400;

pub(crate) const SELLER: &str = "12D3KooWS1pHuMD4iQo2d9gD3PFKGBg13HcjzhfcAm5QpfiNiigM";
pub(crate) const OTHER: &str = "12D3KooWAbCdEfGhIjKlMnOpQrStUvWxYz123456789abcdefghi";
pub(crate) const LEASE: &str = "7f3a11c0ffee00112233445566778899aabbccddeeff00112233445566778899";
pub(crate) const CHANNEL: &str = "90bc22c0ffee00112233445566778899aabbccddeeff00112233445566778899";
pub(crate) const TXID: &str = "4a5e1e4baab89f3a32518a88c31bc87f618f76673e2cc77ab2127b7afdeda33b";

pub(crate) fn at(seconds_ago: i64) -> Timestamp {
    Timestamp::from_unix(NOW.saturating_add_signed(-seconds_ago))
}

pub(crate) fn selling() -> Selling {
    Selling {
        phase: SellPhase::Offering,
        rule: PriceRule::Fixed {
            price_msat_per_gb: 142_000,
        },
        price_msat_per_gb: 142_000,
        limits: SellLimits {
            rate_bytes_per_s: Some(12_500_000),
            lease_rate_bytes_per_s: Some(2_500_000),
            leases: Some(8),
            lease_bytes: Some(100_000_000_000),
            postpaid: Some(true),
        },
        leases: 3,
        rate_bytes_per_s: 1_400_000,
        visible_to: 14,
        offer_expires_at: Some(at(-600)),
    }
}

pub(crate) fn stopped_selling() -> Selling {
    Selling {
        phase: SellPhase::Stopped,
        rule: PriceRule::Fixed {
            price_msat_per_gb: 120_000,
        },
        price_msat_per_gb: 120_000,
        limits: SellLimits::default(),
        leases: 0,
        rate_bytes_per_s: 0,
        visible_to: 0,
        offer_expires_at: None,
    }
}

pub(crate) fn balance() -> Balance {
    Balance {
        confirmed_sat: 21_400,
        pending_sat: 300,
        locked_sat: 19_260,
        claimable_sat: 8_730,
    }
}

pub(crate) fn chain() -> Chain {
    Chain {
        source: "bitcoind at 127.0.0.1:8332".into(),
        connected: true,
        height: 880_123,
        source_height: 880_123,
        tip: "00000000000000000001aa".into(),
        synced: true,
        feerate_sat_per_kvb: Some(2_500),
        problem: None,
    }
}

pub(crate) fn status() -> Status {
    Status {
        version: "0.1.0".into(),
        network: "mainnet".into(),
        node: SELLER.into(),
        datadir: "/home/ann/.local/share/bitmesh/mainnet".into(),
        pid: 4_242,
        uptime_s: 187_200,
        healthy: true,
        problems: Vec::new(),
        peers: 14,
        offers: 212,
        selling: selling(),
        leases: LeaseCounts {
            selling: 3,
            buying: 1,
            paused: 0,
        },
        proxy: Some("127.0.0.1:1080".into()),
        earned_msat: 8_730_000,
        spent_msat: 740_000,
        outstanding_msat: 2_250,
        wallet: balance(),
        chain: chain(),
    }
}

pub(crate) fn ailing() -> Status {
    Status {
        healthy: false,
        problems: vec![
            Reason {
                code: "chain_unreachable".into(),
                message: "bitcoind at 127.0.0.1:8332 does not answer".into(),
                hint: Some("start it, or set chain.bitcoind.url".into()),
            },
            Reason {
                code: "clock_off".into(),
                message: "the clock is 95 s behind that of most peers".into(),
                hint: None,
            },
        ],
        selling: stopped_selling(),
        leases: LeaseCounts {
            selling: 0,
            buying: 1,
            paused: 1,
        },
        proxy: None,
        chain: Chain {
            connected: false,
            synced: false,
            feerate_sat_per_kvb: None,
            ..chain()
        },
        ..status()
    }
}

pub(crate) fn lease() -> Lease {
    Lease {
        id: LEASE.into(),
        role: Role::Buyer,
        peer: SELLER.into(),
        state: LeaseState::Active,
        reason: None,
        mode: Mode::Prepaid,
        price_msat_per_gb: 142_000,
        rate_bytes_per_s: 2_500_000,
        window_bytes: 2_500_000,
        quota_bytes: 2_000_000_000,
        reading: Reading {
            up_bytes: 40_000_000,
            down_bytes: 1_200_000_000,
        },
        billed_msat: 176_080,
        paid_msat: 740_000,
        carried_msat: 12_500,
        receipt: Some(Receipt {
            seq: 1_984,
            reading: Reading {
                up_bytes: 39_900_000,
                down_bytes: 1_199_500_000,
            },
            billed_msat: 175_995,
            paid_msat: 740_000,
            cosigned: true,
        }),
        speed_bytes_per_s: 2_287_500,
        proxy: Some("127.0.0.1:1080".into()),
        channel: Some(CHANNEL.into()),
        opened_at: at(900),
        ends_at: Some(at(-2_700)),
        closed_at: None,
    }
}

pub(crate) fn paused_lease() -> Lease {
    Lease {
        state: LeaseState::Paused,
        reason: Some(Reason {
            code: "quota_spent".into(),
            message: "the quota of 2.00 GB is used up".into(),
            hint: Some("bitmesh lease extend 7f3a11c0 1GB".into()),
        }),
        speed_bytes_per_s: 0,
        ..lease()
    }
}

pub(crate) fn sold_lease() -> Lease {
    Lease {
        id: "d00d".repeat(16),
        role: Role::Seller,
        peer: OTHER.into(),
        state: LeaseState::Closed,
        reason: Some(Reason {
            code: "completed".into(),
            message: "the buyer closed it".into(),
            hint: None,
        }),
        mode: Mode::Postpaid,
        paid_msat: 176_000,
        carried_msat: 0,
        receipt: None,
        proxy: None,
        channel: None,
        ends_at: None,
        closed_at: Some(at(60)),
        ..lease()
    }
}

pub(crate) fn usage_line(lease: &Lease) -> UsageLine {
    UsageLine {
        lease: lease.id.clone(),
        role: lease.role,
        peer: lease.peer.clone(),
        state: lease.state,
        reading: lease.reading,
        quota_bytes: lease.quota_bytes,
        billed_msat: lease.billed_msat,
        paid_msat: lease.paid_msat,
        speed_bytes_per_s: lease.speed_bytes_per_s,
    }
}

pub(crate) fn usage() -> Usage {
    let done = UsageLine {
        reading: Reading {
            up_bytes: 0,
            down_bytes: 2_000_000_000,
        },
        ..usage_line(&paused_lease())
    };
    Usage {
        leases: vec![usage_line(&lease()), done],
    }
}

pub(crate) fn offer() -> Offer {
    Offer {
        seller: SELLER.into(),
        price_msat_per_gb: 142_000,
        rate_bytes_per_s: 2_500_000,
        min_bytes: 1_000_000,
        max_bytes: 100_000_000_000,
        modes: vec![Mode::Prepaid, Mode::Postpaid],
        tunnels: vec!["proxy".into()],
        egress: "standard ports".into(),
        region: Some("EU".into()),
        seen_at: at(30),
        expires_at: at(-570),
        connected: true,
        channel_open: true,
    }
}

pub(crate) fn offers() -> Offers {
    let plain = Offer {
        seller: OTHER.into(),
        price_msat_per_gb: 1_500,
        rate_bytes_per_s: 6_250_000,
        modes: vec![Mode::Prepaid],
        egress: "web only".into(),
        region: None,
        connected: false,
        channel_open: false,
        ..offer()
    };
    Offers {
        offers: vec![plain, offer()],
        total: 212,
    }
}

pub(crate) fn dry_purchase() -> Purchase {
    let asked = |seller: &str, price_msat_per_gb, outcome, detail: Option<&str>| Considered {
        seller: seller.into(),
        price_msat_per_gb,
        rate_bytes_per_s: 2_500_000,
        outcome,
        detail: detail.map(str::to_owned),
    };
    Purchase {
        lease: None,
        quote: Quote {
            seller: SELLER.into(),
            price_msat_per_gb: 142_000,
            rate_bytes_per_s: 2_500_000,
            assured_bytes_per_s: 1,
            bytes: 2_000_000_000,
            window_bytes: 2_500_000,
            mode: Mode::Prepaid,
            min_first_msat: 740_000,
            carried_msat: 0,
            egress: "standard ports".into(),
            expires_at: at(-8),
        },
        cost: Cost {
            traffic_msat: 284_000,
            most_msat: 740_000,
            opens_channel: true,
            capacity_sat: 20_000,
            funding_fee_sat: 154,
            close_fee_sat: 205,
            refund_fee_sat: 138,
            feerate_sat_per_kvb: 1_000,
            fee_share_ppm: 1_264_085,
            further_channels: 0,
            turnover_sat: 7_180,
            cheaper: Some(Cheaper {
                feerate_sat_per_kvb: 79,
                channel: Some(CheaperChannel {
                    channel: CHANNEL.to_owned(),
                    seller: OTHER.to_owned(),
                    price_msat_per_gb: 149_000,
                }),
            }),
        },
        considered: vec![
            asked(SELLER, 142_000, Outcome::Chosen, None),
            asked(OTHER, 149_000, Outcome::Quoted, None),
            asked(
                "12D3KooWthird",
                150_000,
                Outcome::Refused,
                Some("no place for another lease"),
            ),
            asked("12D3KooWfourth", 151_000, Outcome::NoAnswer, None),
        ],
        fitting: 9,
        took_ms: 420,
    }
}

pub(crate) fn purchase() -> Purchase {
    let dry = dry_purchase();
    Purchase {
        lease: Some(lease()),
        quote: Quote {
            min_first_msat: 0,
            carried_msat: 12_500,
            ..dry.quote
        },
        cost: Cost {
            most_msat: 271_500,
            opens_channel: false,
            capacity_sat: 20_000,
            funding_fee_sat: 0,
            close_fee_sat: 0,
            refund_fee_sat: 0,
            fee_share_ppm: 0,
            turnover_sat: 0,
            cheaper: None,
            ..dry.cost
        },
        took_ms: 1_432,
        ..dry
    }
}

pub(crate) fn channel() -> Channel {
    Channel {
        id: CHANNEL.into(),
        role: ChannelRole::Payer,
        peer: SELLER.into(),
        state: ChannelState::Open,
        reason: None,
        capacity_sat: 20_000,
        paid_sat: 740,
        remaining_sat: 19_260,
        credit_msat: 563_920,
        exposure_limit_sat: None,
        funding: Some(format!("{TXID}:0")),
        confirmations: 6,
        expiry_height: 884_443,
        expires_in_blocks: 4_320,
        steps: Vec::new(),
        refund: Some(Refund {
            amount_sat: 20_000,
            due: false,
            txid: None,
        }),
        carried_from: None,
        carried_into: None,
        closing_txid: None,
        fees_sat: 154,
        opened_at: at(3_600),
    }
}

/// What still happens to a channel of a seller's, 240 blocks before it expires.
pub(crate) fn steps() -> Vec<ChannelStep> {
    let steps = [
        (StepKind::Asks, 216, "the buyer is asked to close together"),
        (StepKind::Closes, 144, "this node takes what it was paid"),
        (StepKind::BidsMore, 100, "half as much again is bid"),
        (StepKind::BidsHalf, 36, "up to half of it is bid"),
        (StepKind::Expires, 0, "the buyer may take everything back"),
    ];
    steps
        .map(|(what, before, why)| ChannelStep {
            what,
            height: 884_443 - before,
            in_blocks: 240 - before,
            why: why.into(),
        })
        .into()
}

pub(crate) fn channels_opened(txid: Option<&str>) -> ChannelsOpened {
    let channel = |peer: &str, funding_fee_sat, found_by_words| OpenedChannel {
        peer: peer.to_owned(),
        channel: txid.map(|_| CHANNEL.to_owned()),
        capacity_sat: 20_000,
        funding_fee_sat,
        first_sat: txid.map(|_| 740),
        found_by_words,
    };
    let left_out = NotOpened {
        peer: OTHER.to_owned(),
        reason: Reason {
            code: "no_answer".to_owned(),
            message: "it did not answer within 15 s".to_owned(),
            hint: Some("see whether it is there with \"bitmesh peers\"".to_owned()),
        },
    };
    ChannelsOpened {
        txid: txid.map(str::to_owned),
        vbytes: 197,
        capacity_sat: 40_000,
        funding_fee_sat: 197,
        close_fee_sat: 205,
        max_first_sat: 1_480,
        feerate_sat_per_kvb: 1_000,
        fee_share_ppm: 15_175,
        turnover_sat: 12_140,
        broadcast: txid.is_some(),
        channels: vec![channel(SELLER, 99, true), channel(OTHER, 98, false)],
        left_out: txid.map(|_| left_out).into_iter().collect(),
    }
}

pub(crate) fn channels_closed(txid: Option<&str>) -> ChannelsClosed {
    let share = |channel: &str, ends_lease| ClosedShare {
        channel: channel.repeat(16),
        peer: OTHER.into(),
        received_sat: 8_552,
        fee_sat: 178,
        ends_lease,
    };
    ChannelsClosed {
        closes: vec![BatchClose {
            txid: txid.map(str::to_owned),
            vbytes: 355,
            received_sat: 17_104,
            fee_sat: 356,
            broadcast: txid.is_some(),
            problem: None,
            channels: vec![share("cafe", true), share("f00d", false)],
        }],
        left_open: vec![LeftOpen {
            channel: "beef".repeat(16),
            paid_sat: 300,
            fee_sat: 205,
        }],
    }
}

pub(crate) fn channels() -> Channels {
    let lost = Channel {
        id: "beef".repeat(16),
        peer: OTHER.into(),
        state: ChannelState::Refunding,
        reason: Some(Reason {
            code: "seller_gone".into(),
            message: "the seller never closed it".into(),
            hint: Some("the refund needs a closing fee; --feerate sets it".into()),
        }),
        expires_in_blocks: 0,
        refund: Some(Refund {
            amount_sat: 20_000,
            due: true,
            txid: None,
        }),
        ..channel()
    };
    let payee = Channel {
        id: "cafe".repeat(16),
        role: ChannelRole::Payee,
        peer: OTHER.into(),
        state: ChannelState::Unconfirmed,
        exposure_limit_sat: Some(1_000),
        confirmations: 0,
        expires_in_blocks: 240,
        steps: steps(),
        refund: None,
        ..channel()
    };
    Channels {
        channels: vec![channel(), lost, payee],
    }
}

pub(crate) fn earnings() -> Earnings {
    let (bought, sold) = (lease(), sold_lease());
    let line = |lease: &Lease| EarningsLease {
        lease: lease.id.clone(),
        role: lease.role,
        peer: lease.peer.clone(),
        state: lease.state,
        bytes: 1_240_000_000,
        billed_msat: lease.billed_msat,
        paid_msat: lease.paid_msat - lease.carried_msat,
        channel: lease.channel.clone(),
        opened_at: lease.opened_at,
    };
    Earnings {
        selling: Totals {
            bytes: 1_240_000_000,
            billed_msat: 176_080,
            paid_sat: 176,
            received_sat: 0,
            open_sat: 176,
            fees_sat: 0,
            leases: 1,
        },
        buying: Totals {
            bytes: 1_240_000_000,
            billed_msat: 176_080,
            paid_sat: 740,
            received_sat: 0,
            open_sat: 19_260,
            fees_sat: 154,
            leases: 1,
        },
        leases: vec![line(&bought), line(&sold)],
        channels: vec![EarningsChannel {
            channel: CHANNEL.into(),
            role: ChannelRole::Payer,
            peer: SELLER.into(),
            state: ChannelState::Open,
            capacity_sat: 20_000,
            paid_sat: 740,
            received_sat: 0,
            fees_sat: 154,
        }],
        since: None,
        audit: None,
        entries: None,
    }
}

/// What a node says whose journal has a msat less than its session.
pub(crate) fn audit(agrees: bool) -> Audit {
    let wrong = Disagreement {
        whose: format!("lease {}", lease().id),
        rule: "the session bills what the journal has".into(),
        left: "journal".into(),
        left_figure: 176_079,
        right: "session".into(),
        right_figure: 176_080,
        difference: -1,
        unit: "msat".into(),
    };
    let balance = |account: &str, balance_msat| AccountBalance {
        account: account.into(),
        role: Some(Role::Buyer),
        peer: Some(SELLER.into()),
        balance_msat,
    };
    Audit {
        entries: 5,
        compared: 23,
        chain: true,
        misfits: Vec::new(),
        disagreements: if agrees { vec![] } else { vec![wrong] },
        balances: vec![
            balance("coins", -20_154_000),
            balance("locked", 19_260_000),
            balance("credit", 563_920),
            balance("spent", 176_080),
            balance("fees", 154_000),
        ],
    }
}

/// Entries of a funding and a receipt.
pub(crate) fn entries() -> Vec<LedgerEntry> {
    let funding = LedgerEntry {
        at: Some(at(-600)),
        what: "funding".into(),
        from: "coins".into(),
        to: "locked".into(),
        amount_msat: 20_000_000,
        bytes: None,
        role: Some(Role::Buyer),
        peer: Some(SELLER.into()),
        lease: None,
        channel: Some(CHANNEL.into()),
        txid: None,
    };
    let receipt = LedgerEntry {
        what: "receipt".into(),
        from: "credit".into(),
        to: "spent".into(),
        amount_msat: 176_080,
        bytes: Some(1_240_000_000),
        lease: Some(lease().id),
        channel: None,
        ..funding.clone()
    };
    vec![funding, receipt]
}

pub(crate) fn transactions() -> Transactions {
    let one = |kind, delta_sat, fee_sat, confirmations, at| Transaction {
        txid: TXID.into(),
        kind,
        delta_sat,
        fee_sat,
        confirmations,
        height: (confirmations > 0).then_some(880_100),
        at,
    };
    Transactions {
        transactions: vec![
            one(
                TransactionKind::Funding,
                -20_154,
                Some(154),
                0,
                Some(at(30)),
            ),
            one(
                TransactionKind::Settlement,
                8_525,
                Some(205),
                3,
                Some(at(3_600)),
            ),
            one(TransactionKind::Received, 1_000_000, None, 1_204, None),
        ],
    }
}

pub(crate) fn identity() -> Identity {
    Identity {
        node: SELLER.into(),
        network: "mainnet".into(),
        version: "0.1.0".into(),
        addresses: vec![
            format!("/ip4/192.0.2.7/udp/6366/quic-v1/p2p/{SELLER}"),
            format!("/ip4/192.0.2.7/tcp/6366/p2p/{SELLER}"),
        ],
    }
}

pub(crate) fn peers() -> Peers {
    Peers {
        peers: vec![
            Peer {
                node: OTHER.into(),
                address: "/ip4/192.0.2.9/tcp/6366".into(),
                direction: PeerDirection::Inbound,
                rtt_ms: None,
                since: at(4),
                offers: 0,
            },
            Peer {
                node: SELLER.into(),
                address: "/ip4/192.0.2.7/udp/6366/quic-v1".into(),
                direction: PeerDirection::Outbound,
                rtt_ms: Some(11),
                since: at(7_500),
                offers: 1,
            },
        ],
    }
}

pub(crate) fn config_values() -> ConfigValues {
    let one = |key: &str, value: serde_json::Value, origin: &str| ConfigValue {
        key: key.into(),
        value,
        origin: origin.into(),
    };
    ConfigValues {
        file: "/home/ann/.config/bitmesh/config.toml".into(),
        values: vec![
            one("sell.max_leases", 8.into(), "default"),
            one("sell.price", "142000 msat/GB".into(), "file"),
            one("sell.rate", "2500000 B/s".into(), "default"),
            one("sell.region", "".into(), "default"),
        ],
    }
}

pub(crate) fn config_change() -> ConfigChange {
    ConfigChange {
        key: "mesh.listen".into(),
        value: serde_json::json!(["/ip4/0.0.0.0/tcp/6366"]),
        file: "/home/ann/.config/bitmesh/config.toml".into(),
        restart_needed: true,
    }
}

pub(crate) fn words() -> Words {
    Words {
        words:
            "abandon ability able about above absent absorb abstract absurd abuse access accident"
                .split(' ')
                .map(str::to_owned)
                .collect(),
        birth_height: 880_000,
    }
}

pub(crate) fn sent(txid: Option<&str>) -> Sent {
    Sent {
        txid: txid.map(str::to_owned),
        address: "bcrt1qexample".into(),
        amount_sat: 50_000,
        fee_sat: 353,
        feerate_sat_per_kvb: 2_500,
        broadcast: txid.is_some(),
    }
}

pub(crate) fn channel_refunded(txid: Option<&str>) -> ChannelClosed {
    ChannelClosed {
        how: ChannelEnd::Refund,
        ..channel_closed(txid)
    }
}

pub(crate) fn channel_closed(txid: Option<&str>) -> ChannelClosed {
    ChannelClosed {
        channel: CHANNEL.into(),
        how: ChannelEnd::Together,
        because: None,
        txid: txid.map(str::to_owned),
        received_sat: 8_525,
        fee_sat: 205,
        broadcast: txid.is_some(),
    }
}

pub(crate) fn channel_rolled_over(txid: Option<&str>) -> ChannelRolledOver {
    ChannelRolledOver {
        channel: CHANNEL.into(),
        next: txid.map(|_| "d00f".repeat(16)),
        txid: txid.map(str::to_owned),
        settled_sat: 8_730,
        capacity_sat: 10_000,
        change_sat: 1_270,
        expiry_height: txid.map(|_| 888_443),
        broadcast: txid.is_some(),
    }
}

/// What a healthy daemon answers.
pub(crate) fn answer(command: Command) -> Result<Reply, ApiError> {
    Ok(match command {
        Command::GetStatus(_) => status().into(),
        Command::GetId(_) => identity().into(),
        Command::ListPeers(_) => peers().into(),
        Command::AddPeer(_) => PeerAdded {
            node: OTHER.into(),
            connected: false,
        }
        .into(),
        Command::GetChain(_) => chain().into(),
        Command::GetConfig(_) => config_values().into(),
        Command::SetConfig(_) => config_change().into(),
        Command::Shutdown(_) => Stopping {
            pid: 4_242,
            datadir: "/nonexistent".into(),
            closing_leases: 1,
        }
        .into(),
        Command::StartSelling(_) | Command::SetPrice(_) | Command::SetLimits(_) => selling().into(),
        Command::StopSelling(_) => stopped_selling().into(),
        Command::PauseSelling(_) => Selling {
            phase: SellPhase::Paused,
            ..selling()
        }
        .into(),
        Command::ListOffers(_) => offers().into(),
        Command::Buy(buy) if buy.dry_run => dry_purchase().into(),
        Command::Buy(_) => purchase().into(),
        Command::ListLeases(_) => Leases {
            leases: vec![lease(), sold_lease()],
        }
        .into(),
        Command::ShowLease(_) => lease().into(),
        Command::ExtendLease(_) => Lease {
            quota_bytes: 3_000_000_000,
            ..lease()
        }
        .into(),
        Command::CloseLease(_) => Lease {
            state: LeaseState::Closed,
            closed_at: Some(at(0)),
            ..lease()
        }
        .into(),
        Command::GetUsage(_) => usage().into(),
        Command::GetBalance(_) => balance().into(),
        Command::ReceiveCoins(_) => Address {
            address: "bcrt1qexample".into(),
            uri: "bitcoin:bcrt1qexample".into(),
        }
        .into(),
        Command::SendCoins(send) => sent((!send.dry_run).then_some(TXID)).into(),
        Command::ListTransactions(_) => transactions().into(),
        Command::RevealWords(_) => words().into(),
        Command::ListChannels(_) => channels().into(),
        Command::CloseChannel(close) => channel_closed((!close.dry_run).then_some(TXID)).into(),
        Command::ShowChannel(_) => channel().into(),
        Command::RolloverChannel(rollover) => {
            channel_rolled_over((!rollover.dry_run).then_some(TXID)).into()
        }
        Command::RefundChannel(refund) => {
            channel_refunded((!refund.dry_run).then_some(TXID)).into()
        }
        Command::OpenChannels(open) => channels_opened((!open.dry_run).then_some(TXID)).into(),
        Command::TopUpChannel(top_up) => channels_opened((!top_up.dry_run).then_some(TXID)).into(),
        Command::CloseAllChannels(close) => {
            channels_closed((!close.dry_run).then_some(TXID)).into()
        }
        Command::GetEarnings(wanted) => Earnings {
            audit: wanted.audit.then(|| audit(true)),
            entries: wanted.entries.then(entries),
            ..earnings()
        }
        .into(),
    })
}

/// A server with such a daemon behind it. It ends with the test's process.
pub(crate) struct Daemon {
    pub(crate) socket: PathBuf,
    pub(crate) events: broadcast::Sender<Event>,
    pub(crate) stop: CancellationToken,
    _dir: tempfile::TempDir,
}

impl Daemon {
    pub(crate) fn start(
        mut answer: impl FnMut(Command) -> Result<Reply, ApiError> + Send + 'static,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bitmesh.sock");
        let socket = Socket::bind(&path).unwrap();
        let (events, _) = broadcast::channel(EVENT_BACKLOG);
        let stop = CancellationToken::new();
        let (sender, token) = (events.clone(), stop.clone());
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async move {
                let (calls, mut asked) = mpsc::channel::<Call>(CALL_QUEUE);
                let own = token.clone();
                let driver = async move {
                    while let Some(call) = asked.recv().await {
                        let stopping = matches!(call.command, Command::Shutdown(_));
                        let _ = call.reply.send(answer(call.command));
                        if stopping {
                            own.cancel();
                        }
                    }
                };
                let (served, ()) = tokio::join!(serve(socket, calls, sender, token), driver);
                served.unwrap();
            });
        });
        Self {
            socket: path,
            events,
            stop,
            _dir: dir,
        }
    }

    pub(crate) fn refusing(code: ErrorCode) -> Self {
        Self::start(move |_| Err(ApiError::new(code, "it was refused", "do something else")))
    }

    pub(crate) fn dir(&self) -> &Path {
        self.socket.parent().unwrap()
    }
}
