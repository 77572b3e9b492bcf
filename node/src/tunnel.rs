//! The proxy tunnel: applications at the buyer, the Internet at the seller, frames in between.
//!
//! ```text
//!  application ──TCP──▶ ingress ══ lanes ══▶ egress ──TCP/UDP──▶ Internet
//!                       (buyer)              (seller)
//! ```
//!
//! TCP ends at the buyer; the seller's side dials anew, so nothing here needs privileges. Flows
//! travel as [frames](frame) on a few long-lived streams ([lanes](lane)) and not as a stream each,
//! because opening streams is slow and sharing between them is not fair. A [`Meter`] at each end
//! counts the same frames and stops flows, without loss, where the session's machines say so.
//!
//! The driver makes the lanes (streams of the mesh), gives them with a meter to
//! [`Ingress::attach`](ingress::Ingress::attach) or [`egress::serve`], and from then on sees running
//! totals only.

pub mod destination;
pub mod egress;
pub mod frame;
pub mod ingress;
pub mod lane;
pub mod meter;
pub mod policy;
pub mod resolver;
pub mod shaper;

mod ending;
mod flow;
mod http_connect;
mod link;
mod socket;
mod socks;
mod udp;

pub use ending::{Ended, Violation};
pub use ingress::Ingress;
pub use meter::Meter;

/// How many lanes a session uses.
pub const LANES: usize = 4;

#[cfg(test)]
mod tests;
