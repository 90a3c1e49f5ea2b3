//! Writes to a recovery point, against an array of bytes.

mod common;

use common::crash::CrashDisk;
use engine::changes::{Budget, Changes};
use engine::extents::{BLOCK_BYTES, CHUNK_BYTES};
use engine::guest::{Piece, Refusal, Stretch};
use engine::io::OpenMode;
use engine::types::Extent;
use std::sync::Arc;

/// Not a multiple of a block, as a volume need not be.
const SIZE: u64 = 3 * CHUNK_BYTES + 3 * BLOCK_BYTES + 1536;

fn budget(limit_bytes: u64) -> Arc<Budget> {
    Arc::new(Budget::new(limit_bytes, Box::new(|| Ok(u64::MAX))))
}

fn changes(disk: &CrashDisk, name: &str, budget: &Arc<Budget>) -> Changes {
    let file = disk.storage().open(name, OpenMode::Create).expect("made");
    Changes::new(file, budget, SIZE).expect("made")
}

fn below(image: &[u8]) -> impl Fn(Extent) -> Result<Vec<Piece>, Refusal> + '_ {
    |extent: Extent| {
        let bytes = &image[extent.offset as usize..extent.end() as usize];
        // As a point answers: in pieces, some of them holes.
        let (first, rest) = bytes.split_at(bytes.len() / 2);
        Ok([first, rest]
            .into_iter()
            .filter(|part| !part.is_empty())
            .map(|part| match part.iter().all(|&byte| byte == 0) {
                true => Piece::Hole(part.len() as u64),
                false => Piece::Bytes(part.to_vec().into()),
            })
            .collect())
    }
}

fn joined(pieces: Vec<Piece>) -> Vec<u8> {
    pieces.into_iter().fold(Vec::new(), |mut all, piece| {
        match piece {
            Piece::Bytes(bytes) => all.extend_from_slice(&bytes),
            Piece::Hole(len) => all.resize(all.len() + len as usize, 0),
        }
        all
    })
}

/// Writes, trims and zeros at any alignment, against an array; and the accounts against the array's blocks.
#[test]
fn equals_an_array() {
    let disk = CrashDisk::new();
    let image: Vec<u8> = (0..SIZE).map(|at| if at % 30_000 < 9_000 { 0 } else { (at % 251) as u8 }).collect();
    let below = below(&image);
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = |limit: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % limit
    };
    for round in 0..12 {
        let budget = budget(u64::MAX);
        let changes = changes(&disk, &format!("{round}"), &budget);
        let mut model = image.clone();
        for step in 0..60_u8 {
            let align = [1, 512, BLOCK_BYTES][next(3) as usize];
            let offset = next(SIZE) / align * align;
            let longest = if next(8) == 0 { SIZE } else { 5 * BLOCK_BYTES };
            let len = (1 + next(longest)).next_multiple_of(align).min(SIZE - offset);
            let extent = Extent::new(offset, len);
            let range = offset as usize..extent.end() as usize;
            match next(4) {
                0 => {
                    changes.zero(extent, false, &below).expect("done");
                    model[range].fill(0);
                }
                1 => {
                    changes.zero(extent, true, &below).expect("done");
                    model[range].fill(0);
                }
                _ => {
                    model[range.clone()].fill(step | 1);
                    changes.write(offset, &model[range], &below).expect("done");
                }
            }
            let (offset, len) = (next(SIZE), 1 + next(9 * BLOCK_BYTES));
            let extent = Extent::new(offset, len.min(SIZE - offset));
            let seen = joined(changes.read(extent, &below).expect("done"));
            assert!(seen == model[offset as usize..extent.end() as usize], "round {round}, step {step}");
            let told = changes.status(extent, |part| Ok(vec![Stretch { len: part.len, hole: false }]));
            let mut at = offset as usize;
            for stretch in told.expect("done") {
                let end = at + stretch.len as usize;
                assert!(!stretch.hole || model[at..end].iter().all(|&byte| byte == 0));
                at = end;
            }
            assert_eq!(at as u64, extent.end());
            assert_eq!(budget.used_bytes(), changes.used_bytes());
        }
        assert!(joined(changes.read(Extent::new(0, SIZE), &below).expect("done")) == model, "round {round}");
        drop(changes);
        assert_eq!(budget.used_bytes(), 0);
    }
}

/// Parts of the same blocks, from several connections at once: none loses what another has written.
#[test]
fn neighbours_in_a_block_do_not_lose_each_others_writes() {
    let disk = CrashDisk::new();
    let image = vec![9; SIZE as usize];
    let budget = budget(u64::MAX);
    let changes = changes(&disk, "1", &budget);
    let sectors = 2_048;
    std::thread::scope(|scope| {
        for writer in 0..4_u8 {
            let (changes, image) = (&changes, &image);
            scope.spawn(move || {
                for sector in (u64::from(writer)..sectors).step_by(4).filter(|sector| sector % 5 != 0) {
                    changes.write(sector * 512, &[writer; 512], &below(image)).expect("done");
                }
            });
        }
    });
    let seen = joined(changes.read(Extent::new(0, sectors * 512), &below(&image)).expect("done"));
    for (sector, bytes) in seen.chunks(512).enumerate() {
        let expected = if sector % 5 == 0 { 9 } else { (sector % 4) as u8 };
        assert!(bytes.iter().all(|&byte| byte == expected), "sector {sector}");
    }
}

#[test]
fn a_full_scratch_refuses_and_a_trim_makes_room() {
    let disk = CrashDisk::new();
    let image = vec![7; SIZE as usize];
    let below = below(&image);
    let budget = budget(2 * BLOCK_BYTES);
    let one = changes(&disk, "1", &budget);
    let other = changes(&disk, "2", &budget);
    one.write(100, &[1; 10], &below).expect("done");
    other.write(BLOCK_BYTES - 1, &[1], &below).expect("done");
    assert_eq!(one.write(BLOCK_BYTES, &[2], &below), Err(Refusal::NoSpace), "of all volumes together");
    let past = Extent::new(BLOCK_BYTES, BLOCK_BYTES);
    assert_eq!(one.zero(past, true, &below), Err(Refusal::NoSpace), "space is asked for");
    one.zero(past, false, &below).expect("done");
    one.write(0, &[3; BLOCK_BYTES as usize], &below).expect("done");
    other.zero(Extent::new(0, BLOCK_BYTES), false, &below).expect("done");
    one.write(BLOCK_BYTES + 5, &[2], &below).expect("done");
    let block = joined(one.read(past, &below).expect("done"));
    assert!(block.iter().enumerate().all(|(at, &byte)| byte == if at == 5 { 2 } else { 0 }));
}
