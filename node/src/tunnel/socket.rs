//! What the sockets of flows and associations need beyond their types.

use std::net::SocketAddr;
use std::time::Duration;

use rustix::net::{SendFlags, sendto, sockopt};
use tokio::net::{TcpStream, UdpSocket};

/// A flow whose other end has vanished without a word is noticed after about this and a few probes.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(120);

/// Sets a flow's socket up: no delay for small writes (the lane has its own batching), and probes
/// for peers that are gone.
///
/// A socket that refuses either still works, only less well.
pub(super) fn prepare(socket: &TcpStream) {
    let _ = socket.set_nodelay(true);
    let _ = sockopt::set_socket_keepalive(socket, true);
    let _ = sockopt::set_tcp_keepidle(socket, KEEPALIVE_IDLE);
}

/// Sends a datagram now or loses it, as any full queue on its path would.
///
/// Past the runtime, which believes a new socket to be not writable until it has heard otherwise and
/// would lose the first datagrams of every association.
pub(super) fn send_or_lose(socket: &UdpSocket, datagram: &[u8], to: SocketAddr) {
    let _ = sendto(socket, datagram, SendFlags::DONTWAIT, &to);
}
