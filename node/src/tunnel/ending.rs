//! How a session's lanes come to their end, told once.

use std::sync::OnceLock;

use thiserror::Error;
use tokio_util::sync::CancellationToken;

use super::frame::{FlowId, FrameError};

/// Why the lanes of a session are no longer in use.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Ended {
    /// This side gave them up.
    #[error("detached")]
    Detached,
    /// A lane ended or broke: the peer detached or the network failed.
    #[error("a lane was lost: {0}")]
    LaneLost(String),
    /// The peer stopped reading while frames for it piled up.
    #[error("the peer stopped reading")]
    NotReading,
    /// The peer broke the rules of the protocol. Its bytes beyond the rules are not billed.
    #[error("the peer broke the protocol: {0}")]
    Violated(#[from] Violation),
}

impl From<FrameError> for Ended {
    fn from(error: FrameError) -> Self {
        Self::Violated(error.into())
    }
}

/// What a peer did that no honest peer does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Violation {
    /// Bytes that are no frame.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// A frame that only the other role may send.
    #[error("flow {}: a frame of the other role", .0.0)]
    WrongRole(FlowId),
    /// Data or a datagram for a flow that was not opened or whose half has ended.
    #[error("flow {}: unsolicited bytes", .0.0)]
    Unsolicited(FlowId),
    /// More data than the window that was granted.
    #[error("flow {}: more than the window", .0.0)]
    OverWindow(FlowId),
    /// A window larger than any flow may have.
    #[error("flow {}: a window too large", .0.0)]
    WindowTooLarge(FlowId),
    /// An OPEN with an id that is not above all earlier ones of its lane.
    #[error("flow {}: id used before", .0.0)]
    IdReused(FlowId),
    /// Many more flows at once than are carried; those that are refused count until the buyer has
    /// heard it.
    #[error("too many flows")]
    TooManyFlows,
    /// A frame that does not fit the kind or the state of its flow.
    #[error("flow {}: a frame that does not fit its state", .0.0)]
    WrongState(FlowId),
}

/// Shared by everything that belongs to one session's lanes; the first reason is kept.
#[derive(Debug, Default)]
pub(super) struct Ending {
    reason: OnceLock<Ended>,
    token: CancellationToken,
}

impl Ending {
    pub(super) fn end(&self, reason: Ended) {
        // Only the first reason is the cause; later ones are its consequences.
        let _ = self.reason.set(reason);
        self.token.cancel();
    }

    pub(super) fn has_ended(&self) -> bool {
        self.token.is_cancelled()
    }

    /// Waits for the end. Any number of tasks may wait.
    pub(super) async fn ended(&self) -> Ended {
        self.token.cancelled().await;
        self.reason.get().cloned().unwrap_or(Ended::Detached)
    }

    /// As [`ended`](Self::ended), for those who do not care why.
    pub(super) async fn over(&self) {
        self.token.cancelled().await;
    }
}
