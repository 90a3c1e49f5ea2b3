//! Recorded workloads: what guests did to real volumes, without their bytes.
//!
//! The file is JSON, a value a line. The first line is a [`Header`] and names the format and its version; every other
//! one is a [`Line`], a record of a log in its order. `landfall log export-trace` writes it.
//!
//! - No byte of a payload is in it: only times, volumes, kinds, places, lengths and names.
//! - Nothing of a file is believed before it is checked: its size, its version, every place and every name.
//! - Two files with equal hashes are the same workload ([`Recording::hash`]).

use crate::clock::Span;
use crate::hash::hash_bytes;
use crate::scenario::nearest;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What the first line calls itself.
pub const FORMAT: &str = "landfall-workload";
/// The version that is written, and the only one that is read.
pub const VERSION: u32 = 1;
/// The largest file that is read, in bytes.
pub const MAX_BYTES: u64 = 1 << 30;
/// The longest pause between two records that is kept, so that a night without writes does not end a run.
pub const MAX_PAUSE: Span = Span::from_secs(10);
/// The least pause behind the last record, before the first comes again; it is the mean of all others if that is more.
pub const MIN_LAST_PAUSE: Span = Span::from_ms(1);

/// The kinds of lines that change bytes or ask for durability.
const PLAYED: [&str; 3] = ["write", "zero", "flush"];
/// The kinds that are told and not played.
const TOLD: [&str; 6] = ["open", "volume", "mark", "promote", "span-begin", "span-end"];

/// The first line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// [`FORMAT`].
    pub format: String,
    /// [`VERSION`].
    pub version: u32,
    /// The volumes that were defined by then. More may follow as lines of kind `volume`.
    pub volumes: Vec<Volume>,
}

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Volume {
    /// Its name.
    pub name: String,
    /// Bytes.
    pub size: u64,
}

/// Any other line: a record.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Line {
    /// Its number in the log.
    pub lsn: u64,
    /// Nanoseconds since the first line's record; never goes back.
    pub ns: u64,
    /// The kind's name.
    pub kind: String,
    /// The volume's name, if it is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<String>,
    /// The first byte of a write or of zeros.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
    /// How many bytes; of a volume, its size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub length: Option<u64>,
    /// The name of a mark.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// Why a file is no recording.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {what}{}", .meant.as_ref().map(|name| format!(" (did you mean `{name}`?)")).unwrap_or_default())]
pub struct Error {
    /// Counted from one.
    pub line: usize,
    /// What is wrong there.
    pub what: String,
    /// The nearest name that there is.
    pub meant: Option<String>,
}

/// What is done to a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    /// Bytes are written.
    Write,
    /// An extent becomes zeros.
    Zero,
    /// Everything before is made durable.
    Flush,
}

/// One played record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// From this record to the next; behind the last one, to the first.
    pub gap: Span,
    /// The volume's index.
    pub volume: usize,
    /// What is done.
    pub deed: Deed,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

/// A workload out of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recording {
    /// The volumes, in the order of the workload's indices.
    pub volumes: Vec<Volume>,
    /// What is played, oldest first; never empty.
    pub records: Arc<[Recorded]>,
    /// Of the file's bytes.
    pub hash: u64,
}

