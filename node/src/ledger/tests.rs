//! A trade written down by both sides; every figure of it damaged in turn.

use bitcoin::absolute::LockTime;
use bitcoin::hashes::Hash;
use bitcoin::secp256k1::{Keypair, Secp256k1, SecretKey};
use bitcoin::transaction::Version;
use bitcoin::{OutPoint, ScriptBuf, Sequence, Transaction, TxIn, TxOut, Witness};
use bitmesh_market::envelope::Signed;
use bitmesh_market::identity::{Ed25519Signer, Signer};
use bitmesh_market::lease::{Proposal, Proposed};
use bitmesh_market::offer::{Egress, Modes, Rails, Tunnels};
use bitmesh_market::quote::{Mode, Quote, QuoteId, RfqId, window_for};
use bitmesh_market::session::message::{Body, Message};
use bitmesh_market::session::record::{Closed, Receipted};
use bitmesh_market::session::{CloseReason, Signatures};
use bitmesh_market::units::{Bytes, BytesPerSecond, Price};
use bitmesh_market::wire::Unknown;
use bitmesh_wallet::channel::deadline::BlockHeight;
use bitmesh_wallet::channel::exposure::ExposureTable;
use bitmesh_wallet::channel::message::{Accept, Open};
use bitmesh_wallet::channel::params::{Contract, DEFAULT_TERM, Tranche, genesis};
use bitmesh_wallet::channel::{PartyId, TrancheIndex};
use proptest::prelude::*;
use serde_bytes::ByteBuf;

use super::audit::{ChainEvidence, ChannelEvidence, Evidence, LeaseEvidence, PairEvidence, audit};
use super::*;

const NETWORK: Network = Network::Regtest;
const GB: u64 = 1_000_000_000;
const CAPACITY: u64 = 100_000;
/// What the voucher is for: the first payment.
const PAID: u64 = 740;
/// What a gigabyte costs.
const BILLED: u64 = 120_000;
const DEPOSIT: u64 = 1_000_000;

fn seller() -> Ed25519Signer {
    Ed25519Signer::from_seed([1; 32])
}

fn buyer() -> Ed25519Signer {
    Ed25519Signer::from_seed([2; 32])
}

fn at(secs: u64) -> UnixTime {
    UnixTime::from_secs(1_800_000_000 + secs)
}

fn sat(sat: u64) -> Amount {
    Amount::from_sat(sat)
}

pub(crate) fn lease() -> Lease {
    let rate = BytesPerSecond::new(2_500_000);
    let quote = Quote {
        id: QuoteId::from_bytes([4; 16]),
        rfq: RfqId::from_bytes([3; 16]),
        buyer: buyer().node_id(),
        price: Price::from_msat_per_gb(BILLED),
        rate,
        max_quota: Bytes::new(2 * GB),
        window: window_for(rate),
        modes: Modes::PREPAID,
        min_first: Msat::from_msat(PAID * 1_000),
        carried: Msat::ZERO,
        until: at(3_600),
        expires: at(10),
        rail: Rails::CHANNEL,
        tunnel: Tunnels::PROXY,
        egress: Egress::IPV4,
        assured: BytesPerSecond::new(125_000),
        unknown: Unknown::default(),
    };
    let proposal = Proposal {
        quote: Signed::seal(quote, &seller(), NETWORK)
            .as_bytes()
            .to_vec()
            .into(),
        quota: Bytes::new(GB),
        mode: Mode::Prepaid,
        until: at(3_600),
        unknown: Unknown::default(),
    };
    let proposal = Signed::seal(proposal, &buyer(), NETWORK);
    let proposed = Proposed::verify(proposal.as_bytes(), NETWORK).unwrap();
    proposed.accept(at(5), &seller()).unwrap()
}

pub(crate) fn receipt(seq: u64, bytes: u64) -> Receipt {
    let reading = Reading {
        up: Bytes::ZERO,
        down: Bytes::new(bytes),
    };
    Receipt {
        seq,
        reading,
        billed: lease().price().cost_of(reading.total()).unwrap(),
        paid: Msat::from_msat(PAID * 1_000),
    }
}

fn keypair(seed: u8) -> Keypair {
    let secret = SecretKey::from_slice(&[seed; 32]).unwrap();
    Keypair::from_secret_key(&Secp256k1::new(), &secret)
}

