//! `wallet`, `channels`, `earnings`.

use bitmesh_node::control::ErrorCode;
use bitmesh_node::control::api::{
    ChannelsOpened, CloseAllChannels, CloseChannel, GetBalance, GetEarnings, ListChannels,
    ListTransactions, OpenChannels, ReceiveCoins, RefundChannel, RevealWords, RolloverChannel,
    SendCoins, ShowChannel, TopUpChannel, Words,
};
use bitmesh_node::words::{self, Passphrase};

use crate::{
    args::{
        ChannelCloseArgs, ChannelOpenArgs, ChannelRefundArgs, ChannelRolloverArgs,
        ChannelTopUpArgs, ChannelsArgs, ChannelsCommand, EarningsArgs, Feerate, Money,
        PeerOrAmount, SendArgs, Span, UnlockArgs, WalletCommand, WholeSat,
    },
    context::{Context, now},
    failure::Failure,
    passphrase,
    prompt::Consent,
    render,
};

const ASKING: &str = "asking the daemon";

pub(super) fn wallet(context: &Context, command: WalletCommand) -> Result<(), Failure> {
    match command {
        WalletCommand::Balance => {
            let balance = context.call(&GetBalance {}, ASKING)?;
            Ok(context.out.reply(&balance, render::balance)?)
        }
        WalletCommand::Receive => {
            let address = context.call(&ReceiveCoins {}, ASKING)?;
            Ok(context.out.reply(&address, render::address)?)
        }
        WalletCommand::Send(args) => send(context, args),
        WalletCommand::History { limit } => {
            let transactions = context.call(&ListTransactions { limit }, ASKING)?;
            Ok(context.out.reply(&transactions, render::transactions)?)
        }
        WalletCommand::Backup(unlock) => backup(context, &unlock),
        WalletCommand::Passphrase(args) => super::passphrase::run(context, args.command),
    }
}

fn send(context: &Context, args: SendArgs) -> Result<(), Failure> {
    let wanted = SendCoins {
        address: args.address,
        amount_sat: args.amount.map(|WholeSat(sat)| sat),
        all: args.all,
        feerate_sat_per_kvb: args.feerate.map(feerate),
        dry_run: true,
    };
    let plan = context.call(&wanted, ASKING)?;
    if args.dry_run {
        return Ok(context.out.reply(&plan, render::sent)?);
    }
    if context.consent != Consent::Given {
        context.out.show(&plan, render::sent);
    }
    context.consent.ask("send this?")?;
    // At the fee rate that was shown, whatever the estimate says by now.
    let wanted = SendCoins {
        feerate_sat_per_kvb: Some(plan.feerate_sat_per_kvb),
        dry_run: false,
        ..wanted
    };
    let sent = context.call(&wanted, "sending")?;
    Ok(context.out.reply(&sent, render::sent)?)
}

fn feerate(feerate: Feerate) -> u64 {
    feerate.sat_per_kvb
}

fn backup(context: &Context, unlock: &UnlockArgs) -> Result<(), Failure> {
    context.out.note(
        "Whoever sees the twelve words has the coins and the name of this node. \
         Make sure that nobody looks over your shoulder.",
    );
    context.consent.ask("show the words?")?;
    let words = match passphrase::to_open(context, unlock.passphrase_file.as_deref())? {
        // The daemon has them open, and shows them to nobody: whoever asks has to know the passphrase.
        Some(passphrase) => sealed_words(context, &passphrase)?,
        None => context.call(&RevealWords { confirm: true }, ASKING)?,
    };
    context.out.reply(&words, render::words)?;
    context.out.note(&format!(
        "They restore the name and the coins on chain. Channels, leases and credit are in {} alone; \
         copy that file too, while the node is stopped.",
        context.paths.journal().display()
    ));
    Ok(())
}

/// The words as their file has them; the daemon need not run.
fn sealed_words(context: &Context, passphrase: &Passphrase) -> Result<Words, Failure> {
    let (keys, birth_height) = words::load(&context.paths, context.network, Some(passphrase))?;
    // A new node's wallet notes it with the first block it sees.
    let born = words::wallet_birthday(&context.paths);
    Ok(Words {
        words: keys.words().split(' ').map(str::to_owned).collect(),
        birth_height: born.or(birth_height).unwrap_or(0),
    })
}

