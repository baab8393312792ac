//! `[limits]`: how many requests a minute.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{identity::RateTier, setting::SettingError};

/// `[limits]`: requests a minute, by rate tier. A tenant's keys and tokens
/// share its limit; a principal without a tenant has one of its own. Where
/// `[auth]` is off, nobody is limited.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Of the tier `free`.
    pub free: u32,
    /// Of the tier `dev`.
    pub dev: u32,
    /// Of the tier `pro`.
    pub pro: u32,
    /// Of the tier `enterprise`.
    pub enterprise: u32,
    /// Other numbers for some routes, which are then counted by themselves:
    /// `endpoints."/api/v1/search" = { free = 10 }`.
    pub endpoints: BTreeMap<String, Tiers>,
    /// Whether daemons with one `[redis]` share one limit.
    pub shared: bool,
    /// What happens while that Redis is away.
    pub fail: Fail,
}

/// Requests a minute to one route; tiers that are left out are not counted
/// apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(inline)]
pub struct Tiers {
    /// Of the tier `free`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub free: Option<u32>,
    /// Of the tier `dev`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dev: Option<u32>,
    /// Of the tier `pro`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pro: Option<u32>,
    /// Of the tier `enterprise`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enterprise: Option<u32>,
    /// Of the tier `unlimited`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unlimited: Option<u32>,
}

/// What happens to requests that cannot be counted together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Fail {
    /// Each daemon counts by itself.
    #[default]
    Open,
    /// They are refused.
    Closed,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            free: 60,
            dev: 300,
            pro: 1_200,
            enterprise: 6_000,
            endpoints: BTreeMap::new(),
            shared: true,
            fail: Fail::Open,
        }
    }
}

impl Tiers {
    fn of(&self, tier: RateTier) -> Option<u32> {
        match tier {
            RateTier::Free => self.free,
            RateTier::Dev => self.dev,
            RateTier::Pro => self.pro,
            RateTier::Enterprise => self.enterprise,
            RateTier::Unlimited => self.unlimited,
        }
    }
}

impl Settings {
    /// The limit of `tier` on `route`, and whether the route is counted by
    /// itself; `None` if there is no limit.
    pub(super) fn limit_of(&self, tier: RateTier, route: &str) -> Option<(u32, bool)> {
        if let Some(own) = self.endpoints.get(route).and_then(|tiers| tiers.of(tier)) {
            return Some((own, true));
        }
        let limit = match tier {
            RateTier::Free => self.free,
            RateTier::Dev => self.dev,
            RateTier::Pro => self.pro,
            RateTier::Enterprise => self.enterprise,
            RateTier::Unlimited => return None,
        };
        Some((limit, false))
    }

    /// Refuses values that cannot be meant.
    pub fn validate(&self) -> Result<(), SettingError> {
        let tiers =
            [("free", self.free), ("dev", self.dev), ("pro", self.pro), ("enterprise", self.enterprise)];
        let own = self.endpoints.iter().flat_map(|(route, tiers)| {
            [tiers.free, tiers.dev, tiers.pro, tiers.enterprise, tiers.unlimited]
                .into_iter()
                .flatten()
                .map(move |limit| (format!("endpoints.{route}"), limit))
        });
        for (key, limit) in tiers.into_iter().map(|(key, limit)| (key.to_owned(), limit)).chain(own) {
            let fine = (1..=1_000_000).contains(&limit);
            SettingError::unless(fine, &key, format!("from 1 to 1000000 requests a minute, not {limit}"))?;
        }
        for route in self.endpoints.keys() {
            let message = format!(
                "`{route}` is no route; write one as docs/openapi.json has it, such as \"/api/v1/search\""
            );
            SettingError::unless(route.starts_with("/api/v1/"), "endpoints", message)?;
        }
        Ok(())
    }
}