fn open() -> Open {
    let key = keypair(11).x_only_public_key().0;
    Open {
        nonce: [7; 16],
        chain: genesis(bitcoin::Network::Regtest),
        payer: PartyId::from_bytes(*buyer().node_id().as_bytes()),
        payee: PartyId::from_bytes(*seller().node_id().as_bytes()),
        payer_key: key,
        capacity: sat(CAPACITY),
        expiry: BlockHeight::new(DEFAULT_TERM),
        change_script: ScriptBuf::new_p2tr(&Secp256k1::new(), key, None),
    }
}

fn accept() -> Accept {
    Accept {
        proposal: open().proposal(),
        payee_key: keypair(12).x_only_public_key().0,
        min_first: sat(PAID),
        exposure: ExposureTable::default(),
    }
}

fn funding() -> (Transaction, Tranche) {
    let contract = Contract::new(open(), accept()).unwrap();
    let tx = Transaction {
        version: Version(3),
        lock_time: LockTime::ZERO,
        input: vec![TxIn {
            previous_output: OutPoint::new(Txid::from_byte_array([0xf0; 32]), 0),
            script_sig: ScriptBuf::new(),
            sequence: Sequence::ENABLE_RBF_NO_LOCKTIME,
            witness: Witness::from_slice(&[[0x55; 64]]),
        }],
        output: vec![TxOut {
            value: sat(CAPACITY),
            script_pubkey: contract.scripts().output().clone(),
        }],
    };
    let tranche = contract.fund(&tx, 0).unwrap();
    (tx, tranche)
}

fn close_txid() -> Txid {
    Txid::from_byte_array([0xc1; 32])
}

/// One side's journal and everything else that it knows.
#[derive(Clone)]
struct Side {
    role: Role,
    records: Vec<store::Entry>,
    evidence: Evidence,
}

fn channel(fact: Fact) -> store::Entry {
    let proposal = open().proposal();
    (JOURNAL_KIND, Record { proposal, fact }.to_bytes())
}

pub(crate) fn session(fact: SessionFact) -> store::Entry {
    let lease = lease().id();
    (
        Kind::Session as u8,
        SessionRecord { lease, fact }.to_bytes(),
    )
}

fn moment(secs: u64) -> store::Entry {
    (Kind::Moment as u8, MomentRecord::new(at(secs)).to_bytes())
}

fn held(total: u64) -> Fact {
    let voucher = funding().1.sign(&keypair(11), sat(total)).unwrap();
    Fact::Held {
        tranche: TrancheIndex::FIRST,
        total: sat(total),
        signature: voucher.signature,
    }
}

pub(crate) fn received(receipt: Receipt) -> SessionFact {
    let message = Message {
        lease: lease().id(),
        body: Body::Receipt(receipt),
    };
    let message = Signed::seal(message, &buyer(), NETWORK);
    SessionFact::Receipted(Receipted {
        message: ByteBuf::from(message.as_bytes().to_vec()),
        own: receipt.reading,
    })
}

fn history(txid: Txid, received: u64, sent: u64, fee: Option<u64>) -> HistoryEntry {
    HistoryEntry {
        txid,
        received: sat(received),
        sent: sat(sent),
        fee: fee.map(sat),
        network_fee: fee.map(sat),
        status: Status::Confirmed {
            height: 7,
            time: at(0).secs(),
            confirmations: 6,
        },
    }
}

fn settlement() -> Settlement {
    Settlement {
        end: End::Commitment,
        txid: close_txid(),
        height: BlockHeight::new(8),
        returned: sat(CAPACITY - PAID),
        received: sat(PAID - 205),
        fee: sat(205),
    }
}

