//! Long work on a terminal: a bar. Elsewhere nothing is drawn.

use std::sync::Mutex;

use indicatif::{ProgressBar, ProgressStyle};
use snapstore::progress::Progress;

/// A bar on stderr for the step that runs. It is gone when the work is done.
#[derive(Default)]
pub struct Bar(Mutex<Option<ProgressBar>>);

impl Bar {
    fn with(&self, work: impl FnOnce(&mut Option<ProgressBar>)) {
        work(&mut self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()));
    }
}

impl Progress for Bar {
    fn step(&self, name: &str, total: Option<u64>) {
        // indicatif draws on a terminal only.
        let (bar, template) = match total {
            Some(total) => (ProgressBar::new(total), "{msg} [{bar:30}] {human_pos}/{human_len} {eta}"),
            None => (ProgressBar::new_spinner(), "{spinner} {msg} {human_pos}"),
        };
        // No colours in it, so there is nothing for NO_COLOR to turn off.
        let style = ProgressStyle::with_template(template).expect("a template of this file");
        bar.set_style(style.progress_chars("=> "));
        bar.set_message(name.to_owned());
        self.with(|current| {
            if let Some(before) = current.replace(bar) {
                before.finish_and_clear();
            }
        });
    }

    fn advance(&self, units: u64) {
        self.with(|current| {
            if let Some(bar) = current {
                bar.inc(units);
            }
        });
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.with(|current| {
            if let Some(bar) = current.take() {
                bar.finish_and_clear();
            }
        });
    }
}
