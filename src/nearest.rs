//! "Did you mean …?": which known name somebody most likely meant by one that nobody knows.

/// The one of `known` that `word` is a slip of, whatever its case; `None` if none is near.
pub(crate) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word: Vec<char> = word.to_lowercase().chars().collect();
    let far = |known: &'a str| {
        let letters: Vec<char> = known.to_lowercase().chars().collect();
        let distance = distance(&word, &letters);
        (distance <= (word.len().max(letters.len()) / 3).max(1)).then_some((distance, known))
    };
    known.into_iter().filter_map(far).min_by_key(|(distance, _)| *distance).map(|(_, known)| known)
}

/// How many letters have to be changed, added, taken away or swapped with the next (optimal string alignment).
fn distance(one: &[char], other: &[char]) -> usize {
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=other.len()).collect();
    for (i, a) in one.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, b) in other.iter().enumerate() {
            let changed = last.get(j).map_or(0, |cost| cost + usize::from(a != b));
            let added = row.get(j).map_or(0, |cost| cost + 1);
            let taken = last.get(j + 1).map_or(0, |cost| cost + 1);
            let mut cost = changed.min(added).min(taken);
            let is_swap = i > 0 && j > 0 && one.get(i - 1) == Some(b) && other.get(j - 1) == Some(a);
            if let Some(swapped) = before.get(j.wrapping_sub(1)).filter(|_| is_swap) {
                cost = cost.min(swapped + 1);
            }
            row.push(cost);
        }
        before = std::mem::replace(&mut last, row);
    }
    last.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_found_and_another_word_is_not() {
        let known = ["authorization", "mtls", "metrics", "network", "egress", "rateLimit"];
        for (word, expected) in [
            ("authorisation", Some("authorization")),
            ("Authorization", Some("authorization")),
            ("authorizaton", Some("authorization")),
            ("mtsl", Some("mtls")),
            ("mTLS", Some("mtls")),
            ("rate", None),
            ("ratelimits", Some("rateLimit")),
            ("egres", Some("egress")),
            ("tracing", None),
            ("x", None),
            ("", None),
        ] {
            assert_eq!(nearest(word, known), expected, "{word}");
        }
    }

    #[test]
    fn distances_are_those_of_the_definition() {
        for (one, other, expected) in
            [("", "", 0), ("", "ab", 2), ("ab", "ba", 1), ("kitten", "sitting", 3), ("abc", "ca", 3), ("a", "b", 1)]
        {
            let [one, other] = [one, other].map(|word: &str| word.chars().collect::<Vec<_>>());
            assert_eq!((distance(&one, &other), distance(&other, &one)), (expected, expected), "{one:?} {other:?}");
        }
    }
}
