//! The command line that the benchmarks have in common.

use std::path::PathBuf;

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// Seconds that each cell is measured for.
    pub seconds: u64,
    /// Times that each cell is measured.
    pub rounds: usize,
    /// Rows whose name has one of these in it; all if empty.
    pub rows: Vec<String>,
    /// Columns whose name has one of these in it; all if empty.
    pub columns: Vec<String>,
    /// A folder on the filesystem that is to be measured.
    pub dir: PathBuf,
}

const HELP: &str = "\
  --short            a second for each cell, one round
  --long             ten seconds for each cell, five rounds
  --seconds N        how long each cell is measured [default: 3]
  --rounds N         how often; the median counts [default: 3]
  --rows A,B         only rows whose name has A or B in it
  --columns A,B      only columns whose name has A or B in it
  --dir DIR          on the filesystem to measure [default: the build's folder for temporary files]";

impl Options {
    /// From the process's arguments; ends it if they are wrong or help is asked for.
    pub fn parse(about: &str) -> Options {
        let mut options = Options {
            seconds: 3,
            rounds: 3,
            rows: Vec::new(),
            columns: Vec::new(),
            dir: PathBuf::from(env!("CARGO_TARGET_TMPDIR")),
        };
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            let mut value =
                || arguments.next().unwrap_or_else(|| wrong(&format!("{argument} needs a value")));
            let list = |text: String| text.split(',').map(str::to_lowercase).collect();
            match argument.as_str() {
                // `cargo bench` adds it.
                "--bench" => {}
                "--help" | "-h" => {
                    println!("{about}\n\n{HELP}");
                    std::process::exit(0);
                }
                "--short" => (options.seconds, options.rounds) = (1, 1),
                "--long" => (options.seconds, options.rounds) = (10, 5),
                "--seconds" => options.seconds = number(&value()),
                "--rounds" => options.rounds = number(&value()) as usize,
                "--rows" => options.rows = list(value()),
                "--columns" => options.columns = list(value()),
                "--dir" => options.dir = value().into(),
                other => wrong(&format!("{other} is not an option")),
            }
        }
        options
    }

    pub fn wants_row(&self, name: &str) -> bool {
        wants(&self.rows, name)
    }

    pub fn wants_column(&self, name: &str) -> bool {
        wants(&self.columns, name)
    }
}

fn wants(list: &[String], name: &str) -> bool {
    list.is_empty() || list.iter().any(|part| name.to_lowercase().contains(part))
}

fn number(text: &str) -> u64 {
    match text.parse() {
        Ok(0) | Err(_) => wrong(&format!("{text} is not a number above zero")),
        Ok(number) => number,
    }
}

fn wrong(what: &str) -> ! {
    eprintln!("{what}\n\n{HELP}");
    std::process::exit(2);
}
