//! What every use of a pipeline's data needs, opened: the store, the model,
//! the object store, the log. The daemon is made of it, and so are the
//! commands that work without one.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;

use crate::{
    artifact::Artifacts,
    clock::{self, Clock},
    config::Pipeline,
    dataflow::Cpu,
    dictionary::Library,
    durable,
    embed::{self, Cached, Embedder, SharedVectors, Space, Tier, TokenSpans},
    log::{Directory, Log, Recovery, segment_name},
    pipeline::{
        archive::Archive,
        canary::Guarded,
        damage::DamageRegister,
        deriver::Deriver,
        dictionaries::Dictionaries,
        search::Searcher,
        serving::{Served, Serving},
        spending::Account,
        survey::{Remembered, survey},
    },
    redis::Redis,
    store::{SpaceState, Store, StoredVectors},
    webhooks::Outbox,
};

/// What every use of a pipeline's data needs.
#[derive(Clone)]
pub struct Workbench {
    /// The pipeline.
    pub pipeline: Arc<Pipeline>,
    /// Rows, vectors, catalog.
    pub store: Store,
    /// Who embeds, and for which space.
    pub serving: Arc<Serving>,
    /// Counts tokens as the pipeline's own model does.
    pub tokens: Arc<dyn TokenSpans>,
    /// The object store.
    pub artifacts: Artifacts,
    /// What other daemons share with this one.
    pub redis: Option<Redis>,
    /// The models behind `serving`, in its order.
    models: Vec<Arc<Model>>,
    /// Threads that compute.
    pub cpu: Cpu,
}

/// A model as the pipeline file describes it, opened.
struct Model {
    settings: embed::Settings,
    served: Served,
    /// What it costs, where it costs something, written down while this lives.
    account: Option<(Account, AbortOnDropHandle<()>)>,
    /// Its vectors in Redis.
    shared: Option<Arc<SharedVectors>>,
}

/// The models of a pipeline, by their sections.
const ROLES: [&str; 2] = ["embed", "migrate"];

/// How long an end waits for vectors that are on their way to Redis.
const DRAIN: Duration = Duration::from_secs(2);

impl Workbench {
    /// Opens the store, the model and the object store of `pipeline`.
    pub async fn open(pipeline: Pipeline) -> Result<Self> {
        std::fs::create_dir_all(&pipeline.data_dir)
            .with_context(|| format!("the data directory {} cannot be made", pipeline.data_dir.display()))?;
        let store = open_store(&pipeline).await?;
        let artifacts = open_artifacts(&pipeline, &store)?;
        restore_dictionaries(&pipeline, &artifacts).await;
        let redis = match &pipeline.redis {
            Some(settings) => Some(Redis::open(settings).await?),
            None => None,
        };
        let opened = Opened { store, artifacts, redis, cpu: Cpu::new(0)? };
        let bench = Self::with(pipeline, opened, &[]).await?;
        bench.take_space().await?;
        Ok(bench)
    }

    /// Opens what `next` wants otherwise, beside this, and shares the rest with
    /// it. The store, the data directory and Redis are shared always: `next`
    /// must not name others. Its space is not live before [`Self::take_space`].
    ///
    /// # Errors
    /// If something cannot be opened, or another model's vectors are live.
    pub async fn reopened(&self, next: Pipeline) -> Result<Self> {
        let artifacts = match next.artifacts == self.pipeline.artifacts {
            true => self.artifacts.clone(),
            false => open_artifacts(&next, &self.store)?,
        };
        // What it has cost until now is to be known to those that follow.
        self.settle().await?;
        let (store, redis, cpu) = (self.store.clone(), self.redis.clone(), self.cpu.clone());
        let bench = Self::with(next, Opened { store, artifacts, redis, cpu }, &self.models).await?;
        if let Some(live) = self.store.live_space().await?
            && self.store.vectors_in(live).await? > 0
        {
            bench.serving.now().await?;
        }
        Ok(bench)
    }

    /// Makes the space of `[embed]` live where the one that is has no vectors.
    ///
    /// # Errors
    /// If one is live that none of the models has.
    pub async fn take_space(&self) -> Result<()> {
        if let Some(model) = self.models.first() {
            self.store.replace_unused(model.served.space_key).await?;
        }
        self.serving.now().await?;
        Ok(())
    }

    /// Opens the models of `pipeline`; those that are open with the same
    /// settings are taken from `before`.
    async fn with(pipeline: Pipeline, opened: Opened, before: &[Arc<Model>]) -> Result<Self> {
        let Opened { store, artifacts, redis, cpu } = opened;
        let stored = store.spaces().await?.into_iter().filter(|space| space.state != SpaceState::Retired);
        let stored: Vec<_> = stored.map(|row| row.space).collect();
        let mut models: Vec<Arc<Model>> = Vec::new();
        let wanted = [Some(&pipeline.embed), pipeline.migrate.as_ref()];
        for (settings, (i, role)) in wanted.into_iter().flatten().zip(ROLES.into_iter().enumerate()) {
            let model = match before.get(i).filter(|model| model.settings == *settings) {
                Some(model) => model.clone(),
                None => {
                    let model = Model::open(settings, &pipeline, role, (&store, &stored), redis.as_ref());
                    Arc::new(model.await.with_context(|| format!("[{role}] cannot be used"))?)
                }
            };
            ensure!(
                models.iter().all(|other| other.served.space_key != model.served.space_key),
                "[migrate] names the embedding space that [embed] has; name another model there, or leave it out"
            );
            models.push(model);
        }
        let members: Vec<Served> = models.iter().map(|model| model.served.clone()).collect();
        let tokens = members.first().context("a pipeline has a model")?.model.tokens();
        let serving = Arc::new(Serving::new(store.clone(), members));
        Ok(Self { pipeline: Arc::new(pipeline), store, serving, tokens, artifacts, redis, models, cpu })
    }

