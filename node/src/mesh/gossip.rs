//! Gossip: how messages are named, scored and held until the driver has judged them.

use std::collections::BTreeMap;
use std::time::Duration;

use libp2p::gossipsub::{
    self, IdentityTransform, MaxCountSubscriptionFilter, MessageAcceptance, MessageAuthenticity,
    PeerScoreParams, PeerScoreThresholds, TopicHash, TopicScoreParams, TopicSubscriptionFilter,
    ValidationMode,
};
use libp2p::{PeerId, identity};
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use bitmesh_market::envelope::Network;

use super::config::{Config, millis};
use super::{MAX_TOPICS, MessageId, Verdict};
use crate::protocol::names;
use crate::protocol::topic::Topic;

/// Messages that wait for a verdict at once: as many as the driver's queue holds, twice.
const MAX_WAITING: usize = 1024;

/// Largest unit of the gossip protocol on a stream. A message of ours is 2 KiB at most and checked
/// for that; this must hold what gossipsub says about messages (16 KiB at most) and, since its
/// decoder checks it against everything read so far, one read of 8 KiB beyond.
const MAX_UNIT_BYTES: usize = 32 * 1024;

/// Messages waiting to be sent to one neighbour. A slow one loses some, and asks again: 256 of 2 KiB
/// are half a megabyte for each of the slow.
const SEND_QUEUE: usize = 256;

/// How long a message is remembered so that it is not passed on twice. Sellers repeat an offer with a
/// new number, so this only has to outlast a message's way through the network.
const REMEMBER: Duration = Duration::from_secs(120);

/// How long a score outlives its connection.
const REMEMBER_SCORE: Duration = Duration::from_secs(600);

/// The gossip behaviour of this network.
pub(crate) type Behaviour = gossipsub::Behaviour<IdentityTransform, Filter>;

pub(crate) fn behaviour(
    config: &Config,
    network: Network,
    key: &identity::Keypair,
) -> Result<Behaviour, String> {
    let settings = gossipsub::ConfigBuilder::default()
        .protocol_id(names::meshsub(network), gossipsub::Version::V1_1)
        .heartbeat_interval(millis(config.gossip.heartbeat_ms))
        .heartbeat_initial_delay(millis(config.gossip.heartbeat_ms.min(1000)))
        .validation_mode(ValidationMode::Strict)
        .validate_messages()
        .max_transmit_size(MAX_UNIT_BYTES)
        .max_publish_messages(128)
        .connection_handler_queue_len(SEND_QUEUE)
        .duplicate_cache_time(REMEMBER)
        .message_id_fn(|message| message_id(&message.topic, &message.data))
        .build()
        .map_err(|error| error.to_string())?;
    let filter = MaxCountSubscriptionFilter {
        filter: OurTopics { network },
        max_subscribed_topics: MAX_TOPICS,
        max_subscriptions_per_request: MAX_TOPICS,
    };
    let mut behaviour = gossipsub::Behaviour::new_with_subscription_filter(
        MessageAuthenticity::Signed(key.clone()),
        settings,
        filter,
    )
    .map_err(str::to_owned)?;
    let (params, thresholds) = score(config);
    behaviour.with_peer_score(params, thresholds)?;
    Ok(behaviour)
}

/// Names a message by what it says and where: the same offer from two neighbours, or signed anew by
/// somebody who replays it, is one message.
fn message_id(topic: &TopicHash, data: &[u8]) -> gossipsub::MessageId {
    let mut hash = Sha256::new();
    hash.update(topic.as_str().as_bytes());
    hash.update([0]);
    hash.update(data);
    gossipsub::MessageId::from(hash.finalize()[..20].to_vec())
}

/// Neighbours are scored by what can be seen of them and does not depend on how much is said: a quiet
/// cell is no fault. One bad message is forgiven within minutes; three at once end the friendship.
fn score(config: &Config) -> (PeerScoreParams, PeerScoreThresholds) {
    let nodes_per_ip = config.gossip.nodes_per_ip;
    let params = PeerScoreParams {
        topic_score_cap: 50.0,
        app_specific_weight: 1.0,
        ip_colocation_factor_weight: if nodes_per_ip == 0 { 0.0 } else { -1.0 },
        ip_colocation_factor_threshold: f64::from(nodes_per_ip.max(1)),
        behaviour_penalty_weight: -1.0,
        behaviour_penalty_threshold: 6.0,
        behaviour_penalty_decay: 0.99,
        retain_score: REMEMBER_SCORE,
        ..PeerScoreParams::default()
    };
    let thresholds = PeerScoreThresholds {
        gossip_threshold: -15.0,
        publish_threshold: -30.0,
        graylist_threshold: -60.0,
        accept_px_threshold: 1000.0,
        opportunistic_graft_threshold: 1.0,
    };
    (params, thresholds)
}

/// The scores of one topic; set when this node joins it.
pub(crate) fn topic_score() -> TopicScoreParams {
    TopicScoreParams {
        topic_weight: 1.0,
        time_in_mesh_weight: 0.01,
        time_in_mesh_quantum: Duration::from_secs(1),
        time_in_mesh_cap: 600.0,
        first_message_deliveries_weight: 0.5,
        first_message_deliveries_decay: 0.99,
        first_message_deliveries_cap: 40.0,
        // How much is said differs from cell to cell, so nobody is expected to deliver a number.
        mesh_message_deliveries_weight: 0.0,
        mesh_failure_penalty_weight: 0.0,
        invalid_message_deliveries_weight: -10.0,
        // Falls to a tenth in about four minutes.
        invalid_message_deliveries_decay: 0.99,
        ..TopicScoreParams::default()
    }
}

