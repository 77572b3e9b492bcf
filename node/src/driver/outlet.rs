//! The seller's way out, shared by all sessions this node serves.

use std::net::IpAddr;
use std::sync::Arc;

use bitmesh_market::units::BytesPerSecond;
use tokio_util::sync::CancellationToken;

use crate::mesh::MeshStream;
use crate::tunnel::egress::{self, Exit, Limits};
use crate::tunnel::policy::{Policy, PolicyConfig, Preset};
use crate::tunnel::resolver::SystemResolver;
use crate::tunnel::shaper::Shaper;
use crate::tunnel::{Ended, Meter};

/// Policy, name resolution, and the rate that all sessions share.
pub(super) struct Outlet {
    exit: Arc<Exit>,
    shaper: Shaper,
}

impl Outlet {
    pub(super) fn new(policy: PolicyConfig, total: BytesPerSecond) -> Self {
        let resolver = Arc::new(SystemResolver::default());
        Self {
            exit: Arc::new(Exit::new(Policy::new(policy), resolver, Limits::default())),
            shaper: Shaper::new(Some(total)),
        }
    }

    /// Tells the policy which addresses lead back to this machine, although no interface has them.
    pub(super) fn set_own_addresses(&self, own: Vec<IpAddr>) {
        self.exit.policy().set_own_addresses(own);
    }

    /// What buyers may reach, in a word.
    pub(super) fn preset(&self) -> Preset {
        self.exit.policy().preset()
    }

    /// Sets the rate that all sessions share, those that run included.
    pub(super) fn set_total_rate(&self, total: BytesPerSecond) {
        self.shaper.set_total(total);
    }

    /// Serves one session until its lanes are lost or `cut` is cancelled; then tells `ended`.
    pub(super) fn serve<F>(
        &self,
        lanes: Vec<MeshStream>,
        meter: Arc<Meter>,
        rate: BytesPerSecond,
        cut: CancellationToken,
        ended: impl FnOnce(Ended) -> F + Send + 'static,
    ) where
        F: Future<Output = ()> + Send,
    {
        let shaper = self.shaper.lease(Some(rate));
        let exit = Arc::clone(&self.exit);
        tokio::spawn(async move {
            let served = cut
                .run_until_cancelled(egress::serve(lanes, meter, shaper, exit))
                .await;
            ended(served.unwrap_or(Ended::Detached)).await;
        });
    }
}
