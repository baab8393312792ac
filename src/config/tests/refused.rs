//! Every kind of problem, with its exact place.

use super::{super::*, NONE, file, problems_in, refused};

#[test]
fn syntax_errors_have_their_place() {
    refused("name = \"x\"\nstream = \n", (2, 10, 1), "", "");
    refused("name = \"x\"\nname = \"y\"\n", (2, 1, 4), "", "duplicate key");
    let several = problems_in("a = \nb = \nc = 1\n", NONE);
    assert_eq!(several.iter().map(|p| p.line).collect::<Vec<_>>(), [1, 2]);
}

#[test]
fn unknown_keys_are_refused_with_the_nearest_known_one() {
    refused(&file("lisen = \"127.0.0.1:1\""), (4, 1, 5), "source[0].lisen", "did you mean `listen`?");
    refused(&file("[lgo]"), (4, 2, 3), "lgo", "did you mean `log`?");
    refused(&file("[derive.pi]"), (4, 9, 2), "derive.pi", "did you mean `pii`?");
    refused(&file("[embed]\n  thread = 1"), (5, 3, 6), "embed.thread", "did you mean `threads`?");
    refused(&file("search = { depht = 1 }"), (4, 1, 6), "source[0].search", "above the first `[section]`");
    refused(
        &file("[store]\nbucket = 1"),
        (5, 1, 6),
        "store.bucket",
        "unknown key `bucket`; known here: `connections`",
    );
}

#[test]
fn keys_of_another_type_of_source_are_unknown() {
    refused(
        &file("path = \"a\""),
        (4, 1, 4),
        "source[0].path",
        "known here: `cleartext`, `listen`, `name`, `type`",
    );
}

#[test]
fn unknown_words_are_refused_with_the_nearest_known_one() {
    refused(&file("[[source]]\ntype = \"fiel\""), (5, 8, 6), "source[1].type", "did you mean `file`?");
    refused(&file("[search]\nfusion = \"minmx\""), (5, 10, 7), "search.fusion", "did you mean `minmax`?");
    refused(&file("[defaults]\ntier = \"events\""), (5, 8, 8), "defaults.tier", "did you mean `event`?");
    refused(
        &file("[defaults]\ntier = \"note\""),
        (5, 8, 6),
        "defaults.tier",
        "not one of `event`, `summary`",
    );
}

#[test]
fn missing_keys_are_named_where_they_belong() {
    refused("nmae = \"x\"\n[[source]]\ntype = \"tcp\"", (1, 1, 4), "nmae", "did you mean `name`?");
    // Not blamed on the key that happens to come first.
    let nameless = "stream = \"a\"\n[[source]]\ntype = \"tcp\"";
    refused(nameless, (1, 1, 1), "name", "a pipeline needs the key `name`");
    refused("[[source]]\ntype = \"tcp\"", (1, 1, 1), "name", "a pipeline needs the key `name`");
    refused(
        &file("[[source]]\ntype = \"unix\""),
        (4, 1, 10),
        "source[1].path",
        "`source[1]` needs the key `path`",
    );
    refused(
        &file("[[source]]\nname = \"a\""),
        (4, 1, 10),
        "source[1].type",
        "needs the key `type`: one of `tcp`",
    );
    refused("name = \"x\"", (1, 1, 1), "source", "at least one `[[source]]`");
}

#[test]
fn values_of_the_wrong_type_are_refused() {
    refused(
        &file("[segment]\nlevel = 9999999999"),
        (5, 9, 10),
        "segment.level",
        "`9999999999` is out of range",
    );
    refused(
        &file("[embed]\nthreads = \"2\""),
        (5, 11, 3),
        "embed.threads",
        "expected a whole number, found a string",
    );
    refused(
        &file("[embed]\nthreads = 1.5"),
        (5, 11, 3),
        "embed.threads",
        "expected a whole number, found a number",
    );
    refused(&file("[embed]\nthreads = -1"), (5, 11, 2), "embed.threads", "`-1` is negative; write 0 or more");
    refused(
        &file("[derive.quality]\nenabled = 1"),
        (5, 11, 1),
        "derive.quality.enabled",
        "expected true or false",
    );
    refused("log = 1\nname = \"x\"\n[[source]]\ntype = \"tcp\"", (1, 7, 1), "log", "expected a table");
    refused(
        "batch_tag = 2024-01-01\nname = \"x\"\n[[source]]\ntype = \"tcp\"",
        (1, 13, 10),
        "batch_tag",
        "in quotes",
    );
    refused("name = \"x\"\n[source]\ntype = \"tcp\"", (2, 1, 8), "source", "write `[[source]]`");
}

