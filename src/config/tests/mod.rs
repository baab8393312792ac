//! Pipeline files from the outside: what is accepted, what is refused where.

mod refused;

use std::{fs, path::Path};

use proptest::prelude::*;

use super::*;
use crate::{record::Tier, store::fusion::Fusion, units::ByteSize};

const NONE: Env<'static> = &|_| None;

/// A complete file with `more` after it; `more` begins in line 4.
fn file(more: &str) -> String {
    format!("name = \"x\"\n[[source]]\ntype = \"tcp\"\n{more}")
}

fn problems_in(text: &str, env: Env<'_>) -> Vec<Problem> {
    parse(text, "x.toml", env).expect_err(text).problems().to_vec()
}

/// The only problem of a file.
fn problem(text: &str) -> Problem {
    let problems = problems_in(text, NONE);
    assert_eq!(problems.len(), 1, "{text}\n{problems:#?}");
    problems[0].clone()
}

/// Line, column, width, key and a part of the message of a file's only problem.
#[track_caller]
fn refused(text: &str, (line, column, width): (usize, usize, usize), key: &str, message: &str) {
    let problem = problem(text);
    assert_eq!((problem.line, problem.column, problem.width), (line, column, width), "{problem:#?}");
    assert_eq!(problem.key, key, "{problem:#?}");
    assert!(problem.headline().contains(message), "{}", problem.headline());
}

#[test]
fn every_pipeline_in_the_repository_passes() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines");
    let mut seen = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let pipeline = load(&path, NONE).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(pipeline.name, path.file_stem().unwrap().to_str().unwrap());
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("#:schema ../config/pipeline.schema.json\n"), "{}", path.display());
        seen += 1;
    }
    assert!(seen >= 3);
}

#[test]
fn the_smallest_file_gets_every_default() {
    let pipeline = parse(&file(""), "x.toml", NONE).unwrap();
    assert_eq!(pipeline.stream, "x");
    assert_eq!(pipeline.batch_tag, None);
    assert_eq!(pipeline.data_dir, Path::new("./data"));
    assert_eq!(pipeline.in_data_dir(pipeline.store.path.as_ref()), Path::new("./data/store.sqlite"));
    assert_eq!(pipeline.defaults.tier, Tier::Event);
    assert_eq!(pipeline.sources, [Source::Tcp(Tcp::default())]);
    assert_eq!(pipeline.log.segment_bytes, ByteSize::mib(64));
    assert_eq!(pipeline.http.listen, Listen::local(7400));
}

#[test]
fn what_is_written_is_what_is_read() {
    let text = r#"
        name = "all"
        stream = "main"
        batch_tag = "2024-01"
        derive.quality.enabled = false
        search = { fusion = "rank", vector_weight = 1, depth = 7 }
        [[source]]
        type = "file"
        name = "exports"
        path = "in"
        format = "jsonl"
        watch = true
        [[source]]
        type = "unix"
        path = "run/all.sock"
    "#;
    let pipeline = parse(text, "x.toml", NONE).unwrap();
    assert_eq!((pipeline.stream.as_str(), pipeline.batch_tag.as_deref()), ("main", Some("2024-01")));
    assert!(!pipeline.derive.quality.enabled);
    assert_eq!((pipeline.search.fusion, pipeline.search.depth), (Fusion::Rank, 7));
    assert_eq!((pipeline.search.vector_weight, pipeline.search.keyword_weight), (1.0, 0.5));
    let file = File { name: "exports".into(), path: "in".into(), format: Format::Jsonl, watch: true };
    assert_eq!(pipeline.sources[0], Source::File(file));
    assert_eq!((pipeline.sources[1].name(), pipeline.sources[1].kind()), ("unix", "unix"));
}

#[test]
fn a_variable_goes_before_its_default_and_the_default_before_an_error() {
    let text = file("[defaults]\nsource = \"a ${MODEL:-b}\"");
    let model = |env: Env<'_>| parse(&text, "x.toml", env).unwrap().defaults.source;
    assert_eq!(model(NONE), "a b");
    assert_eq!(model(&|name| (name == "MODEL").then(|| "c".to_owned())), "a c");
    assert_eq!(model(&|_| Some(String::new())), "a b");
    refused(
        &file("[defaults]\nsource = \"a ${MODEL}\""),
        (5, 13, 7),
        "defaults.source",
        "`MODEL` is not set",
    );
    refused(&file("[defaults]\nsource = \"a ${MODEL\""), (5, 13, 7), "defaults.source", "no closing `}`");
    refused(&file("[defaults]\nsource = \"a ${1}\""), (5, 13, 3), "defaults.source", "not a variable name");
}

