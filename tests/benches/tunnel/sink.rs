//! The reader at the end of every pipe, and what it sees of each flow.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt},
    time::{Instant, sleep},
};

use crate::{cpu, source::BLOCK};

/// The near end of one flow, asked to send.
pub(crate) type Flow = Box<dyn AsyncRead + Send + Unpin>;

/// What was read in a time.
#[derive(Clone, Debug)]
pub(crate) struct Measured {
    /// Bytes of each flow, least first.
    bytes: Vec<u64>,
    took: Duration,
    /// What all processes of this benchmark used meanwhile.
    cpu_seconds: f64,
    /// The longest time in which a flow had nothing to read.
    pub(crate) longest_stall: Duration,
    /// Flows that the pipe ended, which the source never does.
    pub(crate) broken: usize,
}

impl Measured {
    /// All flows together, in Gbit/s.
    pub(crate) fn gbit_per_s(&self) -> f64 {
        self.gigabytes() * 8.0 / self.took.as_secs_f64()
    }

    /// Seconds of processor for 10^9 bytes, over all processes from the source to the reader.
    pub(crate) fn cpu_seconds_per_gb(&self) -> f64 {
        self.cpu_seconds / self.gigabytes()
    }

    fn gigabytes(&self) -> f64 {
        self.bytes.iter().sum::<u64>() as f64 * 1e-9
    }

    /// The slowest flow as a part of the median one.
    pub(crate) fn least_of_median(&self) -> f64 {
        let median = self.bytes[self.bytes.len() / 2];
        self.bytes[0] as f64 / median.max(1) as f64
    }
}

/// What the task of a flow tells.
#[derive(Debug, Default)]
struct Seen {
    bytes: AtomicU64,
    /// When it last had something, in microseconds since the flows were opened.
    last_us: AtomicU64,
    longest_us: AtomicU64,
}

/// Reads flows as fast as they come for `warm_up`, and then measures for `during`.
pub(crate) async fn drain(flows: Vec<Flow>, warm_up: Duration, during: Duration) -> Measured {
    let start = Instant::now();
    let measuring = Arc::new(AtomicBool::new(false));
    let mut seen = Vec::with_capacity(flows.len());
    let mut tasks = Vec::with_capacity(flows.len());
    for mut flow in flows {
        let (mine, measuring) = (Arc::<Seen>::default(), Arc::clone(&measuring));
        seen.push(Arc::clone(&mine));
        tasks.push(tokio::spawn(async move {
            let mut buffer = vec![0; 4 * BLOCK];
            while let Ok(length @ 1..) = flow.read(&mut buffer).await {
                let now = micros(start);
                let last = mine.last_us.swap(now, Relaxed);
                if measuring.load(Relaxed) {
                    mine.bytes.fetch_add(length as u64, Relaxed);
                    mine.longest_us.fetch_max(now - last, Relaxed);
                }
            }
        }));
    }
    sleep(warm_up).await;
    let begin = Instant::now();
    let cpu = cpu::spent();
    measuring.store(true, Relaxed);
    sleep(during).await;
    measuring.store(false, Relaxed);
    let took = begin.elapsed();
    let cpu_seconds = cpu::spent() - cpu;
    let end = micros(start);

    let broken = tasks.iter().filter(|task| task.is_finished()).count();
    for task in tasks {
        task.abort();
        let _ = task.await;
    }
    let mut bytes: Vec<_> = seen.iter().map(|flow| flow.bytes.load(Relaxed)).collect();
    bytes.sort_unstable();
    // One that waits at the end has stalled for as long as it waits.
    let stall = |flow: &Arc<Seen>| {
        let waits = end.saturating_sub(flow.last_us.load(Relaxed));
        flow.longest_us.load(Relaxed).max(waits)
    };
    let longest = seen.iter().map(stall).max().unwrap_or_default();
    Measured {
        bytes,
        took,
        cpu_seconds,
        longest_stall: Duration::from_micros(longest),
        broken,
    }
}

fn micros(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX)
}
