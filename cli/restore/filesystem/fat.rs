//! FAT12, FAT16 and FAT32.
//!
//! Invariants:
//! - a chain of clusters is followed only within the table, and no further than the volume has clusters: one that leads
//!   back into itself ends as damage;
//! - a file's clusters must cover its size, or the rest is told as missing.
//!
//! A file has no number here. It is known by where its entry lies: the byte of it in the volume. The root, which has no
//! entry, is 0. Times are local times of whoever wrote them, without a zone: they are taken as UTC.
//!
//! Layout: Microsoft's "FAT: General Overview of On-Disk Format", version 1.03.

use super::{Attribute, Entry, FileTime, Filesystem, Kind, Listing, NodeId, Place, Run, Stat};
use crate::restore::source::{Raw, Source, Trouble, Window};

const ENTRY_BYTES: usize = 32;
/// A folder cannot have more entries, by the standard.
const MAX_FOLDER_ENTRIES: u64 = 65536;

const DELETED: u8 = 0xe5;
const ATTRIBUTE_VOLUME: u8 = 0x8;
const ATTRIBUTE_FOLDER: u8 = 0x10;
const ATTRIBUTE_LONG_NAME: u8 = 0xf;
/// Bits of the byte that says which letters of a short name are small ones.
const SMALL_NAME: u8 = 0x8;
const SMALL_EXTENSION: u8 = 0x10;
const LAST_LONG: u8 = 0x40;
/// Of 13 letters each.
const MAX_LONG_ENTRIES: u8 = 20;

const ROOT: NodeId = 0;

/// The bytes of a folder, with the place of each piece.
type Pieces = Vec<(u64, Vec<u8>)>;

/// How wide an entry of the table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Width {
    Fat12,
    Fat16,
    Fat32,
}

/// A filesystem of this kind.
pub(super) struct Fat {
    volume: Window,
    width: Width,
    cluster_bytes: u64,
    /// How many clusters there are; they are counted from 2.
    clusters: u32,
    table_at: u64,
    /// Where the root is that has a place of its own, and its bytes; FAT32's is a chain.
    root: (u64, u64),
    root_cluster: u32,
    data_at: u64,
    notes: Vec<String>,
}

impl Fat {
    /// Opens what is in `window`. None if it is something else.
    pub(super) fn open(window: Window) -> Result<Option<Fat>, Trouble> {
        if window.len() < 512 {
            return Ok(None);
        }
        let boot = window.read_vec(0, 512)?;
        Ok(Fat::parse(&boot, window))
    }

    /// None if the first sector cannot be that of a FAT.
    fn parse(boot: &[u8], volume: Window) -> Option<Fat> {
        let raw = Raw(boot);
        let (sector, per_cluster) = (u64::from(raw.u16(11)?), u64::from(raw.u8(13)?));
        let (reserved, tables) = (u64::from(raw.u16(14)?), u64::from(raw.u8(16)?));
        let jumps = matches!((raw.u8(0)?, raw.u8(2)?), (0xeb, 0x90) | (0xe9, _));
        let media = raw.u8(21)?;
        let is_one = jumps
            && [512, 1024, 2048, 4096].contains(&sector)
            && per_cluster.is_power_of_two()
            && reserved > 0
            && (1..=2).contains(&tables)
            && (media >= 0xf8 || media == 0xf0)
            && raw.u16(510)? == 0xaa55;
        if !is_one {
            return None;
        }
        let either = |short: u16, long: u32| if short != 0 { u64::from(short) } else { u64::from(long) };
        let sectors = either(raw.u16(19)?, raw.u32(32)?);
        let table_sectors = either(raw.u16(22)?, raw.u32(36)?);
        let root_bytes = u64::from(raw.u16(17)?) * ENTRY_BYTES as u64;
        let root_at = (reserved + tables * table_sectors) * sector;
        let data_at = root_at + root_bytes.next_multiple_of(sector);
        let cluster_bytes = sector * per_cluster;
        let clusters = (sectors * sector).checked_sub(data_at)? / cluster_bytes;
        let width = match clusters {
            0 => return None,
            1..4085 => Width::Fat12,
            4085..65525 => Width::Fat16,
            _ => Width::Fat32,
        };
        // The table must have room for all of them.
        let table_bytes = table_sectors * sector;
        let in_table = match width {
            Width::Fat12 => table_bytes * 2 / 3,
            Width::Fat16 => table_bytes / 2,
            Width::Fat32 => table_bytes / 4,
        };
        let clusters = clusters.min(in_table.saturating_sub(2)).min(0x0fff_fff5);
        let mut notes = Vec::new();
        if sectors * sector > volume.len() {
            notes.push(format!(
                "the filesystem has {} bytes, but only {} are here",
                sectors * sector,
                volume.len()
            ));
        }
        let root_cluster = if width == Width::Fat32 { raw.u32(44)? } else { 0 };
        Some(Fat {
            volume,
            width,
            cluster_bytes,
            clusters: u32::try_from(clusters).ok()?,
            table_at: reserved * sector,
            root: (root_at, root_bytes),
            root_cluster,
            data_at,
            notes,
        })
    }

