//! The reference: streams of libp2p as it comes, with nothing of ours, between two processes.
//!
//! [`Bare`] is the stream alone: one process writes, the other reads. [`Piped`] is a pipe made of it:
//! TCP ends at its near process and begins anew at its far one, as it must in any proxy, and bytes are
//! copied between, unframed, not counted and not paid for.

use std::{net::SocketAddr, sync::Arc};

use futures::StreamExt;
use libp2p::{
    Multiaddr, PeerId, Stream, StreamProtocol, Swarm, SwarmBuilder, identity::Keypair,
    multiaddr::Protocol, noise, swarm::SwarmEvent, tcp, yamux,
};
use libp2p_stream::{Behaviour, Control};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional_with_sizes},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt};

use crate::{
    part::{Part, is_reached_at},
    sink::Flow,
    source::{BLOCK, ECHO, SEND},
    transport::Transport,
};

/// The name of the role of the process that sends.
pub(crate) fn role(transport: Transport) -> String {
    format!("bare-{transport}")
}

const PROTOCOL: StreamProtocol = StreamProtocol::new("/bitmesh-bench/1");

/// What the process between the streams and the source is called.
pub(crate) fn exit_role(transport: Transport) -> String {
    format!("exit-{transport}")
}

/// What the process between the applications and the streams is called.
pub(crate) const ENTRY_ROLE: &str = "entry";

/// The near end of a connection to a process that sends.
pub(crate) struct Bare {
    near: Near,
    _part: Part,
}

impl Bare {
    pub(crate) async fn connect(transport: Transport) -> Self {
        let part = Part::start(&role(transport), &[]);
        Self {
            near: Near::connect(&part.said).await,
            _part: part,
        }
    }

    /// Opens streams, one after the other, and asks all to send.
    pub(crate) async fn open(&self, flows: usize) -> Vec<Flow> {
        let mut streams = Vec::with_capacity(flows);
        while streams.len() < flows {
            streams.push(self.near.open().await);
        }
        let mut asked: Vec<Flow> = Vec::with_capacity(flows);
        for mut stream in streams {
            stream.write_all(&[SEND]).await.expect("it reads");
            stream.flush().await.expect("it reads");
            asked.push(Box::new(stream));
        }
        asked
    }
}

/// A proxy made of two processes and a connection of libp2p between them.
pub(crate) struct Piped {
    /// Where applications connect; all get to the source.
    pub(crate) entry: SocketAddr,
    _parts: [Part; 2],
}

impl Piped {
    pub(crate) fn start(transport: Transport, source: SocketAddr) -> Self {
        let exit = Part::start(&exit_role(transport), &[&source.to_string()]);
        let entry = Part::start(ENTRY_ROLE, &[&exit.said]);
        Self {
            entry: entry.said.parse().expect("it says its address"),
            _parts: [exit, entry],
        }
    }
}

/// The end of a connection that opens streams.
struct Near {
    control: Control,
    peer: PeerId,
    running: JoinHandle<()>,
}

impl Near {
    async fn connect(address: &str) -> Self {
        let address: Multiaddr = address.parse().expect("it says its address");
        let Some(Protocol::P2p(peer)) = address.iter().last() else {
            panic!("{address} does not name the node");
        };
        let mut swarm = swarm();
        let control = swarm.behaviour().new_control();
        swarm.dial(address).expect("it can be dialled");
        loop {
            match swarm.select_next_some().await {
                SwarmEvent::ConnectionEstablished { .. } => break,
                SwarmEvent::OutgoingConnectionError { error, .. } => panic!("{error}"),
                _ => {}
            }
        }
        let running = tokio::spawn(async move {
            loop {
                swarm.select_next_some().await;
            }
        });
        Self {
            control,
            peer,
            running,
        }
    }

    /// A stream that the other side has taken.
    async fn open(&self) -> Compat<Stream> {
        loop {
            // Some are lost: its acceptor drops what comes while it hands over another.
            if let Ok(stream) = self.try_open().await {
                return stream;
            }
        }
    }

