//! What a failed request means, by what is to be done about it.
//!
//! Shapes of error bodies: `{"error": {"message", "type", "code"}}` (OpenAI),
//! `{"detail": "..."}` (Voyage), `{"error": "...", "error_type": "..."}`
//! (text-embeddings-inference), `{"message": "..."}` and plain text (proxies).

use std::time::Duration;

use serde_json::Value;

/// Characters of an error message that are kept.
const MESSAGE_CHARS: usize = 200;

/// OpenAI's `type` or `code` of an account that may spend no more. They come
/// with status 429, but waiting does not help.
const SPENT: [&str; 7] = [
    "insufficient_quota",
    "credit_balance_exhausted",
    "organization_spend_limit_exceeded",
    "project_spend_limit_exceeded",
    "organization_usage_limit_exceeded",
    "billing_hard_limit_reached",
    "billing_not_active",
];

/// Why a request brought no vectors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Too many requests; nothing else is wrong. No attempt is charged.
    Rate { retry_after: Option<Duration>, reason: String },
    /// The account may spend no more.
    Quota { retry_after: Option<Duration>, reason: String },
    /// The request is over a limit: its parts may pass.
    TooLarge { of: Option<Size>, reason: String },
    /// One of the texts is longer than the model takes, it is not known which.
    TooLong { reason: String },
    /// One of the texts is refused, it is not known which.
    Input { reason: String },
    /// The service says that it failed: in passing, or at one of the texts
    /// and so each time.
    ServerError { reason: String },
    /// The same, of a service that has embedded another text since.
    Poison { reason: String },
    /// Trying again may help.
    Transient { retry_after: Option<Duration>, reason: String },
    /// An answer that does not belong to the request: in passing, or always.
    Malformed { reason: String },
    /// Nothing will help but a change of configuration, here or there.
    Configuration { reason: String },
}

/// Of what a request had too much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    Inputs,
    Tokens,
}

impl Fault {
    /// Worth another try.
    pub fn transient(reason: impl Into<String>) -> Self {
        Self::Transient { retry_after: None, reason: reason.into() }
    }

    /// The name of its class, for metrics.
    pub fn class(&self) -> &'static str {
        match self {
            Self::Rate { .. } => "rate",
            Self::Quota { .. } => "quota",
            Self::TooLarge { .. } => "too_large",
            Self::Input { .. } | Self::TooLong { .. } | Self::Poison { .. } => "input",
            Self::Transient { .. } | Self::ServerError { .. } | Self::Malformed { .. } => "transient",
            Self::Configuration { .. } => "configuration",
        }
    }

    /// What happened.
    pub fn reason(&self) -> &str {
        match self {
            Self::Rate { reason, .. }
            | Self::Quota { reason, .. }
            | Self::TooLarge { reason, .. }
            | Self::TooLong { reason }
            | Self::Input { reason }
            | Self::ServerError { reason }
            | Self::Poison { reason }
            | Self::Transient { reason, .. }
            | Self::Malformed { reason }
            | Self::Configuration { reason } => reason,
        }
    }

    /// What happened, to be worded otherwise.
    pub fn reason_mut(&mut self) -> &mut String {
        match self {
            Self::Rate { reason, .. }
            | Self::Quota { reason, .. }
            | Self::TooLarge { reason, .. }
            | Self::TooLong { reason }
            | Self::Input { reason }
            | Self::ServerError { reason }
            | Self::Poison { reason }
            | Self::Transient { reason, .. }
            | Self::Malformed { reason }
            | Self::Configuration { reason } => reason,
        }
    }
}

/// The class of an answer whose status is no success. `retry_after` is what
/// its headers say.
pub fn classify(status: u16, retry_after: Option<Duration>, body: &[u8]) -> Fault {
    let said = Said::read(body);
    let reason = said.with_status(status);
    match status {
        402 => Fault::Quota { retry_after, reason },
        403 | 429 if said.is_spent() => Fault::Quota { retry_after, reason },
        // OpenAI's word for a request that no minute's rate will ever hold.
        429 if said.is_over_the_rate() => Fault::TooLarge { of: Some(Size::Tokens), reason },
        429 => Fault::Rate { retry_after, reason },
        // llama.cpp says it with 500.
        400 | 413 | 422 | 500 if said.is_too_long() => Fault::TooLong { reason },
        413 => Fault::TooLarge { of: said.size(), reason },
        400 | 422 if said.is_too_large() => Fault::TooLarge { of: said.size(), reason },
        400 | 422 => Fault::Input { reason },
        // Some services repeat the key in what they say of it.
        401 => Fault::Configuration { reason: "HTTP 401: the key is missing or not accepted".to_owned() },
        // Who says when to come again means himself, and no text. 424 is
        // text-embeddings-inference's word for a failed inference.
        424 | 500..=599 if retry_after.is_none() => Fault::ServerError { reason },
        408 | 409 | 424 | 425 | 500..=599 => Fault::Transient { retry_after, reason },
        300..=499 => Fault::Configuration { reason },
        _ => Fault::Transient { retry_after, reason },
    }
}

