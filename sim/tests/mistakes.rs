//! The test of the simulator: each mistake that can be planted in the engine is found within a stated number of
//! seeds, and by a check that is there for it.

use engine::planted::{Mistake, plant};
use sim::clock::Span;
use sim::options::Options;
use sim::run::run;

/// Runs seeds until the mistake shows; which seed, and how it showed.
fn hunt(mistake: Mistake, seeds: u64) -> (u64, String) {
    plant(Some(mistake));
    let found = (0..seeds).find_map(|seed| {
        let mut options = Options::swarm(seed);
        // Nothing is to be learned from how long it does not converge.
        options.healing = Span::from_secs(30);
        let outcome = run(options);
        (!outcome.verdict.is_clean()).then(|| (seed, outcome.verdict.to_string()))
    });
    plant(None);
    found.unwrap_or_else(|| panic!("{mistake:?} was not found in {seeds} seeds"))
}

macro_rules! caught {
    ($($name:ident: $mistake:ident within $seeds:literal, by $words:expr;)*) => {
        $(
            #[test]
            fn $name() {
                let (seed, verdict) = hunt(Mistake::$mistake, $seeds);
                let words: &[&str] = &$words;
                assert!(words.iter().any(|word| verdict.contains(word)), "seed {seed}: {verdict}");
            }
        )*
    };
}

caught! {
    w14_an_acknowledgement_before_the_sync: AcknowledgeBeforeSync within 20, by ["acknowledge"];
    r03_a_record_shipped_before_it_is_durable: ShipBeforeDurable within 20, by ["durable"];
    w13_a_write_applied_before_it_is_durable: ApplyBeforeDurable within 200, by ["write_ahead", "durable"];
    w02_a_skipped_chain_check: SkipChainCheck within 1_000, by ["invariant", "crashed", "converge"];
    r07_an_older_epoch_let_in: AcceptOlderEpoch within 400, by ["one_writer"];
    r16_a_fold_before_its_points_are_retired: FoldBeforeRetiring within 400, by ["retired", "points_exact"];
    w15_a_sync_tried_again: RetryFailedSync within 400, by ["failed_sync_is_final"];
    w22_a_name_that_is_not_durable: ForgetDirectorySync within 100, by ["invariant"];
    r02_a_record_dropped_from_a_batch: DropLastOfBatch within 20, by ["prefix"];
    r10_numbers_that_go_on_after_a_cut: RenumberAfterCut within 100, by ["invariant", "crashed", "converge"];
    r16_a_point_that_moves: MovingPoint within 20, by ["points"];
}
