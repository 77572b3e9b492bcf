//! Both ends of a tunnel in one process, joined by in-memory lanes.

mod fixture;
mod transfer;
