//! `thalweg keys`.

mod trail;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand};
use serde::Serialize;

use super::{
    Output,
    daemon::Daemon,
    output::{facts, table, time},
    place::{Found, Place, PlaceError},
};
use crate::{
    access::keys::{create, revoke, rotate},
    api::Act,
    clock,
    config::Pipeline,
    identity::{ApiKey, MintedKey, NewKey, Principal, RateTier, Role},
    store::Store,
    units::Period,
    workbench::open_store,
};

/// Make, list, replace and revoke API keys, and see what was done with them.
///
/// Keys let their bearers into a pipeline whose file has a section [auth]. A
/// key is shown once, when it is made; only its SHA-256 is kept, in the store.
/// What one does here a running daemon knows within 10 seconds. Each act, and
/// what was refused to whom, is in the trail, which a daemon shows over --url
/// too; keys are made, listed and revoked only where the store is.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  thalweg keys create --name ingest-eu --tenant acme --role ingester --expires 90d
  thalweg keys create --name grafana --role viewer --tier pro
  thalweg keys list
  thalweg keys rotate KEY --overlap 24h
  thalweg keys revoke KEY
  thalweg keys trail --json
  thalweg keys trail --url https://memory.example.org")]
pub struct Keys {
    #[command(subcommand)]
    what: What,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Make a key and show it, this once
    Create {
        /// What it is for
        #[arg(long, value_name = "NAME")]
        name: String,
        /// The only tenant it speaks for; left out: all of them
        #[arg(long, value_name = "TENANT")]
        tenant: Option<String>,
        /// What its bearer is there for; more than once for several
        #[arg(long = "role", value_name = "ROLE", required = true)]
        roles: Vec<Role>,
        /// How many requests a minute its bearer may make
        #[arg(long, value_name = "TIER", default_value = "free")]
        tier: RateTier,
        /// How long it is good, such as 90d; left out: until it is revoked
        #[arg(long, value_name = "TIME")]
        expires: Option<Period>,
    },
    /// List keys, without their secrets
    List {
        /// Those that are over too
        #[arg(long)]
        all: bool,
    },
    /// Revoke a key: nobody comes in with it any more
    Revoke {
        /// Its id: what stands between the first two `_` of the key
        id: String,
    },
    /// Make a key that may do what another may, which is over soon
    Rotate {
        /// The other's id
        id: String,
        /// How long the other one is good yet
        #[arg(long, value_name = "TIME", default_value = "24h")]
        overlap: Period,
        /// How long the new one is good; left out: as long as the other was
        /// made to be
        #[arg(long, value_name = "TIME")]
        expires: Option<Period>,
    },
    /// List what was done and refused, the newest first
    Trail {
        /// Rows at most
        #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        limit: u32,
        /// Only rows before the one with this number
        #[arg(long, value_name = "ID")]
        before: Option<i64>,
    },
}

/// A new key as programs see it.
#[derive(Debug, Serialize)]
struct Shown {
    /// The key itself.
    key: String,
    #[serde(flatten)]
    about: ApiKey,
}

impl Keys {
    pub(super) fn run(self) -> Result<ExitCode> {
        super::block_on(async {
            let pipeline = match self.place.find()? {
                Found::Here(pipeline) => pipeline,
                Found::There(daemon) => return self.there(&daemon).await,
            };
            // Keys come before the first start: without one nobody could
            // come in.
            std::fs::create_dir_all(&pipeline.data_dir)?;
            let store = open_store(&pipeline).await?;
            let done = self.work(&pipeline, &store).await;
            store.close().await;
            done.map(|()| ExitCode::SUCCESS)
        })
    }

    async fn there(self, daemon: &Daemon) -> Result<ExitCode> {
        let command = match self.what {
            What::Trail { limit, before } => {
                let acts = daemon.list("/api/v1/trail", &[], before, limit as usize).await?.items;
                trail::print(&acts, self.output)?;
                return Ok(ExitCode::SUCCESS);
            }
            What::Create { .. } => "keys create",
            What::List { .. } => "keys list",
            What::Revoke { .. } => "keys revoke",
            What::Rotate { .. } => "keys rotate",
        };
        Err(PlaceError::OnlyHere { command }.into())
    }

