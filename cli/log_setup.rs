//! What the program says about itself while it runs: `tracing` events, on stderr.
//!
//! Commands say nothing below WARN unless asked, daemons INFO. `LANDFALL_LOG` takes a level or a level for each
//! part, as in `info,engine=debug,transport=trace`, and wins over `-v`.

use crate::exit::Failure;
use std::io::IsTerminal;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// The variable.
pub(crate) const VARIABLE: &str = "LANDFALL_LOG";

/// How much is said without `-v`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A command that ends: WARN.
    Command,
    /// A daemon: INFO.
    Daemon,
}

/// Sets it up, once.
pub(crate) fn init(kind: Kind, verbose: u8) -> Result<(), Failure> {
    let targets = targets(kind, verbose, std::env::var(VARIABLE).ok().as_deref())?;
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false);
    // Under a service manager, which has a clock of its own, a second time in each line is noise.
    let with_time = std::io::stderr().is_terminal() || kind == Kind::Daemon;
    let registry = tracing_subscriber::registry().with(targets);
    if with_time {
        registry.with(layer.with_timer(Clock)).try_init()
    } else {
        registry.with(layer.without_time()).try_init()
    }
    .map_err(|err| Failure::failed(format_args!("logging cannot be set up: {err}")))
}

fn targets(kind: Kind, verbose: u8, variable: Option<&str>) -> Result<Targets, Failure> {
    if let Some(text) = variable.filter(|text| !text.is_empty()) {
        return text.parse().map_err(|err| {
            Failure::usage(format_args!("{VARIABLE}={text} is not understood: {err}"))
                .next("write a level, or levels for parts: `info,engine=debug`")
        });
    }
    let level = match (kind, verbose) {
        (Kind::Command, 0) => LevelFilter::WARN,
        (Kind::Daemon, 0) => LevelFilter::INFO,
        (_, 1) => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    // Other people's crates: what may wake someone, and their details only when everything is asked for.
    let others = if verbose > 2 { LevelFilter::TRACE } else { LevelFilter::WARN.min(level) };
    let own = ["landfall", "engine", "transport"].map(|part| (part, level));
    Ok(Targets::new().with_default(others).with_targets(own))
}

struct Clock;

impl tracing_subscriber::fmt::time::FormatTime for Clock {
    fn format_time(&self, w: &mut tracing_subscriber::fmt::format::Writer<'_>) -> std::fmt::Result {
        w.write_str(&crate::time::format(crate::time::now()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Code;
    use tracing::Level;

    #[test]
    fn levels_follow_the_kind_and_the_flag() {
        for (kind, verbose, own, other) in [
            (Kind::Command, 0, Level::WARN, Level::WARN),
            (Kind::Daemon, 0, Level::INFO, Level::WARN),
            (Kind::Command, 1, Level::DEBUG, Level::WARN),
            (Kind::Daemon, 2, Level::TRACE, Level::WARN),
            (Kind::Daemon, 3, Level::TRACE, Level::TRACE),
        ] {
            let targets = targets(kind, verbose, None).unwrap();
            for (target, most) in [("engine::log", own), ("landfall", own), ("quinn_proto", other)] {
                assert!(targets.would_enable(target, &most), "{kind:?} {verbose} {target}");
                if most < Level::TRACE {
                    let more = if most == Level::DEBUG { Level::TRACE } else { Level::DEBUG };
                    assert!(!targets.would_enable(target, &more), "{kind:?} {verbose} {target}");
                }
            }
        }
    }

    #[test]
    fn the_variable_wins_and_is_checked() {
        let targets = targets(Kind::Command, 0, Some("info,engine=trace")).unwrap();
        assert!(targets.would_enable("engine::log", &Level::TRACE));
        assert!(!targets.would_enable("transport", &Level::DEBUG));
        let failure = super::targets(Kind::Command, 0, Some("engine=loud")).unwrap_err();
        assert_eq!(failure.code, Code::Usage);
    }
}
