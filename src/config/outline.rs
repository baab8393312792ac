//! First pass over a parsed file: is each thing where it may be?
//!
//! Walks the file beside its schema, puts the environment in, and takes out
//! whatever it refuses, so that the second pass ([`super::read`]) says
//! nothing twice.

use std::{borrow::Cow, collections::BTreeMap, ops::Range};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{
    interpolate::{ExpandError, Expanded, Expansions},
    problem::{Problem, Text},
    schema::Node,
    suggest::nearest,
};

type Span = Range<usize>;

/// Where each key of a file stands.
#[derive(Debug, Default)]
pub(super) struct Places(BTreeMap<String, Span>);

impl Places {
    /// The place of `path`, else of the nearest thing around it that the file
    /// names, else the start of the file.
    pub(super) fn find(&self, path: &str) -> Span {
        let mut path = path;
        loop {
            if let Some(span) = self.0.get(path) {
                return span.clone();
            }
            match path.rfind(['.', '[']).and_then(|at| path.get(..at)) {
                Some(parent) => path = parent,
                None => return 0..0,
            }
        }
    }
}

/// The state of the walk.
pub(super) struct Outline<'t> {
    text: Text<'t>,
    expansions: &'t Expansions,
    pub(super) places: Places,
    pub(super) problems: Vec<Problem>,
}

impl<'t> Outline<'t> {
    pub(super) fn new(text: Text<'t>, expansions: &'t Expansions) -> Self {
        Self { text, expansions, places: Places::default(), problems: Vec::new() }
    }

    fn refuse(&mut self, span: &Span, path: &str, message: impl Into<String>, meant: Option<String>) {
        self.problems.push(self.text.problem(span, path, message).meant(meant));
    }

    /// Checks a table that stands at `path`, whose heading is `own`.
    pub(super) fn table(&mut self, table: &mut DeTable<'t>, node: Node<'_>, path: &str, own: &Span) {
        let Some(node) = self.variant(table, node, path, own) else {
            // Nothing is known of its keys, but they are no mistakes either.
            *table = DeTable::new();
            return;
        };
        let mut refused: Vec<String> = Vec::new();
        for (key, value) in table.iter_mut() {
            let path = join(path, key.get_ref());
            self.places.0.insert(path.clone(), key.span());
            let kept = match node.property(key.get_ref()) {
                Some(inner) => self.value(value, inner, &path, &key.span()),
                None => self.unknown_key(key, node, &path),
            };
            if !kept {
                refused.push(key.get_ref().to_string());
            }
        }
        self.missing(table, node, path, own);
        for key in refused {
            table.remove(key.as_str());
        }
    }

    /// Refuses a table without the keys it needs, unless one of its keys is
    /// known to be the missing one with a slip in it.
    fn missing(&mut self, table: &DeTable<'t>, node: Node<'_>, path: &str, own: &Span) {
        for key in node.required().filter(|key| !table.contains_key(*key)) {
            let slip = |problem: &Problem| {
                problem.suggestion.as_deref() == Some(key)
                    && table.keys().any(|written| join(path, written.get_ref()) == problem.key)
            };
            if self.problems.iter().any(slip) {
                continue;
            }
            let whose = if path.is_empty() { "a pipeline".to_owned() } else { format!("`{path}`") };
            let message = format!("{whose} needs the key `{key}`");
            self.refuse(own, &join(path, key), message, None);
        }
    }

