//! `thalweg models`.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::{Args, Subcommand};
use serde::Serialize;

use super::{
    FOUND_WRONG, Output, PipelineFile, offline,
    output::{count, table, time},
};
use crate::{
    config::Pipeline,
    embed::{Settings, model},
    store::SpaceRow,
    units::ByteSize,
};

/// List and verify models, and the embedding spaces of a pipeline.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  thalweg models list
  THALWEG_MODELS=/srv/models thalweg models verify")]
pub struct Models {
    #[command(subcommand)]
    what: What,
    #[command(flatten)]
    pipeline: PipelineFile,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Subcommand)]
enum What {
    /// List known models and the spaces that the pipeline's store knows
    List,
    /// Compare the files of each model that is here with its digests; exit
    /// code 3 if one is not as it should be, or the pipeline's is not here
    Verify,
}

/// A known model on this machine.
#[derive(Debug, Serialize)]
struct Model {
    name: &'static str,
    licence: &'static str,
    folder: PathBuf,
    /// `absent`, `present`, `verified` or `wrong`.
    state: &'static str,
    bytes: Option<u64>,
    /// What is wrong with it.
    problem: Option<String>,
}

/// An embedding space of the pipeline's store.
#[derive(Debug, Serialize)]
struct Space {
    id: String,
    provider: String,
    model: String,
    revision: String,
    dimensions: usize,
    state: &'static str,
    vectors: u64,
    created_ms: i64,
}

#[derive(Debug, Serialize)]
struct Listing {
    models: Vec<Model>,
    spaces: Vec<Space>,
}

impl Models {
    pub(super) fn run(self) -> Result<ExitCode> {
        // Models can be looked after before there is any pipeline.
        let pipeline = if self.pipeline.pipeline.exists() { Some(self.pipeline.load()?) } else { None };
        let settings = pipeline.as_ref().map(|pipeline| pipeline.embed.clone()).unwrap_or_default();
        let verify = matches!(self.what, What::Verify);
        let models: Vec<Model> = model::known().map(|known| look(known, &settings, verify)).collect();
        let spaces = match &pipeline {
            Some(pipeline) if !verify => super::block_on(spaces(pipeline))?,
            _ => Vec::new(),
        };
        let listing = Listing { models, spaces };
        self.output.print(&listing, Listing::text)?;
        let wrong = listing.models.iter().any(|model| model.state != "verified");
        Ok(if verify && wrong { ExitCode::from(FOUND_WRONG) } else { ExitCode::SUCCESS })
    }
}

fn look((name, licence): (&'static str, &'static str), settings: &Settings, verify: bool) -> Model {
    let named = Settings {
        model: name.to_owned(),
        model_dir: if settings.model == name { settings.model_dir.clone() } else { String::new() },
        ..settings.clone()
    };
    let folder = named.model_folder(std::env::var_os("THALWEG_MODELS").as_deref());
    let mut found = Model { name, licence, state: "present", bytes: None, problem: None, folder };
    if !found.folder.is_dir() {
        found.state = "absent";
        found.problem = Some("run `scripts/fetch-model`, or set THALWEG_MODELS to where models are".into());
    } else if verify {
        match model::verify(name, &found.folder) {
            Ok(bytes) => (found.state, found.bytes) = ("verified", Some(bytes)),
            Err(error) => (found.state, found.problem) = ("wrong", Some(error.to_string())),
        }
    }
    found
}

async fn spaces(pipeline: &Pipeline) -> Result<Vec<Space>> {
    let Some(store) = offline::find_store(pipeline).await? else { return Ok(Vec::new()) };
    let mut spaces = Vec::new();
    for SpaceRow { space_key, space, space_id, state, created_ms } in store.spaces().await? {
        spaces.push(Space {
            id: space_id,
            provider: space.provider,
            model: space.model,
            revision: space.revision,
            dimensions: space.dimensions,
            state: state.as_str(),
            vectors: store.vectors_in(space_key).await?,
            created_ms,
        });
    }
    store.close().await;
    Ok(spaces)
}

impl Listing {
    fn text(&self) -> String {
        let mut text = String::new();
        for model in &self.models {
            let size = model.bytes.map_or_else(String::new, |bytes| format!("  {}", ByteSize(bytes)));
            text += &format!(
                "{}  {}{size}  {}  {}\n",
                model.name,
                model.state,
                model.licence,
                model.folder.display()
            );
            if let Some(problem) = &model.problem {
                text += &format!("    {problem}\n");
            }
        }
        if self.spaces.is_empty() {
            return text;
        }
        let heading = ["space", "model", "dimensions", "state", "vectors", "since"];
        let mut cells = vec![heading.map(str::to_owned).to_vec()];
        cells.extend(self.spaces.iter().map(|space| {
            vec![
                space.id.clone(),
                format!("{}/{}", space.provider, space.model),
                space.dimensions.to_string(),
                space.state.to_owned(),
                count(space.vectors),
                time(space.created_ms),
            ]
        }));
        format!("{text}\n{}", table(&cells))
    }
}
