//! Which channels the seller closes: what the product plans for a block or an operator, done as a node
//! does it.

use bitcoin::FeeRate;
use bitmesh_wallet::channel::ProposalId;
use bitmesh_wallet::channel::batch;
use bitmesh_wallet::channel::closing::{self, Claim, Close, Plan};
use bitmesh_wallet::channel::deadline::{BlockHeight, Margins};
use bitmesh_wallet::channel::payee;

use crate::keys::SELLER_PAYOUT;
use crate::world::World;

impl World {
    fn claims(&self) -> Vec<Claim> {
        let outputs = self.paid_on();
        let machines = self.seller.machines.values();
        machines.filter_map(|payee| payee.claim(&outputs)).collect()
    }

    /// Makes the closes that this block calls for.
    pub(crate) fn plan_closes(&mut self) {
        let Some(tip) = self.seller.eyes.tip.map(BlockHeight::new) else {
            return;
        };
        let plan = closing::plan(&self.claims(), tip, self.chain.floor, &Margins::default());
        self.carry_out(plan);
    }

    /// The operator closes everything that is worth it.
    pub(crate) fn close_all(&mut self) {
        let plan = closing::all(&self.claims(), self.chain.floor);
        self.carry_out(plan);
    }

    fn carry_out(&mut self, plan: Plan) {
        if !plan.waiting.is_empty() {
            self.counts.add("close", "waits");
        }
        for close in plan.closes {
            let what = match close.replaces {
                Some(_) => "replaces",
                None => "is new",
            };
            self.counts.add("close", what);
            self.counts.add("batch", close.members.len());
            self.close_due(&close);
        }
    }

    fn close_due(&mut self, close: &Close) {
        let feerate = FeeRate::from_sat_per_vb(close.feerate).expect("a bid is a fee rate");
        match &close.members[..] {
            [alone] => self.close(*alone, feerate),
            members => self.close_in_batch(members, feerate),
        }
    }

    /// Everybody writes the batch down before it is broadcast, once.
    fn close_in_batch(&mut self, members: &[ProposalId], feerate: FeeRate) {
        let machines = &mut self.seller.machines;
        let parts: Option<Vec<_>> = members.iter().map(|id| machines[id].member()).collect();
        // A crash while another close of the same plan was made may have taken a claim away.
        let Some(parts) = parts else { return };
        let tx = batch::commitments(&parts, &SELLER_PAYOUT, feerate);
        let tx = Box::new(tx.expect("those who are planned for can bear it"));
        for id in members {
            let tx = tx.clone();
            let machine = machines.get_mut(id).expect("it is a member");
            let told = machine.handle(payee::Input::CloseInBatch { tx }, self.now);
            assert_eq!(told, Ok(()), "a member does not know its own batch");
        }
        self.pull_seller();
        let todo = &mut self.seller.todo;
        let broadcast = payee::Output::Broadcast(tx);
        todo.retain(|(_, output)| *output != broadcast);
        todo.push_back((members[0], broadcast));
        self.drain_seller();
    }
}
