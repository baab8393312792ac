//! Principals, roles and rights.

use std::{fmt, sync::Arc};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize, Serializer};

/// What somebody is there for. Roles add up.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    JsonSchema,
    clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Searches, and sees where things stand.
    Viewer,
    /// Brings records.
    Ingester,
    /// Sees everything, starts and cancels jobs, sends dead letters again.
    Operator,
    /// May do everything, among it giving keys and erasing.
    Admin,
}

/// What a request needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Right {
    /// To search the records of a tenant.
    Search,
    /// To append records of a tenant.
    Ingest,
    /// To see where the whole pipeline stands.
    Observe,
    /// To start, change and cancel work of the whole pipeline.
    Operate,
    /// To give and take keys, to erase, to change the configuration.
    Administer,
}

impl Role {
    /// All of them, from the least.
    pub const ALL: [Self; 4] = [Self::Viewer, Self::Ingester, Self::Operator, Self::Admin];

    /// The word for it in keys, tokens and the pipeline file.
    pub fn name(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Ingester => "ingester",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }

    /// The role of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.name() == name)
    }

    fn has(self, right: Right) -> bool {
        match self {
            Self::Viewer => matches!(right, Right::Search | Right::Observe),
            Self::Ingester => right == Right::Ingest,
            Self::Operator => matches!(right, Right::Search | Right::Observe | Right::Operate),
            Self::Admin => true,
        }
    }

    fn bit(self) -> u8 {
        1 << self as u8
    }
}

impl Right {
    /// The word for it in refusals.
    pub fn name(self) -> &'static str {
        match self {
            Self::Search => "search",
            Self::Ingest => "ingest",
            Self::Observe => "observe",
            Self::Operate => "operate",
            Self::Administer => "administer",
        }
    }

    /// Whether it reaches beyond one tenant.
    fn of_all_tenants(self) -> bool {
        !matches!(self, Self::Search | Self::Ingest)
    }

    /// The least roles that have it, for people.
    fn had_by(self) -> String {
        let names: Vec<_> = Role::ALL.iter().filter(|role| role.has(self)).map(|role| role.name()).collect();
        names.join(" or ")
    }
}

/// A set of roles.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Roles(u8);

impl Roles {
    /// Every role.
    pub fn all() -> Self {
        Role::ALL.into_iter().collect()
    }

    /// Whether `role` is among them.
    pub fn contains(self, role: Role) -> bool {
        self.0 & role.bit() != 0
    }

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// From the least to the greatest.
    pub fn iter(self) -> impl Iterator<Item = Role> {
        Role::ALL.into_iter().filter(move |role| self.contains(*role))
    }
}

impl Serialize for Roles {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter())
    }
}

impl FromIterator<Role> for Roles {
    fn from_iter<I: IntoIterator<Item = Role>>(roles: I) -> Self {
        Self(roles.into_iter().fold(0, |bits, role| bits | role.bit()))
    }
}

impl fmt::Display for Roles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, role) in self.iter().enumerate() {
            write!(f, "{}{}", if at > 0 { ", " } else { "" }, role.name())?;
        }
        Ok(())
    }
}

/// How many requests a minute somebody may make.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    JsonSchema,
    clap::ValueEnum,
    utoipa::ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum RateTier {
    /// 60, unless the pipeline file says otherwise.
    #[default]
    Free,
    /// 300.
    Dev,
    /// 1,200.
    Pro,
    /// 6,000.
    Enterprise,
    /// As many as they like.
    Unlimited,
}

impl RateTier {
    /// All of them, from the least.
    pub const ALL: [Self; 5] = [Self::Free, Self::Dev, Self::Pro, Self::Enterprise, Self::Unlimited];

    /// The word for it in keys, tokens and the pipeline file.
    pub fn name(self) -> &'static str {
        match self {
            Self::Free => "free",
            Self::Dev => "dev",
            Self::Pro => "pro",
            Self::Enterprise => "enterprise",
            Self::Unlimited => "unlimited",
        }
    }

    /// The tier of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|tier| tier.name() == name)
    }
}

/// How a principal proved who they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scheme {
    /// Nobody asked: authentication is not configured.
    Open,
    /// An API key.
    Key,
    /// A token of an identity provider.
    Token,
    /// What a source was given in the pipeline file, as Forward's shared key.
    Source,
    /// An account of this machine that may open the store itself.
    Local,
}

impl Scheme {
    const ALL: [Self; 5] = [Self::Open, Self::Key, Self::Token, Self::Source, Self::Local];

    /// The stored name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Key => "key",
            Self::Token => "token",
            Self::Source => "source",
            Self::Local => "local",
        }
    }

    /// The scheme of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|scheme| scheme.name() == name)
    }
}

/// Who a request speaks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Principal {
    /// The key's id or the token's subject; for logs and the audit trail.
    pub id: Arc<str>,
    /// How they proved it.
    pub scheme: Scheme,
    /// The only tenant they speak for; `None`: any.
    pub tenant: Option<Arc<str>>,
    /// What they are there for.
    pub roles: Roles,
    /// How much they may ask.
    pub tier: RateTier,
    /// From when on what they showed is no longer good, in milliseconds since
    /// the Unix epoch; `None`: it has no end.
    pub expires_ms: Option<i64>,
}

