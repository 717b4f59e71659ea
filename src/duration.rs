//! Durations as people write them: `50ms`, `1.5s`, `2m`, `1h30m` (Gateway API, GEP-2257).

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A duration that reads and prints with its unit.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct HumanDuration(pub Duration);

/// The text is no duration.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0:?} is not a duration; write a number with its unit, as in 50ms, 1.5s, 2m or 1h30m")]
pub struct NotADuration(String);

const UNITS: [(&str, f64); 7] =
    [("ns", 1e-9), ("us", 1e-6), ("µs", 1e-6), ("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3600.0)];

impl FromStr for HumanDuration {
    type Err = NotADuration;

    fn from_str(text: &str) -> Result<Self, NotADuration> {
        let refused = || NotADuration(text.to_owned());
        if text == "0" {
            return Ok(Self::default());
        }
        let (mut seconds, mut rest) = (0.0, text);
        while !rest.is_empty() || text.is_empty() {
            let number_ends = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
            let (number, unit) = rest.split_at(number_ends);
            let unit_ends = unit.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(unit.len());
            let (unit, more) = unit.split_at(unit_ends);
            let number: f64 = number.parse().map_err(|_| refused())?;
            let (_, worth) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(refused)?;
            seconds += number * worth;
            rest = more;
        }
        Duration::try_from_secs_f64(seconds).map(Self).map_err(|_| refused())
    }
}

impl fmt::Display for HumanDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0) // Duration's Debug is just this form: 50ms, 1.5s
    }
}

impl From<HumanDuration> for String {
    fn from(duration: HumanDuration) -> Self {
        duration.to_string()
    }
}

impl TryFrom<String> for HumanDuration {
    type Error = NotADuration;

    fn try_from(text: String) -> Result<Self, NotADuration> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_number_with_its_unit() {
        for (text, milliseconds) in [("50ms", 50), ("1.5s", 1500), ("2m", 120_000), ("1h30m", 5_400_000), ("0", 0)] {
            assert_eq!(text.parse(), Ok(HumanDuration(Duration::from_millis(milliseconds))), "{text}");
        }
    }

    #[test]
    fn refuses_what_is_no_duration() {
        for text in [
            "",
            "5",
            "ms",
            "-1s",
            "1 s",
            "1e9s",
            "1..5s",
            "5days",
            "1h30",
            "h1m",
            "99999999999999999999999999h",
            "NaNs",
            "١s",
        ] {
            assert!(text.parse::<HumanDuration>().is_err(), "{text}");
        }
    }

    #[test]
    fn reads_what_it_prints() {
        for duration in [0, 1, 1_500, 50_000_000, 1_500_000_000, 90_000_000_000].map(Duration::from_nanos) {
            assert_eq!(HumanDuration(duration).to_string().parse(), Ok(HumanDuration(duration)));
        }
    }
}
