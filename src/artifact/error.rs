//! What can go wrong with objects, and what to do about it.

use object_store::client::{HttpError, HttpErrorKind};

use super::credentials::CredentialsError;
use crate::{http_client::ClientError, setting::SettingError, store::StoreError};

/// Why an artifact could not be kept or read.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    /// The object store refused.
    #[error("the object store failed at {location}: {source}")]
    Objects {
        /// The object.
        location: String,
        /// What it said.
        source: object_store::Error,
    },
    /// The server of the object store does not answer, or not now. Trying
    /// again helps.
    #[error(
        "the object store {place} does not answer: {reason}; it is tried again, nothing is lost meanwhile; check `endpoint` in [artifacts] and whether the server runs"
    )]
    Away {
        /// Bucket and server.
        place: String,
        /// The cause, without times and counts.
        reason: String,
    },
    /// The server of the object store answers, and says no.
    #[error("the object store {place} refuses: {code}; {advice}")]
    Refused {
        /// Bucket and server.
        place: String,
        /// Its own word for it.
        code: String,
        /// What to do.
        advice: String,
    },
    /// The object that was written is not the one that was sent.
    #[error(
        "{location} has {found} bytes in the object store after {sent} were sent; look for a proxy that cuts uploads, then try again"
    )]
    Cut {
        /// The object.
        location: String,
        /// Bytes sent.
        sent: u64,
        /// Bytes there.
        found: u64,
    },
    /// The server lost the upload as often as it was begun.
    #[error(
        "the object store {place} forgot the upload of {location} {times} times; look whether something aborts uploads there"
    )]
    UploadLost {
        /// Bucket and server.
        place: String,
        /// The object.
        location: String,
        /// How often.
        times: u32,
    },
    /// A local file is not what its digest says.
    #[error(
        "{path} has SHA-256 {found} and should have {expected}: it was altered after it was written; run `thalweg segments verify`"
    )]
    Altered {
        /// The file.
        path: String,
        /// What it should have.
        expected: String,
        /// What it has.
        found: String,
    },
    /// The settings cannot be meant.
    #[error("[artifacts] {0}")]
    Setting(#[from] SettingError),
    /// There are no keys.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// There is no HTTP client.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// A local file could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The registry refused.
    #[error(transparent)]
    Registry(#[from] StoreError),
    /// Objects were listed in another order than that of their names.
    #[error(
        "the object store lists {second} after {first}; such a server (S3 Express is one) cannot be compared with the registry"
    )]
    Unsorted {
        /// Listed first.
        first: String,
        /// Listed after it.
        second: String,
    },
    /// No row has that digest.
    #[error("no artifact has a digest that begins with `{digest}`; `thalweg artifacts list` shows them")]
    Unknown {
        /// What was asked for.
        digest: String,
    },
    /// Several rows have a digest that begins like this.
    #[error("{count} artifacts have a digest that begins with `{digest}`; write more of it")]
    Ambiguous {
        /// What was asked for.
        digest: String,
        /// How many match.
        count: usize,
    },
}

impl ArtifactError {
    /// Whether the object store may do later what it does not do now.
    pub fn is_away(&self) -> bool {
        matches!(self, Self::Away { .. })
    }

    /// Whether it is only this object that is not there.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Objects { source: object_store::Error::NotFound { .. }, .. })
    }
}

/// What an answer of a server that speaks S3 means.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// Nobody answers, or not now.
    Away(String),
    /// It says no.
    Refused { code: String, advice: String },
    /// Something about this object.
    Object,
}

/// Tells what `error` of an S3 client means.
pub(super) fn meaning(error: &object_store::Error) -> Meaning {
    let text = error.to_string();
    // The client's last resort, which most machines have no answer for.
    if text.contains("//169.254.") {
        let advice = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or `credentials_file` in [artifacts]; this machine was given no keys by its provider either";
        return Meaning::Refused { code: "no access key".into(), advice: advice.into() };
    }
    if let Some(reason) = unanswered(error) {
        if reason.contains("certificate") {
            let advice =
                "trust the authority that issued it: install its certificate, or name it in SSL_CERT_FILE";
            return Meaning::Refused { code: reason, advice: advice.into() };
        }
        return Meaning::Away(reason);
    }
    let code = tag(&text, "Code");
    if let Some(advice) = code.and_then(|code| advice(code, tag(&text, "Region"))) {
        return Meaning::Refused { code: code.unwrap_or_default().to_owned(), advice };
    }
    if text.contains("without LOCATION") || matches!(status(&text), Some(301 | 307)) {
        return Meaning::Refused { code: "redirected".into(), advice: other_region(None) };
    }
    match status(&text) {
        Some(status @ (429 | 500..)) => {
            Meaning::Away(format!("it answers with status {status}{}", named(code)))
        }
        Some(status @ (400 | 401 | 403 | 405)) => Meaning::Refused {
            code: code.map_or_else(|| format!("status {status}"), str::to_owned),
            advice: rights(),
        },
        _ => Meaning::Object,
    }
}

fn named(code: Option<&str>) -> String {
    code.map(|code| format!(" ({code})")).unwrap_or_default()
}

/// Whether `error` says that the upload is not known any more, or not as it
/// was left.
pub(super) fn is_lost_upload(error: &object_store::Error) -> bool {
    matches!(tag(&error.to_string(), "Code"), Some("NoSuchUpload" | "InvalidPart" | "InvalidPartOrder"))
}

