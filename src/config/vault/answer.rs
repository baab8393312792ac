//! What Vault's answers mean.
//! <https://developer.hashicorp.com/vault/api-docs/secret/kv>

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::error::{VaultError, Version};
use crate::secret::Secret;

/// An answer, whole.
pub(super) struct Answer {
    pub(super) status: u16,
    /// The scheme and host that a redirection names.
    pub(super) to: Option<String>,
    pub(super) body: Vec<u8>,
}

/// What was asked, for messages.
pub(super) struct Question<'a> {
    pub(super) server: &'a str,
    pub(super) token: &'a Secret,
    /// As the pipeline file writes it.
    pub(super) path: &'a str,
    /// What the token's policy needs to allow.
    pub(super) needed: &'a str,
}

/// The store that a path is in.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Mount {
    /// Without the slash at its end; `None` where the server does not tell.
    pub(super) path: Option<String>,
    pub(super) version: Version,
}

impl Mount {
    /// Where the server keeps `path`.
    pub(super) fn place(&self, path: &str) -> String {
        let below = self.path.as_ref().and_then(|mount| path.strip_prefix(mount)?.strip_prefix('/'));
        match (&self.path, self.version, below) {
            (Some(mount), Version::Two, Some(below)) => format!("{mount}/data/{below}"),
            _ => path.to_owned(),
        }
    }
}

/// What a path holds.
#[derive(PartialEq, Eq)]
pub(super) struct Fields(Map<String, Value>);

#[derive(Deserialize)]
struct Whole<T> {
    data: T,
}

#[derive(Deserialize)]
struct ToldMount {
    path: String,
    #[serde(rename = "type")]
    kind: String,
    options: Option<BTreeMap<String, Value>>,
}

#[derive(Deserialize)]
struct Versioned {
    data: Option<Map<String, Value>>,
    #[expect(dead_code, reason = "what tells this answer from an empty one")]
    metadata: Map<String, Value>,
}

/// What `sys/internal/ui/mounts` said. A server without it has version 1, as
/// Vault's own command line takes it.
pub(super) fn mount(question: &Question<'_>, answer: &Answer) -> Result<Mount, VaultError> {
    if answer.status == 404 {
        return Ok(Mount { path: None, version: Version::AssumedOne });
    }
    if answer.status != 200 {
        return Err(refused(question, answer));
    }
    let told: Whole<ToldMount> = parsed(question, answer)?;
    let ToldMount { path, kind, options } = told.data;
    let mount = path.trim_end_matches('/').to_owned();
    if !matches!(kind.as_str(), "kv" | "generic") {
        return Err(VaultError::NotKeyValue { mount, kind });
    }
    let version = options.as_ref().and_then(|options| options.get("version"));
    let version = match version.and_then(Value::as_str) {
        Some("2") => Version::Two,
        Some("1") | None => Version::One,
        Some(other) => {
            let reason = format!("its key-value store has version {other}");
            return Err(VaultError::NotVault { server: question.server.to_owned(), reason });
        }
    };
    Ok(Mount { path: Some(mount), version })
}

/// What the path itself said.
pub(super) fn fields(
    question: &Question<'_>,
    version: Version,
    answer: &Answer,
) -> Result<Fields, VaultError> {
    let deleted = || VaultError::Deleted { path: question.path.to_owned() };
    match (answer.status, version) {
        (200, Version::Two) => {
            let whole: Whole<Versioned> = parsed(question, answer)?;
            whole.data.data.map(Fields).ok_or_else(deleted)
        }
        (200, _) => {
            let whole: Whole<Map<String, Value>> = parsed(question, answer)?;
            Ok(Fields(whole.data))
        }
        (404, Version::Two) if parsed::<Whole<Versioned>>(question, answer).is_ok() => Err(deleted()),
        (404, _) => Err(VaultError::NoPath {
            server: question.server.to_owned(),
            path: question.path.to_owned(),
            version,
        }),
        _ => Err(refused(question, answer)),
    }
}

impl Fields {
    /// A field as text; numbers and booleans as JSON writes them.
    pub(super) fn text(&self, path: &str, field: &str) -> Result<String, VaultError> {
        let (path, field) = (path.to_owned(), field.to_owned());
        match self.0.get(&field) {
            Some(Value::String(text)) => Ok(text.clone()),
            Some(value @ (Value::Number(_) | Value::Bool(_))) => Ok(value.to_string()),
            Some(_) => Err(VaultError::NoText { path, field }),
            None => Err(VaultError::NoField { path, field, fields: self.0.keys().cloned().collect() }),
        }
    }
}

fn parsed<'a, T: Deserialize<'a>>(question: &Question<'_>, answer: &'a Answer) -> Result<T, VaultError> {
    // serde's own words may quote what it read.
    serde_json::from_slice(&answer.body).map_err(|error| VaultError::NotVault {
        server: question.server.to_owned(),
        reason: format!(
            "its answer for `{}` is not what Vault's documentation says (line {} column {})",
            question.path,
            error.line(),
            error.column()
        ),
    })
}

fn refused(question: &Question<'_>, answer: &Answer) -> VaultError {
    let (server, said) = (question.server.to_owned(), said(question.token, &answer.body));
    match (answer.status, &answer.to) {
        (300..400, Some(to)) => VaultError::Redirected { server, to: to.clone() },
        (403, _) => VaultError::Denied {
            server,
            path: question.path.to_owned(),
            needed: question.needed.to_owned(),
            said,
        },
        (503, _) => VaultError::Unavailable { server, said },
        (status, _) => VaultError::Status { server, status, said },
    }
}

