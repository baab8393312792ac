//! What is different between two pipelines, and what that asks for.

use std::collections::BTreeMap;

use super::{Pipeline, Source};

/// What is different between the pipeline that runs and the one that shall.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// The keys, as the file writes them: `embed`, `http.listen`, `source`.
    pub keys: Vec<&'static str>,
    /// Names of sources that come.
    pub opened: Vec<String>,
    /// Names of sources that go.
    pub closed: Vec<String>,
    /// Names of sources that stay and are served otherwise.
    pub changed: Vec<String>,
    /// Whether one of type `stdin` is among those.
    stdin: bool,
}

/// What cannot change while the pipeline runs: where its data is, and what
/// holds it open.
const FIXED: [&str; 7] = ["name", "data_dir", "stream", "log", "store", "redis", "http.idempotency_ttl"];
/// What concerns only who is let in and how requests are answered.
const AT_THE_DOOR: [&str; 10] = [
    "source",
    "sessions",
    "limits",
    "search",
    "http",
    "http.listen",
    "http.tls",
    "http.max_connections",
    "auth",
    "shutdown",
];
/// How the HTTP server listens.
const LISTENING: [&str; 3] = ["http.listen", "http.tls", "http.max_connections"];

impl Difference {
    /// Between what `is` and what `shall` be.
    pub fn between(is: &Pipeline, shall: &Pipeline) -> Self {
        // Whoever adds a section has to say here what its change means.
        let Pipeline {
            name,
            data_dir,
            stream,
            batch_tag,
            defaults,
            sources,
            sessions,
            log,
            segment,
            derive,
            embed,
            migrate,
            store,
            artifacts,
            redis,
            retention,
            limits,
            jobs,
            schedules,
            webhooks,
            search,
            http,
            auth,
            shutdown,
        } = is;
        let other = &shall.http;
        let rest = |http: &super::Http| super::Http {
            listen: other.listen,
            tls: other.tls.clone(),
            max_connections: other.max_connections,
            idempotency_ttl: other.idempotency_ttl,
            ..http.clone()
        };
        let differ = [
            ("name", *name != shall.name),
            ("data_dir", *data_dir != shall.data_dir),
            ("stream", *stream != shall.stream),
            ("batch_tag", *batch_tag != shall.batch_tag),
            ("defaults", *defaults != shall.defaults),
            ("source", *sources != shall.sources),
            ("sessions", *sessions != shall.sessions),
            ("log", *log != shall.log),
            ("segment", *segment != shall.segment),
            ("derive", *derive != shall.derive),
            ("embed", *embed != shall.embed),
            ("migrate", *migrate != shall.migrate),
            ("store", *store != shall.store),
            ("artifacts", *artifacts != shall.artifacts),
            ("redis", *redis != shall.redis),
            ("retention", *retention != shall.retention),
            ("limits", *limits != shall.limits),
            ("jobs", *jobs != shall.jobs),
            ("schedule", *schedules != shall.schedules),
            ("webhook", *webhooks != shall.webhooks),
            ("search", *search != shall.search),
            ("http", rest(http) != *other),
            ("http.listen", http.listen != other.listen),
            ("http.tls", http.tls != other.tls),
            ("http.max_connections", http.max_connections != other.max_connections),
            ("http.idempotency_ttl", http.idempotency_ttl != other.idempotency_ttl),
            ("auth", *auth != shall.auth),
            ("shutdown", *shutdown != shall.shutdown),
        ];
        let keys = differ.into_iter().filter_map(|(key, differs)| differs.then_some(key)).collect();
        let found = Self { keys, ..Self::default() };
        found.with_sources(sources, &shall.sources)
    }

    fn with_sources(mut self, is: &[Source], shall: &[Source]) -> Self {
        let by_name = |sources: &[Source]| -> BTreeMap<String, Source> {
            sources.iter().map(|source| (source.name().to_owned(), source.clone())).collect()
        };
        let stdin = |sources: &[Source]| {
            let of_stdin = |source: &&Source| matches!(source, Source::Stdin(_));
            sources.iter().filter(of_stdin).cloned().collect::<Vec<_>>()
        };
        self.stdin = stdin(is) != stdin(shall);
        let (is, mut shall) = (by_name(is), by_name(shall));
        for (name, source) in is {
            match shall.remove(&name) {
                None => self.closed.push(name),
                // Whoever has a place keeps it under the old terms otherwise.
                Some(new) if new != source || (self.has("sessions") && has_sessions(&source)) => {
                    self.changed.push(name);
                }
                Some(_) => {}
            }
        }
        self.opened.extend(shall.into_keys());
        self
    }

