//! Earn bitcoin by sharing your bandwidth: the daemon and its command line.

fn main() {}