/// Why there was no answer, if there was none.
fn unanswered(error: &object_store::Error) -> Option<String> {
    let mut causes = std::iter::successors(std::error::Error::source(error), |cause| cause.source());
    let http = causes.find_map(|cause| cause.downcast_ref::<HttpError>())?;
    let innermost = std::iter::successors(std::error::Error::source(http), |cause| cause.source()).last();
    let reason = innermost.map_or_else(|| http.to_string(), ToString::to_string);
    Some(match http.kind() {
        HttpErrorKind::Timeout => "it took too long".to_owned(),
        _ => reason,
    })
}

fn rights() -> String {
    "give the keys the rights to list the bucket, to get, put and delete its objects, and to abort uploads"
        .into()
}

fn other_region(region: Option<&str>) -> String {
    let region = region.map(|region| format!(" = \"{region}\"")).unwrap_or_default();
    format!("the bucket is in another region: set `region{region}` in [artifacts]")
}

/// What to do about the refusals that settings or keys can mend.
fn advice(code: &str, region: Option<&str>) -> Option<String> {
    Some(match code {
        "NoSuchBucket" => "there is no such bucket: make it, or mend `url` in [artifacts]".into(),
        "InvalidBucketName" => "mend the bucket in `url` in [artifacts]".into(),
        "InvalidAccessKeyId" => "it does not know this access key: mend AWS_ACCESS_KEY_ID or the credentials file, or `endpoint` if the key is of another server".into(),
        "SignatureDoesNotMatch" => "the secret key does not belong to the access key: mend AWS_SECRET_ACCESS_KEY or the credentials file".into(),
        "ExpiredToken" | "InvalidToken" | "TokenRefreshRequired" => "the session token is over: get new keys and restart, or keep them in a credentials file, which is read again when it changes".into(),
        "AccessDenied" | "AllAccessDisabled" | "AccountProblem" => rights(),
        "RequestTimeTooSkewed" => "the clocks of this machine and of the server differ too much: set them".into(),
        "AuthorizationHeaderMalformed" | "PermanentRedirect" | "TemporaryRedirect" | "IllegalLocationConstraintException" => other_region(region),
        "XAmzContentSHA256Mismatch" | "BadDigest" => "the bytes were altered on the way: look for a proxy or a network card that does so".into(),
        "QuotaExceeded" | "TooManyBuckets" => "its quota is used up: raise it, or remove what is not needed".into(),
        _ => return None,
    })
}

/// What stands in the XML element `name`.
fn tag<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    rest.split_once('<').map(|(value, _)| value).filter(|value| !value.is_empty())
}

/// The status in the words of the client, whose own error type is private.
fn status(text: &str) -> Option<u16> {
    let (_, rest) = text.split_once("status code: ")?;
    rest.get(..3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(status: &str, body: &str) -> Meaning {
        let text = format!(
            "Error performing PUT http://h/b/k in 1ms - Server returned non-2xx status code: {status}: {body}"
        );
        meaning(&object_store::Error::Generic { store: "S3", source: text.into() })
    }

    fn code(code: &str) -> String {
        format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Region>eu-west-1</Region></Error>")
    }

    #[test]
    fn a_refusal_says_what_to_do() {
        for (status, word, advice) in [
            ("404 Not Found", "NoSuchBucket", "make it"),
            ("403 Forbidden", "InvalidAccessKeyId", "AWS_ACCESS_KEY_ID"),
            ("403 Forbidden", "SignatureDoesNotMatch", "AWS_SECRET_ACCESS_KEY"),
            ("400 Bad Request", "AuthorizationHeaderMalformed", "region = \"eu-west-1\""),
            ("403 Forbidden", "RequestTimeTooSkewed", "clocks"),
            ("403 Forbidden", "SomethingNew", "rights"),
        ] {
            let found = said(status, &code(word));
            let Meaning::Refused { code, advice: found } = found else { panic!("{word}: {found:?}") };
            assert!(code == word && found.contains(advice), "{word}: {found}");
        }
        assert!(matches!(said("403 Forbidden", ""), Meaning::Refused { code, .. } if code == "status 403"));
    }

    #[test]
    fn a_machine_without_keys_is_not_taken_for_one_without_rights() {
        let text = "Error performing PUT http://169.254.169.254/latest/api/token in 1ms - Server returned non-2xx status code: 403 Forbidden: ";
        let found = meaning(&object_store::Error::Generic { store: "S3", source: text.into() });
        assert!(matches!(found, Meaning::Refused { code, .. } if code == "no access key"));
    }

    #[test]
    fn a_server_that_is_busy_is_away_and_one_that_lacks_an_object_is_neither() {
        assert_eq!(
            said("503 Slow", &code("SlowDown")),
            Meaning::Away("it answers with status 503 (SlowDown)".into())
        );
        assert_eq!(said("404 Not Found", &code("NoSuchKey")), Meaning::Object);
        assert_eq!(said("412 Precondition Failed", ""), Meaning::Object);
    }

    #[test]
    fn an_upload_that_is_lost_is_told_from_an_object_that_is_not_there() {
        let error =
            |word: &str| object_store::Error::NotFound { path: "k".into(), source: code(word).into() };
        assert!(is_lost_upload(&error("NoSuchUpload")) && !is_lost_upload(&error("NoSuchKey")));
    }
}
