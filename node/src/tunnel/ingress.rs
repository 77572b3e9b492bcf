//! The buyer's end: one loopback port for applications, which speaks SOCKS5 and HTTP CONNECT.
//!
//! The port outlives sessions. While none is attached, and while credit is missing, new flows wait
//! for a short time and then fail with an answer that says why.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;

use super::ending::Ended;
use super::lane::LaneStream;
use super::link::{AcceptNothing, Link, Role};
use super::meter::Meter;
use super::shaper::LeaseShaper;

mod application;

/// Connections of applications at once, those in the middle of their handshake included: twice what
/// one session carries, so that some may wait.
const MAX_CONNECTIONS: usize = 1024;

/// After an accept that failed for lack of descriptors, until the next try.
const ACCEPT_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// Why the buyer's side does not flow at this moment, in words for people.
///
/// Set by whoever knows, shown to applications whose flows cannot be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice(pub String);

/// The listener. Dropping it closes the port and ends the attached session.
pub struct Ingress {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

pub(super) struct Shared {
    link: watch::Sender<Option<Arc<Link>>>,
    notice: Mutex<Option<Notice>>,
}

/// A session that was attached. Tells when and why it ended; dropping it changes nothing.
#[derive(Debug)]
pub struct Attachment {
    running: JoinHandle<Ended>,
    ended: Option<Ended>,
}

impl Attachment {
    /// Waits until the session's lanes are no longer in use: no byte moves any more and the meter
    /// stands still. May be dropped and called again.
    pub async fn ended(&mut self) -> Ended {
        if let Some(ended) = &self.ended {
            return ended.clone();
        }
        // It can only fail because the runtime is shutting down.
        let ended = (&mut self.running).await.unwrap_or(Ended::Detached);
        self.ended.insert(ended).clone()
    }
}

impl Ingress {
    /// Opens the port and starts to accept applications. Port zero takes any that is free.
    ///
    /// # Errors
    ///
    /// Returns the error of the socket, or [`io::ErrorKind::InvalidInput`] for an address that is
    /// not loopback: whoever reaches this port spends the buyer's money.
    pub async fn bind(address: SocketAddr) -> io::Result<Self> {
        require_loopback(address)?;
        Self::with_listener(TcpListener::bind(address).await?)
    }

    /// As [`bind`](Self::bind), for callers that cannot wait. Must be called within a runtime.
    ///
    /// # Errors
    ///
    /// As [`bind`](Self::bind).
    pub fn listen(address: SocketAddr) -> io::Result<Self> {
        require_loopback(address)?;
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Self::with_listener(TcpListener::from_std(listener)?)
    }

    fn with_listener(listener: TcpListener) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            link: watch::Sender::new(None),
            notice: Mutex::default(),
        });
        let accepting = tokio::spawn(accept(listener, Arc::clone(&shared)));
        Ok(Self {
            address,
            shared,
            accepting,
        })
    }

    /// Where applications connect.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Carries flows over `lanes` from now on, counting them with `meter`, whose limit is the most
    /// the buyer will use. A session attached before is detached; its flows are reset.
    ///
    /// The lanes are the streams after the control stream, in any order.
    #[must_use = "the attachment tells when the lanes are lost"]
    pub fn attach(&self, lanes: Vec<impl LaneStream>, meter: Arc<Meter>) -> Attachment {
        let (link, readers) = Link::new(Role::Buyer, lanes, meter, LeaseShaper::unlimited());
        self.replace(Some(Arc::clone(&link)));
        let shared = Arc::clone(&self.shared);
        let running = tokio::spawn(async move {
            let ended = Arc::clone(&link).run(readers, AcceptNothing).await;
            // New flows wait for the next session and do not fail on this one.
            shared.link.send_if_modified(|current| {
                let is_this = current
                    .as_ref()
                    .is_some_and(|current| Arc::ptr_eq(current, &link));
                if is_this {
                    *current = None;
                }
                is_this
            });
            ended
        });
        Attachment {
            running,
            ended: None,
        }
    }

    /// Ends the attached session, if there is one: its flows are reset, its lanes closed.
    pub fn detach(&self) {
        self.replace(None);
    }

    /// What applications are told when a flow cannot be opened because nothing flows, for example
    /// `quota spent; add some with "bitmesh lease extend"`.
    pub fn set_notice(&self, notice: Option<Notice>) {
        *self
            .shared
            .notice
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = notice;
    }

    /// Flows of the attached session, those that are still ending included.
    #[must_use]
    pub fn flows(&self) -> usize {
        self.shared.link().map_or(0, |link| link.flows())
    }

    fn replace(&self, link: Option<Arc<Link>>) {
        if let Some(old) = self.shared.link.send_replace(link) {
            old.end(Ended::Detached);
        }
    }
}

fn require_loopback(address: SocketAddr) -> io::Result<()> {
    if address.ip().is_loopback() {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::InvalidInput,
        format!("the proxy listens on loopback only, not on {address}"),
    ))
}

impl fmt::Debug for Ingress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Ingress").field(&self.address).finish()
    }
}

impl Drop for Ingress {
    fn drop(&mut self) {
        self.accepting.abort();
        self.detach();
    }
}

impl Shared {
    fn link(&self) -> Option<Arc<Link>> {
        self.link.borrow().clone()
    }

    fn notice(&self) -> Option<Notice> {
        self.notice
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Waits for a session to be attached.
    async fn attached(&self) -> Arc<Link> {
        let mut changes = self.link.subscribe();
        loop {
            if let Some(link) = changes.borrow_and_update().clone() {
                return link;
            }
            if changes.changed().await.is_err() {
                // Impossible while `self` holds the sender; waiting is the answer that is never wrong.
                std::future::pending::<()>().await;
            }
        }
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(permit) = Arc::clone(&connections).acquire_owned().await else {
            return;
        };
        let socket: TcpStream = match listener.accept().await {
            Ok((socket, _)) => socket,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection to the proxy port");
                tokio::time::sleep(ACCEPT_AGAIN_AFTER).await;
                continue;
            }
        };
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            application::serve(socket, shared).await;
            drop(permit);
        });
    }
}
