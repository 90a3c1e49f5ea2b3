//! What the demo writes: files that can be made again from their names, pages, and the journal that names files.
//!
//! A journal's slot is a line of text for the batch and one for each file, padded with zeros to [`SLOT_BYTES`]:
//!
//! ```text
//! batch 17
//! LOAD/BATCH017/NOTES.TXT 1234 89abcdef
//! end
//! ```

use bytes::Bytes;

/// Bytes of a journal slot and of a page.
pub(crate) const SLOT_BYTES: usize = 4096;

/// The longest journal, in slots; pages begin behind it.
pub(crate) const SLOTS: usize = 1024;

/// Bytes that pages are cut from.
const POOL_BYTES: usize = 8 << 20;

/// A generator of pseudo-random numbers (xorshift64*): the same on every run, so that two runs can be compared.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    /// Begins at a seed.
    pub(crate) fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next number.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `limit`.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit.max(1) as u64).expect("below a usize")
    }
}

/// The pages: slices of one pool, so that a hundred thousand of them take no more memory.
#[derive(Clone, Debug)]
pub(crate) struct Pool(Bytes);

impl Pool {
    /// Fills the pool.
    pub(crate) fn new() -> Pool {
        let mut random = Random::new(1);
        let words = (0..POOL_BYTES / 8).flat_map(|_| random.next().to_le_bytes());
        Pool(words.collect::<Vec<u8>>().into())
    }

    /// A page.
    pub(crate) fn page(&self, random: &mut Random) -> Bytes {
        let start = random.below(self.0.len() - SLOT_BYTES);
        self.0.slice(start..start + SLOT_BYTES)
    }
}

/// A file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct File {
    /// Its path, with `/` between parts.
    pub(crate) path: String,
    /// Its length.
    pub(crate) bytes: usize,
}

impl File {
    /// What stands in it: lines of text in a `.TXT`, noise in anything else.
    pub(crate) fn content(&self) -> Vec<u8> {
        let mut random = Random::new(u64::from(crc32fast::hash(self.path.as_bytes())));
        let mut content = Vec::with_capacity(self.bytes + 64);
        let mut line = 0;
        while content.len() < self.bytes {
            if self.path.ends_with(".TXT") {
                line += 1;
                let word = random.next();
                content.extend_from_slice(format!("{} line {line}: {word:016x}\r\n", self.path).as_bytes());
            } else {
                content.extend_from_slice(&random.next().to_le_bytes());
            }
        }
        content.truncate(self.bytes);
        content
    }
}

/// Files that were written together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Batch {
    /// Its number; 0 is what was there before the load began.
    pub(crate) number: usize,
    /// The files.
    pub(crate) files: Vec<File>,
}

impl Batch {
    /// The files that stand there before the load begins.
    pub(crate) fn first() -> Batch {
        let mut files = vec![
            File { path: "README.TXT".to_owned(), bytes: 1_500 },
            File { path: "EMPTY.TXT".to_owned(), bytes: 0 },
        ];
        let mut random = Random::new(2);
        for n in 1..=20 {
            files.push(File { path: format!("DOCS/CHAPT{n:03}.TXT"), bytes: 1 + random.below(40_000) });
        }
        for n in 1..=8 {
            files.push(File { path: format!("DATA/TABLE{n:03}.DAT"), bytes: 500_000 + random.below(50_000) });
        }
        Batch { number: 0, files }
    }

    /// One of the batches that are written under load.
    pub(crate) fn numbered(number: usize) -> Batch {
        let mut random = Random::new(1_000 + number as u64);
        let file = |(name, most): (&str, usize)| File {
            path: format!("LOAD/BATCH{number:03}/{name}"),
            bytes: random.below(most),
        };
        let files = [("ORDERS.DAT", 24 << 10), ("NOTES.TXT", 3_000), ("INDEX.DAT", 8 << 10)].map(file);
        Batch { number, files: files.into() }
    }

    /// The journal's slot.
    pub(crate) fn slot(&self) -> Bytes {
        let mut text = format!("batch {}\n", self.number);
        for file in &self.files {
            let checksum = crc32fast::hash(&file.content());
            text += &format!("{} {} {checksum:08x}\n", file.path, file.bytes);
        }
        text += "end\n";
        let mut slot = text.into_bytes();
        assert!(slot.len() <= SLOT_BYTES, "{} bytes in a slot", slot.len());
        slot.resize(SLOT_BYTES, 0);
        slot.into()
    }
}

/// A file as a journal names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Named {
    /// Its path.
    pub(crate) path: String,
    /// Its length.
    pub(crate) bytes: usize,
    /// CRC-32 of its content.
    pub(crate) checksum: u32,
}

/// Reads a journal from the start of an image: the files of each batch. Ends at the first empty slot.
pub(crate) fn read_journal(image: &[u8]) -> Result<Vec<Vec<Named>>, String> {
    let mut batches = Vec::new();
    for slot in image.chunks_exact(SLOT_BYTES).take(SLOTS).take_while(|slot| slot[0] != 0) {
        let number = batches.len();
        let files = read_slot(slot, number).ok_or_else(|| format!("journal slot {number} is not a batch"))?;
        batches.push(files);
    }
    Ok(batches)
}

fn read_slot(slot: &[u8], number: usize) -> Option<Vec<Named>> {
    let text = slot.split(|byte| *byte == 0).next()?;
    let mut lines = std::str::from_utf8(text).ok()?.lines();
    if lines.next()? != format!("batch {number}") {
        return None;
    }
    let mut files = Vec::new();
    loop {
        let line = lines.next()?;
        if line == "end" {
            return Some(files);
        }
        let mut parts = line.split(' ');
        files.push(Named {
            path: parts.next()?.to_owned(),
            bytes: parts.next()?.parse().ok()?,
            checksum: u32::from_str_radix(parts.next()?, 16).ok()?,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_journal_is_read_back() {
        let batches = [Batch::first(), Batch::numbered(1), Batch::numbered(2)];
        let mut image: Vec<u8> = batches.iter().flat_map(|batch| batch.slot().to_vec()).collect();
        image.resize(image.len() + 3 * SLOT_BYTES, 0);
        let read = read_journal(&image).unwrap();
        assert_eq!(read.len(), 3);
        for (named, batch) in read.iter().zip(&batches) {
            assert_eq!(named.len(), batch.files.len());
            for (named, file) in named.iter().zip(&batch.files) {
                assert_eq!((&named.path, named.bytes), (&file.path, file.bytes));
                assert_eq!(named.checksum, crc32fast::hash(&file.content()));
            }
        }
        // A slot of another batch, or one cut off, is noticed.
        image.copy_within(0..SLOT_BYTES, SLOT_BYTES);
        assert!(read_journal(&image).is_err());
        let mut cut = Batch::first().slot().to_vec();
        cut[100..].fill(0);
        assert!(read_journal(&cut).is_err());
    }

    #[test]
    fn files_are_the_same_every_time_and_differ_from_each_other() {
        let batch = Batch::first();
        assert_eq!(batch, Batch::first());
        for file in &batch.files {
            assert_eq!(file.content().len(), file.bytes);
            assert_eq!(file.content(), file.content());
        }
        assert_ne!(batch.files[2].content()[..100], batch.files[3].content()[..100]);
    }
}
