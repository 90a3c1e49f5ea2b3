//! How a command ends: the exit codes, in one table, and the error that carries one.
//!
//! | code | meaning |
//! |---|---|
//! | 0 | done, or it was done before |
//! | 1 | failed: the machine, the network or the other side would not |
//! | 2 | the command line or the configuration is wrong; nothing was done |
//! | 3 | refused: the state of the node or the group does not allow it; nothing was changed |
//! | 4 | corruption was found, or a check of the data failed |
//! | 5 | no daemon answers at the control socket |
//! | 6 | not confirmed: the answer was no, or nobody could be asked and `--yes` was not given |
//! | 7 | done in part: what could be read or written is there, the rest is listed |
//! | 10 | `sim`: a guarantee or an assertion is broken |
//! | 11 | `sim`: a run did not converge |
//! | 12 | `sim`: the engine crashed |
//! | 13 | `sim soak --strict`: a kind of fault never happened |
//!
//! Invariants:
//! - a code once given a meaning keeps it: scripts depend on them;
//! - an error says what happened, to what and why; `next` says what to do about it.

use std::fmt;

/// The codes of the table above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    /// 1.
    Failed,
    /// 2.
    Usage,
    /// 3.
    Refused,
    /// 4.
    Corrupt,
    /// 5.
    NoDaemon,
    /// 6.
    NotConfirmed,
    /// 7.
    Partial,
    /// 10.
    Broken,
    /// 11.
    NotConverged,
    /// 12.
    Crashed,
    /// 13.
    NotCovered,
}

impl Code {
    /// The process's exit status.
    pub(crate) fn status(self) -> u8 {
        match self {
            Code::Failed => 1,
            Code::Usage => 2,
            Code::Refused => 3,
            Code::Corrupt => 4,
            Code::NoDaemon => 5,
            Code::NotConfirmed => 6,
            Code::Partial => 7,
            Code::Broken => 10,
            Code::NotConverged => 11,
            Code::Crashed => 12,
            Code::NotCovered => 13,
        }
    }
}

/// The table for `--help`.
pub(crate) const HELP: &str = "\
Exit status:
  0  done, or it was done before
  1  failed: the machine, the network or the other side would not
  2  the command line or the configuration is wrong; nothing was done
  3  refused: the state of the node or the group does not allow it; nothing was changed
  4  corruption was found, or a check of the data failed
  5  no daemon answers at the control socket
  6  not confirmed
  7  done in part: what could be read or written is there, the rest is listed
 10  sim: a guarantee or an assertion is broken
 11  sim: a run did not converge
 12  sim: the engine crashed
 13  sim soak --strict: a kind of fault never happened";

/// Why a command did not end well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// Which row of the table.
    pub(crate) code: Code,
    /// What happened, to what, and why.
    pub(crate) what: String,
    /// What to do next, where there is something.
    pub(crate) next: Option<String>,
}

impl Failure {
    /// A failure without advice.
    pub(crate) fn new(code: Code, what: impl fmt::Display) -> Failure {
        Failure { code, what: what.to_string(), next: None }
    }

    /// Code 1.
    pub(crate) fn failed(what: impl fmt::Display) -> Failure {
        Failure::new(Code::Failed, what)
    }

    /// Code 2.
    pub(crate) fn usage(what: impl fmt::Display) -> Failure {
        Failure::new(Code::Usage, what)
    }

    /// Code 3.
    pub(crate) fn refused(what: impl fmt::Display) -> Failure {
        Failure::new(Code::Refused, what)
    }

    /// Code 4.
    pub(crate) fn corrupt(what: impl fmt::Display) -> Failure {
        Failure::new(Code::Corrupt, what)
    }

    /// With advice.
    pub(crate) fn next(mut self, next: impl fmt::Display) -> Failure {
        self.next = Some(next.to_string());
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        self.next.as_ref().map_or(Ok(()), |next| write!(f, "\n  next: {next}"))
    }
}

impl std::error::Error for Failure {}

/// Adds what was being done, and to what, to an error of the machine.
pub(crate) trait Context<T> {
    /// Turns the error into code 1 with `doing` in front of it.
    fn context<D: fmt::Display>(self, doing: impl FnOnce() -> D) -> Result<T, Failure>;
}

impl<T, E: fmt::Display> Context<T> for Result<T, E> {
    fn context<D: fmt::Display>(self, doing: impl FnOnce() -> D) -> Result<T, Failure> {
        self.map_err(|err| Failure::failed(format_args!("{}: {err}", doing())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_lists_every_code_once() {
        let all = [
            Code::Failed,
            Code::Usage,
            Code::Refused,
            Code::Corrupt,
            Code::NoDaemon,
            Code::NotConfirmed,
            Code::Partial,
            Code::Broken,
            Code::NotConverged,
            Code::Crashed,
            Code::NotCovered,
        ];
        let listed: Vec<u8> = HELP
            .lines()
            .skip(1)
            .map(|line| {
                let code = line.split_whitespace().next().expect("a row of the table");
                code.parse().expect("a row begins with its code")
            })
            .collect();
        let mut expected = vec![0];
        expected.extend(all.map(Code::status));
        assert_eq!(listed, expected);
    }

    #[test]
    fn a_failure_reads_as_what_and_next() {
        let failure = Failure::refused("group db is fenced").next("see `landfall status`");
        assert_eq!(failure.to_string(), "group db is fenced\n  next: see `landfall status`");
    }
}
