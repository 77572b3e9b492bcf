//! `status`, `id`, `peers`, `api`.

use std::time::Duration;

use bitmesh_node::control::{
    ErrorCode,
    api::{AddPeer, GetId, GetStatus, ListPeers},
    error::ErrorBody,
};

use crate::{
    args::{ApiArgs, PeersArgs, PeersCommand, StatusArgs},
    context::{Context, now},
    failure::Failure,
    render,
};

/// How often `status --watch` looks again.
const EVERY: Duration = Duration::from_secs(1);

pub(super) fn status(context: &Context, args: &StatusArgs) -> Result<(), Failure> {
    if args.watch {
        return context.block_on(async {
            loop {
                let status = context.client.call(&GetStatus {}).await?;
                context.out.frame(&status, render::status)?;
                tokio::time::sleep(EVERY).await;
            }
        });
    }
    let status = context.call(&GetStatus {}, "asking the daemon")?;
    context.out.reply(&status, render::status)?;
    if args.check && !status.healthy {
        // What is wrong was just shown.
        return Err(Failure::Silent(ErrorCode::Unhealthy.exit_code()));
    }
    Ok(())
}

pub(super) fn id(context: &Context) -> Result<(), Failure> {
    let identity = context.call(&GetId {}, "asking the daemon")?;
    Ok(context.out.reply(&identity, render::identity)?)
}

pub(super) fn peers(context: &Context, args: PeersArgs) -> Result<(), Failure> {
    match args.command.unwrap_or(PeersCommand::List) {
        PeersCommand::List => {
            let peers = context.call(&ListPeers {}, "asking the daemon")?;
            Ok(context
                .out
                .reply(&peers, |peers, style| render::peers(peers, now(), style))?)
        }
        PeersCommand::Add { address } => {
            let added = context.call(&AddPeer { address }, "dialling")?;
            Ok(context.out.reply(&added, render::peer_added)?)
        }
    }
}

pub(super) fn api(context: &Context, args: ApiArgs) -> Result<(), Failure> {
    let method = args.method.to_uppercase();
    let body = args.body.unwrap_or_default();
    let (status, answer) =
        context.block_on(async { Ok(context.client.raw(&method, &args.path, body).await?) })?;
    context.out.line(&String::from_utf8_lossy(&answer))?;
    if status < 400 {
        return Ok(());
    }
    match serde_json::from_slice::<ErrorBody>(&answer) {
        Ok(ErrorBody { error }) => {
            context.out.complain(&error.message, &error.hint);
            Err(Failure::Silent(error.code.exit_code()))
        }
        Err(_) => Err(Failure::new(
            ErrorCode::Failure,
            format!("the daemon answered with status {status}"),
            "\"bitmesh api GET /openapi.json\" describes every call",
        )),
    }
}
