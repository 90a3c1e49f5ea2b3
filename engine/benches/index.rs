//! What the version index costs: `cargo bench -p engine --bench index`. Figures on stdout, nothing asserted.

#![expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use engine::index::{Index, Place, Source};
use engine::types::{Extent, Lsn, VolumeId};
use std::hint::black_box;
use std::time::Instant;

const ENTRIES: u64 = 10_000_000;
const READS: u64 = 200_000;
const VOLUME: VolumeId = VolumeId(1);

/// xorshift64*.
struct Draw(u64);

impl Draw {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 20) % limit
    }
}

fn place(lsn: u64) -> Source {
    Source::Payload(Place { segment: (lsn >> 14) as u32, offset: (lsn & 0x3fff) * 4224 })
}

fn fill(name: &str, mut block: impl FnMut(u64) -> u64) -> Index {
    let mut index = Index::default();
    let start = Instant::now();
    for lsn in 1..=ENTRIES {
        index.insert(VOLUME, Lsn(lsn), Extent::new(block(lsn) * 4096, 4096), place(lsn));
    }
    let rate = ENTRIES as f64 / start.elapsed().as_secs_f64();
    let each = index.bytes() as f64 / index.entries() as f64;
    println!("{name}: {:.2} M insertions/s, {each:.1} bytes each", rate / 1e6);
    index
}

fn reads(name: &str, mut read: impl FnMut(u64) -> usize) {
    let start = Instant::now();
    for i in 0..READS {
        black_box(read(i));
    }
    println!("  {name}: {:.2} us a read", start.elapsed().as_secs_f64() * 1e6 / READS as f64);
}

fn main() {
    // (`cargo test --benches` runs this with `--test`: then there is nothing to do.)
    if std::env::args().any(|argument| argument == "--test") {
        return;
    }
    for (name, size) in [("random over 1 TiB", 1u64 << 40), ("random over 16 GiB", 16 << 30)] {
        let blocks = size / 4096;
        let mut draw = Draw(1);
        let mut index = fill(name, |_| draw.below(blocks));
        let mut draw = Draw(2);
        for at in [ENTRIES, ENTRIES / 2] {
            reads(&format!("4 KiB at LSN {at}"), |_| {
                let extent = Extent::new(draw.below(blocks) * 4096, 4096);
                index.resolve(VOLUME, Lsn(at), extent).expect("readable").len()
            });
        }
        let mut view = index.view(VOLUME, Lsn(ENTRIES)).expect("readable");
        reads("4 KiB in a view", |_| {
            let extent = Extent::new(draw.below(blocks) * 4096, 4096);
            view.resolve(&index, extent).expect("readable").len()
        });
        let start = Instant::now();
        index.forget_through(Lsn(ENTRIES / 2));
        while index.sweep(1024) {}
        println!("  forgetting half: {:.0} ms", start.elapsed().as_secs_f64() * 1e3);
    }

    // One chunk that takes all writes: a database's log, over a day.
    let mut draw = Draw(3);
    let mut index = fill("one busy chunk", |_| draw.below(255));
    // Block 255 was never written: a read of it looks at every version, once.
    let start = Instant::now();
    black_box(index.resolve(VOLUME, Lsn(ENTRIES), Extent::new(255 * 4096, 4096)).expect("readable"));
    println!("  never written block: {:.0} us", start.elapsed().as_secs_f64() * 1e6);
    let mut view = index.view(VOLUME, Lsn(ENTRIES)).expect("readable");
    reads("4 KiB in a view", |i| {
        view.resolve(&index, Extent::new(i % 256 * 4096, 4096)).expect("readable").len()
    });
}
