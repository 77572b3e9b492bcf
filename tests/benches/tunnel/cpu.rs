//! What a pipe costs the machine, all its processes together.
//!
//! How fast a pipe is depends on what else the machine does; how long its processors work for a byte
//! depends on that much less.

use std::{
    collections::{HashMap, HashSet},
    fs, process,
};

/// In a second, by which the system counts what a process has used.
const TICKS: f64 = 100.0;

/// Seconds of processor that this process and all that it has started have used so far.
pub(crate) fn spent() -> f64 {
    let stats: HashMap<u32, (u32, u64)> = fs::read_dir("/proc")
        .expect("this is Linux")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(|pid| Some((pid, stat(pid)?)))
        .collect();
    let ours = |pid: u32| {
        let mut seen = HashSet::new();
        let mut at = pid;
        while at != process::id() && seen.insert(at) {
            match stats.get(&at) {
                Some((parent, _)) => at = *parent,
                None => return false,
            }
        }
        at == process::id()
    };
    let ticks = stats.iter().filter(|(pid, _)| ours(**pid));
    ticks.map(|(_, (_, ticks))| *ticks as f64).sum::<f64>() / TICKS
}

/// The parent of a process and the ticks it has used; `None` if it has gone.
fn stat(pid: u32) -> Option<(u32, u64)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in brackets, may hold anything.
    let fields: Vec<_> = stat.rsplit_once(") ")?.1.split(' ').collect();
    let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
    let parent = u32::try_from(number(1)?).ok()?;
    Some((parent, number(11)? + number(12)?))
}
