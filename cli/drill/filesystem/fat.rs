//! The boot sector of FAT12, FAT16 and FAT32, and the first entries of the table. Layout: Microsoft's "FAT: General
//! Overview of On-Disk Format", and the flags of a clean shutdown in the table's second entry.

use super::{Family, Header, Source, u16_at, u32_at};
use std::io;

/// Looks at the boot sector; `None` if it is none of a FAT filesystem.
pub(super) fn look(start: &[u8], source: &mut dyn Source) -> io::Result<Option<Header>> {
    let Some(boot) = start.get(..512) else { return Ok(None) };
    let sector_bytes = u64::from(u16_at(boot, 11));
    let cluster_sectors = boot[13];
    let (reserved, tables, media) = (u64::from(u16_at(boot, 14)), u64::from(boot[16]), boot[21]);
    let is_fat = matches!(boot[0], 0xeb | 0xe9)
        && boot[510..] == [0x55, 0xaa]
        && matches!(sector_bytes, 512 | 1024 | 2048 | 4096)
        && cluster_sectors.is_power_of_two()
        && reserved > 0
        && (1..=2).contains(&tables)
        && (media == 0xf0 || media >= 0xf8);
    if !is_fat {
        return Ok(None);
    }
    let first_of = |short: u64, long: u32| if short == 0 { u64::from(long) } else { short };
    let sectors = first_of(u64::from(u16_at(boot, 19)), u32_at(boot, 32));
    let table_sectors = first_of(u64::from(u16_at(boot, 22)), u32_at(boot, 36));
    let root_sectors = (u64::from(u16_at(boot, 17)) * 32).div_ceil(sector_bytes);
    let data = sectors.saturating_sub(reserved + tables * table_sectors + root_sectors);
    let clusters = data / u64::from(cluster_sectors);
    let (name, entry_bits) = match clusters {
        0..4085 => ("FAT12", 12),
        4085..65525 => ("FAT16", 16),
        _ => ("FAT32", 32),
    };
    let mut wrong = Vec::new();
    if sectors == 0 || sectors * sector_bytes > source.size() {
        wrong.push(format!(
            "it says that it has {sectors} sectors of {sector_bytes} bytes, and the volume has {} bytes",
            source.size()
        ));
    }
    if clusters == 0 || table_sectors * sector_bytes * 8 < (clusters + 2) * entry_bits {
        wrong.push(format!("a table of {table_sectors} sectors cannot hold {clusters} clusters"));
    }
    let mut said =
        vec![format!("{clusters} clusters of {} bytes", u64::from(cluster_sectors) * sector_bytes)];
    if wrong.is_empty() {
        let mut entries = [0; 8];
        source.read(reserved * sector_bytes, &mut entries)?;
        if entries[0] != media {
            wrong.push(
                "the table does not begin with the kind of medium that the boot sector names".to_owned(),
            );
        }
        let clean = match entry_bits {
            16 => Some(u16_at(&entries, 2) & 0x8000 != 0),
            32 => Some(u32_at(&entries, 4) & 0x0800_0000 != 0),
            _ => None,
        };
        said.push(
            match clean {
                Some(true) => "unmounted cleanly, as its table says",
                Some(false) => "in use at that moment: only a full check tells more",
                None => "it does not say whether it was in use",
            }
            .to_owned(),
        );
    }
    if entry_bits == 32 && wrong.is_empty() {
        let info = u64::from(u16_at(boot, 48));
        let mut sector = [0; 512];
        if (1..reserved).contains(&info) {
            source.read(info * sector_bytes, &mut sector)?;
            if sector[..4] != *b"RRaA" || sector[484..488] != *b"rrAa" {
                wrong.push("the sector with the count of free clusters is none".to_owned());
            }
        }
        let copy = u64::from(u16_at(boot, 50));
        if (1..reserved).contains(&copy) {
            source.read(copy * sector_bytes, &mut sector)?;
            // Behind these lie flags that are changed in the first alone.
            if sector[..64] != boot[..64] {
                wrong.push("the boot sector and its copy differ".to_owned());
            }
        }
    }
    Ok(Some(Header { family: Family::Fat, found: format!("{name}, {}", said.join(", ")), wrong }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    fn formatted(bytes: usize, kind: fatfs::FatType) -> Vec<u8> {
        let mut volume = Cursor::new(vec![0; bytes]);
        fatfs::format_volume(&mut volume, fatfs::FormatVolumeOptions::new().fat_type(kind)).unwrap();
        volume.into_inner()
    }

    fn looked(mut volume: Vec<u8>) -> Header {
        let header = super::super::look(&mut volume).unwrap();
        assert_eq!(header.family, Family::Fat, "{header:?}");
        header
    }

    #[test]
    fn each_size_is_known_and_its_damage_is_said() {
        for (bytes, kind, name) in [
            (1 << 20, fatfs::FatType::Fat12, "FAT12"),
            (16 << 20, fatfs::FatType::Fat16, "FAT16"),
            (64 << 20, fatfs::FatType::Fat32, "FAT32"),
        ] {
            let volume = formatted(bytes, kind);
            let header = looked(volume.clone());
            assert!(header.found.starts_with(name) && header.wrong.is_empty(), "{header:?}");
            let short = volume[..bytes / 2].to_vec();
            assert!(looked(short).wrong[0].contains("and the volume has"));
            let mut damaged = volume.clone();
            damaged[usize::from(u16_at(&volume, 14)) * 512] = 0;
            assert!(looked(damaged).wrong[0].contains("kind of medium"));
        }
        let mut volume = formatted(64 << 20, fatfs::FatType::Fat32);
        volume[6 * 512 + 20] ^= 1;
        assert_eq!(looked(volume).wrong, ["the boot sector and its copy differ"]);
    }
}
