//! The journal of ext3 and ext4, replayed in memory: a point is what a power cut would leave, so that the newest
//! changes may stand in the journal alone.
//!
//! Invariants:
//! - a transaction counts as a whole or not at all: only with its commit record, and only if all before it count;
//! - a block that is revoked by a transaction is not taken from that one or an earlier one;
//! - the journal may go around its end; reading stops when it has been gone around once;
//! - what is replayed is a map from blocks of the volume to blocks of the journal: nothing is copied.
//!
//! What it does not do: the records of fast commits (a feature that is off by default) and a journal on another device are
//! not replayed, and [`Replay::notes`] says so.
//!
//! Layout and order: the kernel's `Documentation/filesystems/ext4/journal.rst` and its `fs/jbd2/recovery.c`.

use super::crc::{START, crc32c};
use crate::restore::filesystem::{Place, Run};
use crate::restore::source::{Raw, Source, Trouble, Window, check_range};
use std::collections::BTreeMap;

pub(super) const MAGIC: u32 = 0xc03b_3998;
const DESCRIPTOR: u32 = 1;
const COMMIT: u32 = 2;
const SUPERBLOCK_V1: u32 = 3;
const SUPERBLOCK_V2: u32 = 4;
const REVOKE: u32 = 5;

const INCOMPAT_64BIT: u32 = 0x2;
const INCOMPAT_ASYNC_COMMIT: u32 = 0x4;
const INCOMPAT_CSUM_V2: u32 = 0x8;
const INCOMPAT_CSUM_V3: u32 = 0x10;
const INCOMPAT_FAST_COMMIT: u32 = 0x20;
const INCOMPAT_KNOWN: u32 = 0x3f;

/// The content began with the magic number, which was replaced by zeros.
const TAG_ESCAPED: u32 = 1;
const TAG_SAME_UUID: u32 = 2;
const TAG_LAST: u32 = 8;

/// The tag that begins an area of fast commits.
const FAST_HEAD: u16 = 9;

/// What the journal changes.
#[derive(Debug, Default)]
pub(super) struct Replay {
    /// For a block of the volume: where in the volume its content is, and whether its first 4 bytes are to be put back.
    blocks: BTreeMap<u64, (u64, bool)>,
    /// What whoever uses it should know.
    pub(super) notes: Vec<String>,
}

impl Replay {
    /// Of nothing, for a reason.
    pub(super) fn without(note: String) -> Replay {
        Replay { blocks: BTreeMap::new(), notes: vec![note] }
    }
}

/// The journal's superblock and where its blocks are.
struct Log<'a> {
    volume: &'a dyn Source,
    runs: &'a [Run],
    block_size: u64,
    first: u64,
    /// Behind the last one that transactions use.
    end: u64,
    start: u64,
    sequence: u32,
    incompat: u32,
    checksum_seed: Option<u32>,
}

/// A block that a transaction writes.
struct Write {
    block: u64,
    transaction: u32,
    place: u64,
    is_escaped: bool,
}

/// What is in the journal.
struct History {
    /// In order.
    writes: Vec<Write>,
    /// The last transaction that revokes a block.
    revoked: BTreeMap<u64, u32>,
    /// How many there are.
    transactions: u32,
}

/// What came of reading a descriptor.
type Tags = Vec<(u64, u32, u32)>;

/// Reads the journal whose content is `runs`, of a volume with `blocks` blocks.
///
/// # Errors
/// If its superblock makes no sense. Damage behind that ends the replay, and is noted.
pub(super) fn read(
    volume: &dyn Source,
    runs: &[Run],
    block_size: u64,
    blocks: u64,
) -> Result<Replay, Trouble> {
    let mut replay = Replay::default();
    let Some(log) = Log::open(volume, runs, block_size, &mut replay.notes)? else { return Ok(replay) };
    let History { writes, revoked, transactions } = log.scan(&mut replay.notes)?;
    for write in writes {
        if revoked.get(&write.block).is_some_and(|by| *by >= write.transaction) {
            continue;
        }
        if write.block >= blocks {
            replay
                .notes
                .push(format!("the journal has content for block {}, which is not there", write.block));
            continue;
        }
        replay.blocks.insert(write.block, (write.place, write.is_escaped));
    }
    log.look_for_fast_commits(transactions, &mut replay.notes);
    let (blocks, noun) =
        (replay.blocks.len(), if transactions == 1 { "transaction" } else { "transactions" });
    replay.notes.insert(
        0,
        format!(
            "it was in use at this point: {transactions} {noun} ({blocks} blocks) of its journal were replayed, in memory"
        ),
    );
    Ok(replay)
}