impl Recording {
    /// Reads a file's text. With `names`, the volumes have to be of those, and get their places in that list;
    /// without, they are numbered as the file defines them.
    ///
    /// # Errors
    /// The first line that is wrong.
    pub fn parse(text: &str, names: Option<&[String]>) -> Result<Recording, Error> {
        let wrong = |line: usize, what: String| Error { line, what, meant: None };
        let mut lines = text.lines().enumerate().map(|(index, line)| (index + 1, line));
        let first = lines.next().map(|(_, line)| line).unwrap_or_default();
        let header = header(first).map_err(|what| wrong(1, what))?;
        let mut reader = Reader::new(names);
        for volume in header.volumes {
            reader.define(1, volume)?;
        }
        let mut played: Vec<(u64, Recorded)> = Vec::new();
        let mut last = 0;
        for (number, line) in lines.filter(|(_, line)| !line.is_empty()) {
            let line: Line = serde_json::from_str(line)
                .map_err(|error| wrong(number, format!("it is not a record: {error}")))?;
            if line.ns < last {
                return Err(wrong(number, format!("time goes back from {last} to {} ns", line.ns)));
            }
            last = line.ns;
            if let Some(record) = reader.line(number, &line)? {
                played.push((line.ns, record));
            }
        }
        if !played.iter().any(|(_, record)| record.deed != Deed::Flush) {
            return Err(wrong(1, "no record of it changes a volume".to_owned()));
        }
        let mut total = 0;
        for index in 1..played.len() {
            let pause = Span(played[index].0 - played[index - 1].0).min(MAX_PAUSE);
            total += pause.0;
            played[index - 1].1.gap = pause;
        }
        if let Some(((_, last), before)) = played.split_last_mut() {
            last.gap = Span(total / before.len().max(1) as u64).max(MIN_LAST_PAUSE);
        }
        let records = played.into_iter().map(|(_, record)| record).collect();
        Ok(Recording { volumes: reader.volumes, records, hash: hash_bytes(text.as_bytes()) })
    }
}

/// The first line, if this version can read what follows.
fn header(line: &str) -> Result<Header, String> {
    let value: serde_json::Value =
        serde_json::from_str(line).map_err(|_| "this is no recorded workload".to_owned())?;
    if value.get("format").and_then(|format| format.as_str()) != Some(FORMAT) {
        return Err("this is no recorded workload".to_owned());
    }
    let version = value.get("version").and_then(serde_json::Value::as_u64);
    if version != Some(u64::from(VERSION)) {
        let found = version.map_or_else(|| "none".to_owned(), |version| version.to_string());
        return Err(format!("it is of version {found}, and this reads version {VERSION}"));
    }
    serde_json::from_value(value).map_err(|error| error.to_string())
}

struct Reader<'a> {
    names: Option<&'a [String]>,
    volumes: Vec<Volume>,
    places: BTreeMap<String, usize>,
}

