//! What happened in a run: a list of events for people, and one number by which two runs are compared.
//!
//! - The hash covers every event with its time, place, kind and fields, in their order, whether or not the event
//!   is kept; it is the same in debug and release builds and in every process.
//! - An event carries numbers and short texts, never payloads.

use crate::clock::Time;
use crate::hash::Hash64;
use std::collections::VecDeque;
use std::fmt;

/// Where something happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// In no place: the scenario, the operator.
    World,
    /// On a node.
    Node(u32),
    /// On the way between two nodes.
    Link(u32, u32),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Place::World => "world".to_owned(),
            Place::Node(node) => format!("node {node}"),
            Place::Link(from, to) => format!("{from} > {to}"),
        };
        f.pad(&text)
    }
}

/// A field of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A number.
    Number(u64),
    /// A few words.
    Text(String),
}

impl From<u64> for Value {
    fn from(number: u64) -> Value {
        Value::Number(number)
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Value {
        Value::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Value {
        Value::Text(text)
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Number(number) => number.fmt(f),
            Value::Text(text) => f.write_str(text),
        }
    }
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// When.
    pub at: Time,
    /// Where.
    pub place: Place,
    /// What: one or two words.
    pub kind: &'static str,
    /// The details, by name.
    pub fields: Vec<(&'static str, Value)>,
}

impl fmt::Display for Event {
    /// One line in columns: time, place, kind, fields.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}  {:<8} {:<18}", self.at, self.place, self.kind)?;
        self.fields.iter().try_for_each(|(name, value)| write!(f, " {name}={value}"))
    }
}

/// How many events are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// The hash only.
    None,
    /// The last so many.
    Last(usize),
    /// All.
    All,
}

/// The events of a run.
#[derive(Clone, Debug)]
pub struct Trace {
    keep: Keep,
    hash: Hash64,
    count: u64,
    kept: VecDeque<Event>,
}

impl Trace {
    /// An empty trace.
    #[must_use]
    pub fn new(keep: Keep) -> Trace {
        Trace { keep, hash: Hash64::default(), count: 0, kept: VecDeque::new() }
    }

    /// Adds an event whose fields are all numbers, as most are; no memory is taken if it is not kept.
    pub fn record(&mut self, at: Time, place: Place, kind: &'static str, fields: &[(&'static str, u64)]) {
        self.begin(at, place, kind, fields.len());
        for (name, number) in fields {
            self.hash.bytes(name.as_bytes());
            self.hash.word(0);
            self.hash.word(*number);
        }
        if self.keep != Keep::None {
            let fields = fields.iter().map(|(name, number)| (*name, Value::Number(*number))).collect();
            self.keep(Event { at, place, kind, fields });
        }
    }

    /// Adds any event.
    pub fn record_event(&mut self, event: Event) {
        self.begin(event.at, event.place, event.kind, event.fields.len());
        for (name, value) in &event.fields {
            self.hash.bytes(name.as_bytes());
            match value {
                Value::Number(number) => {
                    self.hash.word(0);
                    self.hash.word(*number);
                }
                Value::Text(text) => {
                    self.hash.word(1);
                    self.hash.bytes(text.as_bytes());
                }
            }
        }
        self.keep(event);
    }

    /// The hash of all events so far.
    #[must_use]
    pub fn hash(&self) -> u64 {
        self.hash.value()
    }

    /// How many events there were.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The events that were kept, oldest first.
    pub fn events(&self) -> impl Iterator<Item = &Event> {
        self.kept.iter()
    }

    fn begin(&mut self, at: Time, place: Place, kind: &str, fields: usize) {
        self.count += 1;
        self.hash.word(at.0);
        self.hash.word(match place {
            Place::World => 0,
            Place::Node(node) => 1 << 62 | u64::from(node),
            Place::Link(from, to) => 1 << 63 | u64::from(from) << 31 | u64::from(to),
        });
        self.hash.bytes(kind.as_bytes());
        self.hash.word(fields as u64);
    }

    fn keep(&mut self, event: Event) {
        match self.keep {
            Keep::None | Keep::Last(0) => return,
            Keep::Last(limit) if self.kept.len() == limit => drop(self.kept.pop_front()),
            Keep::Last(_) | Keep::All => {}
        }
        self.kept.push_back(event);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_depends_on_order_place_and_fields_and_not_on_what_is_kept() {
        let hash = |keep: Keep, events: &[(u64, u32, &'static str, u64)]| {
            let mut trace = Trace::new(keep);
            for (at, node, kind, number) in events {
                trace.record(Time(*at), Place::Node(*node), kind, &[("n", *number)]);
            }
            trace.hash()
        };
        let events = [(1, 0, "a", 1), (1, 1, "b", 2)];
        let base = hash(Keep::None, &events);
        assert_eq!(base, 0x4B5F_B117_01D3_2CF5, "trace hashes of old reports stay comparable");
        assert_eq!(base, hash(Keep::All, &events));
        assert_eq!(base, hash(Keep::Last(1), &events));
        for other in [
            [(1, 1, "b", 2), (1, 0, "a", 1)],
            [(2, 0, "a", 1), (1, 1, "b", 2)],
            [(1, 2, "a", 1), (1, 1, "b", 2)],
            [(1, 0, "c", 1), (1, 1, "b", 2)],
            [(1, 0, "a", 3), (1, 1, "b", 2)],
        ] {
            assert_ne!(base, hash(Keep::None, &other), "{other:?}");
        }
    }

    #[test]
    fn numbers_hash_alike_by_either_way() {
        let mut one = Trace::new(Keep::Last(1));
        let mut other = one.clone();
        one.record(Time(5), Place::World, "failover", &[("lsn", 9)]);
        let fields = vec![("lsn", Value::from(9))];
        other.record_event(Event { at: Time(5), place: Place::World, kind: "failover", fields });
        assert_eq!(one.hash(), other.hash());
        other.record_event(Event {
            at: Time(61_500_000_000),
            place: Place::Link(0, 1),
            kind: "reset",
            fields: vec![("why", Value::from("flap"))],
        });
        let lines: Vec<String> = other.events().map(Event::to_string).collect();
        assert_eq!(lines, ["   61.500000s  0 > 1    reset              why=flap"]);
        assert_eq!(other.count(), 2);
    }
}
