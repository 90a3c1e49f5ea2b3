//! The reference itself, on histories small enough to see the answer.

use super::*;
use crate::rng::Rng;

fn write(volume: usize, sector: u64, value: u8) -> Operation {
    Operation { volume, offset: sector * 512, effect: Effect::Write(Bytes::from(vec![value; 512])) }
}

/// Two volumes of four sectors, and writes of one sector each: (volume, sector, value), all answered.
fn history(writes: &[(usize, u64, u8)]) -> Reference {
    let mut reference = Reference::empty(&[2_048, 2_048]);
    for (volume, sector, value) in writes {
        let id = reference.submit(write(*volume, *sector, *value), false);
        reference.answer(id);
    }
    reference
}

fn image(sectors: [[u8; 4]; 2]) -> Image {
    sectors.iter().map(|volume| volume.iter().flat_map(|value| [*value; 512]).collect()).collect()
}

#[test]
fn r16_r17_every_prefix_is_recognised_and_a_mixture_over_two_volumes_is_not() {
    let reference = history(&[(0, 0, 1), (1, 0, 2), (0, 0, 3), (1, 3, 4)]);
    let states = [
        image([[0, 0, 0, 0], [0, 0, 0, 0]]),
        image([[1, 0, 0, 0], [0, 0, 0, 0]]),
        image([[1, 0, 0, 0], [2, 0, 0, 0]]),
        image([[3, 0, 0, 0], [2, 0, 0, 0]]),
        image([[3, 0, 0, 0], [2, 0, 0, 4]]),
    ];
    for (n, state) in states.iter().enumerate() {
        let n = Prefix(n as u64);
        assert_eq!(reference.prefixes_of(state), [n]);
        assert_eq!(reference.state(n), *state);
        assert_eq!(reference.check(state, Prefix(0), Prefix(4)), Ok(n));
    }
    let mixed = image([[3, 0, 0, 0], [0, 0, 0, 4]]);
    let wrong = reference.check(&mixed, Prefix(0), Prefix(4)).unwrap_err();
    let mixture = Mixture { nearest: Prefix(4), sectors: vec![(1, 0)], count: 1 };
    assert_eq!(wrong, Wrong::NoPrefix(mixture));
    let wrong = reference.check(&states[1], Prefix(2), Prefix(4)).unwrap_err();
    assert_eq!(wrong, Wrong::OutOfRange { found: Prefix(1), min: Prefix(2), max: Prefix(4) });
    assert!(matches!(reference.check(&vec![vec![0; 2_048]], Prefix(0), Prefix(4)), Err(Wrong::Sizes { .. })));
    let mut one_bit = states[4].clone();
    one_bit[1][2_047] ^= 1;
    assert!(reference.prefixes_of(&one_bit).is_empty());
}

#[test]
fn r16_a_state_is_told_from_every_image_that_differs_in_a_bit_with_and_without_a_copy() {
    for seed in 0..12 {
        let mut rng = Rng::new(seed);
        let unit = if seed % 3 == 0 { 1 } else { 512 };
        let mut reference = Reference::empty(&[8_192, 4_096]);
        for value in 0..600_u32 {
            let volume = rng.below(2) as usize;
            let size = reference.current()[volume].len() as u64;
            let len = (1 + rng.below(4 * 512 / unit)) * unit;
            let offset = rng.below((size - len) / unit + 1) * unit;
            let effect = match rng.below(4) {
                0 => Effect::Zeros(len),
                _ => Effect::Write(Bytes::from(vec![value as u8 | 1; len as usize])),
            };
            reference.submit(Operation { volume, offset, effect }, false);
        }
        for _ in 0..60 {
            let prefix = Prefix(rng.below(601));
            let mut image = reference.state(prefix);
            assert!(reference.is_state(prefix, &image), "seed {seed}, {prefix}");
            let volume = rng.below(2) as usize;
            let byte = rng.below(image[volume].len() as u64) as usize;
            image[volume][byte] ^= 1 << rng.below(8);
            assert!(!reference.is_state(prefix, &image), "seed {seed}, {prefix}, byte {byte}");
            image[volume].truncate(512);
            assert!(!reference.is_state(prefix, &image), "an image of another size");
        }
    }
}

#[test]
fn operations_that_change_nothing_give_several_prefixes() {
    let mut reference = history(&[(0, 0, 1), (0, 0, 1)]);
    reference.submit(Operation { volume: 0, offset: 7, effect: Effect::Zeros(0) }, false);
    let found = reference.prefixes_of(reference.current());
    assert_eq!(found, [Prefix(3), Prefix(2), Prefix(1)]);
    assert_eq!(reference.check(reference.current(), Prefix(1), Prefix(2)), Ok(Prefix(2)));
}

#[test]
fn a_flush_covers_what_was_answered_when_it_was_submitted_and_nothing_else() {
    let mut reference = Reference::empty(&[2_048]);
    let ids: Vec<OpId> = (0..4).map(|at| reference.submit(write(0, at, 1), false)).collect();
    reference.answer(ids[0]);
    let flush = reference.submit_flush();
    reference.answer(ids[1]);
    assert_eq!(reference.must_survive(Death::Power), Prefix(0));
    reference.answer_flush(flush);
    assert_eq!(reference.must_survive(Death::Power), Prefix(1));
    assert_eq!(reference.must_survive(Death::Process), Prefix(2));
    let fua = reference.submit(write(0, 0, 9), true);
    assert_eq!(reference.must_survive(Death::Power), Prefix(1));
    reference.answer(fua);
    assert_eq!(reference.must_survive(Death::Power), Prefix(5), "a suffix only: all before it, too");
    let refused = reference.submit_flush();
    reference.forget_flush(refused);
    assert_eq!(reference.must_survive(Death::Power), Prefix(5));
    assert!(reference.check_survivor(&reference.state(Prefix(5)), Death::Power).is_ok());
    assert!(reference.check_survivor(&reference.state(Prefix(4)), Death::Power).is_err());
}