/// Longest that is repeated of what a server says, in characters.
const LONGEST_SAID: usize = 200;

/// The errors that Vault lists, on one line; nothing of any other answer, and
/// never the token.
fn said(token: &Secret, body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Errors {
        errors: Vec<String>,
    }
    let errors = serde_json::from_slice::<Errors>(body).map(|said| said.errors).unwrap_or_default();
    let line = errors.join("; ").replace(token.reveal(), "(secret)");
    let words: Vec<&str> = line.split_whitespace().collect();
    words.join(" ").chars().filter(|c| !c.is_control()).take(LONGEST_SAID).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn answer(status: u16, body: &Value) -> Answer {
        Answer { status, to: None, body: body.to_string().into_bytes() }
    }

    fn ask<T>(answer: impl FnOnce(&Question<'_>) -> T) -> T {
        let token = Secret::from("hvs.T0KEN".to_owned());
        let needed = "secret/data/app";
        answer(&Question { server: "https://v", token: &token, path: "secret/app", needed })
    }

    fn read(version: Version, status: u16, body: &Value) -> Result<Fields, VaultError> {
        ask(|question| fields(question, version, &answer(status, body)))
    }

    fn why(version: Version, status: u16, body: &Value) -> String {
        read(version, status, body).err().unwrap().to_string()
    }

    #[test]
    fn the_version_is_what_the_mount_says() {
        let told = |options: Value| {
            let body = json!({"data": {"path": "secret/", "type": "kv", "options": options}});
            ask(|question| mount(question, &answer(200, &body)))
        };
        let path = || Some("secret".to_owned());
        assert_eq!(told(json!({"version": "2"})).unwrap(), Mount { path: path(), version: Version::Two });
        assert_eq!(told(json!({"version": "1"})).unwrap(), Mount { path: path(), version: Version::One });
        assert_eq!(told(Value::Null).unwrap(), Mount { path: path(), version: Version::One });
        assert!(told(json!({"version": "3"})).unwrap_err().to_string().contains("version 3"));
        let two = Mount { path: path(), version: Version::Two };
        assert_eq!(two.place("secret/team/app"), "secret/data/team/app");
        assert_eq!(Mount { version: Version::One, ..two }.place("secret/app"), "secret/app");
        let unknown = ask(|question| mount(question, &answer(404, &json!({"errors": []}))));
        assert_eq!(unknown.unwrap(), Mount { path: None, version: Version::AssumedOne });
        let pki = json!({"data": {"path": "pki/", "type": "pki", "options": null}});
        let error = ask(|question| mount(question, &answer(200, &pki))).unwrap_err();
        assert!(error.to_string().contains("of type `pki`"), "{error}");
    }

    #[test]
    fn both_versions_give_their_fields() {
        let held = json!({"user": "me", "port": 5432, "tls": true, "list": [1]});
        let one = read(Version::One, 200, &json!({"data": held})).ok().unwrap();
        let two = read(Version::Two, 200, &json!({"data": {"data": held, "metadata": {"version": 3}}}))
            .ok()
            .unwrap();
        for fields in [one, two] {
            let text = |field| fields.text("secret/app", field).map_err(|error| error.to_string());
            assert_eq!(text("user").unwrap(), "me");
            assert_eq!(text("port").unwrap(), "5432");
            assert_eq!(text("tls").unwrap(), "true");
            assert!(text("list").unwrap_err().contains("no text"));
            let error = text("pasword").unwrap_err();
            assert!(error.contains("`list`, `port`, `tls`, `user`") && !error.contains("5432"), "{error}");
        }
    }

    #[test]
    fn what_is_not_there_is_told_from_what_was_deleted() {
        let gone = json!({"data": {"data": null, "metadata": {"version": 2, "destroyed": false}}});
        for status in [200, 404] {
            assert!(why(Version::Two, status, &gone).contains("deleted"), "{status}");
        }
        let nothing = json!({"errors": []});
        assert!(why(Version::Two, 404, &nothing).contains("version 2"));
        let assumed = why(Version::AssumedOne, 404, &nothing);
        assert!(assumed.contains("does not tell"), "{assumed}");
    }

    #[test]
    fn a_refusal_says_what_to_do_and_never_the_token() {
        let said = json!({"errors": ["1 error occurred:\n\t* permission denied for hvs.T0KEN\n\n"]});
        let denied = why(Version::Two, 403, &said);
        assert!(denied.contains("403: 1 error occurred: * permission denied for (secret)"), "{denied}");
        assert!(denied.contains("`read` on `secret/data/app`"), "{denied}");
        let sealed = why(Version::One, 503, &json!({"errors": ["Vault is sealed"]}));
        assert!(sealed.contains("unseal it"), "{sealed}");
        let other = why(Version::One, 500, &json!("hvs.T0KEN"));
        assert!(other.contains("answered 500") && !other.contains("T0KEN"), "{other}");
    }

    #[test]
    fn what_is_no_answer_of_vault_is_not_repeated() {
        for body in [json!("open sesame"), json!({"data": "open sesame"}), json!({})] {
            let error = why(Version::One, 200, &body);
            assert!(error.contains("is no Vault") && !error.contains("sesame"), "{error}");
        }
    }
}
