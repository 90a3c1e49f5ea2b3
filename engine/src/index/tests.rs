//! The index against a reference that knows nothing of chunks: a list of all versions, asked about every byte.
//!
//! "Every byte" by way of coordinates: between two neighbouring ends of extents all bytes have one answer, so
//! it is asked for the first of each such stretch.

use super::*;

const VOLUMES: u32 = 2;
const SIZE: u64 = 200 * CHUNK_BYTES;

/// A generator of its own, so that a seed means the same for ever (xorshift64*).
struct Draw(u64);

impl Draw {
    fn new(seed: u64) -> Draw {
        Draw(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % limit
    }

    fn volume(&mut self) -> VolumeId {
        VolumeId(1 + self.below(VOLUMES.into()) as u32)
    }

    /// An extent that hits others often: few places, near the borders of chunks, a few lengths, now and then huge.
    fn extent(&mut self) -> Extent {
        let near = self.below(4) * CHUNK_BYTES + 512 * self.below(8);
        let offset = near.saturating_sub(512 * self.below(6));
        let len = match self.below(40) {
            0 => MAX_SPLIT_CHUNKS * CHUNK_BYTES - offset % CHUNK_BYTES,
            1..=3 => (MAX_SPLIT_CHUNKS + self.below(130)) * CHUNK_BYTES + self.below(3),
            4..=7 => CHUNK_BYTES * (1 + self.below(3)),
            8 => 0,
            9 => 1 + self.below(511),
            _ => 512 * (1 + self.below(9)),
        };
        Extent::new(offset, len.min(SIZE - offset))
    }
}

/// One version, as the reference keeps it.
#[derive(Clone, Copy, Debug)]
struct Version {
    volume: VolumeId,
    lsn: Lsn,
    extent: Extent,
    source: Source,
}

/// What should be true: all versions of the main line, and what was written into the base image.
#[derive(Default)]
struct Reference {
    versions: Vec<Version>,
    base: Vec<(VolumeId, Piece)>,
    folded: Lsn,
}

impl Reference {
    /// The origin of one byte at `at`; `None` if nothing was ever written there.
    fn byte(&self, volume: VolumeId, at: Lsn, byte: u64) -> Option<Source> {
        let hit =
            |version: &&Version| version.volume == volume && version.lsn <= at && holds(version.extent, byte);
        let version = self.versions.iter().rev().find(hit)?;
        Some(version.source.skip(byte - version.extent.offset))
    }

    /// The same through a piece: a byte of the base image is what the folds wrote there.
    fn through(&self, volume: VolumeId, piece: Piece, byte: u64) -> Option<Source> {
        match piece.cut(Extent::new(byte, 1)).expect("the byte lies in the piece").source {
            Origin::Payload(place) => Some(Source::Payload(place)),
            Origin::Zero => Some(Source::Zero),
            Origin::Base => {
                let hit = |(of, piece): &&(VolumeId, Piece)| *of == volume && holds(piece.extent, byte);
                let (_, piece) = self.base.iter().rev().find(hit)?;
                assert_ne!(piece.source, Origin::Base, "a fold writes no base");
                self.through(volume, *piece, byte)
            }
        }
    }

    /// The first byte of each stretch of `extent` in which all bytes have one answer.
    fn stretches(&self, volume: VolumeId, extent: Extent) -> Vec<u64> {
        let ends = self.versions.iter().filter(|version| version.volume == volume);
        let ends = ends.flat_map(|version| [version.extent.offset, version.extent.end()]);
        let mut bytes: Vec<u64> = ends.chain([extent.offset]).filter(|&byte| holds(extent, byte)).collect();
        bytes.sort_unstable();
        bytes.dedup();
        bytes
    }

    /// Whether the newest version of a byte at `at` is one that the index must still know, or lies in the base.
    fn is_folded(&self, volume: VolumeId, at: Lsn, byte: u64) -> bool {
        let hit =
            |version: &&Version| version.volume == volume && version.lsn <= at && holds(version.extent, byte);
        self.versions.iter().rev().find(hit).is_none_or(|version| version.lsn <= self.folded)
    }

