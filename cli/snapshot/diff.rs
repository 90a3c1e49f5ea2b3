//! `landfall snapshot diff`: what differs between two snapshots, without reading a block.

use super::{Place, args};
use crate::args::Global;
use crate::exit::Failure;
use crate::human::{self, Table};
use crate::units::Bytes;
use engine::snapshots::diff::{Change, diff};
use serde::Serialize;

/// Ranges of a volume that are printed for people; `--json` has all.
const SHOWN_RANGES: usize = 8;

#[derive(Serialize)]
struct Difference<'a> {
    before: &'a str,
    after: &'a str,
    volumes: Vec<Changed>,
}

/// A volume of either.
#[derive(Serialize)]
struct Changed {
    name: String,
    /// Null if the first has it not.
    size_before_bytes: Option<u64>,
    /// Null if the second has it not.
    size_after_bytes: Option<u64>,
    /// Of all ranges.
    changed_bytes: u64,
    ranges: Vec<Range>,
}

#[derive(Serialize)]
struct Range {
    offset: u64,
    bytes: u64,
}

impl Changed {
    fn of(change: Change) -> Changed {
        let ranges = change.ranges.iter().map(|range| Range { offset: range.offset, bytes: range.len });
        Changed {
            name: change.name,
            size_before_bytes: change.size_before,
            size_after_bytes: change.size_after,
            changed_bytes: change.ranges.iter().map(|range| range.len).sum(),
            ranges: ranges.collect(),
        }
    }
}

/// Carries it out.
pub(super) fn run(global: &Global, arguments: &args::Diff) -> Result<(), Failure> {
    let args::Diff { before, after } = arguments;
    let place = Place::of(global)?;
    let snapshots = place.snapshots()?;
    let find = |name: &str| snapshots.find(name).map_err(|error| place.failure(error));
    let changes = diff(find(before)?, find(after)?).map_err(|error| place.failure(error))?;
    let volumes = changes.into_iter().map(Changed::of).collect();
    human::answer(global.form(), &Difference { before, after, volumes }, text)
}

fn text(difference: &Difference<'_>) -> String {
    let heads = ["VOLUME", "SIZE BEFORE", "SIZE AFTER", "CHANGED", "RANGES"];
    let mut table = Table::new(&heads).right(&[1, 2, 3]);
    let size = |size: Option<u64>| size.map_or_else(|| "none".to_owned(), |size| Bytes(size).to_string());
    for volume in &difference.volumes {
        let shown = volume.ranges.iter().take(SHOWN_RANGES);
        let mut ranges: Vec<String> =
            shown.map(|range| format!("{}+{}", range.offset, range.bytes)).collect();
        if let Some(more) = volume.ranges.len().checked_sub(SHOWN_RANGES).filter(|more| *more > 0) {
            ranges.push(format!("and {more} more"));
        }
        table.row(&[
            volume.name.clone(),
            size(volume.size_before_bytes),
            size(volume.size_after_bytes),
            Bytes(volume.changed_bytes).to_string(),
            ranges.join(" "),
        ]);
    }
    let mut out = table.render();
    out.push_str(
        "A range is its first byte, and how many; all are in `--json`. Blocks of 64 KiB are compared.\n",
    );
    out
}
