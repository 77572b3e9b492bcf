//! Every screen, held still.

use bitmesh::{Style, render};
use bitmesh_node::control::{
    Event,
    api::{
        Address, Audit, Channels, ChannelsClosed, ConfigValues, Earnings, Identity, Leases, Offers,
        PeerAdded, Peers, Role, SellPhase, Selling, Transactions, Usage,
    },
};

use crate::canned::{self, at};

const PLAIN: fn() -> Style = || Style::new(false);

macro_rules! screens {
    ($($name:ident: $text:expr;)+) => {
        $(
            #[test]
            fn $name() {
                let text: String = $text;
                for line in text.lines() {
                    assert_eq!(line, line.trim_end(), "a line ends with a space");
                }
                assert!(text.ends_with('\n'));
                insta::assert_snapshot!(text);
            }
        )+
    };
}

screens! {
    status_of_a_busy_node: render::status(&canned::status(), PLAIN());
    status_of_an_ailing_node: render::status(&canned::ailing(), PLAIN());
    identity: render::identity(&canned::identity(), PLAIN());
    identity_of_a_node_that_nobody_reaches:
        render::identity(&Identity { addresses: Vec::new(), ..canned::identity() }, PLAIN());
    peers: render::peers(&canned::peers(), at(0), PLAIN());
    no_peers: render::peers(&Peers::default(), at(0), PLAIN());
    peer_added: render::peer_added(&PeerAdded { node: canned::OTHER.into(), connected: false }, PLAIN());
    selling: render::selling(&canned::selling(), at(0), PLAIN());
    selling_is_paused:
        render::selling(&Selling { phase: SellPhase::Paused, ..canned::selling() }, at(0), PLAIN());
    selling_was_stopped_and_leases_are_closing: render::selling(
        &Selling { phase: SellPhase::Stopped, offer_expires_at: None, ..canned::selling() },
        at(0),
        PLAIN(),
    );
    selling_is_off: render::selling(&canned::stopped_selling(), at(0), PLAIN());
    offers: render::offers(&canned::offers(), at(0), PLAIN());
    no_offers: render::offers(&Offers::default(), at(0), PLAIN());
    no_offer_that_fits: render::offers(&Offers { total: 3, ..Offers::default() }, at(0), PLAIN());
    a_dry_run: render::purchase(&canned::dry_purchase(), PLAIN());
    an_opening: render::opening(&canned::dry_purchase(), 30, PLAIN());
    a_purchase_for_free: {
        let mut free = canned::purchase();
        (free.cost.traffic_msat, free.cost.most_msat) = (0, 0);
        render::purchase(&free, PLAIN())
    };
    a_purchase_with_an_assured_rate: {
        let mut dry = canned::dry_purchase();
        dry.quote.assured_bytes_per_s = 1_000_000;
        render::purchase(&dry, PLAIN())
    };
    a_purchase: render::purchase(&canned::purchase(), PLAIN());
    leases: render::leases(
        &Leases { leases: vec![canned::paused_lease(), canned::sold_lease()] },
        at(0),
        PLAIN(),
    );
    no_leases: render::leases(&Leases::default(), at(0), PLAIN());
    an_active_lease: render::lease(&canned::lease(), at(0), PLAIN());
    a_paused_lease: render::lease(&canned::paused_lease(), at(0), PLAIN());
    a_sold_lease: render::lease(&canned::sold_lease(), at(0), PLAIN());
    usage: render::usage(&canned::usage(), PLAIN());
    usage_that_would_last_for_years: {
        let mut usage = canned::usage();
        usage.leases[0].speed_bytes_per_s = 4;
        render::usage(&usage, PLAIN())
    };
    no_usage: render::usage(&Usage::default(), PLAIN());
    balance: render::balance(&canned::balance(), PLAIN());
    address: render::address(
        &Address { address: "bcrt1qexample".into(), uri: "bitcoin:bcrt1qexample".into() },
        PLAIN(),
    );
    sending: render::sent(&canned::sent(None), PLAIN());
    sent: render::sent(&canned::sent(Some(canned::TXID)), PLAIN());
    transactions: render::transactions(&canned::transactions(), PLAIN());
    no_transactions: render::transactions(&Transactions::default(), PLAIN());
    words: render::words(&canned::words(), PLAIN());
    channels: render::channels(&canned::channels(), PLAIN());
    a_channel: render::channel(&canned::channels().channels[2], PLAIN());
    channels_opened: render::channels_opened(&canned::channels_opened(Some(canned::TXID)), PLAIN());
    channels_that_would_be_opened: render::channels_opened(&canned::channels_opened(None), PLAIN());
    channels_closed: render::channels_closed(&canned::channels_closed(Some(canned::TXID)), PLAIN());
    channels_that_would_be_closed: render::channels_closed(&canned::channels_closed(None), PLAIN());
    nothing_to_close: render::channels_closed(&ChannelsClosed::default(), PLAIN());
    no_channels: render::channels(&Channels::default(), PLAIN());
    channel_closed: render::channel_closed(&canned::channel_closed(Some(canned::TXID)), PLAIN());
    channel_rolled_over: render::channel_rolled_over(&canned::channel_rolled_over(Some(canned::TXID)), PLAIN());
    earnings: render::earnings(&canned::earnings(), at(0), PLAIN());
    an_audit_that_found_nothing: audited(canned::audit(true));
    an_audit_that_found_something: audited(canned::audit(false));
    settings: render::config_values(&canned::config_values(), PLAIN());
    one_setting: {
        let mut values = canned::config_values();
        values.values.truncate(2);
        values.values.remove(0);
        render::config_values(&ConfigValues { ..values }, PLAIN())
    };
    a_setting_that_needs_a_restart: render::config_change(&canned::config_change(), PLAIN());
    events: every_event().iter().map(|event| render::event(event, PLAIN())).collect();
}

