//! Which regexes Envoy will take. Envoy compiles them with RE2; one that RE2 refuses would have the whole resource
//! refused, so it must not get there.
//!
//! The `regex` crate speaks nearly the same language, so its syntax tree is walked: what RE2 does not know is refused,
//! and the size of RE2's program is estimated from above. Measured on Envoy 1.40: a program larger than the runtime key
//! `re2.max_program_size.error_level` is refused, and one larger than `warn_level` is complained of (the sidecar's
//! bootstrap sets them to 32768 and 1000); a pattern is read as Latin-1 (Envoy 1.36: as UTF-8), so that only ASCII means
//! the same everywhere as to its author.

use regex_syntax::ast::{self, Ast, ClassSet, ClassSetItem, Flag, FlagsItemKind, HexLiteralKind, LiteralKind};

/// What is left of 1000 instructions after those of every program (4) and of a prefix match, `(?:R).*` (2).
const MAX_SIZE: u32 = 994;
/// A general category has up to 1200 instructions in Envoy 1.36, which is what is largest in proportion: 30 times this,
/// so that a pattern within [`MAX_SIZE`] is within what the bootstrap allows there too.
const CATEGORY_SIZE: u32 = 40;
/// Deeper groups than anybody writes; RE2's own limit is 1000.
const MAX_NESTING: u32 = 50;

/// Whether Envoy will take `pattern`, or why not.
pub(super) fn check(pattern: &str) -> Result<(), String> {
    if pattern.is_empty() {
        return Err("it is empty".to_owned());
    }
    let parsed = ast::parse::ParserBuilder::new().nest_limit(MAX_NESTING).build().parse(pattern);
    let tree = parsed.map_err(|error| format!("at character {}: {}", error.span().start.column, error.kind()))?;
    if size(&tree, folds_case(pattern))? > MAX_SIZE {
        return Err("it is too large for Envoy, which is given 1000 instructions".to_owned());
    }
    // What only the translation finds.
    regex::Regex::new(pattern).map(|_| ()).map_err(|error| {
        let text = error.to_string();
        text.lines().last().unwrap_or_default().trim().to_owned()
    })
}

/// At least the number of RE2's instructions; `folds`: some part ignores case. The recursion is bounded by [`MAX_NESTING`].
fn size(node: &Ast, folds: bool) -> Result<u32, String> {
    match node {
        Ast::Empty(_) => Ok(1),
        Ast::Flags(flags) => known_flags(&flags.flags).map(|()| 0),
        Ast::Literal(literal) => known_literal(literal).map(|()| 1),
        Ast::Dot(_) => Ok(2),
        Ast::Assertion(assertion) => match assertion.kind {
            ast::AssertionKind::StartLine
            | ast::AssertionKind::EndLine
            | ast::AssertionKind::StartText
            | ast::AssertionKind::EndText
            | ast::AssertionKind::WordBoundary
            | ast::AssertionKind::NotWordBoundary => Ok(1),
            _ => Err("RE2 has no half word boundaries".to_owned()),
        },
        Ast::ClassUnicode(class) => known_category(class).map(|()| CATEGORY_SIZE),
        Ast::ClassPerl(_) => Ok(6),
        Ast::ClassBracketed(class) => match &class.kind {
            // The ranges of a negated class lie between the others: one more of them.
            // Without regard to case, a range becomes three at most.
            ClassSet::Item(item) => Ok(class_size(item)?.saturating_mul(if folds { 3 } else { 1 }).saturating_add(1)),
            ClassSet::BinaryOp(_) => Err("RE2 has no set operations in classes".to_owned()),
        },
        Ast::Repetition(repetition) => {
            let inner = match &*repetition.ast {
                Ast::Repetition(_) => return Err("a repetition is repeated; put a group around it".to_owned()),
                Ast::Empty(_) | Ast::Flags(_) | Ast::Assertion(_) => return Err("nothing is repeated".to_owned()),
                inner => size(inner, folds)?,
            };
            // Each turn that may be left out, and each loop, has a branch of its own.
            let (turns, branches) = match &repetition.op.kind {
                ast::RepetitionKind::Range(ast::RepetitionRange::Exactly(n)) => (*n, 1),
                ast::RepetitionKind::Range(ast::RepetitionRange::AtLeast(n)) => (*n, 2),
                ast::RepetitionKind::Range(ast::RepetitionRange::Bounded(least, most)) => (*most, most - least),
                _ => (1, 1),
            };
            Ok(inner.saturating_mul(turns.max(1)).saturating_add(branches))
        }
        Ast::Group(group) => {
            match &group.kind {
                ast::GroupKind::NonCapturing(flags) => known_flags(flags)?,
                ast::GroupKind::CaptureName { name, .. } if !name.name.chars().all(is_word) => {
                    return Err("RE2 names groups with letters, digits and `_` only".to_owned());
                }
                _ => {}
            }
            Ok(size(&group.ast, folds)?.saturating_add(2))
        }
        Ast::Alternation(alternation) => sum(&alternation.asts, 1, folds),
        Ast::Concat(concat) => sum(&concat.asts, 0, folds),
    }
}

fn sum(nodes: &[Ast], each: u32, folds: bool) -> Result<u32, String> {
    nodes.iter().try_fold(0_u32, |total, node| Ok(total.saturating_add(size(node, folds)?).saturating_add(each)))
}

