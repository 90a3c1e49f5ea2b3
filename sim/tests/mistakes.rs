//! The test of the simulator: each mistake that can be planted in the engine is found within a stated number of
//! seeds, and by a check that is there for it.

use engine::guest::{Op, Request};
use engine::node::Node;
use engine::node::config::{AckPolicy, Begins, Config, NewVolume, OnFull, Retention, Start, Verification};
use engine::node::primary::Submitted;
use engine::node::work::Lane;
use engine::planted::{Mistake, plant};
use engine::types::{Extent, GroupId, Mono, NodeId, Now, VolumeId};
use sim::clock::EPOCH;
use sim::disk::{Disk, Fate, KeepAll, ProcessId};
use sim::options::{Options, small_limits};
use sim::rng::Rng;
use sim::run::run;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// Runs seeds until a check with one of these names finds the mistake.
fn hunt(mistake: Mistake, seeds: Range<u64>, words: &[&str]) {
    plant(Some(mistake));
    let (count, found) = (
        seeds.end - seeds.start,
        seeds.into_iter().any(|seed| {
            let outcome = run(Options::swarm(seed));
            let verdict = outcome.verdict.to_string();
            !outcome.verdict.is_clean() && words.iter().any(|word| verdict.contains(word))
        }),
    );
    plant(None);
    assert!(found, "{mistake:?} was not found in {count} seeds by any of {words:?}");
}

macro_rules! caught {
    ($($name:ident: $mistake:ident within $seeds:expr, by $words:expr;)*) => {
        $(
            #[test]
            fn $name() {
                hunt(Mistake::$mistake, $seeds, &$words);
            }
        )*
    };
}

// A copy over a write takes a write to a place in the moment in which it is read for a replica in a span: the first
// 1,700 seeds have none.
caught! {
    w14_an_acknowledgement_before_the_sync: AcknowledgeBeforeSync within 0..20, by ["acknowledge"];
    r03_a_record_shipped_before_it_is_durable: ShipBeforeDurable within 0..20, by ["durable"];
    w13_a_write_applied_before_it_is_durable: ApplyBeforeDurable within 0..200, by ["write_ahead", "durable"];
    r07_an_older_epoch_let_in: AcceptOlderEpoch within 0..400, by ["one_writer"];
    r16_a_fold_before_its_points_are_retired: FoldBeforeRetiring within 0..400, by ["retired", "points_exact"];
    w15_a_sync_tried_again: RetryFailedSync within 0..400, by ["failed_sync_is_final"];
    w22_a_name_that_is_not_durable: ForgetDirectorySync within 0..100, by ["invariant"];
    r02_a_record_dropped_from_a_batch: DropLastOfBatch within 0..20, by ["prefix"];
    r10_numbers_that_go_on_after_a_cut: RenumberAfterCut within 0..100, by ["invariant", "crashed", "converge"];
    r16_a_pinned_point_that_is_retired: PrunePinned within 0..200, by ["points_stable"];
    r15_a_drill_that_writes_to_the_base: DrillReachesBase within 0..100, by ["points", "drills"];
    r16_a_point_that_moves: MovingPoint within 0..20, by ["points"];
    r06_a_point_inside_a_span: PointInsideSpan within 0..20, by ["points"];
    r24_data_in_place_that_is_taken_for_nothing: SkipInPlace within 0..50, by ["points"];
    w20_a_change_that_is_not_tracked: ForgetTracked within 0..600, by ["points"];
    r24_a_copy_over_a_write: CopyOverWrites within 1_500..2_000, by ["points"];
    r09_what_diverged_is_not_told: ForgetDiverged within 0..400, by ["points", "invariant"];
    r09_a_branch_that_is_dropped: DropBranch within 0..100, by ["branches_kept"];
    a_group_handed_over_early: HandOverEarly within 0..200, by ["handover_loses_nothing"];
    scrub_of_what_a_guest_has_overwritten: ScrubOverWrites within 0..600, by ["mismatches_are_real"];
    scrub_repair_that_is_forgotten: ForgetRepair within 0..600, by ["repairs_hold"];
    a_kept_mark_that_moves: ForgetSaved within 0..600, by ["points_exact"];
    a_size_that_is_forgotten: ForgetSize within 0..600, by ["points_exact"];
    bytes_that_a_volume_gets_back: KeepLostBytes within 0..600, by ["points", "invariant"];
    w20_a_log_freed_before_it_is_noted: FreeBeforeNoted within 0..600, by ["points", "converge", "invariant"];
}

