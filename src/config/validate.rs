//! What a pipeline may mean: each section by itself, then all together.

use std::{collections::HashMap, path::Path};

use super::{
    listen::Listen,
    pipeline::Pipeline,
    source::{Forward, Source},
};
use crate::{
    embed::{Provider, remote::SPECIAL_TOKENS},
    jobs,
    setting::SettingError,
    webhooks,
};

/// A socket's path must fit `sockaddr_un`, with its closing zero.
const SOCKET_PATH_BYTES: usize = 107;

/// Everything that parses but cannot be meant; the keys are paths from the
/// top of the file.
pub(super) fn validate(pipeline: &Pipeline) -> Vec<SettingError> {
    let mut found = sections(pipeline);
    found.extend(names(pipeline));
    found.extend(sources(pipeline));
    found.extend(listeners(pipeline));
    found.extend(chunks_fit(pipeline));
    found.extend(jobs::settings::refused(&pipeline.schedules));
    found.extend(webhooks::settings::refused(&pipeline.webhooks));
    found
}

/// A chunk that the model cuts would be found by its beginning only.
fn chunks_fit(pipeline: &Pipeline) -> Option<SettingError> {
    let (chunk, embed) = (pipeline.derive.chunk.max_tokens, &pipeline.embed);
    let room = embed.max_tokens.saturating_sub(SPECIAL_TOKENS);
    (embed.provider == Provider::Remote && chunk > room).then(|| {
        let message = format!(
            "chunks have up to {chunk} tokens and would be cut; write {} or more, or lower derive.chunk.max_tokens",
            chunk + SPECIAL_TOKENS
        );
        SettingError::new("embed.max_tokens", message)
    })
}

/// What each section says of itself.
fn sections(pipeline: &Pipeline) -> Vec<SettingError> {
    let derive = &pipeline.derive;
    [
        ("log", pipeline.log.validate()),
        ("segment", pipeline.segment.validate()),
        ("derive.quality", derive.quality.validate()),
        ("derive.pii", derive.pii.validate()),
        ("derive.chunk", derive.chunk.validate()),
        ("derive.dedupe", derive.dedupe.validate()),
        ("embed", pipeline.embed.validate()),
        ("migrate", pipeline.migrate.as_ref().map_or(Ok(()), |embed| embed.validate())),
        ("store", pipeline.store.validate()),
        ("artifacts", pipeline.artifacts.validate()),
        ("redis", pipeline.redis.as_ref().map_or(Ok(()), |redis| redis.validate())),
        ("retention", pipeline.retention.validate()),
        ("limits", pipeline.limits.validate()),
        ("jobs", pipeline.jobs.validate()),
        ("search", pipeline.search.validate()),
        ("http", pipeline.http.validate()),
        ("auth", pipeline.auth.as_ref().map_or(Ok(()), |auth| auth.validate())),
        ("sessions", pipeline.sessions.validate()),
    ]
    .into_iter()
    .filter_map(|(section, result)| {
        let error = result.err()?;
        Some(SettingError::new(format!("{section}.{}", error.key), error.message))
    })
    .collect()
}

/// Names are parts of file names, metric labels and object keys.
fn names(pipeline: &Pipeline) -> Vec<SettingError> {
    let mut found = Vec::new();
    let mut check = |key: String, name: &str| {
        let fine = (1..=64).contains(&name.len())
            && name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-'));
        if !fine {
            let message = format!("`{name}` is not a name; write 1 to 64 of a-z, 0-9, `_` and `-`");
            found.push(SettingError::new(key, message));
        }
    };
    check("name".to_owned(), &pipeline.name);
    check("stream".to_owned(), &pipeline.stream);
    for (i, source) in pipeline.sources.iter().enumerate() {
        check(format!("source[{i}].name"), source.name());
    }
    if pipeline.stream == pipeline.name {
        // The stream took the name over, and with it the same complaint.
        found.retain(|error| error.key != "stream");
    }
    let labels = [
        ("batch_tag", pipeline.batch_tag.as_deref()),
        ("defaults.tenant", Some(pipeline.defaults.tenant.as_str())),
        ("defaults.source", Some(pipeline.defaults.source.as_str())),
    ];
    for (key, label) in labels {
        if label.is_some_and(|label| {
            label.trim().is_empty() || label.len() > 128 || label.contains(char::is_control)
        }) {
            found.push(SettingError::new(
                key,
                "write 1 to 128 bytes without control characters, not only spaces",
            ));
        }
    }
    if pipeline.data_dir.as_os_str().is_empty() {
        found.push(SettingError::new("data_dir", "the path is empty; name a folder"));
    }
    found
}

