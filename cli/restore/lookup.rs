//! From a path that an operator wrote to the file that it means, inside the filesystem.
//!
//! Symbolic links on the way are followed within the filesystem, whose root is where absolute ones begin; the last part
//! is not followed. What is found is told under its own path, without links.

use super::filesystem::{Filesystem, Kind, NodeId};
use super::source::Trouble;
use super::volume::failure;
use crate::exit::Failure;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

/// As many links are followed as the kernel does.
const MAX_LINKS: u32 = 40;

/// Parts of a path at the most.
const MAX_PARTS: usize = 4096;

/// What a path means.
#[derive(Clone, Debug)]
pub(super) struct Found {
    /// The parts of the path without links, each with the file that it names; none for the root.
    pub(super) parts: Vec<(Vec<u8>, NodeId)>,
}

impl Found {
    /// The file itself.
    pub(super) fn node(&self, filesystem: &dyn Filesystem) -> NodeId {
        self.parts.last().map_or_else(|| filesystem.root(), |(_, node)| *node)
    }

    /// The path without links.
    pub(super) fn path(&self) -> Vec<u8> {
        joined(self.parts.iter().map(|(name, _)| name.as_slice()))
    }

    /// Whether it is `other`, or in it.
    pub(super) fn is_within(&self, other: &Found) -> bool {
        self.parts.len() >= other.parts.len()
            && self.parts.iter().zip(&other.parts).all(|(ours, theirs)| ours.0 == theirs.0)
    }
}

/// Whether the last part is followed, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Last {
    /// If it is a link, the link is meant.
    AsItIs,
    /// If it is a link, what it leads to is meant.
    Followed,
}

/// A path of these parts.
pub(super) fn joined<'a>(parts: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut path = Vec::new();
    for part in parts {
        path.push(b'/');
        path.extend_from_slice(part);
    }
    if path.is_empty() {
        path.push(b'/');
    }
    path
}

/// A path for people and JSON.
pub(super) fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

/// Finds `path`, which is taken from the root whether it begins with a slash or not.
pub(super) fn find(filesystem: &dyn Filesystem, path: &OsStr, last: Last) -> Result<Found, Failure> {
    let mut found = Found { parts: Vec::new() };
    let mut links = 0;
    // Reversed, so that what a link leads to can be put before the rest.
    let mut rest = reversed(path.as_bytes());
    let asked = path.display();
    while let Some(part) = rest.pop() {
        if part == b".." {
            found.parts.pop();
            continue;
        }
        let here = shown(&found.path());
        let in_trouble = |trouble: &Trouble| failure(&here, trouble);
        let folder = found.node(filesystem);
        let stat = filesystem.stat(folder).map_err(|trouble| in_trouble(&trouble))?;
        if stat.kind != Kind::Folder {
            return Err(Failure::refused(format_args!(
                "there is no {asked}: {here} is no folder, but a {}",
                stat.kind.name()
            ))
            .next("`landfall restore ls` lists what is there"));
        }
        let listing = filesystem.list(folder).map_err(|trouble| in_trouble(&trouble))?;
        let exact = listing.entries.iter().find(|entry| entry.name == part);
        let has_case = !filesystem.kind().starts_with("FAT");
        let alike = |name: &[u8]| !has_case && name.eq_ignore_ascii_case(&part);
        let entry = exact.or_else(|| listing.entries.iter().find(|entry| alike(&entry.name)));
        let Some(entry) = entry else {
            let damage = match listing.faults.first() {
                Some(fault) => format!(" (names may be missing: {fault})"),
                None => String::new(),
            };
            return Err(Failure::refused(format_args!(
                "there is no {asked}: the nearest folder that is there is {here}{damage}"
            ))
            .next(format_args!("`landfall restore ls … {here}` lists it")));
        };
        let node = entry.node;
        found.parts.push((entry.name.clone(), node));
        if found.parts.len() > MAX_PARTS {
            return Err(Failure::refused(format_args!("{asked} is too long")));
        }
        if rest.is_empty() && last == Last::AsItIs {
            break;
        }
        let here = shown(&found.path());
        let in_trouble = |trouble: &Trouble| failure(&here, trouble);
        let stat = filesystem.stat(node).map_err(|trouble| in_trouble(&trouble))?;
        if stat.kind == Kind::Link {
            links += 1;
            if links > MAX_LINKS {
                return Err(Failure::refused(format_args!("{asked} leads over more than {MAX_LINKS} links")));
            }
            let target = filesystem.link_target(node).map_err(|trouble| in_trouble(&trouble))?;
            found.parts.pop();
            if target.starts_with(b"/") {
                found.parts.clear();
            }
            rest.extend(reversed(&target));
        }
    }
    Ok(found)
}

/// The parts that mean anything, the last one first.
fn reversed(path: &[u8]) -> Vec<Vec<u8>> {
    let parts = path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && part != b".");
    let mut parts = parts.map(<[u8]>::to_vec).collect::<Vec<_>>();
    parts.reverse();
    parts
}