/// A lease of a gigabyte, paid by one voucher, and the channel closed.
fn trade(role: Role) -> Side {
    let (tx, tranche) = funding();
    let txid = tx.compute_txid();
    let (last, half) = (receipt(2, GB), receipt(1, GB / 2));
    let closed = SessionFact::Closed(Closed {
        reason: CloseReason::Completed,
        signatures: Signatures::Both,
        receipt: Some(last),
    });
    let first = TrancheIndex::FIRST;
    let tx = Box::new(tx);
    let peer = match role {
        Role::Payer => seller().node_id(),
        Role::Payee => buyer().node_id(),
    };
    let opened = OpenedRecord::new(open().proposal(), at(5)).to_bytes();
    let lease_record = LeaseRecord::new(role, &lease()).to_bytes();
    let mut records = vec![moment(4), (Kind::Lease as u8, lease_record)];
    let (deposit, balance, counted);
    let mut evidence = Evidence::default();
    match role {
        Role::Payer => {
            records.extend([
                channel(Fact::Proposed {
                    open: open(),
                    key_index: 0,
                    max_min_first: sat(PAID),
                    from: None,
                }),
                (Kind::Opened as u8, opened),
                channel(Fact::Accepted { accept: accept() }),
                channel(Fact::Funded {
                    tranche: first,
                    tx,
                    vout: 0,
                    fee: sat(154),
                }),
                channel(Fact::Promised {
                    tranche: first,
                    total: sat(PAID),
                }),
                session(SessionFact::Signed(half)),
                moment(100),
                session(SessionFact::Signed(last)),
            ]);
            deposit = history(Txid::from_byte_array([1; 32]), DEPOSIT, 0, None);
            let change = DEPOSIT - CAPACITY - 154;
            evidence.chain = Some(ChainEvidence {
                history: vec![
                    history(close_txid(), CAPACITY - PAID, 0, None),
                    history(txid, change, DEPOSIT, Some(154)),
                    deposit,
                ],
                balance: sat(change + CAPACITY - PAID),
            });
        }
        Role::Payee => {
            records.extend([
                channel(Fact::Agreed {
                    open: open(),
                    accept: accept(),
                    key_index: 0,
                    from: None,
                }),
                (Kind::Opened as u8, opened),
                channel(Fact::Funded {
                    tranche: first,
                    tx,
                    vout: 0,
                    fee: Amount::ZERO,
                }),
                channel(held(PAID)),
                session(received(half)),
                moment(100),
                session(received(last)),
            ]);
            balance = sat(PAID - 205);
            evidence.chain = Some(ChainEvidence {
                history: vec![history(close_txid(), PAID - 205, 0, None)],
                balance,
            });
            let voucher = tranche.sign(&keypair(11), sat(PAID)).unwrap();
            evidence
                .vouchers
                .push((open().proposal(), tranche, voucher));
        }
    }
    records.extend([
        session(closed),
        moment(1_000),
        channel(Fact::Settled(settlement())),
    ]);
    counted = PAID;
    evidence.leases.push(LeaseEvidence {
        lease: lease().id(),
        receipt: Some(last),
        meter: Some(last.reading),
    });
    evidence.channels.push(ChannelEvidence {
        channel: open().proposal(),
        id: "90bc".to_owned(),
        total: sat(PAID),
        counted_sat: counted,
    });
    evidence.pairs.push(PairEvidence {
        party: Party::new(role, peer),
        credit: Msat::from_msat(PAID * 1_000 - BILLED),
        written_off: Msat::ZERO,
    });
    Side {
        role,
        records,
        evidence,
    }
}

impl Side {
    fn books(&self, since: UnixTime) -> Books {
        let mut books = Books::fold(&self.records, NETWORK, since, Keep::AtMost(100));
        if let Some(chain) = &self.evidence.chain {
            books.add_history(&chain.history);
        }
        books
    }

    fn rules(&self) -> Vec<&'static str> {
        let books = self.books(UnixTime::default());
        let findings = audit(&books, &self.evidence);
        let mut rules: Vec<_> = findings.disagreements.iter().map(|it| it.rule).collect();
        rules.extend(books.misfits.iter().map(|_| "misfit"));
        rules
    }

    fn chain(&mut self) -> &mut ChainEvidence {
        self.evidence.chain.as_mut().unwrap()
    }

    /// Puts another record in the place of one that `is_it`.
    fn replace(&mut self, is_it: impl Fn(&store::Entry) -> bool, by: store::Entry) {
        let at = self.records.iter().rposition(is_it).unwrap();
        self.records[at] = by;
    }
}

