//! What is made from the schema and committed: the schema itself and the
//! tables of `docs/pipeline-file.md`. The tests fail when a committed copy
//! is not what the code says; `THALWEG_BLESS=1 cargo test config::reference`
//! writes it anew.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::{Pipeline, pipeline::written_schema, schema::Node};

const BEGIN: &str = "<!-- keys: begin (generated: THALWEG_BLESS=1 cargo test config::reference) -->\n";
const END: &str = "<!-- keys: end -->\n";

fn in_repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Compares the committed file with what it should be, or writes it.
fn blessed(path: &str, expected: &str) {
    let path = in_repository(path);
    if std::env::var_os("THALWEG_BLESS").is_some() {
        fs::write(&path, expected).unwrap();
    }
    let committed = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == expected,
        "{} is not what the code says; write it anew with `THALWEG_BLESS=1 cargo test config::reference`",
        path.display()
    );
}

#[test]
fn the_committed_schema_is_the_schema_of_the_code() {
    let schema = serde_json::to_string_pretty(&sorted(&Pipeline::schema())).unwrap();
    blessed("config/pipeline.schema.json", &format!("{schema}\n"));
}

#[test]
fn the_documented_keys_are_the_keys_of_the_code() {
    const DOCS: &str = "docs/pipeline-file.md";
    let docs = fs::read_to_string(in_repository(DOCS)).unwrap();
    let (before, rest) = docs.split_once(BEGIN).expect("the generated part begins");
    let (_, after) = rest.split_once(END).expect("the generated part ends");
    blessed(DOCS, &format!("{before}{BEGIN}{}{END}{after}", tables()));
}

#[test]
fn every_key_is_documented_with_a_sentence() {
    fn walk(node: Node<'_>, path: &str, bare: &mut Vec<String>) {
        let tables = node.properties().chain(node.variants());
        for (key, inner) in tables {
            let path = format!("{path}.{key}");
            walk(inner.items().unwrap_or(inner), &path, bare);
        }
        for (key, value) in node.raw_properties() {
            if key != "type" && describe(value).is_empty() {
                bare.push(format!("{path}.{key}"));
            }
        }
    }
    let schema = written_schema();
    let mut bare = Vec::new();
    walk(Node::root(&schema), "", &mut bare);
    assert_eq!(bare, Vec::<String>::new(), "give these fields a doc comment");
}

/// Keys in the order of the alphabet, whatever the build's features are.
fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().map(|(key, value)| (key.clone(), sorted(value))).collect();
            entries.sort_by(|a, b| a.0.cmp(&b.0));
            Value::Object(entries.into_iter().collect())
        }
        Value::Array(items) => items.iter().map(sorted).collect(),
        scalar => scalar.clone(),
    }
}

/// One table for the top level, one for each section and type of source.
fn tables() -> String {
    let schema = written_schema();
    let mut out = String::new();
    table(Node::root(&schema), "Top level", "", &mut out);
    out
}

fn table(node: Node<'_>, heading: &str, path: &str, out: &mut String) {
    let mut rows = String::new();
    let mut below = String::new();
    let properties: BTreeMap<_, _> = node.raw_properties().collect();
    for (key, value) in properties {
        let inner = node.property(key).unwrap();
        let path = if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
        if let Some(source) = inner.items().filter(|items| items.variants().next().is_some()) {
            for (kind, variant) in source.variants() {
                let heading = format!("`[[{key}]]` with `type = \"{kind}\"`");
                table(variant, &heading, &path, &mut below);
            }
        } else if let Some(item) = inner.items().filter(|items| items.properties().next().is_some()) {
            table(item, &format!("`[[{path}]]`"), &path, &mut below);
        } else if inner.properties().next().is_some() {
            table(inner, &format!("`[{path}]`"), &path, &mut below);
        } else if key != "type" {
            let required = node.required().any(|name| name == key);
            row(key, value, inner, required, &mut rows);
        }
    }
    if !rows.is_empty() || below.is_empty() {
        let empty = if rows.is_empty() {
            "No other keys.\n"
        } else {
            "| key | value | default | |\n|---|---|---|---|\n"
        };
        write!(out, "\n### {heading}\n\n{empty}{rows}").unwrap();
    }
    out.push_str(&below);
}

fn row(key: &str, value: &Value, inner: Node<'_>, required: bool, out: &mut String) {
    let choices = inner.choices();
    let kind = if choices.is_empty() {
        inner.types().iter().map(|name| word(name)).collect::<Vec<_>>().join(" or ")
    } else {
        choices.iter().map(|choice| format!("`\"{choice}\"`")).collect::<Vec<_>>().join(", ")
    };
    let default = match value.get("default") {
        Some(Value::Null) | None => if required { "required" } else { "" }.to_owned(),
        Some(default) => format!("`{default}`"),
    };
    writeln!(out, "| `{key}` | {kind} | {default} | {} |", describe(value)).unwrap();
}

fn word(name: &str) -> &str {
    match name {
        "integer" => "whole number",
        "boolean" => "`true`, `false`",
        other => other,
    }
}

fn describe(value: &Value) -> String {
    let text = value.get("description").and_then(Value::as_str).unwrap_or_default();
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|")
}
