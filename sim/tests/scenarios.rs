//! Every shipped scenario, with some seeds: nothing is broken, and what it asserts holds. (R09, R10, R14, R20, R21)

use sim::run::run;
use sim::scenario::{NAMES, Scenario, shipped};

fn holds(name: &str, seeds: std::ops::Range<u64>) {
    let scenario = Scenario::parse(shipped(name).expect("it is shipped")).expect("it can be read");
    for seed in seeds {
        let outcome = run(scenario.options(seed));
        assert!(outcome.verdict.is_clean(), "{name}, seed {seed}: {}", outcome.verdict);
        let broken = scenario.assertions.broken_by(&outcome);
        assert!(broken.is_empty(), "{name}, seed {seed}: {broken:?}\n{:#?}", outcome.figures);
        assert!(outcome.figures.writes > 100, "{name}, seed {seed}: only {} writes", outcome.figures.writes);
    }
}

macro_rules! scenarios {
    ($($test:ident: $name:literal;)*) => {
        $(
            #[test]
            fn $test() {
                holds($name, 1..3);
            }
        )*

        #[test]
        fn none_is_left_out() {
            let here = [$($name),*];
            assert!(NAMES.iter().all(|name| here.contains(name)));
        }
    };
}

scenarios! {
    r14_region_outage: "region-outage";
planned_failover: "planned-failover";
    r09_r14_region_outage_then_return: "region-outage-then-return";
    r14_failover_during_resync: "failover-during-resync";
    r14_flapping_link: "flapping-link";
    r12_asymmetric_partition: "asymmetric-partition";
    r13_slow_replica_disk: "slow-replica-disk";
    r04_replica_loss: "replica-loss";
    r14_double_failure: "double-failure";
    r20_clock_skew: "clock-skew";
    r08_split_brain_attempt: "split-brain-attempt";
    r16_ransomware: "ransomware";
    r02_rolling_restart: "rolling-restart";
    r06_w20_long_outage: "long-outage";
    r13_long_outage_log_full: "long-outage-log-full";
}
