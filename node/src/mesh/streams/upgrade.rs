//! The handshake on a session stream, run while libp2p negotiates it, so that libp2p's bounds on the
//! number and time of negotiations are bounds on it too.

use std::future::Future;
use std::io;
use std::iter;
use std::pin::Pin;

use libp2p::core::upgrade::{InboundUpgrade, OutboundUpgrade, UpgradeInfo};
use libp2p::{Stream, StreamProtocol};

use crate::protocol::hello::{Hello, HelloError, Reply};
use crate::protocol::message::RefusalCode;

/// Reads the hello of a stream another node opened.
#[derive(Clone, Debug)]
pub(crate) struct Listen {
    pub(crate) protocol: StreamProtocol,
}

/// Says hello on a stream this node opened, and waits for the reply.
#[derive(Clone, Debug)]
pub(crate) struct Open {
    pub(crate) protocol: StreamProtocol,
    pub(crate) hello: Hello,
}

/// A stream this node opened did not come to be.
#[derive(Debug)]
pub(crate) enum OpenFailure {
    Io,
    Refused(RefusalCode),
}

impl From<io::Error> for OpenFailure {
    fn from(_: io::Error) -> Self {
        Self::Io
    }
}

impl UpgradeInfo for Listen {
    type Info = StreamProtocol;
    type InfoIter = iter::Once<StreamProtocol>;

    fn protocol_info(&self) -> Self::InfoIter {
        iter::once(self.protocol.clone())
    }
}

impl InboundUpgrade<Stream> for Listen {
    type Output = (Hello, Stream);
    type Error = HelloError;
    type Future = Pin<Box<dyn Future<Output = Result<(Hello, Stream), HelloError>> + Send>>;

    fn upgrade_inbound(self, mut stream: Stream, _: StreamProtocol) -> Self::Future {
        Box::pin(async move {
            let hello = Hello::read(&mut stream).await?;
            Ok((hello, stream))
        })
    }
}

impl UpgradeInfo for Open {
    type Info = StreamProtocol;
    type InfoIter = iter::Once<StreamProtocol>;

    fn protocol_info(&self) -> Self::InfoIter {
        iter::once(self.protocol.clone())
    }
}

impl OutboundUpgrade<Stream> for Open {
    type Output = Stream;
    type Error = OpenFailure;
    type Future = Pin<Box<dyn Future<Output = Result<Stream, OpenFailure>> + Send>>;

    fn upgrade_outbound(self, mut stream: Stream, _: StreamProtocol) -> Self::Future {
        Box::pin(async move {
            self.hello.write(&mut stream).await?;
            match Reply::read(&mut stream).await? {
                Reply::Accepted => Ok(stream),
                Reply::Refused(code) => Err(OpenFailure::Refused(code)),
            }
        })
    }
}
