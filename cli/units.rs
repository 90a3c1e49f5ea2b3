//! Sizes and durations as people write and read them.
//!
//! Invariants:
//! - what is written here is read back to the same number, if no digit was rounded away;
//! - units are binary and spelled in full (`GiB`), so that nobody has to guess which GB is meant;
//! - nothing overflows: a number that does not fit is an error.

use std::fmt;
use std::time::Duration;

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Bytes(pub(crate) u64);

/// 1 KiB.
pub(crate) const KIB: u64 = 1 << 10;
/// 1 MiB.
pub(crate) const MIB: u64 = 1 << 20;
/// 1 GiB.
pub(crate) const GIB: u64 = 1 << 30;
/// 1 TiB.
pub(crate) const TIB: u64 = 1 << 40;

const SIZES: [(&str, u64); 5] = [("TiB", TIB), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB), ("B", 1)];
const DURATIONS: [(&str, u64); 5] =
    [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// Reads `10GiB`, `512MiB`, `4096` (bytes).
pub(crate) fn parse_bytes(text: &str) -> Result<Bytes, String> {
    let (number, unit) = split(text, "size", "10GiB")?;
    let factor = if unit.is_empty() {
        1
    } else if let Some((_, factor)) = SIZES.iter().find(|(name, _)| *name == unit) {
        *factor
    } else {
        let meant = unit.chars().next().unwrap_or(' ').to_ascii_uppercase();
        let hint = SIZES.iter().find(|(name, _)| name.starts_with(meant));
        return Err(match hint {
            Some((name, _)) => format!("`{text}` has no unit known here: did you mean `{number}{name}`?"),
            None => format!("`{text}` has no unit known here: use B, KiB, MiB, GiB or TiB"),
        });
    };
    number.checked_mul(factor).map(Bytes).ok_or_else(|| format!("`{text}` is more than 2^64 bytes"))
}

/// Reads `250ms`, `5s`, `10m`, `72h`, `7d`.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = split(text, "duration", "5s")?;
    let Some((_, factor)) = DURATIONS.iter().find(|(name, _)| *name == unit) else {
        return Err(format!("`{text}` has no unit known here: use ms, s, m, h or d"));
    };
    let ms = number.checked_mul(*factor).ok_or_else(|| format!("`{text}` is too long"))?;
    Ok(Duration::from_millis(ms))
}

fn split<'a>(text: &'a str, what: &str, example: &str) -> Result<(u64, &'a str), String> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    if digits.is_empty() {
        return Err(format!("`{text}` is not a {what}: write a whole number and a unit, as in `{example}`"));
    }
    let number = digits.parse().map_err(|_| format!("`{text}` is more than 2^64"))?;
    Ok((number, unit.trim_start()))
}

/// Three digits and the largest unit that leaves a number of at least one: `1.50 GiB`.
impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match SIZES.iter().find(|(_, factor)| self.0 >= *factor) {
            Some((name, 1)) => format!("{} {name}", self.0),
            Some((name, factor)) => format!("{} {name}", three_digits(self.0, *factor)),
            None => "0 B".to_owned(),
        };
        f.pad(&text)
    }
}

/// `value / factor`, rounded to about three digits.
#[expect(clippy::cast_precision_loss, reason = "three digits are shown, a float has fifteen")]
fn three_digits(value: u64, factor: u64) -> String {
    let ratio = value as f64 / factor as f64;
    if value.is_multiple_of(factor) {
        format!("{}", value / factor)
    } else if ratio < 10.0 {
        format!("{ratio:.2}")
    } else if ratio < 100.0 {
        format!("{ratio:.1}")
    } else {
        format!("{ratio:.0}")
    }
}

/// A size in the shortest exact form that [`parse_bytes`] reads back: `10GiB`.
pub(crate) fn exact_bytes(bytes: u64) -> String {
    match SIZES.iter().find(|(_, factor)| bytes > 0 && bytes.is_multiple_of(*factor)) {
        Some((name, factor)) => format!("{}{name}", bytes / factor),
        None => "0B".to_owned(),
    }
}