    /// Whether there is none.
    pub fn is_none(&self) -> bool {
        self.keys.is_empty()
    }

    /// Whether `key` is among the keys.
    pub fn has(&self, key: &str) -> bool {
        self.keys.contains(&key)
    }

    /// Keys that cannot change while the pipeline runs.
    pub fn fixed(&self) -> Vec<&'static str> {
        let mut fixed: Vec<_> = self.keys.iter().copied().filter(|key| FIXED.contains(key)).collect();
        // What was read of it and not taken could not be had again.
        fixed.extend(self.stdin.then_some("source of type stdin"));
        fixed
    }

    /// Whether what works behind the log is concerned.
    pub fn is_behind_the_log(&self) -> bool {
        self.keys.iter().any(|key| !AT_THE_DOOR.contains(key))
    }

    /// Whether the HTTP server has to listen otherwise.
    pub fn is_of_listening(&self) -> bool {
        self.keys.iter().any(|key| LISTENING.contains(key))
    }
}

/// Whether those who connect to `source` take places of `[sessions]`.
fn has_sessions(source: &Source) -> bool {
    match source {
        Source::Tcp(_) | Source::Unix(_) | Source::Forward(_) => true,
        Source::File(_) | Source::Stdin(_) | Source::Http(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pipeline(text: &str) -> Pipeline {
        let text = format!("name = \"p\"\n{text}");
        super::super::parse(&text, "p.toml", &|_| None).unwrap()
    }

    const BASE: &str = "[[source]]\ntype = \"http\"\n[[source]]\ntype = \"tcp\"\nname = \"in\"\n";

    #[test]
    fn the_same_is_no_difference() {
        assert!(Difference::between(&pipeline(BASE), &pipeline(BASE)).is_none());
    }

    #[test]
    fn every_section_is_found_by_its_key() {
        let is = pipeline(BASE);
        for (text, key) in [
            ("[limits]\nfree = 7", "limits"),
            ("[search]\ndepth = 7", "search"),
            ("[http]\nmax_requests = 7", "http"),
            ("[http]\nmax_connections = 7", "http.max_connections"),
            ("[http]\nlisten = \"127.0.0.1:7999\"", "http.listen"),
            ("[http]\nidempotency_ttl = \"7s\"", "http.idempotency_ttl"),
            ("[shutdown]\ndeadline = \"7s\"", "shutdown"),
            ("[auth]", "auth"),
            ("[embed]\ncache_memory = \"7MiB\"", "embed"),
            ("[log]\nsegment_bytes = \"32MiB\"", "log"),
            ("[retention]\nrecords = \"30d\"", "retention"),
        ] {
            let found = Difference::between(&is, &pipeline(&format!("{BASE}{text}")));
            assert_eq!(found.keys, [key], "{text}");
        }
    }

    #[test]
    fn secrets_are_compared_though_they_are_not_written() {
        let webhook = |secret: &str| {
            pipeline(&format!(
                "{BASE}[[webhook]]\nname = \"w\"\nurl = \"https://example.org\"\nsecrets = [\"{secret}\"]\nevents = [\"job.done\"]"
            ))
        };
        let (one, two) = ("0123456789abcdef0123456789abcdef", "0123456789abcdef0123456789abcdeg");
        assert_eq!(Difference::between(&webhook(one), &webhook(two)).keys, ["webhook"]);
    }

    #[test]
    fn sources_come_go_and_change_by_their_names() {
        let is = pipeline(BASE);
        let shall = pipeline(
            "[[source]]\ntype = \"tcp\"\nname = \"in\"\nlisten = \"127.0.0.1:7998\"\n[[source]]\ntype = \"unix\"\npath = \"s\"",
        );
        let found = Difference::between(&is, &shall);
        assert_eq!(
            (&*found.opened, &*found.closed, &*found.changed),
            (&["unix".to_owned()][..], &["http".to_owned()][..], &["in".to_owned()][..])
        );
        assert!(!found.is_behind_the_log());
        let shall = pipeline(&format!("{BASE}[sessions]\nmax_active = 7"));
        let found = Difference::between(&is, &shall);
        assert_eq!((found.keys, found.changed), (vec!["sessions"], vec!["in".to_owned()]));
    }

    #[test]
    fn standard_input_is_read_from_the_start_or_not_at_all() {
        let with = format!("{BASE}[[source]]\ntype = \"stdin\"\n");
        let found = Difference::between(&pipeline(BASE), &pipeline(&with));
        assert_eq!(found.fixed(), ["source of type stdin"]);
    }
}
