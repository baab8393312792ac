//! The sources: tasks that bring frames in, each with an end of its own.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use tokio_util::sync::CancellationToken;

use crate::{
    config::{self, Format, Pipeline, Source},
    dataflow::{Cpu, Drained, Outcome, Supervisor},
    source::{
        door::{Door, Place},
        entrance::Entrance,
        file::{self, Content, Files},
        forward, socket,
    },
    store::Store,
};

/// How long a source that is closed may take to answer what it took.
const CLOSING: Duration = Duration::from_secs(10);

/// Tasks that bring frames in; those of finite sources end by themselves.
pub(super) struct Sources {
    tasks: Supervisor,
    open: BTreeMap<String, Open>,
    cpu: Cpu,
    store: Store,
}

struct Open {
    /// Where it listens, if it does.
    door: Option<(Place, Door)>,
    stop: CancellationToken,
    /// Whether it ends by itself.
    finite: bool,
}

/// A source that can be opened without fail.
pub(super) struct Ready {
    source: Source,
    door: Option<(Place, Door)>,
    forward: Option<forward::Listener>,
}

impl Sources {
    /// None yet; all of them end when `closing` is cancelled.
    pub fn new(store: Store, cpu: Cpu, closing: CancellationToken) -> Self {
        Self { tasks: Supervisor::new(closing), open: BTreeMap::new(), cpu, store }
    }

    /// Binds what those sources of `pipeline` need that `wanted` names. Places
    /// that one of them has already are kept.
    ///
    /// # Errors
    /// If one of them cannot listen; then none is bound.
    pub async fn prepare(&self, pipeline: &Pipeline, wanted: impl Fn(&str) -> bool) -> Result<Vec<Ready>> {
        let mut ready = Vec::new();
        for source in pipeline.sources.iter().filter(|source| wanted(source.name())) {
            let cannot = || format!("source `{}` cannot listen", source.name());
            let door = match Place::of(source) {
                Some(place) => {
                    let open = self.door_at(&place, source.name());
                    let door = match open {
                        Some(door) => door,
                        None => place.bind().await.with_context(cannot)?,
                    };
                    Some((place, door))
                }
                None => None,
            };
            if let Source::File(settings) = source {
                let files = files(settings.clone());
                files.look().with_context(|| format!("source `{}` cannot read", source.name()))?;
            }
            let forward = match source {
                Source::Forward(settings) => Some(forward::Listener::open(settings).with_context(cannot)?),
                _ => None,
            };
            ready.push(Ready { source: source.clone(), door, forward });
        }
        Ok(ready)
    }

    /// The door that is open at `place` already. One whose port the system
    /// chose is nobody else's.
    fn door_at(&self, place: &Place, name: &str) -> Option<Door> {
        let is_at = |open: &&Open| open.door.as_ref().is_some_and(|(at, _)| at == place);
        let own = self.open.get(name).filter(is_at);
        let any = || self.open.values().find(is_at).filter(|_| !place.is_any_port());
        own.or_else(any).and_then(|open| Some(open.door.as_ref()?.1.clone()))
    }

    /// Has frames brought in from now on.
    pub fn open(&mut self, ready: Vec<Ready>, entrance: &Entrance) {
        for Ready { source, door, forward } in ready {
            let stop = self.tasks.stop_token().child_token();
            let mut entrance = entrance.clone();
            entrance.ingest = entrance.ingest.until(stop.clone());
            let (name, bound) = (source.name().to_owned(), door.clone().map(|(_, door)| door));
            let mut finite = false;
            match (source, bound, forward) {
                (Source::Forward(_), Some(Door::Tcp(listener)), Some(forward)) => {
                    let task = forward.run(listener, entrance, self.cpu.clone(), Box::new(rand::random));
                    self.tasks.spawn(name.clone(), task);
                }
                (_, Some(door), _) => {
                    self.tasks.spawn(name.clone(), socket::run(door, name.clone(), entrance))
                }
                (Source::File(file), ..) => {
                    finite = !file.watch;
                    self.tasks.spawn(name.clone(), files(file).run(self.store.clone(), entrance.ingest));
                }
                (Source::Stdin(stdin), ..) => {
                    finite = true;
                    let content = content_of(stdin.format).unwrap_or(Content::JsonLines);
                    self.tasks.spawn(name.clone(), file::stdin(stdin.name, content, entrance.ingest));
                }
                // The HTTP server brings in what comes to it.
                _ => continue,
            }
            self.open.insert(name, Open { door, stop, finite });
        }
    }

    /// Closes the sources of these names: they answer what they took, and
    /// those connected to them are told to come again.
    pub async fn close(&mut self, names: &[String]) {
        let closed: Vec<_> = names.iter().filter_map(|name| Some((name, self.open.remove(name)?))).collect();
        for (_, open) in &closed {
            open.stop.cancel();
        }
        let until = Instant::now() + CLOSING;
        for (name, _) in closed {
            match self.tasks.join(name, until.saturating_duration_since(Instant::now())).await {
                Some(Outcome { result: Err(error), .. }) => {
                    tracing::warn!(error = format!("{error:#}"), source = name, "a source did not end well");
                }
                _ => tracing::info!(source = name, "source closed"),
            }
        }
    }

    /// Whether one is left that ends by itself.
    pub fn awaits_an_end(&self) -> bool {
        self.open.values().any(|open| open.finite)
    }

    /// Where each can be reached.
    pub fn addresses(&self) -> Vec<(String, String)> {
        let address = |(name, open): (&String, &Open)| Some((name.clone(), open.door.as_ref()?.1.address()));
        self.open.iter().filter_map(address).collect()
    }

    /// Waits until a source ends by itself.
    ///
    /// # Errors
    /// If it failed.
    pub async fn next(&mut self) -> Option<Result<()>> {
        let ended = self.tasks.next().await?;
        self.open.remove(&ended.name);
        Some(match ended.result {
            Ok(()) => {
                tracing::info!(source = ended.name, "source ended");
                Ok(())
            }
            Err(error) => Err(error.context(format!("source `{}` failed", ended.name))),
        })
    }

    /// Has all of them answer what they took, and end.
    pub async fn drain(self, deadline: Duration) -> Drained {
        // Whoever comes now finds no door.
        drop(self.open);
        self.tasks.drain(deadline).await
    }
}

fn files(settings: config::File) -> Files {
    let config::File { name, path, format, watch } = settings;
    Files { source: name, path, content: content_of(format), watch }
}

fn content_of(format: Format) -> Option<Content> {
    match format {
        Format::Auto => None,
        Format::Frames => Some(Content::Frames),
        Format::Jsonl => Some(Content::JsonLines),
    }
}