    /// Which kind of table this is, where its `type` says so.
    fn variant<'n>(
        &mut self,
        table: &mut DeTable<'t>,
        node: Node<'n>,
        path: &str,
        own: &Span,
    ) -> Option<Node<'n>> {
        let variants: Vec<_> = node.variants().collect();
        if variants.is_empty() {
            return Some(node);
        }
        let names = || variants.iter().map(|(name, _)| *name);
        let Some(tag) = table.get_mut("type") else {
            let message = format!("`{path}` needs the key `type`: one of {}", quoted(names()));
            self.refuse(own, &join(path, "type"), message, None);
            return None;
        };
        let span = tag.span();
        let type_path = join(path, "type");
        if let Some(expanded) = self.expanded(&span, &type_path) {
            *tag.get_mut() = DeValue::String(Cow::Borrowed(&expanded.as_ref().ok()?.text));
        }
        let written = tag.get_ref().as_str().unwrap_or_default();
        let found = variants.iter().find(|(name, _)| *name == written);
        if found.is_none() {
            let message = format!("unknown type `{written}`; the types are {}", quoted(names()));
            self.refuse(&span, &type_path, message, nearest(written, names()));
        }
        found.map(|(_, node)| *node)
    }

    /// Refuses a key that the schema does not have.
    fn unknown_key(&mut self, key: &Spanned<Cow<'_, str>>, node: Node<'_>, path: &str) -> bool {
        let mut names: Vec<&str> = node.properties().map(|(name, _)| name).collect();
        names.sort_unstable();
        let written = key.get_ref();
        let meant = nearest(written, names.iter().copied());
        let message = if meant.is_some() {
            format!("unknown key `{written}`")
        } else if path != written && node.top().property(written).is_some() {
            // In TOML a key belongs to the heading above it, however far above.
            format!("`{written}` belongs above the first `[section]` of the file, or under its own heading")
        } else {
            format!("unknown key `{written}`; known here: {}", quoted(names.into_iter()))
        };
        self.refuse(&key.span(), path, message, meant);
        false
    }

    /// Checks one value; false if it was refused.
    fn value(&mut self, value: &mut Spanned<DeValue<'t>>, node: Node<'_>, path: &str, key: &Span) -> bool {
        let span = value.span();
        let types = node.types();
        if let Some(expanded) = self.expanded(&span, path) {
            let Ok(Expanded { text, from_environment, .. }) = expanded else {
                return false;
            };
            *value.get_mut() = if *from_environment && !fits("string", &types) {
                let Some(converted) = converted(text, &types) else {
                    self.refuse(&span, path, format!("`{text}` is not {}", expected(&types)), None);
                    return false;
                };
                converted
            } else {
                DeValue::String(Cow::Borrowed(text))
            };
        }
        self.typed(value, node, &types, path, key)
    }

    /// Checks a value whose variables are in.
    fn typed(
        &mut self,
        value: &mut Spanned<DeValue<'t>>,
        node: Node<'_>,
        types: &[&str],
        path: &str,
        key: &Span,
    ) -> bool {
        let span = value.span();
        let found = kind(value.get_ref());
        if !fits(found, types) {
            let message = if types == ["array"] && found == "object" {
                format!("there may be several `{path}`; write `[[{path}]]`, in double brackets")
            } else {
                format!("expected {}, found {}", expected(types), expected(&[found]))
            };
            self.refuse(&span, path, message, None);
            return false;
        }
        match value.get_mut() {
            DeValue::Table(table) => self.table(table, node, path, key),
            DeValue::Array(array) => {
                let Some(items) = node.items() else {
                    return true;
                };
                let mut fine = true;
                for (i, item) in array.iter_mut().enumerate() {
                    let path = format!("{path}[{i}]");
                    let span = item.span();
                    self.places.0.insert(path.clone(), span.clone());
                    fine &= self.value(item, items, &path, &span);
                }
                return fine;
            }
            DeValue::String(text) => {
                let choices = node.choices();
                if !choices.is_empty() && !choices.contains(&text.as_ref()) {
                    let message = format!("`{text}` is not one of {}", quoted(choices.iter().copied()));
                    self.refuse(&span, path, message, nearest(text, choices));
                    return false;
                }
            }
            _ => {}
        }
        true
    }

    /// What the string at `span` says with its variables in; `None` if it
    /// has none, or is no string.
    fn expanded(&mut self, span: &Span, path: &str) -> Option<&'t Result<Expanded, ExpandError>> {
        let expanded = self.expansions.get(&span.start)?;
        if let Err(error) = expanded {
            let written = error.written();
            let within = self.text.0.get(span.clone()).and_then(|value| value.find(&written));
            let at = within.map_or(span.clone(), |at| span.start + at..span.start + at + written.len());
            self.refuse(&at, path, error.to_string(), None);
        }
        Some(expanded)
    }
}

