//! The local model: texts to vectors on worker threads of its own.
//!
//! A call is cut into jobs: some texts to tokenise, then packed batches to
//! encode. Jobs of several calls interleave; a batch never mixes calls, so
//! one call's bad input is no other call's error. Batches take texts as they
//! come: without padding, nothing is gained by sorting them by length.
//!
//! Small live requests are the exception: they go before all others, and those
//! that wait together are computed together ([`gather`]). So one record that
//! comes in does not wait behind the batches of a long list. What can wait
//! ([`Work::Backfill`]) has a lane of its own, which leaves a worker free for
//! live work.

#[cfg(test)]
mod tests;

use std::{path::Path, sync::Arc, thread};

use futures::future::BoxFuture;
use tokio::sync::oneshot;

use super::{
    EmbedError, Embedder, OpenError, Partial, Space, TokenSpans, Work,
    bert::{Accelerator, DeviceChoice, DeviceError, Element, Scratch},
    gather::{self, Gather, Request},
    late::{self, AnyEncoder, LateEncoder},
    model::{ModelDescription, ModelError, ModelFiles},
    pool::{JobLost, Pool, Priority},
    settings::{LOCAL, Settings},
    tokenizer::Tokenizer,
};

/// Texts tokenised by one job: some milliseconds of work.
const TEXTS_PER_JOB: usize = 32;
/// The same for work that can wait, where one thread does everything and live
/// work waits until such a job is done.
const TEXTS_PER_SHORT_JOB: usize = 4;
/// Tokens encoded by such a job: the longest text of the default model. A
/// smaller bound would not make the wait shorter, since a text is one piece.
const TOKENS_PER_SHORT_JOB: usize = 256;

/// Tokens that a device encodes at once, at most: it needs many to have work
/// for all of its units.
const TOKENS_ON_A_DEVICE: usize = 16_384;

/// A model in this process, with its threads. Dropping it waits for the
/// batches in progress and ends the threads.
pub struct LocalModel {
    space: Space,
    description: ModelDescription,
    model: Arc<Model>,
    pool: Pool<Scratch>,
    /// The one thread that has a device compute, if one does: `pool` only
    /// tokenises then.
    device: Option<Pool<Scratch>>,
    /// Small requests that wait for a worker.
    gather: Arc<Gather<Answer>>,
    batch_tokens: usize,
}

/// Vectors of texts, in their order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Counted {
    /// One per text.
    pub vectors: Vec<Vec<f32>>,
    /// Tokens that the model has read, special tokens included and without
    /// those that were cut.
    pub tokens: usize,
}

type Answer = Result<Counted, EmbedError>;

/// How a list of texts is cut into jobs, and what goes before them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cut {
    priority: Priority,
    /// Texts tokenised by one job.
    texts: usize,
    /// Tokens of one batch, at most, unless a single text has more.
    tokens: usize,
}

/// What the worker threads share.
struct Model {
    tokenizer: Arc<Tokenizer>,
    encoder: LateEncoder,
}

impl LocalModel {
    /// The model that `settings` name, for a store that holds vectors of the
    /// spaces `stored`, the newest last. Its weights are read and verified by
    /// the first call that needs them, or by [`read`](Self::read); they have to
    /// be there. The environment may say where models are (`THALWEG_MODELS`).
    pub fn open(settings: &Settings, stored: &[Space]) -> Result<Self, OpenError> {
        let dir = settings.model_folder(std::env::var_os("THALWEG_MODELS").as_deref());
        Self::open_in(&dir, settings, settings.element(stored))
    }

    /// As [`open`](Self::open) where nothing is stored, to compute on the
    /// device of that kind. Where there is none, that is said in the log, and
    /// the processor computes. `auto` means bf16 on a device.
    pub fn open_on(choice: DeviceChoice, settings: &Settings) -> Result<Self, OpenError> {
        let dir = settings.model_folder(std::env::var_os("THALWEG_MODELS").as_deref());
        let files = ModelFiles::read(&settings.model, &dir)?;
        let (device, element) = late::device(choice, &files.config, settings)?;
        Self::of_files(files, &dir, settings, element, device)
    }

    /// The model `settings.model` in `dir`, read and verified. Takes a good
    /// part of a second and blocks meanwhile.
    pub fn load(dir: &Path, settings: &Settings, element: Element) -> Result<Self, OpenError> {
        let model = Self::open_in(dir, settings, element)?;
        model.read()?;
        Ok(model)
    }