#[test]
fn a_trade_and_its_close_agree_on_both_sides_and_balance_to_the_millisatoshi() {
    for role in [Role::Payer, Role::Payee] {
        let side = trade(role);

        let books = side.books(UnixTime::default());
        let findings = audit(&books, &side.evidence);

        assert_eq!(findings.disagreements, []);
        assert_eq!(books.misfits, []);
        assert!(findings.compared > 10, "{}", findings.compared);
        let sum: i128 = books.balances().map(|(_, _, balance)| balance).sum();
        assert_eq!(sum, 0);
        let left = |account| books.balance(account, None);
        let unused = i128::from(PAID * 1_000 - BILLED);
        match role {
            Role::Payer => {
                assert_eq!(left(Account::Spent), i128::from(BILLED));
                assert_eq!(left(Account::Credit), unused);
                assert_eq!(left(Account::Fees), 154_000);
                assert_eq!(left(Account::Locked), 0);
            }
            Role::Payee => {
                assert_eq!(left(Account::Earned), -i128::from(BILLED));
                assert_eq!(left(Account::Credit), -unused);
                assert_eq!(left(Account::Fees), 205_000);
                assert_eq!(left(Account::Claims), 0);
            }
        }
    }
}

#[test]
fn what_a_span_shows_is_what_moved_in_it() {
    for role in [Role::Payer, Role::Payee] {
        let side = trade(role);
        let (half, whole) = (Msat::from_msat(BILLED / 2), Msat::from_msat(BILLED));
        let of = |since| {
            let books = side.books(since);
            let lease = books.leases.values().next().unwrap().since;
            let channel = books.channels.values().next().unwrap().since;
            (lease, channel, books.entries)
        };

        let (lease, channel, _) = of(UnixTime::default());
        assert_eq!((lease.billed, lease.bytes), (whole, GB));
        assert_eq!(channel.paid, i128::from(PAID) * 1_000);
        // The second receipt and the close came after the mark at 100.
        let (lease, channel, entries) = of(at(50));
        assert_eq!((lease.billed, lease.bytes), (half, GB / 2));
        assert_eq!((lease.moved, channel.moved), (true, true));
        assert_eq!(channel.paid, 0);
        assert!(channel.received > 0);
        assert!(entries.iter().all(|entry| entry.at >= at(50)));
        let (lease, channel, entries) = of(at(2_000));
        assert!(!lease.moved && !channel.moved);
        assert_eq!(entries, []);
    }
}