#[test]
fn values_that_do_not_parse_are_refused() {
    let here = "source[0].listen";
    refused(&file("listen = \"localhost:7410\""), (4, 10, 16), here, "such as `127.0.0.1:7410`");
    refused(&file("[log]\nsegment_bytes = \"64mb\""), (5, 17, 6), "log.segment_bytes", "with KiB, MiB, GiB");
    refused(&file("[log]\nsegment_age = \"10\""), (5, 15, 4), "log.segment_age", "`10` is not a duration");
    refused(&file("[shutdown]\ndeadline = \"soon\""), (5, 12, 6), "shutdown.deadline", "not a duration");
}

#[test]
fn values_that_cannot_be_meant_are_refused_at_their_key() {
    refused(&file("[embed]\nbatch_tokens = 0"), (5, 1, 12), "embed.batch_tokens", "write 256 to 65536");
    refused(&file("[search]\nvector_weight = -1"), (5, 1, 13), "search.vector_weight", "0 or more, not -1");
    refused(&file("[search]\nkeyword_weight = nan"), (5, 1, 14), "search.keyword_weight", "not NaN");
    let both = "[search]\nkeyword_weight = 0\nvector_weight = 0";
    refused(&file(both), (6, 1, 13), "search.vector_weight", "both 0");
    refused(&file("[search]\ndepth = 0"), (5, 1, 5), "search.depth", "from 1 to 10000");
    refused(&file("[sessions]\nmax_active = 0"), (5, 1, 10), "sessions.max_active", "write 1 to");
    refused(&file("[store]\npath = \"\""), (5, 1, 4), "store.path", "must name the database file");
    refused(&file("[store]\nurl = \"mysql://x\""), (5, 1, 3), "store.url", "must begin with `postgres://`");
    refused(&file("[store.index]\nm = 1"), (5, 1, 1), "store.index.m", "must be 2 to 100");
    refused(&file("[defaults]\ntenant = \" \""), (5, 1, 6), "defaults.tenant", "not only spaces");
    refused("name = \"A b\"\n[[source]]\ntype = \"tcp\"", (1, 1, 4), "name", "`A b` is not a name");
    let long = format!("[[source]]\ntype = \"unix\"\npath = \"{}\"", "a".repeat(108));
    refused(&file(&long), (6, 1, 4), "source[1].path", "at most 107 bytes");
}

#[test]
fn a_segment_must_hold_its_longest_frame() {
    let log = "[log]\nmax_frame_bytes = \"8MiB\"\nsegment_bytes = ";
    refused(&file(&format!("{log}\"8MiB\"")), (6, 1, 13), "log.segment_bytes", "at least 9MiB");
    assert!(parse(&file(&format!("{log}\"9MiB\"")), "x.toml", NONE).is_ok());
    // The key at fault is not in the file: its section is the place.
    refused(&file("[log]\nmax_frame_bytes = \"64MiB\""), (4, 2, 3), "log.segment_bytes", "at least 65MiB");
}

#[test]
fn sources_have_their_own_names_and_addresses() {
    let second = |more: &str| file(&format!("[[source]]\ntype = \"tcp\"\n{more}"));
    let taken = "`source[0].listen` listens there already";
    refused(&second("name = \"b\"\nlisten = \"127.0.0.1:7410\""), (7, 1, 6), "source[1].listen", taken);
    refused(&second("name = \"b\""), (4, 1, 10), "source[1].listen", taken);
    refused(
        &second("listen = \"127.0.0.1:7411\""),
        (4, 1, 10),
        "source[1].name",
        "`tcp` is taken by `source[0]`",
    );
    refused(
        &second("name = \"b\"\nlisten = \"127.0.0.1:7400\""),
        (7, 1, 6),
        "source[1].listen",
        "`http.listen`",
    );
    let any_port = "listen = \"127.0.0.1:0\"\n";
    let two = format!("{any_port}[[source]]\ntype = \"tcp\"\nname = \"b\"\n{any_port}");
    assert!(parse(&file(&two), "x.toml", NONE).is_ok());
    let sockets =
        "[[source]]\ntype = \"unix\"\npath = \"s\"\n[[source]]\ntype = \"unix\"\nname = \"b\"\npath = \"s\"";
    refused(&file(sockets), (10, 1, 4), "source[2].path", "`source[1].path`");
    let https = "[[source]]\ntype = \"http\"\n[[source]]\ntype = \"http\"\nname = \"b\"";
    refused(&file(https), (7, 1, 4), "source[2].type", "at most one source of type `http`");
}