impl<'a> Log<'a> {
    /// None if nothing is in it.
    fn open(
        volume: &'a dyn Source,
        runs: &'a [Run],
        block_size: u64,
        notes: &mut Vec<String>,
    ) -> Result<Option<Log<'a>>, Trouble> {
        let damaged = |what: &str| Trouble::damaged(format_args!("its journal is damaged: {what}"));
        let mut log = Log {
            volume,
            runs,
            block_size,
            first: 0,
            end: 0,
            start: 0,
            sequence: 0,
            incompat: 0,
            checksum_seed: None,
        };
        let bytes = log.volume.read_vec(log.place(0).ok_or_else(|| damaged("it is empty"))?, 1024)?;
        let raw = Raw(&bytes);
        let field = |at: usize| raw.u32_be(at).unwrap_or(0);
        let kind = field(4);
        if field(0) != MAGIC || (kind != SUPERBLOCK_V1 && kind != SUPERBLOCK_V2) {
            return Err(damaged("it has no superblock"));
        }
        let (compat, incompat) = if kind == SUPERBLOCK_V2 { (field(0x24), field(0x28)) } else { (0, 0) };
        if incompat & !INCOMPAT_KNOWN != 0 {
            return Err(Trouble::unsupported(format_args!(
                "its journal has features that are not known here ({:#x})",
                incompat & !INCOMPAT_KNOWN
            )));
        }
        let has_checksums = incompat & (INCOMPAT_CSUM_V2 | INCOMPAT_CSUM_V3) != 0;
        if has_checksums {
            let mut copy = bytes.clone();
            copy[0xfc..0x100].fill(0);
            if crc32c(START, &copy) != field(0xfc) {
                return Err(damaged("its superblock has a wrong checksum"));
            }
            log.checksum_seed = Some(crc32c(START, raw.bytes(0x30, 16).unwrap_or_default()));
        } else if compat & 1 != 0 || incompat & INCOMPAT_ASYNC_COMMIT != 0 {
            notes.push("the journal's checksums are of an old kind that is not checked here".to_owned());
        }
        let fast = match incompat & INCOMPAT_FAST_COMMIT {
            0 => 0,
            // Nothing there is a number that is left out.
            _ => {
                if field(0x54) == 0 {
                    256
                } else {
                    u64::from(field(0x54))
                }
            }
        };
        let length = u64::from(field(0x10));
        log.first = u64::from(field(0x14));
        log.end = length.saturating_sub(fast);
        log.start = u64::from(field(0x1c));
        log.sequence = field(0x18);
        log.incompat = incompat;
        if u64::from(field(0xc)) != block_size || log.first == 0 || log.first >= log.end {
            return Err(damaged("its superblock makes no sense"));
        }
        if log.start == 0 {
            return Ok(None);
        }
        if log.start < log.first || log.start >= log.end {
            return Err(damaged("it begins outside itself"));
        }
        Ok(Some(log))
    }

    /// Where in the volume a block of the journal is.
    fn place(&self, block: u64) -> Option<u64> {
        let at = block.checked_mul(self.block_size)?;
        let index = self.runs.partition_point(|run| run.at + run.len <= at);
        let run =
            self.runs.get(index).filter(|run| run.at <= at && at + self.block_size <= run.at + run.len)?;
        match run.place {
            Place::Volume(place) => Some(place + (at - run.at)),
            Place::Inline(_) => None,
        }
    }

    /// The block behind `block`, around the end.
    fn behind(&self, block: u64) -> u64 {
        if block + 1 >= self.end { self.first } else { block + 1 }
    }

    fn block(&self, block: u64) -> Result<(u64, Vec<u8>), Trouble> {
        let place = self.place(block).ok_or_else(|| {
            Trouble::damaged(format_args!("its journal is damaged: block {block} of it is nowhere"))
        })?;
        Ok((place, self.volume.read_vec(place, self.block_size as usize)?))
    }

    /// Reads all transactions that are whole.
    fn scan(&self, notes: &mut Vec<String>) -> Result<History, Trouble> {
        let (mut writes, mut revoked) = (Vec::new(), BTreeMap::new());
        // Of the transaction whose commit has not come yet.
        let (mut open_writes, mut open_revokes) = (Vec::new(), Vec::new());
        let mut transactions = 0_u32;
        let mut at = self.start;
        // Each block at most once.
        let mut left = self.end - self.first;
        while left > 0 {
            let (_, bytes) = self.block(at)?;
            let raw = Raw(&bytes);
            let (magic, kind, sequence) = (raw.u32_be(0), raw.u32_be(4), raw.u32_be(8));
            if magic != Some(MAGIC) || sequence != Some(self.sequence.wrapping_add(transactions)) {
                break;
            }
            at = self.behind(at);
            left -= 1;
            match kind {
                Some(DESCRIPTOR) => {
                    let Some(tags) = self.tags(&bytes) else {
                        notes.push(self.cut(transactions));
                        break;
                    };
                    if tags.len() as u64 > left {
                        break;
                    }
                    for (block, flags, checksum) in tags {
                        let (place, content) = self.block(at)?;
                        at = self.behind(at);
                        left -= 1;
                        if !self.content_is_right(
                            &content,
                            self.sequence.wrapping_add(transactions),
                            checksum,
                        ) {
                            notes.push(format!(
                                "the journal's content for block {block} is damaged, and left out"
                            ));
                            continue;
                        }
                        let is_escaped = flags & TAG_ESCAPED != 0;
                        open_writes.push(Write { block, transaction: transactions, place, is_escaped });
                    }
                }
                Some(REVOKE) => match self.revokes(&bytes) {
                    Some(blocks) => open_revokes.extend(blocks),
                    None => {
                        notes.push(self.cut(transactions));
                        break;
                    }
                },
                Some(COMMIT) => {
                    // One that is not whole would be another one's from before: it is written at once.
                    if !self.commit_is_right(&bytes) {
                        notes.push(self.cut(transactions));
                        break;
                    }
                    writes.append(&mut open_writes);
                    revoked.extend(open_revokes.drain(..).map(|block| (block, transactions)));
                    transactions += 1;
                }
                _ => break,
            }
        }
        Ok(History { writes, revoked, transactions })
    }

    fn cut(&self, transactions: u32) -> String {
        let number = self.sequence.wrapping_add(transactions);
        format!("the journal is damaged in transaction {number}: that one and those behind it are left out")
    }

    /// Whether the last 4 bytes are the checksum of the block.
    fn tail_is_right(&self, bytes: &[u8]) -> bool {
        let Some(seed) = self.checksum_seed else { return true };
        let Some(at) = bytes.len().checked_sub(4) else { return false };
        let mut copy = bytes.to_vec();
        copy[at..].fill(0);
        Raw(bytes).u32_be(at) == Some(crc32c(seed, &copy))
    }

    /// Block, flags and checksum of each tag. None if they make no sense.
    fn tags(&self, bytes: &[u8]) -> Option<Tags> {
        if !self.tail_is_right(bytes) {
            return None;
        }
        let is_v3 = self.incompat & INCOMPAT_CSUM_V3 != 0;
        let is_64bit = self.incompat & INCOMPAT_64BIT != 0;
        let tag_bytes = match (is_v3, is_64bit) {
            (true, _) => 16,
            (false, true) => 12,
            (false, false) => 8,
        } + if self.incompat & INCOMPAT_CSUM_V2 != 0 { 2 } else { 0 };
        let end = bytes.len() - if self.checksum_seed.is_some() { 4 } else { 0 };
        let raw = Raw(bytes);
        let (mut at, mut tags) = (12, Vec::new());
        while at + tag_bytes <= end {
            let low = u64::from(raw.u32_be(at)?);
            let (flags, checksum) = match is_v3 {
                true => (raw.u32_be(at + 4)?, raw.u32_be(at + 12)?),
                false => (u32::from(raw.u16_be(at + 6)?), u32::from(raw.u16_be(at + 4)?)),
            };
            let high = if is_64bit { u64::from(raw.u32_be(at + 8)?) } else { 0 };
            tags.push((low | high << 32, flags, checksum));
            at += tag_bytes + if flags & TAG_SAME_UUID == 0 { 16 } else { 0 };
            if flags & TAG_LAST != 0 {
                break;
            }
        }
        Some(tags)
    }

    fn content_is_right(&self, content: &[u8], sequence: u32, checksum: u32) -> bool {
        let Some(seed) = self.checksum_seed else { return true };
        let found = crc32c(crc32c(seed, &sequence.to_be_bytes()), content);
        match self.incompat & INCOMPAT_CSUM_V3 {
            0 => found & 0xffff == checksum,
            _ => found == checksum,
        }
    }

    fn revokes(&self, bytes: &[u8]) -> Option<Vec<u64>> {
        if !self.tail_is_right(bytes) {
            return None;
        }
        let raw = Raw(bytes);
        let used = raw.u32_be(12)? as usize;
        let number_bytes = if self.incompat & INCOMPAT_64BIT != 0 { 8 } else { 4 };
        let mut blocks = Vec::new();
        let mut at = 16;
        while at + number_bytes <= used {
            blocks.push(match number_bytes {
                8 => u64::from(raw.u32_be(at)?) << 32 | u64::from(raw.u32_be(at + 4)?),
                _ => u64::from(raw.u32_be(at)?),
            });
            at += number_bytes;
        }
        Some(blocks)
    }

    fn commit_is_right(&self, bytes: &[u8]) -> bool {
        let Some(seed) = self.checksum_seed else { return true };
        let Some(kept) = Raw(bytes).u32_be(16) else { return false };
        let mut copy = bytes.to_vec();
        copy[16..20].fill(0);
        crc32c(seed, &copy) == kept
    }

    fn look_for_fast_commits(&self, transactions: u32, notes: &mut Vec<String>) {
        if self.incompat & INCOMPAT_FAST_COMMIT == 0 {
            return;
        }
        // Their area begins a block behind the rest. What is there is of now only if it names the transaction that comes next.
        let Ok((_, bytes)) = self.block(self.end + 1) else { return };
        let raw = Raw(&bytes);
        let next = self.sequence.wrapping_add(transactions);
        if raw.u16(0) == Some(FAST_HEAD) && raw.u32(8) == Some(next) {
            notes.push(
                "its journal has fast commits, which are not replayed here: names and sizes that were changed in the \
                 last seconds before this point are as they were before. The volume as a disk has them: see `restore disk`"
                    .to_owned(),
            );
        }
    }
}

