//! What happened in the mesh since it started, for metrics and tests.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// Running totals, added to by the mesh and read by anyone.
        #[derive(Debug, Default)]
        pub struct Counters {
            $($(#[doc = $doc])+ pub(crate) $name: Counter,)+
        }

        /// [`Counters`] at one moment. Fields are read one after the other.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct CountersSnapshot {
            $($(#[doc = $doc])+ pub $name: u64,)+
        }

        impl Counters {
            /// Reads all totals.
            #[must_use]
            pub fn snapshot(&self) -> CountersSnapshot {
                CountersSnapshot {
                    $($name: self.$name.get(),)+
                }
            }
        }
    };
}

counters! {
    /// Connections refused by a limit of this node.
    connections_denied,
    /// Gossiped messages accepted and passed on.
    gossip_accepted,
    /// Gossiped messages dropped without blame.
    gossip_ignored,
    /// Gossiped messages dropped with blame.
    gossip_rejected,
    /// Gossiped messages ignored because the driver's queue was full.
    gossip_overflowed,
    /// Gossiped messages ignored because no verdict came in time.
    gossip_expired,
    /// Messages of this node that could not be published: too large, or queues full.
    publish_failed,
    /// Requests of others handed to the driver.
    requests_in,
    /// Requests of others refused because they came too fast.
    requests_too_fast,
    /// Requests of others refused because the driver's queue, or the list of open ones, was full.
    requests_overflowed,
    /// Requests of others that the driver left unanswered.
    requests_unanswered,
    /// Requests of this node that ended without an answer.
    requests_failed,
    /// Session streams of others handed to the driver.
    streams_in,
    /// Session streams of others refused because the driver's queue was full or a node opened too many.
    streams_overflowed,
    /// Session streams of this node that could not be opened.
    streams_failed,
    /// Commands that could not be carried out: too many topics, an address without a node.
    commands_refused,
    /// Addresses of others dropped because they are private or of a form this node cannot dial.
    addresses_filtered,
}

/// One running total.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add_one(&self) {
        // Only ever read for people; no other memory depends on it.
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
