//! What is said of the object store in a pipeline file, and what is refused.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    setting::SettingError,
    units::{ByteSize, Period},
};

/// The smallest part that S3 takes, but for the last one of an upload.
const SMALLEST_PART: ByteSize = ByteSize::mib(5);
/// Parts are held in memory, four at a time.
const LARGEST_PART: ByteSize = ByteSize::mib(512);

/// The `[artifacts]` section of a pipeline file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Folder of the local object store, relative to `data_dir`.
    pub path: String,
    /// Keep objects in S3 instead: `s3://bucket` or `s3://bucket/prefix`.
    pub url: Option<String>,
    /// Address of a server that speaks S3, such as `https://s3.example.org`;
    /// Amazon's in `region` if left out.
    pub endpoint: Option<String>,
    /// Region of the bucket; AWS_REGION, AWS_DEFAULT_REGION or `us-east-1` if
    /// left out.
    pub region: Option<String>,
    /// Whether the bucket is named in the path and not in the host name;
    /// `true` if there is an `endpoint`.
    pub path_style: Option<bool>,
    /// File with access keys in the format of `~/.aws/credentials`, relative
    /// to the working directory. Takes precedence over the environment
    /// (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN).
    pub credentials_file: Option<String>,
    /// Which section of the credentials file; AWS_PROFILE or `default` if left
    /// out. Takes precedence over keys in the environment.
    pub profile: Option<String>,
    /// Objects in S3 that are larger are sent in parts of this size, and an
    /// upload that was interrupted goes on with the parts that are missing.
    pub part_bytes: ByteSize,
    /// An object without a row is an orphan once it is older than this: an
    /// object is put before its row.
    pub grace: Period,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            path: "artifacts".into(),
            url: None,
            endpoint: None,
            region: None,
            path_style: None,
            credentials_file: None,
            profile: None,
            part_bytes: ByteSize::mib(8),
            grace: Period::secs(3600),
        }
    }
}

impl Settings {
    /// Refuses values that cannot be meant.
    pub fn validate(&self) -> Result<(), SettingError> {
        SettingError::unless(!self.path.is_empty(), "path", "must name a folder")?;
        SettingError::unless(
            (SMALLEST_PART..=LARGEST_PART).contains(&self.part_bytes),
            "part_bytes",
            format!(
                "S3 takes parts from {SMALLEST_PART}, and they are held in memory: write {SMALLEST_PART} to {LARGEST_PART}"
            ),
        )?;
        self.s3()?;
        Ok(())
    }

    /// Where in S3 objects are kept; `None`: in the local folder.
    pub fn s3(&self) -> Result<Option<S3Place>, SettingError> {
        let Some(url) = &self.url else {
            return self.without_s3().map(|()| None);
        };
        let (bucket, prefix) = parse_url(url).map_err(|message| SettingError::new("url", message))?;
        if let Some(endpoint) = &self.endpoint {
            check_endpoint(endpoint).map_err(|message| SettingError::new("endpoint", message))?;
        }
        let names = [
            ("region", &self.region),
            ("profile", &self.profile),
            ("credentials_file", &self.credentials_file),
        ];
        for (key, value) in names {
            let fine = value.as_ref().is_none_or(|value| !value.trim().is_empty());
            SettingError::unless(fine, key, "must not be empty; leave it out instead")?;
        }
        Ok(Some(S3Place {
            bucket,
            prefix,
            endpoint: self.endpoint.as_ref().map(|endpoint| endpoint.trim_end_matches('/').to_owned()),
            path_style: self.path_style.unwrap_or(self.endpoint.is_some()),
        }))
    }

    /// Nothing that is meant for S3 is silently without effect.
    fn without_s3(&self) -> Result<(), SettingError> {
        let set = [
            ("endpoint", self.endpoint.is_some()),
            ("region", self.region.is_some()),
            ("path_style", self.path_style.is_some()),
            ("credentials_file", self.credentials_file.is_some()),
            ("profile", self.profile.is_some()),
        ];
        for (key, set) in set {
            let message =
                "means something for S3 only; set `url` to `s3://bucket/prefix` as well, or leave it out";
            SettingError::unless(!set, key, message)?;
        }
        Ok(())
    }
}

/// A bucket of a server that speaks S3, and where in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct S3Place {
    /// Its name.
    pub bucket: String,
    /// What every key begins with, without slashes at its ends; may be empty.
    pub prefix: String,
    /// Address of the server, without a slash at its end; `None`: Amazon's.
    pub endpoint: Option<String>,
    /// Whether the bucket is named in the path and not in the host name.
    pub path_style: bool,
}

impl S3Place {
    /// Whether the server is spoken to in plain text.
    pub fn is_plain(&self) -> bool {
        self.endpoint.as_ref().is_some_and(|endpoint| endpoint.starts_with("http://"))
    }

    /// The server's address as its client wants it: with the bucket in front
    /// of the host name unless that is named in the path.
    pub fn client_endpoint(&self) -> Option<String> {
        let endpoint = self.endpoint.as_ref()?;
        match endpoint.split_once("://") {
            Some((scheme, host)) if !self.path_style => Some(format!("{scheme}://{}.{host}", self.bucket)),
            _ => Some(endpoint.clone()),
        }
    }
}