#[test]
fn a_variable_may_be_a_number_or_a_boolean_or_a_type() {
    let text = "name = \"x\"\n[[source]]\ntype = \"${TYPE:-http}\"\n[embed]\nthreads = \"${THREADS:-2}\"\n\
                [derive.quality]\nenabled = \"${QUALITY:-false}\"\n[search]\nvector_weight = \"${W:-1}\"\n";
    let pipeline = parse(text, "x.toml", NONE).unwrap();
    assert_eq!((pipeline.embed.threads, pipeline.derive.quality.enabled), (2, false));
    assert_eq!((pipeline.search.vector_weight, pipeline.sources[0].kind()), (1.0, "http"));
    for bad in ["many", "", "1.5", "true", "[1]", "1\nx = 2"] {
        let env = |name: &str| (name == "THREADS").then(|| bad.to_owned());
        let text = file("[embed]\nthreads = \"${THREADS}\"");
        let problems = problems_in(&text, &env);
        assert_eq!(problems.len(), 1);
        assert_eq!((problems[0].line, problems[0].column), (5, 11));
        assert!(problems[0].message.contains("is not a whole number"), "{}", problems[0].message);
    }
}

#[test]
fn a_variable_is_no_way_to_an_infinite_weight() {
    let text = file("[search]\nvector_weight = \"${W}\"");
    let weight = |value: &str| {
        let pipeline = parse(&text, "x.toml", &|_| Some(value.to_owned()));
        pipeline.map(|pipeline| pipeline.search.vector_weight)
    };
    assert_eq!(weight("0.25").unwrap(), 0.25);
    for bad in ["inf", "nan", "0.5.5"] {
        let message = weight(bad).unwrap_err().to_string();
        assert!(message.contains("is not a number"), "{message}");
    }
}

#[test]
fn the_configuration_digest_follows_what_decides_a_row_and_nothing_else() {
    let digest = |more: &str| parse(&file(more), "x.toml", NONE).unwrap().digest();
    let base = digest("");
    for same in [
        "# a comment\n",
        "listen = \"127.0.0.1:1\"",
        "[derive.quality]\nenabled = true",
        "[embed]\nthreads = 7\nbatch_tokens = 512\nmodel_dir = \"m\"",
        "[embed]\nmax_tokens = 100",
        "[search]\ndepth = 5",
    ] {
        assert_eq!(digest(same), base, "{same}");
    }
    for other in
        ["[derive.quality]\nenabled = false", "[embed]\nprovider = \"hashing\"", "[defaults]\ntier = \"doc\""]
    {
        assert_ne!(digest(other), base, "{other}");
    }
    let remote = |model: &str, endpoint: &str| {
        let head = format!("[embed]\nprovider = \"remote\"\nmodel = \"m\"\n{model}");
        digest(&format!(
            "{head}\n[[embed.endpoint]]\nname = \"a\"\napi = \"tei\"\nurl = \"http://a\"\n{endpoint}"
        ))
    };
    let base = remote("dimensions = 4", "");
    assert_eq!(remote("dimensions = 4", "timeout = \"5s\"\n[embed.quota]\ndaily_tokens = 1"), base);
    assert_ne!(remote("dimensions = 5", ""), base);
    assert_ne!(remote("dimensions = 4\nprefix = \"passage: \"", ""), base);
    let full = |more: &str| parse(&file(more), "x.toml", NONE).unwrap().full_digest();
    assert_eq!(full("# a comment"), full("[search]\ndepth = 100"));
    assert_ne!(full(""), full("[search]\ndepth = 5"));
}

proptest! {
    #[test]
    fn garbage_is_refused_without_a_panic(text in "\\PC{0,200}", newlines in "[\\PC\n\r\t\"'\\[\\]{}=.$]{0,200}") {
        for text in [text, newlines] {
            if let Err(error) = parse(&text, "x.toml", NONE) {
                prop_assert!(!error.problems().is_empty());
                prop_assert!(error.to_string().starts_with("x.toml:"));
            }
        }
    }

    #[test]
    fn a_damaged_file_is_refused_without_a_panic(at in any::<prop::sample::Index>(), cut in 0usize..20, put in "[\\PC\n]{0,10}") {
        let text = include_str!("../../../pipelines/quickstart.toml");
        let from = text.floor_char_boundary(at.index(text.len()));
        let to = text.floor_char_boundary((from + cut).min(text.len()));
        let damaged = format!("{}{put}{}", &text[..from], &text[to..]);
        if let Err(error) = parse(&damaged, "x.toml", NONE) {
            for problem in error.problems() {
                let line = damaged.split('\n').nth(problem.line - 1);
                prop_assert_eq!(line.map(|line| line.trim_end_matches('\r')), Some(problem.source_line.as_str()));
                prop_assert!(problem.column <= problem.source_line.chars().count() + 1);
            }
        }
    }

    #[test]
    fn no_variable_can_reach_beyond_its_string(value in "[\\PC\n\"\\\\${}]{1,40}") {
        let text = file("[embed]\nmodel_dir = \"${DIR}\"");
        let pipeline = parse(&text, "x.toml", &|_| Some(value.clone()));
        let mut expected = parse(&file(""), "x.toml", NONE).unwrap();
        expected.embed.model_dir = value.clone();
        prop_assert_eq!(pipeline.unwrap(), expected);
    }
}
