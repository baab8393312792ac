use proptest::prelude::*;

use super::*;

fn judged(text: &str, tier: Tier) -> Verdict {
    Measures::of(text).judge(tier, &Settings::default(), 0)
}

fn reason(text: &str, tier: Tier) -> Option<&'static str> {
    match judged(text, tier) {
        Verdict::Pass { .. } => None,
        Verdict::Reject { reason, .. } => Some(reason),
    }
}

#[test]
fn a_short_turn_passes_as_an_event_and_not_as_a_document() {
    for turn in ["yes, thanks", ":)", "?", "ok", "👍", "さよなら"] {
        assert_eq!(reason(turn, Tier::Event), None, "{turn}");
        assert_eq!(reason(turn, Tier::Doc), Some("too_short"), "{turn}");
    }
}

#[test]
fn an_empty_text_is_refused_even_when_nothing_is_judged() {
    let off = Settings { enabled: false, ..Settings::default() };
    let verdict = Measures::of("").judge(Tier::Event, &off, 3);
    assert!(matches!(verdict, Verdict::Reject { reason: "empty", .. }));
    assert_eq!(Measures::of("?").judge(Tier::Doc, &off, 0), Verdict::Pass { step: 0 });
}

#[test]
fn spam_and_noise_are_named() {
    let spam = "buy now ".repeat(40);
    assert_eq!(reason(&spam, Tier::Event), Some("repeated_word"));
    let lines = "the quick brown fox jumps over a lazy dog\n".repeat(10);
    assert_eq!(reason(&lines, Tier::Event), Some("repeated_line"));
    assert_eq!(reason(&"=-".repeat(40), Tier::Event), Some("symbols"));
    assert_eq!(reason(&"caf\u{fffd} ".repeat(12), Tier::Event), Some("unreadable"));
    assert_eq!(reason(&"x".repeat(2_000_001), Tier::Event), Some("too_long"));
}

#[test]
fn relaxation_lets_more_pass_and_says_from_which_step() {
    let text = "a document of thirty-five character";
    assert_eq!(Measures::of(text).chars, 35);
    assert_eq!(reason(text, Tier::Doc), Some("too_short"));
    let at = |step| Measures::of(text).judge(Tier::Doc, &Settings::default(), step);
    assert_eq!(at(1), Verdict::Pass { step: 1 });
    assert_eq!(at(3), Verdict::Pass { step: 1 });
}

#[test]
fn a_detail_tells_value_and_threshold_and_never_the_text() {
    let Verdict::Reject { detail, .. } = judged("secret", Tier::Doc) else { panic!("rejected") };
    assert_eq!(detail, "6 characters, min_chars is 40");
}

#[test]
fn tiers_left_out_keep_their_defaults() {
    let settings: Settings = toml::from_str("min_chars = { doc = 100 }").unwrap();
    assert_eq!(settings.min_chars, MinChars { doc: 100, ..MinChars::default() });
    assert!(toml::from_str::<Settings>("min_chars = { docs = 100 }").is_err());
}

proptest! {
    #[test]
    fn characters_are_counted_alike_in_whatever_script(
        text in "([a-zA-Z0-9 .,;_-]|[\t\n\u{1}\u{7f}\u{b}]|[é東\u{fffd}\u{e000}\u{a0}]){0,120}"
    ) {
        let counted = |is: fn(char) -> bool| text.chars().filter(|c| is(*c)).count();
        let solid = counted(|c| !c.is_whitespace());
        let of_solid = |n| (solid >= SAMPLE_CHARS).then(|| share(n, solid));
        let measures = Measures::of(&text);
        prop_assert_eq!(measures.chars, counted(|_| true));
        prop_assert_eq!(measures.alphanumeric_share, of_solid(counted(char::is_alphanumeric)));
        prop_assert_eq!(measures.unreadable_share, of_solid(counted(is_unreadable)));
    }

    #[test]
    fn the_most_frequent_word_is_counted(words in prop::collection::vec("[ab]{1,2}|a{9}b?|é", 0..60)) {
        let copies = |word: &String| words.iter().filter(|other| *other == word).count();
        let most = words.iter().map(copies).max().unwrap_or(0);
        let expected = (words.len() >= SAMPLE_WORDS).then(|| share(most, words.len()));
        prop_assert_eq!(Measures::of(&words.join(" ")).repeated_word_share, expected);
    }
}

#[test]
fn values_that_cannot_be_meant_are_refused() {
    let refused = |toml: &str| toml::from_str::<Settings>(toml).unwrap().validate().unwrap_err().key;
    assert_eq!(Settings::default().validate(), Ok(()));
    assert_eq!(refused("max_repeated_word_share = 40.0"), "max_repeated_word_share");
    assert_eq!(refused("max_chars = 10"), "max_chars");
    assert_eq!(refused("relax = { step = 1.0 }"), "relax.step");
}
