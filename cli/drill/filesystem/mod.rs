//! What a volume holds, and what its own header says of its state: read, never written.
//!
//! | module | what it knows |
//! |---|---|
//! | [`ext`] | ext2, ext3 and ext4: superblock, its checksum, the journal's state |
//! | [`fat`] | FAT12, FAT16 and FAT32: boot sector, first entries of the table |
//!
//! A header that is sound does not prove the files behind it; `fsck` goes further where there is one. Partitions are
//! not looked into.

mod ext;
mod fat;

use std::io;

/// A volume to look at, at any offset within its size.
pub(crate) trait Source {
    /// Its size in bytes.
    fn size(&self) -> u64;

    /// Fills `buf` from `offset`.
    ///
    /// # Errors
    /// Of the volume.
    fn read(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<()>;
}

/// Which program could look further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    /// ext2, ext3, ext4.
    Ext,
    /// FAT12, FAT16, FAT32.
    Fat,
    /// None that is known here.
    Other,
}

/// What was found at the beginning of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// What it is.
    pub(crate) family: Family,
    /// What it says, in words.
    pub(crate) found: String,
    /// What is wrong with it; nothing, as far as is known.
    pub(crate) wrong: Vec<String>,
}

/// How much of a volume's beginning is looked at for something known.
const LOOKED_AT: usize = 128 << 10;

/// Names of what is recognised and not checked, with the place and the bytes that tell.
const MAGICS: [(&str, usize, &[u8]); 8] = [
    ("an XFS filesystem", 0, b"XFSB"),
    ("a Btrfs filesystem", 0x1_0040, b"_BHRfS_M"),
    ("an NTFS filesystem", 3, b"NTFS    "),
    ("an exFAT filesystem", 3, b"EXFAT   "),
    ("a LUKS volume", 0, b"LUKS\xba\xbe"),
    ("an LVM physical volume", 0x218, b"LVM2 001"),
    ("swap space", 0xff6, b"SWAPSPACE2"),
    ("a partition table (GPT)", 0x200, b"EFI PART"),
];

/// Looks at a volume's beginning.
///
/// # Errors
/// Of the volume.
pub(crate) fn look(source: &mut dyn Source) -> io::Result<Header> {
    let mut start = vec![0; source.size().min(LOOKED_AT as u64) as usize];
    source.read(0, &mut start)?;
    if let Some(header) = ext::look(&start, source)? {
        return Ok(header);
    }
    let other = |found: String| Header { family: Family::Other, found, wrong: Vec::new() };
    if let Some((name, ..)) =
        MAGICS.iter().find(|(_, at, bytes)| start.get(*at..*at + bytes.len()) == Some(*bytes))
    {
        return Ok(other(format!("{name}: not looked into")));
    }
    if let Some(header) = fat::look(&start, source)? {
        return Ok(header);
    }
    if start.get(510..512) == Some(&[0x55, 0xaa]) {
        return Ok(other("a boot record, perhaps a partition table (MBR): not looked into".to_owned()));
    }
    Ok(other(match start.iter().all(|&byte| byte == 0) {
        true => "zeros at its beginning".to_owned(),
        false => "no filesystem that is known here".to_owned(),
    }))
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Source for Vec<u8> {
        fn size(&self) -> u64 {
            self.len() as u64
        }

        fn read(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
            let from = offset as usize;
            let bytes = self.get(from..from + buf.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
            buf.copy_from_slice(bytes);
            Ok(())
        }
    }

    fn found(mut volume: Vec<u8>) -> String {
        look(&mut volume).unwrap().found
    }

    #[test]
    fn what_is_not_a_filesystem_is_named() {
        assert_eq!(found(vec![0; 512]), "zeros at its beginning");
        assert_eq!(found(vec![7; 1 << 20]), "no filesystem that is known here");
        let mut volume = vec![0; 1 << 20];
        volume[0x200..0x208].copy_from_slice(b"EFI PART");
        assert_eq!(found(volume), "a partition table (GPT): not looked into");
        let mut volume = vec![0; 1 << 20];
        volume[510..512].copy_from_slice(&[0x55, 0xaa]);
        assert!(found(volume).contains("MBR"));
    }

    /// Bytes of all kinds where a header is expected: none of them may panic, or be read beyond the volume.
    #[test]
    fn nothing_is_believed_unchecked() {
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        for round in 0..4_000 {
            let mut volume = vec![0; 8 << 10];
            for byte in &mut volume {
                seed ^= seed << 13;
                seed ^= seed >> 7;
                seed ^= seed << 17;
                *byte = if seed.is_multiple_of(3) { (seed >> 32) as u8 } else { 0 };
            }
            if round % 2 == 0 {
                volume[1024 + 0x38..1024 + 0x3a].copy_from_slice(&[0x53, 0xef]);
            } else {
                volume[..3].copy_from_slice(&[0xeb, 0x3c, 0x90]);
                volume[11..13].copy_from_slice(&[0, 2]);
                volume[13] = 1 << (seed % 8);
                volume[510..512].copy_from_slice(&[0x55, 0xaa]);
            }
            look(&mut volume).expect("an answer, whatever it is");
        }
    }
}
