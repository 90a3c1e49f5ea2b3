//! Partition tables: MBR, with logical partitions, and GPT.
//!
//! Invariants: a partition lies in the volume; at most [`MAX`] are read; a chain of logical partitions leads forward only.
//! A GPT counts with the right checksum; where the first copy has a wrong one, the second is taken.
//!
//! Layout: the UEFI specification 2.10, chapter 5.

use super::source::{Raw, Source, Trouble, Window, check_range};

/// What is listed at the most.
const MAX: usize = 256;

/// Sizes of sectors that a table may count in.
const SECTORS: [u64; 2] = [512, 4096];

/// An entry is of 128 bytes, or twice that, and so on; longer ones are not used.
const MAX_ENTRY_BYTES: u64 = 4096;

const MBR_TABLE: usize = 446;
const MBR_ENTRY_BYTES: usize = 16;
/// In an MBR: what follows is a GPT.
const PROTECTIVE: u8 = 0xee;
const EXTENDED: [u8; 3] = [0x05, 0x0f, 0x85];

/// A partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Partition {
    /// As the system numbers it: logical ones from 5.
    pub(super) number: u32,
    /// First byte.
    pub(super) start: u64,
    /// Bytes.
    pub(super) len: u64,
    /// The type: two digits, or a GUID.
    pub(super) kind: String,
    /// The name, of a GPT.
    pub(super) name: Option<String>,
}

/// What a volume is divided into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Table {
    /// `GPT` or `MBR`.
    pub(super) kind: &'static str,
    /// In the order of the table.
    pub(super) partitions: Vec<Partition>,
    /// What is wrong with it.
    pub(super) notes: Vec<String>,
}

/// Reads the table. None if there is none.
pub(super) fn read(volume: &Window) -> Result<Option<Table>, Trouble> {
    if volume.len() < 2 * SECTORS[0] {
        return Ok(None);
    }
    for sector in SECTORS.into_iter().filter(|sector| volume.len() >= 2 * sector) {
        if let Some(table) = gpt(volume, sector)? {
            return Ok(Some(table));
        }
    }
    mbr(volume)
}

/// The first copy of a GPT, or the one at the end.
fn gpt(volume: &Window, sector: u64) -> Result<Option<Table>, Trouble> {
    let (first, last) = (sector, (volume.len() / sector - 1) * sector);
    let signature = |at| volume.read_vec(at, 8).is_ok_and(|found| found == b"EFI PART");
    let is_one = signature(first) || signature(last) && is_protective(volume)?;
    if !is_one {
        return Ok(None);
    }
    let mut notes = Vec::new();
    for at in [first, last] {
        match gpt_copy(volume, sector, at) {
            Ok(partitions) => return Ok(Some(Table { kind: "GPT", partitions, notes })),
            Err(trouble @ Trouble::Damaged(_)) => {
                let which = if at == first { "first" } else { "second" };
                notes.push(format!("the {which} copy of the partition table cannot be used: {trouble}"));
            }
            Err(other) => return Err(other),
        }
    }
    Err(Trouble::damaged(notes.join("; ")))
}

fn is_protective(volume: &Window) -> Result<bool, Trouble> {
    let bytes = volume.read_vec(0, 512)?;
    Ok(entries(&bytes).is_some_and(|entries| entries.iter().any(|entry| entry.kind == PROTECTIVE)))
}

