//! Who decides what survives a power cut.
//!
//! Each open question (a sector's version, a file's length, a folder's change) is put as a choice between
//! alternatives, the oldest state first and the newest last, in a fixed order.

use crate::rng::Rng;

/// Answers the questions of a power cut.
pub trait Fate {
    /// One of `choices` alternatives: 0 is the oldest, `choices - 1` the newest. `choices` is at least 1.
    fn pick(&mut self, choices: usize) -> usize;
}

/// Nothing that was not synced survives.
#[derive(Clone, Copy, Debug, Default)]
pub struct LoseAll;

impl Fate for LoseAll {
    fn pick(&mut self, _choices: usize) -> usize {
        0
    }
}

/// Everything survives.
#[derive(Clone, Copy, Debug, Default)]
pub struct KeepAll;

impl Fate for KeepAll {
    fn pick(&mut self, choices: usize) -> usize {
        choices - 1
    }
}

/// Each question by a throw of the dice; one throw in advance decides how many survive on the whole, so that
/// "nearly all" and "nearly nothing", where the interesting holes are, come up as often as "half".
#[derive(Debug)]
pub struct Dice<'a> {
    rng: &'a mut Rng,
    oldest_ppm: u32,
}

impl<'a> Dice<'a> {
    /// Throws with this generator.
    pub fn new(rng: &'a mut Rng) -> Dice<'a> {
        let oldest_ppm = *rng.pick(&[0, 20_000, 200_000, 500_000, 800_000, 980_000, crate::rng::PPM]);
        Dice { rng, oldest_ppm }
    }
}

impl Fate for Dice<'_> {
    fn pick(&mut self, choices: usize) -> usize {
        if choices == 1 || self.rng.chance(self.oldest_ppm) {
            return 0;
        }
        // Mostly the newest; sometimes one in between.
        if choices == 2 || self.rng.chance(700_000) {
            choices - 1
        } else {
            1 + self.rng.below(choices as u64 - 1) as usize
        }
    }
}

/// Walks through every combination of answers: run the same thing with it again and again until
/// [`Odometer::advance`] says that there is no further one.
///
/// ```
/// # use sim::disk::{Fate, Odometer};
/// let mut seen = Vec::new();
/// let mut odometer = Odometer::default();
/// loop {
///     seen.push((odometer.pick(2), odometer.pick(3)));
///     if !odometer.advance() {
///         break;
///     }
/// }
/// assert_eq!(seen, [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]);
/// ```
#[derive(Clone, Debug, Default)]
pub struct Odometer {
    wheels: Vec<(usize, usize)>,
    at: usize,
}

impl Odometer {
    /// Turns to the next combination; false if the last one is through.
    pub fn advance(&mut self) -> bool {
        assert_eq!(self.at, self.wheels.len(), "the same questions come in each round");
        self.at = 0;
        while let Some((answer, choices)) = self.wheels.pop() {
            if answer + 1 < choices {
                self.wheels.push((answer + 1, choices));
                return true;
            }
        }
        false
    }

    /// The answers of this round, for a report.
    #[must_use]
    pub fn answers(&self) -> Vec<usize> {
        self.wheels.iter().map(|(answer, _)| *answer).collect()
    }
}

impl Fate for Odometer {
    fn pick(&mut self, choices: usize) -> usize {
        if choices == 1 {
            return 0;
        }
        if self.at == self.wheels.len() {
            self.wheels.push((0, choices));
        }
        let (answer, recorded) = self.wheels[self.at];
        assert_eq!(recorded, choices, "question {} had {recorded} answers before", self.at);
        self.at += 1;
        answer
    }
}
