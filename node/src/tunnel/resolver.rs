//! Names to addresses, at the egress.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use thiserror::Error;
use tokio::sync::Semaphore;
use tokio::time::Instant;

/// Most addresses of a name that are looked at. No honest service needs more to be reachable, and a
/// hostile name must not buy a port scan with one OPEN.
pub const MAX_ADDRESSES: usize = 8;

/// How long one lookup may take: two tries of a stub resolver.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(8);

/// Lookups at once; each holds a blocking thread of the runtime.
const LOOKUPS_AT_ONCE: usize = 32;

/// The system does not tell how long an answer is good for; this is short enough for everybody.
const ANSWER_FRESH: Duration = Duration::from_secs(30);

/// A failure is believed for a short time only: networks come up.
const FAILURE_FRESH: Duration = Duration::from_secs(3);

/// Names remembered at once, over all buyers.
const CACHE_NAMES: usize = 512;

/// Why a name has no addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ResolveError {
    /// The name does not exist, or has no addresses.
    #[error("no such name")]
    NotFound,
    /// No answer in time.
    #[error("no answer in time")]
    TimedOut,
}

/// Finds the addresses of a host name. What it returns is untrusted: every address is checked by
/// the policy before it is dialled.
pub trait Resolver: Send + Sync + 'static {
    /// Looks `name` up once. At most [`MAX_ADDRESSES`] of the answer are used.
    fn resolve<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Vec<IpAddr>, ResolveError>>;
}

/// The system's resolver, with a limit on lookups at once, a limit in time, and a small cache.
#[derive(Debug)]
pub struct SystemResolver {
    lookups: Semaphore,
    cache: Mutex<HashMap<Box<str>, Remembered>>,
}

#[derive(Debug)]
struct Remembered {
    answer: Result<Arc<[IpAddr]>, ResolveError>,
    until: Instant,
}

impl Default for SystemResolver {
    fn default() -> Self {
        Self {
            lookups: Semaphore::new(LOOKUPS_AT_ONCE),
            cache: Mutex::default(),
        }
    }
}

impl SystemResolver {
    async fn look_up(&self, name: &str) -> Result<Vec<IpAddr>, ResolveError> {
        let lookup = async {
            let _permit = self
                .lookups
                .acquire()
                .await
                .map_err(|_| ResolveError::TimedOut)?;
            // The port is of no interest, the call wants one.
            let found = tokio::net::lookup_host((name, 0)).await;
            let found = found.map_err(|_| ResolveError::NotFound)?;
            let mut addresses: Vec<IpAddr> = Vec::new();
            for address in found.map(|found| found.ip()) {
                if addresses.len() < MAX_ADDRESSES && !addresses.contains(&address) {
                    addresses.push(address);
                }
            }
            if addresses.is_empty() {
                Err(ResolveError::NotFound)
            } else {
                Ok(addresses)
            }
        };
        tokio::time::timeout(LOOKUP_TIMEOUT, lookup)
            .await
            .unwrap_or(Err(ResolveError::TimedOut))
    }

    fn remembered(&self, name: &str, now: Instant) -> Option<Result<Vec<IpAddr>, ResolveError>> {
        let cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        let found = cache.get(name).filter(|found| now < found.until)?;
        Some(found.answer.clone().map(|addresses| addresses.to_vec()))
    }

    fn remember(&self, name: &str, answer: &Result<Vec<IpAddr>, ResolveError>, now: Instant) {
        let fresh = if answer.is_ok() {
            ANSWER_FRESH
        } else {
            FAILURE_FRESH
        };
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if cache.len() >= CACHE_NAMES {
            cache.retain(|_, old| now < old.until);
        }
        if cache.len() >= CACHE_NAMES {
            // A buyer that looks up more names than this has no use for the old ones either.
            cache.clear();
        }
        let answer = answer
            .as_ref()
            .map(|addresses| addresses.as_slice().into())
            .map_err(|e| *e);
        cache.insert(
            name.into(),
            Remembered {
                answer,
                until: now + fresh,
            },
        );
    }
}

impl Resolver for SystemResolver {
    fn resolve<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Vec<IpAddr>, ResolveError>> {
        Box::pin(async move {
            if let Some(answer) = self.remembered(name, Instant::now()) {
                return answer;
            }
            let answer = self.look_up(name).await;
            self.remember(name, &answer, Instant::now());
            answer
        })
    }
}
