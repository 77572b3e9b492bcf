//! Parts of the benchmark that are processes of their own, as what they stand for would be.
//!
//! A part is this program once more, told its role by its first argument. It says on its output where
//! it is reached, and ends when its input does, so that none is left behind.

use std::{
    env,
    fmt::Display,
    io::{self, BufRead, BufReader, Read, Write},
    process::{Child, Command, Stdio},
    thread,
};

/// Comes before the name of a role.
pub(crate) const ROLE: &str = "--role";

/// A running part. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Part {
    child: Child,
    /// What it said: where it is reached.
    pub(crate) said: String,
}

impl Part {
    /// Starts a part and waits until it says where it is.
    ///
    /// `with` is what it is told besides its role.
    pub(crate) fn start(role: &str, with: &[&str]) -> Self {
        let this = env::current_exe().expect("the system knows what it started");
        let mut child = Command::new(this)
            .args([ROLE, role])
            .args(with)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("this program can be started once more");
        let output = child.stdout.take().expect("its output is a pipe");
        let mut said = String::new();
        let read = BufReader::new(output).read_line(&mut said);
        read.expect("a part says where it is");
        assert!(!said.is_empty(), "the part {role:?} has ended at once");
        Self {
            child,
            said: said.trim_end().to_owned(),
        }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// In a part: says where it is reached, and sees to it that it ends with its parent.
pub(crate) fn is_reached_at(place: impl Display) {
    thread::spawn(|| {
        let _ = io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(0);
    });
    println!("{place}");
    io::stdout().flush().expect("the parent reads");
}