    /// Where a cluster lies.
    fn place(&self, cluster: u32) -> Result<u64, Trouble> {
        match cluster.checked_sub(2).filter(|index| *index < self.clusters) {
            Some(index) => Ok(self.data_at + u64::from(index) * self.cluster_bytes),
            None => Err(Trouble::damaged(format_args!(
                "its content leads to cluster {cluster}, which is not there"
            ))),
        }
    }

    /// The cluster behind one that is there; none at the end of a chain.
    fn behind(&self, cluster: u32) -> Result<Option<u32>, Trouble> {
        let index = u64::from(cluster);
        let (at, len) = match self.width {
            Width::Fat12 => (index * 3 / 2, 2),
            Width::Fat16 => (index * 2, 2),
            Width::Fat32 => (index * 4, 4),
        };
        let bytes = self.volume.read_vec(self.table_at + at, len)?;
        let raw = Raw(&bytes);
        let number = |value: Option<u16>| u32::from(value.unwrap_or(0));
        let (value, end) = match self.width {
            Width::Fat12 if cluster.is_multiple_of(2) => (number(raw.u16(0)) & 0xfff, 0xff8),
            Width::Fat12 => (number(raw.u16(0)) >> 4, 0xff8),
            Width::Fat16 => (number(raw.u16(0)), 0xfff8),
            Width::Fat32 => (raw.u32(0).unwrap_or(0) & 0x0fff_ffff, 0x0fff_fff8),
        };
        Ok((value < end).then_some(value))
    }

    /// Calls `each` with the index and the place of each cluster, until it has enough.
    fn chain(
        &self,
        first: u32,
        each: &mut dyn FnMut(u64, u64) -> Result<bool, Trouble>,
    ) -> Result<(), Trouble> {
        let mut cluster = first;
        for index in 0..u64::from(self.clusters) {
            if !each(index, self.place(cluster)?)? {
                return Ok(());
            }
            match self.behind(cluster)? {
                Some(next) => cluster = next,
                None => return Ok(()),
            }
        }
        Err(Trouble::damaged("its content leads back into itself"))
    }

    /// The entry at a place.
    fn entry(&self, node: NodeId) -> Result<Short, Trouble> {
        let bytes = self.volume.read_vec(node, ENTRY_BYTES)?;
        Short::parse(&bytes).ok_or_else(|| Trouble::damaged("its entry is damaged"))
    }

    /// The bytes of a folder, with the place of each piece; and why there may be more.
    fn folder(&self, node: NodeId) -> Result<(Pieces, Option<Trouble>), Trouble> {
        let first = match node {
            ROOT if self.width != Width::Fat32 => {
                let (at, len) = self.root;
                return Ok((vec![(at, self.volume.read_vec(at, len as usize)?)], None));
            }
            ROOT => self.root_cluster,
            node => {
                let entry = self.entry(node)?;
                if entry.attributes & ATTRIBUTE_FOLDER == 0 {
                    return Err(Trouble::damaged("it is no folder"));
                }
                entry.cluster
            }
        };
        let mut pieces = Vec::new();
        let ended = self.chain(first, &mut |index, place| {
            if index * self.cluster_bytes >= MAX_FOLDER_ENTRIES * ENTRY_BYTES as u64 {
                return Err(Trouble::damaged("it has more entries than a folder can have"));
            }
            let bytes = self.volume.read_vec(place, self.cluster_bytes as usize)?;
            // Behind an entry that begins with a zero there are none.
            let goes_on = !bytes.chunks(ENTRY_BYTES).any(|entry| entry.first() == Some(&0));
            pieces.push((place, bytes));
            Ok(goes_on)
        });
        match ended {
            Err(trouble) if trouble.is_lost() => Err(trouble),
            ended => Ok((pieces, ended.err())),
        }
    }
}

/// An entry of a folder that is no part of a long name.
#[derive(Debug)]
struct Short {
    name: [u8; 11],
    small: u8,
    attributes: u8,
    cluster: u32,
    size: u32,
    modified: Option<FileTime>,
}

impl Short {
    fn parse(bytes: &[u8]) -> Option<Short> {
        let raw = Raw(bytes);
        Some(Short {
            name: raw.bytes(0, 11)?.try_into().ok()?,
            small: raw.u8(12)?,
            attributes: raw.u8(11)?,
            cluster: u32::from(raw.u16(20)?) << 16 | u32::from(raw.u16(26)?),
            size: raw.u32(28)?,
            modified: time(raw.u16(24)?, raw.u16(22)?),
        })
    }

