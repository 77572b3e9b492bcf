//! Waiting for a condition, never for a length of time.

use std::{
    fmt,
    future::Future,
    thread,
    time::{Duration, Instant},
};

use thiserror::Error;

/// How often a condition is looked at. Short beside what is waited for, long beside a look.
const INTERVAL: Duration = Duration::from_millis(20);

/// A condition that did not come true in time.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("waited {}s for {what}", within.as_secs_f64())]
pub struct TimedOut {
    /// What was waited for.
    pub what: String,
    /// How long.
    pub within: Duration,
}

/// A point in time after which waiting ends.
#[derive(Clone, Copy, Debug)]
pub struct Deadline {
    at: Instant,
    within: Duration,
}

impl Deadline {
    /// A deadline that is `within` from this moment.
    #[expect(
        clippy::disallowed_methods,
        reason = "a test network runs on real time"
    )]
    pub fn after(within: Duration) -> Self {
        Self {
            at: Instant::now() + within,
            within,
        }
    }

    /// Whether the time is over.
    #[expect(
        clippy::disallowed_methods,
        reason = "a test network runs on real time"
    )]
    pub fn is_over(self) -> bool {
        Instant::now() >= self.at
    }

    /// Waits a little before the next look.
    pub async fn pause(self) {
        tokio::time::sleep(INTERVAL).await;
    }

    fn missed(self, what: impl fmt::Display) -> TimedOut {
        TimedOut {
            what: what.to_string(),
            within: self.within,
        }
    }
}

/// Blocks until `look` returns a value, looking at least once.
///
/// # Errors
///
/// Returns [`TimedOut`], naming `what`, if it has not `within` that time.
pub fn until<T>(
    within: Duration,
    what: impl fmt::Display,
    mut look: impl FnMut() -> Option<T>,
) -> Result<T, TimedOut> {
    let deadline = Deadline::after(within);
    loop {
        if let Some(seen) = look() {
            return Ok(seen);
        }
        if deadline.is_over() {
            return Err(deadline.missed(what));
        }
        thread::sleep(INTERVAL);
    }
}

/// Waits until the future of `look` returns a value, looking at least once.
///
/// A look that hangs is cut off at the deadline.
///
/// # Errors
///
/// Returns [`TimedOut`], naming `what`, if it has not `within` that time.
pub async fn until_async<T, F: Future<Output = Option<T>>>(
    within: Duration,
    what: impl fmt::Display,
    mut look: impl FnMut() -> F,
) -> Result<T, TimedOut> {
    let deadline = Deadline::after(within);
    let looking = async {
        loop {
            if let Some(seen) = look().await {
                return seen;
            }
            tokio::time::sleep(INTERVAL).await;
        }
    };
    tokio::time::timeout(within, looking)
        .await
        .map_err(|_| deadline.missed(what))
}
