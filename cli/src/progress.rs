//! Company for a person who waits: a line on stderr, only on a terminal, only after half a second.

use std::{future::Future, time::Duration};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::output::Output;

/// What is faster than this looks instant, and a line that flickers is worse than none.
const AFTER: Duration = Duration::from_millis(500);

/// Waits for `work` and shows `message` meanwhile.
pub(crate) async fn while_waiting<T>(
    output: &Output,
    message: &str,
    work: impl Future<Output = T>,
) -> T {
    if !output.shows_progress() {
        return work.await;
    }
    let mut work = std::pin::pin!(work);
    if let Ok(done) = tokio::time::timeout(AFTER, &mut work).await {
        return done;
    }
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {elapsed}") {
        bar.set_style(style);
    }
    bar.set_message(message.to_owned());
    bar.enable_steady_tick(Duration::from_millis(100));
    let done = work.await;
    bar.finish_and_clear();
    done
}