fn class_size(item: &ClassSetItem) -> Result<u32, String> {
    match item {
        ClassSetItem::Empty(_) => Ok(0),
        ClassSetItem::Literal(literal) => known_literal(literal).map(|()| 1),
        ClassSetItem::Range(range) => known_literal(&range.start).and(known_literal(&range.end)).map(|()| 1),
        ClassSetItem::Ascii(_) | ClassSetItem::Perl(_) => Ok(6),
        ClassSetItem::Unicode(class) => known_category(class).map(|()| CATEGORY_SIZE),
        ClassSetItem::Bracketed(_) => Err("RE2 has no classes within classes; write `\\[`".to_owned()),
        ClassSetItem::Union(union) => {
            union.items.iter().try_fold(0_u32, |total, item| Ok(total.saturating_add(class_size(item)?)))
        }
    }
}

/// Whether a flag `i` is anywhere in the pattern.
fn folds_case(pattern: &str) -> bool {
    pattern
        .split("(?")
        .skip(1)
        .any(|rest| rest.chars().take_while(|c| c.is_alphabetic() || *c == '-').any(|c| c == 'i'))
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

fn known_flags(flags: &ast::Flags) -> Result<(), String> {
    let known = |item: &ast::FlagsItem| match item.kind {
        FlagsItemKind::Negation => true,
        FlagsItemKind::Flag(flag) => {
            matches!(flag, Flag::CaseInsensitive | Flag::MultiLine | Flag::DotMatchesNewLine | Flag::SwapGreed)
        }
    };
    match flags.items.iter().all(known) {
        true => Ok(()),
        false => Err("RE2 has the flags i, m, s and U only".to_owned()),
    }
}

fn known_literal(literal: &ast::Literal) -> Result<(), String> {
    match &literal.kind {
        _ if !literal.c.is_ascii() => Err("Envoy reads it as Latin-1, so only ASCII may be used".to_owned()),
        LiteralKind::HexFixed(kind) | LiteralKind::HexBrace(kind) if *kind != HexLiteralKind::X => {
            Err("RE2 has no `\\u`; write `\\x{…}`".to_owned())
        }
        _ => Ok(()),
    }
}

/// The general categories by their short names, which is how RE2 knows them.
fn known_category(class: &ast::ClassUnicode) -> Result<(), String> {
    const CATEGORIES: &str = " C Cc Cf Co Cs L Ll Lm Lo Lt Lu M Mc Me Mn N Nd Nl No P Pc Pd Pe Pf Pi Po Ps S Sc Sk Sm \
                              So Z Zl Zp Zs ";
    let name = match &class.kind {
        ast::ClassUnicodeKind::OneLetter(letter) => letter.to_string(),
        ast::ClassUnicodeKind::Named(name) => name.clone(),
        ast::ClassUnicodeKind::NamedValue { name, .. } => format!("{name}="),
    };
    match CATEGORIES.contains(&format!(" {name} ")) {
        true => Ok(()),
        false => Err("use the short name of a general category, such as `\\p{Lu}`".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::check;

    /// Each was given to Envoy 1.40 with `--mode validate`, as `(?:R).*`, under the runtime of the sidecar's bootstrap.
    #[test]
    fn what_envoy_takes_is_taken() {
        for pattern in [
            "/api",
            "/a(b|c)*d{2,5}?",
            r"^/v[0-9]+/\w+$",
            "(?i)curl",
            "(?P<x>a)(?<y>b)",
            r"\pL\p{Lu}",
            "[^/]+",
            r"\x{1F}",
            "a{40}",
            "a{95}",
            r"\w{40}",
            "(a{30}){30}",
            "[[:alpha:]]",
            r"\bfoo\B",
            ".*",
            "(?i)[a-z]{8}x",
            "[aeiou]{7}",
            "a?b?c?a?b?c?a?b?c?a?b?c?a?b?c?a?b?c?a?b?c?a?b?c?a?b?c?a?b?c?",
            "(a|b|c|d|e|f|g|h)(a|b|c|d|e|f|g|h)",
            "/api/v[0-9]+/(orders|carts|customers)/[^/]+/items/[0-9]{1,9}",
        ] {
            assert_eq!(check(pattern), Ok(()), "{pattern}");
        }
    }

    #[test]
    fn what_envoy_refuses_is_refused() {
        for pattern in [
            "",
            "(?=a)",
            "(?!a)b",
            "(?<=a)b",
            r"(a)\1",
            "a{995}",
            "a{1001}",
            "(a{30}){40}",
            "(((a{1000}){1000}){1000})",
            "(){1000}",
            r"\w{200}",
            r"\p{L}{25}",
            "(",
            "[a",
            "*a",
            "^*",
            "(?x)a b",
            "[a&&b]",
            "[[a]b]",
            r"\u0041",
            r"\x{1F600}",
            "é",
            "[é]",
            r"\p{Greek_Letters}",
            r"\p{lu}",
            r"\b{start}a",
            "a**",
            r"\Qa\E",
            "(?R)a",
            "(?P<a.b>x)",
        ] {
            assert!(check(pattern).is_err(), "{pattern}");
        }
        assert!(check(&"(".repeat(10_000)).is_err());
        assert!(check(&format!("{}a{}", "(".repeat(200), ")".repeat(200))).is_err());
        assert!(check(&"a|".repeat(10_000)).is_err());
    }
}
