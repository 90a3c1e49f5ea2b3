//! Listens to what the engine and the sessions log: an event of level ERROR fails a run.
//!
//! What they tell an operator (INFO and above) is put into words as well, though nobody reads them here: a line that
//! cannot be written would end a process just when somebody needs to know.

use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

/// Keeps the events that must not be.
#[derive(Clone, Default)]
pub struct Watch {
    errors: Arc<Mutex<Vec<String>>>,
}

impl Watch {
    /// Takes what has come since it was last asked.
    #[must_use]
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.errors.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

struct Words(String);

impl Visit for Words {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let name = field.name();
        let _ = match name {
            "message" => write!(self.0, "{value:?} "),
            _ => write!(self.0, "{name}={value:?} "),
        };
    }
}

impl Subscriber for Watch {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::INFO
    }

    fn max_level_hint(&self) -> Option<tracing::level_filters::LevelFilter> {
        Some(tracing::level_filters::LevelFilter::INFO)
    }

    fn new_span(&self, _span: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _span: &Id, _values: &Record<'_>) {}

    fn record_follows_from(&self, _span: &Id, _follows: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut words = Words(format!("{}: ", event.metadata().target()));
        event.record(&mut words);
        if *event.metadata().level() != Level::ERROR {
            return;
        }
        self.errors.lock().unwrap_or_else(PoisonError::into_inner).push(words.0);
    }

    fn enter(&self, _span: &Id) {}

    fn exit(&self, _span: &Id) {}
}
