//! Requests of other nodes, and their answers to ours: sorted here, dealt with elsewhere.

use bitmesh_market::identity::NodeId;
use tracing::debug;

use super::{Asked, Driver};
use crate::mesh::{Command, InboundId, RequestError, RequestId};
use crate::protocol::{Request, Response};

impl Driver {
    /// Another node asks for something.
    pub(super) fn request(&mut self, from: NodeId, inbound: InboundId, request: Request) {
        match request {
            Request::Rfq(bytes) => self.quote_asked(from, inbound, &bytes),
            Request::Propose(bytes) => self.lease_proposed(from, inbound, &bytes),
            Request::Channel(bytes) => self.channel_bytes(from, &bytes, Some(inbound)),
            Request::Asks { after } => {
                let response = self.page_of_book(&after);
                self.mesh_do(Command::Respond { inbound, response });
            }
        }
    }

    /// Another node answered, or did not.
    pub(super) fn response(&mut self, id: RequestId, result: Result<Response, RequestError>) {
        let Some(asked) = self.asked.remove(&id) else {
            return;
        };
        let response = match result {
            Ok(response) => Some(response),
            Err(error) => {
                debug!(?asked, %error, "a request failed");
                None
            }
        };
        match (asked, response) {
            (Asked::Quote { purchase, seller }, response) => {
                self.quote_came(purchase, seller, response);
            }
            (Asked::Lease { purchase, seller }, response) => {
                self.lease_came(purchase, seller, response);
            }
            (Asked::Asks { neighbour }, Some(Response::Asks { asks, next })) => {
                self.page_came(neighbour, &asks, next);
            }
            (Asked::Channel { peer }, Some(Response::Channel(bytes))) => {
                if !bytes.is_empty() {
                    self.channel_bytes(peer, &bytes, None);
                }
            }
            (Asked::Channel { peer }, None) if !self.connected.contains_key(&peer) => {
                let now = self.clock.now();
                self.payments.unreachable(peer, now);
            }
            // A machine that got no answer asks again.
            (Asked::Asks { .. } | Asked::Channel { .. }, _) => {}
        }
    }
}
