//! Runs swarm seeds and says what failed: a tool for those who work on the simulator.

use sim::options::Options;
use sim::trace::Keep;
use std::collections::BTreeMap;

fn main() {
    if let Ok(name) = std::env::var("SCENARIO") {
        let text = sim::scenario::shipped(&name).expect("it is shipped");
        let scenario = sim::scenario::Scenario::parse(text).expect("it can be read");
        let outcome = sim::run::run(
            scenario.options(std::env::var("SEED").map_or(1, |seed| seed.parse().expect("a number"))),
        );
        println!(
            "{} {:?} steps {} events {}",
            outcome.verdict, outcome.figures, outcome.steps, outcome.events
        );
        for sample in outcome.samples.iter().step_by(8) {
            println!("{sample:?}");
        }
        println!("{:#?}", outcome.counters);
        return;
    }
    let mut args = std::env::args().skip(1).map(|text| text.parse::<u64>().expect("a number"));
    let (first, last) = (args.next().unwrap_or(0), args.next());
    let verbose = last.is_none();
    let mut counters: BTreeMap<String, u64> = BTreeMap::new();
    let mut classes: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for seed in first..last.unwrap_or(first + 1) {
        let mut options = Options::swarm(seed);
        if verbose {
            options.keep = Keep::All;
            println!("{options:#?}");
        }
        let outcome = sim::run::run(options);
        if verbose {
            for event in &outcome.trace {
                println!("{event}");
            }
        }
        for (name, count) in outcome.counters {
            *counters.entry(name).or_default() += count;
        }
        if !outcome.verdict.is_clean() {
            println!("seed {seed}: {}", outcome.verdict);
            classes.entry(outcome.verdict.class().to_owned()).or_default().push(seed);
        }
        if verbose {
            println!("{:?} {:#?}", outcome.hash, outcome.figures);
        }
    }
    for (name, count) in &counters {
        println!("{count:>10}  {name}");
    }
    for (class, seeds) in classes {
        println!("{class}: {} {:?}", seeds.len(), &seeds[..seeds.len().min(20)]);
    }
}
