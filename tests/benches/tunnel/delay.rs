//! Distance: a relay that holds everything back for a while, in each direction.

use std::{
    collections::HashMap,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream, UdpSocket,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, sleep_until},
};

use crate::transport::Transport;

/// What is on its way in one direction, in pieces. Much more than is sent in the time of a delay.
const ON_THE_WAY: usize = 16 * 1024;

/// A running relay. Dropping it stops it.
#[derive(Debug)]
pub(crate) struct Delay {
    pub(crate) port: u16,
    task: JoinHandle<()>,
}

impl Delay {
    /// Relays to `to`, which needs `one_way` longer to be reached, and to answer.
    pub(crate) async fn start(transport: Transport, to: SocketAddr, one_way: Duration) -> Self {
        let here = (Ipv4Addr::LOCALHOST, 0);
        let (address, task) = match transport {
            Transport::Quic => {
                let socket = UdpSocket::bind(here).await.expect("a free port");
                let address = socket.local_addr();
                (address, tokio::spawn(relay_udp(socket, to, one_way)))
            }
            Transport::Tcp => {
                let listener = TcpListener::bind(here).await.expect("a free port");
                let address = listener.local_addr();
                (address, tokio::spawn(relay_tcp(listener, to, one_way)))
            }
        };
        Self {
            port: address.expect("it is bound").port(),
            task,
        }
    }
}

impl Drop for Delay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

type Piece = (Instant, Vec<u8>);

/// Each piece when its time has come.
async fn next(pieces: &mut mpsc::Receiver<Piece>) -> Option<Vec<u8>> {
    let (at, piece) = pieces.recv().await?;
    sleep_until(at).await;
    Some(piece)
}

async fn relay_tcp(listener: TcpListener, to: SocketAddr, one_way: Duration) {
    while let Ok((near, _)) = listener.accept().await {
        tokio::spawn(async move {
            let Ok(far) = TcpStream::connect(to).await else {
                return;
            };
            for stream in [&near, &far] {
                stream.set_nodelay(true).expect("it is a TCP socket");
            }
            let (near_read, near_write) = near.into_split();
            let (far_read, far_write) = far.into_split();
            tokio::join!(
                carry(near_read, far_write, one_way),
                carry(far_read, near_write, one_way)
            );
        });
    }
}

async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, one_way: Duration) {
    let (sender, mut pieces) = mpsc::channel(ON_THE_WAY);
    let read = async move {
        loop {
            let mut buffer = Vec::with_capacity(16 * 1024);
            match from.read_buf(&mut buffer).await {
                Ok(length) if length > 0 => {}
                _ => return,
            }
            if sender
                .send((Instant::now() + one_way, buffer))
                .await
                .is_err()
            {
                return;
            }
        }
    };
    let write = async move {
        while let Some(piece) = next(&mut pieces).await {
            if to.write_all(&piece).await.is_err() {
                return;
            }
        }
    };
    tokio::join!(read, write);
}

async fn relay_udp(near: UdpSocket, to: SocketAddr, one_way: Duration) {
    let near = Arc::new(near);
    let mut ways: HashMap<SocketAddr, mpsc::Sender<Piece>> = HashMap::new();
    let mut buffer = vec![0; 64 * 1024];
    while let Ok((length, from)) = near.recv_from(&mut buffer).await {
        let way = ways.entry(from).or_insert_with(|| {
            let (sender, pieces) = mpsc::channel(ON_THE_WAY);
            tokio::spawn(relay_one(Arc::clone(&near), from, to, pieces, one_way));
            sender
        });
        // A full queue loses datagrams, as a path would.
        let _ = way.try_send((Instant::now() + one_way, buffer[..length].to_vec()));
    }
}

/// The way of one peer, which has a socket of its own towards the other side.
async fn relay_one(
    near: Arc<UdpSocket>,
    peer: SocketAddr,
    to: SocketAddr,
    mut pieces: mpsc::Receiver<Piece>,
    one_way: Duration,
) {
    let far = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await;
    let far = far.expect("loopback has a free port");
    far.connect(to)
        .await
        .expect("a UDP socket connects at once");
    let (sender, mut answers) = mpsc::channel(ON_THE_WAY);
    let there = async {
        while let Some(piece) = next(&mut pieces).await {
            let _ = far.send(&piece).await;
        }
    };
    let hear = async {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            if let Ok(length) = far.recv(&mut buffer).await {
                let _ = sender.try_send((Instant::now() + one_way, buffer[..length].to_vec()));
            }
        }
    };
    let back = async {
        while let Some(piece) = next(&mut answers).await {
            let _ = near.send_to(&piece, peer).await;
        }
    };
    tokio::join!(there, hear, back);
}