/// What the service says of the failure.
#[derive(Debug, Default)]
struct Said {
    message: String,
    /// `type`, `code` and `error_type`.
    kinds: Vec<String>,
}

impl Said {
    fn read(body: &[u8]) -> Self {
        let Ok(json) = serde_json::from_slice::<Value>(body) else {
            return Self { message: String::from_utf8_lossy(body).into_owned(), kinds: Vec::new() };
        };
        let error = json.get("error").filter(|error| error.is_object()).unwrap_or(&json);
        let text = |key: &str| match error.get(key)? {
            Value::String(text) => Some(text.clone()),
            Value::Null => None,
            other => Some(other.to_string()),
        };
        let message = ["message", "error", "detail"].into_iter().find_map(text);
        Self {
            message: message.unwrap_or_else(|| json.to_string()),
            kinds: ["type", "code", "error_type"].into_iter().filter_map(text).collect(),
        }
    }

    fn with_status(&self, status: u16) -> String {
        let message: String = self
            .message
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
            .chars()
            .take(MESSAGE_CHARS)
            .collect();
        if message.is_empty() { format!("HTTP {status}") } else { format!("HTTP {status}: {message}") }
    }

    fn is_spent(&self) -> bool {
        self.kinds.iter().any(|kind| SPENT.contains(&kind.as_str()))
    }

    /// OpenAI has a code of its own; Voyage and others only say it.
    fn is_too_large(&self) -> bool {
        let message = self.message.to_lowercase();
        self.kinds.iter().any(|kind| kind == "max_tokens_per_request")
            || ["batch size", "per submitted batch", "tokens per request", "batch is too large"]
                .iter()
                .any(|words| message.contains(words))
    }

    /// In the words of OpenAI and vLLM, Gemini, Mistral,
    /// text-embeddings-inference, llama.cpp and Ollama.
    fn is_too_long(&self) -> bool {
        let message = self.message.to_lowercase();
        [
            "context length",
            "context size",
            "exceeds the maximum number of tokens",
            "exceeding max",
            "must have less than",
            "input is too large",
            "input is too long",
            "maximum sequence length",
        ]
        .iter()
        .any(|words| message.contains(words))
    }

    fn is_over_the_rate(&self) -> bool {
        let message = self.message.to_lowercase();
        ["request too large", "must be reduced"].iter().any(|words| message.contains(words))
    }