    fn check(&self, volume: VolumeId, at: Lsn, extent: Extent, pieces: &[Piece]) {
        check_shape(extent, pieces);
        for byte in self.stretches(volume, extent) {
            let piece = *pieces.iter().find(|piece| holds(piece.extent, byte)).expect("covered");
            let folded = self.is_folded(volume, at, byte);
            assert_eq!(piece.source == Origin::Base, folded, "byte {byte} of {volume} at {at}: {piece:?}");
            let (found, expected) = (self.through(volume, piece, byte), self.byte(volume, at, byte));
            assert_eq!(found, expected, "byte {byte} of volume {volume} at LSN {at}: {piece:?}");
        }
    }
}

fn holds(extent: Extent, byte: u64) -> bool {
    extent.offset <= byte && byte < extent.end()
}

/// In order, exact, and no two neighbours that could be one.
fn check_shape(extent: Extent, pieces: &[Piece]) {
    let mut at = extent.offset;
    for piece in pieces {
        assert_eq!(piece.extent.offset, at, "{pieces:?}");
        assert!(piece.extent.len > 0, "{pieces:?}");
        at = piece.extent.end();
    }
    assert_eq!(at, extent.end(), "{pieces:?}");
    let joinable = pieces.windows(2).find(|pair| pair[0].source_at_end() == pair[1].source);
    assert_eq!(joinable, None);
}

/// Folds all volumes up to `upto`, into the reference's base image.
fn fold(index: &Index, reference: &mut Reference, upto: Lsn) {
    for volume in index.volumes() {
        let mut from = Some(0);
        while let Some(start) = from {
            let step = index.fold_step(volume, start, index.folded(), upto);
            assert!(step.next.is_none_or(|next| next > start));
            assert!(step.pieces.windows(2).all(|pair| pair[0].extent.end() <= pair[1].extent.offset));
            assert!(step.pieces.iter().all(|piece| piece.extent.offset >= start));
            reference.base.extend(step.pieces.into_iter().map(|piece| (volume, piece)));
            from = step.next;
        }
    }
}

fn check_changed(index: &Index, reference: &Reference, volume: VolumeId, after: Lsn, upto: Lsn) {
    let changed: Vec<Extent> = index.changed(volume, after, upto).expect("readable").collect();
    assert!(changed.iter().all(|extent| extent.len > 0), "{changed:?}");
    assert!(changed.windows(2).all(|pair| pair[0].end() < pair[1].offset), "{changed:?}");
    for byte in reference.stretches(volume, Extent::new(0, SIZE)) {
        let mut versions = reference.versions.iter().filter(|version| version.volume == volume);
        let expected =
            versions.any(|version| version.lsn > after && version.lsn <= upto && holds(version.extent, byte));
        let found = changed.iter().any(|extent| holds(*extent, byte));
        assert_eq!(found, expected, "byte {byte} of {volume} in ({after}, {upto}]: {changed:?}");
    }
}

fn run(seed: u64) {
    let mut draw = Draw::new(seed);
    let mut index = Index::default();
    let mut reference = Reference::default();
    let mut views: Vec<View> = Vec::new();
    let mut lsn = Lsn::ZERO;
    let few_places = draw.below(2) == 0;
    // Now and then enough for chunks that a view keeps.
    let (more, rare) = if draw.below(16) == 0 { (800, 400) } else { (0, 40) };
    for _ in 0..20 + draw.below(180) + more {
        match draw.below(rare) {
            0 if lsn > reference.folded => {
                // A promotion: the later versions are another history's.
                let cut = Lsn(reference.folded.0 + draw.below(lsn.0 - reference.folded.0 + 1));
                index.truncate_after(cut);
                reference.versions.retain(|version| version.lsn <= cut);
                for view in std::mem::take(&mut views) {
                    let mut view = view;
                    let result = view.resolve(&index, Extent::new(0, 512));
                    match view.at() > cut {
                        true => assert_eq!(result, Err(Error::Branched { at: view.at(), cut })),
                        false => {
                            assert!(result.is_ok());
                            views.push(view);
                        }
                    }
                }
                lsn = cut;
            }
            1 | 2 => {
                let upto = Lsn(reference.folded.0 + draw.below(lsn.0 - reference.folded.0 + 1));
                fold(&index, &mut reference, upto);
                // A fold that died half-way is begun again, and readers meanwhile see no difference.
                fold(&index, &mut reference, upto);
                let pieces = index.resolve(VolumeId(1), upto, Extent::new(0, SIZE)).expect("readable");
                reference.check(VolumeId(1), upto, Extent::new(0, SIZE), &pieces);
                index.forget_through(upto);
                reference.folded = upto;
                views.retain_mut(|view| match view.resolve(&index, Extent::new(0, 512)) {
                    Ok(_) => view.at() >= upto,
                    Err(error) => {
                        assert_eq!(error, Error::Folded { at: view.at(), folded: upto });
                        assert!(view.at() < upto);
                        false
                    }
                });
            }
            3 => {
                index.sweep(draw.below(8) as usize);
            }
            4 if views.len() < 4 => {
                let mut view = index.view(draw.volume(), lsn).expect("readable");
                view.hot = draw.below(16) as usize;
                views.push(view);
            }
            _ => {
                // Flushes and marks take LSNs too.
                lsn = Lsn(lsn.0 + 1 + draw.below(3));
                let place = Place { segment: draw.below(3) as u32, offset: lsn.0 * (1 << 20) };
                let extent = match few_places {
                    true => Extent::new(512 * draw.below(16), 512 * (1 + draw.below(3))),
                    false => draw.extent(),
                };
                let wide = extent.len > MAX_SPLIT_CHUNKS * CHUNK_BYTES;
                let source = if wide || draw.below(4) == 0 { Source::Zero } else { Source::Payload(place) };
                let version = Version { volume: draw.volume(), lsn, extent, source };
                index.insert(version.volume, lsn, extent, source);
                reference.versions.push(version);
            }
        }
        let (volume, extent) = (draw.volume(), draw.extent());
        let at = Lsn(reference.folded.0 + draw.below(lsn.0 - reference.folded.0 + 3));
        reference.check(volume, at, extent, &index.resolve(volume, at, extent).expect("readable"));
        if reference.folded > Lsn::ZERO {
            let error = index.resolve(volume, reference.folded.prev(), extent);
            assert!(matches!(error, Err(Error::Folded { .. })));
        }
        for view in &mut views {
            let pieces = view.resolve(&index, extent).expect("readable");
            reference.check(view.volume(), view.at(), extent, &pieces);
        }
        if draw.below(8) == 0 {
            check_changed(&index, &reference, volume, at.min(lsn), lsn);
        }
    }
    while index.sweep(1) {}
    let whole = Extent::new(0, SIZE);
    for volume in [VolumeId(1), VolumeId(2)] {
        reference.check(volume, lsn, whole, &index.resolve(volume, lsn, whole).expect("readable"));
        check_changed(&index, &reference, volume, reference.folded, lsn);
    }
    // Nothing forgotten is left, and the counters agree with what is there.
    fold(&index, &mut reference, lsn);
    index.forget_through(lsn);
    while index.sweep(3) {}
    assert_eq!(index.entries(), 0);
    index.lanes.values().for_each(|lane| assert_eq!(lane.bytes() - wide_bytes(lane), 0));
}

fn wide_bytes(lane: &Lane) -> u64 {
    (lane.wide.capacity() * size_of::<Wide>()) as u64
}

#[test]
fn any_point_is_the_fold_of_the_versions_up_to_it() {
    for seed in 0..3000 {
        run(seed);
    }
}

#[test]
fn a_busy_chunk_is_resolved_once_and_again_when_the_index_changed() {
    let mut index = Index::default();
    for lsn in 1..=1000 {
        let place = Place { segment: 0, offset: lsn * 8192 };
        let extent = Extent::new(lsn % 16 * 4096, 4096);
        index.insert(VolumeId(1), Lsn(lsn), extent, Source::Payload(place));
    }
    let mut view = index.view(VolumeId(1), Lsn(500)).expect("readable");
    let extent = Extent::new(2048, 8192);
    view.hot = 64;
    let before = view.resolve(&index, extent).expect("readable");
    assert_eq!(before, index.resolve(VolumeId(1), Lsn(500), extent).expect("readable"));
    index.forget_through(Lsn(495));
    let after = view.resolve(&index, Extent::new(0, 16 * 4096)).expect("readable");
    // 496 to 500 are blocks 0 to 4; the rest is in the base image now.
    assert_eq!(after.len(), 6);
    assert_eq!(after[5], Piece { extent: Extent::new(5 * 4096, 11 * 4096), source: Origin::Base });
    index.forget_through(Lsn(600));
    let error = view.resolve(&index, extent);
    assert_eq!(error, Err(Error::Folded { at: Lsn(500), folded: Lsn(600) }));
}

#[test]
fn a_trim_of_the_largest_disk_costs_one_entry_and_a_fold_of_it_one_piece() {
    let mut index = Index::default();
    let disk = Extent::new(0, 64 << 40);
    index.insert(VolumeId(1), Lsn(1), disk, Source::Zero);
    index.insert(
        VolumeId(1),
        Lsn(2),
        Extent::new(40 << 40, 512),
        Source::Payload(Place { segment: 7, offset: 64 }),
    );
    assert_eq!(index.entries(), 2);
    let step = index.fold_step(VolumeId(1), 0, index.folded(), Lsn(1));
    assert_eq!(step, FoldStep { pieces: vec![Piece { extent: disk, source: Origin::Zero }], next: None });
    let step = index.fold_step(VolumeId(1), 0, index.folded(), Lsn(2));
    assert_eq!(step.pieces.len(), 3);
    let changed: Vec<Extent> = index.changed(VolumeId(1), Lsn(0), Lsn(2)).expect("readable").collect();
    assert_eq!(changed, [disk]);
    let mut view = index.view(VolumeId(1), Lsn(2)).expect("readable");
    assert_eq!(view.resolve(&index, disk).expect("readable").len(), 3);
}

#[test]
fn a_fold_goes_in_bounded_steps() {
    let mut index = Index::default();
    let chunks = 3 * FOLD_STEP_CHUNKS as u64;
    for chunk in 0..chunks {
        index.insert(VolumeId(1), Lsn(chunk + 1), Extent::new(chunk * CHUNK_BYTES, 512), Source::Zero);
    }
    let (mut from, mut steps, mut pieces) = (Some(0), 0, 0);
    while let Some(start) = from {
        let step = index.fold_step(VolumeId(1), start, index.folded(), Lsn(chunks));
        from = step.next;
        steps += 1;
        pieces += step.pieces.len() as u64;
        assert!(step.pieces.len() <= FOLD_STEP_CHUNKS);
    }
    assert_eq!(pieces, chunks);
    assert!(steps > 3, "{steps}");
}

#[test]
fn an_end_at_the_last_byte_there_is() {
    let mut index = Index::default();
    let last = Extent::new(u64::MAX - 4096, 4096);
    index.insert(VolumeId(1), Lsn(1), last, Source::Zero);
    index.insert(VolumeId(1), Lsn(2), Extent::new(0, u64::MAX), Source::Zero);
    let pieces = index.resolve(VolumeId(1), Lsn(1), last).expect("readable");
    assert_eq!(pieces, [Piece { extent: last, source: Origin::Zero }]);
    let pieces = index.resolve(VolumeId(1), Lsn(2), Extent::new(0, u64::MAX)).expect("readable");
    assert_eq!(pieces.len(), 1);
    assert_eq!(index.resolve(VolumeId(1), Lsn(2), Extent::new(5, 0)), Ok(vec![]));
    assert_eq!(index.resolve(VolumeId(9), Lsn(2), Extent::new(5, 0)), Ok(vec![]));
}

#[test]
#[should_panic(expected = "a view or the base image stands at")]
fn nothing_is_inserted_under_a_view() {
    let mut index = Index::default();
    index.insert(VolumeId(1), Lsn(1), Extent::new(0, 512), Source::Zero);
    let _view = index.view(VolumeId(1), Lsn(5)).expect("readable");
    index.insert(VolumeId(1), Lsn(5), Extent::new(0, 512), Source::Zero);
}

#[test]
#[should_panic(expected = "shorter than 4 GiB")]
fn a_place_beyond_what_an_entry_holds_is_refused() {
    let place = Place { segment: 0, offset: 1 << 32 };
    Index::default().insert(VolumeId(1), Lsn(1), Extent::new(0, 512), Source::Payload(place));
}