pub(super) fn channels(context: &Context, args: ChannelsArgs) -> Result<(), Failure> {
    let all = match args.command {
        None => args.all,
        Some(ChannelsCommand::List { all }) => all,
        Some(ChannelsCommand::Show { channel }) => {
            let channel = context.call(&ShowChannel { channel }, ASKING)?;
            return Ok(context.out.reply(&channel, render::channel)?);
        }
        Some(ChannelsCommand::Open(open)) => return open_channels(context, open),
        Some(ChannelsCommand::TopUp(top_up)) => return top_up_channel(context, top_up),
        Some(ChannelsCommand::Close(close)) => return close_channel(context, close),
        Some(ChannelsCommand::Rollover(rollover)) => return roll_over(context, rollover),
        Some(ChannelsCommand::Refund(refund)) => return refund_channel(context, refund),
    };
    let channels = context.call(&ListChannels { all }, ASKING)?;
    Ok(context.out.reply(&channels, render::channels)?)
}

fn open_channels(context: &Context, args: ChannelOpenArgs) -> Result<(), Failure> {
    let (mut peers, mut capacity) = (Vec::new(), None);
    for given in args.peers {
        match given {
            PeerOrAmount::Peer(peer) => peers.push(peer),
            PeerOrAmount::Amount(WholeSat(sat)) if capacity.is_none() => capacity = Some(sat),
            PeerOrAmount::Amount(_) => {
                return Err(Failure::usage(
                    "the amount is given twice",
                    "nothing was opened; all channels of one funding hold the same",
                ));
            }
        }
    }
    let options = args.options;
    let wanted = OpenChannels {
        peers,
        capacity_sat: capacity,
        max_first_msat: options.max_first.map(|Money(msat)| msat.msat()),
        feerate_sat_per_kvb: options.feerate.map(feerate),
        dry_run: true,
    };
    let plan = context.call(&wanted, ASKING)?;
    if !agree_to_open(context, &plan, options.dry_run)? {
        return Ok(());
    }
    let opened = context.call(
        &OpenChannels {
            feerate_sat_per_kvb: Some(plan.feerate_sat_per_kvb),
            max_first_msat: wanted.max_first_msat.or(Some(plan.max_first_sat * 1_000)),
            dry_run: false,
            ..wanted
        },
        ASKING_SELLERS,
    )?;
    Ok(context.out.reply(&opened, render::channels_opened)?)
}

fn top_up_channel(context: &Context, args: ChannelTopUpArgs) -> Result<(), Failure> {
    let (options, WholeSat(amount_sat)) = (args.options, args.amount);
    let wanted = TopUpChannel {
        peer: args.peer,
        amount_sat,
        max_first_msat: options.max_first.map(|Money(msat)| msat.msat()),
        feerate_sat_per_kvb: options.feerate.map(feerate),
        dry_run: true,
    };
    let plan = context.call(&wanted, ASKING)?;
    if !agree_to_open(context, &plan, options.dry_run)? {
        return Ok(());
    }
    let opened = context.call(
        &TopUpChannel {
            feerate_sat_per_kvb: Some(plan.feerate_sat_per_kvb),
            max_first_msat: wanted.max_first_msat.or(Some(plan.max_first_sat * 1_000)),
            dry_run: false,
            ..wanted
        },
        ASKING_SELLERS,
    )?;
    Ok(context.out.reply(&opened, render::channels_opened)?)
}

/// Shows what opening would cost, and asks a person at a terminal, as `buy` does. A script has said what
/// it wants.
fn agree_to_open(context: &Context, plan: &ChannelsOpened, dry_run: bool) -> Result<bool, Failure> {
    if dry_run {
        context.out.reply(plan, render::channels_opened)?;
        return Ok(false);
    }
    if context.consent == Consent::Askable && !context.out.is_json() {
        context.out.show(plan, render::channels_opened);
        context.consent.ask_to_go_on("Go on?")?;
    }
    Ok(true)
}

const ASKING_SELLERS: &str = "asking the sellers";

