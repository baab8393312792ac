//! Who a request speaks for, and what they may do.
//!
//! Every way in (HTTP, TCP, Unix, Forward) turns what it was shown into a
//! [`Principal`], once; from there on only the principal counts. What
//! concerns one tenant is open to a principal of that tenant, what concerns
//! all of them only to a principal of none in particular.

mod principal;

pub use principal::{Denied, Principal, RateTier, Right, Role, Roles, Scheme};
