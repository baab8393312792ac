//! From bytes on a socket to chunks.

use std::sync::Arc;

use anyhow::Result;
use bytes::BytesMut;
use tokio_util::codec::Decoder;

use super::{Case, Corpus, Options, throughput};
use crate::{
    embed::Embedder,
    frame::{DEFAULT_MAX_FRAME, FrameCodec, Payloads},
    record::{Defaults, Record, RecordRef},
    transform::{
        Settings, TokenSpans, Words, chunk::chunk, pii::Scanner, prepare::canonical, quality::Measures,
    },
};

/// Bytes that arrive together, as from a socket.
const READ_BYTES: usize = 64 << 10;

pub(super) fn stages(
    options: &Options,
    on: &str,
    corpus: &Corpus,
    model: Option<&Arc<dyn Embedder>>,
) -> Result<Vec<Case>> {
    let bytes = corpus.frames.len();
    let payloads = corpus.payloads();
    let mut cases = vec![
        throughput(options, format!("frame walk, {on}"), bytes, || {
            Ok(Payloads(corpus.frames.clone()).count())
        })?,
        throughput(options, format!("frame codec, 64 KiB reads, {on}"), bytes, || decode(&corpus.frames))?,
        throughput(options, format!("admission (parse in place), {on}"), bytes, || {
            Ok(payloads.iter().map(|payload| RecordRef::parse(payload).is_ok()).filter(|ok| *ok).count())
        })?,
        throughput(options, format!("decode to record, {on}"), bytes, || Ok(decoded(&payloads)?.len()))?,
    ];
    let records = decoded(&payloads)?;
    let texts: Vec<_> = records.iter().map(|record| canonical(&record.text)).collect();
    let text_bytes = texts.iter().map(|text| text.len()).sum();
    let settings = Settings::default();
    cases.push(throughput(options, format!("canonical text and quality, {on}"), text_bytes, || {
        let judge =
            |record: &Record| Measures::of(&canonical(&record.text)).judge(record.tier, &settings.quality, 0);
        records.iter().for_each(|record| drop(std::hint::black_box(judge(record))));
        Ok(())
    })?);
    let scanner = Scanner::new(&settings.pii);
    cases.push(throughput(options, format!("PII scan, {on}"), text_bytes, || {
        Ok(texts.iter().map(|text| scanner.scan(text).findings.len()).sum::<usize>())
    })?);
    let tokens = model.map_or_else(|| Arc::new(Words) as Arc<dyn TokenSpans>, |model| model.tokens());
    let counted = if model.is_some() { "the model's tokens" } else { "words; no model" };
    cases.push(throughput(options, format!("chunk ({counted}), {on}"), text_bytes, || {
        Ok(texts.iter().map(|text| chunk(text, &settings.chunk, &*tokens).len()).sum::<usize>())
    })?);
    Ok(cases)
}

fn decode(frames: &[u8]) -> Result<usize> {
    let (mut codec, mut buffer, mut units) =
        (FrameCodec::new(DEFAULT_MAX_FRAME), BytesMut::with_capacity(READ_BYTES), 0);
    for read in frames.chunks(READ_BYTES) {
        buffer.extend_from_slice(read);
        while codec.decode(&mut buffer)?.is_some() {
            units += 1;
        }
    }
    Ok(units)
}

fn decoded(payloads: &[bytes::Bytes]) -> Result<Vec<Record>> {
    let defaults = Defaults::default();
    payloads.iter().map(|payload| Ok(RecordRef::parse(payload)?.to_record(&defaults, 0))).collect()
}