fn audited(audit: Audit) -> String {
    let earnings = Earnings {
        audit: Some(audit),
        ..canned::earnings()
    };
    render::earnings(&earnings, at(0), PLAIN())
}

fn every_event() -> Vec<Event> {
    let events = vec![
        Event::OfferSeen {
            offer: canned::offer(),
        },
        Event::OfferGone {
            seller: canned::OTHER.into(),
        },
        Event::PeerConnected {
            node: canned::OTHER.into(),
        },
        Event::PeerDisconnected {
            node: canned::OTHER.into(),
        },
        Event::SellingChanged {
            selling: canned::selling(),
        },
        Event::LeaseOpened {
            lease: canned::lease(),
        },
        Event::LeasePaused {
            lease: canned::paused_lease(),
        },
        Event::LeaseResumed {
            lease: canned::lease(),
        },
        Event::LeaseClosed {
            lease: canned::sold_lease(),
        },
        Event::Usage {
            usage: canned::usage_line(&canned::lease()),
        },
        Event::Payment {
            role: Role::Buyer,
            lease: canned::LEASE.into(),
            channel: canned::CHANNEL.into(),
            delta_msat: 1_000,
            paid_msat: 741_000,
        },
        Event::ChannelChanged {
            channel: canned::channel(),
        },
        Event::WalletChanged {
            wallet: canned::balance(),
        },
        Event::BlockConnected { height: 880_124 },
        Event::Lagged { missed: 17 },
        Event::Stopping {},
    ];
    let names: Vec<&str> = events.iter().map(Event::name).collect();
    assert_eq!(names, Event::NAMES);
    events
}

#[test]
fn colour_changes_nothing_but_colour() {
    let plain = render::status(&canned::ailing(), Style::new(false));
    let dressed = render::status(&canned::ailing(), Style::new(true));
    assert_ne!(plain, dressed);
    let mut undressed = String::new();
    let mut rest = dressed.as_str();
    while let Some((before, after)) = rest.split_once("\x1b[") {
        undressed.push_str(before);
        rest = after.split_once('m').unwrap().1;
    }
    undressed.push_str(rest);
    assert_eq!(undressed, plain);
}