    /// Reads and verifies the weights unless that is done. Takes a good part
    /// of a second and blocks meanwhile.
    pub fn read(&self) -> Result<(), ModelError> {
        self.model.encoder.get().map(drop)
    }

    /// Reads and verifies all but the weights of the model `settings.model` in
    /// `dir`, and starts its threads; they compute with `element`.
    fn open_in(dir: &Path, settings: &Settings, element: Element) -> Result<Self, OpenError> {
        Self::of_files(ModelFiles::read(&settings.model, dir)?, dir, settings, element, None)
    }

    /// The model of these files, in `dir`; `device` computes if there is one.
    pub(super) fn of_files(
        files: ModelFiles,
        dir: &Path,
        settings: &Settings,
        element: Element,
        device: Option<Box<dyn Accelerator>>,
    ) -> Result<Self, OpenError> {
        let ModelFiles { description, config, pooling, tokenizer, weights } = files;
        let tokenizer = Tokenizer::read(&tokenizer, description.max_tokens).map_err(ModelError::from)?;
        let mismatch = |reason: &str| ModelError::Mismatch { dir: dir.to_owned(), reason: reason.to_owned() };
        if tokenizer.vocabulary() > config.vocab_size {
            return Err(mismatch("the tokenizer has tokens that the weights do not know").into());
        }
        // So that even an empty text has tokens, and a cut one its last.
        if tokenizer.ids("").map_err(ModelError::from)?.len() < 2 {
            return Err(mismatch("the tokenizer puts no special tokens around a text").into());
        }
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let pool = Pool::start("embed", settings.worker_threads(cores), Scratch::default)
            .map_err(|source| OpenError::Threads { source })?;
        let start = |_: &_| Pool::start("embed-device", 1, Scratch::default);
        let of_device = device.as_ref().map(start).transpose();
        let of_device = of_device.map_err(|source| OpenError::Threads { source })?;
        let batch_tokens = if device.is_some() { TOKENS_ON_A_DEVICE } else { settings.batch_tokens };
        let encoder = LateEncoder::new(weights, config, pooling, element, device);
        Ok(Self {
            space: space(&description, element),
            description,
            model: Arc::new(Model { tokenizer: Arc::new(tokenizer), encoder }),
            pool,
            device: of_device,
            gather: Arc::default(),
            batch_tokens,
        })
    }

    /// What computes: the name of a device, or `cpu`.
    pub fn device(&self) -> &str {
        self.model.encoder.device().unwrap_or("cpu")
    }

    /// Why the device will not compute any more, if that is so: nothing but a
    /// new process has it compute again.
    pub fn lost(&self) -> Option<&str> {
        self.model.encoder.lost()
    }

    /// The threads that encode.
    fn encoders(&self) -> &Pool<Scratch> {
        self.device.as_ref().unwrap_or(&self.pool)
    }

    /// `texts` as the model wants what it should find.
    fn passages(&self, texts: Vec<String>) -> Vec<String> {
        texts.into_iter().map(|text| prefixed(&self.description.prefix, text)).collect()
    }

    /// What the vectors are computed with.
    pub fn description(&self) -> &ModelDescription {
        &self.description
    }

    /// The ids of each text, in order.
    async fn tokenise(&self, texts: Vec<String>, cut: Cut) -> Result<Vec<Vec<u32>>, EmbedError> {
        let count = texts.len();
        let mut texts = texts.into_iter();
        let mut tickets = Vec::new();
        for first in (0..count).step_by(cut.texts) {
            let some: Vec<String> = texts.by_ref().take(cut.texts).collect();
            let model = Arc::clone(&self.model);
            let job = move |_: &mut Scratch| {
                let ids = |(n, text): (usize, &String)| model.ids(first + n, text);
                some.iter().enumerate().map(ids).collect::<Result<Vec<_>, _>>()
            };
            tickets.push(self.pool.submit(cut.priority, job).await?);
        }
        let mut all = Vec::with_capacity(count);
        for ticket in tickets {
            all.extend(ticket.result().await??);
        }
        Ok(all)
    }

