//! Ports that stay free while nobody listens on them.

use std::{
    io,
    net::{IpAddr, TcpListener, UdpSocket},
    ops::Range,
};

/// Below the ports that systems hand out to outgoing connections, so that a node that is started
/// again finds its port as it left it, and above those of well-known services.
const PORTS: Range<u16> = 10_000..32_768;

/// How many ports are tried before giving up.
const TRIES: u32 = 200;

/// Returns a port of `address` that is free for TCP and for UDP.
///
/// Free now: another process may take it. Which one is chance, so that two processes that ask at the
/// same time seldom get the same.
///
/// # Errors
///
/// Returns an error if none was found, as when the address is not this machine's.
pub(crate) fn free(address: IpAddr) -> io::Result<u16> {
    let mut tries = 0;
    loop {
        let port = rand::random_range(PORTS);
        let tcp = TcpListener::bind((address, port));
        match tcp.and_then(|_tcp| UdpSocket::bind((address, port))) {
            Ok(_) => return Ok(port),
            Err(error) if tries == TRIES => return Err(error),
            Err(_) => tries += 1,
        }
    }
}
