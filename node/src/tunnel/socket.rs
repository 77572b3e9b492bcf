//! What every TCP socket of a flow needs.

use std::time::Duration;

use rustix::net::sockopt;
use tokio::net::TcpStream;

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