fn sources(pipeline: &Pipeline) -> Vec<SettingError> {
    let mut found = Vec::new();
    if pipeline.sources.is_empty() {
        found.push(SettingError::new("source", "a pipeline needs at least one `[[source]]`"));
    }
    let mut names = HashMap::new();
    let mut only_one = HashMap::new();
    for (i, source) in pipeline.sources.iter().enumerate() {
        let mut refuse = |key: &str, message: String| {
            found.push(SettingError::new(format!("source[{i}].{key}"), message));
        };
        if let Some(first) = names.insert(source.name(), i) {
            let message = format!(
                "the name `{}` is taken by `source[{first}]`; give each source its own `name`",
                source.name()
            );
            refuse("name", message);
        }
        match source {
            Source::Stdin(_) | Source::Http(_) if only_one.insert(source.kind(), i).is_some() => {
                refuse("type", format!("a pipeline has at most one source of type `{}`", source.kind()));
            }
            Source::Unix(unix) if unix.path.as_os_str().is_empty() => {
                refuse("path", "the path is empty; name a socket".to_owned());
            }
            Source::Unix(unix) if unix.path.as_os_str().len() > SOCKET_PATH_BYTES => {
                refuse("path", format!("the path of a socket has at most {SOCKET_PATH_BYTES} bytes"));
            }
            Source::File(file) if file.path.as_os_str().is_empty() => {
                refuse("path", "the path is empty; name a file or a folder".to_owned());
            }
            _ => {}
        }
        if let Source::Forward(forward) = source {
            let open = pipeline.auth.is_some() && forward.shared_key.is_none();
            if open {
                let message = "with [auth] nobody comes in without a key; set `shared_key`, which clients must have too";
                refuse("shared_key", message.to_owned());
            }
            forward_settings(forward).into_iter().for_each(|(key, message)| refuse(key, message.to_owned()));
        }
    }
    found
}

/// Why an address must be one that only this machine can reach.
#[derive(Clone, Copy)]
struct OnlyHere(&'static str);

impl OnlyHere {
    const UNASKED: Self = Self(
        "which needs [auth], so that nobody comes in unasked; write that section, or listen on 127.0.0.1 or [::1]",
    );
    const IN_THE_CLEAR: Self = Self(
        "and keys would cross the network in the clear; set `tls`, or `cleartext = true` if a proxy or the network sees to that",
    );
    const FORWARD: Self =
        Self("which needs both `shared_key` and `tls`; set them, or listen on 127.0.0.1 or [::1]");
}

/// The least cap on a message: what a busy logger sends at a time.
const MIN_MESSAGE_BYTES: u64 = 64 << 10;

fn forward_settings(forward: &Forward) -> Vec<(&'static str, &'static str)> {
    let empty_path = |path: &Path| path.as_os_str().is_empty();
    let tls = forward.tls.as_ref();
    [
        (forward.max_message_bytes.0 < MIN_MESSAGE_BYTES, "max_message_bytes", "write 64KiB or more"),
        (
            forward.text_keys.iter().all(String::is_empty),
            "text_keys",
            "name at least one field; records without a text are refused",
        ),
        (
            forward.shared_key.as_ref().is_some_and(|key| key.reveal().is_empty()),
            "shared_key",
            "the key is empty; write one, or leave the setting out",
        ),
        (
            forward.tenant.as_ref().is_some_and(|tenant| tenant.trim().is_empty() || tenant.len() > 256),
            "tenant",
            "write 1 to 256 bytes, not only spaces, or leave the setting out",
        ),
        (forward.self_hostname.is_empty(), "self_hostname", "the name is empty"),
        (tls.is_some_and(|tls| empty_path(&tls.cert)), "tls.cert", "the path is empty; name a PEM file"),
        (tls.is_some_and(|tls| empty_path(&tls.key)), "tls.key", "the path is empty; name a PEM file"),
    ]
    .into_iter()
    .filter_map(|(wrong, key, message)| wrong.then_some((key, message)))
    .collect()
}

/// Why an address must be local whose connections are asked who they are, and
/// are encrypted or need not be.
fn only_here(asked: bool, safe: bool) -> Option<OnlyHere> {
    match (asked, safe) {
        (false, _) => Some(OnlyHere::UNASKED),
        (true, false) => Some(OnlyHere::IN_THE_CLEAR),
        (true, true) => None,
    }
}

/// Addresses: on this machine only, unless strangers are kept out, and each
/// used once.
fn listeners(pipeline: &Pipeline) -> Vec<SettingError> {
    let mut found = Vec::new();
    let mut addresses: HashMap<Listen, String> = HashMap::new();
    let mut sockets: HashMap<&Path, String> = HashMap::new();
    let taken = |by: &str| format!("`{by}` listens there already; choose another");
    let asked = pipeline.auth.is_some();
    let tcp = pipeline.sources.iter().enumerate().filter_map(|(i, source)| match source {
        Source::Tcp(tcp) => {
            Some((format!("source[{i}].listen"), tcp.listen, only_here(asked, tcp.cleartext)))
        }
        Source::Forward(forward) => {
            let only_here =
                (forward.shared_key.is_none() || forward.tls.is_none()).then_some(OnlyHere::FORWARD);
            Some((format!("source[{i}].listen"), forward.listen, only_here))
        }
        _ => None,
    });
    let safe = pipeline.http.tls.is_some() || pipeline.http.cleartext;
    let http = ("http.listen".to_owned(), pipeline.http.listen, only_here(asked, safe));
    for (key, listen, only_here) in std::iter::once(http).chain(tcp) {
        if let Some(OnlyHere(why)) = only_here.filter(|_| !listen.is_local()) {
            let message = format!("`{listen}` can be reached from other machines, {why}");
            found.push(SettingError::new(key.clone(), message));
        }
        if listen.0.port() == 0 {
            continue;
        }
        if let Some(first) = addresses.get(&listen) {
            found.push(SettingError::new(key, taken(first)));
        } else {
            addresses.insert(listen, key);
        }
    }
    for (i, source) in pipeline.sources.iter().enumerate() {
        let Source::Unix(unix) = source else { continue };
        let key = format!("source[{i}].path");
        if let Some(first) = sockets.get(unix.path.as_path()) {
            found.push(SettingError::new(key, taken(first)));
        } else {
            sockets.insert(&unix.path, key);
        }
    }
    found
}