fn close_all_channels(context: &Context, args: &ChannelCloseArgs) -> Result<(), Failure> {
    let wanted = CloseAllChannels {
        feerate_sat_per_kvb: args.feerate.map(feerate),
        dry_run: true,
    };
    let plan = context.call(&wanted, ASKING)?;
    if args.dry_run || plan.closes.is_empty() {
        return Ok(context.out.reply(&plan, render::channels_closed)?);
    }
    if context.consent != Consent::Given {
        context.out.show(&plan, render::channels_closed);
    }
    context.consent.ask("close them?")?;
    let closed = context.call(
        &CloseAllChannels {
            dry_run: false,
            ..wanted
        },
        "closing",
    )?;
    Ok(context.out.reply(&closed, render::channels_closed)?)
}

fn refund_channel(context: &Context, args: ChannelRefundArgs) -> Result<(), Failure> {
    let wanted = RefundChannel {
        channel: args.channel,
        feerate_sat_per_kvb: args.feerate.map(feerate),
        dry_run: args.dry_run,
    };
    // It is what the node does by itself as soon as it can: nothing to be asked about.
    let refunded = context.call(&wanted, "taking back")?;
    Ok(context.out.reply(&refunded, render::channel_closed)?)
}

fn roll_over(context: &Context, args: ChannelRolloverArgs) -> Result<(), Failure> {
    let wanted = RolloverChannel {
        channel: args.channel,
        capacity_sat: args.capacity.map(|WholeSat(sat)| sat),
        feerate_sat_per_kvb: args.feerate.map(feerate),
        dry_run: true,
    };
    let plan = context.call(&wanted, ASKING)?;
    if args.dry_run {
        return Ok(context.out.reply(&plan, render::channel_rolled_over)?);
    }
    if context.consent != Consent::Given {
        context.out.show(&plan, render::channel_rolled_over);
    }
    context.consent.ask("carry it over?")?;
    // The channel that was shown, should another come into use meanwhile.
    let wanted = RolloverChannel {
        channel: plan.channel,
        dry_run: false,
        ..wanted
    };
    let rolled = context.call(&wanted, "carrying over")?;
    Ok(context.out.reply(&rolled, render::channel_rolled_over)?)
}

fn close_channel(context: &Context, args: ChannelCloseArgs) -> Result<(), Failure> {
    let Some(channel) = args.channel.clone() else {
        return close_all_channels(context, &args);
    };
    let wanted = CloseChannel {
        channel,
        feerate_sat_per_kvb: args.feerate.map(feerate),
        force: args.force,
        dry_run: true,
    };
    let plan = context.call(&wanted, ASKING)?;
    if args.dry_run {
        return Ok(context.out.reply(&plan, render::channel_closed)?);
    }
    if context.consent != Consent::Given {
        context.out.show(&plan, render::channel_closed);
    }
    context.consent.ask("close it?")?;
    let closed = context.call(
        &CloseChannel {
            dry_run: false,
            ..wanted
        },
        "closing",
    )?;
    Ok(context.out.reply(&closed, render::channel_closed)?)
}

pub(super) fn earnings(context: &Context, args: &EarningsArgs) -> Result<(), Failure> {
    if args.csv && context.out.is_json() {
        return Err(Failure::usage(
            "--csv and --json are two forms of the same answer",
            "leave one of them out; GET /v1/earnings of the control API has the entries as JSON if \
             it is asked for entries=true",
        ));
    }
    let wanted = GetEarnings {
        since_s: args.since.map(Span::seconds),
        audit: args.audit,
        entries: args.csv,
    };
    let earnings = context.call(&wanted, ASKING)?;
    if args.csv {
        let entries = earnings.entries.unwrap_or_default();
        return Ok(context.out.bytes(&render::entries_csv(&entries))?);
    }
    context.out.reply(&earnings, |earnings, style| {
        render::earnings(earnings, now(), style)
    })?;
    let Some(audit) = &earnings.audit else {
        return Ok(());
    };
    if audit.misfits.is_empty() && audit.disagreements.is_empty() {
        return Ok(());
    }
    context.out.complain(
        "the books do not agree",
        "nothing was changed and no money was moved; keep a copy of the data directory, and report \
         this with the output of \"bitmesh earnings --audit --json\"",
    );
    Err(Failure::Silent(ErrorCode::Failure.exit_code()))
}
