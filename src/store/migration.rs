//! From one embedding space to another: how far it is, the switch, the end.

/// What a space lacks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Missing {
    /// Chunks without a vector in it.
    pub chunks: u64,
    /// Their tokens, as they were counted when they were stored.
    pub tokens: u64,
}

/// A stored text.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct Sample {
    /// Whose it is.
    pub tenant: String,
    /// Its stream.
    pub stream: String,
    /// Its record's offset in it.
    pub offset: i64,
    /// The text.
    pub text: String,
}