    /// The name with a dot, where there is no long one. What is not ASCII is in a code page that nobody knows.
    fn text(&self) -> Vec<u8> {
        let (name, extension) = self.name.split_at(8);
        let part = |bytes: &[u8], small: bool| {
            let end = bytes.iter().rposition(|byte| *byte != b' ').map_or(0, |last| last + 1);
            let letter = |byte: &u8| if small { byte.to_ascii_lowercase() } else { *byte };
            bytes[..end].iter().map(letter).collect::<Vec<_>>()
        };
        let mut text = part(name, self.small & SMALL_NAME != 0);
        // A first letter that would mean a deleted entry.
        if text.first() == Some(&0x5) {
            text[0] = DELETED;
        }
        let extension = part(extension, self.small & SMALL_EXTENSION != 0);
        if !extension.is_empty() {
            text.push(b'.');
            text.extend(extension);
        }
        let mut utf8 = String::new();
        for byte in text {
            utf8.push(if byte.is_ascii() { char::from(byte) } else { '\u{fffd}' });
        }
        utf8.into_bytes()
    }

    /// What the pieces of a long name that goes with this one hold.
    fn checksum(&self) -> u8 {
        self.name.iter().fold(0_u8, |sum, byte| sum.rotate_right(1).wrapping_add(*byte))
    }
}

/// The pieces of a long name, which stand before the entry, the last one first.
#[derive(Default)]
struct Long {
    units: Vec<u16>,
    checksum: u8,
    /// The number of the piece that is to come next; 0: the name is whole.
    next: u8,
}

impl Long {
    /// Adds a piece; one that does not belong here makes the name none.
    fn add(&mut self, bytes: &[u8]) {
        let raw = Raw(bytes);
        let (number, checksum) = (raw.u8(0).unwrap_or(0), raw.u8(13).unwrap_or(0));
        let index = number & !LAST_LONG;
        if number & LAST_LONG != 0 && (1..=MAX_LONG_ENTRIES).contains(&index) {
            *self = Long { units: Vec::new(), checksum, next: index };
        } else if index == 0 || index != self.next || checksum != self.checksum {
            return *self = Long::default();
        }
        let places = (1..11).step_by(2).chain((14..26).step_by(2)).chain([28, 30]);
        let piece = places.map(|at| raw.u16(at).unwrap_or(0)).take_while(|unit| *unit != 0);
        self.units.splice(0..0, piece.collect::<Vec<_>>());
        self.next = index - 1;
    }

    /// The name, if it is whole and of that entry.
    fn take(&mut self, short: &Short) -> Option<Vec<u8>> {
        let long = std::mem::take(self);
        let is_whole = !long.units.is_empty() && long.next == 0 && long.checksum == short.checksum();
        is_whole.then(|| String::from_utf16_lossy(&long.units).into_bytes())
    }
}

/// None if it is no time.
fn time(date: u16, time: u16) -> Option<FileTime> {
    let (year, month, day) = (1980 + i64::from(date >> 9), i64::from(date >> 5 & 15), i64::from(date & 31));
    let (hour, minute, second) = (i64::from(time >> 11), i64::from(time >> 5 & 63), i64::from(time & 31) * 2);
    if !(1..=12).contains(&month) || day == 0 || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    // Years that begin in March have the day that leaps at their end.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1 - 719_468;
    Some(FileTime { seconds: ((days * 24 + hour) * 60 + minute) * 60 + second, nanos: 0 })
}

