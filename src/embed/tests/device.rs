//! The local model on a device, which here is the processor running the
//! kernels of CUDA devices.

use futures::future::join_all;

use crate::embed::{
    Element, Embedder, LocalModel, OpenError, Settings, Work,
    bert::Emulated,
    cosine,
    model::{ModelError, ModelFiles},
    testing::{self, block_on},
};

/// The numbers of a head of all-MiniLM-L6-v2.
const HEAD_SIZE: usize = 32;

fn on_a_device(element: Element) -> Option<Result<LocalModel, OpenError>> {
    let device = Box::new(Emulated::open(HEAD_SIZE)?);
    let settings = Settings { threads: 2, ..Settings::default() };
    let dir = testing::model_dir();
    let files = ModelFiles::read(&settings.model, &dir).unwrap();
    let model = LocalModel::of_files(files, &dir, &settings, element, Some(device)).unwrap();
    Some(model.read().map(|()| model).map_err(OpenError::from))
}

#[test]
fn a_device_gives_the_vectors_of_the_reference_whoever_asks() {
    for (element, least) in [(Element::Fp32, 0.999_999), (Element::Bf16, 0.999_8)] {
        let Some(model) = on_a_device(element) else { return };
        let model = model.unwrap();
        assert_eq!((model.device(), model.space().element.as_str()), ("emulated", element.name()));
        let references: Vec<_> = testing::reference_vectors().into_iter().step_by(35).take(6).collect();
        let texts: Vec<String> = references.iter().map(|reference| reference.text.clone()).collect();
        // A list, single queries that are gathered, and a back-fill.
        let (list, queries, backfill) = block_on(async {
            tokio::join!(
                model.embed(texts.clone()),
                join_all(texts.iter().take(4).map(|text| model.embed_query(text.clone()))),
                model.embed_each(texts[..3].to_vec(), Work::Backfill),
            )
        });
        let (list, backfill) = (list.unwrap(), backfill.all().unwrap());
        let queries: Vec<_> = queries.into_iter().map(Result::unwrap).collect();
        assert_eq!((list.len(), queries.len(), backfill.len()), (6, 4, 3));
        for vectors in [list, queries, backfill] {
            for (vector, reference) in vectors.iter().zip(&references) {
                let cosine = cosine(vector, &reference.vector);
                assert!(cosine > least && cosine < 1.000_01, "{element}, {}: {cosine}", reference.id);
            }
        }
    }
}

#[test]
fn what_a_device_does_not_compute_is_refused_before_anything_is_asked() {
    let Some(refused) = on_a_device(Element::Int8) else { return };
    let error = refused.err().unwrap();
    assert!(matches!(error, OpenError::Model(ModelError::Device(_))), "{error}");
    assert!(error.to_string().contains("int8 is not computed on a CUDA device"), "{error}");
}