    async fn try_open(&self) -> std::io::Result<Compat<Stream>> {
        let mut control = self.control.clone();
        let opened = control.open_stream(self.peer, PROTOCOL).await;
        let mut stream = opened.map_err(std::io::Error::other)?.compat();
        stream.write_all(&[ECHO]).await?;
        stream.flush().await?;
        stream.read_u8().await?;
        Ok(stream)
    }
}

impl Drop for Near {
    fn drop(&mut self) {
        self.running.abort();
    }
}

fn swarm() -> Swarm<Behaviour> {
    SwarmBuilder::with_existing_identity(Keypair::generate_ed25519())
        .with_tokio()
        .with_tcp(
            tcp::Config::default().nodelay(true),
            noise::Config::new,
            yamux::Config::default,
        )
        .expect("the settings are libp2p's own")
        .with_quic()
        .with_behaviour(|_| Behaviour::new())
        .expect("it cannot fail")
        .with_swarm_config(|config| config.with_idle_connection_timeout(std::time::Duration::MAX))
        .build()
}

/// What the process that sends does.
pub(crate) async fn serve(transport: Transport) {
    accept(transport, answer).await;
}

/// What the far process of a pipe does.
pub(crate) async fn exit(transport: Transport, source: &str) {
    let source: SocketAddr = source.parse().expect("it is told an address");
    accept(transport, move |mut stream| async move {
        let asked = stream.read_u8().await?;
        stream.write_u8(asked).await?;
        stream.flush().await?;
        let mut socket = TcpStream::connect(source).await?;
        copy(&mut socket, &mut stream).await
    })
    .await;
}

/// What the near process of a pipe does.
pub(crate) async fn entry(exit: &str) {
    let near = Arc::new(Near::connect(exit).await);
    let listener = TcpListener::bind("127.0.0.1:0").await;
    let listener = listener.expect("loopback has a free port");
    is_reached_at(listener.local_addr().expect("it is bound"));
    loop {
        let (mut socket, _) = listener.accept().await.expect("there are descriptors");
        let near = Arc::clone(&near);
        tokio::spawn(async move {
            let mut stream = near.open().await;
            // A connection that the other side closes is how each of them ends.
            let _ = copy(&mut socket, &mut stream).await;
        });
    }
}

async fn copy(socket: &mut TcpStream, stream: &mut Compat<Stream>) -> std::io::Result<()> {
    socket.set_nodelay(true)?;
    copy_bidirectional_with_sizes(socket, stream, BLOCK, BLOCK).await?;
    Ok(())
}

/// Takes streams and gives each to `serve`.
async fn accept<F>(transport: Transport, serve: impl Fn(Compat<Stream>) -> F + Send + 'static)
where
    F: Future<Output = std::io::Result<()>> + Send + 'static,
{
    let mut swarm = swarm();
    let streams = swarm.behaviour().new_control().accept(PROTOCOL);
    let mut streams = streams.expect("it is asked once");
    tokio::spawn(async move {
        while let Some((_, stream)) = streams.next().await {
            // One that breaks is opened again, or was not needed any more.
            tokio::spawn(serve(stream.compat()));
        }
    });
    let listen = transport.multiaddr(0).parse().expect("a form of libp2p's");
    swarm.listen_on(listen).expect("loopback has a free port");
    let peer = *swarm.local_peer_id();
    loop {
        if let SwarmEvent::NewListenAddr { address, .. } = swarm.select_next_some().await {
            is_reached_at(address.with(Protocol::P2p(peer)));
        }
    }
}

async fn answer(mut stream: Compat<Stream>) -> std::io::Result<()> {
    let block = vec![7; BLOCK];
    loop {
        match stream.read_u8().await? {
            SEND => loop {
                stream.write_all(&block).await?;
            },
            other => stream.write_u8(other).await?,
        }
        stream.flush().await?;
    }
}