    /// Writes down what embedding has cost until now.
    pub async fn settle(&self) -> Result<()> {
        for (account, _) in self.models.iter().filter_map(|model| model.account.as_ref()) {
            account.settle().await?;
        }
        Ok(())
    }

    /// Writes down what embedding cost and closes the store.
    pub async fn close(&self) -> Result<()> {
        self.settle().await?;
        for vectors in self.models.iter().filter_map(|model| model.shared.as_ref()) {
            vectors.drain(DRAIN).await;
        }
        self.store.close().await;
        Ok(())
    }

    /// Turns frames into rows.
    pub fn deriver(&self) -> Deriver {
        let (settings, defaults) = (self.pipeline.derive.clone(), self.pipeline.defaults.clone());
        Deriver::new(settings, defaults, self.tokens.clone(), self.cpu.clone())
    }

    /// Answers searches.
    pub fn searcher(&self) -> Searcher {
        Searcher {
            store: self.store.clone(),
            serving: self.serving.clone(),
            settings: self.pipeline.search.clone(),
        }
    }
}

/// What a workbench is made of beside its models.
struct Opened {
    store: Store,
    artifacts: Artifacts,
    redis: Option<Redis>,
    cpu: Cpu,
}

impl Model {
    /// Opens the model that `settings` name, for a store that holds vectors of
    /// the spaces `stored`. With `redis`, its vectors are shared there.
    async fn open(
        settings: &embed::Settings,
        pipeline: &Pipeline,
        role: &str,
        (store, stored): (&Store, &[Space]),
        redis: Option<&Redis>,
    ) -> Result<Self> {
        let (named, stored) = (settings.clone(), stored.to_vec());
        let model = tokio::task::spawn_blocking(move || embed::open(&named, &stored)).await??;
        let space_key = store.register_space(model.space(), clock::system_ms()).await?;
        let model = Arc::new(Guarded::new(model, store.clone(), space_key, clock::system()));
        let mut tiers = Vec::new();
        let ttl = pipeline.redis.as_ref().map(|settings| settings.cache_ttl.0);
        let shared = redis
            .zip(ttl)
            .map(|(redis, ttl)| Arc::new(SharedVectors::new(redis.clone(), model.space(), ttl)));
        if let Some(vectors) = &shared {
            tiers.push(Tier { name: "redis", shelf: vectors.clone() });
        }
        tiers
            .push(Tier { name: "store", shelf: Arc::new(StoredVectors { store: store.clone(), space_key }) });
        let embedder = Arc::new(Cached::new(model.clone(), settings.cache_memory.as_usize(), tiers));
        let served = Served { space_key, embedder, model };
        let account = match served.model.budget() {
            Some(budget) => {
                let whose = if role == "embed" { "".to_owned() } else { format!("/{role}") };
                let pipeline = format!("{}{whose}", pipeline.name);
                let (budget, store) = (budget.clone(), store.clone());
                let account = Account { budget, store, pipeline, writing: Arc::default() };
                account.settle().await?;
                let kept = tokio::spawn(account.clone().keep().in_current_span());
                Some((account, AbortOnDropHandle::new(kept)))
            }
            None => None,
        };
        Ok(Self { settings: settings.clone(), served, account, shared })
    }
}

/// Opens the store of `pipeline`.
pub async fn open_store(pipeline: &Pipeline) -> Result<Store> {
    let path = pipeline.in_data_dir(pipeline.store.path.as_ref());
    Store::open_with(&path, &pipeline.store).await.with_context(|| match &pipeline.store.url {
        Some(_) => "the store at `store.url` cannot be opened".to_owned(),
        None => format!("the store {} cannot be opened", path.display()),
    })
}

/// Opens the object store of `pipeline`.
pub fn open_artifacts(pipeline: &Pipeline, store: &Store) -> Result<Artifacts> {
    let path = pipeline.in_data_dir(pipeline.artifacts.path.as_ref());
    let uploads = pipeline.data_dir.join("uploads");
    Ok(Artifacts::open(&pipeline.artifacts, &path, &uploads, store.clone())?)
}

/// The dictionaries of the stream of `pipeline`.
pub fn dictionaries_of(pipeline: &Pipeline, artifacts: &Artifacts) -> Dictionaries {
    let directory = Directory::of_stream(&log_root(pipeline), &pipeline.stream);
    Dictionaries {
        stream: pipeline.stream.clone(),
        library: Library::of_segments(directory.path()),
        settings: pipeline.segment.clone(),
        artifacts: artifacts.clone(),
    }
}