/// Why a principal may not do what they asked for. The message says which
/// right was missing, and nothing about what is there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// No role that has the right.
    #[error(
        "this needs the right to {}, which the role {had_by} has; `{id}` has {roles}",
        right.name()
    )]
    Right {
        /// What is missing.
        right: Right,
        /// Who has it.
        had_by: String,
        /// Who asked.
        id: Arc<str>,
        /// What they have; "no role" if none.
        roles: String,
    },
    /// The right reaches further than the principal's tenant.
    #[error(
        "this concerns all tenants, and `{id}` speaks for one of them only: use a key or a token without a tenant"
    )]
    AllTenants {
        /// Who asked.
        id: Arc<str>,
    },
    /// Another tenant's.
    #[error("`{id}` does not speak for the tenant asked for; leave `tenant` out, or name the own one")]
    Tenant {
        /// Who asked.
        id: Arc<str>,
    },
}

impl Denied {
    /// The stable code (`docs/identity.md`).
    pub fn code(&self) -> &'static str {
        match self {
            Self::Right { .. } => "right_missing",
            Self::AllTenants { .. } => "all_tenants",
            Self::Tenant { .. } => "tenant_forbidden",
        }
    }
}

impl Principal {
    /// Everybody, where authentication is not configured.
    pub fn open() -> Self {
        Self {
            id: "anyone".into(),
            scheme: Scheme::Open,
            tenant: None,
            roles: Roles::all(),
            tier: RateTier::Unlimited,
            expires_ms: None,
        }
    }

    /// An account of this machine, which may do what it can open the store
    /// for. `name` is the account's.
    pub fn local(name: &str) -> Self {
        Self { id: format!("local:{name}").into(), scheme: Scheme::Local, ..Self::open() }
    }

    /// Whom a source of the pipeline file speaks for, whoever connects to it.
    pub fn source(name: &str, tenant: Option<&str>) -> Self {
        Self {
            id: format!("source:{name}").into(),
            scheme: Scheme::Source,
            tenant: tenant.map(Arc::from),
            roles: [Role::Ingester].into_iter().collect(),
            tier: RateTier::Unlimited,
            expires_ms: None,
        }
    }

    /// Fails unless they have `right`.
    pub fn require(&self, right: Right) -> Result<(), Denied> {
        if !self.roles.iter().any(|role| role.has(right)) {
            let roles = if self.roles.is_empty() { "no role".to_owned() } else { self.roles.to_string() };
            return Err(Denied::Right { right, had_by: right.had_by(), id: self.id.clone(), roles });
        }
        if right.of_all_tenants() && self.tenant.is_some() {
            return Err(Denied::AllTenants { id: self.id.clone() });
        }
        Ok(())
    }

    /// The tenant that a request of theirs is about: what they asked for, or
    /// their own if they asked for none. `None`: they speak for any, and
    /// named none.
    pub fn tenant_of(&self, asked: Option<&str>) -> Result<Option<Arc<str>>, Denied> {
        match (&self.tenant, asked) {
            (None, asked) => Ok(asked.map(Arc::from)),
            (Some(own), Some(asked)) if **own != *asked => Err(Denied::Tenant { id: self.id.clone() }),
            (Some(own), _) => Ok(Some(own.clone())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn principal(roles: &[Role], tenant: Option<&str>) -> Principal {
        Principal {
            id: "k1".into(),
            scheme: Scheme::Key,
            tenant: tenant.map(Arc::from),
            roles: roles.iter().copied().collect(),
            tier: RateTier::Free,
            expires_ms: None,
        }
    }

    #[test]
    fn each_role_has_its_rights_and_no_others() {
        let rights = [Right::Search, Right::Ingest, Right::Observe, Right::Operate, Right::Administer];
        let table: Vec<String> = Role::ALL
            .iter()
            .map(|role| {
                let has = |right: &&Right| principal(&[*role], None).require(**right).is_ok();
                let rights: Vec<_> = rights.iter().filter(has).map(|right| right.name()).collect();
                format!("{}: {}", role.name(), rights.join(" "))
            })
            .collect();
        assert_eq!(
            table,
            [
                "viewer: search observe",
                "ingester: ingest",
                "operator: search observe operate",
                "admin: search ingest observe operate administer",
            ]
        );
    }

    #[test]
    fn one_tenants_admin_does_nothing_that_concerns_others() {
        let admin = principal(&[Role::Admin], Some("acme"));
        assert_eq!(admin.require(Right::Search), Ok(()));
        assert_eq!(admin.require(Right::Ingest), Ok(()));
        for right in [Right::Observe, Right::Operate, Right::Administer] {
            assert_eq!(admin.require(right), Err(Denied::AllTenants { id: "k1".into() }));
        }
    }

    #[test]
    fn a_tenant_is_the_principals_own_or_asked_for_by_one_of_none() {
        let (acme, any) = (principal(&[Role::Viewer], Some("acme")), principal(&[Role::Viewer], None));
        assert_eq!(acme.tenant_of(None), Ok(Some("acme".into())));
        assert_eq!(acme.tenant_of(Some("acme")), Ok(Some("acme".into())));
        assert_eq!(acme.tenant_of(Some("other")), Err(Denied::Tenant { id: "k1".into() }));
        assert_eq!(any.tenant_of(Some("other")), Ok(Some("other".into())));
        assert_eq!(any.tenant_of(None), Ok(None));
    }

    #[test]
    fn a_refusal_says_which_right_is_missing_and_who_has_it() {
        let refused = principal(&[Role::Viewer], None).require(Right::Operate).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "this needs the right to operate, which the role operator or admin has; `k1` has viewer"
        );
    }
}