/// Keeps everything that was written but the first so many sectors.
struct LoseFirst(usize);

impl Fate for LoseFirst {
    fn pick(&mut self, choices: usize) -> usize {
        let lost = choices > 1 && self.0 > 0;
        self.0 -= usize::from(lost);
        if lost { 0 } else { choices - 1 }
    }
}

/// A node that is driven by hand.
struct Driven {
    node: Node,
    process: ProcessId,
    now: Now,
}

impl Driven {
    fn open(disk: &Disk) -> Driven {
        let process = disk.start();
        let now = Now { mono: Mono(0), wall: EPOCH };
        let volumes = vec![NewVolume { name: "v".to_owned(), size: 64 << 10, begins: Begins::Empty }];
        let config = Config {
            name: "orders".to_owned(),
            node: NodeId([1; 16]),
            dir: "orders".to_owned(),
            start: Start::Primary { group: GroupId([7; 16]), volumes },
            backings: BTreeMap::new(),
            replicas: Vec::new(),
            ack: AckPolicy::Local,
            on_full: OnFull::Stall,
            retention: Retention::default(),
            limits: small_limits(64 << 10, 8),
            verify: Verification::default(),
        };
        let id = process.id();
        let (node, _) = Node::open(now, Arc::new(process), config).expect("it opens");
        Driven { node, process: id, now }
    }

    fn write(&mut self, offset: u64, len: usize, byte: u8) {
        let data = vec![byte; len].into();
        let mut batch = vec![Request { cookie: 1, op: Op::Write { offset, data }, fua: false }];
        self.node.submit(self.now, VolumeId(1), &mut batch, &mut Submitted::default());
    }

    fn sync(&mut self) {
        self.now.mono = self.now.mono.plus_ms(1_000);
        if let Some(job) = self.node.poll_job(self.now, Lane::Sync) {
            let done = job.run();
            self.node.finish(self.now, done);
        }
    }

    fn first_byte(&mut self) -> u8 {
        let mut batch = vec![Request { cookie: 1, op: Op::Read(Extent::new(0, 1)), fua: false }];
        let mut out = Submitted::default();
        self.node.submit(self.now, VolumeId(1), &mut batch, &mut out);
        let (_, _, plan) = out.reads.pop().expect("it serves");
        plan.read_all().expect("it can be read")[0]
    }

    /// Fills the page that the tail stands in, with one record.
    fn fill_page(&mut self, byte: u8) {
        let end = self.node.segments().last().expect("there is a segment").end;
        let room = (4_096 - end % 4_096) as usize;
        self.write(32 << 10, room - 80, byte);
        assert_eq!(self.node.segments()[0].end % 4_096, 0);
    }
}

/// A record from behind a torn tail stands exactly where the log of the next life ends, under the number that
/// belongs there. The chain alone tells that it is dead.
fn a_dead_record_behind_the_tail() -> u8 {
    let disk = Disk::new(Rng::new(1));
    let mut first = Driven::open(&disk);
    first.write(0, 512, 1);
    first.fill_page(1);
    first.sync();
    first.write(8 << 10, 2_048 - 80, 2);
    first.write(8 << 10, 2_048 - 80, 2);
    first.write(0, 4_096 - 80, 3);
    disk.power_off();
    // The page with two records is lost, the one with the third survives.
    disk.power_on(&mut LoseFirst(8));
    let mut second = Driven::open(&disk);
    assert_eq!(second.first_byte(), 1, "what was behind the hole is lost");
    second.fill_page(4);
    second.sync();
    disk.kill(second.process, &mut KeepAll);
    Driven::open(&disk).first_byte()
}

#[test]
fn w02_a_skipped_chain_check() {
    assert_eq!(a_dead_record_behind_the_tail(), 1, "without the mistake it stays dead");
    plant(Some(Mistake::SkipChainCheck));
    let alive = a_dead_record_behind_the_tail();
    plant(None);
    assert_eq!(alive, 3, "with the mistake it is back, and this sees it");
}
