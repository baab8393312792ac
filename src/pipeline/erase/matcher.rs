//! Which frames are a subject's.

use crate::{
    msgpack::{Cursor, Token},
    record::{Defaults, RecordRef},
    store::Subject,
};

/// Tells a subject's frames from others.
#[derive(Clone, Debug)]
pub(super) struct Matcher {
    subject: Subject,
    /// Whose records name nobody.
    default_tenant: String,
}

impl Matcher {
    pub fn new(subject: &Subject, defaults: &Defaults) -> Self {
        Self { subject: subject.clone(), default_tenant: defaults.tenant.clone() }
    }

    /// Of records that name their tenant only.
    pub fn explicit(&self) -> Self {
        Self { default_tenant: String::new(), ..self.clone() }
    }

    /// Whether `payload` is one of the subject's records, or something else
    /// that names it.
    pub fn takes(&self, payload: &[u8]) -> bool {
        if payload.is_empty() {
            return false;
        }
        let Ok(record) = RecordRef::parse(payload) else { return self.is_named_in(payload) };
        let tenant = record.tenant.filter(|tenant| !tenant.is_empty()).unwrap_or(&self.default_tenant);
        let session = self.subject.session.as_deref();
        tenant == self.subject.tenant && session.is_none_or(|session| record.session == Some(session))
    }

    /// Whether `bytes` that are no record name the subject: in a string of
    /// their own if they are one MessagePack map, anywhere otherwise.
    fn is_named_in(&self, bytes: &[u8]) -> bool {
        let strings = strings_of(bytes);
        let has = |name: &String| match &strings {
            Some(strings) => strings.contains(&name.as_str()),
            None => memchr::memmem::find(bytes, name.as_bytes()).is_some(),
        };
        has(&self.subject.tenant) && self.subject.session.as_ref().is_none_or(has)
    }
}

/// Every string in `bytes`, if they are one MessagePack map.
fn strings_of(bytes: &[u8]) -> Option<Vec<&str>> {
    let mut cursor = Cursor::new(bytes);
    let (mut strings, mut due) = (Vec::new(), 1_u64);
    while due > 0 {
        let is_first = cursor.position() == 0;
        due -= 1;
        match cursor.token().ok()? {
            Token::Map(pairs) => due += 2 * u64::from(pairs),
            _ if is_first => return None,
            Token::Array(values) => due += u64::from(values),
            Token::Str(text) => strings.push(text),
            _ => {}
        }
    }
    (cursor.remaining() == 0).then_some(strings)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matcher(tenant: &str, session: Option<&str>) -> Matcher {
        let subject = Subject { tenant: tenant.into(), session: session.map(str::to_owned) };
        Matcher::new(&subject, &Defaults::default())
    }

    fn frame(fields: serde_json::Value) -> Vec<u8> {
        rmp_serde::to_vec(&fields).unwrap()
    }

    #[test]
    fn records_are_told_by_tenant_and_session() {
        let of_ann = frame(serde_json::json!({"tenant": "ann", "session": "s1", "text": "bob"}));
        assert!(matcher("ann", None).takes(&of_ann) && matcher("ann", Some("s1")).takes(&of_ann));
        assert!(!matcher("ann", Some("s2")).takes(&of_ann));
        assert!(!matcher("bob", None).takes(&of_ann), "only the text names bob");
        let of_nobody = frame(serde_json::json!({"text": "x"}));
        assert!(matcher("default", None).takes(&of_nobody) && !matcher("ann", None).takes(&of_nobody));
        assert!(!matcher("", None).takes(b""));
    }

    #[test]
    fn what_is_no_record_is_taken_if_it_names_the_subject() {
        let no_text = frame(serde_json::json!({"tenant": "ann", "session": "s1"}));
        assert!(matcher("ann", Some("s1")).takes(&no_text));
        assert!(!matcher("an", None).takes(&no_text) && !matcher("ann", Some("s2")).takes(&no_text));
        let torn = &frame(serde_json::json!({"tenant": "ann", "text": "long enough to be cut"}))[..20];
        assert!(matcher("ann", None).takes(torn));
        assert!(matcher("ann", None).takes(br#"{"tenant":"ann","text":1}"#));
        assert!(!matcher("bob", None).takes(br#"{"tenant":"ann","text":1}"#));
    }
}