/// A text from the environment as the number or boolean that is wanted,
/// written as TOML writes it.
fn converted<'t>(text: &'t str, types: &[&str]) -> Option<DeValue<'t>> {
    let value = DeValue::parse(text.trim()).ok()?.into_inner();
    let finite = value.as_float().is_none_or(|x| x.as_str().parse().is_ok_and(f64::is_finite));
    (finite && fits(kind(&value), types) && !matches!(value, DeValue::Table(_) | DeValue::Array(_)))
        .then_some(value)
}

/// Whether a value of kind `found` may stand where one of `types` may.
fn fits(found: &str, types: &[&str]) -> bool {
    types.is_empty() || types.contains(&found) || (found == "integer" && types.contains(&"number"))
}

fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "string",
        DeValue::Integer(_) => "integer",
        DeValue::Float(_) => "number",
        DeValue::Boolean(_) => "boolean",
        DeValue::Datetime(_) => "date",
        DeValue::Array(_) => "array",
        DeValue::Table(_) => "object",
    }
}

/// JSON Schema's type names in TOML's words.
fn expected(types: &[&str]) -> String {
    let words = types.iter().map(|name| match *name {
        "string" => "a string",
        "integer" => "a whole number",
        "number" => "a number",
        "boolean" => "true or false",
        "date" => "a date (put it in quotes)",
        "array" => "an array",
        "object" => "a table",
        other => other,
    });
    words.collect::<Vec<_>>().join(" or ")
}

fn quoted<'a>(names: impl Iterator<Item = &'a str>) -> String {
    names.map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::interpolate::expand_all;

    /// Paths and messages of what is refused, and the file that is left.
    fn walk(text: &str, schema: &serde_json::Value) -> (Vec<String>, String) {
        let mut root = DeTable::parse(text).unwrap().into_inner();
        let expansions = expand_all(&root, &|name| Some(name.to_lowercase()));
        let mut outline = Outline::new(Text(text), &expansions);
        outline.table(&mut root, Node::root(schema), "", &(0..0));
        let refused =
            outline.problems.iter().map(|p| format!("{} at {}:{}", p.key, p.line, p.column)).collect();
        (refused, format!("{root:?}"))
    }

    #[test]
    fn arrays_and_free_tables_are_looked_into() {
        let schema = json!({"additionalProperties": false, "properties": {
            "patterns": {"type": "object", "additionalProperties": {"type": "string"}},
            "sizes": {"type": "array", "items": {"type": "integer"}},
            "steps": {"type": "array", "items": {"$ref": "#/$defs/Step"}},
            "any": {},
        }, "$defs": {"Step": {"type": "object", "properties": {"n": {"anyOf": [{"type": "integer"}, {"type": "null"}]}}}}});
        let text = "sizes = [1, 'x', 3]\nany = { a = [1, { b = 2024-01-01 }] }\n\
                    patterns = { free = 'a', bad = 1 }\n[[steps]]\nn = 1\n[[steps]]\nm = 1\nn = 'x'\n";
        let (mut refused, left) = walk(text, &schema);
        refused.sort();
        assert_eq!(
            refused,
            ["patterns.bad at 3:32", "sizes[1] at 1:13", "steps[1].m at 7:1", "steps[1].n at 8:5"]
        );
        assert!(left.contains("free") && !left.contains("bad"), "{left}");
    }

    #[test]
    fn variables_are_put_in_at_any_depth() {
        let schema = json!({"properties": {"list": {"type": "array", "items": {"type": "string"}}}});
        let (refused, left) = walk("list = ['${HOME}/a', 'b']", &schema);
        assert_eq!(refused, Vec::<String>::new());
        assert!(left.contains("home/a"), "{left}");
    }

    #[test]
    fn a_place_that_is_not_in_the_file_is_that_of_what_is_around_it() {
        let places = Places([("log".to_owned(), 5..8), ("source[1]".to_owned(), 20..30)].into());
        assert_eq!(places.find("log.queue_bytes"), 5..8);
        assert_eq!(places.find("log.a.b"), 5..8);
        assert_eq!(places.find("source[1].path"), 20..30);
        assert_eq!(places.find("source[0].path"), 0..0);
        assert_eq!(places.find("name"), 0..0);
    }
}