    fn size(&self) -> Option<Size> {
        let message = self.message.to_lowercase();
        if message.contains("batch size") {
            Some(Size::Inputs)
        } else if message.contains("token") {
            Some(Size::Tokens)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(status: u16, body: &str) -> &'static str {
        classify(status, None, body.as_bytes()).class()
    }

    #[test]
    fn a_status_alone_has_a_class() {
        for (status, expected) in [
            (429, "rate"),
            (402, "quota"),
            (413, "too_large"),
            (400, "input"),
            (422, "input"),
            (401, "configuration"),
            (403, "configuration"),
            (404, "configuration"),
            (307, "configuration"),
            (408, "transient"),
            (424, "transient"),
            (500, "transient"),
            (502, "transient"),
            (503, "transient"),
            (529, "transient"),
        ] {
            assert_eq!(class(status, ""), expected, "{status}");
        }
    }

    #[test]
    fn a_spent_account_is_no_rate_limit() {
        let spent = r#"{"error": {"message": "You exceeded your current quota", "type": "insufficient_quota", "param": null, "code": "insufficient_quota"}}"#;
        assert_eq!(class(429, spent), "quota");
        let project = r#"{"error": {"message": "", "type": "insufficient_quota", "code": "project_spend_limit_exceeded"}}"#;
        assert_eq!(class(429, project), "quota");
        let rate = r#"{"error": {"message": "Rate limit reached for requests", "type": "requests", "code": "rate_limit_exceeded"}}"#;
        assert_eq!(class(429, rate), "rate");
        assert_eq!(class(429, r#"{"error": "Model is overloaded", "error_type": "Overloaded"}"#), "rate");
    }

    #[test]
    fn a_request_over_a_limit_is_told_from_a_bad_text() {
        let size = |status, body: &str| match classify(status, None, body.as_bytes()) {
            Fault::TooLarge { of, .. } => of,
            other => panic!("{other:?}"),
        };
        let openai = r#"{"error": {"message": "Requested 416735 tokens, max 300000 tokens per request", "type": "max_tokens_per_request", "param": null, "code": "max_tokens_per_request"}}"#;
        assert_eq!(size(400, openai), Some(Size::Tokens));
        let voyage = r#"{"detail": "Request to model 'voyage-3-large' failed. The max allowed tokens per submitted batch is 120000. Your batch has 124302 tokens after truncation."}"#;
        assert_eq!(size(400, voyage), Some(Size::Tokens));
        let tei = r#"{"error": "batch size 64 > maximum allowed batch size 32", "error_type": "Validation"}"#;
        assert_eq!(size(413, tei), Some(Size::Inputs));
        assert_eq!(size(422, tei), Some(Size::Inputs));
        let rate = r#"{"error": {"message": "Request too large for m in organization o on tokens per min (TPM): Limit 30000, Requested 36278. The input or output tokens must be reduced in order to run successfully.", "type": "tokens", "code": "rate_limit_exceeded"}}"#;
        assert_eq!(size(429, rate), Some(Size::Tokens));
    }

    #[test]
    fn a_text_that_is_too_long_is_told_from_one_that_is_refused() {
        for (status, message) in [
            (400, "This model's maximum context length is 8192 tokens, however you requested 9000 tokens"),
            (400, "Input id 0 has 9000 tokens, exceeding max 8192 tokens."),
            (413, "`inputs` must have less than 512 tokens. Given: 600"),
            (500, "input is too large to process. increase the physical batch size"),
            (400, "The input token count (2049) exceeds the maximum number of tokens allowed (2048)."),
        ] {
            let body = serde_json::json!({"error": {"message": message}}).to_string();
            assert!(matches!(classify(status, None, body.as_bytes()), Fault::TooLong { .. }), "{message}");
        }
        assert!(matches!(classify(400, None, b"input is not acceptable"), Fault::Input { .. }));
    }

    #[test]
    fn a_failure_that_may_be_a_texts_is_told_from_one_that_is_not() {
        for status in [424, 500, 502, 503, 504, 529] {
            assert!(matches!(classify(status, None, b""), Fault::ServerError { .. }), "{status}");
            let told = classify(status, Some(Duration::from_secs(1)), b"");
            assert!(matches!(told, Fault::Transient { .. }), "{status}");
        }
        assert!(matches!(classify(408, None, b""), Fault::Transient { .. }));
    }

    #[test]
    fn the_reason_is_what_the_service_says_on_one_line() {
        let reason = |body: &[u8]| classify(400, None, body).reason().to_owned();
        assert_eq!(reason(br#"{"error": {"message": "no\n such  thing"}}"#), "HTTP 400: no such thing");
        assert_eq!(reason(br#"{"detail": [{"msg": "short"}]}"#), r#"HTTP 400: [{"msg":"short"}]"#);
        assert_eq!(reason(b"<html>"), "HTTP 400: <html>");
        assert_eq!(reason(b""), "HTTP 400");
        assert_eq!(reason(&[b'x'; 5_000]).chars().count(), "HTTP 400: ".len() + MESSAGE_CHARS);
        let refused = classify(401, None, b"Incorrect API key provided: sk-12");
        assert!(!refused.reason().contains("sk-12"));
    }

    #[test]
    fn what_the_headers_say_is_kept() {
        let wait = Some(Duration::from_secs(3));
        assert!(matches!(classify(429, wait, b""), Fault::Rate { retry_after, .. } if retry_after == wait));
        assert!(
            matches!(classify(503, wait, b""), Fault::Transient { retry_after, .. } if retry_after == wait)
        );
    }
}
