//! The server that stands for the internet: sends as fast as it is read, or sends back what it gets.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
};

use crate::part::{Part, is_reached_at};

/// The name of its role.
pub(crate) const ROLE: &str = "source";

/// The first byte to it: send for ever.
pub(crate) const SEND: u8 = b'S';

/// The first byte to it: send back what follows.
pub(crate) const ECHO: u8 = b'E';

/// What is written at a time, here and by the other references.
pub(crate) const BLOCK: usize = 64 * 1024;

/// What its sockets hold that is not sent yet, in bytes. Without a bound 200 of them hold more than the
/// system gives to all of TCP, which then drops packets of everyone, and each loss costs a timeout of
/// 200 ms. A server of the internet fills the memory of its own machine.
const UNSENT: u32 = 128 * 1024;

/// The running server.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) address: SocketAddr,
    _part: Part,
}

impl Source {
    pub(crate) fn start() -> Self {
        let part = Part::start(ROLE, &[]);
        Self {
            address: part.said.parse().expect("it says its address"),
            _part: part,
        }
    }
}

/// What the process of the server does.
pub(crate) async fn serve() {
    let socket = TcpSocket::new_v4().expect("this machine has TCP");
    let bound = socket.set_send_buffer_size(UNSENT);
    bound.expect("accepted connections take it over");
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    socket.bind(any).expect("loopback has a free port");
    let listener = socket.listen(1024).expect("it is bound");
    is_reached_at(listener.local_addr().expect("it is bound"));
    loop {
        let (stream, _) = listener.accept().await.expect("there are descriptors");
        tokio::spawn(async move {
            // A connection that the other side closes is how each of them ends.
            let _ = answer(stream).await;
        });
    }
}

async fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    if stream.read_u8().await? == SEND {
        let block = vec![7; BLOCK];
        loop {
            stream.write_all(&block).await?;
        }
    }
    let mut buffer = [0; 1024];
    loop {
        let length = stream.read(&mut buffer).await?;
        if length == 0 {
            return Ok(());
        }
        stream.write_all(&buffer[..length]).await?;
    }
}