/// Puts back the dictionaries that are missing beside the log. What cannot be
/// had back hinders only whoever needs it, and is said there again.
pub async fn restore_dictionaries(pipeline: &Pipeline, artifacts: &Artifacts) {
    match dictionaries_of(pipeline, artifacts).restore().await {
        Ok(restored) => {
            for digest in restored {
                tracing::warn!(digest, "a dictionary was missing beside the log and was put back");
            }
        }
        Err(error) => tracing::error!(%error, "a dictionary is missing beside the log"),
    }
}

/// Folder of the logs of `pipeline`'s streams.
pub fn log_root(pipeline: &Pipeline) -> PathBuf {
    pipeline.data_dir.join("log")
}

/// Seals the closed segments of an opened log.
pub fn archive_of(
    log: &Log,
    pipeline: &Pipeline,
    store: &Store,
    artifacts: &Artifacts,
    damage: &Arc<DamageRegister>,
    clock: Clock,
) -> Result<Archive> {
    Ok(Archive {
        log: log.reader(),
        sealer: log.sealer(),
        folder: Directory::of_stream(&log_root(pipeline), &pipeline.stream).path().to_owned(),
        settings: pipeline.segment.clone(),
        artifacts: artifacts.clone(),
        store: store.clone(),
        damage: damage.clone(),
        clock,
        cpu: Cpu::background()?,
        outbox: outbox_of(pipeline),
        turn: Arc::default(),
    })
}

/// What webhooks of `pipeline` are told goes into it.
pub fn outbox_of(pipeline: &Pipeline) -> Outbox {
    Outbox::new(&pipeline.name, &pipeline.webhooks, Arc::new(rand::random))
}

/// What the store remembers of the stream of `pipeline`.
pub async fn remembered(pipeline: &Pipeline, store: &Store) -> Result<Remembered> {
    let checkpoint = store.counts(&pipeline.name, &pipeline.stream).await?;
    Ok(Remembered {
        segments: store.segments(&pipeline.stream).await?,
        damage: store.damage(&pipeline.stream).await?,
        start_offset: checkpoint.map(|checkpoint| checkpoint.start_offset),
    })
}

/// Opens the log of `pipeline` for writing, after every offset that `store`
/// knows to have been given, and reports what is damaged.
pub async fn open_log_of(
    pipeline: &Pipeline,
    store: &Store,
    clock: Clock,
) -> Result<(Log, Arc<DamageRegister>)> {
    let remembered = remembered(pipeline, store).await?;
    let checkpoint = store.counts(&pipeline.name, &pipeline.stream).await?;
    let known = remembered.end_offset(checkpoint.map_or(0, |checkpoint| checkpoint.next_offset));
    let (log, recovery) = open_log_after(pipeline, clock.clone(), known)?;
    let folder = Directory::of_stream(&log_root(pipeline), &pipeline.stream).path().to_owned();
    // Left by a crash while sealing; the log has its lock, and seals nothing
    // yet.
    for path in durable::sweep_temporaries_of(&folder, |name| segment_name(name).is_some())? {
        tracing::info!(file = %path.display(), "removed what a crash left unfinished");
    }
    let found = survey(&log.reader(), &folder, &recovery, &remembered, clock())?;
    let register = DamageRegister::open(store.clone(), log.reader(), folder, clock).await?;
    register.report(found).await;
    let open = register.open_damage().len();
    if open > 0 {
        tracing::warn!(open, "the log has damage that `thalweg segments repair` has not seen to");
    }
    Ok((log, Arc::new(register)))
}

/// Opens the log of `pipeline` for writing and says what recovery put aside.
pub fn open_log(pipeline: &Pipeline, clock: Clock) -> Result<(Log, Recovery)> {
    open_log_after(pipeline, clock, 0)
}

/// As [`open_log`], where everything before `known` is known to have been in
/// the log.
pub fn open_log_after(pipeline: &Pipeline, clock: Clock, known: u64) -> Result<(Log, Recovery)> {
    let (root, draw_id) = (log_root(pipeline), Box::new(rand::random));
    let opened = Log::open_after(&root, &pipeline.stream, &pipeline.log, clock, draw_id, known)?;
    report_recovery(&pipeline.stream, &opened.1);
    Ok(opened)
}

fn report_recovery(stream: &str, recovery: &Recovery) {
    tracing::info!(stream, end_offset = recovery.end_offset, "log recovered");
    for file in &recovery.quarantined {
        tracing::error!(stream, file = %file.display(), "a segment file could not be read and was put aside");
    }
}

/// Name of the batch that a start at `now_ms` writes.
pub fn batch_tag(pipeline: &Pipeline, now_ms: i64) -> String {
    pipeline.batch_tag.clone().unwrap_or_else(|| {
        let day = jiff::Timestamp::from_millisecond(now_ms).unwrap_or_default();
        format!("{}-{}", pipeline.name, day.strftime("%F"))
    })
}
