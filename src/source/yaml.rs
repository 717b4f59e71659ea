//! YAML with line numbers: a file's text becomes documents, and each document a [`Tree`] that knows its lines.
//!
//! ```text
//!  text ──documents()──▶ chunks, each with its first line ──parse()──▶ Tree ──to_json()──▶ serde_json::Value
//!                                                              └──line_of("spec.ports[0].port")──▶ line
//! ```
//!
//! A file is cut at its document markers before anything is parsed, so that a syntax error in one document leaves its
//! neighbours alone. That is exact: YAML 1.2 (production 206, `c-forbidden`) allows a `---` or `...` at the beginning
//! of a line nowhere inside a document, not even in a block scalar.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use serde_saphyr::Spanned;

/// One document of a file, unparsed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Chunk<'a> {
    /// The line of the file on which `text` begins, from 1.
    pub(crate) line: u32,
    /// The document with its `---`, its directives and the comments before it.
    pub(crate) text: &'a str,
}

/// What keeps a document from being YAML.
#[derive(Debug)]
pub(crate) struct SyntaxError {
    /// The line of the file, from 1.
    pub(crate) line: u32,
    /// What the parser says.
    pub(crate) reason: String,
}

/// A node of a document and the line of the file that it stands on (a field's line is that of its key).
#[derive(Debug)]
pub(crate) struct Tree {
    pub(crate) line: u32,
    pub(crate) node: Node,
}

/// What a node is.
#[derive(Debug)]
pub(crate) enum Node {
    Null,
    Bool(bool),
    Number(Number),
    String(String),
    Sequence(Vec<Tree>),
    Mapping(Vec<(String, Tree)>),
}

/// `text` without a byte-order mark and with every line end as `\n`, so that lines count as an editor counts them.
pub(crate) fn normalise(text: &str) -> Cow<'_, str> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    match text.contains('\r') {
        true => Cow::Owned(text.replace("\r\n", "\n").replace('\r', "\n")),
        false => Cow::Borrowed(text),
    }
}

/// Cuts a normalised text into its documents.
pub(crate) fn documents(text: &str) -> Vec<Chunk<'_>> {
    let mut chunks = Vec::new();
    let (mut start, mut start_line, mut at, mut has_content) = (0, 1, 0, false);
    for (index, line) in text.split_inclusive('\n').enumerate() {
        let number = u32::try_from(index).unwrap_or(u32::MAX).saturating_add(1);
        if is_marker(line, "---") {
            // What stands before the first `---` and is only comments and directives belongs to that document.
            if has_content {
                chunks.push(Chunk { line: start_line, text: &text[start..at] });
                (start, start_line) = (at, number);
            }
            has_content = true;
        } else if !(line.trim().is_empty() || line.starts_with(['#', '%'])) {
            has_content = true;
        }
        at += line.len();
        if is_marker(line, "...") {
            chunks.push(Chunk { line: start_line, text: &text[start..at] });
            (start, start_line, has_content) = (at, number.saturating_add(1), false);
        }
    }
    if has_content {
        chunks.push(Chunk { line: start_line, text: &text[start..] });
    }
    chunks
}

fn is_marker(line: &str, marker: &str) -> bool {
    line.strip_prefix(marker).is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\n']))
}

/// The deepest nesting that is read; no Kubernetes object comes near it.
const MAX_DEPTH: usize = 64;
/// Nodes of a document after its aliases are expanded: some ten thousand objects in one `List`.
const MAX_NODES: usize = 1_000_000;
/// How much aliases may expand to. Hand-written anchors repeat a few lines; a "billion laughs" wants millions.
const MAX_ALIAS_EVENTS: usize = 100_000;