#[test]
fn rewinding_forgets_what_was_lost_and_history_goes_on() {
    let mut reference = history(&[(0, 0, 1), (0, 1, 2), (0, 2, 3)]);
    let open = reference.submit(write(0, 3, 4), false);
    reference.rewind(Prefix(2));
    assert_eq!(reference.end(), Prefix(2));
    assert_eq!(*reference.current(), image([[1, 2, 0, 0], [0; 4]]));
    reference.answer(open);
    let id = reference.submit(write(1, 1, 7), false);
    assert_eq!(id, OpId(2));
    assert_eq!(reference.prefixes_of(&image([[1, 2, 0, 0], [0, 7, 0, 0]])), [Prefix(3)]);
    assert_eq!(reference.must_survive(Death::Process), Prefix(2));
}

#[test]
fn states_far_back_are_rebuilt_and_old_ones_can_be_forgotten() {
    let mut reference = Reference::empty(&[4_096]);
    let mut plain = vec![0_u8; 4_096];
    let mut at_500 = Vec::new();
    for n in 0..1_000_u64 {
        let (offset, len) = (n * 37 % 4_000, n % 90);
        let zeros = n % 5 == 0;
        let bytes = vec![n as u8; len as usize];
        plain[offset as usize..][..len as usize].copy_from_slice(&if zeros {
            vec![0; len as usize]
        } else {
            bytes.clone()
        });
        let effect = if zeros { Effect::Zeros(len) } else { Effect::Write(bytes.into()) };
        let id = reference.submit(Operation { volume: 0, offset, effect }, false);
        reference.answer(id);
        if n == 499 {
            at_500.clone_from(&plain);
        }
    }
    assert_eq!(reference.current()[0], plain);
    assert_eq!(reference.state(Prefix(500))[0], at_500);
    reference.forget(Prefix(400));
    assert_eq!(reference.start(), Prefix(256));
    assert_eq!(reference.state(Prefix(500))[0], at_500);
    assert_eq!(reference.prefixes_of(&vec![at_500]).last(), Some(&Prefix(500)));
    assert_eq!(reference.prefixes_of(&vec![plain])[0], Prefix(1_000));
    assert_eq!(reference.end(), Prefix(1_000));
}

#[test]
fn w37_reads_show_one_state_between_submission_and_answer() {
    let mut reference = history(&[(0, 0, 1), (0, 0, 2), (0, 1, 2)]);
    let bytes = |a: u8, b: u8| [[a; 512], [b; 512]].concat();
    assert!(reference.may_read(0, 0, &bytes(2, 2), Prefix(3)));
    assert!(!reference.may_read(0, 0, &bytes(2, 0), Prefix(3)), "stale");
    assert!(reference.may_read(0, 0, &bytes(2, 0), Prefix(2)));
    assert!(!reference.may_read(0, 0, &bytes(1, 2), Prefix(0)), "never at the same time");
    reference.submit(write(0, 0, 3), false);
    assert!(
        reference.may_read(0, 0, &bytes(3, 2), Prefix(3))
            && reference.may_read(0, 0, &bytes(2, 2), Prefix(3))
    );
}

#[test]
fn w37_overlapping_writes_in_flight_may_come_in_any_order_but_answered_ones_may_not() {
    let mut reference = Reference::empty(&[1_024]);
    let a = reference.submit(write(0, 0, 1), false);
    let b = reference.submit(write(0, 0, 2), false);
    let image = |first: u8, second: u8| vec![[[first; 512], [second; 512]].concat()];
    let explain =
        |reference: &Reference, image: &Image, min: u64| reference.explain(image, Prefix(min), 1_000);
    for (found, min, order) in [
        (image(0, 0), 0, Explanation::Order(vec![])),
        (image(2, 0), 2, Explanation::Order(vec![0, 1])),
        (image(1, 0), 2, Explanation::Order(vec![1, 0])),
        (image(0, 0), 1, Explanation::None),
        (image(0, 1), 0, Explanation::None),
    ] {
        assert_eq!(explain(&reference, &found, min), order, "min {min}");
    }
    reference.answer(a);
    reference.answer(b);
    let c = reference.submit(write(0, 1, 3), false);
    reference.submit(write(0, 0, 4), false);
    reference.answer(c);
    assert_eq!(explain(&reference, &image(4, 0), 2), Explanation::Order(vec![0, 1, 3]));
    assert_eq!(explain(&reference, &image(1, 3), 3), Explanation::Order(vec![1, 0, 2]));
    let late = reference.submit(write(0, 1, 5), false);
    assert_eq!(explain(&reference, &image(4, 5), 5), Explanation::Order(vec![0, 1, 2, 3, 4]));
    assert_eq!(
        explain(&reference, &image(4, 3), 5),
        Explanation::None,
        "{late:?} came after an answered write"
    );
    assert_eq!(reference.explain(&image(9, 9), Prefix(0), 3), Explanation::GaveUp);
}
