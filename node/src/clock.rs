//! Where time comes in.
//!
//! Every machine is told the time and none asks for it. This is the one place of the node that
//! reads the machine's clocks, so a test that replaces it replaces time everywhere.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use bitmesh_market::time::UnixTime;

/// The machine's two clocks: one for patience, one for signed things.
///
/// The third, the block height, comes in with chain events and is never derived from these.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Clock;

impl Clock {
    /// Returns the moment for timers. Never goes back, and means nothing outside this process.
    #[expect(
        clippy::disallowed_methods,
        reason = "the shell's clock is where time comes in"
    )]
    pub(crate) fn now(self) -> Instant {
        Instant::now()
    }

    /// Returns the wall clock, in whole seconds since 1970. May jump in either direction.
    ///
    /// A clock set before 1970 reads as 1970: every signed thing is then "from the future" and
    /// refused, which is the safe answer.
    #[expect(
        clippy::disallowed_methods,
        reason = "the shell's clock is where time comes in"
    )]
    pub(crate) fn unix(self) -> UnixTime {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        UnixTime::from_secs(since.as_secs())
    }
}
