//! Which regexes Envoy will take. Envoy compiles them with RE2; one that RE2 refuses would have the whole resource
//! refused, so it must not get there.
//!
//! The `regex` crate speaks nearly the same language. What it reads and RE2 does not is found in the syntax tree and
//! refused; what RE2 reads and it does not (`\C`, `\Q…\E`) is refused as well.

use regex_syntax::ast::{self, Ast, ClassPerlKind, Flag, FlagsItemKind, HexLiteralKind, LiteralKind, RepetitionKind};

/// How large a compiled regex may be, in bytes. RE2 refuses programs over a limit of its own (8 MiB of memory).
const MAX_COMPILED: usize = 1 << 20;
/// RE2's own bound of `{n,m}`.
const MAX_REPEAT: u32 = 1000;
/// Deeper groups than anybody writes; RE2's own limit is 1000.
const MAX_NESTING: u32 = 100;

/// Whether RE2 will compile `pattern`, or why not.
pub(super) fn check(pattern: &str) -> Result<(), String> {
    let parsed = ast::parse::ParserBuilder::new().nest_limit(MAX_NESTING).build().parse(pattern);
    let tree = parsed.map_err(|error| format!("at character {}: {}", error.span().start.column, error.kind()))?;
    ast::visit(&tree, Dialect)?;
    match regex::RegexBuilder::new(pattern).size_limit(MAX_COMPILED).build() {
        Ok(_) => Ok(()),
        Err(regex::Error::CompiledTooBig(_)) => Err("it is too large".to_owned()),
        Err(error) => Err(error.to_string().lines().last().unwrap_or_default().trim().to_owned()),
    }
}

/// Finds what only the `regex` crate knows.
struct Dialect;

impl ast::Visitor for Dialect {
    type Output = ();
    type Err = String;

    fn finish(self) -> Result<(), String> {
        Ok(())
    }

    fn visit_pre(&mut self, node: &Ast) -> Result<(), String> {
        match node {
            Ast::Flags(flags) => known_flags(&flags.flags),
            Ast::Group(group) => match &group.kind {
                ast::GroupKind::NonCapturing(flags) => known_flags(flags),
                _ => Ok(()),
            },
            Ast::Literal(literal) => known_literal(literal),
            Ast::Assertion(assertion) => match assertion.kind {
                ast::AssertionKind::StartLine
                | ast::AssertionKind::EndLine
                | ast::AssertionKind::StartText
                | ast::AssertionKind::EndText
                | ast::AssertionKind::WordBoundary
                | ast::AssertionKind::NotWordBoundary => Ok(()),
                _ => Err("RE2 has no half word boundaries".to_owned()),
            },
            Ast::Repetition(repetition) => match &repetition.op.kind {
                RepetitionKind::Range(range) if bound(range) > MAX_REPEAT => {
                    Err(format!("RE2 repeats at most {MAX_REPEAT} times"))
                }
                // RE2 refuses `a**`, which repeats a repetition without a group between.
                _ if matches!(*repetition.ast, Ast::Repetition(_)) => Err("a repetition is repeated".to_owned()),
                _ => Ok(()),
            },
            Ast::ClassUnicode(class) => known_class(class),
            _ => Ok(()),
        }
    }

    fn visit_class_set_item_pre(&mut self, item: &ast::ClassSetItem) -> Result<(), String> {
        match item {
            ast::ClassSetItem::Bracketed(_) => Err("RE2 has no classes within classes; write `\\[`".to_owned()),
            ast::ClassSetItem::Literal(literal) => known_literal(literal),
            ast::ClassSetItem::Range(range) => known_literal(&range.start).and(known_literal(&range.end)),
            ast::ClassSetItem::Unicode(class) => known_class(class),
            ast::ClassSetItem::Perl(class) => match class.kind {
                ClassPerlKind::Digit | ClassPerlKind::Space | ClassPerlKind::Word => Ok(()),
            },
            _ => Ok(()),
        }
    }

    fn visit_class_set_binary_op_pre(&mut self, _: &ast::ClassSetBinaryOp) -> Result<(), String> {
        Err("RE2 has no set operations in classes".to_owned())
    }
}

fn bound(range: &ast::RepetitionRange) -> u32 {
    match range {
        ast::RepetitionRange::Exactly(n) | ast::RepetitionRange::AtLeast(n) => *n,
        ast::RepetitionRange::Bounded(n, m) => *n.max(m),
    }
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
        LiteralKind::HexFixed(kind) | LiteralKind::HexBrace(kind) if *kind != HexLiteralKind::X => {
            Err("RE2 has no `\\u`; write `\\x{…}`".to_owned())
        }
        _ => Ok(()),
    }
}

/// RE2 knows general categories by their short names, and scripts; only the former are let through.
fn known_class(class: &ast::ClassUnicode) -> Result<(), String> {
    match &class.kind {
        ast::ClassUnicodeKind::OneLetter(_) => Ok(()),
        ast::ClassUnicodeKind::Named(name) if name.len() <= 2 => Ok(()),
        _ => Err("use the short name of a general category, such as `\\p{Lu}`".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::check;

    #[test]
    fn what_re2_reads_is_taken() {
        for pattern in [
            "/api",
            "",
            "/a(b|c)*d{2,5}?",
            r"^/v[0-9]+/\w+$",
            "(?i)curl",
            "(?P<x>a)",
            r"\pL\p{Lu}",
            "[^/]+",
            r"\x{1F}",
            "a{1000}",
            "[[:alpha:]]",
            r"\bfoo\B",
        ] {
            assert_eq!(check(pattern), Ok(()), "{pattern}");
        }
    }

    #[test]
    fn what_re2_refuses_is_refused() {
        for pattern in [
            "(?=a)",
            "(?!a)b",
            "(?<=a)b",
            r"(a)\1",
            "a{1001}",
            "(",
            "[a",
            "*a",
            "(?x)a b",
            "[a&&b]",
            "[[a]b]",
            r"\u0041",
            r"\p{Greek_Letters}",
            r"\b{start}a",
            "a**",
            "(((a{1000}){1000}){1000})",
            r"\Qa\E",
            "(?R)a",
        ] {
            assert!(check(pattern).is_err(), "{pattern}");
        }
    }
}