fn gpt_copy(volume: &Window, sector: u64, at: u64) -> Result<Vec<Partition>, Trouble> {
    let bytes = volume.read_vec(at, 512)?;
    let header = gpt_header(&bytes).ok_or_else(|| Trouble::damaged("its header is damaged"))?;
    let (count, entry_bytes) = (u64::from(header.count), u64::from(header.entry_bytes));
    if !entry_bytes.is_power_of_two() || !(128..=MAX_ENTRY_BYTES).contains(&entry_bytes) || count > 1024 {
        return Err(Trouble::damaged(format_args!("{count} entries of {entry_bytes} bytes cannot be")));
    }
    let start =
        header.entries.checked_mul(sector).ok_or_else(|| Trouble::damaged("its entries are nowhere"))?;
    let table = volume.read_vec(start, (count * entry_bytes) as usize)?;
    if crc32fast::hash(&table) != header.entries_checksum {
        return Err(Trouble::damaged("its entries have a wrong checksum"));
    }
    let mut partitions = Vec::new();
    for (number, entry) in (1..).zip(table.chunks_exact(entry_bytes as usize)) {
        let raw = Raw(entry);
        let (Some(kind), Some(first), Some(last)) = (raw.bytes(0, 16), raw.u64(32), raw.u64(40)) else {
            break;
        };
        if kind.iter().all(|byte| *byte == 0) || partitions.len() >= MAX {
            continue;
        }
        let name = raw.bytes(56, 72).unwrap_or_default().chunks_exact(2);
        let name = name.map(|unit| u16::from_le_bytes([unit[0], unit[1]])).take_while(|unit| *unit != 0);
        let name = String::from_utf16_lossy(&name.collect::<Vec<_>>());
        let sectors = last.checked_sub(first).and_then(|len| len.checked_add(1));
        let place = sectors.and_then(|len| Some((first.checked_mul(sector)?, len.checked_mul(sector)?)));
        let Some((start, len)) = place else {
            return Err(Trouble::damaged(format_args!("partition {number} ends before it begins")));
        };
        let name = (!name.is_empty()).then_some(name);
        partitions.push(Partition { number, start, len, kind: guid(kind), name });
    }
    Ok(partitions)
}

struct GptHeader {
    entries: u64,
    count: u32,
    entry_bytes: u32,
    entries_checksum: u32,
}

/// None if the signature or the checksum is wrong.
fn gpt_header(bytes: &[u8]) -> Option<GptHeader> {
    let raw = Raw(bytes);
    let len = raw.u32(12)? as usize;
    if raw.bytes(0, 8)? != b"EFI PART" || !(92..=bytes.len()).contains(&len) {
        return None;
    }
    let mut copy = bytes[..len].to_vec();
    copy[16..20].fill(0);
    (crc32fast::hash(&copy) == raw.u32(16)?).then_some(())?;
    Some(GptHeader {
        entries: raw.u64(72)?,
        count: raw.u32(80)?,
        entry_bytes: raw.u32(84)?,
        entries_checksum: raw.u32(88)?,
    })
}

/// The first three parts are numbers, the rest are bytes.
fn guid(bytes: &[u8]) -> String {
    let raw = Raw(bytes);
    let (first, second, third) = (raw.u32(0).unwrap_or(0), raw.u16(4).unwrap_or(0), raw.u16(6).unwrap_or(0));
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02X}")).collect::<String>();
    let (fourth, fifth) = (raw.bytes(8, 2).unwrap_or_default(), raw.bytes(10, 6).unwrap_or_default());
    format!("{first:08X}-{second:04X}-{third:04X}-{}-{}", hex(fourth), hex(fifth))
}

#[derive(Clone, Copy, Debug)]
struct MbrEntry {
    kind: u8,
    first: u32,
    sectors: u32,
}

/// The four entries of a sector; none if it cannot be a table.
fn entries(bytes: &[u8]) -> Option<[MbrEntry; 4]> {
    let raw = Raw(bytes);
    (raw.u16(510)? == 0xaa55).then_some(())?;
    let mut found = [MbrEntry { kind: 0, first: 0, sectors: 0 }; 4];
    for (index, entry) in found.iter_mut().enumerate() {
        let at = MBR_TABLE + index * MBR_ENTRY_BYTES;
        // Active or not; anything else is code or text of a boot sector that is no table.
        (raw.u8(at)? & 0x7f == 0).then_some(())?;
        *entry = MbrEntry { kind: raw.u8(at + 4)?, first: raw.u32(at + 8)?, sectors: raw.u32(at + 12)? };
    }
    Some(found)
}

