//! What an answer's headers say about rates.
//!
//! `Retry-After` is RFC 9110, section 10.2.3 (seconds or a date);
//! `retry-after-ms` and `x-ratelimit-{limit,remaining,reset}-{requests,tokens}`
//! are OpenAI's, taken over by many. Resets are spans such as `6m0s`, `1.5s`
//! or `20ms`.

use std::time::Duration;

use reqwest::header::HeaderMap;

/// A wait longer than this is no rate limit, whatever a header says.
const LONGEST: Duration = Duration::from_secs(7 * 24 * 3_600);

/// Limits as an answer tells them; `None` where it says nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RateLimits {
    /// When to come again at the earliest.
    pub retry_after: Option<Duration>,
    /// Of requests.
    pub requests: Limit,
    /// Of tokens.
    pub tokens: Limit,
    /// Tokens that this request took: text-embeddings-inference says it here.
    pub taken: Option<u64>,
}

/// One limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limit {
    /// A minute.
    pub limit: Option<u64>,
    /// Left at the moment.
    pub remaining: Option<u64>,
    /// Until all are there again.
    pub reset: Option<Duration>,
}

/// Reads the headers; `now_ms` is the time that a date is compared with.
pub fn read(headers: &HeaderMap, now_ms: i64) -> RateLimits {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    let limit = |kind: &str| Limit {
        limit: text(&format!("x-ratelimit-limit-{kind}")).and_then(|n| n.parse().ok()),
        remaining: text(&format!("x-ratelimit-remaining-{kind}")).and_then(|n| n.parse().ok()),
        reset: text(&format!("x-ratelimit-reset-{kind}")).and_then(span),
    };
    let ms = text("retry-after-ms").and_then(|n| n.parse().ok()).map(Duration::from_millis);
    let retry_after = ms.or_else(|| text("retry-after").and_then(|value| retry_after(value, now_ms)));
    RateLimits {
        retry_after: retry_after.map(|wait| wait.min(LONGEST)),
        requests: limit("requests"),
        tokens: limit("tokens"),
        taken: text("x-compute-tokens").and_then(|n| n.parse().ok()),
    }
}

/// Seconds, with or without a fraction, or an HTTP date; a date gone by is no
/// wait.
fn retry_after(value: &str, now_ms: i64) -> Option<Duration> {
    if let Ok(seconds) = value.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds).ok();
    }
    let at = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(value).ok()?;
    Some(Duration::from_millis(u64::try_from(at.as_millisecond() - now_ms).unwrap_or(0)))
}

/// A span as Go writes it: numbers with units, one after the other. A bare
/// number is seconds.
fn span(value: &str) -> Option<Duration> {
    let mut total = 0.0;
    let mut rest = value;
    while !rest.is_empty() {
        let number_end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, after) = rest.split_at(number_end);
        let unit_end = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_end);
        let seconds = match unit.trim() {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "" | "s" => 1.0,
            "m" => 60.0,
            "h" => 3_600.0,
            "d" => 86_400.0,
            _ => return None,
        };
        total += number.parse::<f64>().ok()? * seconds;
        rest = after;
    }
    Duration::try_from_secs_f64(total).ok().filter(|_| !value.is_empty()).map(|span| span.min(LONGEST))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 1994-11-06 08:49:37 UTC.
    const NOW_MS: i64 = 784_111_777_000;

    fn headers(list: &[(&'static str, &'static str)]) -> RateLimits {
        let map = list.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
        read(&map, NOW_MS)
    }

    fn wait(value: &'static str) -> Option<Duration> {
        headers(&[("retry-after", value)]).retry_after
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        assert_eq!(wait("20"), Some(Duration::from_secs(20)));
        assert_eq!(wait("0.5"), Some(Duration::from_millis(500)));
        assert_eq!(wait("Sun, 06 Nov 1994 08:50:07 GMT"), Some(Duration::from_secs(30)));
        assert_eq!(wait("Sun, 06 Nov 1994 08:49:07 GMT"), Some(Duration::ZERO));
        assert_eq!(wait("soon"), None);
        assert_eq!(wait("-1"), None);
        assert_eq!(wait("1e300"), None);
        assert_eq!(wait("99999999999"), Some(LONGEST));
        let both = headers(&[("retry-after", "1"), ("retry-after-ms", "250")]);
        assert_eq!(both.retry_after, Some(Duration::from_millis(250)));
    }

    #[test]
    fn rate_limits_are_read_as_openai_writes_them() {
        let read = headers(&[
            ("x-ratelimit-limit-requests", "60"),
            ("x-ratelimit-remaining-requests", "59"),
            ("x-ratelimit-reset-requests", "1s"),
            ("x-ratelimit-limit-tokens", "150000"),
            ("x-ratelimit-remaining-tokens", "149984"),
            ("x-ratelimit-reset-tokens", "6m0s"),
        ]);
        let (second, minutes) = (Some(Duration::from_secs(1)), Some(Duration::from_secs(360)));
        assert_eq!(read.requests, Limit { limit: Some(60), remaining: Some(59), reset: second });
        assert_eq!(read.tokens, Limit { limit: Some(150_000), remaining: Some(149_984), reset: minutes });
        assert_eq!(headers(&[]), RateLimits::default());
        assert_eq!(headers(&[("x-compute-tokens", "12")]).taken, Some(12));
    }

    #[test]
    fn spans_are_read_with_and_without_fractions() {
        for (text, millis) in
            [("20ms", 20), ("1.5s", 1_500), ("1h2m3s", 3_723_000), ("7", 7_000), ("1m30.25s", 90_250)]
        {
            assert_eq!(span(text), Some(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "s", "1y", "1..2s", "now"] {
            assert_eq!(span(text), None, "{text}");
        }
    }
}
