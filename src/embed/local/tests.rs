//! The local model: what it computes, in what order, and who waits for whom.

use futures::future::join_all;
use proptest::prelude::*;

use super::{
    super::{
        cosine,
        testing::{self, block_on},
    },
    *,
};

#[test]
fn texts_of_nothing_of_emoji_and_of_a_million_words_have_vectors() {
    let million = "water ".repeat(1_000_000);
    let texts =
        ["", " ", "\0", "\0\0\0", "🙂🙃🙂", "👩‍👩‍👧", &million, &"x".repeat(1_000_000)].map(str::to_owned);
    let counted = block_on(testing::local_model().embed_counted(texts.to_vec())).unwrap();
    assert_eq!(counted.vectors.len(), texts.len());
    for (vector, text) in counted.vectors.iter().zip(&texts) {
        assert!(check(vector).is_ok(), "{:?}", text.chars().take(9).collect::<String>());
    }
    let [empty, space, nul, ..] = counted.vectors.as_slice() else { unreachable!() };
    assert!(empty == space && empty == nul, "there is nothing in them");
    let cut = "water ".repeat(testing::MAX_TOKENS);
    assert_eq!(block_on(testing::local_model().embed(vec![cut])).unwrap()[0], counted.vectors[6]);
}

/// The smallest cosine between our vectors and the reference's: of
/// passages, of chat messages, and of texts that are strange on purpose.
fn smallest_cosines(element: Element, every: usize) -> [f64; 3] {
    let references = testing::reference_vectors();
    assert!(references.len() >= 200);
    let references: Vec<_> = references.into_iter().step_by(every).collect();
    let texts = references.iter().map(|r| r.text.clone()).collect();
    let model = LocalModel::load(&testing::model_dir(), &Settings::default(), element).unwrap();
    assert_eq!(model.space().element, element.name());
    let vectors = block_on(model.embed(texts)).unwrap();
    let mut smallest = [f64::INFINITY; 3];
    for (ours, reference) in vectors.iter().zip(&references) {
        assert!((cosine(ours, ours) - 1.0).abs() < 1e-5, "not of length 1: {:?}", reference.id);
        let kind = if reference.id.starts_with("irc:") {
            1
        } else if reference.id.starts_with("edge:") {
            2
        } else {
            0
        };
        smallest[kind] = smallest[kind].min(cosine(ours, &reference.vector));
    }
    println!("{element}: smallest cosines {smallest:?}");
    smallest
}

#[test]
fn vectors_agree_with_the_reference() {
    assert!(smallest_cosines(Element::Fp32, 1).into_iter().all(|cosine| cosine >= 0.999_999));
}

#[test]
fn vectors_of_shorter_numbers_nearly_agree_with_the_reference() {
    let bf16 = smallest_cosines(Element::Bf16, 2);
    assert!(bf16.into_iter().all(|cosine| cosine >= 0.999_8));
    let int8 = smallest_cosines(Element::Int8, 2);
    let [passages, chat, strange] = int8;
    assert!(passages >= 0.997 && chat >= 0.992 && strange >= 0.985);
    // What rounds nothing is not that element.
    assert!(bf16.into_iter().chain(int8).all(|cosine| cosine < 0.999_999));
}

#[test]
fn a_vector_does_not_depend_on_its_batch() {
    let model = testing::local_model();
    let texts: Vec<String> =
        (1..40).map(|n| "the river runs deep and fast ".repeat(n % 13) + &n.to_string()).collect();
    let together = block_on(model.embed(texts.clone())).unwrap();
    for (text, together) in texts.into_iter().zip(together) {
        let alone = block_on(model.embed_query(text)).unwrap();
        for (a, b) in alone.iter().zip(&together) {
            assert!((a - b).abs() < 1e-5, "{a} alone, {b} together");
        }
    }
}

#[test]
fn concurrent_calls_each_get_their_vectors_in_order() {
    let model = testing::local_model();
    let call = |n: usize| -> Vec<String> { (0..50).map(|i| format!("call {n} text {i}")).collect() };
    let answers = block_on(join_all((0..4).map(|n| model.embed(call(n)))));
    for (n, answer) in answers.into_iter().enumerate() {
        let answer = answer.unwrap();
        assert_eq!(answer.len(), 50);
        for i in [0, 1, 31, 32, 49] {
            let expected = block_on(model.embed_query(format!("call {n} text {i}"))).unwrap();
            assert!(cosine(&answer[i], &expected) > 0.999_999, "call {n} text {i}");
        }
    }
}