impl fmt::Display for S3Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}", self.bucket)?;
        if !self.prefix.is_empty() {
            write!(f, "/{}", self.prefix)?;
        }
        match &self.endpoint {
            Some(endpoint) => write!(f, " at {endpoint}"),
            None => Ok(()),
        }
    }
}

/// Refuses an address with a password in it, before any other message shows it.
fn without_keys(url: &str) -> Result<(), String> {
    let (_, host) = url.split_once("://").unwrap_or(("", url));
    if host.split(['/', '?', '#']).next().is_some_and(|host| host.contains('@')) {
        let message =
            "must not hold a name or a password; keys come from the environment or a credentials file";
        return Err(message.into());
    }
    Ok(())
}

/// Bucket and prefix of `s3://bucket/prefix`.
fn parse_url(url: &str) -> Result<(String, String), String> {
    without_keys(url)?;
    let rest = url
        .strip_prefix("s3://")
        .ok_or_else(|| format!("`{url}` is not the address of a bucket; write `s3://bucket/prefix`"))?;
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    let letters = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_');
    let ends = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    if !(3..=63).contains(&bucket.len())
        || !bucket.bytes().all(letters)
        || !ends(bucket.bytes().next())
        || !ends(bucket.bytes().last())
    {
        return Err(format!(
            "`{bucket}` is not the name of a bucket; it has 3 to 63 of a-z, 0-9, `-` and `.`"
        ));
    }
    let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
    let part = |part: &str| {
        !matches!(part, "" | "." | "..")
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'='))
    };
    if !prefix.is_empty() && !prefix.split('/').all(part) {
        return Err(format!(
            "`{prefix}` cannot be a prefix; write parts of letters, digits, `-`, `_`, `.` and `=` with one `/` between them"
        ));
    }
    Ok((bucket.to_owned(), prefix.to_owned()))
}

fn check_endpoint(endpoint: &str) -> Result<(), String> {
    without_keys(endpoint)?;
    let wrong =
        || format!("`{endpoint}` is not the address of a server; write `https://host` or `http://host:port`");
    let url: reqwest::Url = endpoint.parse().map_err(|_| wrong())?;
    let bare = url.path() == "/" && url.query().is_none() && url.fragment().is_none();
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() || !bare {
        return Err(wrong());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(url: &str) -> Settings {
        Settings { url: Some(url.into()), ..Settings::default() }
    }

    #[test]
    fn a_url_names_bucket_and_prefix() {
        let place = of("s3://my-bucket/some/where/").s3().unwrap().unwrap();
        assert_eq!((place.bucket.as_str(), place.prefix.as_str()), ("my-bucket", "some/where"));
        assert_eq!(place.to_string(), "s3://my-bucket/some/where");
        assert_eq!(of("s3://my-bucket").s3().unwrap().unwrap().prefix, "");
        assert_eq!(Settings::default().s3(), Ok(None));
    }

    #[test]
    fn what_is_no_bucket_is_refused_with_what_would_be_right() {
        for url in [
            "my-bucket",
            "https://my-bucket",
            "s3://",
            "s3://ab",
            "s3://Upper",
            "s3://-abc",
            "s3://abc//x",
            "s3://abc/../x",
            "s3://abc/a b",
        ] {
            let error = of(url).validate().unwrap_err();
            assert!(
                error.key == "url" && error.message.contains("write") || error.message.contains("3 to 63"),
                "{url}: {error}"
            );
        }
    }

    #[test]
    fn the_bucket_is_in_the_path_where_an_endpoint_is_given() {
        let mut settings = Settings { endpoint: Some("http://127.0.0.1:9000/".into()), ..of("s3://abc") };
        let place = settings.s3().unwrap().unwrap();
        assert!(place.path_style && place.is_plain());
        assert_eq!(place.client_endpoint().as_deref(), Some("http://127.0.0.1:9000"));
        settings.path_style = Some(false);
        assert_eq!(
            settings.s3().unwrap().unwrap().client_endpoint().as_deref(),
            Some("http://abc.127.0.0.1:9000")
        );
        assert!(!of("s3://abc").s3().unwrap().unwrap().path_style);
    }

    #[test]
    fn an_endpoint_is_a_bare_address_without_secrets() {
        for endpoint in
            ["127.0.0.1:9000", "ftp://host", "http://host/path", "http://host?x=1", "https://key:secret@host"]
        {
            let error =
                Settings { endpoint: Some(endpoint.into()), ..of("s3://abc") }.validate().unwrap_err();
            assert_eq!(error.key, "endpoint", "{endpoint}");
        }
    }

    #[test]
    fn settings_for_s3_without_a_bucket_are_refused() {
        let settings = Settings { region: Some("eu-west-1".into()), ..Settings::default() };
        assert_eq!(settings.validate().unwrap_err().key, "region");
        let small = Settings { part_bytes: ByteSize::mib(1), ..Settings::default() };
        assert_eq!(small.validate().unwrap_err().key, "part_bytes");
    }
}