/// Lets neighbours subscribe to topics of this network only.
pub(crate) type Filter = MaxCountSubscriptionFilter<OurTopics>;

#[derive(Clone, Debug)]
pub(crate) struct OurTopics {
    network: Network,
}

impl TopicSubscriptionFilter for OurTopics {
    fn can_subscribe(&mut self, topic: &TopicHash) -> bool {
        Topic::from_name(topic.as_str(), self.network).is_some()
    }
}

impl Verdict {
    pub(crate) const fn acceptance(self) -> MessageAcceptance {
        match self {
            Self::Accept => MessageAcceptance::Accept,
            Self::Ignore => MessageAcceptance::Ignore,
            Self::Reject => MessageAcceptance::Reject,
        }
    }
}

/// A message that waits for the driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Waiting {
    pub(crate) id: gossipsub::MessageId,
    pub(crate) from: PeerId,
    deadline: Instant,
}

/// Messages that wait for the driver's verdict.
///
/// Invariant: at most [`MAX_WAITING`]; ids grow with time, so the first one is the oldest.
#[derive(Debug)]
pub(crate) struct Verdicts {
    patience: Duration,
    waiting: BTreeMap<u64, Waiting>,
    next: u64,
}

impl Verdicts {
    pub(crate) const fn new(patience: Duration) -> Self {
        Self {
            patience,
            waiting: BTreeMap::new(),
            next: 0,
        }
    }

    /// Takes a message; `None` if too many wait.
    pub(crate) fn add(
        &mut self,
        id: gossipsub::MessageId,
        from: PeerId,
        now: Instant,
    ) -> Option<MessageId> {
        if self.waiting.len() >= MAX_WAITING {
            return None;
        }
        let number = self.next;
        self.next += 1;
        let deadline = now + self.patience;
        self.waiting.insert(number, Waiting { id, from, deadline });
        Some(MessageId(number))
    }

    /// Takes a message out; `None` if it has expired or was judged before.
    pub(crate) fn take(&mut self, message: MessageId) -> Option<Waiting> {
        self.waiting.remove(&message.0)
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.waiting
            .first_key_value()
            .map(|(_, waiting)| waiting.deadline)
    }

    /// Takes one message out whose time is up.
    pub(crate) fn expired(&mut self, now: Instant) -> Option<Waiting> {
        if self.next_deadline()? > now {
            return None;
        }
        self.waiting.pop_first().map(|(_, waiting)| waiting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_named_by_its_words_and_its_place() {
        let topic = TopicHash::from_raw;

        assert_eq!(message_id(&topic("a"), b"x"), message_id(&topic("a"), b"x"));
        assert_ne!(message_id(&topic("a"), b"x"), message_id(&topic("b"), b"x"));
        assert_ne!(message_id(&topic("a"), b"x"), message_id(&topic("a"), b"y"));
        assert_ne!(
            message_id(&topic("ab"), b"x"),
            message_id(&topic("a"), b"bx")
        );
    }

    #[test]
    fn verdicts_expire_in_order_and_are_given_once() {
        #[expect(clippy::disallowed_methods, reason = "a start for virtual time")]
        let t0 = Instant::from_std(std::time::Instant::now());
        let mut verdicts = Verdicts::new(Duration::from_secs(3));
        let id = |n: u8| gossipsub::MessageId::from(vec![n]);
        let peer = PeerId::random();
        let first = verdicts.add(id(1), peer, t0).unwrap();
        let second = verdicts
            .add(id(2), peer, t0 + Duration::from_secs(1))
            .unwrap();

        let at = verdicts.next_deadline().unwrap();
        assert_eq!(at, t0 + Duration::from_secs(3));
        assert_eq!(verdicts.expired(at).map(|waiting| waiting.id), Some(id(1)));
        assert_eq!(verdicts.expired(at), None);
        assert_eq!(verdicts.take(first), None);
        assert_eq!(verdicts.take(second).map(|waiting| waiting.id), Some(id(2)));
        assert_eq!(verdicts.take(second), None);
    }

    #[test]
    fn messages_that_wait_are_bounded() {
        #[expect(clippy::disallowed_methods, reason = "a start for virtual time")]
        let t0 = Instant::from_std(std::time::Instant::now());
        let mut verdicts = Verdicts::new(Duration::from_secs(3));
        let mut add = || {
            verdicts
                .add(gossipsub::MessageId::from(vec![1]), PeerId::random(), t0)
                .is_some()
        };

        assert!((0..MAX_WAITING).all(|_| add()));
        assert!(!add());
    }

    #[test]
    fn the_scores_are_ones_gossipsub_takes() {
        let mut config = Config::default();
        for nodes_per_ip in [0, 1, 32] {
            config.gossip.nodes_per_ip = nodes_per_ip;
            let (params, thresholds) = score(&config);
            params.validate().unwrap();
            thresholds.validate().unwrap();
        }
        topic_score().validate().unwrap();
    }
}
