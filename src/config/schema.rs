//! Reading a JSON Schema: what may stand where in a pipeline file.
//!
//! The schema is made from the `Settings` structs, so whoever adds a field
//! gets unknown-key checks, type checks, suggestions and documentation for it.

use serde_json::{Map, Value, json};

/// A place in a schema, references followed and `or null` taken off.
#[derive(Clone, Copy)]
pub(super) struct Node<'a> {
    root: &'a Value,
    here: &'a Value,
}

impl<'a> Node<'a> {
    pub(super) fn root(root: &'a Value) -> Self {
        Self { root, here: root }
    }

    /// The top of the schema that this place is in.
    pub(super) fn top(self) -> Self {
        Self::root(self.root)
    }

    fn at(self, here: &'a Value) -> Self {
        Self { root: self.root, here: resolved(self.root, here) }
    }

    fn list(self, keyword: &str) -> impl Iterator<Item = Node<'a>> + use<'a> {
        let items = self.here.get(keyword).and_then(Value::as_array);
        items.into_iter().flatten().map(move |item| self.at(item))
    }

    /// The keys of a table, with what each may hold.
    pub(super) fn properties(self) -> impl Iterator<Item = (&'a str, Node<'a>)> + use<'a> {
        let map = self.here.get("properties").and_then(Value::as_object);
        map.into_iter().flatten().map(move |(key, value)| (key.as_str(), self.at(value)))
    }

    /// The keys of a table as the schema has them: with the description and
    /// the default of this place, which a reference would lead away from.
    #[cfg(test)]
    pub(super) fn raw_properties(self) -> impl Iterator<Item = (&'a str, &'a Value)> + use<'a> {
        let map = self.here.get("properties").and_then(Value::as_object);
        map.into_iter().flatten().map(|(key, value)| (key.as_str(), value))
    }

    /// What `key` may hold; `None` if the table knows no such key. A table of
    /// which the schema says nothing may hold anything.
    pub(super) fn property(self, key: &str) -> Option<Node<'a>> {
        static ANYTHING: Value = Value::Bool(true);
        let properties = self.here.get("properties");
        let here = match (properties.and_then(|map| map.get(key)), self.here.get("additionalProperties")) {
            (Some(named), _) => named,
            (None, Some(others)) if others.as_bool() != Some(false) => others,
            (None, None) if properties.is_none() => &ANYTHING,
            _ => return None,
        };
        Some(self.at(here))
    }

    /// Keys that must be there.
    pub(super) fn required(self) -> impl Iterator<Item = &'a str> + use<'a> {
        let keys = self.here.get("required").and_then(Value::as_array);
        keys.into_iter().flatten().filter_map(Value::as_str)
    }

    /// What each item of an array may hold.
    pub(super) fn items(self) -> Option<Node<'a>> {
        self.here.get("items").map(|items| self.at(items))
    }

    /// Of tables told apart by their `type`: each `type` and its table.
    pub(super) fn variants(self) -> impl Iterator<Item = (&'a str, Node<'a>)> + use<'a> {
        self.list("oneOf").filter_map(|node| {
            let tag = node.here.get("properties")?.get("type")?.get("const")?;
            Some((tag.as_str()?, node))
        })
    }

    /// The words allowed, if only certain words are.
    pub(super) fn choices(self) -> Vec<&'a str> {
        let listed = self.here.get("enum").and_then(Value::as_array);
        let constants = self.list("oneOf").filter_map(|node| node.here.get("const"));
        listed.into_iter().flatten().chain(constants).filter_map(Value::as_str).collect()
    }

    /// JSON types allowed; empty if any is.
    pub(super) fn types(self) -> Vec<&'a str> {
        let mut types: Vec<&str> = match self.here.get("type") {
            Some(Value::String(name)) => vec![name],
            Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).collect(),
            _ => Vec::new(),
        };
        if types.is_empty() {
            types = self.list("anyOf").chain(self.list("oneOf")).flat_map(Node::types).collect();
        }
        types.retain(|name| *name != "null");
        types
    }
}

/// Follows `$ref`, and takes the one real alternative of `T or null`.
fn resolved<'a>(root: &'a Value, mut here: &'a Value) -> &'a Value {
    loop {
        let reference = here.get("$ref").and_then(Value::as_str);
        let target = reference.and_then(|path| root.pointer(path.trim_start_matches('#')));
        let Some(next) = target.or_else(|| only_alternative(here)) else {
            return here;
        };
        here = next;
    }
}

fn only_alternative(here: &Value) -> Option<&Value> {
    let null = |value: &&Value| value.get("type").and_then(Value::as_str) == Some("null");
    let mut real = here.get("anyOf")?.as_array()?.iter().filter(|value| !null(value));
    let first = real.next()?;
    real.next().is_none().then_some(first)
}

/// Keywords that tell of a value without limiting it.
const ANNOTATIONS: [&str; 4] = ["title", "description", "default", "examples"];

/// Lets a string with a variable in it stand wherever only numbers, booleans
/// or certain strings may, because that is what the variable may become.
pub(super) fn accept_variables(schema: &mut Value) {
    let Some(map) = schema.as_object_mut() else {
        return;
    };
    for keyword in ["properties", "$defs"] {
        let inner = map.get_mut(keyword).and_then(Value::as_object_mut);
        inner.into_iter().flatten().for_each(|(_, value)| accept_variables(value));
    }
    if let Some(items) = map.get_mut("items") {
        accept_variables(items);
    }
    let variants = map.get_mut("oneOf").and_then(Value::as_array_mut);
    variants
        .into_iter()
        .flatten()
        .filter(|value| value.get("properties").is_some())
        .for_each(accept_variables);
    if is_narrow(map) {
        let limits: Map<_, _> = std::mem::take(map);
        let (annotations, limits): (Map<_, _>, Map<_, _>) =
            limits.into_iter().partition(|(keyword, _)| ANNOTATIONS.contains(&keyword.as_str()));
        *map = annotations;
        map.insert("anyOf".to_owned(), json!([limits, {"type": "string", "pattern": r"\$\{.+\}"}]));
    }
}

/// Whether a schema is of a scalar, but does not let every string pass.
fn is_narrow(map: &Map<String, Value>) -> bool {
    let has = |keyword| map.contains_key(keyword);
    let constants = map.get("oneOf").and_then(Value::as_array);
    let choice = has("enum") || constants.is_some_and(|all| all.iter().all(|one| one.get("const").is_some()));
    let kind = match map.get("type") {
        Some(Value::Array(kinds)) => kinds.first(),
        kind => kind,
    };
    let number = matches!(kind.and_then(Value::as_str), Some("integer" | "number" | "boolean"));
    choice || number || has("pattern")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_may_stand_where_a_number_may_but_text_may_not() {
        let mut schema = json!({
            "properties": {
                "threads": {"type": "integer", "minimum": 0, "default": 0},
                "path": {"type": "string"},
            },
            "$defs": {"Tier": {"oneOf": [{"const": "event"}, {"const": "doc"}]}},
        });
        accept_variables(&mut schema);
        assert_eq!(
            schema["properties"]["threads"],
            json!({"default": 0, "anyOf": [
                {"type": "integer", "minimum": 0},
                {"type": "string", "pattern": r"\$\{.+\}"},
            ]})
        );
        assert_eq!(schema["properties"]["path"], json!({"type": "string"}));
        assert_eq!(schema["$defs"]["Tier"]["anyOf"][0]["oneOf"][1], json!({"const": "doc"}));
    }
}