    async fn work(self, pipeline: &Pipeline, store: &Store) -> Result<()> {
        let (by, now_ms) = (here(), clock::system_ms());
        match self.what {
            What::Create { name, tenant, roles, tier, expires } => {
                let roles = roles.into_iter().collect();
                let expires_ms = expires.map(|expires| now_ms.saturating_add(millis(expires)));
                let new = NewKey { name, tenant, roles, tier, expires_ms };
                show(create(store, new, &by, &rand::random(), now_ms).await?, self.output)?;
            }
            What::Rotate { id, overlap, expires } => {
                let expires_ms = expires.map(|expires| now_ms.saturating_add(millis(expires)));
                let life = (millis(overlap), expires_ms);
                show(rotate(store, &id, life, &by, &rand::random(), now_ms).await?, self.output)?;
            }
            What::Revoke { id } => {
                revoke(store, &id, &by, now_ms).await?;
                let revoked = serde_json::json!({"id": id, "revoked_ms": now_ms});
                self.output
                    .print(&revoked, |_| format!("the key {id} is revoked; daemons know it within 10 s"))?;
            }
            What::List { all } => {
                let mut keys = store.keys().await?;
                keys.retain(|key| all || key.revoked_ms.is_none() && !key.is_expired(now_ms));
                self.output.print(&keys, |keys| list(keys, now_ms))?;
            }
            What::Trail { limit, before } => {
                let rows = store.trail(before.unwrap_or(i64::MAX), limit).await?;
                let acts: Vec<Act> = rows.into_iter().map(Act::from).collect();
                trail::print(&acts, self.output)?;
            }
        }
        if pipeline.auth.as_ref().is_none_or(|auth| !auth.keys) {
            eprintln!("note: pipeline `{}` takes no keys: its file has no [auth] with `keys`", pipeline.name);
        }
        Ok(())
    }
}

/// Whoever runs this command. The name is what the environment says, so it
/// is told and not proven; whoever can open the store can do all this anyway.
pub(super) fn here() -> Principal {
    let name = ["SUDO_USER", "USER", "LOGNAME"].iter().find_map(|name| std::env::var(name).ok());
    Principal::local(name.as_deref().filter(|name| !name.is_empty()).unwrap_or("unknown"))
}

fn millis(period: Period) -> i64 {
    i64::try_from(period.0.as_millis()).unwrap_or(i64::MAX)
}

fn show(minted: MintedKey, output: Output) -> Result<()> {
    let shown = Shown { key: minted.text, about: minted.key };
    output.print(&shown, |Shown { key, about }| {
        let mut lines = vec![
            ("key", key.clone()),
            ("tenant", about.tenant.clone().unwrap_or_else(|| "all of them".into())),
            ("roles", about.roles.to_string()),
            ("tier", about.tier.name().into()),
            ("expires", about.expires_ms.map_or("never".into(), time)),
        ];
        if let Some(old) = &about.replaces {
            lines.push(("replaces", old.clone()));
        }
        facts(&lines) + "\nKeep it now: it is not shown again.\n"
    })?;
    Ok(())
}

fn list(keys: &[ApiKey], now_ms: i64) -> String {
    let heading = ["ID", "NAME", "TENANT", "ROLES", "TIER", "STATE", "EXPIRES", "USED"];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    rows.extend(keys.iter().map(|key| {
        let state = match key.revoked_ms {
            Some(at) => format!("revoked {}", time(at)),
            None if key.is_expired(now_ms) => "expired".into(),
            None => "good".into(),
        };
        vec![
            key.id.clone(),
            key.name.clone(),
            key.tenant.clone().unwrap_or_else(|| "(all)".into()),
            key.roles.to_string(),
            key.tier.name().into(),
            state,
            key.expires_ms.map_or("never".into(), time),
            key.used_ms.map_or("never".into(), time),
        ]
    }));
    table(&rows)
}
