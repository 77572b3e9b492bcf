//! `usage` and `events`: what goes on until Ctrl-C.

use bitmesh_node::control::{
    ErrorCode,
    api::{Event, GetUsage, LeaseState, Usage, UsageLine},
};

use crate::{
    args::{EventsArgs, UsageArgs},
    context::Context,
    failure::Failure,
    render,
};

/// The events that change what `usage` shows.
const USAGE_EVENTS: [&str; 5] = [
    "usage",
    "lease_opened",
    "lease_paused",
    "lease_resumed",
    "lease_closed",
];

pub(super) fn usage(context: &Context, args: UsageArgs) -> Result<(), Failure> {
    let wanted = GetUsage { lease: args.lease };
    if !args.watch {
        let usage = context.call(&wanted, "asking the daemon")?;
        return Ok(context.out.reply(&usage, render::usage)?);
    }
    context.block_on(watch_usage(context, &wanted))
}

/// With `--json` one line a lease each time it changes; else the whole table, redrawn.
async fn watch_usage(context: &Context, wanted: &GetUsage) -> Result<(), Failure> {
    // Watching begins before the first look, so that nothing falls between the two.
    let mut events = context.client.events(&USAGE_EVENTS).await?;
    let mut usage = context.client.call(wanted).await?;
    if context.out.is_json() {
        for line in &usage.leases {
            context.out.json(line)?;
        }
    } else {
        context.out.frame(&usage, render::usage)?;
    }
    while let Some(event) = events.next().await? {
        match event {
            Event::Usage { usage: line } if is_wanted(wanted, &usage, &line.lease) => {
                put(&mut usage, line.clone());
                if context.out.is_json() {
                    context.out.json(&line)?;
                }
            }
            Event::LeaseClosed { lease } if wanted.lease.is_some() => {
                if is_wanted(wanted, &usage, &lease.id) {
                    let last = UsageLine {
                        lease: lease.id,
                        role: lease.role,
                        peer: lease.peer,
                        state: LeaseState::Closed,
                        reading: lease.reading,
                        quota_bytes: lease.quota_bytes,
                        billed_msat: lease.billed_msat,
                        paid_msat: lease.paid_msat,
                        speed_bytes_per_s: 0,
                    };
                    put(&mut usage, last.clone());
                    if context.out.is_json() {
                        context.out.json(&last)?;
                    } else {
                        context.out.frame(&usage, render::usage)?;
                    }
                    return Ok(());
                }
                continue;
            }
            Event::LeaseOpened { .. }
            | Event::LeasePaused { .. }
            | Event::LeaseResumed { .. }
            | Event::LeaseClosed { .. }
            | Event::Lagged { .. } => {
                usage = context.client.call(wanted).await?;
                if context.out.is_json() {
                    for line in &usage.leases {
                        context.out.json(line)?;
                    }
                }
            }
            Event::Stopping {} => return Err(stopped()),
            _ => continue,
        }
        if !context.out.is_json() {
            context.out.frame(&usage, render::usage)?;
        }
    }
    Err(stopped())
}

/// Whether an event about `lease` belongs here: to the lease that was named, or to any.
fn is_wanted(wanted: &GetUsage, usage: &Usage, lease: &str) -> bool {
    match &wanted.lease {
        None => true,
        Some(named) => {
            lease.starts_with(named.as_str()) || usage.leases.iter().any(|line| line.lease == lease)
        }
    }
}

fn put(usage: &mut Usage, line: UsageLine) {
    match usage.leases.iter_mut().find(|old| old.lease == line.lease) {
        Some(old) => *old = line,
        None => usage.leases.insert(0, line),
    }
}

fn stopped() -> Failure {
    Failure::new(
        ErrorCode::Unreachable,
        "the daemon has stopped",
        "start it again with \"bitmesh up\"",
    )
}

pub(super) fn events(context: &Context, args: &EventsArgs) -> Result<(), Failure> {
    let types: Vec<&str> = args.types.iter().map(String::as_str).collect();
    context.block_on(async {
        let mut events = context.client.events(&types).await?;
        while let Some(event) = events.next().await? {
            context.out.reply(&event, render::event)?;
        }
        Err(stopped())
    })
}