/// A volume as it is after the replay.
pub(super) struct Replayed {
    window: Window,
    block_size: u64,
    replay: Replay,
}

impl Replayed {
    /// With blocks of `block_size` bytes.
    pub(super) fn new(window: Window, block_size: u64, replay: Replay) -> Replayed {
        Replayed { window, block_size, replay }
    }
}

impl Source for Replayed {
    fn len(&self) -> u64 {
        self.window.len()
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), Trouble> {
        let len = buf.len() as u64;
        check_range(offset, len, self.len())?;
        let blocks = offset / self.block_size..(offset + len).div_ceil(self.block_size);
        if self.replay.blocks.range(blocks).next().is_none() {
            return self.window.read(offset, buf);
        }
        let (mut at, mut rest) = (offset, buf);
        while !rest.is_empty() {
            let start = at % self.block_size;
            let (part, behind) = rest.split_at_mut(rest.len().min((self.block_size - start) as usize));
            match self.replay.blocks.get(&(at / self.block_size)) {
                None => self.window.read(at, part)?,
                Some((place, is_escaped)) => {
                    self.window.read(place + start, part)?;
                    if *is_escaped {
                        let magic = MAGIC.to_be_bytes();
                        let here = magic.iter().skip(start as usize).zip(part.iter_mut());
                        here.for_each(|(byte, to)| *to = *byte);
                    }
                }
            }
            at += part.len() as u64;
            rest = behind;
        }
        Ok(())
    }
}
