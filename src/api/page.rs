//! Lists, page by page.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::Problem;

/// Items of a page unless the request says otherwise.
const USUAL: u32 = 100;
/// Items of a page at most.
const MOST: u32 = 1_000;

/// Which part of a list is asked for.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct PageOf {
    /// Items at most; 100 if left out.
    #[param(minimum = 1, maximum = 1000)]
    pub limit: Option<u32>,
    /// `next_cursor` of the page before; the first page if left out.
    #[param(max_length = 1024)]
    pub cursor: Option<String>,
}

/// A part of a list.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Page<T> {
    /// The items, in the list's order.
    pub items: Vec<T>,
    /// Where the next page begins; null on the last.
    pub next_cursor: Option<String>,
}

impl PageOf {
    /// How many items are asked for.
    pub fn limit(&self) -> Result<u32, Problem> {
        match self.limit {
            None => Ok(USUAL),
            Some(limit) if (1..=MOST).contains(&limit) => Ok(limit),
            Some(limit) => {
                Err(Problem::bad_request("bad_parameter", format!("limit is 1 to {MOST}, not {limit}")))
            }
        }
    }

    /// The key of the last item of the page before.
    pub fn after<K: std::str::FromStr>(&self) -> Result<Option<K>, Problem> {
        let Some(cursor) = &self.cursor else { return Ok(None) };
        let key = URL_SAFE_NO_PAD.decode(cursor).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let key = key.and_then(|key| key.parse().ok());
        key.map(Some).ok_or_else(|| {
            let detail = "cursor is not one that this list gave; leave it out to begin at the beginning";
            Problem::bad_request("bad_cursor", detail)
        })
    }
}

/// The cursor of what comes after `key`.
pub fn cursor(key: &impl ToString) -> String {
    URL_SAFE_NO_PAD.encode(key.to_string())
}

impl<T> Page<T> {
    /// Of up to one item more than `limit`, which says whether there are
    /// more; `key` is what the list is ordered by.
    pub fn of<I, K: ToString>(mut items: Vec<I>, limit: u32, key: impl Fn(&I) -> K) -> Self
    where
        T: From<I>,
    {
        let limit = limit as usize;
        let more = items.len() > limit;
        items.truncate(limit);
        let next_cursor = items.last().filter(|_| more).map(|last| cursor(&key(last)));
        Self { items: items.into_iter().map(T::from).collect(), next_cursor }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(items: &[u64], of: &PageOf) -> Page<u64> {
        let after: Option<u64> = of.after().unwrap();
        let limit = of.limit().unwrap();
        let rest = items.iter().copied().filter(|item| after.is_none_or(|after| *item > after));
        Page::of(rest.take(limit as usize + 1).collect(), limit, |item| *item)
    }

    #[test]
    fn pages_are_the_list_in_order_and_the_last_has_no_cursor() {
        let items: Vec<u64> = (0..10).collect();
        let (mut seen, mut cursor, mut pages) = (Vec::new(), None, 0);
        loop {
            let page = page(&items, &PageOf { limit: Some(4), cursor: cursor.take() });
            seen.extend(page.items);
            pages += 1;
            match page.next_cursor {
                Some(next) => cursor = Some(next),
                None => break,
            }
        }
        assert_eq!((seen, pages), (items, 3));
        assert!(page(&[1, 2], &PageOf { limit: Some(2), cursor: None }).next_cursor.is_none());
    }

    #[test]
    fn limits_and_cursors_that_cannot_be_meant_are_refused() {
        for limit in [0, 1_001] {
            let of = PageOf { limit: Some(limit), cursor: None };
            assert_eq!(of.limit().unwrap_err().code, "bad_parameter");
        }
        for cursor in ["!", "AAAA", ""] {
            let of = PageOf { limit: None, cursor: Some(cursor.into()) };
            assert_eq!(of.after::<u64>().unwrap_err().code, "bad_cursor", "{cursor}");
        }
    }
}
