//! Configuration errors as `file:line:column: what`, with the key that was probably meant.
//!
//! Serde tells of an unknown key or value by a sentence that lists the known ones between backticks; the nearest
//! by edit distance is proposed if it is near enough to be a slip of the hand.

use crate::exit::Failure;
use std::ops::Range;
use std::path::Path;

/// What is wrong with a file that can be read as TOML.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Complaint {
    /// The bytes of the text that it is about.
    pub(crate) span: Range<usize>,
    /// What is wrong.
    pub(crate) what: String,
    /// What to write instead.
    pub(crate) next: Option<String>,
}

impl Complaint {
    /// A complaint about a value.
    pub(crate) fn about<T>(value: &toml::Spanned<T>, what: impl std::fmt::Display) -> Complaint {
        Complaint { span: value.span(), what: what.to_string(), next: None }
    }

    /// With advice.
    pub(crate) fn next(mut self, next: impl std::fmt::Display) -> Complaint {
        self.next = Some(next.to_string());
        self
    }
}

/// An error of the TOML reader or of serde.
pub(crate) fn from_toml(path: &Path, text: &str, message: &str, span: Option<Range<usize>>) -> Failure {
    let failure =
        Failure::usage(format_args!("{}: {message}", place(path, text, span.unwrap_or(0..0).start)));
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    match quoted.split_first() {
        Some((found, known)) if message.starts_with("unknown ") => match nearest(found, known) {
            Some(meant) => failure.next(format_args!("did you mean `{meant}`?")),
            None => failure,
        },
        _ => failure,
    }
}

/// An error of the checks.
pub(crate) fn from_check(path: &Path, text: &str, complaint: Complaint) -> Failure {
    let failure =
        Failure::usage(format_args!("{}: {}", place(path, text, complaint.span.start), complaint.what));
    Failure { next: complaint.next, ..failure }
}

/// `file:line:column`, both counted from one, columns in characters.
fn place(path: &Path, text: &str, offset: usize) -> String {
    let before = text.get(..offset).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
    format!("{}:{line}:{column}", path.display())
}

/// The candidate that differs from `found` by the fewest edits, if that is at most a third of its length.
pub(crate) fn nearest<'a>(found: &str, candidates: &[&'a str]) -> Option<&'a str> {
    let best = candidates.iter().min_by_key(|candidate| distance(found, candidate))?;
    (distance(found, best) <= best.chars().count().div_ceil(3)).then_some(best)
}

/// Levenshtein's distance: insertions, deletions and replacements of one character.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        for (a, b, expected) in
            [("", "", 0), ("", "abc", 3), ("kitten", "sitting", 3), ("segmnt", "segment", 1), ("ä", "a", 1)]
        {
            assert_eq!(distance(a, b), expected, "{a} {b}");
            assert_eq!(distance(b, a), expected, "{b} {a}");
        }
    }

    #[test]
    fn only_a_slip_of_the_hand_is_proposed() {
        assert_eq!(nearest("replica", &["replicas", "accept"]), Some("replicas"));
        assert_eq!(nearest("colour", &["replicas", "accept"]), None);
        assert_eq!(nearest("x", &[]), None);
    }
}