impl<'a> Reader<'a> {
    fn new(names: Option<&'a [String]>) -> Reader<'a> {
        let volumes = names.unwrap_or_default().iter().map(|name| Volume { name: name.clone(), size: 0 });
        Reader { names, volumes: volumes.collect(), places: BTreeMap::new() }
    }

    fn define(&mut self, line: usize, volume: Volume) -> Result<(), Error> {
        if volume.size == 0 {
            return Err(Error { line, what: format!("volume `{}` has no bytes", volume.name), meant: None });
        }
        let place = match self.names {
            None if self.places.contains_key(&volume.name) => self.places[&volume.name],
            None => {
                self.volumes.push(volume.clone());
                self.volumes.len() - 1
            }
            Some(names) => names.iter().position(|name| *name == volume.name).ok_or_else(|| {
                let known: Vec<&str> = names.iter().map(String::as_str).collect();
                let what = format!("the scenario has no volume `{}`", volume.name);
                Error { line, what, meant: nearest(&volume.name, &known) }
            })?,
        };
        self.volumes[place].size = volume.size;
        self.places.insert(volume.name, place);
        Ok(())
    }

    fn find(&self, line: usize, name: Option<&str>) -> Result<usize, Error> {
        let name = name.ok_or_else(|| Error { line, what: "it names no volume".to_owned(), meant: None })?;
        self.places.get(name).copied().ok_or_else(|| {
            let known: Vec<&str> = self.places.keys().map(String::as_str).collect();
            Error { line, what: format!("no volume `{name}` was defined"), meant: nearest(name, &known) }
        })
    }

    fn line(&mut self, number: usize, line: &Line) -> Result<Option<Recorded>, Error> {
        let wrong = |what: &str| Error { line: number, what: what.to_owned(), meant: None };
        let deed = match line.kind.as_str() {
            "write" => Deed::Write,
            "zero" => Deed::Zero,
            "flush" => Deed::Flush,
            "volume" => {
                let name = line.volume.clone().ok_or_else(|| wrong("it names no volume"))?;
                let size = line.length.ok_or_else(|| wrong("it has no length"))?;
                return self.define(number, Volume { name, size }).map(|()| None);
            }
            kind if TOLD.contains(&kind) => return Ok(None),
            kind => {
                let what = format!("`{kind}` is no kind of record");
                let known: Vec<&str> = PLAYED.into_iter().chain(TOLD).collect();
                return Err(Error { line: number, what, meant: nearest(kind, &known) });
            }
        };
        if deed == Deed::Flush {
            return Ok(Some(Recorded { gap: Span(0), volume: 0, deed, offset: 0, len: 0 }));
        }
        let volume = self.find(number, line.volume.as_deref())?;
        let offset = line.offset.ok_or_else(|| wrong("it has no offset"))?;
        let len = line.length.ok_or_else(|| wrong("it has no length"))?;
        let fits = offset.checked_add(len).is_some_and(|end| end <= self.volumes[volume].size);
        if !fits || len == 0 {
            return Err(wrong("it lies outside its volume"));
        }
        Ok(Some(Recorded { gap: Span(0), volume, deed, offset, len }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str =
        r#"{"format":"landfall-workload","version":1,"volumes":[{"name":"data","size":65536}]}"#;

    fn complaint(text: &str, names: Option<&[String]>) -> String {
        Recording::parse(text, names).expect_err("it is wrong").to_string()
    }

    #[test]
    fn a_recording_is_read_with_its_pauses() {
        let text = format!(
            "{HEAD}\n{}\n{}\n{}\n{}\n",
            r#"{"lsn":7,"ns":0,"kind":"open"}"#,
            r#"{"lsn":8,"ns":5,"kind":"write","volume":"data","offset":4096,"length":512}"#,
            r#"{"lsn":9,"ns":1005,"kind":"flush"}"#,
            r#"{"lsn":10,"ns":90000001005,"kind":"zero","volume":"data","offset":0,"length":65536}"#,
        );
        let recording = Recording::parse(&text, None).expect("it is sound");
        assert_eq!(recording.volumes, [Volume { name: "data".to_owned(), size: 65_536 }]);
        let expected = [
            (Span(1_000), Deed::Write, 4_096, 512),
            (MAX_PAUSE, Deed::Flush, 0, 0),
            (Span(5_000_000_500), Deed::Zero, 0, 65_536),
        ];
        let found: Vec<_> = recording.records.iter().map(|r| (r.gap, r.deed, r.offset, r.len)).collect();
        assert_eq!(found, expected);
        let other = Recording::parse(&text.replace("4096", "4608"), None).expect("it is sound");
        assert_ne!(other.hash, recording.hash);
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line_and_the_nearest_name() {
        let with = |line: &str| format!("{HEAD}\n{line}\n");
        let write = r#"{"lsn":1,"ns":0,"kind":"write","volume":"data","offset":0,"length":512}"#;
        let cases = [
            (String::new(), "line 1: this is no recorded workload"),
            (
                HEAD.replace("\"version\":1", "\"version\":9"),
                "line 1: it is of version 9, and this reads version 1",
            ),
            (with(""), "line 1: no record of it changes a volume"),
            (
                with(&write.replace("\"data\"", "\"dat\"")),
                "line 2: no volume `dat` was defined (did you mean `data`?)",
            ),
            (
                with(&write.replace("\"write\"", "\"wriet\"")),
                "line 2: `wriet` is no kind of record (did you mean `write`?)",
            ),
            (with(&write.replace("512", "65537")), "line 2: it lies outside its volume"),
            (with(&write.replace("\"offset\":0,", "")), "line 2: it has no offset"),
            (
                with(&format!("{}\n{write}", write.replace("\"ns\":0", "\"ns\":9"))),
                "line 3: time goes back from 9 to 0 ns",
            ),
        ];
        for (text, expected) in cases {
            assert_eq!(complaint(&text, None), expected);
        }
        assert!(complaint(&with("half"), None).starts_with("line 2: it is not a record"));
        let names = ["date".to_owned()];
        let expected = "line 1: the scenario has no volume `data` (did you mean `date`?)";
        assert_eq!(complaint(&with(write), Some(&names)), expected);
    }
}
