//! Every shipped scenario, with some seeds: nothing is broken, and what it asserts holds. (R09, R10, R14, R20, R21)

use sim::clock::Span;
use sim::options::Event;
use sim::run::{Figures, Outcome, run};
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
    r15_drill_under_load: "drill-under-load";
    r09_r14_region_outage_then_return: "region-outage-then-return";
    r14_failover_during_failback: "failover-during-failback";
    r06_r09_split_longer_than_the_log: "split-longer-than-the-log";
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

/// R15: with the drills and without them replication takes the very same steps: each node's log is as long at every
/// moment, as much goes over the links, and the failover begins at the same record, by its checksum.
#[test]
fn r15_a_drill_touches_nothing() {
    let scenario = Scenario::parse(shipped("drill-under-load").expect("shipped")).expect("read");
    let options = scenario.options(7);
    let (mut without, faulty) = (options.clone(), options.faulty);
    without.events.retain(|planned| !matches!(planned.event, Event::Drill { .. }));
    assert!(without.events.len() < options.events.len());
    let (with, without) = (run(options), run(without));
    assert!(with.verdict.is_clean() && without.verdict.is_clean(), "{} {}", with.verdict, without.verdict);
    assert!(with.counters["drill writes"] > 500, "{:?}", with.counters);
    assert_eq!(with.counters["drills ended"], 2);
    // How long the end takes is told by a look now and then.
    let figures = |outcome: &Outcome| Figures { converged_after: Span(0), ..outcome.figures.clone() };
    assert_eq!(figures(&with), figures(&without));
    // Points in use are kept: that is all that differs.
    let but_for_points = |outcome: &Outcome| {
        let mut samples = outcome.samples.clone();
        samples.retain(|sample| sample.at.0 <= faulty.0);
        samples.iter_mut().flat_map(|sample| &mut sample.nodes).for_each(|node| node.horizon = 0);
        samples
    };
    assert_eq!(but_for_points(&with), but_for_points(&without));
    let history = |outcome: &Outcome| {
        let of = |state: &String| {
            state.split("history: ").nth(1).map(|rest| rest.split("fenced_by").next().map(str::to_owned))
        };
        outcome.states.iter().map(of).collect::<Vec<_>>()
    };
    assert_eq!(history(&with), history(&without));
    assert!(history(&with).iter().flatten().flatten().all(|history| history.contains("checksum")));
}
