//! Whether two matches of requests could fit the same one.

use crate::mesh::object::HttpMatch;

/// Whether some request could fit both; `false` only where it is certain that none can.
pub(super) fn could_both_fit(one: &HttpMatch, other: &HttpMatch) -> bool {
    let methods = one.methods.is_empty() || other.methods.is_empty() || !one.methods.is_disjoint(&other.methods);
    let paths = match (&one.path_regex, &other.path_regex) {
        (Some(one), Some(other)) => could_begin_alike(one, other),
        _ => true,
    };
    let headers = one.headers.iter().all(|(name, value)| {
        let same = other.headers.iter().filter(|(other, _)| other == name);
        same.into_iter().all(|(_, other)| !(is_literal(value) && is_literal(other) && value != other))
    });
    methods && paths && headers
}

/// Whether a path could fit both regexes, as far as what they literally begin with tells.
fn could_begin_alike(one: &str, other: &str) -> bool {
    let (one, other) = (literal_start(one), literal_start(other));
    one.starts_with(other) || other.starts_with(one)
}

/// Characters that mean something else than themselves.
const SPECIAL: [char; 14] = ['\\', '.', '+', '*', '?', '(', ')', '|', '[', ']', '{', '}', '^', '$'];

fn is_literal(regex: &str) -> bool {
    !regex.contains(SPECIAL)
}

/// What everything that fits the regex begins with, without looking far.
fn literal_start(regex: &str) -> &str {
    let regex = regex.strip_prefix('^').unwrap_or(regex);
    if regex.contains('|') {
        return "";
    }
    let end = regex.find(SPECIAL).unwrap_or(regex.len());
    let (start, rest) = regex.split_at(end);
    // What is repeated may also be left out.
    match rest.starts_with(['*', '?', '{']) {
        true => start.char_indices().next_back().map_or("", |(last, _)| &start[..last]),
        false => start,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn match_(path: &str, method: &str, header: &str) -> HttpMatch {
        HttpMatch {
            path_regex: (!path.is_empty()).then(|| path.to_owned()),
            methods: BTreeSet::from_iter((!method.is_empty()).then(|| method.to_owned())),
            headers: Vec::from_iter((!header.is_empty()).then(|| ("x".to_owned(), header.to_owned()))),
            ..HttpMatch::any()
        }
    }

    #[test]
    fn what_is_certain_to_be_different_is_told_apart_and_nothing_else() {
        for (one, other, expected) in [
            (("/a", "", ""), ("/b", "", ""), false),
            (("/a", "", ""), ("/a/b", "", ""), true),
            (("/a/c", "", ""), ("/a/b", "", ""), false),
            (("^/a", "", ""), ("/b", "", ""), false),
            (("/ab?", "", ""), ("/ac", "", ""), true),
            (("/ab+", "", ""), ("/ac", "", ""), false),
            (("/a|/b", "", ""), ("/b", "", ""), true),
            (("/a.*", "", ""), ("/b", "", ""), false),
            (("", "", ""), ("/b", "", ""), true),
            (("", "GET", ""), ("", "POST", ""), false),
            (("", "GET", ""), ("", "", ""), true),
            (("", "", "1"), ("", "", "2"), false),
            (("", "", "1"), ("", "", "[12]"), true),
            (("", "", "1"), ("", "", ""), true),
        ] {
            let of = |(path, method, header)| match_(path, method, header);
            assert_eq!(could_both_fit(&of(one), &of(other)), expected, "{one:?} {other:?}");
            assert_eq!(could_both_fit(&of(other), &of(one)), expected, "{other:?} {one:?}");
        }
    }
}