fn mbr(volume: &Window) -> Result<Option<Table>, Trouble> {
    let sector = SECTORS[0];
    let Some(primary) = entries(&volume.read_vec(0, 512)?) else { return Ok(None) };
    let in_use = |entry: &MbrEntry| entry.kind != 0 && entry.sectors != 0;
    if !primary.iter().any(in_use) || primary.iter().any(|entry| in_use(entry) && entry.first == 0) {
        return Ok(None);
    }
    let mut table = Table { kind: "MBR", partitions: Vec::new(), notes: Vec::new() };
    let partition = |number, start: u64, entry: &MbrEntry| Partition {
        number,
        start: start * sector,
        len: u64::from(entry.sectors) * sector,
        kind: format!("{:02x}", entry.kind),
        name: None,
    };
    for (number, entry) in (1..).zip(primary).filter(|(_, entry)| in_use(entry)) {
        let first = u64::from(entry.first);
        if !EXTENDED.contains(&entry.kind) {
            table.partitions.push(partition(number, first, &entry));
            continue;
        }
        let mut next = table.partitions.iter().map(|found| found.number + 1).max().unwrap_or(5).max(5);
        let mut at = first;
        while table.partitions.len() < MAX {
            let read = check_range(at * sector, sector, volume.len());
            let found = match read.and_then(|()| volume.read_vec(at * sector, 512)) {
                Ok(bytes) => entries(&bytes),
                Err(trouble) if trouble.is_lost() => return Err(trouble),
                Err(_) => None,
            };
            let Some([logical, behind, ..]) = found else {
                table
                    .notes
                    .push(format!("the logical partitions from {next} on are lost: sector {at} is no table"));
                break;
            };
            if in_use(&logical) {
                table.partitions.push(partition(next, at + u64::from(logical.first), &logical));
                next += 1;
            }
            // Counted from the beginning of the extended partition.
            let link = first + u64::from(behind.first);
            if !in_use(&behind) || !EXTENDED.contains(&behind.kind) {
                break;
            }
            if link <= at {
                table
                    .notes
                    .push(format!("the logical partitions from {next} on are lost: their chain leads back"));
                break;
            }
            at = link;
        }
    }
    Ok(Some(table))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::restore::source::tests::Memory;
    use std::rc::Rc;

    fn window(disk: Vec<u8>) -> Window {
        Window::whole(Rc::new(Memory(disk)))
    }

    fn put_entry(disk: &mut [u8], sector: usize, index: usize, kind: u8, first: u32, sectors: u32) {
        let at = sector * 512 + MBR_TABLE + index * MBR_ENTRY_BYTES;
        disk[at + 4] = kind;
        disk[at + 8..at + 12].copy_from_slice(&first.to_le_bytes());
        disk[at + 12..at + 16].copy_from_slice(&sectors.to_le_bytes());
        disk[sector * 512 + 510..sector * 512 + 512].copy_from_slice(&[0x55, 0xaa]);
    }

    fn places(table: &Table) -> Vec<(u32, u64, u64)> {
        table.partitions.iter().map(|found| (found.number, found.start / 512, found.len / 512)).collect()
    }

    #[test]
    fn an_mbr_with_logical_partitions() {
        let mut disk = vec![0; 1 << 20];
        put_entry(&mut disk, 0, 0, 0x83, 64, 100);
        put_entry(&mut disk, 0, 1, 0x05, 200, 1000);
        put_entry(&mut disk, 200, 0, 0x83, 10, 50);
        put_entry(&mut disk, 200, 1, 0x05, 300, 200);
        put_entry(&mut disk, 500, 0, 0x0b, 10, 60);
        let table = read(&window(disk.clone())).unwrap().unwrap();
        assert_eq!(places(&table), [(1, 64, 100), (5, 210, 50), (6, 510, 60)]);
        assert_eq!((table.kind, table.notes.len()), ("MBR", 0));
        // A chain that leads back ends, and so does one that leads to something else.
        put_entry(&mut disk, 500, 1, 0x05, 0, 200);
        let table = read(&window(disk.clone())).unwrap().unwrap();
        assert_eq!((table.partitions.len(), table.notes.len()), (3, 1));
        disk[500 * 512 + 510] = 0;
        let table = read(&window(disk)).unwrap().unwrap();
        assert_eq!((table.partitions.len(), table.notes.len()), (2, 1));
    }

    #[test]
    fn what_is_no_table_is_none() {
        assert_eq!(read(&window(vec![0; 1 << 20])).unwrap(), None);
        assert_eq!(read(&window(vec![0; 100])).unwrap(), None);
        let mut boot = vec![0xcc; 1 << 20];
        boot[510..512].copy_from_slice(&[0x55, 0xaa]);
        assert_eq!(read(&window(boot)).unwrap(), None);
    }

    fn gpt_disk() -> Vec<u8> {
        let sectors = 2048;
        let mut disk = vec![0; sectors * 512];
        put_entry(&mut disk, 0, 0, PROTECTIVE, 1, sectors as u32 - 1);
        let mut table = vec![0; 128 * 128];
        for (index, (first, last)) in [(64_u64, 163_u64), (200, 299)].into_iter().enumerate() {
            let entry = &mut table[index * 128..][..128];
            entry[..16].copy_from_slice(&[
                0xaf, 0x3d, 0xc6, 0x0f, 0x83, 0x84, 0x72, 0x47, 0x8e, 0x79, 0x3d, 0x69, 0xd8, 0x47, 0x7d,
                0xe4,
            ]);
            entry[32..40].copy_from_slice(&first.to_le_bytes());
            entry[40..48].copy_from_slice(&last.to_le_bytes());
            entry[56..58].copy_from_slice(&[b'a' + index as u8, 0]);
        }
        for (header_at, table_at) in [(1_usize, 2_usize), (sectors - 1, sectors - 33)] {
            disk[table_at * 512..][..table.len()].copy_from_slice(&table);
            let header = &mut disk[header_at * 512..][..512];
            header[..8].copy_from_slice(b"EFI PART");
            header[12..16].copy_from_slice(&92_u32.to_le_bytes());
            header[72..80].copy_from_slice(&(table_at as u64).to_le_bytes());
            header[80..84].copy_from_slice(&128_u32.to_le_bytes());
            header[84..88].copy_from_slice(&128_u32.to_le_bytes());
            header[88..92].copy_from_slice(&crc32fast::hash(&table).to_le_bytes());
            let checksum = crc32fast::hash(&header[..92]);
            header[16..20].copy_from_slice(&checksum.to_le_bytes());
        }
        disk
    }

    #[test]
    fn a_gpt_and_its_second_copy() {
        let table = read(&window(gpt_disk())).unwrap().unwrap();
        assert_eq!(places(&table), [(1, 64, 100), (2, 200, 100)]);
        assert_eq!(table.partitions[0].kind, "0FC63DAF-8483-4772-8E79-3D69D8477DE4");
        assert_eq!(table.partitions[1].name.as_deref(), Some("b"));
        for broken in [512, 512 + 80, 1024, 1024 + 32] {
            let mut disk = gpt_disk();
            disk[broken] ^= 1;
            let table = read(&window(disk)).unwrap().unwrap();
            assert_eq!((places(&table).len(), table.notes.len()), (2, 1), "{broken}");
        }
        let mut disk = gpt_disk();
        disk[1024] ^= 1;
        let second = disk.len() - 33 * 512;
        disk[second] ^= 1;
        assert!(matches!(read(&window(disk)), Err(Trouble::Damaged(_))));
    }
}