#[test]
fn every_single_figure_that_is_damaged_is_found_and_named() {
    type Damage = fn(&mut Side);
    let both: [(&str, Damage); 16] = [
        ("the session bills what the journal has", |side| {
            let receipt = side.evidence.leases[0].receipt.as_mut().unwrap();
            receipt.billed = receipt.billed.saturating_add(Msat::from_msat(1));
        }),
        ("the channel's vouchers are those of the journal", |side| {
            side.evidence.channels[0].total += sat(1);
        }),
        ("no more counts as paid than vouchers say", |side| {
            side.evidence.channels[0].counted_sat += 1;
        }),
        ("credit is what was paid and not billed", |side| {
            let credit = &mut side.evidence.pairs[0].credit;
            *credit = credit.saturating_sub(Msat::from_msat(1));
        }),
        ("the ledger's coins are the wallet's", |side| {
            side.chain().balance += sat(1);
        }),
        (
            "the wallet's coins are what its transactions left",
            |side| {
                side.chain().balance -= sat(1);
            },
        ),
        (
            "the wallet's coins changed by what the channels say",
            |side| side.chain().history[0].received -= sat(1),
        ),
        (
            "the wallet's coins changed by what the channels say",
            |side| {
                side.chain().history.remove(0);
            },
        ),
        ("what ended a channel is in a block", |side| {
            side.chain().history[0].status = Status::Pending { since: None };
        }),
        ("a lease is in the journal", |side| {
            let keep = |entry: &store::Entry| {
                entry.0 != Kind::Lease as u8 && entry.0 != Kind::Session as u8
            };
            side.records.retain(keep);
        }),
        ("a channel is in the journal", |side| {
            side.records.retain(|entry| entry.0 != JOURNAL_KIND);
        }),
        (
            "a receipt bills what its bytes cost at the lease's price",
            |side| {
                let mut wrong = receipt(2, GB);
                wrong.billed = wrong.billed.saturating_add(Msat::from_msat(1));
                let last = match side.role {
                    Role::Payer => session(SessionFact::Signed(wrong)),
                    Role::Payee => session(received(wrong)),
                };
                let is_session = |entry: &store::Entry| entry.0 == Kind::Session as u8;
                // The one before the close, which then says less.
                let close = side.records.iter().rposition(is_session).unwrap();
                side.records.remove(close);
                side.replace(is_session, last);
            },
        ),
        ("misfit", |side| {
            let first = side.records.iter().position(|it| it.0 == JOURNAL_KIND);
            side.records.remove(first.unwrap());
        }),
        ("misfit", |side| side.records.push((99, vec![]))),
        ("misfit", |side| {
            // A total that falls.
            side.records.pop();
            side.records.push(match side.role {
                Role::Payer => channel(Fact::Promised {
                    tranche: TrancheIndex::FIRST,
                    total: sat(PAID - 1),
                }),
                Role::Payee => channel(held(PAID - 1)),
            });
        }),
        ("misfit", |side| {
            // The close pays more than there was.
            side.records.pop();
            side.records.push(channel(Fact::Settled(Settlement {
                received: sat(CAPACITY),
                ..settlement()
            })));
        }),
    ];
    for (rule, damage) in both {
        for role in [Role::Payer, Role::Payee] {
            let mut side = trade(role);
            damage(&mut side);
            let rules = side.rules();
            assert!(rules.contains(&rule), "{role:?}: {rule}: found {rules:?}");
        }
    }
    let one_sided: [(&str, Role, Damage); 10] = [
        // It may be younger than the records, so that it is counted; but nobody received that.
        ("the ledger's coins are the wallet's", Role::Payee, |side| {
            side.records.pop();
            side.records.push(channel(Fact::Settled(Settlement {
                received: sat(PAID - 205 + 1),
                ..settlement()
            })));
        }),
        (
            "the buyer signs for no more than its meter counts",
            Role::Payer,
            |side| side.evidence.leases[0].meter = Some(receipt(2, GB - 1).reading),
        ),
        (
            "no more is carried than one window beyond the receipt",
            Role::Payee,
            |side| {
                let window = lease().window().get();
                side.evidence.leases[0].meter = Some(receipt(2, GB + window + 1).reading);
            },
        ),
        (
            "no more is carried than one window beyond the receipt",
            Role::Payee,
            |side| {
                let window = lease().window().get();
                let SessionFact::Receipted(mut receipted) = received(receipt(2, GB)) else {
                    unreachable!()
                };
                receipted.own = receipt(2, GB + window + 1).reading;
                let close = side.records.len() - 3;
                side.records[close - 1] = session(SessionFact::Receipted(receipted));
            },
        ),
        (
            "what is written off is what the journal has",
            Role::Payer,
            |side| side.evidence.pairs[0].written_off = Msat::from_msat(1),
        ),
        (
            "a funding costs the fee that was written down",
            Role::Payer,
            |side| side.chain().history[1].fee = Some(sat(155)),
        ),
        (
            "the close takes no more than was signed for",
            Role::Payer,
            |side| {
                side.records.pop();
                side.records.push(channel(Fact::Settled(Settlement {
                    returned: sat(CAPACITY - PAID - 1),
                    received: sat(PAID - 204),
                    ..settlement()
                })));
            },
        ),
        (
            "the voucher held is the best of the journal",
            Role::Payee,
            |side| {
                let tranche = side.evidence.vouchers[0].1.clone();
                side.evidence.vouchers[0].2 = tranche.sign(&keypair(11), sat(PAID - 1)).unwrap();
            },
        ),
        (
            "the voucher held bears the buyer's signature",
            Role::Payee,
            |side| {
                let tranche = side.evidence.vouchers[0].1.clone();
                side.evidence.vouchers[0].2 = tranche.sign(&keypair(12), sat(PAID)).unwrap();
            },
        ),
        ("misfit", Role::Payee, |side| {
            // A receipt that somebody else signed.
            let message = Message {
                lease: lease().id(),
                body: Body::Receipt(receipt(3, GB)),
            };
            let forged = Signed::seal(message, &seller(), NETWORK);
            let forged = SessionFact::Receipted(Receipted {
                message: ByteBuf::from(forged.as_bytes().to_vec()),
                own: Reading::ZERO,
            });
            side.records.push(session(forged));
        }),
    ];
    for (rule, role, damage) in one_sided {
        let mut side = trade(role);
        damage(&mut side);
        let rules = side.rules();
        assert!(rules.contains(&rule), "{role:?}: {rule}: found {rules:?}");
    }
}