    /// The vector of each tokenised text, in order.
    async fn encode(&self, ids: Vec<Vec<u32>>, cut: Cut) -> Result<Vec<Vec<f32>>, EmbedError> {
        let count = ids.len();
        let sizes = batches(ids.iter().map(Vec::len), cut.tokens);
        let mut ids = ids.into_iter();
        let mut tickets = Vec::with_capacity(sizes.len());
        let mut first = 0;
        for size in sizes {
            let batch: Vec<Vec<u32>> = ids.by_ref().take(size).collect();
            let model = Arc::clone(&self.model);
            let job = move |scratch: &mut Scratch| model.vectors(first, &batch, scratch);
            tickets.push(self.encoders().submit(cut.priority, job).await?);
            first += size;
        }
        let mut vectors = Vec::with_capacity(count);
        for ticket in tickets {
            vectors.extend(ticket.result().await??);
        }
        Ok(vectors)
    }

    /// Vectors of texts for someone who waits for them, with their tokens
    /// counted. Few short texts go before all others; a longer list goes
    /// beside the other lists. Nothing is put before texts: whoever asks knows
    /// what they are. Dropping the future cancels what no worker has begun.
    pub async fn embed_counted(&self, texts: Vec<String>) -> Result<Counted, EmbedError> {
        self.embed_as(texts, Work::Live).await
    }

    /// As [`embed_counted`](Self::embed_counted), for whom `work` says.
    async fn embed_as(&self, texts: Vec<String>, work: Work) -> Result<Counted, EmbedError> {
        if work == Work::Live && gather::is_small(&texts) {
            return self.embed_urgently(texts).await;
        }
        let cut = Cut::of(work, self.encoders().threads(), self.batch_tokens);
        let ids = self.tokenise(texts, cut).await?;
        let tokens = ids.iter().map(Vec::len).sum();
        Ok(Counted { vectors: self.encode(ids, cut).await?, tokens })
    }

    async fn embed_urgently(&self, texts: Vec<String>) -> Result<Counted, EmbedError> {
        let (place, mut answer) = self.gather.join(texts);
        let (gather, model, id) = (Arc::clone(&self.gather), Arc::clone(&self.model), place.id);
        let job = move |scratch: &mut Scratch| model.answer_all(gather.take(id), scratch);
        let own_job = async { self.encoders().submit(Priority::Urgent, job).await?.result().await };
        // Another request's job may have taken this one along.
        let answered = tokio::select! {
            biased;
            answered = &mut answer => answered,
            done = own_job => {
                done?;
                answer.await
            }
        };
        answered.unwrap_or_else(|_| Err(JobLost.into()))
    }
}

impl Cut {
    /// For `work` on so many threads, with batches of `batch_tokens` where
    /// nothing is gained by smaller ones.
    fn of(work: Work, threads: usize, batch_tokens: usize) -> Self {
        let priority = match work {
            Work::Live => Priority::Steady,
            Work::Backfill => Priority::Background,
        };
        if work == Work::Backfill && threads == 1 {
            return Self {
                priority,
                texts: TEXTS_PER_SHORT_JOB,
                tokens: batch_tokens.min(TOKENS_PER_SHORT_JOB),
            };
        }
        Self { priority, texts: TEXTS_PER_JOB, tokens: batch_tokens }
    }
}

impl Embedder for LocalModel {
    fn space(&self) -> &Space {
        &self.space
    }

    fn prepare(&self) -> BoxFuture<'_, Result<(), EmbedError>> {
        let model = Arc::clone(&self.model);
        let job = move |_: &mut Scratch| model.encoder().map(drop);
        Box::pin(async { self.encoders().submit(Priority::Urgent, job).await?.result().await? })
    }

    fn embed(&self, texts: Vec<String>) -> BoxFuture<'_, Result<Vec<Vec<f32>>, EmbedError>> {
        let texts = self.passages(texts);
        Box::pin(async move { Ok(self.embed_as(texts, Work::Live).await?.vectors) })
    }

    fn embed_each(&self, texts: Vec<String>, work: Work) -> BoxFuture<'_, Partial> {
        let texts = self.passages(texts);
        Box::pin(async move {
            let count = texts.len();
            Partial::of_all(count, self.embed_as(texts, work).await.map(|counted| counted.vectors))
        })
    }

    fn embed_query(&self, text: String) -> BoxFuture<'_, Result<Vec<f32>, EmbedError>> {
        let text = prefixed(&self.description.query_prefix, text);
        Box::pin(async move {
            let counted = self.embed_urgently(vec![text]).await?;
            Ok(counted.vectors.into_iter().flatten().collect())
        })
    }

    fn tokens(&self) -> Arc<dyn TokenSpans> {
        Arc::clone(&self.model.tokenizer) as _
    }
}

impl Model {
    /// The ids of the text that the caller knows as `index`.
    fn ids(&self, index: usize, text: &str) -> Result<Vec<u32>, EmbedError> {
        self.tokenizer.ids(text).map_err(|e| EmbedError::Input { index, reason: e.to_string() })
    }