#[test]
fn small_requests_that_wait_together_each_get_their_own_vectors_and_counts() {
    let settings = Settings { threads: 1, ..Settings::default() };
    let model = LocalModel::load(&testing::model_dir(), &settings, Element::Fp32).unwrap();
    let text = |n: usize| format!("request {n} {}", "and so on ".repeat(n % 5));
    let request = |n: usize| vec![text(n); n % 3];
    // Their one worker is busy with a list while these come.
    let list = model.embed(vec!["a text of a long list ".repeat(20); 16]);
    let (_, answers) =
        block_on(async { tokio::join!(list, join_all((0..20).map(|n| model.embed_counted(request(n))))) });
    for (n, answer) in answers.into_iter().enumerate() {
        let answer = answer.unwrap();
        let tokens: usize = request(n).iter().map(|text| model.model.ids(0, text).unwrap().len()).sum();
        assert_eq!((answer.vectors.len(), answer.tokens), (n % 3, tokens), "request {n}");
        let alone = block_on(model.embed(vec![text(n)])).unwrap();
        assert!(answer.vectors.iter().all(|vector| cosine(vector, &alone[0]) > 0.999_999));
    }
    assert!(model.gather.take(0).is_empty());
}

#[test]
fn live_texts_are_answered_while_a_back_fill_goes_on_and_all_get_the_same_vectors() {
    let texts: Vec<String> = (0..120).map(|n| format!("{n} was said and done")).collect();
    let query = "what was said and done".to_owned();
    let expected = block_on(testing::local_model().embed(texts.clone())).unwrap();
    for threads in [1, 2] {
        let settings = Settings { threads, batch_tokens: 256, ..Settings::default() };
        let model = LocalModel::load(&testing::model_dir(), &settings, Element::Fp32).unwrap();
        let answered = std::cell::RefCell::new(Vec::new());
        let each = async |what: &'static str, texts: &[String], work| {
            let partial = model.embed_each(texts.to_vec(), work).await;
            answered.borrow_mut().push(what);
            partial.all().unwrap()
        };
        let (backfill, list, record, found) = block_on(async {
            tokio::join!(
                each("back-fill", &texts, Work::Backfill),
                // Just too long to be small.
                each("list", &texts[..=gather::SMALL_TEXTS], Work::Live),
                each("record", &texts[7..8], Work::Live),
                model.embed_query(query.clone())
            )
        });
        assert_eq!(answered.borrow()[2], "back-fill", "{threads} threads");
        if threads == 1 {
            // Though the list came first.
            assert_eq!(answered.borrow()[0], "record");
        }
        let same = |ours: &[Vec<f32>], expected: &[Vec<f32>]| {
            ours.iter().zip(expected).all(|(a, b)| cosine(a, b) > 0.999_999)
        };
        assert!(same(&backfill, &expected) && same(&list, &expected) && same(&record, &expected[7..]));
        let query = block_on(testing::local_model().embed_query(query.clone())).unwrap();
        assert!(same(&[found.unwrap()], &[query]));
    }
}

#[test]
fn a_back_fill_goes_in_short_jobs_where_one_thread_does_everything() {
    let of = |work, threads| Cut::of(work, threads, 2_048);
    let (short, long) = (of(Work::Backfill, 1), of(Work::Backfill, 2));
    assert_eq!((short.priority, short.tokens), (Priority::Background, 256));
    assert_eq!((long.priority, long.tokens), (Priority::Background, 2_048));
    assert!(short.texts < long.texts);
    assert_eq!(of(Work::Live, 1), of(Work::Live, 2));
    assert_eq!(of(Work::Live, 1), Cut { priority: Priority::Steady, ..long });
}

