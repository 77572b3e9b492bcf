//! Names to addresses, at the egress.

use std::collections::HashMap;
use std::net::{IpAddr, ToSocketAddrs};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use thiserror::Error;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// Most addresses of a name that are looked at. No honest service needs more to be reachable, and a
/// hostile name must not buy a port scan with one OPEN.
pub const MAX_ADDRESSES: usize = 8;

/// How long one lookup may take: two tries of a stub resolver.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(8);

/// Lookups at once, over all buyers; each holds a blocking thread of the runtime, of which there are
/// 512. Eight leases with eight each.
const LOOKUPS_AT_ONCE: usize = 64;

/// Lookups of one buyer at once. A page names some dozens of hosts, each looked up within a few
/// milliseconds; names whose servers never answer must not take the places of other buyers.
pub const LOOKUPS_PER_BUYER: usize = 8;

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

/// One of the lookups that a buyer may have at once, for as long as it is kept.
#[derive(Debug)]
pub struct Place {
    _permit: OwnedSemaphorePermit,
}

/// The lookups that one buyer may have at once.
#[derive(Clone, Debug)]
pub struct Places(Arc<Semaphore>);

impl Default for Places {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(LOOKUPS_PER_BUYER)))
    }
}

impl Places {
    /// Waits for one.
    pub async fn place(&self) -> Place {
        let permit = Arc::clone(&self.0).acquire_owned().await;
        Place {
            _permit: permit.expect("nobody closes it"),
        }
    }
}

/// Finds the addresses of a host name. What it returns is untrusted: every address is checked by
/// the policy before it is dialled.
pub trait Resolver: Send + Sync + 'static {
    /// Looks `name` up once. At most [`MAX_ADDRESSES`] of the answer are used.
    ///
    /// `place` is given back when the lookup holds nothing any more, which may be after the answer:
    /// one that took too long goes on in the background.
    fn resolve<'a>(
        &'a self,
        name: &'a str,
        place: Place,
    ) -> BoxFuture<'a, Result<Vec<IpAddr>, ResolveError>>;
}

/// The system's resolver, with a limit on lookups at once, a limit in time, and a small cache.
#[derive(Debug)]
pub struct SystemResolver {
    lookups: Arc<Semaphore>,
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
            lookups: Arc::new(Semaphore::new(LOOKUPS_AT_ONCE)),
            cache: Mutex::default(),
        }
    }
}

impl SystemResolver {
    async fn look_up(&self, name: &str, place: Place) -> Result<Vec<IpAddr>, ResolveError> {
        let lookup = async {
            let permit = Arc::clone(&self.lookups)
                .acquire_owned()
                .await
                .map_err(|_| ResolveError::TimedOut)?;
            let name = name.to_owned();
            let found = tokio::task::spawn_blocking(move || {
                // The system's call cannot be stopped: its thread is taken until it returns.
                let _held = (permit, place);
                // The port is of no interest, the call wants one.
                (name.as_str(), 0).to_socket_addrs()
            });
            let found = found.await.map_err(|_| ResolveError::TimedOut)?;
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
    fn resolve<'a>(
        &'a self,
        name: &'a str,
        place: Place,
    ) -> BoxFuture<'a, Result<Vec<IpAddr>, ResolveError>> {
        Box::pin(async move {
            if let Some(answer) = self.remembered(name, Instant::now()) {
                return answer;
            }
            let answer = self.look_up(name, place).await;
            self.remember(name, &answer, Instant::now());
            answer
        })
    }
}