#[test]
fn vouchers_of_one_minute_are_one_entry_and_the_limit_is_kept() {
    let mut side = trade(Role::Payee);
    side.records.truncate(6);
    for total in PAID + 1..PAID + 50 {
        side.records.push(channel(held(total)));
    }

    let books = side.books(UnixTime::default());
    let vouchers = books.entries.iter().filter(|it| it.what == What::Voucher);
    let amounts: Vec<_> = vouchers.map(|it| it.amount.msat()).collect();

    assert_eq!(amounts, [(PAID + 49) * 1_000]);
    let few = Books::fold(
        &trade(Role::Payer).records,
        NETWORK,
        UnixTime::default(),
        Keep::AtMost(2),
    );
    assert!(few.overflowed);
    assert_eq!(few.entries.len(), 2);
}

#[test]
fn a_funding_that_came_to_nothing_leaves_nobody_richer_or_poorer() {
    for role in [Role::Payer, Role::Payee] {
        let mut side = trade(role);
        side.records.pop();
        side.records.push(channel(Fact::Abandoned));
        let deposit = side.chain().history.pop();
        let chain = side.chain();
        chain.history = deposit
            .into_iter()
            .filter(|_| role == Role::Payer)
            .collect();
        chain.balance = match role {
            Role::Payer => sat(DEPOSIT),
            Role::Payee => Amount::ZERO,
        };
        side.evidence.vouchers.clear();
        side.evidence.channels[0].total = Amount::ZERO;
        side.evidence.channels[0].counted_sat = 0;
        side.evidence.pairs[0].credit = Msat::ZERO;

        assert_eq!(side.rules(), [""; 0]);
        let books = side.books(UnixTime::default());
        assert_eq!(books.balance(Account::Fees, None), 0);
        // The bytes were carried, and nobody has paid for them.
        let owed = match role {
            Role::Payer => -i128::from(BILLED),
            Role::Payee => i128::from(BILLED),
        };
        assert_eq!(books.balance(Account::Credit, None), owed);
    }
}

/// One of the records of a trade, or nonsense.
fn any_record() -> impl Strategy<Value = store::Entry> {
    let known: Vec<store::Entry> = [Role::Payer, Role::Payee]
        .into_iter()
        .flat_map(|role| trade(role).records)
        .chain((PAID..PAID + 5).map(|total| channel(held(total))))
        .chain((0..6).map(|n| session(SessionFact::Signed(receipt(n, n * GB / 5)))))
        .chain([0, 5, 3].map(|total| {
            let seller = seller().node_id();
            let record = WrittenOffRecord::new(seller, Msat::from_msat(total));
            (Kind::WrittenOff as u8, record.to_bytes())
        }))
        .chain([channel(Fact::Abandoned)])
        .collect();
    prop_oneof![
        20 => prop::sample::select(known),
        1 => (any::<u8>(), prop::collection::vec(any::<u8>(), 0..40)),
    ]
}

proptest! {
    /// Whatever stands in a journal, in whatever order: the books balance after all of it, and the
    /// same records give the same books.
    #[test]
    fn any_sequence_of_records_balances(records in prop::collection::vec(any_record(), 0..60)) {
        let fold = || Books::fold(&records, NETWORK, UnixTime::default(), Keep::AtMost(1_000));
        let (books, again) = (fold(), fold());

        let sum: i128 = books.balances().map(|(_, _, balance)| balance).sum();
        prop_assert_eq!(sum, 0);
        let entered: i128 = books.entries.iter().map(|it| i128::from(it.amount.msat())).sum();
        prop_assert!(entered >= books.balance(Account::Coins, None).abs());
        for account in [Account::Locked, Account::Claims, Account::Fees, Account::Lost] {
            prop_assert!(books.balance(account, None) >= 0);
        }
        // Each account is what its entries left.
        for account in [Account::Coins, Account::Credit, Account::Spent, Account::Earned] {
            let left: i128 = books.entries.iter().map(|it| {
                let amount = i128::from(it.amount.msat());
                i128::from(it.to == account) * amount - i128::from(it.from == account) * amount
            }).sum();
            prop_assert_eq!(left, books.balance(account, None));
        }
        prop_assert_eq!(books.entries, again.entries);
    }
}