impl Filesystem for Fat {
    fn kind(&self) -> &'static str {
        match self.width {
            Width::Fat12 => "FAT12",
            Width::Fat16 => "FAT16",
            Width::Fat32 => "FAT32",
        }
    }

    fn notes(&self) -> &[String] {
        &self.notes
    }

    fn root(&self) -> NodeId {
        ROOT
    }

    fn stat(&self, node: NodeId) -> Result<Stat, Trouble> {
        if node == ROOT {
            return Ok(Stat { kind: Kind::Folder, owner: None, size: 0, modified: None, links: 1 });
        }
        let entry = self.entry(node)?;
        let kind = if entry.attributes & ATTRIBUTE_FOLDER != 0 { Kind::Folder } else { Kind::File };
        Ok(Stat { kind, owner: None, size: u64::from(entry.size), modified: entry.modified, links: 1 })
    }

    fn list(&self, folder: NodeId) -> Result<Listing, Trouble> {
        let (pieces, trouble) = self.folder(folder)?;
        let mut listing = Listing { entries: Vec::new(), faults: trouble.into_iter().collect() };
        let mut long = Long::default();
        for (place, bytes) in pieces {
            for (index, bytes) in bytes.chunks_exact(ENTRY_BYTES).enumerate() {
                let Some(entry) = Short::parse(bytes) else { continue };
                match entry.name[0] {
                    0 => return Ok(listing),
                    DELETED => long = Long::default(),
                    _ if entry.attributes & 0x3f == ATTRIBUTE_LONG_NAME => long.add(bytes),
                    _ if entry.attributes & ATTRIBUTE_VOLUME != 0 => long = Long::default(),
                    _ => {
                        let name = long.take(&entry).unwrap_or_else(|| entry.text());
                        if name != b"." && name != b".." {
                            let node = place + (index * ENTRY_BYTES) as u64;
                            listing.entries.push(Entry { name, node });
                        }
                    }
                }
            }
        }
        Ok(listing)
    }

    fn link_target(&self, _node: NodeId) -> Result<Vec<u8>, Trouble> {
        Err(Trouble::damaged("a FAT has no symbolic links"))
    }

    fn attributes(&self, _node: NodeId) -> (Vec<Attribute>, Option<Trouble>) {
        (Vec::new(), None)
    }

    fn runs(
        &self,
        node: NodeId,
        each: &mut dyn FnMut(Run) -> Result<(), Trouble>,
    ) -> Result<Vec<Trouble>, Trouble> {
        let entry = self.entry(node)?;
        let size = u64::from(entry.size);
        if size == 0 {
            return Ok(Vec::new());
        }
        let mut covered = 0;
        let mut pending: Option<(u64, u64, u64)> = None;
        let mut give = |(at, len, place)| each(Run { at, len, place: Place::Volume(place) });
        let ended = self.chain(entry.cluster, &mut |index, place| {
            let at = index * self.cluster_bytes;
            let len = self.cluster_bytes.min(size - at);
            covered = at + len;
            match &mut pending {
                Some((_, before, start)) if *start + *before == place => *before += len,
                _ => {
                    if let Some(run) = pending.replace((at, len, place)) {
                        give(run)?;
                    }
                }
            }
            Ok(covered < size)
        });
        if let Some(run) = pending {
            give(run)?;
        }
        match ended {
            Err(trouble) => Ok(vec![trouble]),
            Ok(()) if covered < size => Ok(vec![Trouble::damaged(format_args!(
                "it has {size} bytes, but only {covered} of them are there"
            ))]),
            Ok(()) => Ok(Vec::new()),
        }
    }

    fn read(&self, place: u64, buf: &mut [u8]) -> Result<(), Trouble> {
        self.volume.read(place, buf)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_counted_from_1970() {
        // 2026-07-01 12:34:56
        let date = (46 << 9) | (7 << 5) | 1;
        let clock = (12 << 11) | (34 << 5) | 28;
        assert_eq!(time(date, clock), Some(FileTime { seconds: 1_782_909_296, nanos: 0 }));
        assert_eq!(time(0x21, 0), Some(FileTime { seconds: 315_532_800, nanos: 0 }), "1980-01-01");
        assert_eq!(time(0, 0), None);
    }

    #[test]
    fn short_names() {
        let mut entry = [0; 32];
        entry[..11].copy_from_slice(b"README  TXT");
        assert_eq!(Short::parse(&entry).unwrap().text(), b"README.TXT");
        entry[12] = SMALL_NAME | SMALL_EXTENSION;
        assert_eq!(Short::parse(&entry).unwrap().text(), b"readme.txt");
        entry[..11].copy_from_slice(b"A          ");
        entry[12] = 0;
        assert_eq!(Short::parse(&entry).unwrap().text(), b"A");
    }

    #[test]
    fn long_names_belong_to_their_entry() {
        let mut short = [0; 32];
        short[..11].copy_from_slice(b"LONGNA~1   ");
        let short = Short::parse(&short).unwrap();
        let piece = |number: u8, text: &str| {
            let mut bytes = [0xff; 32];
            bytes[0] = number;
            bytes[11] = ATTRIBUTE_LONG_NAME;
            bytes[13] = short.checksum();
            let places = (1..11).step_by(2).chain((14..26).step_by(2)).chain([28, 30]);
            for (at, unit) in places.zip(text.encode_utf16().chain([0])) {
                bytes[at..at + 2].copy_from_slice(&unit.to_le_bytes());
            }
            bytes
        };
        let mut long = Long::default();
        long.add(&piece(LAST_LONG | 2, "er"));
        long.add(&piece(1, "a name of lon"));
        assert_eq!(long.take(&short).unwrap(), b"a name of loner");
        for wrong in [piece(2, "x"), piece(0, "x"), piece(LAST_LONG | 21, "x")] {
            long.add(&piece(LAST_LONG | 2, "er"));
            long.add(&wrong);
            assert_eq!(long.take(&short).filter(|name| name != b"x"), None);
        }
        long.add(&piece(LAST_LONG | 2, "er"));
        assert_eq!(long.take(&short), None, "not whole");
    }
}