impl Chunk<'_> {
    /// The document's tree; an empty document is a null.
    pub(crate) fn parse(&self) -> Result<Tree, SyntaxError> {
        let options = serde_saphyr::options! {
            // Booleans and octal numbers as kubectl reads them: `yes` is true, and `0644` is 420.
            legacy_octal_numbers: true,
            with_snippet: false,
            emit_comments: false,
            budget: serde_saphyr::budget! {
                max_depth: MAX_DEPTH,
                max_nodes: MAX_NODES,
                max_events: 4 * MAX_NODES,
            },
            alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: MAX_ALIAS_EVENTS },
        };
        let spanned: Option<Spanned<Raw>> =
            serde_saphyr::from_str_with_options(self.text, options).map_err(|error| {
                let line = error.location().map_or(1, |location| location.line());
                let message = error.render_with_formatter(&serde_saphyr::DefaultMessageFormatter);
                SyntaxError { line: self.file_line(line), reason: one_line(&message) }
            })?;
        Ok(match spanned {
            Some(spanned) => self.tree(spanned),
            None => Tree { line: self.line, node: Node::Null },
        })
    }

    fn file_line(&self, line: u64) -> u32 {
        self.line.saturating_add(u32::try_from(line.saturating_sub(1)).unwrap_or(u32::MAX))
    }

    fn tree(&self, spanned: Spanned<Raw>) -> Tree {
        let line = self.file_line(spanned.referenced.line());
        let node = match spanned.value {
            Raw::Null => Node::Null,
            Raw::Bool(value) => Node::Bool(value),
            Raw::Number(value) => Node::Number(value),
            Raw::String(value) => Node::String(value),
            Raw::Sequence(items) => Node::Sequence(items.into_iter().map(|item| self.tree(item)).collect()),
            Raw::Mapping(entries) => {
                let field = |(key, value): (Spanned<String>, _)| {
                    let line = self.file_line(key.referenced.line());
                    (key.value, Tree { line, ..self.tree(value) })
                };
                Node::Mapping(entries.into_iter().map(field).collect())
            }
        };
        Tree { line, node }
    }
}

/// A parser's message as one line without the position that [`SyntaxError::line`] already holds.
fn one_line(message: &str) -> String {
    let first = message.lines().next().unwrap_or("is not YAML").trim();
    let first = match first.rfind(" at line ") {
        Some(cut) => &first[..cut],
        None => first,
    };
    first.trim_end_matches('.').to_owned()
}

impl Tree {
    /// The value of a field of a mapping.
    pub(crate) fn get(&self, key: &str) -> Option<&Tree> {
        match &self.node {
            Node::Mapping(entries) => entries.iter().find(|(name, _)| name == key).map(|(_, value)| value),
            _ => None,
        }
    }

    /// The text of a string node.
    pub(crate) fn as_str(&self) -> Option<&str> {
        match &self.node {
            Node::String(text) => Some(text),
            _ => None,
        }
    }

    /// The same document as JSON, which is what the Kubernetes types are read from.
    pub(crate) fn to_json(&self) -> Value {
        match &self.node {
            Node::Null => Value::Null,
            Node::Bool(value) => Value::Bool(*value),
            Node::Number(value) => Value::Number(value.clone()),
            Node::String(value) => Value::String(value.clone()),
            Node::Sequence(items) => Value::Array(items.iter().map(Self::to_json).collect()),
            Node::Mapping(entries) => {
                Value::Object(entries.iter().map(|(key, value)| (key.clone(), value.to_json())).collect::<Map<_, _>>())
            }
        }
    }

    /// The line of the field at `path` (`spec.ports[0].port`), or of the nearest field around it that is there.
    pub(crate) fn line_of(&self, path: &str) -> u32 {
        let path = path.trim_start_matches('.');
        let next = match &self.node {
            // Keys may hold dots (`weft.dev/mtls`), so the longest key that the path begins with is meant.
            Node::Mapping(entries) => entries
                .iter()
                .filter_map(|(key, value)| Some((key.len(), value, path.strip_prefix(key.as_str())?)))
                .filter(|(_, _, rest)| rest.is_empty() || rest.starts_with(['.', '[']))
                .max_by_key(|(length, _, _)| *length)
                .map(|(_, value, rest)| (value, rest)),
            Node::Sequence(items) => path.strip_prefix('[').and_then(|rest| {
                let (index, rest) = rest.split_once(']')?;
                Some((items.get(index.parse::<usize>().ok()?)?, rest))
            }),
            _ => None,
        };
        next.map_or(self.line, |(tree, rest)| tree.line_of(rest))
    }
}