#[test]
fn only_the_first_256_tokens_count() {
    let start = "word ".repeat(254);
    let texts = [format!("{start} river"), format!("{start} engine"), "word ".repeat(253) + "river"];
    let vectors = block_on(testing::local_model().embed(texts.to_vec())).unwrap();
    assert_eq!(vectors[0], vectors[1]);
    assert_ne!(vectors[0], vectors[2]);
}

#[test]
fn no_texts_give_no_vectors() {
    assert!(block_on(testing::local_model().embed(Vec::new())).unwrap().is_empty());
}

#[test]
fn weights_are_read_when_they_are_needed_and_wrong_ones_never_used() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("1_Pooling")).unwrap();
    for path in ["tokenizer.json", "config.json", "1_Pooling/config.json", "sentence_bert_config.json"] {
        std::fs::write(dir.path().join(path), testing::model_file(path)).unwrap();
    }
    let weights = dir.path().join("model.safetensors");
    let open = || LocalModel::open_in(dir.path(), &Settings::default(), Element::Fp32);
    assert!(matches!(open(), Err(OpenError::Model(ModelError::Missing { .. }))));
    std::fs::File::create(&weights).unwrap().set_len(90_868_376).unwrap();
    let model = open().unwrap();
    assert_eq!(model.space(), testing::local_model().space());
    let text = || "a text".to_owned();
    let errors = [
        block_on(model.prepare()).unwrap_err(),
        block_on(model.embed_query(text())).unwrap_err(),
        block_on(model.embed_each(vec![text(); 20], Work::Backfill)).failed.unwrap(),
    ];
    for error in errors {
        assert!(matches!(&error, EmbedError::Configuration { reason } if reason.contains("SHA-256")));
    }
    // Whoever puts it right need not start again.
    std::fs::remove_file(&weights).unwrap();
    std::os::unix::fs::symlink(
        std::path::absolute(testing::model_dir().join("model.safetensors")).unwrap(),
        &weights,
    )
    .unwrap();
    let expected = block_on(testing::local_model().embed_query(text())).unwrap();
    assert!(cosine(&block_on(model.embed_query(text())).unwrap(), &expected) > 0.999_999);
}

#[test]
fn dropping_the_model_ends_its_threads() {
    let settings = Settings { threads: 2, ..Settings::default() };
    let local = LocalModel::load(&testing::model_dir(), &settings, Element::Fp32).unwrap();
    let texts = vec!["a text to be computed ".repeat(20); 100];
    let mut call = local.embed(texts);
    let waker = futures::task::noop_waker();
    assert!(call.as_mut().poll(&mut std::task::Context::from_waker(&waker)).is_pending());
    drop(call);
    let model = Arc::downgrade(&local.model);
    drop(local);
    assert_eq!(model.strong_count(), 0, "a thread or a job still holds the model");
}

#[test]
fn the_space_says_what_the_vectors_are_computed_with() {
    let model = testing::local_model();
    let space = model.space();
    assert_eq!((space.dimensions, space.max_tokens, space.element.as_str()), (384, 256, "fp32"));
    assert_eq!(
        (&space.revision, &space.tokenizer),
        (&model.description().revision, &model.description().tokenizer)
    );
}

#[test]
fn a_vector_that_cannot_be_compared_is_an_error() {
    assert!(check(&[0.6, 0.8]).is_ok());
    for vector in [[0.0, 0.0], [f32::NAN, 1.0], [f32::INFINITY, 0.0], [0.6, 0.6]] {
        assert!(check(&vector).is_err(), "{vector:?}");
    }
    assert!(check(&[]).is_err());
}

proptest! {
    #[test]
    fn batches_hold_every_text_once_and_keep_to_the_budget(
        lengths in proptest::collection::vec(1usize..400, 0..100), budget in 256usize..2_000,
    ) {
        let sizes = batches(lengths.iter().copied(), budget);
        prop_assert_eq!(sizes.iter().sum::<usize>(), lengths.len());
        let mut rest = lengths.as_slice();
        for size in sizes {
            let (batch, others) = rest.split_at(size);
            let tokens: usize = batch.iter().sum();
            prop_assert!(size == 1 || tokens <= budget, "{size} texts, {tokens} tokens");
            // The next text would not have fitted.
            prop_assert!(others.first().is_none_or(|next| tokens + next > budget));
            rest = others;
        }
    }
}
