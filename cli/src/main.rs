//! Earn bitcoin by sharing your bandwidth: the daemon and its command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    bitmesh::main()
}