/// The two largest units: `3d 4h`, `12m 5s`, `1.25s`, `340ms`.
pub(crate) fn duration_ms(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms}ms"),
        1_000..60_000 => format!("{}s", three_digits(ms, 1_000)),
        _ => {
            let at = DURATIONS.iter().position(|(_, factor)| ms >= *factor).unwrap_or(0);
            let (name, factor) = DURATIONS[at];
            let (lesser_name, lesser) = DURATIONS[at + 1];
            match (ms % factor) / lesser {
                0 => format!("{}{name}", ms / factor),
                rest => format!("{}{name} {rest}{lesser_name}", ms / factor),
            }
        }
    }
}

/// A count with its digits in groups of three: `1,234,567`.
pub(crate) fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("512B", 512),
            ("10GiB", 10 * GIB),
            ("64 TiB", 64 * TIB),
            (" 1KiB ", 1024),
        ] {
            assert_eq!(parse_bytes(text), Ok(Bytes(bytes)), "{text}");
        }
    }

    #[test]
    fn wrong_sizes_say_what_was_meant() {
        for (text, message) in [
            ("10G", "`10G` has no unit known here: did you mean `10GiB`?"),
            ("10gb", "`10gb` has no unit known here: did you mean `10GiB`?"),
            ("10x", "`10x` has no unit known here: use B, KiB, MiB, GiB or TiB"),
            ("big", "`big` is not a size: write a whole number and a unit, as in `10GiB`"),
            ("", "`` is not a size: write a whole number and a unit, as in `10GiB`"),
            ("1.5GiB", "`1.5GiB` has no unit known here: use B, KiB, MiB, GiB or TiB"),
            ("-1", "`-1` is not a size: write a whole number and a unit, as in `10GiB`"),
            ("99999999TiB", "`99999999TiB` is more than 2^64 bytes"),
            ("99999999999999999999", "`99999999999999999999` is more than 2^64"),
        ] {
            assert_eq!(parse_bytes(text), Err(message.to_owned()));
        }
    }

    #[test]
    fn durations_are_read() {
        for (text, ms) in
            [("250ms", 250), ("5s", 5_000), ("10m", 600_000), ("72h", 259_200_000), ("7d", 604_800_000)]
        {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        assert_eq!(parse_duration("5"), Err("`5` has no unit known here: use ms, s, m, h or d".to_owned()));
        assert!(parse_duration("99999999999999999d").is_err());
    }

    #[test]
    fn numbers_are_written_short() {
        for (bytes, text) in [
            (0, "0 B"),
            (1, "1 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (1536, "1.50 KiB"),
            (10 * GIB, "10 GiB"),
            (123 * GIB + GIB / 3, "123 GiB"),
            (u64::MAX, "16777216 TiB"),
        ] {
            assert_eq!(Bytes(bytes).to_string(), text);
        }
        for (ms, text) in [
            (0, "0ms"),
            (340, "340ms"),
            (1_250, "1.25s"),
            (59_999, "60.0s"),
            (60_000, "1m"),
            (725_000, "12m 5s"),
            (3_600_000, "1h"),
            (90_000_000, "1d 1h"),
        ] {
            assert_eq!(duration_ms(ms), text);
        }
        assert_eq!([0, 999, 1_000, 1_234_567].map(count), ["0", "999", "1,000", "1,234,567"]);
    }

    #[test]
    fn exact_sizes_are_read_back() {
        for bytes in [0, 1, 512, 1024, 1536, 10 * GIB, 64 * TIB, 512 * 1_000_003, u64::MAX] {
            assert_eq!(parse_bytes(&exact_bytes(bytes)), Ok(Bytes(bytes)));
        }
    }
}
