//! Both ends of a tunnel in one process, joined by in-memory lanes.

mod application;
mod credit;
mod fixture;
mod flows;
mod hostile;
mod rebinding;
mod transfer;
mod udp;