/// What the deserializer hands over; [`Tree`] is the same with lines of the file in place of spans of the chunk.
enum Raw {
    Null,
    Bool(bool),
    Number(Number),
    String(String),
    Sequence(Vec<Spanned<Raw>>),
    Mapping(Vec<(Spanned<String>, Spanned<Raw>)>),
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_none<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Raw, D::Error> {
        Raw::deserialize(deserializer)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Raw, E> {
        Ok(Raw::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Raw, E> {
        Ok(Raw::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Raw, E> {
        Ok(Raw::Number(value.into()))
    }

    fn visit_i128<E: serde::de::Error>(self, value: i128) -> Result<Raw, E> {
        Number::from_i128(value).map(Raw::Number).ok_or_else(|| E::custom("the number is too large"))
    }

    fn visit_u128<E: serde::de::Error>(self, value: u128) -> Result<Raw, E> {
        Number::from_u128(value).map(Raw::Number).ok_or_else(|| E::custom("the number is too large"))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Raw, E> {
        Number::from_f64(value).map(Raw::Number).ok_or_else(|| E::custom("the number is not finite"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Raw, E> {
        Ok(Raw::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Raw, E> {
        Ok(Raw::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Raw, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element()? {
            items.push(item);
        }
        Ok(Raw::Sequence(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Raw, A::Error> {
        let mut entries: Vec<(Spanned<String>, Spanned<Raw>)> = Vec::new();
        while let Some(entry) = access.next_entry()? {
            entries.push(entry);
        }
        let mut names: Vec<&str> = entries.iter().map(|(key, _)| key.value.as_str()).collect();
        names.sort_unstable();
        match names.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(A::Error::custom(format_args!("the key `{}` is there twice", pair[0]))),
            None => Ok(Raw::Mapping(entries)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<(u32, &str)> {
        documents(text).into_iter().map(|chunk| (chunk.line, chunk.text)).collect()
    }

    #[test]
    fn a_file_is_cut_at_its_document_markers() {
        assert_eq!(lines(""), vec![]);
        assert_eq!(lines("# only a comment\n"), vec![]);
        assert_eq!(lines("a: 1"), vec![(1, "a: 1")]);
        assert_eq!(lines("# c\n%YAML 1.2\n---\na: 1\n"), vec![(1, "# c\n%YAML 1.2\n---\na: 1\n")]);
        assert_eq!(
            lines("a: 1\n---\nb: 2\n--- # c\nc: 3\n"),
            vec![(1, "a: 1\n"), (2, "---\nb: 2\n"), (4, "--- # c\nc: 3\n")]
        );
        assert_eq!(lines("a: 1\n...\nb: 2\n"), vec![(1, "a: 1\n...\n"), (3, "b: 2\n")]);
    }

    #[test]
    fn dashes_within_a_document_do_not_cut_it() {
        assert_eq!(lines("a: |\n  ---\n  b\n").len(), 1);
        assert_eq!(lines("---a: 1\n").len(), 1);
        assert_eq!(lines("- a\n----\n").len(), 1);
    }

    #[test]
    fn a_tree_knows_the_line_of_every_field() {
        let text = "# head\nkind: A\nspec:\n  ports:\n  - name: x\n    port: 1\n  labels:\n    weft.dev/a.b: c\n";
        let tree = documents(text)[0].parse().expect("YAML");
        assert_eq!(tree.line_of("kind"), 2);
        assert_eq!(tree.line_of("spec"), 3);
        assert_eq!(tree.line_of("spec.ports[0].port"), 6);
        assert_eq!(tree.line_of("spec.ports[0].missing"), 5);
        assert_eq!(tree.line_of("spec.labels.weft.dev/a.b"), 8);
        assert_eq!(tree.line_of("spec.ports[7]"), 4);
        assert_eq!(tree.line_of("nothing"), 2);
    }

    #[test]
    fn the_second_documents_lines_are_lines_of_the_file() {
        let chunks = documents("a: 1\n---\nb: [\n");
        assert_eq!(chunks[1].parse().map(|_| ()).map_err(|error| error.line > 1), Err(true));
        let chunks = documents("a: 1\n---\nb: 2\nc: 3\n");
        assert_eq!(chunks[1].parse().expect("YAML").line_of("c"), 4);
    }

    #[test]
    fn line_ends_and_byte_order_marks_are_taken_off() {
        assert_eq!(normalise("\u{feff}a: 1\r\nb: 2\rc: 3\n"), "a: 1\nb: 2\nc: 3\n");
    }

    #[test]
    fn json_is_read_as_the_yaml_it_is() {
        let chunks = documents("{\n\t\"a\": [1, true, null, \"x\"],\n\t\"b\": {\"c\": 1.5}\n}\n");
        let tree = chunks[0].parse().expect("JSON");
        assert_eq!(tree.to_json(), serde_json::json!({"a": [1, true, null, "x"], "b": {"c": 1.5}}));
        assert_eq!(tree.line_of("b.c"), 3);
    }

    #[test]
    fn bombs_and_towers_are_refused() {
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..9 {
            let aliases = vec![format!("*a{}", level - 1); 10].join(", ");
            bomb.push_str(&format!("a{level}: &a{level} [{aliases}]\n"));
        }
        assert!(documents(&bomb)[0].parse().is_err());
        let tower = format!("a: {}{}", "[".repeat(10_000), "]".repeat(10_000));
        assert!(documents(&tower)[0].parse().is_err());
    }
}
