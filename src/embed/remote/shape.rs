//! How many texts go into one request.

use super::settings::{Api, Endpoint};

/// What one request may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Texts.
    pub inputs: usize,
    /// Tokens.
    pub tokens: u64,
    /// Bytes of its texts, before they are written as JSON.
    pub bytes: usize,
}

impl Limits {
    /// What the API allows, less a tenth; the settings' word goes for what
    /// they say.
    ///
    /// OpenAI: 2,048 inputs and 300,000 tokens. Voyage: 1,000 inputs and, for
    /// the strictest of its models, 120,000 tokens.
    /// text-embeddings-inference: 32 inputs and 2 MB, unless it was started
    /// otherwise; it counts no tokens, so theirs is what fits 2 MB.
    pub fn of(endpoint: &Endpoint) -> Self {
        let (inputs, tokens, bytes) = match endpoint.api {
            Api::Openai => (2_048, 300_000, 8_000_000),
            Api::Voyage => (1_000, 120_000, 8_000_000),
            Api::Tei => (32, 200_000, 2_000_000),
        };
        Self {
            inputs: endpoint.max_inputs.unwrap_or(inputs * 9 / 10),
            tokens: endpoint.max_request_tokens.unwrap_or(tokens * 9 / 10),
            bytes: bytes * 9 / 10,
        }
    }

    /// How many of the texts go into the next request, given the tokens and
    /// bytes of each in order: as many as fit, and at least one.
    pub fn fit(&self, texts: impl Iterator<Item = (u64, usize)>) -> usize {
        let (mut count, mut all_tokens, mut all_bytes) = (0, 0_u64, 0_usize);
        for (tokens, bytes) in texts.take(self.inputs.max(1)) {
            all_tokens = all_tokens.saturating_add(tokens);
            all_bytes = all_bytes.saturating_add(bytes);
            if count > 0 && (all_tokens > self.tokens || all_bytes > self.bytes) {
                break;
            }
            count += 1;
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn endpoint(api: &str) -> Endpoint {
        toml::from_str(&format!("name = 'a'\napi = '{api}'\nurl = 'http://a'")).unwrap()
    }

    #[test]
    fn limits_are_those_of_the_api_with_a_tenth_to_spare_unless_set() {
        let limits = |api| Limits::of(&endpoint(api));
        assert_eq!((limits("openai").inputs, limits("openai").tokens), (1_843, 270_000));
        assert_eq!((limits("voyage").inputs, limits("voyage").tokens), (900, 108_000));
        assert_eq!((limits("tei").inputs, limits("tei").bytes), (28, 1_800_000));
        let set = Endpoint { max_inputs: Some(64), max_request_tokens: Some(1_000), ..endpoint("tei") };
        assert_eq!((Limits::of(&set).inputs, Limits::of(&set).tokens), (64, 1_000));
    }

    proptest! {
        #[test]
        fn requests_keep_to_the_limits_and_leave_no_room(
            texts in proptest::collection::vec((1..100_u64, 1..1_000_usize), 1..50),
            limits in (1..20_usize, 1..500_u64, 1..5_000_usize),
        ) {
            let limits = Limits { inputs: limits.0, tokens: limits.1, bytes: limits.2 };
            let sums = |n: usize| {
                let some = &texts[..n];
                (some.iter().map(|t| t.0).sum::<u64>(), some.iter().map(|t| t.1).sum::<usize>())
            };
            let fits = |n: usize| n <= limits.inputs && sums(n).0 <= limits.tokens && sums(n).1 <= limits.bytes;
            let count = limits.fit(texts.iter().copied());
            prop_assert!(count == 1 || fits(count));
            prop_assert!(count == texts.len() || !fits(count + 1));
        }
    }
}