#[test]
fn only_this_machine_may_connect_while_there_is_no_authentication() {
    let (tcp, http) = ("listen = \"0.0.0.0:7410\"", "[http]\nlisten = \"[::]:7400\"");
    refused(&file(tcp), (4, 1, 6), "source[0].listen", "needs [auth]");
    refused(&file(http), (5, 1, 6), "http.listen", "needs [auth]");
    // Then somebody has to say what becomes of the keys on the way.
    let asked = |more: &str| file(&format!("{more}\n[auth]\nkeys = true"));
    refused(&asked(tcp), (4, 1, 6), "source[0].listen", "in the clear");
    refused(&asked(http), (5, 1, 6), "http.listen", "in the clear");
    for decided in ["cleartext = true", "tls = { cert = \"c.pem\", key = \"k.pem\" }"] {
        assert!(parse(&asked(&format!("{http}\n{decided}")), "x.toml", NONE).is_ok(), "{decided}");
    }
    assert!(parse(&asked(&format!("{tcp}\ncleartext = true")), "x.toml", NONE).is_ok());
    assert!(parse(&file("[http]\nlisten = \"[::1]:7400\""), "x.toml", NONE).is_ok());
}

#[test]
fn a_forward_source_may_be_reached_from_elsewhere_with_both_a_key_and_tls() {
    let forward =
        |more: &str| file(&format!("[[source]]\ntype = \"forward\"\nlisten = \"0.0.0.0:24224\"\n{more}"));
    let (key, tls) = ("shared_key = \"k\"\n", "tls = { cert = \"c.pem\", key = \"k.pem\" }\n");
    for not_enough in ["", key, tls] {
        refused(&forward(not_enough), (6, 1, 6), "source[1].listen", "needs both `shared_key` and `tls`");
    }
    assert!(parse(&forward(&format!("{key}{tls}")), "x.toml", NONE).is_ok());
    let here = |more: &str| file(&format!("[[source]]\ntype = \"forward\"\n{more}"));
    refused(&here("shared_key = \"\""), (6, 1, 10), "source[1].shared_key", "the key is empty");
    refused(&here("text_keys = []"), (6, 1, 9), "source[1].text_keys", "at least one field");
    refused(&here("max_message_bytes = 1"), (6, 1, 17), "source[1].max_message_bytes", "64KiB or more");
    refused(&here("tls = { cert = \"c.pem\" }"), (6, 1, 3), "source[1].tls.key", "needs the key `key`");
    refused(&here("tls = { cert = \"\", key = \"k\" }"), (6, 9, 4), "source[1].tls.cert", "name a PEM file");
    refused(
        &here("listen = \"127.0.0.1:7410\""),
        (6, 1, 6),
        "source[1].listen",
        "`source[0].listen` listens",
    );
}

#[test]
fn endpoints_are_refused_where_they_stand() {
    let remote = |more: &str| {
        file(&format!(
            "[embed]\nprovider = \"remote\"\nmodel = \"m\"\ndimensions = 4\n{more}\n\
             [[embed.endpoint]]\nname = \"a\"\napi = \"tei\"\nurl = \"http://a\"\n[[embed.endpoint]]\nname = \"b\"\n"
        ))
    };
    let second = |more: &str| format!("{}{more}", remote(""));
    assert!(parse(&second("api = \"tei\"\nurl = \"http://b\""), "x.toml", NONE).is_ok());
    let lacking = |key: &str| format!("`embed.endpoint[1]` needs the key `{key}`");
    refused(&second("url = \"http://b\""), (13, 1, 18), "embed.endpoint[1].api", &lacking("api"));
    refused(
        &second("url = \"http://b\"\napi = \"te\""),
        (16, 7, 4),
        "embed.endpoint[1].api",
        "did you mean `tei`?",
    );
    refused(
        &second("url = \"http://b\"\napi = \"tei\"\nkee = \"k\""),
        (17, 1, 3),
        "embed.endpoint[1].kee",
        "did you mean `key`?",
    );
    refused(
        &second("api = \"tei\"\nurl = \"b\""),
        (16, 1, 3),
        "embed.endpoint[1].url",
        "begins with http:// or https://",
    );
    let long = remote("max_tokens = 255") + "api = \"tei\"\nurl = \"http://b\"";
    refused(&long, (8, 1, 10), "embed.max_tokens", "write 256 or more");
}

#[test]
fn all_problems_are_reported_at_once_in_the_order_of_the_file() {
    let text = "nmae = \"x\"\n[[source]]\ntype = \"tcp\"\nlisten = \"x\"\nname = -1\nfoo = 1\n\
                [log]\nsegment_age = \"1\"\ngroup_bytes = \"1 ton\"\n[embed]\nthreads = \"${N}\"\n\
                [search]\nfusion = \"no\"\ndepth = true\n";
    let places: Vec<_> = problems_in(text, NONE).iter().map(|p| (p.line, p.column)).collect();
    let expected = [(1, 1), (4, 10), (5, 8), (6, 1), (8, 15), (9, 15), (11, 12), (13, 10), (14, 9)];
    assert_eq!(places, expected);
}

#[test]
fn windows_line_ends_and_a_byte_order_mark_do_no_harm() {
    let text = format!("\u{feff}{}", file("[embed]\nthread = 1\n").replace('\n', "\r\n"));
    refused(&text, (5, 1, 6), "embed.thread", "threads");
}
