//! The weights of TrafficSplit v1alpha1: Kubernetes quantities, of which `1` and `500m` are 2 : 1.

use crate::source::manifest::smi::split::Weight;
use crate::source::manifest::smi::split::v1alpha1::Quantity;

/// More digits than anybody writes; they fit 128 bits with the largest binary suffix.
const MAX_DIGITS: usize = 18;

/// The quantities as whole numbers of the same proportions: themselves when all are whole, else their thousandths.
///
/// # Errors
/// The place of the first that is no weight, with the reason and what to do.
pub(super) fn weights<'a>(
    quantities: impl IntoIterator<Item = &'a Quantity>,
) -> Result<Vec<Weight>, (usize, String, &'static str)> {
    let numbered = quantities.into_iter().enumerate();
    let thousandths = numbered
        .map(|(at, quantity)| thousandths(&quantity.0).map_err(|(reason, help)| (at, reason, help)))
        .collect::<Result<Vec<_>, _>>()?;
    let unit = if thousandths.iter().all(|weight| weight.is_multiple_of(1000)) { 1000 } else { 1 };
    let weight = |(at, thousandths): (usize, u128)| {
        u32::try_from(thousandths / unit)
            .map(Weight)
            .map_err(|_| (at, "the weight is too large".to_owned(), "divide all weights by the same number"))
    };
    thousandths.into_iter().enumerate().map(weight).collect()
}

/// A quantity in thousandths.
fn thousandths(text: &str) -> Result<u128, (String, &'static str)> {
    let malformed = || (format!("`{text}` is not a quantity"), "write a number, such as 1 or 500m");
    if text.starts_with('-') {
        return Err((format!("the weight `{text}` is negative"), "use 0 for no traffic"));
    }
    let text = text.strip_prefix('+').unwrap_or(text);
    let suffix = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, suffix) = text.split_at(suffix);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let fraction = fraction.trim_end_matches('0');
    let digits = format!("{whole}{fraction}");
    if number.is_empty() || number == "." || fraction.contains('.') {
        return Err(malformed());
    }
    let (tens, twos) = powers(suffix).ok_or_else(malformed)?;
    let digits = digits.trim_start_matches('0');
    if digits.is_empty() {
        return Ok(0);
    }
    let too_large = || (format!("the weight `{text}` is too large"), "divide all weights by the same number");
    if digits.len() > MAX_DIGITS {
        return Err(too_large());
    }
    let digits: u128 = digits.parse().map_err(|_| malformed())?;
    let fraction = i32::try_from(fraction.len()).map_err(|_| malformed())?;
    let tens = tens - fraction + 3;
    let value = digits << twos;
    let power = 10_u128.checked_pow(tens.unsigned_abs());
    if tens >= 0 {
        return power.and_then(|power| value.checked_mul(power)).ok_or_else(too_large);
    }
    power.filter(|power| value.is_multiple_of(*power)).map(|power| value / power).ok_or_else(|| {
        (format!("the weight `{text}` is finer than 1m"), "multiply all weights until each is a multiple of 1m")
    })
}

/// The powers of ten and of two that a suffix stands for.
fn powers(suffix: &str) -> Option<(i32, u32)> {
    Some(match suffix {
        "n" => (-9, 0),
        "u" => (-6, 0),
        "m" => (-3, 0),
        "" => (0, 0),
        "k" => (3, 0),
        "M" => (6, 0),
        "G" => (9, 0),
        "T" => (12, 0),
        "P" => (15, 0),
        "E" => (18, 0),
        "Ki" => (0, 10),
        "Mi" => (0, 20),
        "Gi" => (0, 30),
        "Ti" => (0, 40),
        "Pi" => (0, 50),
        "Ei" => (0, 60),
        _ => {
            let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            // Beyond these nothing is a weight, and the sum with the other powers stays small.
            (exponent.clamp(-1000, 1000), 0)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(texts: &[&str]) -> Result<Vec<u32>, String> {
        let quantities: Vec<Quantity> = texts.iter().map(|text| Quantity((*text).to_owned())).collect();
        weights(&quantities)
            .map(|weights| weights.into_iter().map(|weight| weight.0).collect())
            .map_err(|(at, reason, _)| format!("{at}: {reason}"))
    }

    #[test]
    fn whole_quantities_stay_and_others_become_thousandths_together() {
        for (texts, expected) in [
            (&["1", "500m"][..], &[1000, 500][..]),
            (&["90", "10"], &[90, 10]),
            (&["1000m", "2.0"], &[1, 2]),
            (&["0.25", "+.75", "0"], &[250, 750, 0]),
            (&["1k", "1Ki", "1e3", "1E3", "2e+1"], &[1000, 1024, 1000, 1000, 20]),
            (&["5e-1", "1"], &[500, 1000]),
            (&["1000000u", "1000000000n"], &[1, 1]),
            (&["4294967295", "0m"], &[4_294_967_295, 0]),
        ] {
            assert_eq!(of(texts).as_deref(), Ok(expected), "{texts:?}");
        }
    }

    #[test]
    fn what_is_no_weight_is_said_with_its_place() {
        for (text, reason) in [
            ("", "is not a quantity"),
            (".", "is not a quantity"),
            ("1.2.3", "is not a quantity"),
            ("one", "is not a quantity"),
            ("1 m", "is not a quantity"),
            ("1e", "is not a quantity"),
            ("1e999999999999", "is not a quantity"),
            ("-1", "is negative"),
            ("1u", "is finer than 1m"),
            ("1e-900", "is finer than 1m"),
            ("4294967296", "is too large"),
            ("1Ei", "is too large"),
            ("1e900", "is too large"),
            ("9999999999999999999", "is too large"),
        ] {
            let found = of(&["1", text]);
            assert!(
                found.as_ref().is_err_and(|found| found.starts_with("1: ") && found.contains(reason)),
                "{text}: {found:?}"
            );
        }
    }
}