    fn encoder(&self) -> Result<&AnyEncoder, EmbedError> {
        self.encoder.get().map_err(|error| EmbedError::Configuration { reason: error.to_string() })
    }

    /// The vectors of a batch whose first text the caller knows as `first`.
    fn vectors(
        &self,
        first: usize,
        batch: &[Vec<u32>],
        scratch: &mut Scratch,
    ) -> Result<Vec<Vec<f32>>, EmbedError> {
        checked(first, self.encoder()?.encode(batch, scratch)?)
    }

    /// Computes the texts of all `requests` in one batch and answers each. A
    /// text that cannot be tokenised is the error of its request alone.
    fn answer_all(&self, requests: Vec<Request<Answer>>, scratch: &mut Scratch) {
        let encoder = match self.encoder() {
            Ok(encoder) => encoder,
            Err(error) => return refuse_all(requests.into_iter().map(|request| request.reply), &error),
        };
        let (mut batch, mut understood) = (Vec::new(), Vec::new());
        for Request { texts, reply } in requests {
            let ids: Result<Vec<_>, _> =
                texts.iter().enumerate().map(|(n, text)| self.ids(n, text)).collect();
            match ids {
                Ok(ids) => {
                    understood.push((reply, ids.len(), ids.iter().map(Vec::len).sum()));
                    batch.extend(ids);
                }
                Err(error) => drop(reply.send(Err(error))),
            }
        }
        let mut vectors = match encoder.encode(&batch, scratch) {
            Ok(vectors) => vectors.into_iter(),
            Err(error) => return refuse_all(understood.into_iter().map(|(reply, ..)| reply), &error.into()),
        };
        for (reply, count, tokens) in understood {
            // The caller may have left.
            let own = checked(0, vectors.by_ref().take(count).collect());
            let _ = reply.send(own.map(|vectors| Counted { vectors, tokens }));
        }
    }
}

/// Answers with one error whoever is still there.
fn refuse_all(replies: impl Iterator<Item = oneshot::Sender<Answer>>, error: &EmbedError) {
    for reply in replies {
        let _ = reply.send(Err(error.clone()));
    }
}

impl From<DeviceError> for EmbedError {
    fn from(error: DeviceError) -> Self {
        Self::Transient { reason: error.to_string() }
    }
}

impl From<JobLost> for EmbedError {
    fn from(lost: JobLost) -> Self {
        Self::Transient { reason: lost.to_string() }
    }
}

fn space(description: &ModelDescription, element: Element) -> Space {
    Space {
        provider: LOCAL.into(),
        model: description.name.clone(),
        revision: description.revision.clone(),
        tokenizer: description.tokenizer.clone(),
        dimensions: description.dimensions,
        pooling: description.pooling.clone(),
        normalised: true,
        prefix: description.prefix.clone(),
        element: element.name().into(),
        max_tokens: description.max_tokens,
    }
}

fn prefixed(prefix: &str, text: String) -> String {
    if prefix.is_empty() { text } else { format!("{prefix}{text}") }
}

/// How many texts go into each batch, given their lengths in tokens: as many
/// as stay within `budget`, and at least one.
fn batches(lengths: impl Iterator<Item = usize>, budget: usize) -> Vec<usize> {
    let mut sizes = Vec::new();
    let (mut texts, mut tokens) = (0, 0);
    for length in lengths {
        if texts > 0 && tokens + length > budget {
            sizes.push(texts);
            (texts, tokens) = (0, 0);
        }
        texts += 1;
        tokens += length;
    }
    if texts > 0 {
        sizes.push(texts);
    }
    sizes
}

/// `vectors`, if all may be stored; the caller knows the first as `first`.
fn checked(first: usize, vectors: Vec<Vec<f32>>) -> Result<Vec<Vec<f32>>, EmbedError> {
    for (n, vector) in vectors.iter().enumerate() {
        check(vector).map_err(|reason| EmbedError::Input { index: first + n, reason: reason.into() })?;
    }
    Ok(vectors)
}

/// Whether `vector` may be stored: finite numbers and a length of 1.
fn check(vector: &[f32]) -> Result<(), &'static str> {
    let square: f32 = vector.iter().map(|x| x * x).sum();
    // Written so that a NaN fails.
    if (square - 1.0).abs() < 1e-3 { Ok(()) } else { Err("its vector came out zero or not finite") }
}
