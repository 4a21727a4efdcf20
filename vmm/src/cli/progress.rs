//! A progress bar on stderr, if that is a terminal.

use std::cell::RefCell;
use std::time::Duration;

use ckvmm_snapshot::Progress;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::operations::Operation;

/// How often a bar moves.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Does `work` on another thread while this one shows how far it is.
pub(super) fn watched<T: Send>(what: &str, progress: &Progress, work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let work = scope.spawn(work);
        let bar = Bar::new();
        while !work.is_finished() {
            bar.update(what, progress.bytes_done(), progress.bytes_total());
            std::thread::sleep(LOOK_EVERY);
        }
        drop(bar);
        work.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// A bar that is gone when it is dropped.
pub(super) struct Bar {
    bar: ProgressBar,
    phase: RefCell<String>,
}

impl Bar {
    pub(super) fn new() -> Self {
        // hidden by indicatif when stderr is no terminal
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
        let template = "{msg:12} [{wide_bar}] {bytes}/{total_bytes} {bytes_per_sec} {eta}";
        let style = ProgressStyle::with_template(template).expect("the template above is well-formed");
        bar.set_style(style.progress_chars("=> "));
        Self { bar, phase: RefCell::default() }
    }

    pub(super) fn show(&self, operation: &Operation) {
        let phase = operation.phase.as_deref().unwrap_or_default();
        self.update(phase, operation.done_bytes, operation.total_bytes);
    }

    pub(super) fn update(&self, phase: &str, done_bytes: u64, total_bytes: u64) {
        if *self.phase.borrow() != phase {
            self.phase.replace(phase.to_owned());
            self.bar.set_message(phase.to_owned());
            self.bar.reset();
        }
        self.bar.set_length(total_bytes);
        self.bar.set_position(done_bytes);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
