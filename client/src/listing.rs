//! Lists that page by themselves.

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;

use crate::error::Result;

type Page<T> = Pin<Box<dyn Future<Output = Result<(Vec<T>, Option<String>)>> + Send>>;

/// A list on the server, read page by page as it is consumed.
///
/// Each page shows the state of the moment it was read; an entry that is there all the while is never left out.
#[must_use = "nothing is read before `next` or `all`"]
pub struct Listing<T> {
    fetch: Box<dyn FnMut(String) -> Page<T> + Send>,
    /// Where the next page begins; `None` after the last.
    next: Option<String>,
    entries: VecDeque<T>,
}

impl<T> Listing<T> {
    /// A list whose pages `fetch` reads: given where a page begins, its entries and where the next one does. The first
    /// begins at the empty string.
    pub(crate) fn new<F>(mut fetch: impl FnMut(String) -> F + Send + 'static) -> Listing<T>
    where
        F: Future<Output = Result<(Vec<T>, Option<String>)>> + Send + 'static,
    {
        let fetch = Box::new(move |from| Box::pin(fetch(from)) as Page<T>);
        Listing { fetch, next: Some(String::new()), entries: VecDeque::new() }
    }

    /// The next entry, or `None` after the last. After an error the same call can be made again.
    pub async fn next(&mut self) -> Result<Option<T>> {
        while self.entries.is_empty() {
            let Some(from) = &self.next else { return Ok(None) };
            let (entries, next) = (self.fetch)(from.clone()).await?;
            self.entries = entries.into();
            self.next = next;
        }
        Ok(self.entries.pop_front())
    }

    /// All entries that are left.
    pub async fn all(mut self) -> Result<Vec<T>> {
        let mut all = Vec::new();
        while let Some(entry) = self.next().await? {
            all.push(entry);
        }
        Ok(all)
    }
}

impl<T> fmt::Debug for Listing<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listing").field("next", &self.next).finish_non_exhaustive()
    }
}
