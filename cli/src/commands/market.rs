//! `sell`, `offers`, `buy`, `leases`, `lease`.

use bitmesh_market::units::{Bytes, BytesPerSecond, Msat, Price};
use bitmesh_node::control::api::{
    Buy, CloseLease, ExtendLease, GetConfig, ListLeases, ListOffers, PauseSelling, PriceRule,
    SellLimits, Selling, SetLimits, SetPrice, ShowLease, StartSelling, StopSelling,
};

use crate::{
    args::{BuyArgs, LeaseCommand, LeasesArgs, Money, OffersArgs, Quantity, SellCommand, Span},
    context::{Context, now},
    failure::Failure,
    output::OutputError,
    prompt::Consent,
    render,
};

pub(super) fn sell(context: &Context, command: SellCommand) -> Result<(), Failure> {
    let asking = "asking the daemon";
    let selling = match command {
        SellCommand::Start(args) => {
            let price = args.price.map(fixed);
            let limits = SellLimits::from(&args.limits);
            let limits = (limits != SellLimits::default()).then_some(limits);
            context.call(&StartSelling { price, limits }, "publishing the offer")?
        }
        SellCommand::Stop => context.call(&StopSelling {}, "closing leases")?,
        SellCommand::Pause => context.call(&PauseSelling {}, asking)?,
        SellCommand::Price(args) => match args.price {
            Some(price) => context.call(
                &SetPrice {
                    price: fixed(price),
                },
                asking,
            )?,
            None => context.call(&SetLimits::default(), asking)?,
        },
        SellCommand::Limits(args) => context.call(
            &SetLimits {
                limits: SellLimits::from(&args),
            },
            asking,
        )?,
    };
    Ok(show_selling(context, &selling)?)
}

fn show_selling(context: &Context, selling: &Selling) -> Result<(), OutputError> {
    context.out.reply(selling, |selling, style| {
        render::selling(selling, now(), style)
    })
}

fn fixed(price: Price) -> PriceRule {
    PriceRule::Fixed {
        price_msat_per_gb: price.msat_per_gb(),
    }
}

pub(super) fn offers(context: &Context, args: OffersArgs) -> Result<(), Failure> {
    let wanted = ListOffers {
        max_price_msat_per_gb: args.max_price.map(Price::msat_per_gb),
        min_rate_bytes_per_s: args.min_rate.map(BytesPerSecond::get),
        bytes: args.size.map(Bytes::get),
        mode: args.mode.map(Into::into),
        region: args.region,
        from: args.from,
        order: args.sort.into(),
        limit: args.limit,
    };
    let offers = context.call(&wanted, "asking the daemon")?;
    Ok(context.out.reply(&offers, |offers, style| {
        render::offers(offers, now(), style)
    })?)
}

pub(super) fn buy(context: &Context, args: BuyArgs) -> Result<(), Failure> {
    let (bytes, budget) = match (args.quantity, args.budget) {
        (Some(Quantity::Budget(_)), Some(_)) => {
            return Err(Failure::usage(
                "the budget is given twice",
                "leave out --budget, or give a size like 2GB beside it",
            ));
        }
        (Some(Quantity::Budget(budget)), None) => (None, Some(budget)),
        (Some(Quantity::Bytes(bytes)), budget) => (Some(bytes), budget.map(|Money(msat)| msat)),
        (None, budget) => (None, budget.map(|Money(msat)| msat)),
    };
    let asks = context.consent == Consent::Askable && !context.out.is_json();
    let wanted = Buy {
        bytes: bytes.map(Bytes::get),
        budget_msat: budget.map(Msat::msat),
        max_price_msat_per_gb: args.max_price.map(Price::msat_per_gb),
        max_first_msat: args.max_first.map(|Money(msat)| msat.msat()),
        term_s: args.term.map(Span::seconds),
        min_rate_bytes_per_s: args.min_rate.map(BytesPerSecond::get),
        mode: args.mode.into(),
        region: args.region,
        from: args.from,
        dry_run: args.dry_run,
        wait_s: args.wait.map_or(0, Span::seconds),
    };
    if args.dry_run {
        let plan = context.call(&wanted, ASKING_SELLERS)?;
        return Ok(context.out.reply(&plan, render::purchase)?);
    }
    let wanted = if asks {
        agreed(context, wanted)?
    } else {
        wanted
    };
    let purchase = context.call(&wanted, "buying")?;
    Ok(context.out.reply(&purchase, render::purchase)?)
}

const ASKING_SELLERS: &str = "asking for quotes";

/// What is wanted, once the person at the terminal has seen what a new channel would cost and has
/// agreed. Where none has to be opened nothing is asked: the quantity and the price were typed.
fn agreed(context: &Context, wanted: Buy) -> Result<Buy, Failure> {
    let plan = Buy {
        dry_run: true,
        ..wanted.clone()
    };
    let plan = context.call(&plan, ASKING_SELLERS)?;
    if !plan.cost.opens_channel {
        return Ok(wanted);
    }
    let days = channel_days(context);
    context
        .out
        .show(&plan, |plan, style| render::opening(plan, days, style));
    context.consent.ask_to_go_on("Go on?")?;
    Ok(Buy {
        // No more than was shown, whatever the next quote says.
        max_first_msat: wanted.max_first_msat.or(Some(plan.quote.min_first_msat)),
        ..wanted
    })
}

/// After how many days a buyer may take back what a new channel holds.
fn channel_days(context: &Context) -> u64 {
    const BLOCKS_A_DAY: u64 = 144;
    const USUAL: u64 = 30;
    const KEY: &str = "payments.expiry_blocks";
    let key = Some(KEY.to_owned());
    let asked = context.call(&GetConfig { key }, "asking the daemon");
    let blocks = asked.ok().and_then(|answer| {
        let setting = answer.values.iter().find(|it| it.key == KEY)?;
        setting.value.as_u64()
    });
    blocks.map_or(USUAL, |blocks| blocks / BLOCKS_A_DAY)
}

pub(super) fn leases(context: &Context, args: &LeasesArgs) -> Result<(), Failure> {
    let wanted = ListLeases {
        all: args.all,
        role: args.role.map(Into::into),
    };
    let leases = context.call(&wanted, "asking the daemon")?;
    Ok(context.out.reply(&leases, |leases, style| {
        render::leases(leases, now(), style)
    })?)
}

pub(super) fn lease(context: &Context, command: LeaseCommand) -> Result<(), Failure> {
    let lease = match command {
        LeaseCommand::Show { lease } => context.call(&ShowLease { lease }, "asking the daemon")?,
        LeaseCommand::Extend { lease, size } => context.call(
            &ExtendLease {
                lease,
                bytes: size.get(),
            },
            "asking the seller",
        )?,
        LeaseCommand::Close { lease } => {
            context.call(&CloseLease { lease }, "signing the last receipt")?
        }
    };
    Ok(context
        .out
        .reply(&lease, |lease, style| render::lease(lease, now(), style))?)
}
